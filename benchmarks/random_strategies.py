"""Proof by execution at large: random legal strategies, lowered, run on virtual ranks and compared with their models.

Each example draws a model (kinds of attention, dense or MoE, shared experts, windows, biases, sinks), degrees,
micro-batches, chunks and placements for both phases, runs prefill and decode steps in float64, and compares logits
(1e-10), tokens and bytes.

    python -m paradag.benchmarks.random_strategies [--examples N] [--seed N] [--write docs/reliability.md]

Prints what was drawn: how often each combination of dimensions per phase, and each part of a model. ``--write`` puts it
between the marks of the file's section.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from paradag.benchmarks.mutations import write_between
from paradag.compiler.run.shrink import shrink
from paradag.compiler.spec import ModelSpec, Spec, StrategySpec
from paradag.compiler.verification import execute
from paradag.passes.validation import stage_layers
from paradag.tests.strategies import small_specs

BEGIN, END = "<!-- random strategies: begin -->", "<!-- random strategies: end -->"

DIMENSIONS = ("tp", "sp", "pp", "ep")

Drawn = Counter[tuple[str, str, str]]
"""How often, by table, row and column."""


def combination(strategy: StrategySpec) -> str:
    """The dimensions that cut something; SP with its kind."""
    terms = {t.name: t for t in strategy.chain if t.degree != 1}
    names = {n: f"SP {t.kind or 'allgather'}" if n == "sp" else n.upper() for n, t in terms.items()}
    return " + ".join(names[n] for n in DIMENSIONS if n in names) or "none"


def work_of(strategy: StrategySpec) -> Iterator[str]:
    """What else a strategy asks for."""
    ep = strategy.term("ep")
    wanted = {
        "DP": strategy.degree("dp") > 1,
        "expert TP": ep is not None and ep.etp is not None,
        "redundant experts": ep is not None and ep.redundant > 0,
        "more ranks than the law gives": strategy.ranks is not None,
        "micro-batches": strategy.microbatches > 1,
        "chunks": strategy.chunk is not None,
        "a placement of its own": bool(strategy.placement),
        "a pool of its own": strategy.pools == "separate",
    }
    return (name for name, is_so in wanted.items() if is_so)


def parts_of(model: ModelSpec) -> Iterator[str]:
    """Parts of a model that change how it is lowered."""
    a, moe, rotary = model.attention, model.moe, model.rotary
    yield a.kind.upper()
    yield f"{model.layers.count} layers"
    yield "MoE" if moe else "dense"
    wanted = {
        "dense layers before MoE": moe is not None and model.layers.dense > 0,
        "shared experts": moe is not None and moe.shared > 0,
        "expert biases": moe is not None and moe.bias,
        "window on all layers": a.window is not None,
        "window on some layers": bool(model.layers.pattern),
        "biases": a.bias != "none",
        "sinks": a.sinks,
        "query and key norms": a.qk_norm != "none",
        "tied embedding": model.tied,
        "rotary features interleaved": rotary.style == "interleaved",
        "rotary on some features": rotary.dim is not None,
        "rotary scaling": rotary.scaling is not None,
    }
    yield from (name for name, is_so in wanted.items() if is_so)


def tell(spec: Spec, drawn: Drawn) -> None:
    """Count what a spec has."""
    for s in spec.strategies:
        drawn["dimensions", combination(s), s.phase] += 1
        for name in work_of(s):
            drawn["strategy", name, s.phase] += 1
    for name in parts_of(spec.model):
        drawn["model", name, "models"] += 1


def table(drawn: Drawn, name: str, columns: tuple[str, ...]) -> str:
    """A Markdown table of one kind of counts, most frequent first."""
    rows = {row: sum(drawn[name, row, c] for c in columns) for table, row, _ in drawn if table == name}
    lines = [f"| {name} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row in sorted(rows, key=lambda r: (-rows[r], r)):
        lines.append(f"| {row} | {' | '.join(f'{drawn[name, row, c]:,}' for c in columns)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the examples and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    drawn: Drawn = Counter()
    failed: list[Spec] = []
    worst = 0.0

    @hypothesis.seed(arguments.seed)
    @settings(
        max_examples=arguments.examples,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(small_specs())
    def run(spec: Spec) -> None:
        nonlocal worst
        # the models are small already; shrinking drops data parallelism, whose replicas compute alike
        small, _ = shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies})
        result = execute(small, steps=4)
        tell(spec, drawn)
        counts["run"] += 1
        counts["equal"] += result.equal
        counts["ranks"] += sum(p.ranks for p in result.phases.values())
        worst = max(worst, *(p.max_error for p in result.phases.values()))
        if not result.equal:
            failed.append(spec)
            print(f"not equal: {spec!r}", file=sys.stderr, flush=True)

    began = time.perf_counter()
    with suppress(KeyboardInterrupt):  # whoever stops it is told what was run
        run()
    text = "\n\n".join(
        (
            f"{counts['run']:,} strategies for both phases run (seed {arguments.seed}), {counts['equal']:,} equal to "
            f"their models; largest error {worst:.1e}; {counts['ranks']:,} virtual ranks; "
            f"{time.perf_counter() - began:.0f} s.",
            *(table(drawn, name, ("prefill", "decode")) for name in ("dimensions", "strategy")),
            table(drawn, "model", ("models",)),
        )
    )
    print(text)
    if arguments.write:
        write_between(arguments.write, BEGIN, END, text)
    return 1 if failed or not counts["run"] else 0


if __name__ == "__main__":
    sys.exit(main())
