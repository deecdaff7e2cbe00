"""The logical graph of a phase: one block per distinct layer, nothing cut but the batch over attention DP."""

from __future__ import annotations

from dataclasses import replace

from ..ir.graph import Arg, Block, Graph, Item, Param, Phase, Value
from ..ir.mesh import Mesh
from ..ir.types import BATCH, NEW, Placement, tensor
from ..spec import ACTIVATION_DTYPE, ModelSpec, Spec
from ..spec.stage_law import Degrees
from .attention import add_attention
from .block import BlockBuilder, stream_type
from .ffn import add_dense_ffn, add_moe
from .items import build_items
from .mesh import phase_degrees, phase_mesh, pools_separate


def build_graph(spec: Spec, phase: Phase, name: str, steps: int = 1) -> Graph:
    """The logical graph of one phase.

    Args:
        spec: Legal spec with a strategy for ``phase``.
        phase: prefill or decode.
        name: Name of the input, for titles.
        steps: Decode steps in the chain.
    """
    degrees, mesh = phase_degrees(spec, phase), phase_mesh(spec, phase)
    graph = graph_on(mesh, spec.model, phase, degrees, prompt=spec.workload.input, transfer=needs_transfer(spec))
    term = spec.strategy(phase)
    assert term is not None
    meta = {**graph.meta, "token_order": token_order(spec, phase)}
    if term.sp_kind in ("ring", "ulysses"):
        meta["sp_kind"] = term.sp_kind
    items = build_items(spec, phase)
    return replace(graph, name=name, items=items, steps=steps if phase == "decode" else 1, meta=meta)


def graph_on(
    mesh: Mesh,
    model: ModelSpec,
    phase: Phase,
    degrees: Degrees,
    *,
    prompt: int,
    transfer: bool = False,
    halves: bool = False,
) -> Graph:
    """The logical graph of a phase on a mesh, without a name, for one item of one sequence and one token.

    Args:
        mesh: The ranks.
        model: What is run.
        phase: prefill or decode.
        degrees: The strategy; only SP and redundant experts count, the mesh says the rest.
        prompt: Prompt tokens per sequence.
        transfer: Whether the KV cache moves between the phases.
        halves: Attention and FFN of a layer as blocks of their own, each with the layers that have it. Only the stream
            leads from one to the other, so that costs and memory are those of whole layers.
    """
    build = _half_blocks if halves else _layer_blocks
    layers = build(model, phase, degrees, mesh, transfer)
    blocks = _prologue(model, phase, mesh, prompt), *layers, _epilogue(model, phase)
    return _graph(mesh, model, phase, degrees, blocks, transfer=transfer)


def expert_half(mesh: Mesh, model: ModelSpec, phase: Phase, degrees: Degrees) -> Graph:
    """The logical graph of nothing but the FFN with experts, as :func:`graph_on` has it in halves."""
    return _graph(mesh, model, phase, degrees, (_ffn_half(model, degrees, mesh, is_moe=True),), transfer=False)


def _graph(
    mesh: Mesh, model: ModelSpec, phase: Phase, degrees: Degrees, blocks: tuple[Block, ...], *, transfer: bool
) -> Graph:
    stream = stream_type(model.hidden)
    return Graph(
        name="",
        phase=phase,
        level="logical",
        mesh=mesh,
        items=(Item(0, 0, 1, 1, 0),),
        steps=1,
        stages=(model.layers.count,),
        blocks=blocks,
        stream=stream.placed(Placement((mesh.view("adp"), (), ()))),
        meta={
            "model": model.name,
            "token_order": "zigzag" if degrees.sp > 1 else "contiguous",
            "slots": _slots(model, degrees),
            "transfer": transfer,
            "megatron_sp": degrees.sp_on_tp and phase == "prefill",
        },
    )


def token_order(spec: Spec, phase: Phase) -> str:
    """Order of the tokens before SP cuts them: zig-zag balances causal work, which Ulysses shares out by heads."""
    strategy = spec.strategy(phase)
    return "zigzag" if strategy is not None and strategy.sp_kind in ("allgather", "ring") else "contiguous"


def needs_transfer(spec: Spec) -> bool:
    """Whether the KV cache moves between the phases: separate pools, or caches that lie differently."""
    if len(spec.strategies) < 2:
        return False
    return pools_separate(spec) or _cache_layout(spec, "prefill") != _cache_layout(spec, "decode")


def _cache_layout(spec: Spec, phase: Phase) -> tuple[object, ...]:
    """What decides where a phase keeps its KV cache; how experts lie does not."""
    degrees, strategy = phase_degrees(spec, phase), spec.strategy(phase)
    assert strategy is not None
    pp = strategy.term("pp")
    stages = pp.layers if pp else ()
    return degrees.dp, degrees.pp, degrees.adp, degrees.sp, degrees.tp, strategy.placement, stages


def _slots(model: ModelSpec, degrees: Degrees) -> int:
    return model.moe.experts + degrees.redundant if model.moe else 0


def _prologue(model: ModelSpec, phase: Phase, mesh: Mesh, length: int) -> Block:
    b = BlockBuilder("prologue")
    on_adp = {"batch": mesh.view("adp")}
    ids = tensor("int64", ("batch", BATCH), ("seq", NEW))
    if phase == "prefill":
        prompt = tensor("int64", ("batch", BATCH), ("prompt", length))
        first = b.emit("begin", "prefill_begin", [], [("prompt", prompt)], items="first", constraints=on_adp)[0]
        b.args.append(Arg(Value("pending", prompt), "version", "rest", first))
        b.values["pending"] = prompt
        positions = Param("positions", tensor("int32", ("seq", NEW)), const=True)
        taken = b.emit(
            "take_tokens", "take_tokens", ["pending"], [("ids", ids), ("rest", prompt)], [positions], constraints=on_adp
        )[0]
    else:
        last = tensor("int64", ("batch", BATCH))
        b.args.append(Arg(Value("previous", last), "step", "next"))
        b.values["previous"] = last
        taken = b.emit("begin", "decode_begin", ["previous"], [("ids", ids)], constraints=on_adp)[0]
    b.module = "embedding"
    table = Param("table", tensor(ACTIVATION_DTYPE, ("vocab", model.vocab), ("hidden", model.hidden)))
    x = b.emit("embed", "embedding", [taken], [("x", stream_type(model.hidden))], [table])[0]
    return b.block("prologue", result=x)


def _epilogue(model: ModelSpec, phase: Phase) -> Block:
    b = BlockBuilder("epilogue")
    b.take_stream(model.hidden)
    b.module = "head"
    hidden = tensor(ACTIVATION_DTYPE, ("batch", BATCH), ("hidden", model.hidden))
    positions = Param("positions", tensor("int32", ("seq", NEW)), const=True)
    last = Param("last_position", tensor("int32"), const=True)
    x = b.emit("last_token", "last_token", [b.stream], [("last", hidden)], [positions, last], items="last")[0]
    x = b.norm("final_norm", x, "hidden", model.hidden, model.norm_eps)
    logits = tensor(ACTIVATION_DTYPE, ("batch", BATCH), ("vocab", model.vocab))
    weight = Param("weight", tensor(ACTIVATION_DTYPE, ("hidden", model.hidden), ("vocab", model.vocab)))
    attrs = {"tied": True} if model.tied else {}
    x = b.emit("lm_head", "lm_head", [x], [("logits", logits)], [weight], attrs=attrs)[0]
    x = b.emit("sample", "sample", [x], [("sampled", tensor("int64", ("batch", BATCH)))])[0]
    b.module = "control"
    op = "prefill_end" if phase == "prefill" else "decode_end"
    b.emit("end", op, [x], [("next", tensor("int64", ("batch", BATCH)))])
    block = b.block("epilogue")
    block = block.map_nodes(lambda n: replace(n, items="last"))
    if phase == "prefill":
        early = BlockBuilder("early")
        early.take_stream(model.hidden)
        early.emit("chunk_end", "chunk_end", ["x"], [], items="early")
        block = replace(block, nodes=(*block.nodes, *early.nodes))
    return block


def _layer_blocks(model: ModelSpec, phase: Phase, degrees: Degrees, mesh: Mesh, transfer: bool) -> list[Block]:
    """One block per distinct kind of layer, in the order in which the kinds first appear."""
    kinds: dict[tuple[bool, int | None], list[int]] = {}
    for layer in range(model.layers.count):
        kinds.setdefault((model.is_moe_layer(layer), model.window_of(layer)), []).append(layer)
    blocks = []
    for (is_moe, window), members in kinds.items():
        name = _block_name(model, is_moe, window, len(kinds) > 1)
        b = BlockBuilder(name)
        b.take_stream(model.hidden)
        add_attention(b, model, phase, window, transfer=transfer)
        _add_ffn(b, model, degrees, mesh, is_moe=is_moe)
        blocks.append(b.block("layer", members, b.stream))
    return blocks


def _add_ffn(b: BlockBuilder, model: ModelSpec, degrees: Degrees, mesh: Mesh, *, is_moe: bool) -> None:
    """The FFN of a layer: its experts, or the dense one."""
    if is_moe:
        add_moe(b, model, _slots(model, degrees), mesh)
    else:
        add_dense_ffn(b, model)


def _half_blocks(model: ModelSpec, phase: Phase, degrees: Degrees, mesh: Mesh, transfer: bool) -> list[Block]:
    """One block per distinct attention, and one per distinct FFN."""
    windows: dict[int | None, list[int]] = {}
    for layer in range(model.layers.count):
        windows.setdefault(model.window_of(layer), []).append(layer)
    blocks = []
    for window, members in windows.items():
        b = BlockBuilder("sliding_attention" if window else "attention")
        b.take_stream(model.hidden)
        add_attention(b, model, phase, window, transfer=transfer)
        blocks.append(b.block("layer", members, b.stream))
    kinds = dict.fromkeys(model.is_moe_layer(layer) for layer in range(model.layers.count))
    return [*blocks, *(_ffn_half(model, degrees, mesh, is_moe=is_moe) for is_moe in kinds)]


def _ffn_half(model: ModelSpec, degrees: Degrees, mesh: Mesh, *, is_moe: bool) -> Block:
    """The FFN of all layers that have experts, or of all that have none."""
    b = BlockBuilder("moe_ffn" if is_moe else "dense_ffn")
    b.take_stream(model.hidden)
    _add_ffn(b, model, degrees, mesh, is_moe=is_moe)
    members = [layer for layer in range(model.layers.count) if model.is_moe_layer(layer) == is_moe]
    return b.block("layer", members, b.stream)


def _block_name(model: ModelSpec, is_moe: bool, window: int | None, several: bool) -> str:
    parts = ["moe" if is_moe else "dense"]
    if several and model.layers.pattern:
        parts.append("sliding" if window else "full")
    return "_".join([*parts, "layer"])
