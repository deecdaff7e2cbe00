"""Resharding plans move data rightly: their collectives, interpreted, turn shards of one placement into the other."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.ir.graph import Node, Value
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.ir.ops import OPERATORS, Resharding, operator
from paradag.compiler.ir.reshard import Step, Unreachable, plan, reshard_nodes
from paradag.compiler.ir.types import Placement, TensorType, tensor
from paradag.compiler.run import ShardFault, cut, join, reshard, run_collective

NAMES = ("batch", "seq", "slot", "heads")
AXES = "abcd"


def mesh_of_sizes(sizes: list[int]) -> Mesh:
    return Mesh(tuple(Axis(n, s, prod(sizes[i + 1 :])) for i, (n, s) in enumerate(zip(AXES, sizes, strict=False))), {})


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    sizes = draw(st.lists(st.integers(2, 4), min_size=1, max_size=4).filter(lambda s: prod(s) <= 36))
    return mesh_of_sizes(sizes)


@st.composite
def placements(draw: st.DrawFn, mesh: Mesh, rank: int, partial: tuple[tuple[str, str], ...]) -> Placement:
    """Any placement whose partial axes and reductions are among those given."""
    shards: list[list[str]] = [[] for _ in range(rank)]
    sums = []
    for axis in draw(st.permutations([a.name for a in mesh.axes])):
        homes = [None, *range(rank), *(["partial"] if axis in dict(partial) else [])]
        home = draw(st.sampled_from(homes))
        if home == "partial":
            sums.append((axis, dict(partial)[axis]))
        elif home is not None:
            shards[home].append(axis)
    return Placement(tuple(map(tuple, shards)), tuple(sorted(sums)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mesh, TensorType, Placement]:
    """A mesh, a placed tensor, and the placement wanted."""
    mesh = draw(meshes())
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    sizes = [draw(st.integers(0, 9)) for _ in names]
    kind = draw(st.sampled_from(("sum", "sum", "max", "lse")))
    have = draw(placements(mesh, len(names), tuple((a.name, kind) for a in mesh.axes)))
    want = draw(placements(mesh, len(names), have.partial))
    if kind == "lse":
        # attention states: outputs and, in the last feature, the logarithm of the denominator; always whole
        names, sizes = [*names, "state"], [*sizes, 3]
        have, want = (Placement((*p.shards, ()), p.partial) for p in (have, want))
    return mesh, tensor("fp32", *zip(names, sizes, strict=True)).placed(have), want


@st.composite
def shifted_pairs(draw: st.DrawFn) -> tuple[Mesh, TensorType, Placement]:
    """The same, with chunks on their way round the rings that cut them."""
    mesh, t, want = draw(pairs())

    def on_the_way(p: Placement) -> Placement:
        return Placement(p.shards, p.partial, tuple(draw(st.integers(0, mesh.size(axes) - 1)) for axes in p.shards))

    return mesh, t.placed(on_the_way(t.placement)), on_the_way(want)


def numbered(t: TensorType) -> np.ndarray:
    """Every element different, so that none can stand in for another."""
    shape = [int(d.value({}, SMALL)) for d in t.dims]
    return np.arange(1.0, prod(shape) + 1).reshape(*shape)


@given(pairs() | shifted_pairs())
@settings(max_examples=100)
def test_a_plan_moves_the_data(pair: tuple[Mesh, TensorType, Placement]) -> None:
    mesh, t, want = pair
    rng = np.random.default_rng(0)
    value = numbered(t)
    steps = plan(t.placement, want, t.names, mesh)
    shards, current = cut(value, t, mesh, {}, rng), t
    for step in steps:
        shards = run_collective(step.op, step.attrs, shards, t.names, mesh)
        current = operator(step.op).infer(Node("n", step.op, attrs=step.attrs), [current], mesh).results[0]
        np.testing.assert_allclose(join(shards, current, mesh, {}, 1e-9), value, rtol=1e-10, atol=1e-9)
    assert current.placement == want
    if not t.placement.partial:
        for got, expected in zip(shards, cut(value, t.placed(want), mesh, {}, rng), strict=True):
            np.testing.assert_array_equal(got, expected)


@given(pairs())
def test_no_step_is_redundant(pair: tuple[Mesh, TensorType, Placement]) -> None:
    mesh, t, want = pair
    assert plan(want, want, t.names, mesh) == []
    states = [t.placement]
    steps = plan(t.placement, want, t.names, mesh)
    for step in steps:
        moved = operator(step.op).infer(Node("n", step.op, attrs=step.attrs), [t.placed(states[-1])], mesh)
        states.append(moved.results[0].placement)
    assert len(set(states)) == len(states)
    moving = {a for s in steps for a in s.attrs["axes"]}
    for axis in moving:
        assert sum(axis in s.attrs["axes"] for s in steps) <= 2, f"{axis} is moved again and again"


@given(pairs())
def test_what_is_only_cut_further_is_not_communicated(pair: tuple[Mesh, TensorType, Placement]) -> None:
    mesh, t, want = pair
    free = tuple(tuple(a for a in axes if a not in t.placement.used) for axes in want.shards)
    finer = Placement(
        tuple((*have, *more) for have, more in zip(t.placement.shards, free, strict=True)), t.placement.partial
    )
    assert {s.op for s in plan(t.placement, finer, t.names, mesh)} <= {"slice"}


@given(pairs())
def test_an_axis_that_stays_put_takes_part_only_where_it_must(pair: tuple[Mesh, TensorType, Placement]) -> None:
    """Axes that cut the outer part of a dimension alike before and after are in no step."""
    mesh, t, want = pair
    still = set()
    for have, wanted in zip(t.placement.shards, want.shards, strict=True):
        for a, b in zip(have, wanted, strict=False):
            if a != b:
                break
            still.add(a)
    assert not still & {a for s in plan(t.placement, want, t.names, mesh) for a in s.attrs["axes"]}


SMALL = mesh_of_sizes([2, 3])
P = Placement
TRANSITIONS = [
    # have, want, operator, attributes besides the axis
    (P(((), ()), (("b", "sum"),)), P(((), ())), "all_reduce", {}),
    (P(((), ()), (("b", "max"),)), P(((), ())), "all_reduce", {"reduction": "max"}),
    (P(((), ()), (("b", "sum"),)), P(((), ("b",))), "reduce_scatter", {"to": "y"}),
    (P((("b",), ())), P(((), ())), "all_gather", {"of": "x"}),
    (P((("b",), ())), P(((), ("b",))), "all_to_all", {"of": ("x",), "to": "y"}),
    (P(((), ())), P((("b",), ())), "slice", {"to": "x"}),
]


@pytest.mark.parametrize("outer", [None, 0, 1, "partial"])
@pytest.mark.parametrize("have, want, op, attrs", TRANSITIONS)
def test_each_transition_of_one_axis_is_one_collective(
    have: Placement, want: Placement, op: str, attrs: dict[str, object], outer: int | str | None
) -> None:
    """Whatever another axis does to the tensor meanwhile."""

    def beneath(p: Placement) -> Placement:
        shards = tuple(("a", *axes) if d == outer else axes for d, axes in enumerate(p.shards))
        return Placement(shards, tuple(sorted((*p.partial, *([("a", "sum")] if outer == "partial" else [])))))

    steps = plan(beneath(have), beneath(want), ("x", "y"), SMALL)
    assert steps == [Step(op, {"axes": ("b",), **attrs})]


def test_every_collective_of_the_rule_is_tested() -> None:
    tested = {op for _, _, op, _ in TRANSITIONS} | {"dispatch", "combine", "ring_shift"}
    assert tested == {n for n, o in OPERATORS.items() if isinstance(o, Resharding)}


@pytest.mark.parametrize(
    "have, want, steps",
    [
        (P(((), ()), (("a", "sum"), ("b", "sum"))), P(((), ())), [Step("all_reduce", {"axes": ("a", "b")})]),
        (P((("a", "b"), ())), P(((), ())), [Step("all_gather", {"axes": ("a", "b"), "of": "x"})]),
        (P((("a", "b"), ())), P((("a",), ())), [Step("all_gather", {"axes": ("b",), "of": "x"})]),
        (P(((), ()), (("a", "sum"), ("b", "sum"))), P((("a", "b"), ())),
         [Step("reduce_scatter", {"axes": ("a", "b"), "to": "x"})]),
        (P((("a", "b"), ())), P(((), ("a", "b"))),
         [Step("all_to_all", {"axes": ("a", "b"), "of": ("x", "x"), "to": "y"})]),
    ],
)  # fmt: skip
def test_axes_that_move_together_share_a_collective(have: Placement, want: Placement, steps: list[Step]) -> None:
    assert plan(have, want, ("x", "y"), SMALL) == steps


@pytest.mark.parametrize(
    "have, want, steps",
    [
        (P((("b",), ())), P((("b",), ()), (), (1, 0)), [("ring_shift", 1)]),
        (P((("b",), ()), (), (1, 0)), P((("b",), ()), (), (2, 0)), [("ring_shift", 1)]),
        (P((("b",), ()), (), (2, 0)), P((("b",), ())), [("ring_shift", 1)]),
        (P((("a", "b"), ())), P((("a", "b"), ()), (), (4, 0)), [("ring_shift", 4)]),
        (P((("b",), ()), (), (1, 0)), P(((), ())), [("ring_shift", 2), ("all_gather", None)]),
        (P((("b",), ("a",))), P((("b",), ()), (), (1, 0)), [("all_gather", None), ("ring_shift", 1)]),
    ],
)
def test_chunks_travel_round_the_ring_that_cuts_them(
    have: Placement, want: Placement, steps: list[tuple[str, int | None]]
) -> None:
    assert [(s.op, s.attrs.get("hops")) for s in plan(have, want, ("x", "y"), SMALL)] == steps


def test_after_a_hop_a_rank_holds_the_chunk_of_the_one_before() -> None:
    t = tensor("fp32", ("x", 6)).placed(P((("a", "b"),)))
    shards = cut(np.arange(6.0), t, SMALL, {}, np.random.default_rng(0))
    (step,) = plan(t.placement, P((("a", "b"),), (), (1,)), ("x",), SMALL)
    moved = run_collective(step.op, step.attrs, shards, ("x",), SMALL)
    assert [s.tolist() for s in moved] == [[5], [0], [1], [2], [3], [4]]


def test_what_only_leaves_makes_way_for_what_goes_elsewhere() -> None:
    """KV heads that only the outer part of an axis can cut: gather the inner part, then exchange."""
    steps = plan(P((("a", "b"), ())), P(((), ("a",))), ("x", "y"), SMALL)
    assert [(s.op, s.attrs["axes"]) for s in steps] == [("all_gather", ("b",)), ("all_to_all", ("a",))]


@pytest.mark.parametrize("slots", [6, 7])
def test_dispatch_and_combine_are_inverse(slots: int) -> None:
    """Routed tokens go to the ranks of their slots and come back to their groups."""
    names = ("group.a", "group.b", "slot", "hidden")
    grouped, at_experts = P((("a",), ("b",), (), ())), P(((), (), ("a", "b"), ()))
    t = tensor("fp32", *zip(names, (2, 3, slots, 2), strict=True)).placed(grouped)
    there = plan(grouped, at_experts, names, SMALL)
    back = plan(at_experts, grouped, names, SMALL)
    assert [(s.op, s.attrs["axes"]) for s in (*there, *back)] == [("dispatch", ("a", "b")), ("combine", ("a", "b"))]
    value = numbered(t)
    rng = np.random.default_rng(0)
    sent = reshard(cut(value, t, SMALL, {}, rng), there, names, SMALL)
    np.testing.assert_array_equal(join(sent, t.placed(at_experts), SMALL, {}), value)
    np.testing.assert_array_equal(join(reshard(sent, back, names, SMALL), t, SMALL, {}), value)


def test_partial_sums_cannot_be_made() -> None:
    with pytest.raises(Unreachable):
        plan(P(((), ())), P(((), ()), (("a", "sum"),)), ("x", "y"), SMALL)


@pytest.mark.parametrize(
    "op, attrs, have",
    [
        ("all_gather", {"axes": ("a",), "of": "x"}, P((("a", "b"), ()))),
        ("all_to_all", {"axes": ("a",), "of": ("x",), "to": "y"}, P((("a", "b"), ()))),
        ("all_reduce", {"axes": ("a",)}, P((("a",), ()))),
        ("reduce_scatter", {"axes": ("a",), "to": "x"}, P(((), ()))),
        ("slice", {"axes": ("a",), "to": "x"}, P(((), ("a",)))),
        ("ring_shift", {"axes": ("b",), "of": "x", "hops": 1, "ring": 3}, P((("a", "b"), ()))),
        ("ring_shift", {"axes": ("b",), "of": "x", "hops": 3, "ring": 3}, P((("b",), ()))),
        ("ring_shift", {"axes": ("b",), "of": "x", "hops": 1, "ring": 4}, P((("b",), ()))),
        ("all_gather", {"axes": ("b",), "of": "x"}, P((("b",), ()), (), (1, 0))),
    ],
)
def test_a_collective_on_a_placement_that_it_does_not_fit_is_refused(
    op: str, attrs: dict[str, object], have: Placement
) -> None:
    t = tensor("fp32", ("x", 6), ("y", 6)).placed(have)
    with pytest.raises(ValueError):
        operator(op).infer(Node("n", op, attrs=attrs), [t], SMALL)


def test_resharding_nodes_chain_and_take_over_the_consumers_masks() -> None:
    t = tensor("fp32", ("x", 6), ("y", 6)).placed(P((("a",), ()), (("b", "sum"),)))
    consumer = Node("c", "add", module="moe", items="last", steps="later")
    nodes = reshard_nodes("v", Value("v", t), P(((), ("a",))), SMALL, "tp", consumer)
    assert [n.op for n in nodes] == ["all_reduce", "all_to_all"]
    assert nodes[0].inputs == ("v",) and nodes[1].inputs == (nodes[0].outputs[0].name,)
    assert nodes[-1].outputs[0].type.placement == P(((), ("a",)))
    assert {(n.module, n.items, n.steps, n.origin) for n in nodes} == {("moe", "last", "later", "tp")}


def test_shards_that_contradict_their_type_are_refused() -> None:
    rng = np.random.default_rng(0)
    t = tensor("fp32", ("x", 5)).placed(P((("a",),)))
    shards = cut(np.arange(5.0), t, SMALL, {}, rng)
    assert [len(s) for s in shards] == [3, 3, 3, 2, 2, 2]
    with pytest.raises(ShardFault, match="shape"):
        join([s[:2] for s in shards], t, SMALL, {})
    shards[1] = shards[1] + 1
    with pytest.raises(ShardFault, match="replicas"):
        join(shards, t, SMALL, {})
    with pytest.raises(ShardFault, match="shape"):
        cut(np.arange(4.0), t, SMALL, {}, rng)


@pytest.mark.parametrize("kind", ["sum", "max", "lse"])
def test_partial_values_are_random_parts_of_the_whole(kind: str) -> None:
    t = tensor("fp32", ("x", 4)).placed(P(((),), (("b", kind),)))
    value = np.arange(4.0)
    shards = cut(value, t, SMALL, {}, np.random.default_rng(0))
    assert not any(np.allclose(s, value) for s in shards)
    np.testing.assert_array_equal(shards[0], shards[3])  # replicas along the other axis
    np.testing.assert_allclose(join(shards, t, SMALL, {}), value, atol=1e-12)
