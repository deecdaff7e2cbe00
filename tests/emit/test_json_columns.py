"""Columns in ``.npz``: what JSON says, as arrays."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.emit import columns as columns_module
from paradag.compiler.emit import load_columns, load_json, write_columns, write_json
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import Spec
from paradag.tests.emit.builds import MOE, compile_phase, term, tiny_spec
from paradag.tests.strategies import small_specs


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = tiny_spec("decode", term("ep", 4), term("tp", 2), moe=MOE)
    path = tmp_path_factory.mktemp("columns") / "small.npz"
    write_columns(compile_phase(spec, "decode", 2).phases["decode"], path)
    return path


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 2), st.booleans())
@settings(max_examples=6)
def test_columns_say_what_the_document_says(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, phase: Phase, steps: int, ranks: bool
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    compiled = compile_phase(spec, phase, steps, ranks=ranks)
    write_columns(compiled.phases[phase], folder / "a.npz")
    write_columns(compiled.phases[phase], folder / "b.npz")
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    columns = load_columns(folder / "a.npz")
    write_json(compiled, phase, folder / "a.json")
    graph = load_json(folder / "a.json")
    for number in range(len(graph.nodes)):
        row = graph.nodes.row(number)
        coords = {a: int(c) for a, c in zip(columns["axes"], columns["coords"][number], strict=True) if c >= 0}
        coords |= {key: int(columns[key][number]) for key in ("step", "microbatch", "chunk")}
        assert coords == row["coords"]
        assert columns["ops"][columns["op"][number]] == row["op"]
        assert columns["names"][columns["name"][number]] == row["name"]
        assert columns["modules"][columns["module"][number]] == row["module"]
        assert columns["bounds"][columns["bound"][number]] == row["bound"]
        assert columns["device"][number] == row["devices"][0]
        assert columns["ranks"][number] == len(row["devices"])
        for column, key in (("duration", "time_s"), ("flops", "flops"), ("bytes", "bytes")):
            assert columns[column][number] == row[key]
    assert np.array_equal(columns["layer"], graph.nodes.layer)
    assert np.array_equal(columns["sources"], graph.edges.source)
    assert np.array_equal(np.repeat(np.arange(len(graph.nodes)), np.diff(columns["indptr"])), graph.edges.target)
    assert np.array_equal(columns["kinds"], graph.edges.kind)


def codes(path: Path) -> list[str]:
    with pytest.raises(DiagnosticError) as error:
        load_columns(path)
    return [d.code for d in error.value.diagnostics]


def with_column(file: Path, target: Path, key: str, value: Any) -> Path:
    """A copy of the file with one column replaced, or left out."""
    with np.load(file) as archive:
        columns = {k: archive[k] for k in archive if k != key}
    if value is not None:
        columns[key] = np.array(value)
    np.savez(target, **columns)
    return target


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("indptr", None, "PD013"),
        ("op", [0.5], "PD015"),
        ("schema", np.frombuffer(b'["other"]', dtype=np.uint8), "PD015"),
        ("ops", np.frombuffer(b"[1]", dtype=np.uint8), "PD015"),
        ("ops", np.frombuffer(b"[]", dtype=np.uint8), "PD015"),
        ("ops", np.frombuffer(b"no json", dtype=np.uint8), "PD010"),
        ("axes", np.frombuffer(b'"ab"', dtype=np.uint8), "PD015"),
        ("op", np.int16(0), "PD015"),
    ],
)
def test_wrong_columns_are_named(file: Path, tmp_path: Path, key: str, value: Any, code: str) -> None:
    assert codes(with_column(file, tmp_path / "x.npz", key, value)) == [code]


def test_edges_must_go_forward(file: Path, tmp_path: Path) -> None:
    columns = load_columns(file)
    sources = columns["sources"].copy()
    sources[0] = len(columns["op"])
    assert codes(with_column(file, tmp_path / "x.npz", "sources", sources)) == ["PD015"]
    indptr = columns["indptr"][::-1].copy()
    assert codes(with_column(file, tmp_path / "x.npz", "indptr", indptr)) == ["PD015"]


def test_what_is_no_archive(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"no archive", file.read_bytes()[:500]):
        path.write_bytes(content)
        assert codes(path) == ["PD010"]
    assert codes(tmp_path / "missing.npz") == ["PD001"]
    assert codes(with_column(file, path, "op", np.array([None], dtype=object))) == ["PD010"], "nothing is unpickled"
    monkeypatch.setattr(columns_module, "MAX_COLUMN_BYTES", 1000)
    assert codes(file) == ["PD002"]


def test_a_column_that_lies_about_its_size_is_not_unpacked(file: Path, tmp_path: Path) -> None:
    """The header of an array may declare terabytes that the archive does not hold."""
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "step.npy" else old.read(name))
    assert codes(path) == ["PD010"]


@given(st.data())
@settings(max_examples=30)
def test_a_damaged_file_is_columns_or_a_diagnostic(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.npz"
    path.write_bytes(content)
    try:
        assert "op" in load_columns(path)
    except DiagnosticError as error:
        assert error.diagnostics
