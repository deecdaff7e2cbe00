"""Damaged graphs that are executed although the verifier refuses them: does the execution tell that they are wrong?

    python -m paradag.benchmarks.lies --examples 20 [--only TEXT] [--write docs/reliability.md]

Every kind of damage to a lowered graph is done at random places of random legal strategies, the graph is run on virtual
ranks without any check before, and its logits, tokens and bytes are compared with the undistributed model, with what is
charged and with the run of the legal graph. What repair makes of it is run too. Then strategies are damaged, fixed, and
run. Prints two Markdown tables; ``--write`` puts them between the marks of the file's section.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paradag.benchmarks.mutations import visit, write_between
from paradag.compiler.diagnostics import Outcome as Fate
from paradag.compiler.ir.graph import Graph
from paradag.compiler.spec import LoadedSpec, Spec
from paradag.compiler.verification import verify
from paradag.passes.validation.fixes import fix_spec, over_memory
from paradag.tests.mutation import execution, test_graphs, test_specs
from paradag.tests.mutation.damage import Damage
from paradag.tests.mutation.execution import OUTCOMES, Outcome

BEGIN, END = "<!-- lies: begin -->", "<!-- lies: end -->"

BY = {
    "always": "both",
    "as work": "both; execution by other work alone where ",
    "sometimes": "both; the validator alone where ",
    "never": "the validator: ",
}
"""Who catches a kind of damage, by what is said of it; the reason follows."""


@dataclass
class GraphTally:
    """What came of one kind of damage to lowered graphs."""

    kind: Damage[Graph]
    found: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    repaired: int = 0

    def row(self) -> str:
        """A row of the table."""
        counts = Counter(self.outcomes)
        seen = " | ".join(str(counts[o]) for o in OUTCOMES)
        equal = str(self.repaired) if self.kind.repaired else "rejected"
        by = BY[self.kind.seen] + self.kind.unseen
        return f"| {self.kind.name} | {len(self.outcomes)} | {self.found} | {seen} | {equal} | {by} |"

    @property
    def is_clean(self) -> bool:
        """Whether validator, execution and repair did what is stated of the kind."""
        tried = len(self.outcomes)
        mended = self.repaired == (tried if self.kind.repaired else 0)
        return self.found == tried and mended and execution.as_stated(self.kind.seen, self.outcomes)


@dataclass
class SpecTally:
    """What came of one kind of damage to strategies."""

    kind: Damage[Spec]
    fates: Counter[Fate] = field(default_factory=Counter)
    equal: int = 0

    def row(self) -> str:
        """A row of the table."""
        counts = " | ".join(str(self.fates[f]) for f in (Fate.VALID, Fate.REJECTED, Fate.FIXED))
        return f"| {self.kind.name} | {self.fates.total()} | {counts} | {self.equal} |"

    @property
    def is_clean(self) -> bool:
        """Whether every fixed strategy computes what its model computes."""
        return self.equal == self.fates[Fate.FIXED]


def graph_tallies(examples: int, only: str) -> Iterator[GraphTally]:
    """One tally per kind of damage to graphs."""
    for kind in test_graphs.KINDS.values():
        if only in kind.name:
            yield _graphs(GraphTally(kind), examples)


def _graphs(tally: GraphTally, examples: int) -> GraphTally:
    def one(case: test_graphs.Case) -> None:
        found, mended, fixes = test_graphs.outcome(case)
        legal = execution.run(case, case.levels[-1])
        assert legal.equal, case
        tally.found += bool(tally.kind.codes & found)
        tally.outcomes.append(execution.outcome(case, legal))
        tally.repaired += bool(fixes) and execution.is_like(execution.run(case, mended), legal)

    visit(test_graphs.damaged(tally.kind, runnable=True), examples, one)
    return tally


def spec_tallies(examples: int, only: str) -> Iterator[SpecTally]:
    """One tally per kind of damage to strategies."""
    for kind in test_specs.KINDS.values():
        if only in kind.name:
            yield _specs(SpecTally(kind), examples)


def _specs(tally: SpecTally, examples: int) -> SpecTally:
    def one(case: test_specs.Case) -> None:
        fixed = fix_spec(LoadedSpec(case.harmed), memory=over_memory())
        tally.fates[fixed.outcome] += 1
        tally.equal += fixed.outcome is Fate.FIXED and verify(fixed.loaded.spec, steps=2).equal

    visit(test_specs.damaged(tally.kind), examples, one)
    return tally


def tables(graphs: list[GraphTally], specs: list[SpecTally], seconds: float) -> str:
    """Both tables with their totals."""
    tried = sum(len(t.outcomes) for t in graphs)
    counts = Counter(o for t in graphs for o in t.outcomes)
    mendable = sum(len(t.outcomes) for t in graphs if t.kind.repaired)
    fates: Counter[Fate] = sum((t.fates for t in specs), Counter())
    lines = [
        f"{len(graphs)} kinds of damage to lowered graphs, {tried:,} tried: {sum(t.found for t in graphs):,} found by "
        f"the validator; executed without it, {counts['numbers']:,} gave other numbers, {counts['fault']:,} stopped, "
        f"{counts['bytes']:,} moved bytes that are not charged, {counts['work']:,} gave the right numbers with other "
        f"work, {counts['nothing']:,} showed no difference. Of {mendable:,} repairable ones "
        f"{sum(t.repaired for t in graphs):,} were repaired and ran like the legal graph ({seconds:.0f} s).",
        "",
        f"| damage | tried | validator | {' | '.join(OUTCOMES)} | repaired and run equal | caught by |",
        f"|---|---:|---:|{'---:|' * len(OUTCOMES)}---:|---|",
        *(t.row() for t in graphs),
        "",
        f"{len(specs)} kinds of damage to strategies, {fates.total():,} tried: {fates[Fate.FIXED]:,} fixed, of which "
        f"{sum(t.equal for t in specs):,} computed what their model computes.",
        "",
        "| damage | tried | legal as it is | rejected | fixed | fixed and run equal |",
        "|---|---:|---:|---:|---:|---:|",
        *(t.row() for t in specs),
    ]
    return "\n".join(lines)


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # wrong graphs compute with what is no number
    began = time.perf_counter()
    graphs: list[GraphTally] = []
    specs: list[SpecTally] = []
    for tally in graph_tallies(args.examples, args.only):
        graphs.append(tally)
        print(tally.row(), "" if tally.is_clean else "<- not clean", flush=True, file=sys.stderr)
    for fixed in spec_tallies(args.examples, args.only):
        specs.append(fixed)
        print(fixed.row(), "" if fixed.is_clean else "<- not clean", flush=True, file=sys.stderr)
    text = tables(graphs, specs, time.perf_counter() - began)
    print(text)
    if args.write:
        write_between(args.write, BEGIN, END, text)
    return 0 if all(t.is_clean for t in (*graphs, *specs)) else 1


if __name__ == "__main__":
    sys.exit(main())
