"""What each rank loads is what the models' own parallel plans give it.

``transformers`` publishes plans for TP and EP and has code that cuts a model accordingly. It runs here for one rank
after another, over a process group that moves nothing; the shards that it leaves are compared with our ranks' stores.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from paradag.compiler.build import build_graph
from paradag.compiler.driver import lowering_passes
from paradag.compiler.run import Executor
from paradag.compiler.run.records import Inputs
from paradag.compiler.run.weights import Key, weight_name
from paradag.compiler.spec import Spec
from paradag.passes.analysis.unroll import unroll
from paradag.passes.manager import PassManager
from paradag.tests.hf.cases import MODELS, MOE, Case, spec_of

if TYPE_CHECKING:
    from paradag.compiler.run.huggingface import HuggingFace

RANKS = 2
SIZES = {"tp": {"tp_size": RANKS}, "ep": {"ep_size": RANKS, "fsdp_size": RANKS}}

HEADS = {"wq", "wk", "wv", "wo", "wq_bias", "wk_bias", "wv_bias", "sinks"}
EXPERTS = {f"expert.{part}" for part in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")}

OTHERWISE: Mapping[str, set[str]] = {
    # the plan leaves latent attention whole on every rank; ours cuts its heads, as inference engines do
    "DeepseekV3": {"wq_b", "uk", "uv", "wo"},
    # the config has no plan for TP, and the class cuts no more than the LM head and, since 5.24, the embedding
    "GptOss": HEADS | EXPERTS,
}
"""Weights that our ranks cut otherwise than the plan for TP, on purpose."""

CHANGED: Mapping[str, set[str]] = {"GptOss": {"embedding"}}
"""Weights that only some releases of ``transformers`` leave whole."""


@cache
def judge(model: str) -> HuggingFace:
    """The tiny model; untied, since a plan cuts the embedding and the LM head each for itself."""
    from paradag.compiler.run.huggingface import HuggingFace
    from paradag.tests.hf.models import tiny

    return HuggingFace(tiny(model, tie_word_embeddings=False), "float32")


def ours(spec: Spec, model: str) -> list[dict[Key, np.ndarray]]:
    """What every rank of the one stage loads."""
    graph = PassManager(lowering_passes(spec, "decode")).run(build_graph(spec, "decode", "plan", 1)).graph
    run = Executor(unroll(graph), judge(model).weights, {}, Inputs())
    names = {(n.name, p.name): weight_name(n, p) for _, n in graph.nodes() for p in n.params}
    return [{(layer, names[node, p]): w for (layer, node, p), w in s.weights.items()} for s in run.stores[0]]


def theirs(model: str, kind: str, rank: int) -> dict[Key, np.ndarray]:
    """What ``transformers`` leaves to a rank by the model's plan, under our names."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.distributed.expert_parallel import apply_expert_parallelism
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    from paradag.compiler.run._hf_weights import renamed

    whole = copy.deepcopy(judge(model).model)
    dist.init_process_group("fake", rank=rank, world_size=RANKS, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=(kind, "other"))
        tp_plan, ep_plan, _ = whole._resolve_parallel_plans(DistributedConfig(**SIZES[kind]))
        if kind == "tp":
            apply_tensor_parallelism(whole, mesh["tp"], tp_plan)
        else:
            apply_expert_parallelism(whole, mesh["ep"], mesh["other"], ep_plan)
        state = whole.state_dict()
        local = {k: (v.to_local() if isinstance(v, DTensor) else v).detach().numpy() for k, v in state.items()}
    finally:
        dist.destroy_process_group()
    return renamed(local, judge(model).spec)


def differing(model: str, kind: str) -> set[str]:
    spec, errors = spec_of(Case(kind, f"{kind} {RANKS}", f"{kind} {RANKS}"), judge(model).spec)
    assert not errors
    found = set()
    for rank, mine in enumerate(ours(spec, model)):
        planned = theirs(model, kind, rank)
        assert set(mine) <= set(planned)
        found |= {name for (layer, name), w in mine.items() if not np.array_equal(w, planned[layer, name])}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_tensor_parallel_shards(model: str) -> None:
    expected = OTHERWISE.get(model, set())
    assert expected <= differing(model, "tp") <= expected | CHANGED.get(model, set())


@pytest.mark.parametrize("model", MOE)
def test_expert_parallel_shards(model: str) -> None:
    assert differing(model, "ep") == set()
