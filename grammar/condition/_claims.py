"""What the lines of a condition file state: fields of the spec by dotted path, the first statement of each believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ...compiler.diagnostics import Diagnostic, Severity, Span
from ...compiler.spec import Assumption, LineUse

__all__ = ["Claim", "Claims"]

_MAX_TEXT = 200
"""Characters of a line that the account shows."""


@dataclass(frozen=True)
class Claim:
    """A value for one field.

    Attributes:
        path: Dotted path in the spec (``model.layers.count``), or ``degrees.*`` and ``gpus.*`` of a strategy section.
        value: The value, in the spec's units.
        line: Line number.
    """

    path: str
    value: Any
    line: int


@dataclass
class Claims:
    """Statements, findings and assumptions of one file, and what each line was good for."""

    file: str
    text: str
    by_path: dict[str, Claim] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    uses: dict[int, LineUse] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = self.text.splitlines()

    def span(self, line: int) -> Span:
        """The whole of a line."""
        text = self.source[line - 1] if 0 < line <= len(self.source) else ""
        indent = len(text) - len(text.lstrip())
        return Span(self.file, line, indent + 1, line, max(len(text.rstrip()), indent + 1) + 1)

    def get(self, path: str) -> Any:
        """The value stated for a field, or None."""
        claim = self.by_path.get(path)
        return None if claim is None else claim.value

    def under(self, prefix: str) -> Iterator[tuple[str, Claim]]:
        """(rest of the path, claim) of all fields below ``prefix``."""
        for path, claim in self.by_path.items():
            if path.startswith(f"{prefix}."):
                yield path[len(prefix) + 1 :], claim

    def state(self, line: int, values: dict[str, Any]) -> None:
        """A line states these fields; where an earlier line said otherwise, that one stays."""
        kept: list[str] = []
        broken: list[str] = []
        for path, value in values.items():
            before = self.by_path.setdefault(path, Claim(path, value, line))
            if before.value == value:
                kept.append(f"{path} = {_shown(value)}")
                continue
            broken.append(f"line {before.line}: {path} = {_shown(before.value)}")
            message = f"`{path}` is {_shown(value)} here and {_shown(before.value)} on line {before.line}"
            help_text = f"line {before.line} was believed: make both lines say the same"
            self.report("PD019", message, line, "one statement of each value", help_text)
        if broken:
            self.use(line, "contradiction", "; ".join(broken))
        else:
            self.use(line, "field", ", ".join(kept))

    def assume(self, path: str, value: Any, why: str, sensitivity: str = "", shown: str | None = None) -> None:
        """Take a value that no line states; ``shown`` is how it is told, with its unit."""
        self.by_path[path] = Claim(path, value, 0)
        self.assumptions.append(Assumption(path, shown or _shown(value), why, sensitivity))

    def use(self, line: int, use: Literal["field", "unused", "contradiction", "layout"], detail: str = "") -> None:
        """What a line was good for."""
        text = self.source[line - 1].strip() if 0 < line <= len(self.source) else ""
        self.uses[line] = LineUse(line, text[:_MAX_TEXT], use, detail)

    def report(
        self,
        code: str,
        message: str,
        line: int,
        expected: str | None = None,
        help_text: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, self.span(max(line, 1)), expected, help_text, severity))

    def account(self) -> tuple[LineUse, ...]:
        """One entry per line of the file."""
        for line, text in enumerate(self.source, 1):
            if line not in self.uses:
                self.use(line, "layout" if not text.strip() else "unused", "" if not text.strip() else "no statement")
        return tuple(self.uses[line] for line in sorted(self.uses))


def _shown(value: Any) -> str:
    if value is None:
        return "any"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
