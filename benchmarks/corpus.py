"""What `paradag check` finds in a corpus of drawings and strategy files from elsewhere.

Reads `dags/*.dot` and `strategies/*.json` below the folder that `PARADAG_CORPUS` names (default: `../shared/corpus`
beside the checkout) and prints a Markdown table for each: finding, files that have it, their share.

    python benchmarks/corpus.py [--json FILE] [--write docs/reliability.md]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from paradag.compiler.diagnostics import CODES
from paradag.passes.validation.foreign import check_foreign

CORPUS = Path(os.environ.get("PARADAG_CORPUS", Path(__file__).resolve().parent.parent / ".." / "shared" / "corpus"))
KINDS = {"dags": ("Drawings", "*.dot"), "strategies": ("Strategy files", "*.json")}
HEADING = "## What the corpus shows"


def main() -> int:
    """Check every file and print the tables; exit 0 without a corpus, saying so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace the section `{HEADING[3:]}` of this file")
    arguments = parser.parse_args()
    counted = {kind: count(sorted((CORPUS / kind).glob(pattern))) for kind, (_, pattern) in KINDS.items()}
    if not any(c["files"] for c in counted.values()):
        print(f"no corpus at {CORPUS}: set PARADAG_CORPUS", file=sys.stderr)
        return 0
    text = section(counted)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        arguments.write.write_text(replaced(arguments.write, text), encoding="utf-8")
    return 0


def count(files: list[Path]) -> dict[str, object]:
    """Files, files with errors, slowest file in seconds, and files per code."""
    codes: Counter[str] = Counter()
    wrong, slowest = 0, 0.0
    for path in files:
        began = time.perf_counter()
        found = check_foreign(path)
        slowest = max(slowest, time.perf_counter() - began)
        codes.update({d.code for d in found})
        wrong += any(d.is_error for d in found)
    return {
        "files": len(files),
        "with_errors": wrong,
        "slowest_s": round(slowest, 3),
        "codes": dict(sorted(codes.items())),
    }


def section(counted: dict[str, dict[str, object]]) -> str:
    """The tables as Markdown."""
    lines = [
        HEADING,
        "",
        "Drawings and strategy files from a public corpus of what LLM agents wrote, checked with `paradag check`. A",
        "file counts once per finding, however often it occurs in it. What a label or a key means is read from its",
        "words; where they are not understood, the checks are silent. Written by",
        "`python benchmarks/corpus.py --write docs/reliability.md`.",
    ]
    for kind, counts in counted.items():
        files = int(str(counts["files"]))
        lines += ["", f"### {KINDS[kind][0]}", "", f"{files} files, {counts['with_errors']} of them with errors.", ""]
        lines += ["| code | finding | severity | files | share |", "|---|---|---|---:|---:|"]
        codes = counts["codes"]
        assert isinstance(codes, dict)
        for code, number in codes.items():
            info = CODES[code]
            lines.append(f"| {code} | {info.title} | {info.severity} | {number} | {number / max(files, 1):.0%} |")
    return "\n".join(lines) + "\n"


def replaced(path: Path, text: str) -> str:
    """The file with its section replaced, or with the section at its end."""
    old = path.read_text(encoding="utf-8") if path.exists() else "# How reliable paradag is\n"
    before, found, rest = old.partition(HEADING)
    _, later, after = rest.partition("\n## ") if found else ("", "", "")
    return before.rstrip() + "\n\n" + text + (f"\n## {after}" if later else "")


if __name__ == "__main__":
    raise SystemExit(main())
