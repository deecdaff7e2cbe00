"""The mutation proof at length: damages random legal strategies, graphs and documents, and counts.

    python -m paradag.benchmarks.mutations --examples 50 [--only TEXT] [--write docs/reliability.md]

Prints a Markdown table of every kind of damage: how often it was tried, found by its rule, repaired to the same meaning
(or, where no repair is safe, left as it was). ``--write`` puts it between the marks of the file's section.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from paradag.tests.mutation import test_documents, test_graphs, test_specs

GRAPH = "lowered graph"
"""The level on which damage is repaired too."""

BEGIN, END = "<!-- mutations: begin -->", "<!-- mutations: end -->"


@dataclass
class Tally:
    """Counts of one kind of damage."""

    level: str
    kind: Any
    tried: int = 0
    found: int = 0
    repaired: int = 0
    rejected: int = 0

    def row(self) -> str:
        """A row of the table."""
        codes = " ".join(sorted(self.kind.codes))
        end = f"{self.repaired} repaired" if self.kind.repaired else f"{self.rejected} rejected"
        end = end if self.level == GRAPH else "checked only"
        return f"| {self.kind.name} | {self.level} | {codes} | {self.tried} | {self.found} | {end} |"

    @property
    def is_clean(self) -> bool:
        """Whether every one was found, and repaired or rejected as it must be."""
        ended = self.tried if self.level != GRAPH else self.repaired if self.kind.repaired else self.rejected
        return self.found == self.tried == ended


def _on_spec(case: Any, tally: Tally) -> None:
    tally.found += bool(case.kind.codes & test_specs.found_in(case))


def _on_graph(case: Any, tally: Tally) -> None:
    found, mended, fixes = test_graphs.outcome(case)
    tally.found += bool(case.kind.codes & found)
    if case.kind.repaired:
        tally.repaired += bool(fixes) and test_graphs.is_as_before(case, mended)
    else:
        tally.rejected += mended is case.harmed and not fixes


def _on_document(case: Any, tally: Tally) -> None:
    tally.found += bool(case.kind.codes & test_documents.found_in(case))


LEVELS: tuple[tuple[str, Any, Callable[[Any, Tally], None]], ...] = (
    ("strategy", test_specs, _on_spec),
    (GRAPH, test_graphs, _on_graph),
    ("document", test_documents, _on_document),
)


def tallies(examples: int, only: str) -> Iterator[Tally]:
    """One tally per kind of damage, each on ``examples`` random places."""
    for level, module, count in LEVELS:
        for kind in module.KINDS.values():
            if only in kind.name:
                yield _tally(Tally(level, kind), module, count, examples)


def _tally(tally: Tally, module: Any, count: Callable[[Any, Tally], None], examples: int) -> Tally:
    def one(case: Any) -> None:
        tally.tried += 1
        count(case, tally)

    visit(module.damaged(tally.kind), examples, one)
    return tally


def visit(cases: SearchStrategy[Any], examples: int, one: Callable[[Any], None]) -> None:
    """Do something with so many random cases, the same ones in every run."""
    limits = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )

    @limits
    @given(cases)
    def run(case: Any) -> None:
        one(case)

    run()


def table(done: list[Tally], seconds: float) -> str:
    """The Markdown table with its totals."""
    graphs = [t for t in done if t.level == GRAPH]
    mendable = [t for t in graphs if t.kind.repaired]
    lines = [
        f"{len(done)} kinds of damage, {sum(t.tried for t in done):,} tried, {sum(t.found for t in done):,} found by "
        f"their rule; of {sum(t.tried for t in mendable):,} repairable ones {sum(t.repaired for t in mendable):,} "
        f"repaired to the same meaning and the same collectives ({seconds:.0f} s).",
        "",
        "| damage | level | rules | tried | found | outcome |",
        "|---|---|---|---:|---:|---|",
        *(t.row() for t in done),
    ]
    return "\n".join(lines)


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a file.

    Raises:
        ValueError: the file has not both.
    """
    head, first, rest = path.read_text(encoding="utf-8").partition(begin)
    _, second, tail = rest.partition(end)
    if not first or not second:
        raise ValueError(f"{path} has no {begin} ... {end}")
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    done = []
    for tally in tallies(args.examples, args.only):
        done.append(tally)
        print(tally.row(), "" if tally.is_clean else "<- not clean", flush=True, file=sys.stderr)
    text = table(done, time.perf_counter() - began)
    print(text)
    if args.write:
        write_between(args.write, BEGIN, END, text)
    return 0 if all(t.is_clean for t in done) else 1


if __name__ == "__main__":
    sys.exit(main())
