"""Legality of strategies, before anything is built: one function per rule, bound to its code in the tables below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...compiler.diagnostics import Diagnostic
from ...compiler.spec import LoadedSpec
from ...compiler.spec.pack import CONSTRAINT, graded
from ...compiler.spec.pack_law import settled
from . import _chain_rules as chain
from . import _figure_rules as figures
from . import _law_rules as law
from . import _pack_rules as packs
from . import _pool_rules as pools
from . import _spec_rules as whole
from . import _work_rules as work
from ._case import Case, Rule
from ._shape_rules import SHAPE_RULES

_CHAIN = frozenset({"PD201", "PD203"})
_LAW = _CHAIN | {"PD046", "PD205"}

PHASE_RULES: tuple[Rule, ...] = (
    Rule("PD201", chain.unknown_dimension),
    Rule("PD202", chain.inverted_nesting),
    Rule("PD203", chain.given_twice),
    Rule("PD204", chain.sp_in_decode),
    Rule("PD209", chain.nothing_to_split),
    Rule("PD011", chain.misplaced_option),
    Rule("PD046", packs.law_not_lowered, unless=_CHAIN),
    Rule("PD205", law.no_whole_groups, unless=_CHAIN | {"PD046"}),
    Rule("PD223", chain.unknown_option),
    Rule("PD223", law.placement_no_permutation),
    *SHAPE_RULES,
    Rule("PD206", law.axes_do_not_nest, unless=_LAW | {"PD212"}),
    Rule("PD216", work.stages_do_not_match),
    Rule("PD221", work.unbalanced_stages, unless=frozenset({"PD216"})),
    Rule("PD217", work.fewer_tokens_than_shards),
    Rule("PD218", work.fewer_sequences_than_microbatches),
    Rule("PD219", work.groups_without_requests, unless=_LAW | {"PD218"}),
    Rule("PD220", work.chunk_too_small, unless=frozenset({"PD218"})),
    Rule("PD306", work.too_many_items, unless=frozenset({"PD218", "PD220"})),
    Rule("PD222", law.dense_attention_dp, unless=_LAW),
    Rule(CONSTRAINT, packs.constraints_broken, unless=_LAW),
    Rule("PD225", pools.redundant_without_ep),
    Rule("PD228", pools.latent_replicated, unless=_LAW | {"PD211"}),
    Rule("PD305", law.spans_slow_link, unless=_LAW | {"PD206", "PD211", "PD212", "PD223"}),
)
"""Rules on one phase, in the order in which they are told."""

SPEC_RULES: tuple[whole.SpecRule, ...] = (
    whole.SpecRule("PD102", figures.claim_against_dimensions),
    whole.SpecRule("PD103", figures.assumption_made),
    whole.SpecRule("PD107", figures.beyond_peak),
    whole.SpecRule("PD108", figures.sparse_peak),
    whole.SpecRule("PD109", figures.link_missing, unless=_LAW),
    whole.SpecRule("PD104", whole.phase_without_strategy),
    whole.SpecRule("PD105", whole.workload_incomplete),
    whole.SpecRule("PD106", whole.context_too_long),
    whole.SpecRule("PD226", pools.pipelined_decode_pool, unless=_LAW),
    whole.SpecRule("PD227", pools.replicated_heads_between_pools, unless=_LAW | {"PD211", "PD212"}),
    whole.SpecRule("PD207", whole.too_many_gpus, unless=_LAW),
    whole.SpecRule("PD208", whole.gpus_left_unused, unless=_LAW | {"PD207"}),
)
"""Rules on the spec as a whole."""


def check_spec(loaded: LoadedSpec, *, advised: bool = True) -> tuple[LoadedSpec, list[Diagnostic]]:
    """Whether the strategies of a spec are legal.

    Args:
        loaded: Spec and places.
        advised: Whether findings name legal choices, which take long to look for.

    Returns:
        The spec as it is compiled (SP gone from decode, ``placement`` completed, what a knowledge
        pack's law decides written out), and all findings in the order of
        phases and rules. With errors among them the spec must not be built.
    """
    found: list[Diagnostic] = []
    cases = []
    for strategy in loaded.spec.strategies:
        written = Case(loaded, strategy, advised)
        case = _compiled(written)
        cases.append(case)
        found += _of_phase(written, case)
    codes = {d.code for d in found}
    for rule in SPEC_RULES:
        if not rule.unless & codes:
            news = [rule.diagnose(loaded, f) for f in rule.check(loaded, cases)]
            found += news
            codes |= {d.code for d in news}
    strategies = tuple(c.strategy if _LAW & codes else settled(loaded.spec, c.strategy) for c in cases)
    spec = loaded.spec.model_copy(update={"strategies": strategies})
    return replace(loaded, spec=spec), graded(dict.fromkeys(found), loaded.pack)


def _of_phase(written: Case, case: Case) -> Iterator[Diagnostic]:
    """Findings on one phase; the chain's own rules see it as written, the others without what is left out."""
    codes: set[str] = set()
    for rule in PHASE_RULES:
        if rule.unless & codes:
            continue
        subject = written if rule.check.__module__ == chain.__name__ else case
        for finding in rule.check(subject):
            codes.add(rule.code)
            yield case.diagnose(rule.code, finding)


def _compiled(written: Case) -> Case:
    """The case as it is compiled: no SP in decode, and a placement that names absent axes too, outermost."""
    strategy = written.strategy
    terms = tuple(t for t in strategy.chain if t.name != "sp" or strategy.phase == "prefill")
    case = replace(written, strategy=strategy.model_copy(update={"chain": terms}))
    order, degrees = strategy.placement, case.degrees
    if not order or not degrees.fits():
        return case
    absent = tuple(a for a in law.AXES if a not in order and getattr(degrees, a) == 1)
    return replace(case, strategy=case.strategy.model_copy(update={"placement": (*absent, *order)}))
