"""Rules over columns give the verdicts of `check_spec`, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paradag.compiler.plan.layouts import ALLGATHER, KIND_NAMES, MEGATRON, RING, ULYSSES, Layouts
from paradag.compiler.plan.legality import layout_faults, schedule_faults
from paradag.compiler.spec import ChainTerm, LoadedSpec, StrategySpec
from paradag.compiler.spec.strategy import Phase
from paradag.passes.validation import check_spec

from .conditions import DENSE, MLA, MOE, SLIDING, condition

TRIED = 60


def checked(loaded: LoadedSpec, layouts: Layouts, columns: dict[str, np.ndarray], row: int, phase: Phase) -> set[str]:
    """Error codes of `check_spec` on one row."""
    ranks, sp, tp, ep, etp = (int(getattr(layouts, n)[row]) for n in ("ranks", "sp", "tp", "ep", "etp"))
    pp, count, chunk = (int(columns[n][row]) for n in ("pp", "microbatches", "chunk"))
    chain = [ChainTerm(name="pp", degree=pp)]
    if phase == "prefill":
        kind = KIND_NAMES[layouts.kind[row]]
        chain.append(ChainTerm(name="sp", kind=kind, degree=None if kind == "tp" else sp))
    if loaded.spec.model.moe is not None:
        chain.append(ChainTerm(name="ep", degree=ep, etp=etp))
    chain.append(ChainTerm(name="tp", degree=tp))
    strategy = StrategySpec(phase=phase, chain=tuple(chain), ranks=ranks, microbatches=count, chunk=chunk or None)
    work = loaded.spec.workload.model_copy(update={"batch": int(columns["batch"][row])})
    spec = loaded.spec.model_copy(update={"strategies": (strategy,), "workload": work})
    return {d.code for d in check_spec(replace(loaded, spec=spec), advised=False)[1] if d.is_error}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", [DENSE, MOE, MLA, SLIDING, DENSE.replace("head_dim 32 }", "head_dim 32 } dtype fp8")],
                         ids=["dense", "moe", "mla", "sliding", "fp8"])  # fmt: skip
def test_verdicts_are_those_of_check_spec(model: str, phase: Phase) -> None:
    loaded = condition(model, gpus="any of 8", work="batch 4 input 6 tokens output 4 tokens")
    spec, rng = loaded.spec, np.random.default_rng(7)
    degrees = np.array([1, 1, 2, 2, 3, 4, 6, 8, 12])
    sp, tp, ep, etp, more = rng.choice(degrees, (5, TRIED))
    if phase == "decode":
        sp = np.ones_like(sp)
    kind = np.where(sp > 1, rng.choice([ALLGATHER, RING, ULYSSES], TRIED), ALLGATHER)
    if phase == "prefill":
        kind = np.where((sp == 1) & (tp > 1) & (rng.random(TRIED) < 0.4), MEGATRON, kind)
    ranks = np.maximum(sp * tp, ep * etp) * np.where(rng.random(TRIED) < 0.5, 1, more)
    if spec.model.moe is None:
        ep, etp, ranks = np.ones_like(ep), tp, sp * tp
    layouts = Layouts(ranks, sp, tp, ep, etp, kind)
    columns = {
        "pp": rng.integers(1, 6, TRIED),
        "batch": rng.integers(1, 9, TRIED),
        "microbatches": rng.integers(1, 6, TRIED),
        "chunk": np.where(rng.random(TRIED) < 0.5, 0, rng.integers(1, 30, TRIED)) * (phase == "prefill"),
    }
    found: list[set[str]] = [set() for _ in range(TRIED)]
    faults = layout_faults(layouts, spec.model, phase, spec.workload.input)
    for table in (faults, schedule_faults(layouts, spec.model, phase, spec.workload.input, columns)):
        for code, mask in table.items():
            for row in np.flatnonzero(mask):
                found[row].add(code)
    assert any(found)
    for row in range(TRIED):
        assert found[row] == checked(loaded, layouts, columns, row, phase), (row, layouts[[row]])
