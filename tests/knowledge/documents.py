"""Changes of the JSON documents of compiled graphs, one per line.

``NODES: KEY = JSON`` sets a field, ``NODES: remove`` takes nodes out with their edges, ``NODES -> NODES: remove`` takes
edges out, ``NODES -> NODES: KIND`` gives edges another kind, or adds one where there is none. NODES is a name, perhaps
``*`` for all, with ``layer N``, ``step N`` or ``shard N`` (the N-th of those that are left) behind it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paradag.compiler.driver import compile as compile_strategy
from paradag.compiler.outputs import write_outputs

EXAMPLES = Path(__file__).resolve().parents[2] / "ir_examples"

_REST = (
    'model "small" {{ layers {}  hidden 512  vocab 1000  ffn 1024\n'
    "    attention gqa {{ heads 8  kv_heads 2  head_dim 64 }} }}\n"
    "cluster {{ accelerator h100_sxm  nodes 1 of 4 }}\n"
    "workload {{ batch 4  input 128 tokens  output 16 tokens }}\n"
)

SMALL = {
    "small-sp2-tp2": (_REST.format(2) + "strategy prefill { sp 2 -> tp 2 }\n"),
    "small-pp4": (_REST.format(4) + "strategy { pp 4  microbatches 2 }\n"),
    "small-pools": (_REST.format(4) + "strategy prefill { tp 2  pools separate }\nstrategy decode { tp 2 }\n"),
    "small-dp2-tp2": (_REST.format(2) + "strategy { dp 2 -> tp 2 }\n"),
}
"""Bases where no shipped example has what a rule looks at."""

_SELECTOR = re.compile(r"(\S+)((?: (?:layer|step|shard) \d+)*)")


@cache
def document(base: str) -> str:
    """The JSON document of ``NAME.PHASE``, an example or one of :data:`SMALL`; decode has two steps."""
    name, _, phase = base.rpartition(".")
    source = SMALL.get(name) or EXAMPLES / f"{name}.strat"
    compiled = compile_strategy(source, phase=phase, steps=2 if phase == "decode" else 1)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        (path,) = write_outputs(compiled, Path(folder), ["json"]).paths
        return path.read_text(encoding="utf-8")


def changed_document(base: str, changes: str) -> bytes:
    """The document with the changes made and nodes numbered anew."""
    data = json.loads(document(base))
    for line in filter(None, map(str.strip, changes.splitlines())):
        where, what = line.split(": ", 1)
        if " -> " in where:
            _edges(data, *where.split(" -> "), what)
        else:
            _nodes(data, where, what)
    return json.dumps(data).encode()


def _chosen(data: dict[str, Any], where: str) -> list[dict[str, Any]]:
    match = _SELECTOR.fullmatch(where)
    assert match, where
    found = [n for n in data["nodes"] if match[1] in {n["name"], "*"}]
    for key, value in re.findall(r"(\w+) (\d+)", match[2]):
        if key == "shard":
            found = found[int(value) : int(value) + 1]
        else:
            found = [n for n in found if (n["layer"] if key == "layer" else n["coords"].get("step", 0)) == int(value)]
    assert found, f"no node {where}; names: {sorted({n['name'] for n in data['nodes']})}"
    return found


def _nodes(data: dict[str, Any], where: str, what: str) -> None:
    nodes = _chosen(data, where)
    if what == "remove":
        gone = {n["id"] for n in nodes}
        data["nodes"] = [n for n in data["nodes"] if n["id"] not in gone]
        number = {n["id"]: i for i, n in enumerate(data["nodes"])}
        for node in data["nodes"]:
            node["id"] = number[node["id"]]
        kept = [e for e in data["edges"] if e["source"] in number and e["target"] in number]
        data["edges"] = [{**e, "source": number[e["source"]], "target": number[e["target"]]} for e in kept]
        return
    path, value = what.split(" = ", 1)
    *outer, last = (int(k) if k.isdigit() else k for k in path.split("."))
    for node in nodes:
        target: Any = node
        for key in outer:
            target = target[key]
        target[last] = json.loads(value)


def _edges(data: dict[str, Any], source: str, target: str, what: str) -> None:
    if target == "nowhere":
        data["edges"].append({"source": _chosen(data, source)[0]["id"], "target": 10**6, "kind": what})
        return
    ends = [{n["id"] for n in _chosen(data, where)} for where in (source, target)]
    hits = [e for e in data["edges"] if e["source"] in ends[0] and e["target"] in ends[1]]
    if what == "remove":
        assert hits, (source, target)
        data["edges"] = [e for e in data["edges"] if e not in hits]
    elif hits:
        for edge in hits:
            edge["kind"] = what
    else:
        data["edges"].append({"source": min(ends[0]), "target": min(ends[1]), "kind": what})
