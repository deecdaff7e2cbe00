"""Files that are no strategy file at all end with a diagnostic, in seconds and bounded memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import Diagnostic, DiagnosticError
from paradag.grammar import INPUT_CODES, MAX_BYTES, load_file, load_text
from paradag.grammar._findings import MAX_ERRORS

SECONDS = 10
MEBIBYTES = 100


def refused(path: Path) -> tuple[Diagnostic, ...]:
    with pytest.raises(DiagnosticError) as caught:
        load_file(path)
    assert all(d.span and d.span.file == str(path) for d in caught.value.diagnostics)
    return caught.value.diagnostics


def code(path: Path) -> str:
    (diagnostic,) = refused(path)
    assert diagnostic.help
    return diagnostic.code


def test_missing_and_directory(tmp_path: Path) -> None:
    assert code(tmp_path / "none.strat") == "PD001"
    assert code(tmp_path) == "PD001"
    assert code(tmp_path / ("x" * 5000)) == "PD001"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert code(tmp_path / "pipe") == "PD001"


def test_endless_device() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero on this system")
    assert code(Path("/dev/zero")) == "PD001"


def test_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.strat"
    with path.open("wb") as handle:
        handle.truncate(50 * 2**20)  # sparse
    tracemalloc.start()
    assert code(path) == "PD002"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_BYTES


@pytest.mark.parametrize("data", [b"\x7fELF\x00\x01", b"model \xff", "modèle".encode("utf-16"), "é".encode("latin-1")])
def test_not_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "binary.strat"
    path.write_bytes(data)
    assert code(path) == "PD003"


@pytest.mark.parametrize("data", ["", "  \n\t\n", "# only\n# comments", "\ufeff"])
def test_empty(tmp_path: Path, data: str) -> None:
    path = tmp_path / "empty.strat"
    path.write_text(data, encoding="utf-8")
    assert code(path) == "PD004"
    assert "PD004" not in INPUT_CODES


def test_input_codes() -> None:
    assert {"PD001", "PD002", "PD003"} == INPUT_CODES


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "windows.strat"
    path.write_bytes(b"\xef\xbb\xbfworkload {\r\n    input x\r\n}\r\n")
    first = next(d for d in refused(path) if d.span and d.span.line > 1)
    assert first.span and (first.span.line, first.span.column) == (2, 11)


@pytest.mark.parametrize("number", ["1000000000", "1e9", "9" * 5000, "1e999999999", "-1", "0"])
def test_impossible_number_of_layers(number: str) -> None:
    text = f'model "m" {{ layers {number} hidden 64 vocab 9 ffn 8 attention mha {{ heads 4 }} }}'
    text += "cluster { accelerator h200_sxm nodes 1 of 8 } workload { input 4 }"
    with pytest.raises(DiagnosticError) as caught:
        load_text(text)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "PD015"
    assert diagnostic.span and diagnostic.span.column == 13
    assert len(diagnostic.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        "}" * 1_000_000,
        "model { " * 20_000,
        "strategy { pp 2 { " * 12_000,
        "a " * 1_000_000,
        "a " * 49_000,
        "1 " * 1_000_000,
        "strategy { " + "tp 2 -> " * 12_000,
        "strategy { " + "tp 2 " * 12_000 + "}",
        'model "m" { layers 2 { pattern' + " full" * 40_000 + " } }",
        'model "m" { layers 2 { dense_at' + " 1" * 40_000 + " } }",
        "model " + '"' * 1_000_000,
        '"' + "\\" * 1_000_000,
        "=" * 1_000_000,
        "\n" * 1_000_000 + "x",
        "9" * 4_000_000,
        "a-" * 1_000_000,
        "a" * 4_000_000,
    ],
    ids=lambda text: text[:20].strip()[:20] + f"-{len(text)}",
)
def test_hostile_texts_end_soon(text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(DiagnosticError) as caught:
        load_text(text)
    assert time.monotonic() - begin < SECONDS
    assert len(caught.value.diagnostics) <= MAX_ERRORS + 1
    assert all(len(d.message) < 300 for d in caught.value.diagnostics)


@pytest.mark.parametrize(
    "text", ["a " * 2_000_000, "a-" * 2_000_000, "strategy { " + "tp 2 " * 20_000, "{" * 4_000_000]
)
def test_memory_is_bounded(text: str) -> None:
    tracemalloc.start()
    with pytest.raises(DiagnosticError):
        load_text(text)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak < MEBIBYTES
