"""Small strategies to run, as text, and a shorthand to run them."""

from __future__ import annotations

from collections.abc import Callable

from paradag.compiler.driver import load
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.run.report import PhaseReport
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute

DENSE = "layers 2  hidden 16  vocab 40  ffn 24  attention gqa { heads 8  kv_heads 4  head_dim 4 }"
WINDOWED = """layers 2 { pattern sliding full  window 3 }  hidden 16  vocab 40  ffn 24
    attention gqa { heads 8  kv_heads 4  head_dim 4  bias true  sinks true }"""
MOE = """layers 2  hidden 16  vocab 40  attention gqa { heads 4  kv_heads 4  head_dim 4 }
    moe { experts 8  top_k 2  ffn 8 }"""
BIASED_MOE = """layers 2  hidden 16  vocab 40  attention gqa { heads 4  kv_heads 4  head_dim 4 }
    moe { experts 4  top_k 2  ffn 8  router topk_softmax  bias true }"""
LATENT = """layers 2  hidden 16  vocab 40  ffn 24
    attention mla { heads 4  q_lora 9  kv_lora 7  nope_dim 6  rope_dim 4  v_dim 5 }"""


def spec_of(model: str, strategies: str, batch: int = 4, prompt: int = 6) -> Spec:
    """The spec of a model block's inside and strategy statements."""
    return load(
        f"""
        model "small" {{ {model}  dtype bf16 }}
        cluster {{ accelerator h100_sxm  nodes any of 8 }}
        workload {{ batch {batch}  input {prompt} tokens  output 1 tokens }}
        {strategies}
        """
    ).spec


def run(spec: Spec, phase: Phase, change: Callable[[Graph], Graph] | None = None, steps: int = 2) -> PhaseReport:
    """The report of one phase, its lowered graph changed behind the verifier's back."""
    return execute(spec, steps=steps, change={phase: change} if change else None).phases[phase]
