"""Findings on strategy files: for each, a file that has it and one that has not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import Diagnostic
from paradag.passes.validation.foreign import check_strategy_json

BASE: dict[str, Any] = {
    "phase": "prefill",
    "parallel_strategy": {"tp": 4, "pp": 2, "ep": 8, "dp": 1},
    "model": {"layers": 32, "experts": 64, "attention_heads": 32, "kv_heads": 8},
    "gpu_allocation": {"total_gpus": 16},
}


def check(data: object) -> list[Diagnostic]:
    return check_strategy_json(json.dumps(data, indent=1), "x.json")


def codes(data: object) -> list[str]:
    return [d.code for d in check(data) if d.code != "PD756"]


def with_(**changes: Any) -> dict[str, Any]:
    """BASE with values set: ``strategy__tp=8`` sets the key of a block, ``key=...`` a key at the top."""
    data = json.loads(json.dumps(BASE))
    blocks = {"strategy": "parallel_strategy", "gpu": "gpu_allocation", "model": "model"}
    for path, value in changes.items():
        block, _, key = path.partition("__")
        if key and block in blocks:
            data[blocks[block]][key] = value
        else:
            data[path] = value
    return data  # type: ignore[no-any-return]


MEMORY = {"weights_gb": 640, "gpu_memory_gb": 64}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PD201": (with_(strategy__cp=2), with_(strategy__sp=1)),
    "PD204": (with_(phase="decode", strategy__sp=2), with_(phase="decode", strategy__sp=1)),
    "PD205": (with_(strategy__ep=6, model__experts=66), with_()),
    "PD207": (with_(hardware={"total_gpus": 8}), with_(hardware={"total_gpus": 16})),
    "PD208": (
        {**with_(hardware={"total_gpus": 32}), "gpu_allocation": {}},
        {**with_(hardware={"total_gpus": 16}), "gpu_allocation": {}},
    ),
    "PD209": (with_(model__is_moe=False), with_(model__is_moe=True)),
    "PD211": (with_(model__attention_heads=30), with_(model__attention_heads=36)),
    "PD212": (with_(model__kv_heads=6), with_(model__kv_heads=2)),
    "PD215": (with_(model__experts=60), with_(model__experts=56)),
    "PD216": (with_(model__layers=94, strategy__layers_per_stage=13.43), with_(strategy__layers_per_stage=16)),
    "PD301": (with_(memory={**MEMORY, "weights_gb": 6400}), with_(memory=MEMORY)),
    "PD752": (with_(gpu__total_gpus=64), with_(gpu__total_gpus=16)),
    "PD753": (with_(gpu__total_gpus=35), with_()),
    "PD754": (with_(name="TP8-PP2"), with_(name="TP4-PP2")),
    "PD755": ({k: v for k, v in BASE.items() if k != "phase"}, with_()),
    "PD757": (with_(memory={**MEMORY, "memory_per_gpu_gb": 1.5}), with_(memory={**MEMORY, "memory_per_gpu_gb": 40})),
    "PD758": (with_(options={"gradient_accumulation_steps": 4}), with_(options={"gradient_accumulation_steps": 1})),
}


@pytest.mark.parametrize("code", CASES)
def test_found(code: str) -> None:
    found = [d for d in check(CASES[code][0]) if d.code == code]
    assert found and found[0].span is not None


@pytest.mark.parametrize("code", CASES)
def test_not_found(code: str) -> None:
    assert code not in codes(CASES[code][1])


def test_a_sound_file_has_no_findings() -> None:
    assert codes(BASE) == []


@pytest.mark.parametrize(
    "strategy",
    [
        {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "expert_parallel_size": 8},
        {"tensor_parallelism": "TP=4", "pipeline_parallelism": "PP=2", "expert_parallelism": "EP=8"},
        {"tensor_parallel": {"degree": 4}, "pipeline_parallel": {"pp": 2}, "expert_parallelism": {"ep_degree": 8}},
        {"TP": "4-way", "PP": 2, "EP": 8.0},
        {"tensorParallelDegree": 4, "pipelineParallelDegree": 2, "expertParallelDegree": 8},
        {"name": "EP8-TP4-PP2"},
    ],
)
def test_spellings_of_degrees(strategy: dict[str, Any]) -> None:
    (note,) = [d for d in check({**BASE, "parallel_strategy": strategy}) if d.code == "PD756"]
    assert "pp 2, ep 8, tp 4" in note.message
    assert codes({**BASE, "parallel_strategy": strategy}) == []


@pytest.mark.parametrize(
    "key", ["tensor_parallel_splits", "tp_groups", "tp_efficiency", "expert_parallel_modules", "experts_tp_note"]
)
def test_what_is_no_degree(key: str) -> None:
    assert "understood" in check(with_(**{f"strategy__{key}": 7}))[-1].message
    assert codes(with_(**{f"strategy__{key}": 7})) == []


def test_phases_have_degrees_of_their_own() -> None:
    data = {"prefill": {"tp": 4, "pp": 2}, "decode": {"tp": 3, "sp": 2}, "model": {"heads": 32}}
    found = check(data)
    assert [d.code for d in found if d.code in ("PD211", "PD204")] == ["PD211", "PD204"]


def test_stages_layer_by_layer() -> None:
    stages = {f"stage_{i}": {"layer_count": n} for i, n in enumerate((16, 15))}
    assert "PD216" in codes(with_(layer_distribution=stages))
    stages["stage_1"]["layer_count"] = 16
    assert codes(with_(layer_distribution=stages)) == []
    assert "PD216" in codes(with_(pipeline={"layers_per_stage": [16, 8, 8]}))


def test_percentages() -> None:
    wrong = {"memory_utilization": "90%", "memory_per_gpu_gb": 40, "gpu_memory_gb": 80}
    assert "PD754" in codes(with_(memory=wrong))
    assert codes(with_(memory={**wrong, "memory_utilization": "50%"})) == []
    assert "PD754" in codes(with_(load={"memory_utilization_percent": 130}))


def test_the_place_of_a_finding() -> None:
    text = '{"phase": "decode",\n "strategy": {"tp": 4,\n  "sp": 2}}'
    (found,) = [d for d in check_strategy_json(text, "x.json") if d.code == "PD204"]
    assert found.span is not None and (found.span.line, found.span.column, found.span.end_column) == (3, 9, 10)


@pytest.mark.parametrize(
    "text",
    [
        '{"phase": "prefill", "tp": 4,}',
        '{"phase": "prefill", "tp": 4',
        '```json\n{"phase": "prefill", "tp": 4}\n```',
        "{'phase': 'prefill', \"tp\": 4}",
        '{"phase": "prefill", // why\n"tp": 4}',
        '{phase: "prefill", tp: 4}',
    ],
)
def test_damaged_json_is_read_on(text: str) -> None:
    found = check_strategy_json(text, "x.json")
    assert found[0].code == "PD750"
    assert any("tp 4" in d.message for d in found if d.code == "PD756")


@pytest.mark.parametrize("text", ["{}", "[]", '{"a": "b"}', "[[[]]]"])
def test_nothing_understood(text: str) -> None:
    assert [d.code for d in check_strategy_json(text, "x.json")] == ["PD751"]


@settings(max_examples=200)
@given(st.data())
def test_mutations_never_raise(data: st.DataObject) -> None:
    text = json.dumps(with_(memory=MEMORY, name="EP8-TP4", stages=[{"layers": [1, 2]}, None, True]))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from(
                ["{", "}", "[", "]", '"', ",", ":", "1e999", "-1", "0", "null", "\\", "99999999999999999999", "é", ""]
            )
        )
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 5)) :]
    for diagnostic in check_strategy_json(text, "x.json"):
        assert diagnostic.message


@settings(max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda c: (
            st.lists(c, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["tp", "ep", "layers", "phase", "total_gpus", "kv_heads", "weights_gb", "gpu_memory_gb"]
                ),
                c,
                max_size=5,
            )
        ),
    )
)
def test_any_json_never_raises(value: object) -> None:
    check_strategy_json(json.dumps(value), "x.json")


def test_deep_and_long_json() -> None:
    assert check_strategy_json("[" * 30_000, "x.json")
    assert check_strategy_json('{"a":' * 30_000, "x.json")
    assert check_strategy_json("[" + "1," * 150_000, "x.json")
