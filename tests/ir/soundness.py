"""Rule soundness: whatever a placement rule accepts is run on shards and compared with the unsharded kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations, product
from math import prod
from typing import Any

import numpy as np

from paradag.compiler.ir.graph import Node, Value
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.ir.ops import Operator, Shard, operator
from paradag.compiler.ir.reshard import plan
from paradag.compiler.ir.types import Placement, TensorType
from paradag.compiler.run import ShardFault, cut, join, run_node

MESH = Mesh(axes=(Axis("a", 2, 6), Axis("b", 3, 2), Axis("c", 2, 1)), views={})
"""Three atomic axes, twelve ranks."""

TOLERANCE = 1e-10
CANDIDATES = 400
"""Placements tried for a sample that has more than so many."""
FEW = 100
"""The same for samples of an operator beyond the first that most of its placements were tried on."""

Array = np.ndarray[Any, Any]
Fold = Callable[[Array, TensorType], Array]


@dataclass(frozen=True)
class Sample:
    """A small node with data.

    Attributes:
        label: What is special about it.
        node: The node, its parameters and outputs replicated.
        inputs: Types of the operands, replicated.
        values: Global arrays of operands (by position) and parameters (by name).
        extents: Sizes of the extents.
        uncut: Dimensions that candidates leave whole.
        fold: Brings a result and its type to a form that does not depend on the placement.
        reference: Results of the unsharded node, in folded form; default: the kernel on the whole arrays.
    """

    label: str
    node: Node
    inputs: tuple[TensorType, ...]
    values: Mapping[int | str, Array]
    extents: Mapping[str, int]
    uncut: frozenset[str] = frozenset()
    fold: Fold | None = None
    reference: Callable[[], list[Array]] | None = None

    def expected(self, rule: Operator) -> list[Array]:
        if self.reference is not None:
            return self.reference()
        inputs = [self.values[i] for i in range(len(self.inputs))]
        results = rule.kernel(Shard(self.node), inputs, {p.name: self.values[p.name] for p in self.node.params})
        if self.fold is None:
            return results
        return [self.fold(r, v.type) for r, v in zip(results, self.node.outputs, strict=True)]


@dataclass
class Report:
    """What the check of one sample found.

    Attributes:
        accepted: Distinct placements of operands and parameters that the rule accepts; each was run.
        tried: Placements offered.
        faults: What is wrong with the rule.
    """

    accepted: set[tuple[Placement, ...]] = field(default_factory=set)
    tried: int = 0
    faults: list[str] = field(default_factory=list)


def check(sample: Sample, rule: Operator | None = None, most: int = CANDIDATES) -> Report:
    """Offer many placements to a rule; bring each to what the rule wants; run and compare every distinct outcome."""
    report = Report()
    report.faults.extend(faults(sample, rule or operator(sample.node), report, most))
    return report


def faults(sample: Sample, rule: Operator, report: Report, most: int = CANDIDATES) -> Iterator[str]:
    """What is wrong with a rule, as it is found; the report tells what was tried until then."""
    expected = sample.expected(rule)
    rng = np.random.default_rng(0)
    for candidate in candidates(sample, rng, most):
        report.tried += 1
        try:
            settled = settle(sample, rule, candidate)
            if settled.key not in report.accepted:
                report.accepted.add(settled.key)
                compare(sample, rule, settled, expected, rng)
        except (AssertionError, ShardFault, ValueError, IndexError) as fault:
            yield f"{sample.label}, {_show(sample, candidate)}: {type(fault).__name__} {fault}"


@dataclass(frozen=True)
class Settled:
    """A node whose rule is content with the placements of its operands and parameters."""

    node: Node
    inputs: tuple[TensorType, ...]

    @property
    def key(self) -> tuple[Placement, ...]:
        return (*(t.placement for t in self.inputs), *(p.type.placement for p in self.node.params))


def offered(sample: Sample, placements: Sequence[Placement]) -> Settled:
    """The sample with its operands, then its weights, placed so."""
    count = len(sample.inputs)
    inputs = tuple(t.placed(p) for t, p in zip(sample.inputs, placements[:count], strict=True))
    weights = iter(placements[count:])
    params = tuple(p if p.const else replace(p, type=p.type.placed(next(weights))) for p in sample.node.params)
    return Settled(replace(sample.node, params=params), inputs)


def settle(sample: Sample, rule: Operator, placements: Sequence[Placement]) -> Settled:
    """What the rule makes of the placements offered: reachable by collectives, and stable once reached."""
    given = offered(sample, placements)
    first = rule.infer(given.node, given.inputs, MESH)
    for t, want in zip(given.inputs, first.wants, strict=True):
        plan(t.placement, want, t.names, MESH)
    inputs = tuple(t.placed(w) for t, w in zip(given.inputs, first.wants, strict=True))
    params = tuple(replace(p, type=t) for p, t in zip(given.node.params, first.params, strict=True))
    second = rule.infer(replace(given.node, params=params), inputs, MESH)
    assert second.wants == first.wants, f"not stable: wants {first.wants}, then {second.wants}"
    assert second.params == first.params, "not stable in its parameters"
    outputs = tuple(Value(v.name, t) for v, t in zip(given.node.outputs, second.results, strict=True))
    return Settled(replace(given.node, params=params, outputs=outputs), inputs)


def compare(
    sample: Sample, rule: Operator, settled: Settled, expected: Sequence[Array], rng: np.random.Generator
) -> None:
    """Run the node on shards and compare with the whole.

    Raises:
        AssertionError: another result.
        ShardFault: shards that contradict the result type.
    """
    node, extents = settled.node, sample.extents
    inputs = [cut(sample.values[i], t, MESH, extents, rng) for i, t in enumerate(settled.inputs)]
    params = {p.name: cut(sample.values[p.name], p.type, MESH, extents, rng) for p in node.params}
    results = run_node(node, inputs, settled.inputs, params, MESH, extents, rule)
    for shards, value, want in zip(results, node.outputs, expected, strict=True):
        got = join(shards, value.type, MESH, extents, TOLERANCE)
        if sample.fold is not None:
            got = sample.fold(got, value.type)
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=str(settled.key))


# --- candidates -----------------------------------------------------------------------------------------------------


def candidates(sample: Sample, rng: np.random.Generator, most: int) -> Iterator[tuple[Placement, ...]]:
    """All placements of operands and weights, or a random choice of them where there are too many."""
    operands = [placements(t, sample.uncut, partial=True) for t in sample.inputs]
    weights = [placements(p.type, sample.uncut, partial=False) for p in sample.node.params if not p.const]
    choices = [*operands, *weights]
    if prod(len(c) for c in choices) <= most:
        yield from product(*choices)
        return
    for _ in range(most // 3):
        yield tuple(c[rng.integers(len(c))] for c in choices)
        aligned = _aligned(sample, rng)
        yield aligned
        other = int(rng.integers(len(choices)))
        yield (*aligned[:other], choices[other][rng.integers(len(choices[other]))], *aligned[other + 1 :])


def placements(t: TensorType, uncut: frozenset[str] = frozenset(), *, partial: bool) -> Sequence[Placement]:
    """Every way to lay a tensor over the axes: each axis cuts a dimension, leaves it, or carries partial sums."""
    return _placements(len(t.dims), tuple(i for i, name in enumerate(t.names) if name not in uncut), partial)


@cache
def _placements(dims: int, free: tuple[int, ...], partial: bool) -> Sequence[Placement]:
    homes = [None, *free, *(["sum"] if partial else [])]
    found: dict[Placement, None] = {}
    for order in permutations(a.name for a in MESH.axes):
        for chosen in product(homes, repeat=len(order)):
            where = dict(zip(order, chosen, strict=True))
            shards = tuple(tuple(a for a in order if where[a] == i) for i in range(dims))
            sums = tuple((a, "sum") for a in sorted(order) if where[a] == "sum")
            found[Placement(shards, sums)] = None
    return tuple(found)


def _aligned(sample: Sample, rng: np.random.Generator) -> tuple[Placement, ...]:
    """Placements in which an axis cuts the same dimension names everywhere, and some operands are partial."""
    weights = [p.type for p in sample.node.params if not p.const]
    names = sorted({n for t in (*sample.inputs, *weights) for n in t.names} - sample.uncut)
    order = rng.permutation([a.name for a in MESH.axes])
    cuts = {str(a): set(rng.choice(names, size=min(len(names), rng.integers(3)), replace=False)) for a in order}
    result = []
    for i, t in enumerate((*sample.inputs, *weights)):
        shards: list[list[str]] = [[] for _ in t.dims]
        sums = []
        for axis, dims in cuts.items():
            home = next((d for d, name in enumerate(t.names) if name in dims), None)
            if home is not None:
                shards[home].append(axis)
            elif i < len(sample.inputs) and rng.random() < 0.3:
                sums.append((axis, "sum"))
        result.append(Placement(tuple(map(tuple, shards)), tuple(sorted(sums))))
    return tuple(result)


def _show(sample: Sample, candidate: Sequence[Placement]) -> str:
    given = offered(sample, candidate)
    named = [(f"%{i}", t) for i, t in enumerate(given.inputs)]
    named += [(p.name, p.type) for p in given.node.params if not p.const]
    shown = [(name, dict(zip(t.names, t.placement.shards, strict=True)), t.placement.partial) for name, t in named]
    return " ".join(f"{name}{shards}{partial}" for name, shards, partial in shown)
