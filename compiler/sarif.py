"""Diagnostics as SARIF 2.1.0, the format that code scanning services read (OASIS standard, 27 March 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .diagnostics import CODES, Diagnostic, Span

__all__ = ["sarif_log"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif_log(
    diagnostics: Iterable[Diagnostic], files: Sequence[str], *, version: str, exit_code: int
) -> dict[str, Any]:
    """One run of ``paradag check`` as a SARIF log.

    Args:
        diagnostics: What was found; levels are named as severities are.
        files: All files that were checked, also those without findings.
        version: Version of paradag.
        exit_code: With which the run ends; 2 where a file could not be read.
    """
    found = list(diagnostics)
    codes = sorted({d.code for d in found})
    indices = {code: index for index, code in enumerate(codes)}
    run = {
        "tool": {
            "driver": {
                "name": "paradag",
                "version": version,
                "rules": [_rule(code) for code in codes],
            }
        },
        "invocations": [{"executionSuccessful": exit_code < 2, "exitCode": exit_code}],
        "artifacts": [{"location": {"uri": _uri(file)}} for file in dict.fromkeys(files)],
        "columnKind": "unicodeCodePoints",
        "results": [_result(d, indices[d.code]) for d in found],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str) -> dict[str, Any]:
    info = CODES[code]
    title = info.title[0].upper() + info.title[1:]
    return {
        "id": code,
        "shortDescription": {"text": title},
        "help": {"text": f"{title}. `paradag explain {code}` tells why, and the repair."},
        "defaultConfiguration": {"level": info.severity},
    }


def _result(diagnostic: Diagnostic, index: int) -> dict[str, Any]:
    parts = [diagnostic.message]
    parts += [f"Expected: {diagnostic.expected}"] if diagnostic.expected else []
    parts += [f"Help: {diagnostic.help}"] if diagnostic.help else []
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": index,
        "level": str(diagnostic.severity),
        "message": {"text": "\n".join(parts)},
    }
    if diagnostic.span is not None:
        result["locations"] = [{"physicalLocation": _location(diagnostic.span)}]
    return result


def _location(span: Span) -> dict[str, Any]:
    return {
        "artifactLocation": {"uri": _uri(span.file)},
        "region": {
            "startLine": max(1, span.line),
            "startColumn": max(1, span.column),
            "endLine": max(1, span.line, span.end_line),
            "endColumn": max(1, span.end_column),
        },
    }


def _uri(file: str) -> str:
    """A relative path stays relative, so that a service finds the file in its checkout."""
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
