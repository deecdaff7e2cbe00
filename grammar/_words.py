"""The words of messages: terminals in human terms, an example of each statement, the nearest known name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

from ..compiler.spec import DTYPES

__all__ = ["ALIASES", "CHOICES", "DIMENSIONS", "TERMINALS", "USAGE", "join", "nearest", "quoted", "usage"]

DIMENSIONS = ("dp", "pp", "sp", "ep", "tp")

_FLAG = ("true", "false")

CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("mha", "mqa", "gqa", "mla"),
    "dtype": tuple(DTYPES),
    "kv_dtype": tuple(DTYPES),
    "tied": _FLAG,
    "sinks": _FLAG,
    "renormalize": _FLAG,
    "qk_norm": (*_FLAG, "full"),
    "bias": (*_FLAG, "qkv"),
    "router": ("softmax", "sigmoid", "topk_softmax"),
    "style": ("half", "interleaved"),
    "scaling": ("yarn", "llama3", "linear", "none"),
    "truncate": _FLAG,
    "link": ("scale_up", "scale_out", "host"),
    "mode": ("prefill", "decode", "mixed", "both"),
    "require": ("ttft", "tpot", "throughput", "throughput_per_gpu"),
    "strategy": ("prefill", "decode"),
    "pools": ("shared", "separate"),
}
"""The names that a statement takes as its value."""

ALIASES = {
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
    "yes": "true",
    "on": "true",
    "no": "false",
    "off": "false",
    "none": "false",
}
"""Names from elsewhere for what the language calls otherwise; only messages use them."""

TERMINALS = {
    "STRING": "a quoted string",
    "NAME": "a name",
    "AXIS": "an axis name",
    "NUMBER": "a number",
    "UNIT": "a unit",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "ARROW": "`->`",
    "DOTDOT": "`..`",
    "AT_MOST": "`<=`",
    "AT_LEAST": "`>=`",
    "$END": "end of file",
}

USAGE = {
    "model": 'model "Llama-3.1-8B" { ... }',
    "cluster": "cluster { accelerator h200_sxm  nodes 1 of 8 }",
    "workload": "workload { batch 128  input 2048 tokens  output 2048 tokens }",
    "strategy": "strategy decode { ep 32 -> tp 4 }",
    "layers": "layers 94",
    "hidden": "hidden 4096",
    "vocab": "vocab 151936",
    "ffn": "ffn 1536",
    "max_context": "max_context 131072 tokens",
    "weights": "weights 235 B",
    "dtype": "dtype fp8",
    "kv_dtype": "kv_dtype fp8",
    "tied": "tied true",
    "attention": "attention gqa { heads 64  kv_heads 4  head_dim 128 }",
    "moe": "moe { experts 128  top_k 8  ffn 1536 }",
    "dense": "layers 61 { dense 3 }",
    "dense_at": "layers 48 { dense_at 0 1 5 }",
    "pattern": "layers 36 { pattern sliding full  window 128 }",
    "window": "window 128",
    "heads": "heads 64",
    "kv_heads": "kv_heads 8",
    "head_dim": "head_dim 128",
    "qk_norm": "qk_norm true",
    "bias": "bias true",
    "sinks": "sinks true",
    "q_lora": "q_lora 1536",
    "kv_lora": "kv_lora 512",
    "nope_dim": "nope_dim 128",
    "rope_dim": "rope_dim 64",
    "v_dim": "v_dim 128",
    "experts": "experts 128",
    "top_k": "top_k 8",
    "shared": "shared 1",
    "router": "router sigmoid",
    "renormalize": "renormalize true",
    "scale": "scale 2.5",
    "groups": "groups 8",
    "top_groups": "top_groups 4",
    "norm_eps": "norm_eps 1e-5",
    "rotary": "rotary { theta 1000000 }",
    "theta": "theta 1000000",
    "dim": "dim 64",
    "style": "style interleaved",
    "scaling": "scaling yarn { factor 40  original 4096 tokens }",
    "factor": "factor 40",
    "original": "original 4096 tokens",
    "beta_fast": "beta_fast 32",
    "beta_slow": "beta_slow 1",
    "mscale": "mscale 1",
    "mscale_all_dim": "mscale_all_dim 1",
    "attention_factor": "attention_factor 1.2",
    "truncate": "truncate false",
    "low_freq": "low_freq 1",
    "high_freq": "high_freq 4",
    "accelerator": "accelerator h200_sxm",
    "nodes": "nodes 16 of 8",
    "link": "link scale_up { bandwidth 450 GB/s  latency 2 us }",
    "compute": "compute 400 TFLOPS fp8 at 60%",
    "memory": "memory 64 GB",
    "bandwidth": "bandwidth 200 GB/s",
    "latency": "latency 3 us",
    "domain": "domain 8",
    "batch": "batch 128",
    "input": "input 2048 tokens",
    "output": "output 2048 tokens",
    "sequence": "sequence 128..10240 tokens",
    "rate": "rate 20 req/s",
    "mode": "mode mixed",
    "require": "require ttft <= 30 s",
    "ranks": "ranks 32",
    "microbatches": "microbatches 8",
    "chunk": "chunk 2048",
    "placement": "placement pp adp sp tp",
    "pools": "pools separate",
    "pp": "pp 4 { layers 24 24 23 23 }",
    "sp": "sp 2",
    "ep": "ep 8 { etp 2  redundant 32 }",
    "tp": "tp 4",
    "dp": "dp 2",
    "etp": "etp 2",
    "redundant": "redundant 32",
}


def usage(key: str) -> str | None:
    """A sentence that shows how the statement ``key`` is written."""
    return f"write for example `{USAGE[key]}`" if key in USAGE else None


def quoted(words: Iterable[str]) -> str:
    """The words as code, joined by commas and "or"."""
    return join(f"`{word}`" for word in words)


def join(items: Iterable[str], last: str = "or") -> str:
    """``a, b or c``."""
    *rest, final = list(items) or ["nothing"]
    return f"{', '.join(rest)} {last} {final}" if rest else final


def nearest(word: str, known: Collection[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that ``word`` was probably meant to be, best first, letter case aside."""
    folded = {name.lower(): name for name in known}
    matches = get_close_matches(word[:64].lower().replace("-", "_"), folded, count, cutoff)
    return [folded[match] for match in matches]
