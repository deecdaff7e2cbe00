"""Damage to documents: pipeline stages, ranks, groups, collectives, experts."""

from __future__ import annotations

import copy
import random
from typing import Any

from paradag.tests.mutation.damage import Damage, NoPlace, pick
from paradag.tests.mutation.document_kinds import PREFILL, Document, Row, cut, flow, kind, rows, trip, without

_MOVES = {"AllReduce", "AllGather", "ReduceScatter", "AllToAll", "Dispatch", "Combine"}

# --- stages -----------------------------------------------------------------------------------------------------------


def _no_receive(doc: Document, rng: random.Random) -> None:
    cut(doc, [pick(rng, flow(doc, ["Send"], ["Recv"]))])


def _shortcut(doc: Document, rng: random.Random) -> None:
    nodes = [n for n in doc["nodes"] if n["kind"] == "compute"]
    known = {(e["source"], e["target"]) for e in doc["edges"]}
    places = [(a, b) for a in nodes[:60] for b in nodes if a["stage"] < b["stage"] and a["id"] < b["id"]][:2000]
    first, second = pick(rng, [p for p in places if (p[0]["id"], p[1]["id"]) not in known])
    doc["edges"].append({"source": first["id"], "target": second["id"], "kind": "data"})


def _stage_skipped(doc: Document, rng: random.Random) -> None:
    links = flow(doc, ["Send"], ["Recv"])
    at = [n["stage"] for n in doc["nodes"]]
    known = {(e["source"], e["target"]) for e in doc["edges"]}
    places = [
        (e, f["target"])
        for e in links
        for f in links
        if at[f["target"]] > at[e["source"]] + 1
        and e["source"] < f["target"]
        and (e["source"], f["target"]) not in known
    ]
    edge, target = pick(rng, places)
    edge["target"] = target


def _links_crossed(doc: Document, rng: random.Random) -> None:
    links = flow(doc, ["Send"], ["Recv"])
    nodes = doc["nodes"]
    line = lambda e: (nodes[e["source"]]["devices"], nodes[e["target"]]["devices"])  # noqa: E731
    pairs = [(a, b) for a in links for b in links if a["source"] < b["source"] and line(a) == line(b)][:500]
    first, second = pick(rng, pairs)
    first["target"], second["target"] = second["target"], first["target"]


def _node_on_other_stage(doc: Document, rng: random.Random) -> None:
    stages = {n["stage"] for n in doc["nodes"]}
    if len(stages) < 2:
        raise NoPlace
    node = pick(rng, [n for n in doc["nodes"] if n["layer"] is not None and n["kind"] == "compute"])
    node["stage"] = rng.choice(sorted(stages - {node["stage"]}))


def _layer_gone(doc: Document, rng: random.Random) -> None:
    layers = sorted({n["layer"] for n in doc["nodes"] if n["layer"] is not None})
    if len(layers) < 2:
        raise NoPlace
    gone, other = rng.sample(layers, 2)
    for node in doc["nodes"]:
        if node["layer"] == gone:
            node["layer"] = other


def _stages_exchanged(doc: Document, rng: random.Random) -> None:
    stages = sorted({n["stage"] for n in doc["nodes"]})
    if len(stages) < 2:
        raise NoPlace
    first, second = rng.sample(stages, 2)
    swap = {first: second, second: first}
    for node in doc["nodes"]:
        node["stage"] = swap.get(node["stage"], node["stage"])


# --- ranks, groups, collectives ---------------------------------------------------------------------------------------


def _device_beyond(doc: Document, rng: random.Random) -> None:
    node = pick(rng, doc["nodes"])
    node["devices"][rng.randrange(len(node["devices"]))] = 1_000_000


def _several(doc: Document) -> list[Row]:
    return [n for n in doc["nodes"] if len(n["devices"]) > 1]


def _rank_missing(doc: Document, rng: random.Random) -> None:
    node = pick(rng, _several(doc))
    node["devices"].pop(rng.randrange(len(node["devices"])))


def _across_stages(doc: Document, rng: random.Random) -> None:
    home = {d: n["stage"] for n in doc["nodes"] for d in n["devices"]}
    node = pick(rng, _several(doc))
    other = [d for d, s in home.items() if s != node["stage"]]
    node["devices"][0] = pick(rng, other)


def _one_rank(doc: Document, rng: random.Random) -> None:
    node = pick(rng, [n for n in _several(doc) if n["kind"] == "collective"])
    node["devices"] = node["devices"][:1]


def _wrong_group(doc: Document, rng: random.Random) -> None:
    """A collective over an axis on which its own groups differ."""
    axes = lambda n: sorted({*n["coords"]} - {"step", "microbatch", "chunk"})  # noqa: E731
    node = pick(rng, [n for n in doc["nodes"] if n["kind"] == "collective" and axes(n)])
    node["group"] = [rng.choice(axes(node))]


def _dp_inside(doc: Document, rng: random.Random) -> None:
    node = pick(rng, [n for n in doc["nodes"] if n["kind"] == "collective"])
    node["group"] = [*node["group"], "dp"]


def _wrong_collective(doc: Document, rng: random.Random) -> None:
    other = {"AllReduce": "AllGather", "AllGather": "AllReduce", "ReduceScatter": "AllReduce"}
    node = pick(rng, rows(doc, *other))
    node["op"] = other[node["op"]]


def _bypassed(doc: Document, node: Row) -> None:
    """Users of all shards of a collective take its operand as it is."""
    mine = [n for n in doc["nodes"] if (n["name"], trip(n)) == (node["name"], trip(node))]
    gone = {n["id"] for n in mine}
    users = {e["target"] for e in flow(doc) if e["source"] in gone}
    for user in users:
        row = doc["nodes"][user]
        row["inputs"] = [
            copy.deepcopy(node["inputs"][0]) if t["name"] == node["outputs"][0]["name"] else t for t in row["inputs"]
        ]
    without(doc, gone, joined=True)


def _reduction_gone(doc: Document, rng: random.Random) -> None:
    _bypassed(doc, pick(rng, [n for n in rows(doc, "AllReduce", "ReduceScatter") if not _ends_block(doc, n)]))


def _ends_block(doc: Document, node: Row) -> bool:
    """Whether the users of a node know its result by another name."""
    name = node["outputs"][0]["name"]
    users = [doc["nodes"][e["target"]] for e in flow(doc) if e["source"] == node["id"]]
    return any(all(t["name"] != name for t in u["inputs"]) for u in users)


def _nothing_to_do(doc: Document, rng: random.Random) -> None:
    node = pick(rng, rows(doc, "AllReduce", "AllGather"))
    node["inputs"] = copy.deepcopy(node["outputs"])


def _gather_gone(doc: Document, rng: random.Random) -> None:
    attended = {e["source"] for e in flow(doc, ["AllGather"], ["Attention"])}
    _bypassed(doc, pick(rng, [n for n in doc["nodes"] if n["id"] in attended]))


def _no_order(doc: Document, rng: random.Random) -> None:
    """Nothing says which of two micro-batches comes first on a stage."""
    nodes = doc["nodes"]

    def turn(n: int) -> tuple[int, ...]:
        c = nodes[n]["coords"]
        return (nodes[n]["stage"], c["microbatch"], c["chunk"], c["step"])

    busy = {turn(n["id"]) for n in nodes if n["op"] in _MOVES and len(n["devices"]) > 1 and n["layer"] is not None}
    between = [
        e
        for e in doc["edges"]
        if e["kind"] == "order"
        and nodes[e["source"]]["coords"]["microbatch"] != nodes[e["target"]]["coords"]["microbatch"]
        and {turn(e["source"]), turn(e["target"])} <= busy
        and turn(e["source"])[0] == turn(e["target"])[0]
        and nodes[e["source"]]["op"] not in {"Send", "KVTransfer"}
    ]
    one = pick(rng, between)
    pair = (turn(one["source"]), turn(one["target"]))
    cut(doc, [e for e in doc["edges"] if e["kind"] == "order" and (turn(e["source"]), turn(e["target"])) == pair])


# --- experts and modules ----------------------------------------------------------------------------------------------


def _experts(doc: Document) -> list[list[Row]]:
    calls: dict[Any, list[Row]] = {}
    for n in rows(doc, "Expert"):
        calls.setdefault((n["name"], trip(n)), []).append(n)
    return [c for c in calls.values() if len(c) > 1]


def _expert_overlaps(doc: Document, rng: random.Random) -> None:
    first, second = rng.sample(pick(rng, _experts(doc)), 2)
    first["devices"] = second["devices"]


def _expert_gone(doc: Document, rng: random.Random) -> None:
    without(doc, {rng.choice(pick(rng, _experts(doc)))["id"]}, joined=True)


def _expert_twice(doc: Document, rng: random.Random) -> None:
    """A shard that holds one slot more than its share."""
    node = rng.choice(pick(rng, _experts(doc)))
    for tensor in node["weights"]:
        tensor["dims"]["slot"] += 1


def _ep_outside(doc: Document, rng: random.Random) -> None:
    pick(rng, rows(doc, "Dispatch", "Expert", "Combine", "Router"))["module"] = "attention"


def _route_edge(doc: Document, rng: random.Random) -> None:
    routers = {n["id"] for n in rows(doc, "Router")}
    edge = pick(rng, [e for e in doc["edges"] if e["source"] in routers and e["kind"] == "route"])
    for e in doc["edges"]:
        if e["source"] == edge["source"] and e["kind"] == "route":
            e["kind"] = "data"


def _combine_gone(doc: Document, rng: random.Random) -> None:
    without(doc, {pick(rng, rows(doc, "Combine"))["id"]}, joined=True)


def _attention_whole(doc: Document, rng: random.Random) -> None:
    node = pick(rng, rows(doc, "Attention"))
    mine = trip(node)
    for n in rows(doc, "Attention"):
        if trip(n) == mine:
            n["op"] = "Linear"


RANK_KINDS: tuple[Damage[Document], ...] = (
    kind("send without receive", "PD409", _no_receive, must="pp"),
    kind("stage crossed without send and receive", "PD408", _shortcut, must="pp"),
    kind("pipeline stage skipped", "PD436", _stage_skipped, must="pp"),
    kind("sends and receives crossed", "PD437 PD015", _links_crossed, must="pp"),
    kind("layer on two stages", "PD412", _node_on_other_stage, must="pp"),
    kind("layer missing", "PD412", _layer_gone),
    kind("stages exchanged", "PD435 PD436", _stages_exchanged, must="pp"),
    kind("device not in the cluster", "PD424", _device_beyond),
    kind("rank missing from a group", "PD447", _rank_missing, must="tp"),
    kind("group across stages", "PD446", _across_stages, must="tp pp"),
    kind("collective of one rank", "PD439", _one_rank, must="tp"),
    kind("wrong group", "PD447 PD407", _wrong_group, must="tp ep"),
    kind("data parallelism inside the graph", "PD434", _dp_inside, must="tp"),
    kind("wrong collective", "PD407", _wrong_collective, must="tp"),
    kind("missing reduction", "PD405", _reduction_gone, must="tp"),
    kind("redundant collective", "PD406", _nothing_to_do, must="tp"),
    kind("sequence shards not gathered", "PD444", _gather_gone, phases=PREFILL, must="sp heads"),
    kind("collectives without an order", "PD438", _no_order, must="tp"),
    kind("experts overlapping", "PD442", _expert_overlaps, must="ep"),
    kind("expert missing", "PD442", _expert_gone, must="ep"),
    kind("expert twice", "PD442", _expert_twice, must="ep"),
    kind("expert parallelism outside MoE", "PD440", _ep_outside, must="ep"),
    kind("routing without its edge", "PD441", _route_edge, must="moe"),
    kind("dispatch without combine", "PD413", _combine_gone, must="ep"),
    kind("attention not in its parts", "PD445", _attention_whole),
)
