"""Small deployment conditions, and every strategy that one of them admits, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from paradag.compiler.driver import load
from paradag.compiler.plan import Bounds
from paradag.compiler.spec import ChainTerm, LoadedSpec, Spec, StrategySpec
from paradag.compiler.spec.strategy import Phase

DENSE = 'model "dense" { layers 3 hidden 256 vocab 512 ffn 768 attention gqa { heads 8 kv_heads 2 head_dim 32 } }'
MOE = """model "moe" { layers 2 { dense 1 } hidden 256 vocab 512 ffn 768
    attention gqa { heads 4 kv_heads 2 head_dim 64 }
    moe { experts 4 top_k 2 ffn 384 } }"""
MLA = """model "mla" { layers 2 hidden 256 vocab 512
    attention mla { heads 8 q_lora 96 kv_lora 64 nope_dim 32 rope_dim 16 v_dim 32 }
    moe { experts 8 top_k 2 ffn 384 shared 1 router sigmoid } }"""
SLIDING = """model "sliding" { layers 4 { pattern sliding full  window 16 } hidden 256 vocab 512 tied true
    attention gqa { heads 8 kv_heads 4 head_dim 32 bias true sinks true }
    moe { experts 6 top_k 2 ffn 384 router topk_softmax bias true } }"""


def condition(model: str, *, gpus: str = "1 of 2", work: str = "batch 2 input 48 tokens output 8 tokens") -> LoadedSpec:
    """A condition on a made-up chip whose memory is a few megabytes, so that it can bind."""
    return load(f"""{model}
cluster {{
    accelerator "toy" {{ compute 1 TFLOPS bf16  memory 64 MB  bandwidth 100 GB/s }}
    nodes {gpus}
    link scale_up {{ bandwidth 20 GB/s  latency 2 us }}
    link scale_out {{ bandwidth 2 GB/s  latency 9 us }}
}}
workload {{ {work} }}
""")


def every_strategy(spec: Spec, phase: Phase, gpus: int, bounds: Bounds) -> Iterator[StrategySpec]:
    """All strategies of a phase in the language's terms, legal or not, without asking the planner for any."""
    moe = spec.model.moe is not None
    degrees = range(1, gpus + 1)
    kinds: list[tuple[str | None, int | None]] = [(None, 1)]
    if phase == "prefill":
        kinds += [("tp", None), *product(("allgather", "ring", "ulysses"), range(2, gpus + 1))]
    work, batch = spec.workload, spec.workload.batch or 1
    for dp, pp, (kind, sp), tp, ep, etp in product(degrees, degrees, kinds, degrees, degrees if moe else (1,),
                                                   degrees if moe else (0,)):  # fmt: skip
        least = max((sp or 1) * tp, ep * (etp or tp))
        for ranks in [r for r in degrees if r >= least and (moe or r == least)]:
            if dp * pp * ranks > gpus:
                continue
            chain = [ChainTerm(name="dp", degree=dp), ChainTerm(name="pp", degree=pp)]
            chain.append(ChainTerm(name="sp", kind=kind, degree=sp))
            if moe:
                chain.append(ChainTerm(name="ep", degree=ep, etp=etp))
            chain.append(ChainTerm(name="tp", degree=tp))
            if phase == "decode":
                chain = [t for t in chain if t.name != "sp"]
            share = -(-batch // dp)
            powers = {1 << i for i in range(8)}
            counts = {m for m in powers | {pp * n for n in powers} if m <= min(share, bounds.microbatches)}
            for count in sorted(counts):
                size = -(-share // count)
                chunks: list[int | None] = [None]
                if phase == "prefill":
                    tried = [bounds.least_chunk << i for i in range(12)]
                    chunks += [
                        c for c in tried
                        if size <= c < size * work.input and count * -(-work.input // (c // size)) <= bounds.trips
                    ]  # fmt: skip
                for chunk in chunks:
                    yield StrategySpec(phase=phase, chain=tuple(chain), ranks=ranks, microbatches=count, chunk=chunk)
