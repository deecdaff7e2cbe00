"""Strategies under which every tiny model runs: all combinations of TP, SP, PP and EP, and some degrees that bite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

from paradag.compiler.diagnostics import Diagnostic
from paradag.compiler.driver import load
from paradag.compiler.spec import ModelSpec, Spec
from paradag.passes.validation import check_spec

if TYPE_CHECKING:
    from paradag.compiler.run.huggingface import HuggingFace, Precision

STEPS = 3
"""Decode steps, with the cache that each side keeps for itself."""

DIMENSIONS = ("pp", "sp", "ep", "tp")
"""Parallel dimensions, in the order in which they nest."""

MOE = ("Mixtral", "Qwen3Moe", "DeepseekV3", "GptOss")
MODELS = ("Llama", "Qwen3", *MOE)
"""Run under all cases."""
OTHERS = ("Mistral", "Qwen2", "Glm4Moe", "MiniMaxM2")
"""Run under one: what they add is in the model alone."""


@dataclass(frozen=True)
class Case:
    """A strategy for each phase.

    Attributes:
        name: What it shows.
        prefill: Statements of the prefill strategy.
        decode: Statements of the decode strategy.
        batch: Sequences.
    """

    name: str
    prefill: str
    decode: str
    batch: int = 4


def combination(dimensions: tuple[str, ...]) -> Case:
    """Degree 2 of each dimension in prefill, and of all but SP, which is legal in prefill only, in decode."""
    chains = [" -> ".join(f"{d} 2" for d in dims) for dims in (dimensions, [d for d in dimensions if d != "sp"])]
    return Case("+".join(d.upper() for d in dimensions), *chains)


COMBINATIONS = tuple(combination(dims) for count in range(1, 5) for dims in combinations(DIMENSIONS, count))
"""All 15 non-empty subsets."""

DENSE_EXTRAS = (
    Case("more TP ranks than KV heads", "tp 8", "tp 8"),
    Case("sequence shards on the TP ranks", "sp tp -> tp 4", "tp 4"),
    Case("chunked prefill, micro-batches", "pp 2 -> tp 2  microbatches 2  chunk 8", "pp 2 -> tp 2  microbatches 2"),
    Case("separate pools", "sp 2 -> tp 2  pools separate", "pp 2 -> tp 4  pools separate"),
    Case("uneven shards of tokens", "pp 4 -> sp 4  microbatches 3", "pp 4  microbatches 3"),
    Case("ring", "sp 2 kind ring -> tp 2", "tp 2"),
    Case("Ulysses", "sp 4 kind ulysses", "tp 2"),
)
"""For every model."""

MOE_EXTRAS = (
    Case("EP over attention DP", "ep 8 -> tp 2", "ep 8 -> tp 2", batch=8),
    Case("EP alone, attention DP", "ep 4", "ep 4"),
    Case("experts under TP", "tp 4", "tp 4"),
    Case("EP with TP inside experts", "ep 2 { etp 2 } -> tp 2", "ep 2 { etp 2 } -> tp 2"),
    Case("expert replicas", "ep 2 -> tp 8", "ep 2 -> tp 8"),
    Case("redundant experts", "ep 4 { redundant 4 } -> tp 2", "ep 4 { redundant 4 } -> tp 2"),
    Case("EP, SP and chunks", "pp 2 -> sp 2 -> ep 4  chunk 10  microbatches 2", "pp 2 -> ep 4  microbatches 2"),
)
"""For models with experts."""


def cases(model: str) -> Iterator[Case]:
    """All that are legal for a model: EP only where there are experts."""
    moe = model in MOE
    yield from (c for c in COMBINATIONS if moe or "EP" not in c.name)
    yield from DENSE_EXTRAS
    yield from MOE_EXTRAS if moe else ()


@cache
def oracle(model: str, precision: Precision) -> HuggingFace:
    """A tiny model as the judge; only here is ``transformers`` imported, which takes its time."""
    from paradag.compiler.run.huggingface import HuggingFace
    from paradag.tests.hf.models import tiny

    return HuggingFace(tiny(model), precision)


def spec_of(case: Case, model: ModelSpec) -> tuple[Spec, list[Diagnostic]]:
    """The spec of a case, and the errors in it."""
    loaded = load(f"""
        model "placeholder" {{ layers 1  hidden 8  vocab 8  ffn 8  attention mha {{ heads 1  head_dim 8 }} }}
        cluster {{ accelerator h100_sxm  nodes any of 8 }}
        workload {{ batch {case.batch}  input 9 tokens  output 1 tokens }}
        strategy prefill {{ {case.prefill} }}
        strategy decode {{ {case.decode} }}
    """)
    checked, found = check_spec(replace(loaded, spec=loaded.spec.model_copy(update={"model": model})))
    return checked.spec, [d for d in found if d.is_error]
