"""Experts under a measured load: how many are redundant, how evenly ranks are loaded, what that costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..experts import PhaseExperts, Tried
from ._facts import Facts, PhaseFacts
from ._format import counted, folded, percent, rate, seconds, size, table

MOST_LAYERS = 3
"""Layers that are told one by one: those with the heaviest ranks."""


def loaded_experts(facts: Facts, phase: PhaseFacts) -> list[str]:
    """What the load makes of a phase's experts; without one, that slots lie in order."""
    found = facts.plan.experts
    if facts.spec.model.moe is None:
        return []
    if found is None:
        return [
            "Without a measured load (`--expert-load`) experts lie in order, none is redundant, and every slot counts "
            "as equally likely.",
            "",
        ]
    part = found.phases.get(phase.phase)
    if part is None:
        return ["The load makes no difference here: without EP every rank has a part of all experts.", ""]
    name = "TTFT" if phase.phase == "prefill" else "TPOT"
    assert facts.subject is not None
    usual = facts.subject.numbers.ttft_s if phase.phase == "prefill" else facts.subject.numbers.tpot_s
    lines = [
        f"Experts dealt for the load of {counted(len(found.load.layers), 'layer')} in `{Path(found.load.name).name}`: "
        f"{part.redundant} redundant, {part.after.experts.shape[2]} slots on each of {part.ranks} ranks "
        "(`expert_placement.json` has them all). A layer without a load keeps its experts in order.",
        "",
        *_tried(part, name),
        *_layers(part, found.load.layers),
        f"With this load, waiting in each layer for the experts of the heaviest rank: {name} "
        f"{seconds(part.latency)}, and {seconds(part.plain)} with experts in order; without the load (in all other "
        f"sections) {seconds(usual)}. Exchanges count as uniform. Few tokens of a skewed load visit fewer "
        "experts, whose weights are then not read, so a load can also make a step shorter.",
        "",
    ]
    n = found.numbers
    both = n.ttft_s is not None and n.tpot_s is not None
    if both and phase.phase == "decode":
        lines += [f"Both phases with this load: {rate(n.tokens_per_s)} tokens/s, {rate(found.plain.tokens_per_s)} with "
                  "experts in order.", ""]  # fmt: skip
    return lines


def _tried(part: PhaseExperts, name: str) -> list[str]:
    def row(t: Tried) -> tuple[str, ...]:
        figures = (f"{t.worst:.3f}", f"{t.mean:.3f}", seconds(t.latency), size(t.memory))
        return str(t.redundant), *figures, t.verdict or "chosen"

    columns = ("redundant", "imbalance, worst layer", "mean", f"{name} with this load", "memory", "verdict")
    return [
        "Redundant experts tried; imbalance is the load of the heaviest rank over the mean:",
        "",
        *table(columns, map(row, part.tried), right=columns[:5]),
    ]


def _layers(part: PhaseExperts, layers: tuple[int, ...]) -> list[str]:
    before, after = part.before.imbalance, part.after.imbalance
    rows = []
    for row in np.argsort(-before, kind="stable")[:MOST_LAYERS].tolist():
        heavy = int(part.after.rank_loads[row].argmax())
        held = folded(part.after.experts[row, heavy].tolist())
        share = percent(float(part.after.rank_loads[row, heavy]))
        rows.append((str(layers[row]), f"{before[row]:.3f}", f"{after[row]:.3f}", f"rank {heavy}: {held}", share))
    rows.append(("mean of all", f"{before.mean():.3f}", f"{after.mean():.3f}", "-", "-"))
    columns = ("layer", "imbalance in order", "as dealt", "experts of the heaviest rank", "its share")
    return table(columns, rows, right=("imbalance in order", "as dealt", "its share"))
