"""A plan for a measured load: figures stay those of `compile`, the load's own are stated apart, files are published."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np

import paradag
from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.cost.nodes import loaded_seconds, routed_tokens
from paradag.compiler.plan import Bounds, Law, Plan
from paradag.compiler.plan.experts import as_searched, slot_load
from paradag.compiler.plan.lowered import lowered
from paradag.compiler.plan.report import Sensitivity, expert_schema, gather, report_markdown
from paradag.compiler.plan.report.expert_schema import expert_schema_text
from paradag.compiler.plan.write import EXPERTS, plan_files
from paradag.compiler.spec import LoadedSpec
from paradag.compiler.spec.expert_load import ExpertLoad
from paradag.tests.cli.invoke import invoke

from .conditions import MOE, condition
from .test_exact import CLOSE, agrees_with_compile

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "schema" / "paradag-experts-1.json"

MANY = MOE.replace("layers 2 { dense 1 }", "layers 3 { dense 1 }").replace("experts 4", "experts 16")
LAYERS = (1, 2)
BOUNDS = Bounds(microbatches=2, trips=2, least_chunk=4096)


@cache
def asked() -> LoadedSpec:
    return condition(MANY, gpus="1 of 4", work="batch 64 input 512 tokens output 16 tokens")


def skewed() -> ExpertLoad:
    """One expert of each layer takes half of all tokens."""
    shares = np.full((2, 16), 0.5 / 15)
    shares[0, 3] = shares[1, 0] = 0.5
    return ExpertLoad("load.csv", LAYERS, shares)


def parallel_experts() -> Law:
    return Law(lambda table: (table.ep == 4) & (table.ranks == 4), lambda dp, pp, table: dp * pp * table.ranks)


@cache
def planned() -> Plan:
    return paradag.plan(asked(), bounds=BOUNDS, law=parallel_experts(), expert_load=skewed())


def test_figures_stay_those_of_compile_and_the_loads_are_stated_apart() -> None:
    plan = planned()
    assert plan.chosen is not None and plan.experts is not None
    agrees_with_compile(asked(), plan)
    for phase, part in plan.experts.phases.items():
        usual = plan.chosen.numbers.ttft_s if phase == "prefill" else plan.chosen.numbers.tpot_s
        assert usual is not None
        assert part.before.imbalance.max() > 2
        assert part.latency <= part.plain
    prefill = plan.experts.phases["prefill"]
    assert prefill.latency > (plan.chosen.numbers.ttft_s or 0.0) * (1 + CLOSE) or prefill.redundant


def test_redundant_experts_are_written_where_they_pay() -> None:
    plan = planned()
    assert plan.chosen is not None and plan.experts is not None
    part = plan.experts.phases["prefill"]
    assert part.redundant > 0 and part.redundant % 4 == 0
    terms = {t.redundant for s in plan.chosen.strategies if (t := s.term("ep")) is not None}
    assert terms == {p.redundant for p in plan.experts.phases.values()}
    chosen = [t for t in part.tried if not t.verdict]
    assert [t.redundant for t in chosen] == [part.redundant]
    assert part.after.imbalance.max() < 1.1
    assert all(t.latency >= part.latency * 0.998 for t in part.tried if "memory" not in t.verdict)


def test_without_the_load_the_choice_is_that_of_the_search() -> None:
    searched = as_searched(planned())
    alone = paradag.plan(asked(), bounds=BOUNDS, law=parallel_experts())
    assert searched.chosen == alone.chosen and searched.top == alone.top and searched.experts is None


def test_an_even_load_costs_what_a_uniform_one_does() -> None:
    """Slots of equal load are what the cost model takes them to be."""
    plan = planned()
    graph = lowered(plan.spec, "prefill")
    hardware, _ = resolve_hardware(asked().spec.cluster)
    costs = node_costs(graph, hardware)
    extents = {name: value[..., None] for name, value in graph.extents().items()}
    found = [(b, n) for b, n in graph.nodes() if n.op == "expert"]
    assert found
    for block, node in found:
        slots = graph.meta["slots"]
        ranks = graph.mesh.degree("ep")
        shares = np.full((1, ranks, int(slots) // ranks), 1 / int(slots))
        tokens = np.unique(routed_tokens(graph, block, node, extents)).astype(float)
        seconds = loaded_seconds(graph, block, node, hardware, slot_load(tokens, shares, 2))
        usual = np.unique(np.asarray(costs[block.name, node.name].time))
        np.testing.assert_allclose(np.asarray(seconds)[:, 0, 0], usual, rtol=1e-9)


def test_the_published_schema_is_the_generated_one_and_holds() -> None:
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        SCHEMA_FILE.write_bytes(expert_schema_text())
    assert SCHEMA_FILE.read_bytes() == expert_schema_text()
    files = plan_files(planned(), asked(), law=parallel_experts(), sensitivity=False)
    document = json.loads(files[EXPERTS])
    jsonschema.Draft202012Validator(expert_schema()).validate(document)
    for part in document["phases"].values():
        assert [layer["layer"] for layer in part["layers"]] == list(LAYERS)
        for layer in part["layers"]:
            held = [expert for rank in layer["experts"] for expert in rank]
            assert set(held) == set(range(16)) and len(held) == 16 + part["redundant"]
            assert {len(rank) for rank in layer["experts"]} == {part["slots_per_rank"]}
        assert len(part["devices"]) == part["ep"]
    assert files == plan_files(planned(), asked(), law=parallel_experts(), sensitivity=False)


def test_the_report_tells_both_figures() -> None:
    text = report_markdown(gather(planned(), asked(), Sensitivity()))
    assert "Experts dealt for the load of 2 layers in `load.csv`" in text
    assert "With this load, waiting in each layer for the experts of the heaviest rank: TTFT" in text
    assert "in every figure but those that section 7 states for the given load" in text


def test_the_command_takes_a_load_and_tells_what_is_wrong_with_it(tmp_path: Path) -> None:
    model = tmp_path / "model.strat"
    model.write_text(
        f"{MANY}\ncluster {{ accelerator h100_sxm nodes 1 of 2 }}\n"
        "workload { batch 8 input 64 tokens output 4 tokens mode prefill }\n"
    )
    good, bad = tmp_path / "load.json", tmp_path / "bad.csv"
    good.write_text(json.dumps({"layers": {"1": [1.0] * 15 + [30.0]}}))
    bad.write_text("layer,expert,load\n1,0,many\n")
    code, out, said = invoke("plan", str(model), "--expert-load", str(good), "--save-path", str(tmp_path / "out"))
    assert code == 0, said
    assert json.loads(out)["save_path"]
    code, _, said = invoke("plan", str(model), "--expert-load", str(bad), "--save-path", str(tmp_path / "out"))
    assert code == 1 and "error[PD034]" in said and "bad.csv:2" in said
    code, _, said = invoke("plan", str(model), "--expert-load", str(tmp_path / "no.csv"))
    assert code == 2 and "error[PD001]" in said
    code, _, said = invoke("plan", str(model), str(model), "--expert-load", str(good))
    assert code == 2 and "give one FILE" in said


def test_a_dense_choice_has_nothing_to_deal() -> None:
    shares = np.full((2, 16), 1 / 16)
    one = Law(lambda table: table.ranks == 1)
    plan = paradag.plan(asked(), bounds=BOUNDS, law=one, expert_load=ExpertLoad("l", LAYERS, shares))
    assert plan.experts is not None and not plan.experts.phases
    assert plan.experts.numbers == plan.experts.searched.numbers
    text = report_markdown(gather(plan, asked(), Sensitivity()))
    assert "The load makes no difference here" in text
