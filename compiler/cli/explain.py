"""``paradag explain CODE`` and ``paradag rules``: what the knowledge base says of a diagnostic."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ._common import FormatOption, OutputFormat, write_json, write_table

if TYPE_CHECKING:
    from ..knowledge import Rule

_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)")


def explain_command(code: Annotated[str, typer.Argument(metavar="CODE", help="A code, such as PD211.")]) -> None:
    """Explain a rule: what it asks for, why, how it is detected and repaired, and an example that breaks it."""
    from ..diagnostics import Diagnostic, DiagnosticError
    from ..knowledge import nearest_codes, rules

    known = rules()
    rule = known.get(code.strip().upper())
    if rule is None:
        near = [f"`{c}` ({known[c].title})" for c in nearest_codes(code)]
        help_ = f"perhaps {', '.join(near)}" if near else "`paradag rules` lists all of them"
        raise DiagnosticError([Diagnostic("PD016", f"no rule `{code[:40]}`", None, "a code, as `PD211`", help_)])
    typer.echo(_as_text(rule))


def rules_command(output: FormatOption = OutputFormat.TEXT) -> None:
    """List the rules of the knowledge base, in the order of their codes."""
    from ..knowledge import rules

    rows = [
        {"code": r.code, "title": r.title, "severity": str(r.severity), "stage": str(r.stage), "fix": r.fix}
        for r in rules().values()
    ]
    if output is OutputFormat.JSON:
        write_json(rows)
    else:
        write_table(["code", "title", "severity", "stage", "fix"], [tuple(row.values()) for row in rows])


def _as_text(rule: Rule) -> str:
    """The section as plain text: code blocks indented, links and emphasis without their marks."""
    lines = [
        f"{rule.code} {rule.title}",
        "",
        f"severity: {rule.severity}   stage: {rule.stage}   applies to: {rule.applies}   fix: {rule.fix}",
        "",
    ]
    fenced = False
    for line in rule.body.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        else:
            lines.append(f"    {line}".rstrip() if fenced else _LINK.sub(r"\1", line.replace("**", "")))
    return "\n".join([*lines, "", f"From docs/knowledge/{rule.file}"])
