"""A tiny model of the same structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm

from ..spec import AttentionSpec, LayersSpec, ModelSpec, MoeSpec, RotarySpec, Spec
from ..spec.stage_law import Degrees
from ..spec.strategy import Phase

_HIDDEN, _TURNING = 16, 4
_MLA = {"q_lora": 9, "kv_lora": 7, "nope_dim": 6, "v_dim": 5}
"""Different from one another, so that what belongs to one is not taken for another."""
_TURNING_STRETCHED = 8
"""Features that turn under rotary scaling: four pairs, so that some are kept and some stretched, as in the real model.

Where the stretch begins is a share of the pairs that follows from theta and the original length; both stay.
"""
_WINDOW = 3
_MOST_HEADS = 128

PhaseDegrees = Mapping[Phase, Degrees]


def slots_of(model: ModelSpec, d: Degrees) -> int:
    """Expert slots of a layout."""
    return model.moe.experts + d.redundant if model.moe else 0


def shrink_model(
    spec: Spec, stages: Mapping[Phase, Sequence[int]], before: PhaseDegrees, degrees: PhaseDegrees
) -> tuple[ModelSpec, dict[Phase, tuple[int, ...]], dict[Phase, Degrees]]:
    """The small model, the layers of its stages, and the degrees with their redundant experts.

    Args:
        spec: The real model and workload.
        stages: Layers of each stage, by phase.
        before: Degrees for which the model was made.
        degrees: Degrees for which the small one is made.
    """
    model = spec.model
    layers, split = _layers(spec, stages, degrees)
    moe, redundant = _experts(model.moe, before, degrees) if model.moe else (None, dict.fromkeys(degrees, 0))
    tps = [(before[p].tp, d.tp) for p, d in degrees.items()]
    # Ulysses shares out the heads that TP leaves to a rank
    shares = [
        (before[p].tp * before[p].sp, d.tp * d.sp)
        for p, d in degrees.items()
        if (strategy := spec.strategy(p)) is not None and strategy.sp_kind == "ulysses"
    ]
    whole = lcm(*(tp for _, tp in tps))
    vocab = max(8, -(-32 // whole)) * whole + any(model.vocab % tp for tp, _ in tps)
    rotary = _rotary(model)
    small = model.model_copy(
        update={
            "layers": layers,
            "hidden": _HIDDEN,
            "vocab": vocab,
            "ffn": 3 * whole if model.ffn is not None else None,
            "attention": _attention(model, rotary, [*tps, *shares], spec.workload.input),
            "moe": moe,
            "rotary": rotary,
        }
    )
    return small, split, {p: replace(d, redundant=redundant[p]) for p, d in degrees.items()}


def _window(window: int | None, prompt: int) -> int | None:
    """A window that is shorter than the small prompt where the real one was shorter than the real prompt."""
    return None if window is None else _WINDOW if window < prompt else 1_000_000


# --- attention --------------------------------------------------------------------------------------------------------


def _rotary(model: ModelSpec) -> RotarySpec:
    """The same embedding; where a part of each head turned, a part goes on turning."""
    return model.rotary.model_copy(update={"dim": _turning(model.rotary) if model.rotary.dim else None})


def _turning(rotary: RotarySpec) -> int:
    """Features that turn with the position."""
    return _TURNING if rotary.scaling is None else _TURNING_STRETCHED


def _attention(model: ModelSpec, rotary: RotarySpec, tps: Sequence[tuple[int, int]], prompt: int) -> AttentionSpec:
    """Small attention; ``tps`` are the numbers of ranks that share out its heads, before and after."""
    a = model.attention
    window, turning = _window(a.window, prompt), _turning(rotary)
    if a.kind == "mla":
        assert a.nope_dim
        sizes = {name: size if getattr(a, name) else None for name, size in _MLA.items()} | {"rope_dim": turning}
        heads = lcm(*(tp for _, tp in tps)) * (2 if all(a.heads > tp for tp, _ in tps) else 1)
        return a.model_copy(update={**sizes, "heads": heads, "head_dim": _MLA["nope_dim"] + turning, "window": window})
    kv_heads, group = _kv_heads(a, tps)
    return a.model_copy(
        update={
            "heads": kv_heads * group,
            "kv_heads": kv_heads,
            "head_dim": turning * (2 if model.rotary_width < a.head_dim else 1),
            "window": window,
        }
    )


def _kv_heads(a: AttentionSpec, tps: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """KV heads and query heads per KV head; the real ones where nothing smaller is split and replicated alike."""
    ratio = a.heads // a.kv_heads
    for several in (True, False):
        for kv in range(1, a.kv_heads + 1):
            if all(_same_kv((a.kv_heads, old), (kv, new), several) for old, new in tps):
                for group in dict.fromkeys((ratio, *range(min(2, ratio), ratio))):
                    if kv * group <= _MOST_HEADS and all(kv * group % tp == 0 for _, tp in tps):
                        return kv, group
    return a.kv_heads, ratio


def _same_kv(before: tuple[int, int], after: tuple[int, int], several: bool) -> bool:
    """Whether KV heads lie over TP as before: split, several to a rank or one, or replicated.

    Args:
        before: KV heads and TP degree.
        after: The same of the small model.
        several: Whether a rank must go on having several KV heads.
    """
    (old_kv, old_tp), (kv, tp) = before, after
    if (old_kv > 1) != (kv > 1):
        return False
    if old_tp > old_kv:
        return tp > kv and tp % kv == 0
    return kv % tp == 0 and (not several or (old_kv > old_tp) == (kv > tp))


# --- experts ----------------------------------------------------------------------------------------------------------


def _experts(moe: MoeSpec, before: PhaseDegrees, degrees: PhaseDegrees) -> tuple[MoeSpec, dict[Phase, int]]:
    """The small experts, and the redundant ones of each phase."""
    groups = min(moe.groups, 4)
    top_groups = max(1, moe.top_groups * groups // moe.groups)
    multiple = lcm(groups * (2 if groups > 1 else 1), *(d.ep for d in degrees.values() if not d.redundant))
    experts = next(_sizes(moe, multiple, before, degrees))
    redundant = {p: _fill(experts, d) if d.redundant else 0 for p, d in degrees.items()}
    top_k = min(moe.top_k, 3, max(1, top_groups * (experts // groups) - 1)) if moe.top_k < moe.experts else experts
    widths = [d.etp for d in degrees.values()] + [d.tp for d in degrees.values() if moe.shared]
    update = {
        "experts": experts,
        "top_k": top_k,
        "ffn": 2 * lcm(*widths),
        "groups": groups,
        "top_groups": top_groups,
    }
    return moe.model_copy(update=update), redundant


def _sizes(moe: MoeSpec, multiple: int, before: PhaseDegrees, after: PhaseDegrees) -> Iterator[int]:
    """Numbers of experts, best first.

    Best leave one slot or several to a rank as before, with about as many redundant experts for each.
    """
    several = [(moe.experts + d.redundant) // d.ep > 1 for d in before.values()]
    most = 8 * multiple * max(d.ep for d in after.values())
    for slack in (2.0, float("inf")):
        for experts in range(multiple, most + 1, multiple):
            spare = [_fill(experts, d) if d.redundant else 0 for d in after.values()]
            slots = [(experts + r) // d.ep > 1 for r, d in zip(spare, after.values(), strict=True)]
            share = zip(spare, (d.redundant for d in before.values()), strict=True)
            if experts < min(4, moe.experts) or any(r * moe.experts > slack * old * experts for r, old in share if old):
                continue
            if slots == several:
                yield experts
    yield moe.experts


def _fill(experts: int, d: Degrees) -> int:
    """Redundant experts that make the slots divide: at least one."""
    return d.ep - experts % d.ep


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(
    spec: Spec, stages: Mapping[Phase, Sequence[int]], degrees: PhaseDegrees
) -> tuple[LayersSpec, dict[Phase, tuple[int, ...]]]:
    """Few layers: every kind in every stage that had it, stages even or uneven as they were."""
    old = spec.model.layers
    pattern = tuple(dict.fromkeys(old.pattern))
    period = max(1, len(pattern))
    dense = min(old.dense, period)
    extra = 1 if old.dense_at else 0
    least = min(old.count, max(2, dense + period + extra))
    per_stage = {p: min(min(stages[p]), (dense + 1 if dense else period)) for p in degrees}
    even = {p: len(set(stages[p])) == 1 for p in degrees}

    def fits(n: int) -> bool:
        return all(d.pp == 1 or (n // d.pp >= per_stage[p] and (n % d.pp == 0) == even[p]) for p, d in degrees.items())

    least_count = max(least, *(d.pp for d in degrees.values()))
    size = next((n for n in range(least_count, 4 * least_count * max(per_stage.values()) + 64) if fits(n)), old.count)
    layers = old.model_copy(
        update={
            "count": size,
            "dense": dense,
            "dense_at": (dense + period,) if extra and dense + period < size else (),
            "pattern": pattern,
            "window": _window(old.window, spec.workload.input),
        }
    )
    return layers, {p: _split(size, d.pp, stages[p]) for p, d in degrees.items()}


def _split(layers: int, pp: int, before: Sequence[int]) -> tuple[int, ...]:
    """Layers of each stage; the stages that were longest take the remainder."""
    base, rest = divmod(layers, pp)
    order = sorted(range(pp), key=lambda s: -before[s] if len(before) == pp else -s)
    return tuple(base + (s in order[:rest]) for s in range(pp))
