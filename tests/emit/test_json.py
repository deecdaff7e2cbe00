"""The JSON document: its rows against the graph they come from, and against the published schema.

``PARADAG_UPDATE_GOLDENS=1`` rewrites the published schema and the snapshot; read the difference before committing it. A
schema that refuses documents of the version before takes a new number.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag import compile as compile_strategy
from paradag.compiler.diagnostics import Diagnostic, DiagnosticError
from paradag.compiler.emit import document_schema, load_json, write_json
from paradag.compiler.emit.document import schema_text
from paradag.compiler.ir.graph import Phase
from paradag.compiler.ir.unrolled import EDGE_KINDS
from paradag.compiler.spec import Spec
from paradag.passes.compiled import Compiled
from paradag.tests.emit.builds import MOE, compile_phase, rejected, term, tiny_spec
from paradag.tests.strategies import small_specs

HERE = Path(__file__).parent
SCHEMA_FILE = HERE.parents[1] / "docs" / "schema" / "paradag-dag-1.json"

CASES: dict[str, tuple[Spec, Phase, int]] = {
    "dense": (tiny_spec("prefill", term("tp", 2)), "prefill", 1),
    "one_gpu": (tiny_spec("decode"), "decode", 1),
    "moe": (tiny_spec("decode", term("ep", 8), term("tp", 2), moe=MOE, layers=2, batch=7), "decode", 1),
    "expert_tp": (tiny_spec("prefill", term("ep", 2, etp=2), term("tp", 4), moe=MOE), "prefill", 1),
    "pipeline": (tiny_spec("decode", term("pp", 2), term("tp", 2), layers=3, microbatches=2), "decode", 2),
    "chunks": (tiny_spec("prefill", term("sp", 2), term("tp", 2), layers=2, chunk=8), "prefill", 1),
    "replicas": (tiny_spec("decode", term("dp", 2), term("tp", 2), batch=9), "decode", 1),
}


def written(compiled: Compiled, phase: Phase, folder: Path) -> dict[str, Any]:
    path = folder / "small.json"
    write_json(compiled, phase, path)
    assert [p.name for p in folder.iterdir()] == ["small.json"], "nothing but the document is left"
    document = json.loads(path.read_bytes())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_the_generated_one() -> None:
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        SCHEMA_FILE.write_bytes(schema_text())
    assert SCHEMA_FILE.read_bytes() == schema_text()
    assert json.loads(schema_text()) == document_schema()


def test_a_small_document_stays_as_it_is(tmp_path: Path) -> None:
    """Two ranks, one dense layer: short enough to be read and checked by hand."""
    spec, phase, steps = CASES["dense"]
    golden = HERE / "dense_tp2.prefill.json"
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        write_json(compile_phase(spec, phase, steps), phase, golden)
    write_json(compile_phase(spec, phase, steps), phase, tmp_path / "dense.json")
    assert (tmp_path / "dense.json").read_text().splitlines() == golden.read_text().splitlines()


@pytest.mark.parametrize("name", CASES)
def test_documents_obey_the_published_schema(
    name: str, tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    spec, phase, steps = CASES[name]
    document = written(compile_phase(spec, phase, steps), phase, tmp_path)
    validator.validate(document)
    assert document["nodes"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("nodes", 0, "op"), 3),
        (("nodes", 0, "devices"), []),
        (("edges", 0, "kind"), "magic"),
        (("gpus",), 1.5),
        (("extra",), 1),
    ],
)
def test_the_schema_refuses_other_documents(
    path: tuple[Any, ...], value: object, tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    spec, phase, steps = CASES["dense"]
    document = written(compile_phase(spec, phase, steps), phase, tmp_path)
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert not validator.is_valid(document)


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 2), st.booleans())
@settings(max_examples=8)
def test_rows_say_what_the_graph_says(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, phase: Phase, steps: int, ranks: bool
) -> None:
    compiled = compile_phase(spec, phase, steps, ranks=ranks)
    document = written(compiled, phase, tmp_path_factory.mktemp("rows"))
    flat = compiled.phases[phase].flat
    assert document["gpus"] == flat.unrolled.graph.mesh.gpus
    for number, row in enumerate(document["nodes"]):
        view = flat.node(number)
        assert row["id"] == number
        assert row["name"] == f"{view.block.name}.{view.node.name}"
        assert (row["layer"], row["stage"]) == (None if view.layer < 0 else view.layer, view.stage)
        assert row["devices"] == view.devices
        assert row["coords"].items() >= view.coords.items()
        assert row["coords"]["step"] == view.step
        assert row["time_s"] == view.duration
    assert len(document["nodes"]) == flat.node_count
    sources, targets = flat.edges()
    kinds = [EDGE_KINDS[k] for k in flat.kinds.tolist()]
    expected = list(zip(sources.tolist(), targets.tolist(), kinds, strict=True))
    assert [(e["source"], e["target"], e["kind"]) for e in document["edges"]] == expected


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 2), st.booleans())
@settings(max_examples=8)
def test_laws_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, phase: Phase, steps: int, ranks: bool
) -> None:
    compiled = compile_phase(spec, phase, steps, ranks=ranks)
    document = written(compiled, phase, tmp_path_factory.mktemp("laws"))
    mesh = compiled.phases[phase].graph.mesh
    assert all(e["source"] < e["target"] for e in document["edges"])
    calls: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in document["nodes"]:
        where = (row["coords"][c] for c in ("step", "microbatch", "chunk"))
        calls[(row["name"], row["layer"], row["stage"], *where)].append(row)
    for rows in calls.values():
        coords = [tuple(sorted(r["coords"].items())) for r in rows]
        assert len(set(coords)) == len(rows), "coordinates tell the shards of a call apart"
        devices = [d for r in rows for d in r["devices"]]
        stage = mesh.ranks(rows[0]["stage"], {}, [a.name for a in mesh.axes])
        assert sorted(devices) == sorted(stage), "the shards of a call cover their stage's ranks once"
        for key in ("inputs", "outputs", "weights"):
            for index in range(len(rows[0][key])):
                check_sizes(rows, [r[key][index] for r in rows])


def check_sizes(rows: list[dict[str, Any]], tensors: list[dict[str, Any]]) -> None:
    """Shards of a dimension that is cut by coordinates alone add up; any other fits, and whole ones are whole."""
    whole = tensors[0]["global_dims"]
    for dim, size in whole.items():
        local = [t["dims"][dim] for t in tensors]
        axes = tensors[0]["placement"].get(dim, [])
        if dim == "rows":
            assert max(local) <= size
        elif not axes:
            assert set(local) == {size}
        elif all(a in rows[0]["coords"] for a in axes) and dim != "group":
            sizes = {tuple(r["coords"][a] for a in axes): n for r, n in zip(rows, local, strict=True)}
            assert sum(sizes.values()) == size, (dim, axes)
        else:
            assert max(local) <= size


def test_uneven_batch_is_cut_exactly(tmp_path: Path) -> None:
    """Seven sequences over four attention-DP groups: 2, 2, 2 and 1, and no rank is said to hold more."""
    spec, phase, steps = CASES["moe"]
    document = written(compile_phase(spec, phase, steps), phase, tmp_path)
    begins = [n for n in document["nodes"] if n["op"] == "DecodeStepBegin"]
    assert [n["outputs"][0]["dims"]["batch"] for n in begins] == [2, 2, 2, 1]
    assert {n["outputs"][0]["global_dims"]["batch"] for n in begins} == {7}
    assert [n["devices"] for n in begins] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_routed_tokens_have_one_group_dimension_and_expected_rows(tmp_path: Path) -> None:
    spec, phase, steps = CASES["moe"]
    document = written(compile_phase(spec, phase, steps), phase, tmp_path)
    dispatch = next(n for n in document["nodes"] if n["op"] == "Dispatch")
    given_rows, taken = dispatch["inputs"][0], dispatch["outputs"][0]
    # 8 ranks of at most one token each; a token visits 2 of 8 slots, so a quarter of a row, rounded up
    assert given_rows["global_dims"] == {"group": 8, "slot": 8, "rows": 1, "hidden": 8}
    assert given_rows["placement"] == {"group": ["ep"]}
    assert taken["placement"] == {"slot": ["ep"]}
    assert taken["dims"] == {"group": 8, "slot": 1, "rows": 1, "hidden": 8}
    assert dispatch["group"] == ["ep"]
    assert dispatch["devices"] == list(range(8))
    expert = [n for n in document["nodes"] if n["op"] == "Expert" and n["layer"] == 0]
    assert [(n["coords"]["ep"], n["devices"]) for n in expert] == [(r, [r]) for r in range(8)]
    assert prod(expert[0]["weights"][0]["dims"].values()) == 8 * 16


def test_summary_has_the_models_own_figures(tmp_path: Path) -> None:
    spec, phase, steps = CASES["pipeline"]
    compiled = compile_phase(spec, phase, steps)
    summary = written(compiled, phase, tmp_path)["summary"]
    analysis = compiled.phases[phase]
    assert summary["critical_path_s"] == analysis.critical.seconds
    assert summary["tpot_s"] == analysis.latency
    assert "ttft_s" not in summary
    attention, ffn, norms = 2 * 8 * 16 + 2 * 8 * 8, 3 * 8 * 16, 2 * 8
    assert summary["parameters"] == 3 * (attention + ffn + norms) + 2 * 32 * 8 + 8
    assert summary["kv_bytes_per_token"] == 3 * 2 * 2 * 4 * 2
    memory = summary["memory_per_gpu"]
    assert memory["total"] == sum(memory[k] for k in ("weights", "kv_cache", "activations", "buffers"))
    assert memory["capacity"] == 80 * 10**9
    # two ranks a stage, hidden 8 in bf16, four sequences, two steps: each position sends its copy of the stream
    sends = [n for n in compiled.phases[phase].traffic if n.op == "Send"]
    assert summary["communication_bytes"]["Send"] == sum(t.bytes for t in sends)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    spec, phase, steps = CASES["pipeline"]
    for name in ("a.json", "b.json"):
        write_json(compile_phase(spec, phase, steps), phase, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_rejected_run_is_a_header(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    spec, phase, steps = CASES["dense"]
    fault = Diagnostic("PD211", "6 heads over tp 4", help="tp 2")
    document = written(rejected(compile_phase(spec, phase, steps), fault), phase, tmp_path)
    validator.validate(document)
    assert document["status"] == "REJECTED"
    assert (document["nodes"], document["edges"], document["summary"]) == ([], [], None)
    assert document["gpus"] == 2
    assert [d["code"] for d in document["diagnostics"]] == ["PD211"]


def test_a_place_that_cannot_be_written_is_a_diagnostic(tmp_path: Path) -> None:
    spec, phase, steps = CASES["one_gpu"]
    compiled = compile_phase(spec, phase, steps)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(DiagnosticError) as error:
            write_json(compiled, phase, path)
        assert [d.code for d in error.value.diagnostics] == ["PD601"]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_kv_transfers_pair_over_the_two_documents(tmp_path: Path) -> None:
    """With pools of their own, decode ranks follow prefill ranks, and a layer's cache has one id in both documents."""
    prefill = tiny_spec("prefill", term("tp", 2), layers=2, pools="separate")
    decode = tiny_spec("decode", term("tp", 4), layers=2, pools="separate")
    spec = prefill.model_copy(update={"strategies": (*prefill.strategies, *decode.strategies)})
    documents = {}
    for phase in ("prefill", "decode"):
        (tmp_path / phase).mkdir()
        documents[phase] = written(compile_phase(spec, phase), phase, tmp_path / phase)
    ids = {
        phase: [n["transfer"] for n in document["nodes"] if n["op"] == "KVTransfer"]
        for phase, document in documents.items()
    }
    assert ids["prefill"] == ids["decode"] == ["kv.0", "kv.1"]
    ranks = {phase: {d for n in document["nodes"] for d in n["devices"]} for phase, document in documents.items()}
    assert ranks == {"prefill": {0, 1}, "decode": {2, 3, 4, 5}}
    assert all("transfer" not in n for n in documents["decode"]["nodes"] if n["op"] != "KVTransfer")


def test_the_peers_of_kv_transfers_name_each_other_in_both_documents(tmp_path: Path) -> None:
    """What a layer's sends say goes to a rank is what that rank's receives say comes; documents load back with it."""
    prefill = tiny_spec("prefill", term("sp", 2), term("tp", 2), layers=2, pools="separate", microbatches=2)
    decode = tiny_spec("decode", term("tp", 4), layers=2, pools="separate")
    spec = prefill.model_copy(update={"strategies": (*prefill.strategies, *decode.strategies)})
    compiled = compile_strategy(spec, name="small")
    ends: dict[str, set[tuple[str, int]]] = {}
    sums = {}
    for phase in ("prefill", "decode"):
        write_json(compiled, phase, tmp_path / phase)
        data = (tmp_path / phase).read_bytes()
        assert load_json(data).to_json() == data
        nodes = json.loads(data)["nodes"]
        assert all(("peers" in n) == (n["op"] == "KVTransfer") for n in nodes)
        transfers = [n for n in nodes if n["op"] == "KVTransfer"]
        sums[phase] = sum(p["bytes"] for n in transfers for p in n["peers"])
        ends[phase] = {
            (n["transfer"], rank)
            for n in transfers
            for rank in ([p["device"] for p in n["peers"]] if phase == "prefill" else n["devices"])
        }
    # Two KV heads of 8 numbers, 4 sequences of 6 tokens, 2 layers, bf16; tp 4 holds each head twice.
    assert sums["prefill"] == sums["decode"] == 2 * (4 * 6 * 2 * 8 * 2) * 2
    assert ends["prefill"] == ends["decode"] == set(product(("kv.0", "kv.1"), range(4, 8)))
