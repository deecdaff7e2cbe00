"""Damage to lowered graphs: collectives, groups, placements, types, stages, experts, structure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from paradag.compiler.ir.graph import Block, Graph, Node, Phase, Value
from paradag.compiler.ir.types import Placement, replicated
from paradag.passes.validation._report import consumers, is_resharding
from paradag.tests.mutation.damage import SEEN, Damage, NoPlace, pick
from paradag.tests.passes.validation import damage as d

Apply = Callable[[Graph, random.Random], Graph]
DECODE: tuple[Phase, ...] = ("decode",)
PREFILL: tuple[Phase, ...] = ("prefill",)


def kind(
    name: str,
    codes: str,
    apply: Apply,
    *,
    repaired: bool = False,
    phases: tuple[Phase, ...] = ("prefill", "decode"),
    must: str = "",
    seen: str = "always",
) -> Damage[Graph]:
    """A kind of damage; codes and needs as words, what execution sees as ``WORD`` or ``WORD: where it does not``."""
    word, _, unseen = seen.partition(": ")
    needs = frozenset(must.split())
    return Damage(name, frozenset(codes.split()), apply, repaired, phases, needs, SEEN[word], unseen)


def nodes(graph: Graph, wanted: Callable[[Block, Node], bool]) -> list[tuple[Block, Node]]:
    return [(b, n) for b, n in graph.nodes() if wanted(b, n)]


def collectives(graph: Graph, *ops: str) -> list[tuple[Block, Node]]:
    """Resharding nodes: of the given operators, or all but dispatch, combine and local slices."""
    default = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}
    return nodes(graph, lambda _, n: n.op in (set(ops) or default))


# --- collectives ------------------------------------------------------------------------------------------------------


def _drop(*ops: str) -> Apply:
    def apply(graph: Graph, rng: random.Random) -> Graph:
        block, node = pick(rng, collectives(graph, *ops))
        return d.bypass(graph, block.name, node.name)

    return apply


def _remove(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph))
    return d.remove(graph, block.name, node.name)


def _double(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph))
    copy = d.again(node, "twice")
    return d.insert(graph, block.name, node.name, copy, users={node.name: "twice"})


def _double_beside(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in collectives(graph) if consumers(b, n.outputs[0].name)])
    copy = replace(node, name="copy", outputs=(Value("copy", node.outputs[0].type),))
    user = pick(rng, consumers(block, node.outputs[0].name))
    return d.rewire(d.insert(graph, block.name, node.name, copy), block.name, user.name, node.outputs[0].name, "copy")


def _swap(graph: Graph, rng: random.Random) -> Graph:
    ops = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "dispatch", "combine", "slice")
    found = collectives(graph, *ops)
    pairs = [
        (b, n, m)
        for i, (b, n) in enumerate(found)
        for c, m in found[i + 1 :]
        if c is b and (n.op, n.attrs) != (m.op, m.attrs)
    ]
    block, first, second = pick(rng, pairs)
    graph = d.node(graph, block.name, first.name, op=second.op, attrs=second.attrs)
    return d.node(graph, block.name, second.name, op=first.op, attrs=first.attrs)


def _wrong_op(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph))
    dims = node.outputs[0].type.names
    other = {
        "all_reduce": ("all_gather", {"of": dims[-1]}),
        "reduce_scatter": ("all_reduce", {}),
        "all_gather": ("all_reduce", {}),
        "all_to_all": ("all_reduce", {}),
    }
    op, attrs = other[node.op]
    return d.node(graph, block.name, node.name, op=op, attrs={"axes": node.attrs["axes"], **attrs})


def _scatter_for_reduce(graph: Graph, rng: random.Random) -> Graph:
    """A reduce-scatter where the all-reduce stood, its own type right."""
    places = [
        (b, n, dim)
        for b, n in collectives(graph, "all_reduce")
        for dim, axes in zip(n.outputs[0].type.names, n.outputs[0].type.placement.shards, strict=True)
        if dim in {"seq", "batch", "hidden"} and not set(axes) & set(n.attrs["axes"])
    ]
    block, node, dim = pick(rng, places)
    cut = d.place(node.outputs[0].type, **{dim: (*node.outputs[0].type.axes_of(dim), *node.attrs["axes"])})
    graph = d.node(graph, block.name, node.name, op="reduce_scatter", attrs={"axes": node.attrs["axes"], "to": dim})
    return d.retype(graph, block.name, node.outputs[0].name, cut)


def _wrong_group(graph: Graph, rng: random.Random) -> Graph:
    names = [a.name for a in graph.mesh.axes]
    places = [(b, n, a) for b, n in collectives(graph) for a in names if a not in n.attrs["axes"]]
    block, node, axis = pick(rng, places)
    return d.attrs(graph, block.name, node.name, axes=(axis,))


def _rank_missing(graph: Graph, rng: random.Random) -> Graph:
    """A group over one axis less than the values lie on."""
    block, node = pick(rng, [(b, n) for b, n in collectives(graph) if len(n.attrs["axes"]) > 1])
    gone = rng.choice(node.attrs["axes"])
    return d.attrs(graph, block.name, node.name, axes=tuple(a for a in node.attrs["axes"] if a != gone))


def _unknown_axis(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph))
    return d.attrs(graph, block.name, node.name, axes=(*node.attrs["axes"][:-1], rng.choice(("cp", "dp", "vp"))))


def _empty_group(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph))
    return d.attrs(graph, block.name, node.name, axes=())


def _wrong_dimension(graph: Graph, rng: random.Random) -> Graph:
    places = [
        (b, n, key, dim)
        for b, n in collectives(graph, "all_gather", "reduce_scatter", "slice")
        for key in ("of", "to")
        for dim in n.outputs[0].type.names
        if key in n.attrs and n.attrs[key] != dim
    ]
    block, node, key, dim = pick(rng, places)
    return d.attrs(graph, block.name, node.name, **{key: dim})


# --- placements and types ---------------------------------------------------------------------------------------------


def _weight_dims(graph: Graph) -> list[tuple[Block, Node, str, str, tuple[str, ...]]]:
    """(block, node, weight, dimension, axes) of every weight dimension."""
    return [
        (b, n, p.name, dim, axes)
        for b, n in graph.nodes()
        for p in n.params
        if not p.const
        for dim, axes in zip(p.type.names, p.type.placement.shards, strict=True)
    ]


def _weight_whole(graph: Graph, rng: random.Random) -> Graph:
    block, node, weight, dim, _ = pick(rng, [w for w in _weight_dims(graph) if w[4]])
    return d.recut(graph, block.name, node.name, weight, **{dim: ()})


def _weight_other_dimension(graph: Graph, rng: random.Random) -> Graph:
    places = _weight_dims(graph)
    pairs = [(a, b[3]) for a in places for b in places if a[4] and a[:3] == b[:3] and a[3] != b[3] and not b[4]]
    (block, node, weight, dim, axes), other = pick(rng, pairs)
    return d.recut(graph, block.name, node.name, weight, **{dim: (), other: axes})


def _weight_other_axes(graph: Graph, rng: random.Random) -> Graph:
    names = [a.name for a in graph.mesh.axes]
    places = [(w, a) for w in _weight_dims(graph) if w[4] for a in names if a not in w[4]]
    (block, node, weight, dim, _), axis = pick(rng, places)
    kept = {x for p in node.params if p.name == weight for x in p.type.placement.used}
    if axis in kept:
        raise NoPlace
    return d.recut(graph, block.name, node.name, weight, **{dim: (axis,)})


def _experts_everywhere(graph: Graph, rng: random.Random) -> Graph:
    block, node, weight, dim, _ = pick(rng, [w for w in _weight_dims(graph) if w[3] == "slot" and w[4]])
    return d.recut(graph, block.name, node.name, weight, **{dim: ()})


def _stream_moved(graph: Graph, rng: random.Random) -> Graph:
    shards = graph.stream.placement.shards
    used = {a for axes in shards for a in axes}
    free = [a.name for a in graph.mesh.axes if a.name not in used]
    options = [(i, axes[:-1]) for i, axes in enumerate(shards) if axes]
    options += [(i, (*axes, a)) for i, axes in enumerate(shards) for a in free]
    index, axes = pick(rng, options)
    return replace(graph, stream=graph.stream.placed(Placement((*shards[:index], axes, *shards[index + 1 :]))))


def _values(graph: Graph, wanted: Callable[[Node, Value], bool]) -> list[tuple[Block, Node, Value]]:
    skipped = {"kv_recv", "prefill_begin", "decode_begin"}  # sources: nothing says how they must lie
    return [
        (b, n, v)
        for b, n in graph.nodes()
        if not is_resharding(n) and n.op not in skipped
        for v in n.outputs
        if wanted(n, v)
    ]


def _stale_full_shape(graph: Graph, rng: random.Random) -> Graph:
    block, _, value = pick(rng, _values(graph, lambda _, v: bool(v.type.placement.used)))
    return d.retype(graph, block.name, value.name, value.type.placed(replicated(len(value.type.dims))))


def _wrong_size(graph: Graph, rng: random.Random) -> Graph:
    sized = {"hidden", "heads", "ffn", "head_dim", "vocab", "slot", "kv_heads"}
    places = [
        (b, v, dim)
        for b, _, v in _values(graph, lambda n, v: n.op not in {"route", "expert", "kv_write", "kv_read"})
        for dim in v.type.dims
        if dim.name in sized and isinstance(dim.size, int)
    ]
    block, value, dim = pick(rng, places)
    assert isinstance(dim.size, int)
    local = max(1, dim.size // 2) if dim.size > 1 else 2
    return d.retype(graph, block.name, value.name, d.resize(value.type, **{dim.name: local}))


def _wrong_dtype(graph: Graph, rng: random.Random) -> Graph:
    block, _, value = pick(rng, _values(graph, lambda n, v: n.op in {"kv_write", "norm", "rotary"}))
    other = "fp8" if value.type.dtype != "fp8" else "bf16"
    return d.retype(graph, block.name, value.name, replace(value.type, dtype=other))


# --- stages -----------------------------------------------------------------------------------------------------------


def _transport(*names: str) -> Apply:
    def apply(graph: Graph, rng: random.Random) -> Graph:
        if not graph.with_role("boundary"):
            raise NoPlace
        for name in names:
            graph = d.bypass(graph, "boundary", name)
        return graph

    return apply


def _boundary_gone(graph: Graph, rng: random.Random) -> Graph:
    if not graph.with_role("boundary"):
        raise NoPlace
    return replace(graph, blocks=tuple(b for b in graph.blocks if b.role != "boundary"))


def _stage_skipped(graph: Graph, rng: random.Random) -> Graph:
    """One boundary left out: a shortcut from its stage to the next but one."""
    block, gone = pick(rng, [(b, layer) for b in graph.with_role("boundary") for layer in b.layers])
    return d.block(graph, block.name, layers=tuple(x for x in block.layers if x != gone))


def _boundary_moved(graph: Graph, rng: random.Random) -> Graph:
    places = [
        (b, tuple(sorted({*b.layers} - {old} | {new})))
        for b in graph.with_role("boundary")
        for old in b.layers
        for new in range(1, graph.layers)
        if new not in b.layers
    ]
    block, layers = pick(rng, places)
    return d.block(graph, block.name, layers=layers)


def _stage_inside_layer(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, nodes(graph, lambda b, n: b.role == "layer" and n.op in {"norm", "add"}))
    value = node.outputs[0]
    pair = (
        Node("out", "send", (value.name,), (Value("out", value.type),)),
        Node("back", "recv", ("out",), (Value("back", value.type),)),
    )
    return d.insert(graph, block.name, node.name, *pair, users={value.name: "back"})


def _ids_without_send(graph: Graph, rng: random.Random) -> Graph:
    if not graph.with_role("boundary"):
        raise NoPlace
    graph = d.bypass(d.remove(graph, "epilogue", "return_send"), "prologue", "return_recv")
    return d.block(graph, "prologue", args=tuple(replace(a, source="next") for a in graph.block("prologue").args))


def _return_send_gone(graph: Graph, rng: random.Random) -> Graph:
    if not graph.with_role("boundary"):
        raise NoPlace
    return d.remove(graph, "epilogue", "return_send")


# --- experts ----------------------------------------------------------------------------------------------------------


def _tokens_whole(graph: Graph, rng: random.Random) -> Graph:
    """Tokens of the router and of routing cut over one EP axis less."""
    needed = {*graph.mesh.view("ep"), *graph.mesh.view("edp")}
    places = [
        (b, n, dim, a)
        for b, n in nodes(graph, lambda _, n: n.op == "route")
        for dim, axes in n.constraints.items()
        for a in axes
        if a in needed
    ]
    block, node, dim, axis = pick(rng, places)
    cut = {**node.constraints, dim: tuple(a for a in node.constraints[dim] if a != axis)}
    gone = f"group.{axis}"
    rows = node.outputs[0].type
    kept = [i for i, name in enumerate(rows.names) if name != gone]
    shards = tuple(rows.placement.shards[i] for i in kept)
    fewer = replace(rows, dims=tuple(rows.dims[i] for i in kept), placement=Placement(shards))
    for name in [n.name for n in block.nodes if n.op in {"route", "router"}]:
        graph = d.node(graph, block.name, name, constraints=cut)
    return d.retype(graph, block.name, node.outputs[0].name, fewer)


def _expert_slots(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, nodes(graph, lambda _, n: n.op in {"route", "unroute"}))
    return d.attrs(graph, block.name, node.name, slots=node.attrs["experts"] - 1)


def _expert_weights_missing(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, nodes(graph, lambda _, n: n.op == "expert"))
    weight = rng.choice(node.params)
    fewer = replace(weight, type=d.resize(weight.type, slot=weight.type.dims[0].size - 1))  # type: ignore[operator]
    return d.node(graph, block.name, node.name, params=tuple(fewer if p is weight else p for p in node.params))


def _ep_outside_moe(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, collectives(graph, "dispatch", "combine"))
    return d.node(graph, block.name, node.name, module=rng.choice(("attention", "ffn")))


def _routing_lost(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, nodes(graph, lambda _, n: n.op in {"route", "unroute"}))
    return d.node(graph, block.name, node.name, inputs=(node.inputs[0], node.inputs[0]))


GRAPH_KINDS: tuple[Damage[Graph], ...] = (
    kind("collective dropped", "PD405 PD407", _drop(), repaired=True, must="tp"),
    kind("slice dropped", "PD405", _drop("slice"), repaired=True, must="tp ep"),
    kind("collective removed, its users left", "PD402", _remove, repaired=True, must="tp"),
    kind("collective doubled in a row", "PD406 PD407", _double, repaired=True, must="tp"),
    kind(
        "collective doubled side by side",
        "PD406",
        _double_beside,
        repaired=True,
        must="tp",
        seen="as work: the copy gives what the first one gives",
    ),
    kind("two collectives swapped", "PD405 PD406 PD407 PD413", _swap, repaired=True, must="tp ep"),
    kind("wrong collective", "PD406 PD407", _wrong_op, repaired=True, must="tp"),
    kind("reduce-scatter for all-reduce", "PD403 PD405 PD407", _scatter_for_reduce, repaired=True, must="tp"),
    kind("wrong group", "PD407 PD406", _wrong_group, repaired=True, must="tp ep"),
    kind("rank missing from a group", "PD407", _rank_missing, repaired=True, must="tp ep heads"),
    kind("unknown axis in a group", "PD416", _unknown_axis, repaired=True, must="tp"),
    kind("empty group", "PD416", _empty_group, repaired=True, must="tp"),
    kind("wrong shard dimension", "PD407", _wrong_dimension, repaired=True, must="tp"),
    kind("dispatch dropped", "PD413", _drop("dispatch"), repaired=True, must="ep"),
    kind("combine dropped", "PD413", _drop("combine"), repaired=True, must="ep"),
    kind("weight not cut", "PD421", _weight_whole, repaired=True, must="tp"),
    kind("weight cut in another dimension", "PD421", _weight_other_dimension, repaired=True, must="tp"),
    kind("weight cut over other ranks", "PD421", _weight_other_axes, repaired=True, must="tp ep"),
    kind("experts overlapping", "PD421", _experts_everywhere, repaired=True, must="ep"),
    kind("stream placed elsewhere", "PD404 PD405", _stream_moved, repaired=True, must="tp"),
    kind(
        "stale full shape",
        "PD403",
        _stale_full_shape,
        repaired=True,
        must="tp",
        seen="sometimes: a partial sum that is stated as whole is reduced all the same",
    ),
    kind("wrong local shape", "PD403", _wrong_size, repaired=True),
    kind(
        "wrong number format",
        "PD403 PD414",
        _wrong_dtype,
        repaired=True,
        seen="never: formats are counted as bytes, the arithmetic is float64",
    ),
    kind("send without receive", "PD409", _transport("recv"), repaired=True, must="pp"),
    kind("receive without send", "PD409", _transport("send"), repaired=True, must="pp"),
    kind("stage crossed without send and receive", "PD408", _transport("recv", "send"), repaired=True, must="pp"),
    kind("boundaries gone", "PD408", _boundary_gone, repaired=True, must="pp"),
    kind("cross-stage shortcut", "PD408", _stage_skipped, repaired=True, must="pp"),
    kind("boundary at another layer", "PD408", _boundary_moved, repaired=True, must="pp"),
    kind("stage crossed inside a layer", "PD408", _stage_inside_layer, repaired=True, must="pp"),
    kind("ids return without a send", "PD408", _ids_without_send, repaired=True, phases=DECODE, must="pp"),
    kind("return send removed", "PD402 PD409", _return_send_gone, repaired=True, phases=DECODE, must="pp"),
    kind("tokens whole on an EP axis", "PD419", _tokens_whole, repaired=True, must="ep"),
    kind("expert without a slot", "PD442", _expert_slots, must="moe", seen="sometimes: no token chooses the expert"),
    kind("expert missing from the weights", "PD442", _expert_weights_missing, repaired=True, must="moe"),
    kind(
        "expert parallelism outside MoE",
        "PD440",
        _ep_outside_moe,
        repaired=True,
        must="ep",
        seen="never: no number depends on the name of a module",
    ),
    kind("routing without its edge", "PD441", _routing_lost, must="moe"),
)
