"""Findings on foreign drawings: for each, a drawing that has it and one that has not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import Diagnostic
from paradag.grammar.dot_reader import read_dot
from paradag.passes.validation.foreign import check_drawing, check_foreign, foreign_kind
from paradag.passes.validation.foreign._labels import devices_of, layers_of

CORPUS = Path(os.environ.get("PARADAG_CORPUS", Path(__file__).resolve().parents[3] / ".." / "shared" / "corpus"))


def check(body: str, head: str = "digraph") -> list[Diagnostic]:
    return check_drawing(read_dot(f"{head} {{\n{body}\n}}", "x.dot"))


def node(name: str, title: str, gpu: str | None = "0", shape: str = "box", dims: str = "", extra: str = "") -> str:
    dims = dims or r"\nInput: [batch=4, hidden=8]\nOutput: [batch=4, hidden=8]"
    device = "" if gpu is None else rf"\nGPU: {gpu}"
    return f'{name} [shape={shape} label="{title}{dims}{device}" {extra}]\n'


IN = node("x", "Input", shape="ellipse")
OUT = node("y", "Output", shape="ellipse")


def chain(*middle: str) -> str:
    """Input, the nodes, output, in a row. A node's statement begins with its name."""
    names = ["x", *(m.split()[0] for m in middle), "y"]
    return IN + "".join(middle) + OUT + " -> ".join(names) + "\n"


def mlp(name: str = "m", **keys: str | None) -> str:
    return node(name, keys.pop("title", "MLP") or "", **keys)  # type: ignore[arg-type]


def experts(before: str, after: str) -> str:
    """A router and two experts on two GPUs."""
    text = IN + OUT + node("g", "Router", shape="parallelogram") + node("e0", "Expert 0") + node("e1", "Expert 1", "1")
    text += node("d", "Dispatch all-to-all", "0-1", "ellipse") + node("c", "Combine all-to-all", "0-1", "ellipse")
    text += node("s", "Weighted sum", shape="parallelogram")
    text += node("r", "Norm") + "x -> g; x -> d; g -> d [style=dashed]; s -> r -> y;"
    text += f"{before} -> {{e0 e1}} [style=dashed]; {{e0 e1}} -> {after};"
    text += "" if before == "d" else "d -> s;"
    return text + ("c -> s;" if after == "c" else "d -> c -> s;" if before == "g" else "d -> c; c -> s;")


PHASES = node("p", "Prefill attention") + node("d", "Decode attention") + node("k", "KV cache", shape="cylinder")
LAYERS = "".join(node(f"l{i}", f"Layer {i} MLP") for i in range(4))

CASES: dict[str, tuple[str, str]] = {
    "PD710": (chain(mlp("a"), mlp("b")) + "b -> a", chain(mlp("a"), mlp("b")) + "a -> y"),
    "PD711": (chain(mlp("a")) + mlp("z") + "z -> y", chain(mlp("a"))),
    "PD712": (chain(mlp("a")) + mlp("z"), chain(mlp("a")) + 'z [shape=plaintext label="MLP legend"]'),
    "PD713": (chain(mlp("alpha")) + "alpah -> y", chain(mlp("alpha")) + "alpha -> y"),
    "PD714": (chain(mlp("a")) + mlp("a", title="Norm"), chain(mlp("a")) + mlp("a")),
    "PD720": (chain(mlp("a", gpu=None)), 'subgraph cluster_0 { label="GPUs 0-3"\n' + chain(mlp("a", gpu=None)) + "}"),
    "PD721": (chain(mlp("a", gpu="all GPUs")), chain(mlp("a", gpu="All GPUs 0-7"))),
    "PD722": (
        'label="runs on 8 GPUs"\n' + chain(mlp("a", gpu="8")),
        'label="runs on 8 GPUs"\n' + chain(mlp("a", gpu="7")),
    ),
    "PD723": (chain(node("r", "All-reduce", "0", "ellipse")), chain(node("r", "All-reduce", "0-1", "ellipse"))),
    "PD724": (
        chain(mlp("a")) + node("r", "All-reduce", "0-1", "ellipse") + "a -> r",
        chain(node("r", "All-reduce", "0-1", "ellipse")),
    ),
    "PD725": (
        chain(mlp("a"), mlp("b", gpu="1")),
        chain(mlp("a"), node("s", "Send", "0 -> 1", "ellipse"), mlp("b", gpu="1")),
    ),
    "PD730": (
        chain(node("a", "Layer 0 MLP"), node("b", "Layer 3 MLP")),
        chain(node("a", "Layer 0 MLP"), node("b", "Layer 1 MLP")),
    ),
    "PD731": ('label="a 94-layer model"\n' + IN + LAYERS + OUT, 'label="a 4-layer model"\n' + IN + LAYERS + OUT),
    "PD740": (chain('a [shape=box label="MLP\\nGPU: 0"]\n'), chain(mlp("a"))),
    "PD741": (
        chain(mlp("a"), mlp("b", dims=r"\nInput: [batch=4, hidden=32]\nOutput: [4, 8]")),
        chain(mlp("a"), mlp("b", dims=r"\nInput: [2, 16]\nOutput: [4, 8]")),
    ),
    "PD742": (experts("g", "c"), experts("d", "c")),
    "PD743": (experts("d", "r"), experts("d", "c")),
    "PD744": (chain(node("g", "MoE router", shape="parallelogram")), experts("d", "c")),
    "PD745": (PHASES + "x -> p -> k -> d -> y", PHASES + node("e", "PrefillEnd") + "x -> p -> e -> k -> d -> y"),
    "PD746": (
        chain(node("d", "Decode attention")),
        chain(node("k", "KV read", shape="cylinder"), node("d", "Decode attention")),
    ),
    "PD747": (chain(mlp("a", shape="ellipse")), chain(mlp("a"))),
}


@pytest.mark.parametrize("code", CASES)
def test_found(code: str) -> None:
    found = [d for d in check(CASES[code][0]) if d.code == code]
    assert len(found) == 1
    assert found[0].span is not None


@pytest.mark.parametrize("code", CASES)
def test_not_found(code: str) -> None:
    assert code not in {d.code for d in check(CASES[code][1])}


def test_a_sound_drawing_has_no_findings() -> None:
    body = chain(
        mlp("a"), node("s", "Send", "0 -> 1", "ellipse"), node("r", "Recv", "0 -> 1", "ellipse"), mlp("b", gpu="1")
    )
    assert check(body) == []
    assert check(experts("d", "c")) == []


def test_undirected_and_empty_graphs() -> None:
    assert [d.code for d in check(chain(mlp("a")).replace("->", "--"), "graph") if d.code == "PD708"] == ["PD708"]
    assert [d.code for d in check("")] == ["PD707"]


def test_a_thousand_nodes_give_a_page() -> None:
    body = "".join(f'n{i} [label="MLP {i}"]\n' for i in range(1_000))
    found = check(body)
    assert len(found) <= 4
    assert "1000 nodes with no edge at all: `n0`" in next(d.message for d in found if d.code == "PD712")


def test_what_a_cut_off_text_lacks_is_not_reported() -> None:
    drawing = read_dot("digraph {\n" + mlp("a") + mlp("b") + "a -> b", "x.dot")
    assert [d.code for d in check_drawing(drawing)] == ["PD703"]


def test_a_program_is_only_reported_as_such() -> None:
    drawing = read_dot("digraph {\n for (i = 0; i < 4; i++) { a -> b } }", "x.dot")
    assert {d.code for d in check_drawing(drawing)} == {"PD704"}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("GPU: 3", {3}),
        ("MLP\nGPUs 0-3", {0, 1, 2, 3}),
        ("GPU: [0, 2, 4]", {0, 2, 4}),
        ("GPU: 0,8,16", {0, 8, 16}),
        ("Device: gpu_12", {12}),
        ("Devices 0-1", {0, 1}),
        ("GPU: 9 (Node 1, GPU 1)", {9}),
        ("All GPUs 0-3", {0, 1, 2, 3}),
        ("GPU 0 -> GPU 1", {0, 1}),
        ("GPUs 0-1 → GPUs 2-3", {0, 1, 2, 3}),
        ("GPU: All 8 GPUs", None),
        ("4 experts/GPU", None),
        ("GPUs\n[1024, 8]", None),
        ("GPU: DP0_TP3", None),
        ("8 GPUs", None),
    ],
)
def test_devices(text: str, numbers: set[int] | None) -> None:
    assert devices_of(text).numbers == (frozenset(numbers) if numbers else None)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("Layer 3 MLP", {3}),
        ("Layers 0-2", {0, 1, 2}),
        ("LayerNorm 4", set()),
        ("QKV L7", {7}),
        ("16 layers", set()),
        ("Linear Layer 1", set()),
        ("layer_5_mlp", {5}),
    ],
)
def test_layers(text: str, layers: set[int]) -> None:
    assert layers_of(text) == frozenset(layers)


def test_the_kind_of_a_file() -> None:
    assert foreign_kind("{}", "a.json") == "json"
    assert foreign_kind("", "a.GV") == "dot"
    assert foreign_kind("// x\nstrict digraph G {", "a.txt") == "dot"
    assert foreign_kind('{"tp": 4}', "a.txt") == "json"


def test_unreadable_files_are_findings(tmp_path: Path) -> None:
    assert [d.code for d in check_foreign(tmp_path / "none.dot")] == ["PD001"]
    (tmp_path / "bytes.dot").write_bytes(b"\xff\xfe\x00")
    assert [d.code for d in check_foreign(tmp_path / "bytes.dot")] == ["PD003"]


def test_the_corpus() -> None:
    files = sorted(p for kind in ("dags", "strategies") for p in (CORPUS / kind).glob("*"))
    if not files:
        pytest.skip(f"no corpus at {CORPUS}")
    for path in files:
        began = time.perf_counter()
        found = check_foreign(path)
        assert time.perf_counter() - began < 2, path.name
        assert len(found) <= 40, path.name
        assert all(d.span is None or d.span.line >= 1 for d in found)
