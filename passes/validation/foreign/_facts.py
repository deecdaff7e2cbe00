"""Which number a key names: a table from the words of keys to what they measure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from ._json_text import Leaf

__all__ = ["FACTS", "PER_PART", "in_one_part", "is_stage_count", "words_of"]

PER_PART = re.compile(r"^(?:stage|gpu|device|expert|layer|node|rank|group|replica)s?[_-]?\d+$|_\d+$")
"""Keys of one stage, GPU or expert: what stands below them is not the whole strategy's."""


@lru_cache(maxsize=4096)
def words_of(key: str) -> tuple[str, ...]:
    """``tensorParallelSize`` and ``tensor_parallel_size`` as lower-case words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key[:100])
    return tuple(re.findall(r"[a-z]+|\d+", spaced.lower()))


def in_one_part(leaf: Leaf) -> bool:
    return any(PER_PART.search(k.lower()) for k in leaf.keys)


def is_stage_count(leaf: Leaf) -> bool:
    return any(words_of(k)[:1] == ("stage",) for k in leaf.keys[:-1]) and words_of(leaf.keys[-1]) in (
        ("layer", "count"),
        ("num", "layers"),
        ("layers",),
        ("layers", "count"),
    )


def _hardware(leaf: Leaf) -> bool:
    return any(set(words_of(k)) & {"hardware", "environment", "cluster"} for k in leaf.keys[:-1])


def _is_gpus(words: tuple[str, ...]) -> bool:
    counts = {"total", "num", "count", "used", "required", "number", "needed"}
    return (
        bool(set(words) & {"gpus", "gpu", "devices"})
        and bool(set(words) & counts)
        and not set(words) & {"memory", "per", "expert", "experts", "reduction", "parts"}
    )


_Test = Callable[[Leaf, tuple[str, ...]], bool]
FACTS: tuple[tuple[str, _Test], ...] = (
    ("stage_layers", lambda leaf, w: is_stage_count(leaf) or (w == ("layers", "per", "stage") and leaf.in_list)),
    (
        "layers_per_stage",
        lambda leaf, w: w in (("layers", "per", "stage"), ("layers", "per", "pp", "stage")) and not leaf.in_list,
    ),
    (
        "layers",
        lambda leaf, w: (
            w
            in (
                ("layers",),
                ("num", "layers"),
                ("total", "layers"),
                ("n", "layers"),
                ("num", "hidden", "layers"),
                ("layer", "count"),
            )
            and not leaf.in_list
            and not _hardware(leaf)
        ),
    ),
    (
        "experts_per_gpu",
        lambda leaf, w: w in (("experts", "per", "gpu"), ("expert", "per", "gpu"), ("moe", "experts", "per", "gpu")),
    ),
    (
        "experts",
        lambda leaf, w: (
            w
            in (
                ("experts", "per", "layer"),
                ("num", "experts"),
                ("experts",),
                ("expert", "count"),
                ("n", "routed", "experts"),
            )
            and not leaf.in_list
        ),
    ),
    ("kv_heads", lambda leaf, w: "kv" in w and "heads" in w and not {"per", "bytes"} & set(w)),
    ("heads_per_gpu", lambda leaf, w: "heads" in w and "per" in w and bool({"gpu", "tp", "rank"} & set(w))),
    (
        "heads",
        lambda leaf, w: (
            w
            in (
                ("heads",),
                ("attention", "heads"),
                ("num", "heads"),
                ("num", "attention", "heads"),
                ("mha", "heads"),
                ("n", "heads"),
            )
        ),
    ),
    ("gpus_per_stage", lambda leaf, w: w == ("gpus", "per", "stage")),
    ("available", lambda leaf, w: set(w) == {"gpus", "available"} or set(w) == {"available", "gpu", "count"}),
    ("cluster", lambda leaf, w: _is_gpus(w) and _hardware(leaf)),
    ("gpus", lambda leaf, w: (_is_gpus(w) or w == ("world", "size")) and not leaf.in_list),
    ("memory_per_gpu_gb", lambda leaf, w: "memory" in w and "per" in w and "gpu" in w and not {"kv", "cache"} & set(w)),
    (
        "capacity_gb",
        lambda leaf, w: (
            w
            in (
                ("gpu", "memory"),
                ("gpu", "memory", "gb"),
                ("single", "gpu", "memory"),
                ("memory", "gb"),
                ("vram", "gb"),
                ("single", "card", "memory"),
                ("hbm", "gb"),
            )
            and not in_one_part(leaf)
        ),
    ),
    (
        "weights_gb",
        lambda leaf, w: (
            w
            in (
                ("weights", "gb"),
                ("model", "weights", "gb"),
                ("weight", "memory", "gb"),
                ("weights", "memory", "gb"),
                ("model", "size", "gb"),
                ("total", "weights", "gb"),
            )
        ),
    ),
    (
        "parameters_b",
        lambda leaf, w: (
            w
            in (
                ("parameters",),
                ("total", "parameters"),
                ("num", "parameters"),
                ("model", "parameters"),
                ("params",),
                ("parameter", "count"),
            )
        ),
    ),
    (
        "utilization",
        lambda leaf, w: (
            w in (("memory", "utilization"), ("memory", "utilization", "percent"), ("gpu", "memory", "utilization"))
        ),
    ),
    (
        "headroom",
        lambda leaf, w: (
            w in (("available", "headroom", "percent"), ("headroom", "percent"), ("memory", "headroom", "percent"))
        ),
    ),
    (
        "percent",
        lambda leaf, w: (
            ("percent" in w or (isinstance(leaf.value, str) and bool(re.fullmatch(r"\s*[\d.]+\s*%\s*", leaf.value))))
            and bool({"utilization", "efficiency", "balance", "headroom"} & set(w))
        ),
    ),
)
