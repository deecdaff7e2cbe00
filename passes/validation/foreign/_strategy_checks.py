"""Checks on what a strategy file claims."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ....compiler.diagnostics import Diagnostic
from ....compiler.spec.stage_law import Degrees, degrees_of
from ....compiler.spec.strategy import ChainTerm, StrategySpec
from ._claims import DIMENSIONS, Claim, Claims

__all__ = ["CHECKS"]

_MAX_DEGREE = 1_000_000


def _report(
    claims: Claims, code: str, at: Claim, text: str, expected: str | None = None, help_: str | None = None
) -> Diagnostic:
    return Diagnostic(code, text, claims.text.place(at.leaf), expected, help_)


def _is_moe(claims: Claims) -> bool:
    experts = claims.first("experts")
    return claims.dense is None and (experts is None or experts.value > 1)


def _law(claims: Claims, phase: str) -> Degrees | None:
    """The law of the stage on the file's degrees; None where a degree is no whole number in range."""
    terms = []
    for name in DIMENSIONS:
        claim = claims.degree(phase, name)
        if claim is None or claim.value <= 1:
            continue
        if claim.whole is None or claim.whole > _MAX_DEGREE:
            return None
        terms.append(ChainTerm(name=name, degree=claim.whole))
    return degrees_of(
        StrategySpec(phase="decode" if phase == "decode" else "prefill", chain=tuple(terms)), is_moe=_is_moe(claims)
    )


def _text(degrees: Degrees) -> str:
    return " ".join(f"{n} {getattr(degrees, n)}" for n in DIMENSIONS if getattr(degrees, n) > 1) or "one GPU"


def degrees_agree(claims: Claims) -> list[Diagnostic]:
    """A degree given twice is given the same; unknown dimensions."""
    found = []
    for (phase, name), given in claims.degrees.items():
        other = next((c for c in given if c.value != given[0].value), None)
        if other is not None:
            where = f" in {phase}" if phase else ""
            first = given[0]
            text = f"{name} is {first.value:g} at `{first.leaf.name}` and {other.value:g} at `{other.leaf.name}`{where}"
            found.append(_report(claims, "PD754", other, text, "one degree"))
        broken = next((c for c in given if c.whole is None), None)
        if broken is not None:
            found.append(
                _report(claims, "PD754", broken, f"{name} {broken.value:g} is no whole number", "a whole degree")
            )
    for name, claim in claims.unknown:
        found.append(_report(claims, "PD201", claim, f"unknown parallel dimension `{name}`", "tp, sp, pp, ep or dp"))
    return found


def gpus(claims: Claims) -> list[Diagnostic]:
    """GPU totals against the law ``DP * PP * R``, the cluster, and one another."""
    found: list[Diagnostic] = []
    stated, room = claims.first("gpus"), claims.first("available") or claims.first("cluster")
    at = stated or room
    for phase in claims.degree_phases():
        law = _law(claims, phase)
        if law is None or at is None:
            continue
        if not law.fits():
            text = f"{_text(law)}: no whole number of rank groups in a stage of {law.ranks}"
            found.append(_report(claims, "PD205", at, text, "sp*tp and ep*etp that divide one another"))
        elif stated is not None:
            found += _total(claims, stated, law)
        if room is None or room.value < 1:
            continue
        if law.gpus > room.value:
            found.append(
                _report(
                    claims,
                    "PD207",
                    room,
                    f"{_text(law)} needs {law.gpus} GPUs, and there are {room.value:g}",
                    f"at most {room.value:g} GPUs",
                )
            )
        elif stated is None and law.gpus < room.value:
            text = f"{_text(law)} uses {law.gpus} of {room.value:g} GPUs"
            found.append(
                _report(
                    claims,
                    "PD208",
                    room,
                    text,
                    f"{law.gpus} GPUs: dp {law.dp} * pp {law.pp} * R {law.ranks}",
                    "raise `dp`, or take fewer GPUs",
                )
            )
    other = next((c for c in claims.numbers.get("gpus", ()) if stated and c.value != stated.value), None)
    if stated is not None and other is not None:
        text = f"`{stated.leaf.name}` is {stated.value:g} and `{other.leaf.name}` is {other.value:g}"
        found.append(_report(claims, "PD754", other, text, "one GPU count"))
    if stated is not None and room is not None and stated.value > room.value:
        text = f"{stated.value:g} GPUs are asked for, and there are {room.value:g}"
        found.append(_report(claims, "PD207", stated, text, f"at most {room.value:g} GPUs"))
    return found


def _total(claims: Claims, stated: Claim, law: Degrees) -> list[Diagnostic]:
    """The stated total against the law's."""
    total = stated.value
    if total == law.gpus:
        return []
    product = prod(getattr(law, n) for n in DIMENSIONS)
    expected = f"{law.gpus} GPUs: dp {law.dp} * pp {law.pp} * R {law.ranks}"
    if total == product:
        text = f"{total:g} GPUs is the product of {_text(law)}; experts and attention share the ranks of a stage"
        cut = (
            f", or say that tp cuts the experts as well: `ep {law.ep} {{ etp {law.tp} }}`"
            if law.sp == 1 and law.ep > 1
            else ""
        )
        return [_report(claims, "PD752", stated, text, expected, f"state {law.gpus}{cut}")]
    groups = law.dp * law.pp
    ranks = total / groups
    if total > 0 and ranks.is_integer() and ranks % (law.sp * law.tp) == 0 and ranks % (law.ep * law.etp) == 0:
        text = f"{total:g} GPUs are stated for {_text(law)}, which needs {law.gpus}: {total / law.gpus:g} times as many"
        return [
            _report(
                claims,
                "PD753",
                stated,
                text,
                expected,
                f"name the replicas: `dp {law.dp * ranks / law.ranks:g}` gives {total:g} GPUs",
            )
        ]
    text = f"{total:g} GPUs are stated, and {_text(law)} makes {law.gpus}"
    return [_report(claims, "PD753", stated, text, expected)]


def layers(claims: Claims) -> list[Diagnostic]:
    """Whole layers, each in exactly one stage."""
    found: list[Diagnostic] = []
    total, each = claims.first("layers"), claims.first("layers_per_stage")
    for phase in claims.degree_phases():
        pp = claims.degree(phase, "pp")
        stages = pp.whole if pp else None
        if each is not None and each.whole is None:
            found.append(
                _report(
                    claims,
                    "PD216",
                    each,
                    f"{each.value:.2f} layers per stage: a layer is in one stage or another",
                    "whole layers",
                    "give the stages unequal whole numbers of layers",
                )
            )
        elif each is not None and total is not None and stages and each.value * stages != total.value:
            text = (
                f"{stages} stages of {each.value:g} layers make {each.value * stages:g}; the model has {total.value:g}"
            )
            found.append(_report(claims, "PD216", each, text, f"layers of all stages that sum to {total.value:g}"))
        if claims.stage_layers:
            counts = [c.value for c in claims.stage_layers]
            text = f"stages of {', '.join(f'{c:g}' for c in counts[:12])} layers"
            if total is not None and sum(counts) != total.value:
                found.append(
                    _report(
                        claims,
                        "PD216",
                        claims.stage_layers[0],
                        f"{text} are {sum(counts):g}, and the model has {total.value:g}",
                        f"a sum of {total.value:g}",
                    )
                )
            if stages and len(counts) != stages:
                found.append(
                    _report(
                        claims,
                        "PD216",
                        claims.stage_layers[0],
                        f"{len(counts)} stages have layers, and pp is {stages}",
                        f"{stages} stages",
                    )
                )
    per_stage = claims.first("gpus_per_stage")
    gpus_ = claims.first("gpus")
    pp = next((c for p in claims.degree_phases() if (c := claims.degree(p, "pp"))), None)
    dp = next((c for p in claims.degree_phases() if (c := claims.degree(p, "dp"))), None)
    replicas = dp.value if dp and dp.value >= 1 else 1
    if (
        per_stage
        and gpus_
        and pp
        and gpus_.value not in (per_stage.value * pp.value, per_stage.value * pp.value * replicas)
    ):
        made = per_stage.value * pp.value
        text = f"{pp.value:g} stages of {per_stage.value:g} GPUs are {made:g}, and {gpus_.value:g} are stated"
        found.append(_report(claims, "PD753", per_stage, text, "gpus per stage * pp * dp"))
    return found


def shards(claims: Claims) -> list[Diagnostic]:
    """Experts over ep, heads over tp, KV heads split or replicated."""
    found: list[Diagnostic] = []
    experts, heads, kv = claims.first("experts"), claims.first("heads"), claims.first("kv_heads")
    for phase in claims.degree_phases():
        ep, tp = claims.degree(phase, "ep"), claims.degree(phase, "tp")
        ways, cut = (ep.whole or 1) if ep else 1, (tp.whole or 1) if tp else 1
        if ep and ways > 1 and not _is_moe(claims):
            found.append(
                _report(claims, "PD209", ep, f"ep {ways} on a model without experts", "no ep on a dense model")
            )
        elif ep and experts and ways > 0 and experts.value % ways:
            found.append(
                _report(
                    claims,
                    "PD215",
                    ep,
                    f"{experts.value:g} experts over ep {ways} are {experts.value / ways:.3g} each",
                    "experts % ep = 0",
                )
            )
        if tp and heads and cut > 0 and heads.value % cut:
            found.append(_report(claims, "PD211", tp, f"{heads.value:g} heads over tp {cut}", "heads % tp = 0"))
        if tp and kv and kv.value >= 1 and cut > 0 and kv.value % cut and cut % kv.value:
            found.append(
                _report(
                    claims,
                    "PD212",
                    tp,
                    f"{kv.value:g} KV heads over tp {cut}",
                    "kv_heads % tp = 0, or tp % kv_heads = 0",
                )
            )
        for what, whole, degree in (("experts_per_gpu", experts, ep), ("heads_per_gpu", heads, tp)):
            held = claims.first(what)
            if (
                held
                and whole
                and degree
                and degree.value >= 1
                and held.value * degree.value != whole.value
                and whole.value % degree.value == 0
            ):
                right = whole.value / degree.value
                text = f"`{held.leaf.name}` is {held.value:g}, and {whole.value:g} over {degree.value:g} is {right:g}"
                found.append(_report(claims, "PD754", held, text, f"{right:g}"))
    return found


def memory(claims: Claims) -> list[Diagnostic]:
    """Weights against the memory of a GPU, and against the file's own memory figures."""
    weights, capacity = claims.first("weights_gb"), claims.first("capacity_gb")
    size, claimed = claims.first("parameters_b"), claims.first("memory_per_gpu_gb")
    source = weights or size
    total = weights.value if weights else size.value * claims.dtype_bytes if size and claims.dtype_bytes else None
    found: list[Diagnostic] = []
    for phase in claims.degree_phases() if total and source else ():
        law = _law(claims, phase)
        if law is None or total is None or source is None:
            continue
        # at best all weights are cut over ep and tp alike; dp, sp and replicas divide none
        ways = law.pp * law.ep * law.tp
        least = total / ways
        text = (
            f"{total:g} GB of weights over pp {law.pp} and at most {ways // law.pp} shards are {least:.3g} GB per GPU"
        )
        if capacity and least > capacity.value:
            found.append(
                _report(
                    claims,
                    "PD301",
                    source,
                    f"{text}, and a GPU has {capacity.value:g} GB",
                    f"at most {capacity.value:g} GB",
                    "more pp, ep or tp, or fewer bits per weight",
                )
            )
        if claimed and claimed.value < least * 0.99:
            found.append(
                _report(
                    claims,
                    "PD757",
                    claimed,
                    f"{claimed.value:.3g} GB per GPU is stated, but {text}; dp and repeated ranks divide no weights",
                    f"at least {least:.3g} GB",
                )
            )
        used = claims.first("utilization")
        if used and capacity and used.value / 100 * capacity.value < least * 0.99:
            stated = used.value / 100 * capacity.value
            found.append(
                _report(
                    claims,
                    "PD757",
                    used,
                    f"{used.value:.3g} % of {capacity.value:g} GB is {stated:.3g} GB, but {text}",
                    f"at least {100 * least / capacity.value:.3g} %",
                )
            )
    return found


def shares(claims: Claims) -> list[Diagnostic]:
    """Percentages that agree with one another and with the figures beside them."""
    found: list[Diagnostic] = []
    for claim in [
        *claims.numbers.get("utilization", ()),
        *claims.numbers.get("percent", ()),
        *claims.numbers.get("headroom", ()),
    ]:
        if not 0 <= claim.value <= 100:
            found.append(_report(claims, "PD754", claim, f"`{claim.leaf.name}` is {claim.value:g} %", "0 to 100 %"))
    used, room = claims.first("utilization"), claims.first("headroom")
    capacity, held = claims.first("capacity_gb"), claims.first("memory_per_gpu_gb")
    if used and room and abs(used.value + room.value - 100) > 2:
        found.append(
            _report(
                claims,
                "PD754",
                room,
                f"{used.value:g} % used and {room.value:g} % left are {used.value + room.value:g} %",
                "100 % together",
            )
        )
    others = [
        c
        for c in claims.numbers.get("utilization", ())
        if used and abs(c.value - used.value) > max(2.0, used.value / 20)
    ]
    if used and others:
        found.append(
            _report(
                claims,
                "PD754",
                others[0],
                f"memory utilization is {used.value:.3g} % and {others[0].value:.3g} %",
                "one figure",
            )
        )
    if used and capacity and capacity.value > 0:
        sizes = claims.numbers.get("memory_per_gpu_gb", [])
        real = [100 * c.value / capacity.value for c in sizes]
        if held and all(abs(r - used.value) > 5 for r in real):
            text = f"{held.value:.3g} GB of {capacity.value:g} GB is {real[0]:.3g} %, and {used.value:.3g} % is stated"
            found.append(_report(claims, "PD754", used, text, f"{real[0]:.3g} %"))
    return found


def phases(claims: Claims) -> list[Diagnostic]:
    """Prefill and decode named; no sequence parallelism in decode; nothing of training."""
    found: list[Diagnostic] = []
    decode_only = claims.phases == {"decode"}
    for phase in ("", "decode"):
        given = claims.degrees.get((phase, "sp"), [])
        if given and given[0].value > 1 and (phase == "decode" or decode_only):
            found.append(
                _report(
                    claims,
                    "PD204",
                    given[0],
                    f"sp {given[0].value:g} in decode: one token per sequence has nothing to split",
                    "no sp in decode",
                )
            )
    if decode_only and claims.sp_on is not None and not found:
        text = "sequence parallelism in decode: one token per sequence has nothing to split"
        found.append(Diagnostic("PD204", text, claims.text.place(claims.sp_on), "no sp in decode"))
    if not claims.phases and claims.degrees:
        first = next(iter(claims.degrees.values()))[0]
        found.append(
            _report(
                claims,
                "PD755",
                first,
                "the file names neither prefill nor decode: their best strategies differ",
                "a strategy for each phase",
            )
        )
    if claims.training:
        names = ", ".join(f"`{leaf.keys[-1]}`" for leaf in claims.training[:5])
        found.append(
            Diagnostic(
                "PD758", f"training options in an inference strategy: {names}", claims.text.place(claims.training[0])
            )
        )
    return found


CHECKS: tuple[Callable[[Claims], list[Diagnostic]], ...] = (degrees_agree, gpus, layers, shards, memory, shares, phases)
