"""Damage to documents: structure, tensors, phases and the KV cache, as another tool might write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from paradag.compiler.ir.graph import Phase
from paradag.tests.mutation.damage import Damage, NoPlace, pick

Document = dict[str, Any]
Row = dict[str, Any]
Apply = Callable[[Document, random.Random], Document]
DECODE: tuple[Phase, ...] = ("decode",)
PREFILL: tuple[Phase, ...] = ("prefill",)


def kind(
    name: str,
    codes: str,
    change: Callable[[Document, random.Random], None],
    *,
    phases: tuple[Phase, ...] = (),
    must: str = "",
) -> Damage[Document]:
    """A kind of damage; it changes the document that it is given."""

    def apply(document: Document, rng: random.Random) -> Document:
        change(document, rng)
        return document

    wanted = phases or ("prefill", "decode")
    return Damage(name, frozenset(codes.split()), apply, False, wanted, frozenset(must.split()))


# --- helpers ----------------------------------------------------------------------------------------------------------


def rows(doc: Document, *ops: str) -> list[Row]:
    return [n for n in doc["nodes"] if not ops or n["op"] in ops]


def flow(doc: Document, source: Iterable[str] = (), target: Iterable[str] = ()) -> list[Row]:
    """Edges that carry something, between the given operators."""
    op = [n["op"] for n in doc["nodes"]]
    a, b = set(source), set(target)
    return [
        e
        for e in doc["edges"]
        if e["kind"] != "order" and (not a or op[e["source"]] in a) and (not b or op[e["target"]] in b)
    ]


def cut(doc: Document, gone: Iterable[Row]) -> None:
    out = {id(e) for e in gone}
    doc["edges"] = [e for e in doc["edges"] if id(e) not in out]


def without(doc: Document, gone: set[int], *, joined: bool = False) -> None:
    """Leave nodes out; ``joined`` connects what came before each with what came after."""
    if joined:
        known = {(e["source"], e["target"]) for e in doc["edges"]}
        for node in gone:
            before = [e["source"] for e in doc["edges"] if e["target"] == node]
            after = [e for e in doc["edges"] if e["source"] == node]
            new = {(a, e["target"]): e["kind"] for a in before for e in after}
            doc["edges"] += [{"source": a, "target": b, "kind": k} for (a, b), k in new.items() if (a, b) not in known]
            known |= set(new)
    number = {n["id"]: i for i, n in enumerate(r for r in doc["nodes"] if r["id"] not in gone)}
    doc["nodes"] = [{**n, "id": number[n["id"]]} for n in doc["nodes"] if n["id"] in number]
    doc["edges"] = [
        {**e, "source": number[e["source"]], "target": number[e["target"]]}
        for e in doc["edges"]
        if e["source"] in number and e["target"] in number
    ]


def trip(row: Row) -> tuple[Any, ...]:
    c = row["coords"]
    return (row["layer"], c["step"], c["microbatch"], c["chunk"])


# --- structure --------------------------------------------------------------------------------------------------------


def _cycle(doc: Document, rng: random.Random) -> None:
    edge = pick(rng, flow(doc))
    doc["edges"].append({"source": edge["target"], "target": edge["source"], "kind": "data"})


def _nowhere(doc: Document, rng: random.Random) -> None:
    pick(rng, doc["edges"])["target"] = len(doc["nodes"]) + rng.randrange(10)


def _same_id(doc: Document, rng: random.Random) -> None:
    first, second = rng.sample(doc["nodes"], 2)
    first["id"] = second["id"]


def _unknown_op(doc: Document, rng: random.Random) -> None:
    pick(rng, doc["nodes"])["op"] = "Telepathy"


def _unknown_edge(doc: Document, rng: random.Random) -> None:
    pick(rng, doc["edges"])["kind"] = "wish"


def _no_successor(doc: Document, rng: random.Random) -> None:
    taken = {e["source"] for e in flow(doc)}
    node = pick(
        rng, [n["id"] for n in doc["nodes"] if n["id"] in taken and n["op"] not in {"PrefillEnd", "DecodeStepEnd"}]
    )
    cut(doc, [e for e in flow(doc) if e["source"] == node])


def _no_predecessor(doc: Document, rng: random.Random) -> None:
    node = pick(rng, sorted({e["target"] for e in flow(doc)}))
    cut(doc, [e for e in flow(doc) if e["target"] == node])


def _shard_gone(doc: Document, rng: random.Random) -> None:
    calls: dict[Any, list[int]] = {}
    for n in doc["nodes"]:
        if n["op"] != "Expert":
            calls.setdefault((n["name"], trip(n)), []).append(n["id"])
    without(doc, {rng.choice(pick(rng, [c for c in calls.values() if len(c) > 1]))}, joined=True)


def _shard_twice(doc: Document, rng: random.Random) -> None:
    pairs = [
        (a, b)
        for a, b in zip(doc["nodes"], doc["nodes"][1:], strict=False)
        if (a["name"], trip(a)) == (b["name"], trip(b)) and a["op"] not in {"Expert"}
    ]
    first, second = pick(rng, pairs)
    second["devices"], second["coords"] = first["devices"], first["coords"]


# --- tensors ----------------------------------------------------------------------------------------------------------


def _dims_missing(doc: Document, rng: random.Random) -> None:
    node = pick(rng, [n for n in doc["nodes"] if n["kind"] == "compute"])
    tensor = rng.choice([*node["inputs"], *node["outputs"]])
    tensor["dims"], tensor["global_dims"], tensor["placement"] = {}, {}, {}


def _stale_shape(doc: Document, rng: random.Random) -> None:
    node = pick(rng, [n for n in doc["nodes"] if n["inputs"] and n["kind"] == "compute"])
    tensor = rng.choice(node["inputs"])
    dim = pick(rng, [d for d, size in tensor["global_dims"].items() if size])
    tensor["global_dims"][dim] *= 2
    if dim not in tensor["placement"]:
        tensor["dims"][dim] = tensor["global_dims"][dim]


def _local_shape(doc: Document, rng: random.Random) -> None:
    places = [
        (t, d)
        for n in doc["nodes"]
        if n["kind"] == "compute"
        for t in n["outputs"]
        for d in t["dims"]
        if d not in {"rows", "group"}
    ]
    tensor, dim = pick(rng, places)
    tensor["dims"][dim] = tensor["global_dims"][dim] + 1


def _dtype(doc: Document, rng: random.Random) -> None:
    taken = {e["target"] for e in flow(doc)}
    node = pick(rng, [n for n in doc["nodes"] if len(n["inputs"]) == 1 and n["id"] in taken])
    node["inputs"][0]["dtype"] = "fp64"


def _two_tokens(doc: Document, rng: random.Random) -> None:
    tensor = pick(rng, [t for n in doc["nodes"] for t in n["outputs"] if "seq" in t["global_dims"]])
    tensor["global_dims"]["seq"] = tensor["dims"]["seq"] = 2


# --- phases and KV ----------------------------------------------------------------------------------------------------


def _other_phase(doc: Document, rng: random.Random) -> None:
    node = pick(rng, doc["nodes"])
    node["phase"] = "decode" if node["phase"] == "prefill" else "prefill"


_TWIN = {
    "PrefillBegin": "DecodeStepBegin", "PrefillEnd": "DecodeStepEnd",
    "DecodeStepBegin": "PrefillBegin", "DecodeStepEnd": "PrefillEnd",
}  # fmt: skip


def _cross_phase(doc: Document, rng: random.Random) -> None:
    node = pick(rng, rows(doc, *_TWIN))
    node["op"] = _TWIN[node["op"]]


def _phase_end_gone(doc: Document, rng: random.Random) -> None:
    node = pick(rng, rows(doc, "PrefillEnd", "DecodeStepEnd"))
    mine = trip(node)
    without(doc, {n["id"] for n in rows(doc, node["op"]) if trip(n) == mine})


def _kv_edge(doc: Document, rng: random.Random) -> None:
    cut(doc, [pick(rng, flow(doc, ["KVWrite"], ["KVRead"]))])


def _kv_swapped(doc: Document, rng: random.Random) -> None:
    """The read stands where the write stood, and the other way round."""
    edge = pick(rng, flow(doc, ["KVWrite"], ["KVRead"]))
    first, second = doc["nodes"][edge["source"]], doc["nodes"][edge["target"]]
    first["op"], second["op"] = second["op"], first["op"]


def _two_writers(doc: Document, rng: random.Random) -> None:
    pick(rng, rows(doc, "KVRead"))["op"] = "KVWrite"


def _not_appended(doc: Document, rng: random.Random) -> None:
    cut(doc, [pick(rng, flow(doc, ["KVWrite"], ["KVWrite"]))])


def _kv_moved(doc: Document, rng: random.Random) -> None:
    reads = rows(doc, "KVRead")
    pairs = [(a, b) for a in reads for b in reads if a["devices"] != b["devices"]][:200]
    first, second = pick(rng, pairs)
    first["devices"] = second["devices"]


def _kv_length(doc: Document, rng: random.Random) -> None:
    tensor = pick(rng, rows(doc, "KVWrite"))["outputs"][0]
    tensor["global_dims"]["context"] += 1
    if "context" not in tensor["placement"]:
        tensor["dims"]["context"] += 1


def _transfer_gone(doc: Document, rng: random.Random) -> None:
    layers = {n["layer"] for n in rows(doc, "KVTransfer")}
    if len(layers) < 2:
        raise NoPlace
    gone = rng.choice(sorted(layers))
    without(doc, {n["id"] for n in rows(doc, "KVTransfer") if n["layer"] == gone})


def _step_free(doc: Document, rng: random.Random) -> None:
    """A later step no longer waits for the one before."""
    later = [n["id"] for n in rows(doc, "DecodeStepBegin") if n["coords"]["step"]]
    node = pick(rng, later)
    cut(doc, [e for e in flow(doc) if e["target"] == node])


def _step_reordered(doc: Document, rng: random.Random) -> None:
    """Two steps exchange their numbers."""
    steps = sorted({n["coords"]["step"] for n in doc["nodes"]})
    if len(steps) < 2:
        raise NoPlace
    first, second = rng.sample(steps, 2)
    swap = {first: second, second: first}
    for node in doc["nodes"]:
        node["coords"]["step"] = swap.get(node["coords"]["step"], node["coords"]["step"])


STATE_KINDS: tuple[Damage[Document], ...] = (
    kind("cycle", "PD015", _cycle),
    kind("edge to a node that does not exist", "PD423", _nowhere),
    kind("id given twice", "PD015", _same_id),
    kind("unknown operator", "PD422", _unknown_op),
    kind("unknown kind of edge", "PD010", _unknown_edge),
    kind("node without a successor", "PD415", _no_successor),
    kind("node without a predecessor", "PD415 PD411", _no_predecessor),
    kind("shard missing", "PD443", _shard_gone, must="ep tp"),
    kind("shard twice", "PD443", _shard_twice, must="ep tp"),
    kind("dimensions missing", "PD425", _dims_missing),
    kind("stale shape of an operand", "PD403", _stale_shape),
    kind("wrong local shape", "PD403", _local_shape),
    kind("wrong number format", "PD403", _dtype),
    kind("two tokens in a decode step", "PD432", _two_tokens, phases=DECODE),
    kind("edge into the other phase", "PD010", _other_phase),
    kind("phase node of the other phase", "PD426", _cross_phase),
    kind("end of a step missing", "PD427", _phase_end_gone),
    kind("missing KV edge", "PD411", _kv_edge),
    kind("KV read before write", "PD411", _kv_swapped),
    kind("KV slot with two writers", "PD428", _two_writers),
    kind("KV version not appended to", "PD429", _not_appended, phases=PREFILL, must="chunk"),
    kind("KV version of another step", "PD429", _not_appended, phases=DECODE),
    kind("KV cache away from its owners", "PD410", _kv_moved, must="tp ep"),
    kind("KV length not the context", "PD430", _kv_length),
    kind("KV transfer of a layer missing", "PD433", _transfer_gone, must="transfer pp"),
    kind("decode step does not wait", "PD431", _step_free, phases=DECODE),
    kind("decode steps reordered", "PD431", _step_reordered, phases=DECODE),
)
