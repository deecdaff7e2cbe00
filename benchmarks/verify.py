"""Seconds that ``paradag verify`` takes for every shipped example, and the ranks that it keeps.

    python -m paradag.benchmarks.verify [FILE...] [--strict] [--write docs/verify.md]

Prints a Markdown table; the limit is 10 s, and 60 s where more than 32 ranks of a phase are kept. ``--write`` puts it
between the marks of the file's section. Exit code 1: an example is not equal to its model, or with ``--strict`` takes
too long.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from paradag import __version__, verify
from paradag.benchmarks.mutations import write_between
from paradag.compiler.run.report import Verification

EXAMPLES = Path(__file__).resolve().parents[1] / "ir_examples"

BEGIN, END = "<!-- verify: begin -->", "<!-- verify: end -->"

FEW_RANKS = 32
LIMITS_S = (10.0, 60.0)
"""Seconds up to ``FEW_RANKS`` ranks, and above."""

_DEGREES = frozenset({"pp", "sp", "ep", "tp", "etp", "ranks"})


@dataclass(frozen=True)
class Row:
    """One example."""

    name: str
    found: Verification

    @property
    def ranks(self) -> int:
        """Ranks of its larger phase."""
        return max(p.ranks for p in self.found.phases.values())

    @property
    def limit_s(self) -> float:
        """What it may take."""
        return LIMITS_S[self.ranks > FEW_RANKS]

    @property
    def is_good(self) -> bool:
        """Whether it is equal to its model and quick enough."""
        return self.found.equal and self.found.seconds <= self.limit_s

    def __str__(self) -> str:
        """A row of the table."""
        phases = self.found.phases
        ranks = ", ".join(f"{name} {p.ranks}" for name, p in phases.items())
        smaller = [c for c in self.found.shrunk if c.name.split(".")[-1] in _DEGREES]
        kept = "; ".join(f"{c.name} {c.before} -> {c.after}" for c in smaller) or "as they are"
        error = max(p.max_error for p in phases.values())
        ops = sum(p.ops for p in phases.values())
        verdict = "" if self.is_good else " (over the limit)" if self.found.equal else " (not equal)"
        seconds = f"{self.found.seconds:.1f}{verdict}"
        return f"| {self.name} | {ranks} | {kept} | {ops:,} | {error:.0e} | {seconds} | {self.limit_s:.0f} |"


def table(rows: list[Row]) -> str:
    """The Markdown table."""
    total = sum(r.found.seconds for r in rows)
    return "\n".join(
        (
            f"{len(rows)} examples, {sum(r.found.equal for r in rows)} equal to their models, {total:.0f} s in all "
            f"(paradag {__version__}, Python {platform.python_version()}, numpy).",
            "",
            "| example | ranks executed | degrees | node executions | largest error | seconds | limit |",
            "|---|---|---|---:|---:|---:|---:|",
            *map(str, rows),
        )
    )


def main() -> int:
    """Verify, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("--strict", action="store_true", help="exit 1 where an example is over its limit")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rows = []
    for path in arguments.files or sorted(EXAMPLES.glob("*.strat")):
        rows.append(Row(path.stem, verify(path)))
        print(rows[-1], flush=True, file=sys.stderr)
    print(table(rows))
    if arguments.write:
        write_between(arguments.write, BEGIN, END, table(rows))
    return 0 if all(r.is_good if arguments.strict else r.found.equal for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
