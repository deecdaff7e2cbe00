"""`paradag compile --explain`: where the time goes, as a user reads it and as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from paradag.tests.cli.invoke import invoke

SPEC = """
model "tiny" {{
    layers 4  hidden 64  vocab 100  ffn 128
    attention gqa {{ heads 8  kv_heads 4  head_dim 8 }}
}}
cluster {{ {cluster}  nodes 1 of 8 }}
workload {{ batch 8  input 16 tokens  output 4 tokens }}
strategy prefill {{ pp 2 -> tp {tp}  microbatches 2 }}
strategy decode {{ pp 2 -> tp {tp}  microbatches 4 }}
"""
OWN_CHIP = """accelerator "npu" { compute 400 TFLOPS bf16 at 60%  memory 64 GB  bandwidth 1.8 TB/s at 80% }
link scale_up { bandwidth 200 GB/s  latency 3 us }"""


def explained(folder: Path, wanted: str, *options: str, cluster: str = "accelerator h100_sxm", tp: int = 4) -> Any:
    """Exit code, standard output and standard error."""
    path = folder / "tiny.strat"
    path.write_text(SPEC.format(cluster=cluster, tp=tp))
    return invoke("compile", path, "-o", folder / "out", "--emit", "json", "--explain", wanted, *options)


def document(folder: Path, wanted: str, *options: str, **changes: Any) -> dict[str, Any]:
    code, out, err = explained(folder, wanted, *options, "--format", "json", **changes)
    assert code == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def rows(folder: Path, phase: str) -> list[dict[str, Any]]:
    loaded = json.loads((folder / "out" / f"tiny.{phase}.json").read_bytes())
    nodes: list[dict[str, Any]] = loaded["nodes"]
    return nodes


def test_top_adds_up_to_the_reported_latency(tmp_path: Path) -> None:
    found = document(tmp_path, "top")
    for phase, key in (("prefill", "prefill_s"), ("decode", "tpot_s")):
        top, latency = found["explain"][phase], found["phases"][phase][key]
        assert sum(g["time_s"] for g in top["groups"]) == pytest.approx(latency, rel=1e-9)
        assert 0 < found["phases"][phase]["utilization"]["mfu"] < 1
        slowest = [n["time_s"] for n in top["slowest"]]
        assert slowest == sorted(slowest, reverse=True)
        assert slowest[0] == max(n["time_s"] for n in rows(tmp_path, phase))


def test_top_for_people(tmp_path: Path) -> None:
    code, out, _ = explained(tmp_path, "top")
    assert code == 0
    assert "prefill: TTFT without queue" in out and "is the critical path" in out
    assert "decode: TPOT" in out and "slowest nodes" in out
    sums = [line.split() for line in out.splitlines() if line.startswith("sum ")]
    assert len(sums) == 2 and all("100.0%" in words for words in sums)
    assert "MFU" in out and "bubble" in out, "the utilization of both phases"


@pytest.mark.parametrize("wanted", ["dense_layer.qkv", "qkv", "QKV", "*.qkv", "qk?"])
def test_a_node_by_name(tmp_path: Path, wanted: str) -> None:
    nodes = document(tmp_path, wanted)["explain"]["nodes"]
    assert [(n["phase"], n["name"]) for n in nodes] == [("prefill", "dense_layer.qkv"), ("decode", "dense_layer.qkv")]
    for node in nodes:
        row = rows(tmp_path, node["phase"])[node["id"]]
        assert (row["name"], row["time_s"], row["flops"]) == (node["name"], node["time_s"], node["flops"])
        assert (row["bytes"], row["efficiency"], row["link"]) == (node["hbm_bytes"], node["efficiency"], "none")
        given = {q["name"]: q["value"] for q in node["quantities"]}
        assert 2 * given["m"] * given["n"] * given["k"] == pytest.approx(node["flops"])


def test_a_node_by_id(tmp_path: Path) -> None:
    (node,) = document(tmp_path, "5", "--phase", "decode")["explain"]["nodes"]
    row = rows(tmp_path, "decode")[5]
    assert [node[k] for k in ("id", "name", "op", "stage", "layer")] == [5, row["name"], row["op"], *(
        row[k] for k in ("stage", "layer")
    )]  # fmt: skip


def test_an_operator_is_every_node_of_it(tmp_path: Path) -> None:
    nodes = document(tmp_path, "AllReduce", "--phase", "prefill")["explain"]["nodes"]
    assert len(nodes) == 3 and {n["op"] for n in nodes} == {"AllReduce"}
    for node in nodes:
        given = {q["name"]: q["value"] for q in node["quantities"]}
        assert node["link"] == "scale_up" and given["ranks"] == given["ranks in a domain"] == 4
        assert node["wire_bytes"] == given["wire bytes"] == pytest.approx(2 * given["payload"] * 3 / 4)
        assert any(p["kind"] == "all_reduce" and p["residual"]["rows"] > 0 for p in node["parameters"])


def test_a_files_own_figures_are_named_and_make_the_time(tmp_path: Path) -> None:
    """With stated efficiencies the cost is a plain roofline that the shown quantities give."""
    for node in document(tmp_path, "qkv", cluster=OWN_CHIP)["explain"]["nodes"]:
        given = {q["name"]: q for q in node["quantities"]}
        assert {given[k]["source"].split(",")[0] for k in ("bf16 peak", "HBM", "compute efficiency")} == {"file"}
        flops = node["flops"] / (given["bf16 peak"]["value"] * given["compute efficiency"]["value"])
        moved = node["hbm_bytes"] / (given["HBM"]["value"] * given["bandwidth efficiency"]["value"])
        assert given["bf16 peak"]["value"] == 400e12 and given["compute efficiency"]["value"] == 0.6
        latency = next(p["parameters"]["latency_s"] for p in node["parameters"] if p["kind"] == "gemm")
        assert node["time_s"] == pytest.approx(latency + max(flops, moved), rel=1e-9)
        assert all(p["inherited"] for p in node["parameters"]), "nobody measured this chip"


def test_a_derivation_for_people(tmp_path: Path) -> None:
    code, out, _ = explained(tmp_path, "dense_layer.attention")
    assert code == 0
    for part in ("time = latency_s", "HBM bytes = ", "datasheet of h100_sxm", "fitted on h100_sxm", "median error"):
        assert part in out


def test_sends_name_their_link(tmp_path: Path) -> None:
    nodes = document(tmp_path, "boundary.send")["explain"]["nodes"]
    assert {n["link"] for n in nodes} == {"scale_up"}
    for node in nodes:
        terms = math.fsum(node["terms"].values())
        assert node["time_s"] == pytest.approx(terms, rel=1e-9), "bytes and latency follow one another"


def test_every_node_can_be_explained(tmp_path: Path) -> None:
    nodes = document(tmp_path, "*")["explain"]["nodes"]
    for phase in ("prefill", "decode"):
        names = {n["name"] for n in nodes if n["phase"] == phase}
        assert names == {r["name"] for r in rows(tmp_path, phase)}


@pytest.mark.parametrize("wanted", ["atention", "999999", "9" * 40, "", "²", "[" * 200, "layers."])
def test_an_unknown_node_is_an_error_with_near_names(tmp_path: Path, wanted: str) -> None:
    code, out, err = explained(tmp_path, wanted)
    assert code == 1 and "PD506" in err and not out
    assert "an id (0 to" in err and ("attention" in err) == (wanted == "atention")
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_a_rejected_run_has_nothing_to_explain(tmp_path: Path) -> None:
    code, out, err = explained(tmp_path, "top", "--no-fix", "--format", "json", tp=3)
    assert code == 1 and json.loads(out)["status"] == "REJECTED" and not json.loads(out)["phases"], err
