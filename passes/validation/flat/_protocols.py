"""Phases, the KV cache, decode steps, pipeline stages and transfers of a flat graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....compiler.diagnostics import Diagnostic
from ._columns import MAX_TOLD, Columns, Ints

_OTHERS = {
    "prefill": ("DecodeStepBegin", "DecodeStepEnd"),
    "decode": ("PrefillBegin", "PrefillEnd"),
}
_ENDS = {"prefill": ("PrefillBegin", "PrefillEnd"), "decode": ("DecodeStepBegin", "DecodeStepEnd")}


# --- phases -----------------------------------------------------------------------------------------------------------


def phases_mixed(g: Columns) -> Iterator[Diagnostic]:
    """All nodes are of the graph's phase, so no edge leads into the other."""
    yield from g.tell("PD426", g.phases.where(lambda v: v != g.phase), lambda n: f"phase {g.phases[n]}", g.phase)
    strange = g.is_op(*_OTHERS.get(g.phase, ()))
    yield from g.tell("PD426", strange, lambda n: f"`{g.op[n]}` in {g.phase}", f"nodes of {g.phase}")


def phase_nodes(g: Columns) -> Iterator[Diagnostic]:
    """Every micro-batch begins and ends, in decode at every step."""
    trips = np.unique(np.stack([g.step, g.microbatch], axis=1), axis=0)
    for op in _ENDS.get(g.phase, ()):
        mask = g.is_op(op)
        there = {tuple(t) for t in np.stack([g.step[mask], g.microbatch[mask]], axis=1).tolist()}
        missing = [t for t in trips.tolist() if tuple(t) not in there]
        for step, microbatch in missing[:MAX_TOLD]:
            yield Diagnostic("PD427", f"step {step}, micro-batch {microbatch} has no {op}", None, f"a {op} for each")


# --- KV cache ---------------------------------------------------------------------------------------------------------


def read_after_write(g: Columns) -> Iterator[Diagnostic]:
    """A read follows the write of its own trip."""
    fed = g.degree_in(g.is_op("KVWrite"), (g.trip,))
    yield from g.tell(
        "PD411", g.is_op("KVRead") & (fed == 0), "reads what has not been written", "an edge from its KVWrite"
    )


def stays_with_owners(g: Columns) -> Iterator[Diagnostic]:
    """A version is written, read and carried on by the same ranks."""
    source, target = g.flow
    cache = g.is_op("KVWrite", "KVRead")
    away = cache[source] & cache[target] & (g.devices.codes[source] != g.devices.codes[target])
    away &= g.is_op("KVWrite")[source]
    nodes = np.unique(target[away])
    yield from g.tell("PD410", nodes, "takes the KV cache of other ranks", "the ranks that wrote it")


def one_writer(g: Columns) -> Iterator[Diagnostic]:
    """A slot of the cache is written once."""
    writes = np.flatnonzero(g.is_op("KVWrite"))
    slot = g.key(g.trip, g.devices.codes)[writes]
    _, first = np.unique(slot, return_index=True)
    again = np.delete(writes, first)
    yield from g.tell("PD428", again, "writes a slot that is written already", "one writer")


def append_only(g: Columns) -> Iterator[Diagnostic]:
    """A write appends to what the chunk or step before it left."""
    writes = g.is_op("KVWrite")
    source, target = g.flow
    both = writes[source] & writes[target]
    place = g.key(g.layer, g.microbatch, g.devices.codes)
    turn = g.step + g.chunk
    kept = both & (place[source] == place[target]) & (turn[source] + 1 == turn[target])
    chained = np.bincount(target[kept], minlength=len(g)) > 0
    yield from g.tell(
        "PD429", writes & (turn > 0) & ~chained, "does not append to the version before", "an edge from it"
    )
    backwards = np.unique(target[both & ~kept])
    yield from g.tell("PD429", backwards, "appends to another version than the one before", "the version before")


def kv_length(g: Columns) -> Iterator[Diagnostic]:
    """The cache holds as many tokens as the context: those before and the new ones."""
    if g.detail is None:
        return

    def wrong(detail: dict) -> bool:  # type: ignore[type-arg]
        if len(detail["inputs"]) < 2 or not detail["outputs"]:
            return True
        before, new, after = detail["inputs"][0], detail["inputs"][1], detail["outputs"][0]
        sizes = [
            before["global_dims"].get("context"),
            new["global_dims"].get("seq"),
            after["global_dims"].get("context"),
        ]
        return None in sizes or sizes[0] + sizes[1] != sizes[2]

    writes = g.is_op("KVWrite")
    yield from g.tell("PD430", writes & g.detail.where(wrong), "its length is not the context", "past + new tokens")
    if g.phase == "prefill" and g.tokens is not None and writes.any():
        length = g.detail.number(lambda v: max((t["global_dims"].get("context", 0) for t in v["outputs"]), default=0))
        most = int(length[writes].max())
        if most != g.tokens:
            node = np.flatnonzero(writes)[np.argmax(length[writes])]
            yield from g.tell(
                "PD430", np.array([node]), f"the cache ends with {most} tokens", f"{g.tokens} prompt tokens"
            )


# --- decode -----------------------------------------------------------------------------------------------------------


def step_order(g: Columns) -> Iterator[Diagnostic]:
    """A decode step begins after the end of the step before it, and nothing leads back to an earlier step."""
    source, target = g.flow
    back = np.unique(target[g.step[source] > g.step[target]])
    yield from g.tell("PD431", back, "takes a value of a later step", "values of this step or earlier ones")
    if g.phase != "decode":
        return
    ends, sends, receives = g.is_op("DecodeStepEnd"), g.is_op("Send"), g.is_op("Recv")
    before = (g.step[source] + 1 == g.step[target]) & (g.microbatch[source] == g.microbatch[target])
    direct = np.bincount(target[ends[source] & before], minlength=len(g)) > 0
    arrived = np.zeros(len(g), dtype=np.bool_)
    arrived[target[sends[source] & receives[target] & before]] = True
    through = np.bincount(target[arrived[source]], minlength=len(g)) > 0
    late = g.is_op("DecodeStepBegin") & (g.step > 0) & ~direct & ~through
    yield from g.tell("PD431", late, "does not wait for the end of the step before", "an edge from its DecodeStepEnd")


def one_token(g: Columns) -> Iterator[Diagnostic]:
    """A decode step has one token per sequence, on one rank or another, never cut."""
    if g.phase != "decode" or g.detail is None:
        return

    def more(detail: dict) -> bool:  # type: ignore[type-arg]
        return any(
            t["global_dims"].get("seq", 1) != 1 or "seq" in t["placement"]
            for key in ("inputs", "outputs")
            for t in detail[key]
        )

    yield from g.tell("PD432", g.detail.where(more), "several tokens per sequence", "one token per sequence")


# --- stages -----------------------------------------------------------------------------------------------------------


def layers_once(g: Columns) -> Iterator[Diagnostic]:
    """Every layer is there, whole, on one stage; stages hold runs of layers in their order."""
    inside = (g.layer >= 0) & ~g.is_op("Send", "Recv")
    pairs = np.unique(np.stack([g.layer[inside], g.stage[inside]], axis=1), axis=0)
    layer, stage = pairs[:, 0], pairs[:, 1]
    if g.layers is not None:
        missing = np.setdiff1d(np.arange(g.layers), layer)
        if len(missing):
            yield Diagnostic("PD412", f"no node of layers {missing[:MAX_TOLD].tolist()}", None, f"{g.layers} layers")
        beyond = layer[layer >= g.layers]
        if len(beyond):
            yield Diagnostic(
                "PD412", f"layers {beyond[:MAX_TOLD].tolist()} beyond the model", None, f"{g.layers} layers"
            )
    several = layer[1:][layer[1:] == layer[:-1]]
    for number in np.unique(several)[:MAX_TOLD].tolist():
        on = stage[layer == number].tolist()
        yield Diagnostic("PD412", f"layer {number} stands on stages {on}", None, "whole layers, each on one stage")


def stages_contiguous(g: Columns) -> Iterator[Diagnostic]:
    """A later layer is never on an earlier stage, and no stage is without layers."""
    inside = (g.layer >= 0) & ~g.is_op("Send", "Recv")
    order = np.lexsort((g.stage[inside], g.layer[inside]))
    stage = g.stage[inside][order]
    nodes = np.flatnonzero(inside)[order]
    back = nodes[1:][(stage[1:] < stage[:-1]) & (g.layer[nodes[1:]] > g.layer[nodes[:-1]])]
    yield from g.tell("PD435", back, lambda n: f"stage {g.stage[n]} behind a later one", "contiguous stages")
    if g.mesh is not None:
        empty = np.setdiff1d(np.arange(g.mesh.pp), stage)
        if len(empty):
            yield Diagnostic("PD435", f"stages {empty[:MAX_TOLD].tolist()} have no layers", None, f"{g.mesh.pp} stages")


def stage_crossed(g: Columns) -> Iterator[Diagnostic]:
    """Stages are crossed from a send to a receive only."""
    source, target = g.flow
    crossing = g.stage[source] != g.stage[target]
    ours = g.is_op("Send")[source] & g.is_op("Recv")[target]
    nodes = np.unique(target[crossing & ~ours])
    yield from g.tell("PD408", nodes, "takes a value of another stage without send and receive", "Send -> Recv")


def stage_skipped(g: Columns) -> Iterator[Diagnostic]:
    """A send goes to the next stage; only the sampled ids go from the last to the first."""
    source, target = g.flow
    stages = g.mesh.pp if g.mesh is not None else int(g.stage.max(initial=0)) + 1
    step = g.stage[target] - g.stage[source]
    ids = (g.stage[source] == stages - 1) & (g.stage[target] == 0) & (g.step[target] == g.step[source] + 1)
    wrong = np.unique(target[(step != 0) & (step != 1) & ~ids])
    yield from g.tell("PD436", wrong, lambda n: f"stage {g.stage[n]} takes from a stage that is not before it")


def sends_paired(g: Columns) -> Iterator[Diagnostic]:
    """Every send has one receive, every receive one send."""
    source, target = _links(g)
    out = np.bincount(source, minlength=len(g))
    into = np.bincount(target, minlength=len(g))
    yield from g.tell("PD409", g.is_op("Send") & (out != 1), lambda n: f"{out[n]} receives", "one receive")
    yield from g.tell("PD409", g.is_op("Recv") & (into != 1), lambda n: f"{into[n]} sends", "one send")


def _links(g: Columns) -> tuple[Ints, Ints]:
    source, target = g.flow
    kept = g.is_op("Send")[source] & g.is_op("Recv")[target]
    return source[kept], target[kept]


def same_order(g: Columns) -> Iterator[Diagnostic]:
    """Two ranks send and receive what passes between them in the same order."""
    source, target = _links(g)
    line = g.key(g.devices.codes[source], g.devices.codes[target])
    order = np.lexsort((source, line))
    line, arrival = line[order], target[order]
    crossed = (line[1:] == line[:-1]) & (arrival[1:] < arrival[:-1])
    yield from g.tell("PD437", arrival[1:][crossed], "received before what was sent earlier", "the order of the sends")


def transfers(g: Columns) -> Iterator[Diagnostic]:
    """Where one layer's cache is transferred, every layer's is."""
    moved = g.is_op("KVTransfer")
    if not moved.any():
        return
    cached = np.unique(g.layer[g.is_op("KVWrite")])
    for layer in np.setdiff1d(cached, g.layer[moved])[:MAX_TOLD].tolist():
        yield Diagnostic(
            "PD433", f"the KV cache of layer {layer} is not transferred", None, "a transfer for each layer"
        )
