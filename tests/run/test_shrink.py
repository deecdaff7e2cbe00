"""Small specs keep the structure of the real ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from paradag import DiagnosticError, verify
from paradag.compiler.build import build_items, phase_mesh
from paradag.compiler.driver import load
from paradag.compiler.ir.mesh import ATTENTION_VIEW, EXPERT_VIEW
from paradag.compiler.run._reference_rotary import _speed
from paradag.compiler.run._shrink_degrees import shrink_degrees
from paradag.compiler.run.shrink import shrink
from paradag.compiler.spec import LoadedSpec, Spec
from paradag.compiler.spec.catalog import model, model_names
from paradag.compiler.spec.stage_law import Degrees, degrees_of
from paradag.compiler.spec.strategy import Phase
from paradag.passes.validation import check_spec, stage_layers

EXAMPLES = Path(__file__).resolve().parents[2] / "ir_examples"
FILES = sorted(EXAMPLES.glob("*.strat"))
both_sizes = pytest.mark.parametrize("limit", [32, 512])


def small_of(spec: Spec, limit: int) -> Spec:
    return shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies}, limit)[0]


def phases_of(spec: Spec) -> list[Phase]:
    return [s.phase for s in spec.strategies]


@both_sizes
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_small_spec_is_legal(path: Path, limit: int) -> None:
    """But for blocks of a quantized format, which no tiny dimension fills."""
    small = small_of(load(path).spec, limit)
    _, found = check_spec(LoadedSpec(small))
    assert not [d for d in found if d.is_error and d.code != "PD214"], found
    for phase in phases_of(small):
        assert phase_mesh(small, phase).replica_ranks <= limit


@both_sizes
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_structure_is_kept(path: Path, limit: int) -> None:
    real = load(path).spec
    small = small_of(real, limit)
    assert _attention(small) == _attention(real)
    assert _kinds(small) == _kinds(real)
    assert _numerics(small) == _numerics(real)
    for phase in phases_of(real):
        assert _layout(small, phase) == _layout(real, phase)
        assert _work(small, phase) == _work(real, phase)


def _attention(spec: Spec) -> tuple[object, ...]:
    a = spec.model.attention
    ratio = None if a.kind == "mla" else a.heads // a.kv_heads
    return a.kind, ratio, a.qk_norm, a.bias, a.sinks, a.q_lora is None, spec.model.tied


def _numerics(spec: Spec) -> tuple[object, ...]:
    """Rotary embedding but for its width, norms, and whether scaling keeps, blends and stretches some pairs."""
    m = spec.model
    rotary, width = m.rotary, m.rotary_width
    regimes = set()
    if rotary.scaling is not None:
        plain, scaled = (
            [_speed(pair, width, r) for pair in range(width // 2)]
            for r in (rotary.model_copy(update={"scaling": None}), rotary)
        )
        shares = [s / p for s, p in zip(scaled, plain, strict=True)]
        regimes = {"kept" if x == 1 else "full" if x < 1.01 / rotary.scaling.factor else "blended" for x in shares}
    partial = m.attention.kind != "mla" and width < m.attention.head_dim
    return rotary.model_copy(update={"dim": None}), partial, m.norm_eps, regimes


@pytest.mark.parametrize("name", model_names())
def test_numerics_of_every_catalogued_model_are_kept(name: str) -> None:
    spec = load(EXAMPLES / "llama-3.1-8b-1gpu.strat").spec.model_copy(update={"model": model(name)})
    small = small_of(spec, 512)
    assert _numerics(small) == _numerics(spec)
    assert small.model.attention.head_dim <= 16


def _kinds(spec: Spec) -> tuple[object, ...]:
    """Kinds of layers, and what of a mixture of experts is there."""
    layers = {(spec.model.is_moe_layer(n), spec.model.window_of(n) is None) for n in range(spec.model.layers.count)}
    moe = spec.model.moe
    return layers, moe and (moe.router, moe.bias, moe.shared, moe.scale, moe.top_k > 1, moe.groups > 1)


def _layout(spec: Spec, phase: Phase) -> tuple[object, ...]:
    strategy = spec.strategy(phase)
    assert strategy is not None
    d = degrees_of(strategy, is_moe=spec.model.moe is not None)
    mesh = phase_mesh(spec, phase)
    present = {n for n in (*ATTENTION_VIEW, *EXPERT_VIEW) if mesh.degree(n) > 1}
    across = {(a, e) for a in ATTENTION_VIEW for e in EXPERT_VIEW if set(mesh.view(a)) & set(mesh.view(e))}
    kv = spec.model.attention.kv_heads
    heads = None if spec.model.attention.kind == "mla" else (kv > 1, kv > d.tp, kv < d.tp)
    slots = (spec.model.moe.experts + d.redundant) // d.ep if spec.model.moe else 0
    stages = stage_layers(spec, phase)
    return present, across, heads, slots > 1, d.redundant > 0, d.pp > 1, len(set(stages)) == 1, d.sp_on_tp


def _work(spec: Spec, phase: Phase) -> tuple[object, ...]:
    items = build_items(spec, phase)
    adp = phase_mesh(spec, phase).degree("adp")
    sizes = {i.batch for i in items}
    even = all(n % adp == 0 for n in sizes)
    sp = phase_mesh(spec, phase).degree("sp")
    return len(sizes) == 1, even, min(sizes) >= adp, any(not i.last for i in items), all(i.new % sp == 0 for i in items)


def test_uneven_work_stays_uneven() -> None:
    text = (EXAMPLES / "mixtral-8x7b-ep8.strat").read_text().replace("batch 64", "batch 101").replace("2048", "2049")
    real = load(text).spec
    small = small_of(real, 512)
    assert small.workload.batch is not None and small.workload.batch < 101
    for phase in phases_of(real):
        assert _work(small, phase) == _work(real, phase)
    assert len({i.batch for i in build_items(small, "prefill")}) == 2


def test_what_is_small_is_left_alone() -> None:
    spec = small_of(load(FILES[-1]).spec, 512)
    again, changes = shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies})
    assert again == spec and changes == ()


def test_degrees_that_do_not_shrink_are_refused() -> None:
    text = (EXAMPLES / "mixtral-8x7b-ep8.strat").read_text()
    prime = {"experts 8": "experts 997", "ep 8 ": "ep 997 ", "nodes 1 of": "nodes any of", "batch 64": "batch 3988"}
    for old, new in prime.items():
        text = text.replace(old, new)
    with pytest.raises(DiagnosticError, match="997 ranks"):
        verify(text)


def test_many_divisors_take_no_time() -> None:
    """A strategy of 720 x 720 x 720 has 27,000 ways to become smaller in three of its degrees alone."""
    d = Degrees(pp=720, sp=1, ep=720, tp=720, ranks=720)
    model = load(EXAMPLES / "mixtral-8x7b-ep8.strat").spec.model
    began = time.perf_counter()
    (small,) = shrink_degrees({"decode": d}, model, 512).values()
    assert small.pp * small.ranks <= 512 and time.perf_counter() - began < 5


def test_replicas_are_dropped_and_told() -> None:
    text = (EXAMPLES / "llama-3.1-8b-1gpu.strat").read_text().replace("strategy { }", "strategy { dp 4 -> tp 2 }")
    spec = load(text).spec
    small, changes = shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies})
    assert phase_mesh(small, "decode").gpus == 2
    assert {c.name: (c.before, c.after) for c in changes}["decode.dp"] == ("4", "1")
