"""Rules on degrees against the model's dimensions."""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.spec.dtypes import DTYPES
from ._case import Case, Finding, Rule, choices, near

BLOCK_BOTH_WAYS = frozenset({"fp8"})
"""Formats whose scales cover square blocks; the others group elements along the summed dimension only."""


def heads_not_divisible(case: Case) -> Iterator[Finding]:
    """A rank has whole query heads."""
    heads, tp = case.model.attention.heads, case.degrees.tp
    if heads % tp:
        fix = choices("tp", near(tp, lambda v: heads % v == 0))
        yield Finding(
            f"{heads} attention heads do not divide by `tp {tp}`", ("tp",), f"a divisor of {heads}", f"use {fix}"
        )


def kv_heads_not_aligned(case: Case) -> Iterator[Finding]:
    """KV heads are split evenly or replicated evenly; the latent of MLA is replicated."""
    a, tp = case.model.attention, case.degrees.tp
    if a.kind == "mla" or _aligned(a.kv_heads, tp):
        return
    fix = choices("tp", near(tp, lambda v: _aligned(a.kv_heads, v) and a.heads % v == 0))
    yield Finding(
        f"{a.kv_heads} KV heads are neither split nor replicated by `tp {tp}`",
        ("tp",),
        f"a divisor or a multiple of {a.kv_heads}",
        f"use {fix}",
    )


def _aligned(kv_heads: int, tp: int) -> bool:
    return kv_heads % tp == 0 or tp % kv_heads == 0


MAX_RING = 128
"""Ranks of a ring: every layer has nodes for each hop."""


def ring_too_long(case: Case) -> Iterator[Finding]:
    """The hops of a ring are bounded."""
    sp = case.degrees.sp
    if case.strategy.sp_kind == "ring" and sp > MAX_RING:
        fix = f"use `sp {MAX_RING} kind ring`, or `sp {sp} kind allgather`"
        yield Finding(f"a ring of {sp:,} ranks has {sp - 1:,} hops in each layer", ("sp",), f"at most {MAX_RING}", fix)


def ulysses_heads_not_divisible(case: Case) -> Iterator[Finding]:
    """Ulysses SP shares out the heads that TP leaves to a rank: query heads evenly, KV heads evenly or replicated."""
    a, d = case.model.attention, case.degrees
    if case.strategy.sp_kind != "ulysses" or ulysses_fits(case, d.sp):
        return
    left, of = a.heads // d.tp, f" that `tp {d.tp}` leaves to a rank" if d.tp > 1 else ""
    what = f"{left} attention heads" if left % d.sp else f"{a.kv_heads // d.tp} KV heads"
    fix = choices("sp", near(d.sp, lambda v: ulysses_fits(case, v)))
    yield Finding(
        f"the {what}{of} do not divide by `sp {d.sp} kind ulysses`",
        ("sp",),
        f"a divisor of {left}" if left % d.sp else f"a divisor or a multiple of {a.kv_heads // d.tp}",
        f"use {fix}, or `sp {d.sp} kind allgather`" if fix else f"write `sp {d.sp} kind allgather`",
    )


def ulysses_fits(case: Case, sp: int) -> bool:
    """Whether so many ranks can share out the heads that TP leaves to a rank."""
    a, tp = case.model.attention, case.degrees.tp
    left = a.kv_heads // tp
    return (a.heads // tp) % sp == 0 and (a.kind == "mla" or left == 0 or _aligned(left, sp))


def ffn_not_divisible(case: Case) -> Iterator[Finding]:
    """A rank has an equal part of every FFN: dense, expert and shared."""
    for what, width, axis, degree in _widths(case):
        if width % degree:
            fix = choices(axis, near(degree, lambda v, w=width, x=axis: w % v == 0 and _heads_fit(case, x, v)))  # type: ignore[misc]
            yield Finding(
                f"the {what} of width {width} does not divide by `{axis} {degree}`",
                _path(case, axis),
                f"a divisor of {width}",
                f"use {fix}",
            )


def quantization_block_cut(case: Case) -> Iterator[Finding]:
    """Elements that share a scale stay on one rank."""
    for what, dtype, width, axis, degree in _cut_widths(case):
        block = DTYPES[dtype].block
        if block == 1 or degree == 1 or width % degree or (width // degree) % block == 0:
            continue

        def legal(v: int, w: int = width, b: int = block, x: str = axis) -> bool:
            return w % v == 0 and (v == 1 or (w // v) % b == 0) and _heads_fit(case, x, v)

        fix = choices(axis, near(degree, legal, above=False))
        yield Finding(
            f"`{axis} {degree}` leaves {width // degree} of the {what}'s {width} elements to a rank "
            f"and cuts a block of {block} that share a scale ({dtype})",
            _path(case, axis),
            f"shards that are multiples of {block}",
            f"use {fix}" if fix else f"leave the {what} unquantized",
        )


def experts_not_divisible(case: Case) -> Iterator[Finding]:
    """A rank has equally many expert slots, redundant ones included."""
    moe, d = case.model.moe, case.degrees
    if moe is None or (moe.experts + d.redundant) % d.ep == 0:
        return
    slots = moe.experts + d.redundant
    redundant = -(-slots // d.ep) * d.ep - moe.experts
    nearest = choices("ep", near(d.ep, lambda v: slots % v == 0))
    stated = f" and {d.redundant} redundant" if d.redundant else ""
    yield Finding(
        f"{moe.experts} experts{stated} do not divide by `ep {d.ep}`",
        ("ep.redundant", "ep") if d.redundant else ("ep",),
        f"a divisor of {slots}, or redundant experts that fill the last ranks",
        f"write `ep {d.ep} {{ redundant {redundant} }}`, or use {nearest}",
    )


def _heads_fit(case: Case, axis: str, degree: int) -> bool:
    """Whether the heads admit the degree, so that one fix does not call for the next."""
    a = case.model.attention
    return axis != "tp" or (a.heads % degree == 0 and (a.kind == "mla" or _aligned(a.kv_heads, degree)))


def _widths(case: Case) -> Iterator[tuple[str, int, str, int]]:
    """(name, width, option, degree) of every FFN that is cut."""
    model, d = case.model, case.degrees
    if model.ffn is not None and case.dense_layers:
        yield "dense FFN", model.ffn, "tp", d.tp
    if model.moe is not None and case.moe_layers:
        yield "expert FFN", model.moe.ffn, *_expert_axis(case)
        if model.moe.shared:
            yield "shared experts' FFN", model.moe.shared * model.moe.ffn, "tp", d.tp


def _expert_axis(case: Case) -> tuple[str, int]:
    """The option that cuts an expert's inside: ``etp``, or ``tp`` where the strategy names no EP."""
    term, d = case.strategy.term("ep"), case.degrees
    return ("etp" if term is not None and term.etp else "tp"), d.etp


def _cut_widths(case: Case) -> Iterator[tuple[str, str, int, str, int]]:
    """(name, dtype, width, option, degree) of every dimension of a quantized weight that a degree cuts."""
    model, d, a = case.model, case.degrees, case.model.attention
    dtype = model.projection_dtype
    yield "output projection", dtype, a.heads * ((a.v_dim or 0) if a.kind == "mla" else a.head_dim), "tp", d.tp
    if dtype in BLOCK_BOTH_WAYS:
        yield "query projection", dtype, a.heads * a.head_dim, "tp", d.tp
        if a.kind != "mla":
            yield "key and value projection", dtype, a.kv_heads * a.head_dim, "tp", min(d.tp, a.kv_heads)
    for what, width, axis, degree in _widths(case):
        yield what, model.dtype if what == "dense FFN" else model.expert_dtype, width, axis, degree


def _path(case: Case, axis: str) -> tuple[str, ...]:
    return ("ep.etp", "ep") if axis == "etp" else (axis,)


SHAPE_RULES = (
    Rule("PD211", heads_not_divisible),
    Rule("PD212", kv_heads_not_aligned, unless=frozenset({"PD211"})),
    Rule("PD224", ring_too_long),
    Rule("PD224", ulysses_heads_not_divisible, unless=frozenset({"PD211", "PD212"})),
    Rule("PD213", ffn_not_divisible),
    Rule("PD214", quantization_block_cut),
    Rule("PD215", experts_not_divisible),
)
