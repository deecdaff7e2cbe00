"""What a condition file leaves out: taken from the catalogue or a usual value, stated, with how much depends on it."""

from __future__ import annotations

import math
import re
from typing import Any

from ...compiler.diagnostics import Severity
from ...compiler.spec import ModelSpec, Pack
from ...compiler.spec.catalog import CatalogEntry, accelerator, accelerator_names, model, model_names
from .._units import BANDWIDTH, show
from ._claims import Claim, Claims

__all__ = ["complete"]

_VOCABULARY = 32_000
_TOP_K = 2
_OUTPUT = 128
_GPUS_PER_NODE = 8
_PLAIN = ("none", False, 0)
"""Values that say that a model lacks something; they need no assumption."""
_FROM_CATALOGUE = (
    "vocab", "ffn", "max_context", "norm_eps", "attention.kv_heads", "attention.head_dim", "attention.qk_norm",
    "attention.bias", "attention.sinks", "moe.top_k", "moe.ffn", "moe.shared",
)  # fmt: skip


def complete(claims: Claims, stem: str, pack: Pack | None = None) -> None:
    """Add what is missing and can be assumed; what cannot stays missing.

    Args:
        claims: Statements of the file.
        stem: The file's name, which stands in for the model's.
        pack: Knowledge pack whose accelerators are known.
    """
    if claims.get("model.name") is None:
        claims.by_path.pop("model.name", None)
        claims.assume("model.name", stem, "the file names no model")
    _like_a_known_model(claims)
    _model(claims)
    _cluster(claims, pack)
    _workload(claims)


def _like_a_known_model(claims: Claims) -> None:
    """Fields of the catalogued model of that name, where its depth and width are the file's."""
    known = _known_model(str(claims.get("model.name")))
    if known is None:
        return
    name, spec = known
    size = (spec.layers.count, spec.hidden)
    if (claims.get("model.layers.count") or size[0], claims.get("model.hidden") or size[1]) != size:
        return
    for path in _FROM_CATALOGUE:
        full, value = f"model.{path}", _field(spec, path)
        if value is None or (full not in claims.by_path and value in _PLAIN):
            continue
        if full not in claims.by_path:
            claims.assume(full, value, f"as the catalogue's {name} has it")
        elif claims.get(full) != value:
            message = f"`{full}` is {claims.get(full)}; the catalogue's {name} has {value}"
            help_text = f"if the published model is meant, write {value}"
            claims.report("PD019", message, claims.by_path[full].line, None, help_text, Severity.NOTE)


def _known_model(name: str) -> tuple[str, ModelSpec] | None:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    fitting = [n for n in model_names() if len(plain) >= 6 and re.sub(r"[^a-z0-9]", "", n).startswith(plain)]
    return (fitting[0], model(fitting[0])) if len(fitting) == 1 else None


def _field(spec: Any, path: str) -> Any:
    for part in path.split("."):
        spec = getattr(spec, part, None)
    return spec


def _model(claims: Claims) -> None:
    get = claims.get
    heads, hidden = get("model.attention.heads"), get("model.hidden")
    kind = get("model.attention.kind")
    if kind is None and heads:
        kind = "gqa" if get("model.attention.kv_heads") not in (None, heads) else "mha"
        claims.assume("model.attention.kind", kind, "the file names no kind of attention")
    if kind == "mha" and heads:
        claims.by_path.setdefault("model.attention.kv_heads", claims.by_path["model.attention.heads"])
    if kind in ("mqa", "mla") and get("model.attention.kv_heads") is None:
        claims.assume("model.attention.kv_heads", 1, f"{kind} has one")
    if kind == "gqa" and heads and get("model.attention.kv_heads") is None:
        count = math.gcd(heads, 8)
        claims.assume("model.attention.kv_heads", count, "usual for grouped-query attention", "KV cache in proportion")
    if get("model.attention.head_dim") is None and heads and hidden and hidden % heads == 0 and kind != "mla":
        claims.assume("model.attention.head_dim", hidden // heads, "hidden / heads", "attention in proportion")
    if (experts := get("model.moe.experts")) and get("model.moe.top_k") is None:
        why = "the file has no top-k"
        claims.assume("model.moe.top_k", min(_TOP_K, experts), why, "expert FLOPs and traffic in proportion")
    if get("model.vocab") is None:
        share = ""
        if hidden and get("model.layers.count"):
            share = f"embedding and LM head: {2 * _VOCABULARY * hidden / 1e9:.2f}B parameters"
        claims.assume("model.vocab", _VOCABULARY, "the file has no vocabulary", share)
    if get("model.dtype") is None:
        claims.assume("model.dtype", "bf16", "the file has no precision", "weights and their traffic in proportion")
    if get("model.kv_dtype") is None:
        why = "the file has no format of the KV cache; the usual one"
        claims.assume("model.kv_dtype", "bf16", why, "KV cache and its traffic in proportion")


def _cluster(claims: Claims, pack: Pack | None) -> None:
    chip = "cluster.accelerator"
    catalogued = claims.get(f"{chip}.catalog")
    if claims.get(f"{chip}.name") is None:
        if catalogued:
            claims.by_path[f"{chip}.name"] = claims.by_path[f"{chip}.catalog"]
        elif any(claims.under(chip)):
            claims.assume(f"{chip}.name", "unnamed", "the file names no accelerator")
    entry = accelerator(catalogued, pack) if catalogued in accelerator_names(pack) else None
    available = claims.get("gpus.available")
    if claims.get("cluster.gpus_per_node") is None:
        per_node = entry.gpus_per_node if entry else _GPUS_PER_NODE
        whole = available is None or available % per_node == 0
        per_node = per_node if whole else math.gcd(available, per_node)
        why = "the file has no GPUs per node"
        claims.assume("cluster.gpus_per_node", per_node, why, "groups beyond it use slow links")
    if "cluster.nodes" not in claims.by_path:
        if available is not None:
            nodes = available // claims.get("cluster.gpus_per_node")
            claims.by_path["cluster.nodes"] = Claim("cluster.nodes", nodes, claims.by_path["gpus.available"].line)
        else:
            claims.assume("cluster.nodes", None, "the file has no GPU count: as many as wanted")
    if entry is None:
        _links(claims, pack)


def _links(claims: Claims, pack: Pack | None) -> None:
    """Links of a chip that the catalogue does not have: those of the nearest one that it has."""
    nearest = _nearest_chip(claims, pack)
    if nearest is None:
        return
    for name, link in (("scale_up", nearest.scale_up), ("scale_out", nearest.scale_out)):
        path = f"cluster.{name}.bandwidth"
        if claims.get(path) is None and link.bandwidth is not None:
            why = f"the file has no {name} link: as {nearest.name}, the nearest chip in compute, memory and bandwidth"
            claims.assume(path, link.bandwidth, why, "communication time inversely", show(link.bandwidth, BANDWIDTH))


def _nearest_chip(claims: Claims, pack: Pack | None) -> CatalogEntry | None:
    """The catalogue's chip at the smallest distance in the logarithms of the figures that the file gives."""
    chip = "cluster.accelerator"
    peaks = [c.value for _, c in claims.under(f"{chip}.compute") if isinstance(c.value, (int, float)) and c.value > 0]
    memory, rate = (claims.get(f"{chip}.{k}") for k in ("memory", "bandwidth"))
    entries = [accelerator(n, pack) for n in accelerator_names(pack)]
    entries = [e for e in entries if e.scale_up.bandwidth]

    def distance(entry: CatalogEntry) -> float:
        pairs = [(memory, entry.memory), (rate, entry.bandwidth), *((p, entry.peaks["bf16"]) for p in peaks[:1])]
        return sum(math.log(own / its) ** 2 for own, its in pairs if isinstance(own, (int, float)) and own > 0)

    return min(entries, key=distance) if peaks or memory or rate else None


def _workload(claims: Claims) -> None:
    pair = claims.get("workload.sequence")
    given, made = claims.get("workload.input"), claims.get("workload.output")
    if given is None and isinstance(pair, tuple):
        low, high = pair
        output = made or min(low, max(high - 1, 1))
        why = f"of the longest sequence ({high} tokens)"
        if made is None:
            told = f"{why} the shortest length named is taken as generated"
            claims.assume("workload.output", output, told, "TPOT: little")
        prompt = max(high - output, 1)
        claims.assume("workload.input", prompt, f"{why} the rest is prompt", "prefill: more than linearly")
    elif made is None and given is not None:
        claims.assume("workload.output", _OUTPUT, "the file has no output length", "KV cache: input + output tokens")
