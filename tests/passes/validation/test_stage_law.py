"""The law of the stage, by the design's worked examples, and the split of layers over stages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.build.mesh import phase_degrees, phase_mesh
from paradag.compiler.spec.catalog import model
from paradag.compiler.spec.stage_law import balanced_stages
from paradag.passes.validation import check_spec, stage_layers
from paradag.passes.validation._stages import balanced
from paradag.tests.passes.validation.cases import DENSE, MOE, found, load

# chain, model, (R, adp, edp, etp), GPUs
LAW = [
    ("pp 4 -> ep 32 -> tp 16", MOE, (32, 2, 1, 1), 128),
    ("pp 2 -> tp 8", DENSE, (8, 1, 1, 8), 16),
    ("sp 2 -> ep 8 -> tp 4", MOE, (8, 1, 1, 1), 8),
    ("ep 32", MOE, (32, 32, 1, 1), 32),
    ("ep 2 -> tp 8", MOE, (8, 1, 4, 1), 8),
    ("tp 8", MOE, (8, 1, 1, 8), 8),
    ("ep 1 -> tp 8", MOE, (8, 1, 1, 8), 8),
    ("ep 8 { etp 2 } -> tp 4", MOE, (16, 4, 1, 2), 16),
    ("dp 3 -> tp 2", DENSE, (2, 1, 1, 2), 6),
    ("tp 2 ranks 8", MOE, (8, 4, 4, 2), 8),
    ("sp tp -> tp 4", DENSE, (4, 1, 1, 4), 4),
    ("", DENSE, (1, 1, 1, 1), 1),
]


@pytest.mark.parametrize(("chain", "which", "stage", "gpus"), LAW)
def test_worked_examples(chain: str, which: str, stage: tuple[int, ...], gpus: int) -> None:
    loaded, diagnostics = check_spec(load(chain, model=which))
    assert not [d for d in diagnostics if d.is_error]
    d = phase_degrees(loaded.spec, "prefill")
    assert (d.ranks, d.adp, d.edp, d.etp) == stage
    assert d.gpus == gpus
    assert phase_mesh(loaded.spec, "prefill").gpus == gpus


def test_no_whole_number_of_groups_lists_the_nearest_choices() -> None:
    (d,) = found("ep 6 -> tp 4", "PD205", model=MOE)
    assert d.help is not None and d.expected is not None
    assert d.help.endswith("`ep 4`, `ep 8`, `tp 2`, `ranks 12`")
    assert "`ranks 12`" in d.expected


def test_given_stages_win() -> None:
    assert stage_layers(load("pp 2 { layers 5 3 }").spec, "prefill") == (5, 3)
    assert stage_layers(load("tp 2").spec, "prefill") == (8,)
    with pytest.raises(KeyError):
        stage_layers(load("tp 2").spec, "decode")


def test_embedding_and_head_keep_the_remainder_in_the_middle() -> None:
    assert balanced(model("qwen3-235b-a22b"), 4) == (23, 24, 24, 23)
    assert balanced(model("llama-3.1-405b"), 4) == (31, 32, 32, 31)
    # three dense layers are lighter than expert layers, so the first stage has room for one more
    assert balanced(model("deepseek-v3"), 2) == (31, 30)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_balanced_is_the_best_even_split(costs: list[int], stages: int, first: int, last: int) -> None:
    stages = min(stages, len(costs))
    split = balanced_stages(costs, stages, first=first, last=last)
    assert sum(split) == len(costs) and len(split) == stages
    assert max(split) - min(split) <= 1
    best = min(_heaviest(costs, s, first, last) for s in _splits(len(costs), stages) if max(s) - min(s) <= 1)
    assert _heaviest(costs, split, first, last) == best


def _splits(layers: int, stages: int) -> list[tuple[int, ...]]:
    if stages == 1:
        return [(layers,)]
    return [(n, *rest) for n in range(1, layers - stages + 2) for rest in _splits(layers - n, stages - 1)]


def _heaviest(costs: list[int], split: tuple[int, ...], first: int, last: int) -> int:
    cuts = [sum(split[:i]) for i in range(len(split) + 1)]
    loads = [sum(costs[a:b]) for a, b in pairwise(cuts)]
    loads[0] += first
    loads[-1] += last
    return max(loads)


def test_more_stages_than_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot fill"):
        balanced_stages([1, 1], 3)
