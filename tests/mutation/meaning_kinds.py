"""Damage to lowered graphs: the KV cache, the order of steps, structure, and what the model computes."""

from __future__ import annotations

import random
from dataclasses import replace

from paradag.compiler.ir.graph import Arg, Block, Graph, Node, Value
from paradag.compiler.ir.ops import is_phase_node
from paradag.compiler.ir.types import CONTEXT, PAST, Dim, TensorType
from paradag.passes.validation._report import consumers, is_resharding
from paradag.tests.mutation.damage import Damage, NoPlace, pick
from paradag.tests.mutation.graph_kinds import DECODE, Apply, kind, nodes
from paradag.tests.passes.validation import damage as d


def _of(graph: Graph, *ops: str) -> list[tuple[Block, Node]]:
    return nodes(graph, lambda _, n: n.op in ops)


def _with_args(graph: Graph, block: Block, change: dict[str, Arg]) -> Graph:
    return d.block(graph, block.name, args=tuple(change.get(a.value.name, a) for a in block.args))


# --- KV cache ---------------------------------------------------------------------------------------------------------


def _read_before_write(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "kv_read"))
    return d.rewire(graph, block.name, node.name, node.inputs[0], "kv_before")


def _read_of_nothing(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "kv_read"))
    return d.node(graph, block.name, node.name, inputs=())


def _attention_on_cache(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "kv_read"))
    user = pick(rng, consumers(block, node.outputs[0].name))
    return d.rewire(graph, block.name, user.name, node.outputs[0].name, node.inputs[0])


def _second_writer(graph: Graph, rng: random.Random) -> Graph:
    block, write = pick(rng, _of(graph, "kv_write"))
    copy = replace(write, name="rewrite", outputs=(Value("rewritten", write.outputs[0].type),))
    return d.rewire(d.insert(graph, block.name, write.name, copy), block.name, "kv_read", "kv_after", "rewritten")


def _not_carried_on(graph: Graph, rng: random.Random) -> Graph:
    block, arg = pick(rng, [(b, a) for b in graph.with_role("layer") for a in b.args if a.carry == "version"])
    return _with_args(graph, block, {arg.value.name: replace(arg, source=arg.value.name)})


def _cache_placed_elsewhere(graph: Graph, rng: random.Random) -> Graph:
    places = [
        (b, a) for b in graph.with_role("layer") for a in b.args if a.carry == "version" and a.value.type.placement.used
    ]
    block, arg = pick(rng, places)
    whole = d.place(arg.value.type, **dict.fromkeys(arg.value.type.names, ()))
    return _with_args(graph, block, {arg.value.name: replace(arg, value=Value(arg.value.name, whole))})


def _context(kind_: TensorType, size: object) -> TensorType:
    return replace(kind_, dims=tuple(Dim(x.name, size if x.name == "context" else x.size) for x in kind_.dims))  # type: ignore[arg-type]


def _context_too_short(graph: Graph, rng: random.Random) -> Graph:
    block, write = pick(rng, _of(graph, "kv_write"))
    value = write.outputs[0]
    return d.retype(graph, block.name, value.name, _context(value.type, PAST))


def _appended_to_whole(graph: Graph, rng: random.Random) -> Graph:
    block, write = pick(rng, _of(graph, "kv_write"))
    arg = next(a for a in block.args if a.value.name == write.inputs[0])
    return d.retype(graph, block.name, arg.value.name, _context(arg.value.type, CONTEXT))


# --- steps and phases -------------------------------------------------------------------------------------------------


def _end_skipped(*, stages: bool) -> Apply:
    """The next step takes what was sampled, not what the end of the step hands on; between stages or on one."""

    def apply(graph: Graph, rng: random.Random) -> Graph:
        if bool(graph.with_role("boundary")) != stages:
            raise NoPlace
        block = graph.block("prologue")
        arg = next(a for a in block.args if a.carry == "step")
        source = pick(rng, [v.name for n in graph.block("epilogue").nodes if n.op == "sample" for v in n.outputs])
        return _with_args(graph, block, {arg.value.name: replace(arg, source=source)})

    return apply


def _step_does_not_wait(graph: Graph, rng: random.Random) -> Graph:
    block = graph.block("prologue")
    arg = next(a for a in block.args if a.carry == "step")
    return _with_args(graph, block, {arg.value.name: replace(arg, carry="version", source=arg.value.name)})


def _two_tokens(graph: Graph, rng: random.Random) -> Graph:
    index = rng.randrange(len(graph.items))
    items = tuple(replace(item, new=2) if i == index else item for i, item in enumerate(graph.items))
    return replace(graph, items=items)


def _cross_phase(graph: Graph, rng: random.Random) -> Graph:
    """The end of a phase, or the transfer of its cache, in the other phase's graph."""
    other = {"prefill_end": "decode_end", "decode_end": "prefill_end", "kv_send": "kv_recv", "kv_recv": "kv_send"}
    block, node = pick(rng, _of(graph, *other))
    return d.node(graph, block.name, node.name, op=other[node.op])


def _phase_node_gone(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, nodes(graph, lambda _, n: is_phase_node(n)))
    return d.remove(graph, block.name, node.name)


# --- structure --------------------------------------------------------------------------------------------------------


def _dangling(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "norm", "add", "activation"))
    copy = replace(node, name="idle", outputs=(Value("idle", node.outputs[0].type),))
    return d.insert(graph, block.name, node.name, copy)


def _compute(graph: Graph) -> list[tuple[Block, Node]]:
    return nodes(graph, lambda b, n: bool(n.inputs and n.outputs) and not is_resharding(n) and b.role != "boundary")


def _cycle(graph: Graph, rng: random.Random) -> Graph:
    """A node takes what depends on its own result."""
    places = []
    for block, node in _compute(graph):
        later = {v.name for v in node.outputs}
        for other in block.nodes:
            if later & set(other.inputs):
                later |= {v.name for v in other.outputs}
                places.append((block, node, other.outputs))
    block, node, outputs = pick(rng, [p for p in places if p[2]])
    index = rng.randrange(len(node.inputs))
    inputs = (*node.inputs[:index], rng.choice(outputs).name, *node.inputs[index + 1 :])
    return d.node(graph, block.name, node.name, inputs=inputs)


def _too_early(graph: Graph, rng: random.Random) -> Graph:
    places = [(b, n, b.producers[i]) for b, n in _compute(graph) for i in n.inputs if i in b.producers]
    block, node, maker = pick(rng, places)
    return d.move(graph, block.name, node.name, maker.name)


def _node_removed(graph: Graph, rng: random.Random) -> Graph:
    """A node that others need; phase nodes can be put back (:func:`_phase_node_gone`), what computes cannot."""
    needed = [
        (b, n) for b, n in _compute(graph) if not is_phase_node(n) and any(consumers(b, v.name) for v in n.outputs)
    ]
    block, node = pick(rng, needed)
    return d.remove(graph, block.name, node.name)


def _name_twice(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _compute(graph))
    other = pick(rng, [n for b, n in _compute(graph) if b.name == block.name and n is not node])
    return d.node(graph, block.name, node.name, name=other.name)


def _unknown_operator(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _compute(graph))
    return d.node(graph, block.name, node.name, op="telepathy")


def _layer_missing(graph: Graph, rng: random.Random) -> Graph:
    block, gone = pick(rng, [(b, i) for b in graph.with_role("layer") for i in b.layers])
    return d.block(graph, block.name, layers=tuple(i for i in block.layers if i != gone))


def _layer_twice(graph: Graph, rng: random.Random) -> Graph:
    block = pick(rng, list(graph.with_role("layer")))
    return d.block(graph, block.name, layers=tuple(sorted((*block.layers, rng.randrange(graph.layers)))))


def _stages_do_not_cover(graph: Graph, rng: random.Random) -> Graph:
    index = rng.randrange(len(graph.stages))
    stages = tuple(s + (i == index) for i, s in enumerate(graph.stages))
    return replace(graph, stages=stages)


# --- meaning ----------------------------------------------------------------------------------------------------------


def _keys_and_values(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _of(graph, "kv_write") if len(n.inputs) == 3])
    before, k, v = node.inputs
    return d.node(graph, block.name, node.name, inputs=(before, v, k))


def _gate_and_up(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _of(graph, "activation") if len(n.inputs) == 2])
    return d.node(graph, block.name, node.name, inputs=node.inputs[::-1])


def _residual_skipped(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _of(graph, "add") if b.role == "layer" and n.name.endswith("residual")])
    return d.bypass(graph, block.name, node.name, node.inputs[1])


def _window_lost(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _of(graph, "attention") if "window" in n.attrs])
    return d.node(graph, block.name, node.name, attrs={k: v for k, v in node.attrs.items() if k != "window"})


def _other_epsilon(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "norm", "scale_by_root"))
    return d.attrs(graph, block.name, node.name, eps=3 * node.attrs.get("eps", 1e-6))


def _other_theta(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "rotary"))
    return d.attrs(graph, block.name, node.name, theta=3 * node.attrs.get("theta", 1e4))


def _scaling_lost(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _of(graph, "rotary") if "scaling" in n.attrs])
    return d.node(graph, block.name, node.name, attrs={k: v for k, v in node.attrs.items() if k != "scaling"})


def _top_k(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _of(graph, "router"))
    return d.attrs(graph, block.name, node.name, top_k=node.attrs["top_k"] + 1)


def _other_routers_input(graph: Graph, rng: random.Random) -> Graph:
    """The router sees the stream before its norm."""
    block, node = pick(rng, _of(graph, "router"))
    kinds = block.types
    same = [v for v in kinds if kinds[v] == kinds[node.inputs[0]] and v != node.inputs[0]]
    roots = {v: d_ for v, d_ in ((v, block.producers.get(v)) for v in same) if d_ is not None and not is_resharding(d_)}
    before = [v for v in roots if block.nodes.index(roots[v]) < block.nodes.index(node)]
    return d.rewire(graph, block.name, node.name, node.inputs[0], pick(rng, before))


def _kinds_exchanged(graph: Graph, rng: random.Random) -> Graph:
    layers = [b for b in graph.with_role("layer")]
    if len(layers) < 2:
        raise NoPlace
    first, second = rng.sample(layers, 2)
    return d.block(d.block(graph, first.name, layers=second.layers), second.name, layers=first.layers)


def _microbatch_lost(graph: Graph, rng: random.Random) -> Graph:
    gone = rng.randrange(len(graph.items))
    return replace(graph, items=tuple(item for i, item in enumerate(graph.items) if i != gone))


MEANING_KINDS: tuple[Damage[Graph], ...] = (
    kind("KV read before write", "PD411", _read_before_write, repaired=True),
    kind("missing KV edge", "PD403 PD415", _read_of_nothing, repaired=True),
    kind("attention on the cache itself", "PD410", _attention_on_cache, repaired=True),
    kind("KV slot with two writers", "PD428", _second_writer, repaired=True),
    kind("KV version not carried on", "PD411", _not_carried_on, repaired=True),
    kind("KV cache away from its owners", "PD410", _cache_placed_elsewhere, repaired=True, must="tp heads"),
    kind("KV length not the context", "PD430", _context_too_short, repaired=True),
    kind("KV cache not append-only", "PD429", _appended_to_whole, repaired=True),
    kind(
        "end of a step left out of its loop",
        "PD414",
        _end_skipped(stages=False),
        phases=DECODE,
        seen="never: on one stage the end of a step hands on what was sampled",
    ),
    kind("ids fed back past the last stage's send", "PD414 PD408", _end_skipped(stages=True), phases=DECODE, must="pp"),
    kind("decode step does not wait", "PD431", _step_does_not_wait, phases=DECODE),
    kind("two tokens in a decode step", "PD432", _two_tokens, phases=DECODE),
    kind(
        "node of the other phase",
        "PD426",
        _cross_phase,
        seen="sometimes: the ends of both phases hand on what was sampled",
    ),
    kind(
        "phase node missing",
        "PD427",
        _phase_node_gone,
        repaired=True,
        seen="as work: no node takes what the end of prefill gives",
    ),
    kind("dangling node", "PD415", _dangling, repaired=True, seen="as work: nobody takes the result"),
    kind("cycle", "PD401", _cycle),
    kind("node before its operand", "PD402", _too_early, repaired=True),
    kind("node removed", "PD402", _node_removed),
    kind("name given twice", "PD420", _name_twice),
    kind("unknown operator", "PD417", _unknown_operator),
    kind("layer missing", "PD412", _layer_missing),
    kind("layer twice", "PD412", _layer_twice),
    kind("stages that do not cover the layers", "PD412", _stages_do_not_cover),
    kind("keys and values swapped", "PD414 PD403", _keys_and_values, must="heads"),
    kind("gate and up swapped", "PD414", _gate_and_up),
    kind("residual skipped", "PD414", _residual_skipped),
    kind("window lost", "PD414", _window_lost, must="window", seen="sometimes: no window is shorter than the context"),
    kind(
        "epsilon of a norm changed",
        "PD414",
        _other_epsilon,
        seen="sometimes: a norm of queries or keys, and a token sees itself alone",
    ),
    kind(
        "theta of the rotary embedding changed",
        "PD414",
        _other_theta,
        seen="sometimes: one pair turns, or a token sees itself alone",
    ),
    kind(
        "rotary scaling lost",
        "PD414",
        _scaling_lost,
        seen="sometimes: it stretches no pair, or a token sees itself alone",
    ),
    kind("top-k changed", "PD414", _top_k, must="moe"),
    kind(
        "another value routed by",
        "PD414",
        _other_routers_input,
        must="moe",
        seen="sometimes: the router chooses the same expert, whose weight is 1",
    ),
    kind(
        "layers of two kinds exchanged",
        "PD414 PD412",
        _kinds_exchanged,
        must="window",
        seen="sometimes: no window is shorter than the context",
    ),
    kind("micro-batch lost", "PD414", _microbatch_lost),
)
