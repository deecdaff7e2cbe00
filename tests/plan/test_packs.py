"""Knowledge packs over the columns of a search: the same verdicts as the rules have on single strategies."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import paradag
from paradag.compiler.driver import load
from paradag.compiler.plan import Plan
from paradag.compiler.plan.packs import counted_gpus, refused_layouts, refused_replicas, refused_schedules
from paradag.compiler.plan.space import stage_layouts
from paradag.compiler.spec import Spec
from paradag.passes.validation import check_spec
from paradag.tests.cli.invoke import invoke

MODEL = """
model "moe" {{ layers 4  hidden 1024  vocab 32000  dtype bf16  kv_dtype bf16
    attention gqa {{ heads 16  kv_heads 8  head_dim 64 }}  moe {{ experts 8  top_k 2  ffn 512 }} }}
cluster {{ accelerator h100_sxm  nodes 8 of 8 }}
workload {{ batch 32  input 512 tokens  output 128 tokens }}
strategy decode {{ {chain} }}
"""

PACKS = {
    "one expert per GPU": "[law]\nexperts_per_gpu = 1\n",
    "product": '[law]\ngpus = "ep * tp * pp * dp"\n',
    "whole nodes": '[law]\ngpus = "ceil(dp * pp * ranks / gpus_per_node) * gpus_per_node"\n[limits]\ngpus = 16\n',
    "conditions": '[constraints]\na = "tp >= ep or adp == 1"\nb = "pp <= microbatches"\nc = "batch // dp >= 16"\n',
}


def spec_with(text: str, folder: Path, chain: str = "tp 1") -> Spec:
    (folder / "pack.toml").write_text(text, encoding="utf-8")
    return load(MODEL.format(chain=chain), knowledge=folder / "pack.toml").spec


@pytest.mark.parametrize("name", PACKS)
def test_columns_get_the_verdicts_of_the_rules(name: str, tmp_path: Path) -> None:
    spec = spec_with(PACKS[name], tmp_path)
    layouts = stage_layouts(spec.model, "decode", 8)
    cases = [*product(range(len(layouts)), (1, 2), (1, 2), (1, 4))]
    cases = [cases[i] for i in np.random.default_rng(7).permutation(len(cases))[:40]]
    index, pp, microbatches, dp = np.array(cases).T
    mine, chunk = layouts[index], np.zeros_like(pp)
    rounds = (
        {cite: mask[index] for cite, mask in refused_layouts(spec, "decode", layouts).items()},
        refused_schedules(spec, "decode", mine, pp=pp, microbatches=microbatches, chunk=chunk),
        refused_replicas(
            spec, "decode", mine, pp=pp, microbatches=microbatches, chunk=chunk, dp=dp, batch=32
        ),
    )  # fmt: skip
    nothing = np.zeros(len(cases), dtype=bool)
    refused = np.any([nothing, *(mask for part in rounds for mask in part.values())], axis=0)
    wanted = []
    for i, m, p, d in zip(index, microbatches, pp, dp, strict=True):
        one = layouts.degrees(int(i))
        ep = f"ep {one.ep} {{ etp {one.etp} }}"
        chain = f"dp {d} -> pp {p} -> {ep} -> tp {one.tp}  ranks {one.ranks}  microbatches {m}"
        codes = {
            x.code
            for x in check_spec(load(MODEL.format(chain=chain), knowledge=spec.pack), advised=False)[1]
            if x.is_error
        }
        wanted.append(bool(codes & {"PD045", "PD046"}))
    assert refused.tolist() == wanted
    assert 0 < refused.sum() < len(refused)
    assert all("pack.toml:" in cite for part in rounds for cite in part)


def test_one_expert_per_gpu_leaves_one_expert_per_gpu(tmp_path: Path) -> None:
    spec = spec_with(PACKS["one expert per GPU"], tmp_path)
    layouts = stage_layouts(spec.model, "decode", 16)
    (refused,) = refused_layouts(spec, "decode", layouts).values()
    left = layouts[~refused]
    assert len(left) and (left.ep == 8).all() and (left.etp == 1).all() and (left.tp > 1).any()


def test_idle_gpus_are_counted(tmp_path: Path) -> None:
    spec = spec_with(PACKS["whole nodes"], tmp_path)
    layouts = stage_layouts(spec.model, "decode", 8)
    ones = np.ones(len(layouts), dtype=np.int64)
    assert (counted_gpus(spec, "decode", layouts, pp=ones, dp=ones) == 8).all()
    assert (counted_gpus(spec, "decode", layouts, pp=3 * ones, dp=ones) % 8 == 0).all()


def test_without_a_pack_nothing_is_refused() -> None:
    spec = load(MODEL.format(chain="tp 1")).spec
    layouts = stage_layouts(spec.model, "decode", 4)
    pp = np.full(len(layouts), 2)
    assert refused_layouts(spec, "decode", layouts) == {}
    assert (counted_gpus(spec, "decode", layouts, pp=pp, dp=pp) == 4 * layouts.ranks).all()


PLANNED = """
model "moe" { layers 2  hidden 256  vocab 512  dtype bf16  kv_dtype bf16
    attention gqa { heads 4  kv_heads 2  head_dim 64 }  moe { experts 4  top_k 2  ffn 384 } }
cluster { accelerator h100_sxm  nodes 2 of 4 }
workload { batch 8  input 100 tokens  output 20 tokens }
"""


def planned(text: str, folder: Path) -> Plan:
    (folder / "pack.toml").write_text(text, encoding="utf-8")
    loaded = load(PLANNED, knowledge=folder / "pack.toml")
    plan = paradag.plan(loaded)
    assert plan.chosen is not None
    assert paradag.plan(PLANNED).chosen != plan.chosen
    compiled = paradag.compile(replace(loaded, spec=plan.spec), fix=False)
    assert str(compiled.status) == "VALID", compiled.diagnostics
    numbers = plan.chosen.numbers
    assert compiled.phases["prefill"].latency == pytest.approx(numbers.ttft_s, rel=1e-9)
    assert compiled.phases["decode"].latency == pytest.approx(numbers.tpot_s, rel=1e-9)
    return plan


def test_one_expert_per_gpu_changes_the_plan(tmp_path: Path) -> None:
    plan = planned("# ours\n[law]\nexperts_per_gpu = 1\n", tmp_path)
    for phase, table in plan.tables.items():
        assert set(table["ep"].tolist()) == {4} and set(table["etp"].tolist()) == {1}
        assert sum(n for key, n in plan.counts[phase].pruned.items() if key.endswith("pack.toml:3")) > 0
    assert any(a.why.endswith("pack.toml:3") for a in plan.assumptions)


def test_another_law_of_gpus_changes_the_plan(tmp_path: Path) -> None:
    plan = planned('[law]\ngpus = "ep * tp * pp * dp"\n', tmp_path)
    assert plan.chosen is not None
    for phase, table in plan.tables.items():
        assert (table["ranks"] == table["ep"] * table["tp"]).all()
        assert any(key.endswith("pack.toml:2") for key in plan.counts[phase].pruned)
    for strategy in plan.chosen.strategies:
        product = math.prod(t.degree for t in strategy.chain if t.name in ("ep", "tp", "pp", "dp") and t.degree)
        assert product == plan.chosen.numbers.gpus_by_phase[strategy.phase]


def test_allotted_nodes_count_whole(tmp_path: Path) -> None:
    law = '[law]\ngpus = "ceil(dp * pp * ranks / gpus_per_node) * gpus_per_node"\n'
    plan = planned(f'{law}[constraints]\nfew = "dp * batch <= 8"\n', tmp_path)
    assert plan.chosen is not None
    assert all(gpus % 4 == 0 for d in plan.top for gpus in d.numbers.gpus_by_phase.values())
    assert all(s.degree("dp") == 1 for d in plan.top for s in d.strategies)


def test_the_command_takes_a_pack(tmp_path: Path) -> None:
    (tmp_path / "pack.toml").write_text(PACKS["one expert per GPU"], encoding="utf-8")
    for name in ("a", "b"):
        (tmp_path / f"{name}.strat").write_text(PLANNED.replace("nodes 2 of 4", "nodes 1 of 4"), encoding="utf-8")
    knowledge = ["--knowledge", tmp_path / "pack.toml"]
    one, many = tmp_path / "one", tmp_path / "many"
    code, _, said = invoke("plan", tmp_path / "a.strat", *knowledge, "--save-path", one)
    assert code == 0, said
    told = json.loads((one / "decode_strategy.json").read_text(encoding="utf-8"))
    assert told["degrees"]["ep"] == 4
    files = [tmp_path / f"{name}.strat" for name in ("a", "b")]
    code, _, said = invoke("plan", *files, *knowledge, "--save-path", many, "--workers", 1)
    assert code == 0, said
    assert (many / "b" / "decode.strat").read_bytes() == (one / "decode.strat").read_bytes()
