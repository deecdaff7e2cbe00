"""Mutation proof of documents: every damage is found by its rule, and no legal document raises a finding."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field, replace

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from paradag.compiler.build import phase_degrees
from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.emit import load_json
from paradag.compiler.emit.document import build_header
from paradag.compiler.emit.json_rows import edge_rows, node_rows, write_document
from paradag.compiler.emit.loaded import Edges
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import Spec
from paradag.passes.compiled import Compiled
from paradag.passes.validation.flat import FLAT_RULES, check_flat, check_transfers
from paradag.tests.emit.builds import compile_phase, term, tiny_spec
from paradag.tests.mutation.damage import Damage, NoPlace
from paradag.tests.mutation.document_kinds import STATE_KINDS, Document
from paradag.tests.mutation.document_ranks import RANK_KINDS
from paradag.tests.strategies import small_specs

MOST_GPUS = 64
MOST_BYTES = 1 << 19
"""Documents stay small: what is damaged does not depend on it."""

KINDS = {k.name: k for k in (*STATE_KINDS, *RANK_KINDS)}


def text_of(compiled: Compiled, phase: Phase) -> bytes:
    file = io.BytesIO()
    analysis = compiled.phases[phase]
    edges = edge_rows(*analysis.flat.edges(), analysis.flat.kinds)
    write_document(file, build_header(compiled, phase), node_rows(analysis), edges)
    return file.getvalue()


_TEXTS: dict[tuple[str, Phase, int, bool], bytes] = {}
"""Documents of legal phases: many kinds of damage begin with the same ones."""


def legal_text(spec: Spec, phase: Phase, steps: int, ranks: bool) -> bytes:
    key = (spec.model_dump_json(), phase, steps, ranks)
    if key not in _TEXTS:
        _TEXTS[key] = text_of(compile_phase(spec, phase, steps, ranks=ranks), phase)
    return _TEXTS[key]


def on_nodes(spec: Spec, nodes: int = 4096) -> Spec:
    """The spec on a cluster whose size is known."""
    return spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"nodes": nodes})})


@dataclass(frozen=True)
class Case:
    """A damaged document."""

    kind: Damage[Document]
    strategy: str
    text: bytes = field(repr=False)


@st.composite
def damaged(draw: st.DrawFn, kind: Damage[Document]) -> Case:
    """A random legal document, damaged at a random place."""
    phase: Phase = draw(st.sampled_from(kind.phases))
    phases: tuple[Phase, ...] = ("prefill", "decode") if "transfer" in kind.must else (phase,)
    spec = on_nodes(draw(small_specs(phases, kind.must)))
    assume(phase_degrees(spec, phase).gpus <= MOST_GPUS)
    text = legal_text(spec, phase, draw(st.integers(1, 2)), draw(st.booleans()))
    assume(len(text) <= MOST_BYTES)
    try:
        harmed = kind.apply(orjson.loads(text), random.Random(draw(st.integers(0, 2**32))))
    except NoPlace:
        assume(False)
        raise
    return Case(kind, str(spec.strategy(phase)), orjson.dumps(harmed))


def found_in(case: Case) -> set[str]:
    """Codes on reading and checking a document."""
    try:
        return {d.code for d in check_flat(load_json(case.text))}
    except DiagnosticError as error:
        return {d.code for d in error.diagnostics}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_found(name: str) -> None:
    @settings(max_examples=2, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damaged(KINDS[name]))
    def prove(case: Case) -> None:
        found = found_in(case)
        assert case.kind.codes & found, f"found {sorted(found)}"

    prove()


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 3), st.booleans())
def test_legal_graphs_and_documents_have_no_findings(spec: Spec, phase: Phase, steps: int, ranks: bool) -> None:
    compiled = compile_phase(on_nodes(spec), phase, steps, ranks=ranks)
    assert check_flat(compiled.phases[phase].flat) == []
    assert check_flat(load_json(text_of(compiled, phase))) == []


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(small_specs(must={"transfer"}))
def test_transfers_pair_up(spec: Spec) -> None:
    phases: tuple[Phase, ...] = ("prefill", "decode")
    prefill, decode = (orjson.loads(text_of(compile_phase(spec, p), p)) for p in phases)
    loaded = [load_json(orjson.dumps(d)) for d in (prefill, decode)]
    assert check_transfers(*loaded) == []
    for node in decode["nodes"]:
        for tensor in node["outputs"] if node["op"] == "KVTransfer" else ():
            tensor["dtype"] = "fp64"
    found = check_transfers(loaded[0], load_json(orjson.dumps(decode)))
    assert {d.code for d in found} == {"PD433"}


def test_every_rule_is_proved() -> None:
    proved = {code for kind in KINDS.values() for code in kind.codes}
    # the reader refuses edges that lead back, so this one only guards graphs made in memory
    assert {code for code, _ in FLAT_RULES} - proved == {"PD401"}


def test_graphs_made_in_memory_may_have_any_edges() -> None:
    spec = on_nodes(tiny_spec("prefill", term("tp", 2)))
    graph = load_json(text_of(compile_phase(spec, "prefill"), "prefill"))
    for source, target, code in ((len(graph.nodes) - 1, 0, "PD401"), (0, len(graph.nodes), "PD423")):
        edges = Edges(
            np.append(graph.edges.source, np.int32(source)),
            np.append(graph.edges.target, np.int32(target)),
            np.append(graph.edges.kind, np.int8(0)),
        )
        assert code in {d.code for d in check_flat(replace(graph, edges=edges))}
