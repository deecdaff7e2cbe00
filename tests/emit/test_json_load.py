"""Documents read back: the same graph, the same bytes; and what is no document is a diagnostic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import Diagnostic, DiagnosticError
from paradag.compiler.emit import LoadedGraph, load_json, write_json
from paradag.compiler.emit import load as load_module
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import Spec
from paradag.passes.compiled import Compiled
from paradag.tests.emit.builds import MOE, compile_phase, rejected, term, tiny_spec
from paradag.tests.strategies import small_specs


def text_of(compiled: Compiled, phase: Phase, folder: Path) -> bytes:
    path = folder / "small.json"
    write_json(compiled, phase, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    spec = tiny_spec("decode", term("pp", 2), term("ep", 4), term("tp", 2), moe=MOE, layers=2, microbatches=2)
    return text_of(compile_phase(spec, "decode", 2), "decode", tmp_path_factory.mktemp("text"))


def codes(source: bytes | Path) -> list[str]:
    with pytest.raises(DiagnosticError) as error:
        load_json(source)
    return [d.code for d in error.value.diagnostics]


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 2))
@settings(max_examples=6)
def test_a_document_loads_back_into_the_same_graph(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, phase: Phase, steps: int
) -> None:
    compiled = compile_phase(spec, phase, steps)
    text = text_of(compiled, phase, tmp_path_factory.mktemp("loaded"))
    loaded = load_json(text)
    assert loaded.to_json() == text
    flat = compiled.phases[phase].flat
    assert np.array_equal(loaded.nodes.layer, flat.column("layer"))
    assert np.array_equal(loaded.nodes.stage, flat.column("stage"))
    assert np.array_equal(loaded.nodes.figures("time_s"), flat.duration)
    sources, targets = flat.edges()
    assert np.array_equal(loaded.edges.source, sources)
    assert np.array_equal(loaded.edges.target, targets)
    assert np.array_equal(loaded.edges.kind, flat.kinds)
    assert loaded.header.model == spec.model
    assert loaded.header.strategy == spec.strategy(phase)
    ours, theirs = loaded.to_networkx(), flat.to_networkx()
    assert nx.utils.edges_equal(ours.edges(data=True), theirs.edges(data=True))
    assert {n: d["op"] for n, d in ours.nodes(data=True)} == dict(theirs.nodes(data="op"))


def test_equal_is_what_has_equal_columns(text: bytes) -> None:
    loaded = load_json(text)
    assert loaded == load_json(text)
    for old, new in ((b'"kind":"order"', b'"kind":"data"'), (b'"ep":1', b'"ep":2'), (b'"flops":0', b'"flops":1')):
        assert old in text
        assert loaded != load_json(text.replace(old, new))


def test_layout_does_not_matter(text: bytes) -> None:
    """Another tool may indent the document and order its keys otherwise."""
    loaded = load_json(text)
    document = json.loads(text)
    assert load_json(json.dumps(document, indent=4).encode()) == loaded
    assert load_json(json.dumps(document).encode()).to_json() == text
    document["nodes"] = [dict(reversed(row.items())) for row in document["nodes"]]
    assert load_json(json.dumps(dict(reversed(document.items()))).encode()).to_json() == text
    assert load_json(text.replace(b"\n", b"\r\n")) == loaded


def test_a_rejected_run_loads(tmp_path: Path) -> None:
    compiled = rejected(compile_phase(tiny_spec("prefill"), "prefill"), Diagnostic("PD301", "235 GB on 80 GB"))
    loaded = load_json(text_of(compiled, "prefill", tmp_path))
    assert (loaded.header.status, len(loaded.nodes), len(loaded.edges)) == ("REJECTED", 0, 0)
    assert loaded.to_json() == (tmp_path / "small.json").read_bytes()


def test_a_file_is_read_as_its_bytes(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    assert load_json(tmp_path / "x.json") == load_json(text)
    assert codes(tmp_path / "missing.json") == ["PD001"]
    assert codes(tmp_path) == ["PD001"]


def test_a_graph_can_be_walked(text: bytes) -> None:
    loaded = load_json(text)
    expert = next(loaded.nodes.row(n) for n in range(len(loaded.nodes)) if loaded.nodes.op[n] == "Expert")
    assert expert["module"] == "moe"
    assert expert["weights"][0]["placement"] == {"slot": ("ep",)}
    for outside in (-1, len(loaded.nodes)):
        with pytest.raises(IndexError):
            loaded.nodes.row(outside)


def edited(text: bytes, *path: Any, value: Any) -> bytes:
    """The document with one value replaced, one row per line as paradag writes it."""
    document = json.loads(text)
    place = document
    for part in path[:-1]:
        place = place[part]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    lines = [b"{"]
    lines += [f'"{k}":{json.dumps(v)},'.encode() for k, v in document.items() if k not in ("nodes", "edges")]
    for key, end in (("nodes", b"],"), ("edges", b"]")):
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in document.get(key, []))
        lines += [f'"{key}":['.encode(), rows.encode(), end]
    return b"\n".join([*lines, b"}\n"])


FAULTS = [
    (("schema",), "paradag-dag-0", ["PD010"]),
    (("gpus",), -1, ["PD015"]),
    (("gpus",), ..., ["PD013"]),
    (("surprise",), 1, ["PD011"]),
    (("status",), "REJECTED", ["PD010"]),
    (("nodes", 3, "id"), 4, ["PD015"]),
    (("nodes", 3, "op"), 7, ["PD010"]),
    (("nodes", 3, "kind"), "magic", ["PD010"]),
    (("nodes", 3, "phase"), "prefill", ["PD010"]),
    (("nodes", 3, "stage"), 2**40, ["PD015"]),
    (("nodes", 3, "devices"), [], ["PD015"]),
    (("nodes", 3, "devices"), [1, 1], ["PD012"]),
    (("nodes", 3, "coords"), ..., ["PD013"]),
    (("nodes", 3, "inputs"), ..., ["PD013"]),
    (("nodes", 3, "weights"), ..., ["PD013"]),
    (("nodes", 3, "colour"), "red", ["PD011"]),
    (("nodes", 3, "time_s"), -1.0, ["PD015"]),
    (("nodes", 3, "bound"), None, ["PD010"]),
    (("nodes", 3, "outputs", 0, "dims"), {"batch": 1.5}, ["PD010"]),
    (("nodes", 3, "outputs", 0, "dtype"), ..., ["PD013"]),
    (("edges", 2, "kind"), "magic", ["PD010"]),
    (("edges", 2, "source"), 10**6, ["PD423"]),
    (("edges", 2, "target"), 10**6, ["PD423"]),
    (("edges", 2, "target"), ..., ["PD013"]),
]


@pytest.mark.parametrize(("path", "value", "expected"), FAULTS, ids=[".".join(map(str, f[0])) for f in FAULTS])
def test_faults_are_named_whatever_the_layout(
    text: bytes, path: tuple[Any, ...], value: Any, expected: list[str]
) -> None:
    broken = edited(text, *path, value=value)
    assert codes(broken) == expected
    assert codes(json.dumps(json.loads(broken), indent=1).encode()) == expected


@pytest.mark.parametrize(
    ("place", "key", "value"), [("nodes", "kind", "magic"), ("edges", "kind", "magic"), ("edges", "target", 0)]
)
def test_a_fault_has_its_line(text: bytes, place: str, key: str, value: Any) -> None:
    broken = edited(text, place, 3, key, value=value)
    row = json.dumps(json.loads(broken)[place][3], separators=(",", ":")).encode()
    with pytest.raises(DiagnosticError) as error:
        load_json(broken, "some.json")
    (found,) = error.value.diagnostics
    assert found.span is not None
    assert found.span.file == "some.json"
    assert broken.splitlines()[found.span.line - 1].rstrip(b",") == row
    assert found.message.startswith(f"{place}[3]")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'},\n{"id":2,', b'}\n{"id":2,'),
        (b'}\n],\n"edges"', b'},\n],\n"edges"'),
        (b'],\n"edges"', b']\n"edges"'),
        (b"]\n}", b"],\n}"),
        (b'"gpus":', b'"gpus":NaN,"gpus":'),
        (b'"summary":{"critical_path_s":', b'"summary":{"critical_path_s":Infinity'),
        (b"]\n}\n", b"]\n}\n}"),
        (b"]\n}\n", b"]\n"),
    ],
)
def test_what_is_nearly_json_is_no_document(text: bytes, old: bytes, new: bytes) -> None:
    """What other tools would refuse is refused here too, with the place."""
    assert old in text
    with pytest.raises(DiagnosticError) as error:
        load_json(text.replace(old, new, 1))
    (found,) = error.value.diagnostics
    assert found.code == "PD010"
    assert found.span is not None


def test_an_edge_given_twice(text: bytes) -> None:
    document = json.loads(text)
    document["edges"].append(document["edges"][0])
    assert codes(json.dumps(document).encode()) == ["PD012"]


def test_many_faults_are_cut_short(text: bytes) -> None:
    found = codes(text.replace(b'"op":', b'"operator":'))
    assert found[-1] == "PD017"
    assert len(found) <= 21


GARBAGE = {
    "empty": (b"", "PD004"),
    "text": (b"model x { layers 3 }", "PD010"),
    "binary": (bytes(range(256)) * 40, "PD010"),
    "list": (b"[1, 2]", "PD010"),
    "null": (b"null", "PD010"),
    "object": (b"{}", "PD013"),
    "rows are no objects": (b'{"nodes": [1], "edges": []}', "PD013"),
    "no header": (b'{"nodes": [], "edges": []}', "PD013"),
    "empty row": (b'{"nodes": [{}], "edges": []}', "PD013"),
    "deep": (b'{"nodes":' + b"[" * 100_000, "PD010"),
    "deep and closed": (b'{"nodes":[],"edges":[],"a":' + b"[" * 500 + b"]" * 500 + b"}", "PD010"),
    "long number": (b'{"nodes":[],"edges":[],"gpus":' + b"9" * 100_000 + b"}", "PD010"),
    "half a surrogate": (b'{"nodes":[],"edges":[],"a":"\\ud800"}', "PD010"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_diagnostic(name: str) -> None:
    source, code = GARBAGE[name]
    assert code in codes(source)


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_document_is_a_graph_or_a_diagnostic(text: bytes, data: st.DataObject) -> None:
    """Bytes replaced, cut out or doubled anywhere: never another exception."""
    low = data.draw(st.integers(0, len(text) - 1))
    high = data.draw(st.integers(low, min(len(text), low + 60)))
    known = st.sampled_from((b"null", b"-1", b"{}", b"]", b",", b'"', text[low:high] * 2))
    middle = data.draw(st.binary(max_size=6) | known)
    try:
        assert isinstance(load_json(text[:low] + middle + text[high:]), LoadedGraph)
    except DiagnosticError as error:
        assert error.diagnostics


def test_limits(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_REFORMATTED_BYTES", len(text))
    assert load_json(text)
    assert codes(json.dumps(json.loads(text), indent=4).encode()) == ["PD002"]
    monkeypatch.setattr(load_module, "_MAX_DISTINCT_BYTES", 2000)
    assert codes(text) == ["PD002"]
    monkeypatch.setattr(load_module, "MAX_BYTES", 1000)
    assert codes(text) == ["PD002"]
