"""How benchmark harnesses launch the engines they measure, and the load they put on them.

What a row does not state is what its origin's launch scripts set. A row of unknown origin is taken as one of
AIConfigurator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paradag.compiler.cost.serving import ClosedLoop
from paradag.passes.analysis.serving import Point

HOPPER = ("h100", "h200", "h20", "gh200")
BLACKWELL = ("b200", "b300", "gb200", "gb300")


@dataclass(frozen=True)
class Launch:
    """One harness's way with an engine.

    Attributes:
        load: ``closed``: clients in a closed loop; ``static``: one batch without a server.
        budget: Tokens of a step with prompts: stated; ``room`` for the batch, the prompt and 1500 more, as
            AIConfigurator's generator sets it; ``model`` for one sequence's greatest length; None is the engine's own.
        shortest: Lengths are uniform between this share of the nominal ones and all of them.
        kv_dtype: Format of the KV cache that the script sets; empty leaves it to the engine.
        asynchronous: Whether vLLM's scheduler is asynchronous before that was the default.
        expert_kernels: Kernels of the experts that the script chooses; empty leaves it to the engine.
    """

    load: Literal["closed", "static"] = "closed"
    budget: int | Literal["room", "model"] | None = None
    shortest: float = 1.0
    kv_dtype: str = ""
    asynchronous: bool = False
    expert_kernels: str = ""

    def point(self, clients: int, prompt: int, output: int, groups: int, engine: str) -> Point:
        """The load of ``clients`` on all ``groups`` of an attention-DP stage."""
        if self.load == "static":
            return Point(ClosedLoop(clients, prompt, output, generations=1), clients * prompt, host=False)
        load = ClosedLoop(clients, prompt, output, shortest=self.shortest)
        budget = self.budget
        if budget == "room":
            budget = clients // groups + prompt + 1500
        elif budget == "model":
            budget = prompt + output
        return Point(load, budget)


def launch_of(origin: str, engine: str, chip: str, model: str) -> Launch:
    """The launch of a row.

    Args:
        origin: Who measured, as the row says.
        engine: ``vllm``, ``sglang`` or ``trtllm``.
        chip: Catalogue name of the chip.
        model: Catalogue name of the model.
    """
    if origin.startswith("static batch"):
        return Launch("static")
    if "inferencex" in origin.lower() or "inferencemax" in origin.lower():
        return _inferencex(engine, chip, model)
    # SGLang keeps its own budget: AIConfigurator's generator writes none for it
    return Launch(budget=None if engine == "sglang" else "room")


def _inferencex(engine: str, chip: str, model: str) -> Launch:
    """InferenceX, `benchmarks/*.sh`: 10 requests per client, lengths from 80 % of the nominal ones on."""
    blackwell, oss = chip.startswith(BLACKWELL), model.startswith("gpt-oss")
    kv = "fp8" if blackwell else ""
    if engine == "vllm":
        # gptoss_fp4_h100.sh and gptoss_fp4_h200.sh export VLLM_MXFP4_USE_MARLIN=1
        marlin = "marlin" if oss and chip.startswith(HOPPER) else ""
        return Launch(budget=8192, shortest=0.8, kv_dtype=kv, asynchronous=True, expert_kernels=marlin)
    if engine == "sglang":
        # dsr1_fp8_*.sh: chunks of 32768; dsr1_fp4_b200.sh: 16384, SGLang's own on a GPU of that size
        return Launch(budget=None if blackwell else 32768, shortest=0.8, kv_dtype=kv)
    # gptoss_fp4_*_trt.sh: 20000; dsr1_fp*_trt.sh: 8192 at least; 70b_fp*_trt_slurm.sh: the greatest length
    budget: int | Literal["model"] = 20000 if oss else 8192 if not model.startswith("llama") else "model"
    return Launch(budget=budget, shortest=0.8, kv_dtype=kv)
