"""What a fuzzer feeds: every reader of text from outside, with seeds to begin from and words that it knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.driver import compile as compile_strategy
from paradag.compiler.emit import load_json, write_json
from paradag.compiler.knowledge import rules
from paradag.grammar import format_text, load_text
from paradag.grammar.condition import load_condition_text
from paradag.grammar.dot_reader import read_dot
from paradag.passes.validation import check_flat
from paradag.passes.validation.foreign.drawing import check_drawing
from paradag.passes.validation.foreign.strategy_json import check_strategy_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: Name.
        read: Reads bytes; raises nothing on input of any kind.
        seeds: Inputs to begin from.
        words: Words and signs that inputs are made of.
        longest: Bytes of the longest input tried.
    """

    name: str
    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: Callable[[], list[str]]
    longest: int


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").replace("\0", "")


def read_strat(data: bytes) -> None:
    """A strategy file: read, and laid out again where it parses."""
    text = _text(data)
    for reader in (load_text, format_text):
        try:
            reader(text)
        except DiagnosticError:
            continue


def read_drawing(data: bytes) -> None:
    """A Graphviz file: read and checked."""
    check_drawing(read_dot(_text(data), "fuzz.dot"))


def read_condition(data: bytes) -> None:
    """A condition file; the first byte picks Markdown, YAML or JSON."""
    suffix = ("md", "yaml", "json")[data[0] % 3] if data else "md"
    try:
        load_condition_text(_text(data[1:]), f"fuzz.{suffix}")
    except DiagnosticError:
        return


def read_document(data: bytes) -> None:
    """A graph document or a strategy file in JSON: read and checked; the first byte picks which."""
    if data and data[0] % 4 == 0:
        check_strategy_json(_text(data[1:]), "fuzz.json")
        return
    try:
        check_flat(load_json(data[1:], "fuzz.json"))
    except DiagnosticError:
        return


def _examples(kind: str) -> Iterator[str]:
    """Failing examples of the knowledge base."""
    return (e.text for r in rules().values() for e in r.examples if e.kind == kind and not e.base)


def _files(pattern: str) -> Iterator[str]:
    return (p.read_text(encoding="utf-8") for p in sorted(ROOT.glob(pattern)))


def _conditions() -> list[bytes]:
    from paradag.tests.grammar.test_conditions import CHIP, MODEL, STRATEGY, YAML

    yaml_like = {"model": {"layers": 2, "hidden": 64}, "cluster": {"nodes": 1}, "workload": {"input": 8}}
    texts = [*_files("tests/grammar/conditions/*.md"), *_examples("md"), CHIP + MODEL + STRATEGY]
    return [
        *(b"\0" + t.encode() for t in texts),
        b"\1" + YAML.encode(),
        b"\2" + json.dumps(yaml_like, indent=1).encode(),
    ]


TINY = """
model "tiny" { layers 1  hidden 8  vocab 16  ffn 16  attention gqa { heads 2  kv_heads 1  head_dim 4 }
               dtype bf16  kv_dtype bf16 }
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 2  input 4 tokens  output 2 tokens }
strategy { tp 2 }
"""


@cache
def _documents() -> list[bytes]:
    compiled = compile_strategy(TINY, name="tiny")
    made = []
    for phase in compiled.phases:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.json"
            write_json(compiled, phase, path)
            made.append(b"\1" + path.read_bytes())
    return [*made, *(b"\0" + t.encode() for t in _examples("json"))]


def _words_in(seeds: Callable[[], list[bytes]]) -> Callable[[], list[str]]:
    def words() -> list[str]:
        found = {
            w for s in seeds() for w in re.findall(r"[A-Za-z_]{2,20}|[0-9]+|->|\.\.|[<>]=|[{}\[\]\":;,=]", _text(s))
        }
        return sorted(found)

    return words


def _strategies() -> list[bytes]:
    return [t.encode() for t in (*_files("ir_examples/*.strat"), *_examples("strat"))]


def _drawings() -> list[bytes]:
    return [t.encode() for t in _examples("dot")]


READERS = {
    r.name: r
    for r in (
        Reader("strat", read_strat, _strategies, _words_in(_strategies), 4096),
        Reader("dot", read_drawing, _drawings, _words_in(_drawings), 4096),
        Reader("condition", read_condition, _conditions, _words_in(_conditions), 4096),
        Reader("json", read_document, _documents, _words_in(_documents), 65536),
    )
}
