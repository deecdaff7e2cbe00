"""Drawings: what every one of them must show, and the DOT sources of three tiny graphs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError, Severity
from paradag.compiler.emit._compose import compose, count_boxes
from paradag.compiler.emit._scene import Box, Cluster, Scene
from paradag.compiler.emit.dot import check_drawing, render_dot
from paradag.compiler.ir.graph import Phase
from paradag.compiler.ir.unrolled import EDGE_KINDS
from paradag.compiler.spec import ChainTerm, ModelSpec, Spec, WorkloadSpec
from paradag.compiler.spec.catalog import model
from paradag.passes.analysis import PhaseAnalysis
from paradag.tests.emit.builds import MOE, compile_phase, term, tiny_spec
from paradag.tests.strategies import small_specs

HERE = Path(__file__).parent
NOTHING: frozenset[str] = frozenset()
WORDS = ("layers", "shards", "ranks")
EXPANSIONS = [frozenset(c) for c in chain.from_iterable(combinations(WORDS, n) for n in range(len(WORDS) + 1))]

ENDS = {"PrefillBegin", "PrefillEnd", "DecodeStepBegin", "DecodeStepEnd"}
"""Operators that may begin or end a drawing, besides KV transfers and the end of an early chunk."""

SNAPSHOTS: dict[str, tuple[Spec, Phase, int]] = {
    "dense_tp2.prefill": (tiny_spec("prefill", term("tp", 2)), "prefill", 1),
    "moe_ep8_tp2.decode": (tiny_spec("decode", term("ep", 8), term("tp", 2), moe=MOE, layers=2), "decode", 1),
    "pipeline_pp2.decode": (tiny_spec("decode", term("pp", 2), layers=3, microbatches=2), "decode", 3),
}

NODE = re.compile(r"^\t+(\w+) \[label=<(.*?)> class=(\w+) .*shape=(\w+)", re.MULTILINE)
EDGE = re.compile(r"^\t+(\w+) -> (\w+) \[(.*)\]$", re.MULTILINE)


def analysed(spec: Spec, phase: Phase, steps: int = 1, *, ranks: bool = False) -> PhaseAnalysis:
    return compile_phase(spec, phase, steps, ranks=ranks).phases[phase]


def real_spec(name: str, phase: Phase, *terms: ChainTerm, batch: int = 64, **options: Any) -> Spec:
    small = tiny_spec(phase, *terms, **options)
    return small.model_copy(
        update={"model": model(name), "workload": WorkloadSpec(batch=batch, input=2048, output=512)}
    )


PAGES: dict[str, tuple[Spec, Phase]] = {
    "llama_tp8": (real_spec("llama-3.1-70b", "decode", term("tp", 8)), "decode"),
    "llama_pp2_tp4": (real_spec("llama-3.1-70b", "prefill", term("pp", 2), term("tp", 4), microbatches=8), "prefill"),
    "llama_pp8": (real_spec("llama-3.1-70b", "decode", term("pp", 8), microbatches=8), "decode"),
    "mixtral_ep8": (real_spec("mixtral-8x7b", "decode", term("ep", 8)), "decode"),
    "deepseek": (
        real_spec("deepseek-v3", "decode", term("ep", 320, redundant=64), term("tp", 4), batch=10240),
        "decode",
    ),
    "deepseek_sp": (real_spec("deepseek-v3", "prefill", term("sp", 2), term("ep", 32), term("tp", 4)), "prefill"),
    "gpt_oss": (real_spec("gpt-oss-120b", "decode", term("ep", 4), term("tp", 2)), "decode"),
}


def clusters_of(scene: Scene) -> list[Cluster]:
    def inside(cluster: Cluster) -> list[Cluster]:
        return [cluster, *(c for child in cluster.children if isinstance(child, Cluster) for c in inside(child))]

    return [c for top in scene.clusters for c in inside(top)]


def check_laws(scene: Scene, analysis: PhaseAnalysis) -> None:
    """What a reviewer asks of every drawing."""
    ids = [b.id for b in scene.boxes]
    assert len(set(ids)) == len(ids)
    mesh = analysis.graph.mesh
    last_gpu = mesh.first_rank + mesh.replica_ranks - 1
    for box in scene.boxes:
        text = "\n".join(box.lines)
        assert re.search(r"^Input: \[\w+=\d", text, re.MULTILINE), box
        assert re.search(r"^Output: \[\w+=\d", text, re.MULTILINE), box
        check_gpus(box.lines[-1], mesh.first_rank, last_gpu)
    for cluster in clusters_of(scene):
        assert re.search(r"GPUs? \{?\d", cluster.title), cluster.title
        assert "all GPUs" not in cluster.title
    graph = nx.DiGraph([(link.source, link.target) for link in scene.links])
    assert set(graph.nodes) == set(ids), "every box is linked, and every link joins boxes"
    assert nx.is_directed_acyclic_graph(graph)
    check_ends(scene, graph)


def check_gpus(line: str, first: int, last: int) -> None:
    assert re.search(r"GPUs? \{?\d", line), line
    numbers = [int(n) for n in re.findall(r"\d+", line.split("GPU", 1)[1])]
    assert all(first <= n <= last for n in numbers), line


def check_ends(scene: Scene, graph: nx.DiGraph) -> None:
    boxes = {b.id: b for b in scene.boxes}

    def may_end(box: Box) -> bool:
        return box.title in ENDS or box.title.startswith("KVTransfer") or box.lines[0] == "chunk_end"

    ends = [n for n in graph if not graph.in_degree(n) or not graph.out_degree(n)]
    assert ends
    for name in ends:
        assert may_end(boxes[name]), boxes[name]


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_sources_of_tiny_graphs(name: str) -> None:
    spec, phase, steps = SNAPSHOTS[name]
    golden = HERE / f"{name}.dot"
    source = render_dot(analysed(spec, phase, steps))
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        golden.write_text(source, encoding="utf-8")
    assert source == golden.read_text(encoding="utf-8")


@settings(max_examples=8)
@given(data=st.data())
def test_laws_of_every_drawing(data: st.DataObject) -> None:
    spec = data.draw(small_specs())
    phase: Phase = data.draw(st.sampled_from(("prefill", "decode")))
    steps = data.draw(st.integers(1, 3)) if phase == "decode" else 1
    expand = data.draw(st.sampled_from(EXPANSIONS))
    analysis = analysed(spec, phase, steps)
    scene = compose(analysis, expand)
    assert count_boxes(analysis, expand) == len(scene.boxes)
    check_laws(scene, analysis)


@settings(max_examples=6)
@given(data=st.data(), ranks=st.booleans())
def test_a_drawing_with_everything_unfolded_is_the_flat_graph(data: st.DataObject, ranks: bool) -> None:
    """One pipeline item and one step: nodes and dependences are those of the flat graph, scheduling edges apart."""
    spec = data.draw(small_specs())
    whole = tuple(s.model_copy(update={"microbatches": 1, "chunk": None}) for s in spec.strategies)
    phase: Phase = data.draw(st.sampled_from(("prefill", "decode")))
    analysis = analysed(spec.model_copy(update={"strategies": whole}), phase, ranks=ranks)
    scene = compose(analysis, frozenset({"layers", "ranks" if ranks else "shards"}))
    flat = analysis.flat
    sources, targets = flat.edges()
    real = flat.kinds != EDGE_KINDS.index("order")
    pairs = np.unique(np.stack([sources[real], targets[real]]), axis=1).shape[1]
    assert len(scene.boxes) == flat.node_count
    assert len({(link.source, link.target) for link in scene.links}) == pairs
    drawn = sorted(link.kind for link in scene.links)
    assert drawn == sorted(EDGE_KINDS[k] for k in flat.kinds[real].tolist())


@pytest.mark.parametrize("name", PAGES)
def test_real_models_fit_a_page(name: str) -> None:
    spec, phase = PAGES[name]
    analysis = analysed(spec, phase)
    scene = compose(analysis)
    assert 20 <= len(scene.boxes) <= 65
    check_laws(scene, analysis)
    assert render_dot(analysis) == render_dot(analysis)


def test_shapes_follow_the_kind_of_node() -> None:
    analysis = analysed(*PAGES["deepseek_sp"])
    shapes = {label.split("</b>")[0].removeprefix("<b>").split(" ")[0]: shape
              for _, label, _, shape in NODE.findall(render_dot(analysis))}  # fmt: skip
    for title in ("Linear", "Attention", "Expert", "Norm", "Embedding", "LMHead"):
        assert shapes[title] == "box"
    for title in ("AllReduce", "AllGather", "ReduceScatter", "Dispatch", "Combine"):
        assert shapes[title] == "ellipse"
    for title in ("Router", "Split", "Aggregate"):
        assert shapes[title] == "parallelogram"
    assert shapes["KVWrite"] == shapes["KVRead"] == "cylinder"


def test_edges_look_like_their_kind() -> None:
    source = render_dot(analysed(*PAGES["deepseek"]))
    styles: dict[str, set[str]] = {kind: set() for kind in EDGE_KINDS}
    for _, _, attributes in EDGE.findall(source):
        kind = re.search(r"class=(\w+)", attributes)
        style = re.search(r"style=(\w+)", attributes)
        assert kind is not None
        styles[kind[1]].add(style[1] if style else "solid")
    assert styles["route"] == {"dashed"}
    assert styles["state"] == {"dotted"}
    assert styles["data"] == {"solid"}
    assert not styles["order"]


def test_title_and_labels_carry_the_figures() -> None:
    analysis = analysed(*PAGES["deepseek"])
    scene = compose(analysis)
    assert scene.title[0] == "DeepSeek-V3 | decode | ep 320 { redundant 64 } -> tp 4 | 320 GPUs h100_sxm"
    assert "TPOT" in scene.title[1] and "memory per GPU" in scene.title[1]
    assert "1 micro-batch of 10240 sequences" in scene.title[2]
    dispatch = next(b for b in scene.boxes if b.title.startswith("Dispatch"))
    # 32 tokens per GPU to 8 experts each, 7168 features of 2 bytes
    assert dispatch.title == "Dispatch over ep (320 GPUs) 3.67 MB"
    assert dispatch.lines[-1] == "GPUs 0-319"
    o = next(b for b in scene.boxes if b.id == "moe_layer_o_out_all_reduce")
    assert o.lines[-1] == "80 groups of 4: GPUs 0-3, 4-7, 8-11, ... 316-319"
    assert any(c.title.startswith("moe layer x 58 (layers 3-60)") for c in clusters_of(scene))


def test_alternating_layers_are_drawn_once_and_in_turn() -> None:
    scene = compose(analysed(*PAGES["gpt_oss"]))
    titles = [c.title for c in clusters_of(scene)]
    assert any(t.startswith("x 18 in turn: moe sliding layer, moe full layer (layers 0-35)") for t in titles)
    assert sum(b.title == "Attention" for b in scene.boxes) == 2
    assert not any(b.folded for b in scene.boxes)


def test_inner_stages_that_are_alike_are_one_cluster() -> None:
    scene = compose(analysed(*PAGES["llama_pp8"]))
    assert [c.title.split(" | ")[0] for c in scene.clusters] == [
        "stage 0 of 8",
        "stages 1-6 of 8 in a row, 10 layers each",
        "stage 7 of 8",
    ]
    folded = [b for b in scene.boxes if b.folded]
    assert [b.title for b in folded] == ["dense layer x 60 (layers 10-69)", "dense layer x 10 (layers 70-79)"]
    assert folded[0].lines[-1] == "each of GPUs 1-6"


def test_busy_time_adds_up_in_every_stage() -> None:
    scene = compose(analysed(*PAGES["llama_pp2_tp4"]))
    for cluster in scene.clusters:
        assert sum(b.share for b in cluster.boxes()) == pytest.approx(1.0)
    assert any(b.critical for b in scene.boxes)


def test_later_steps_follow_the_first() -> None:
    scene = compose(analysed(tiny_spec("decode", term("pp", 2), layers=2), "decode", 4))
    assert scene.clusters[-1].title == "decode steps 1-3 | GPUs 0-1"
    labels = {link.label for link in scene.links}
    assert "sampled ids" in labels
    steps = next(b for b in scene.boxes if b.id == "later_steps")
    assert steps.title == "DAG of one step x 3"
    versions = [link for link in scene.links if link.target == steps.id and link.kind == "state"]
    assert len(versions) == 2, "one version per stage"


def test_replicas_are_named() -> None:
    analysis = analysed(tiny_spec("decode", term("dp", 2), term("tp", 2), batch=8), "decode")
    assert "replica 0 of 2 is drawn, the others run on GPUs 2-3" in compose(analysis).title[2]


def test_names_cannot_break_the_source() -> None:
    spec = tiny_spec("decode", term("tp", 2))
    nasty = ModelSpec(**{**spec.model.model_dump(), "name": '<b>"x"\\n</b> & {a|b} ]; } \u00fc'})
    source = render_dot(analysed(spec.model_copy(update={"model": nasty}), "decode"))
    assert "&lt;b&gt;&quot;x&quot;\\n&lt;/b&gt; &amp; {a|b} ]; } \u00fc" in source
    canonical(source)


@pytest.mark.parametrize("name", [*SNAPSHOTS, "deepseek", "gpt_oss", "llama_pp8"])
def test_graphviz_reads_every_source(name: str) -> None:
    analysis = analysed(*(SNAPSHOTS | PAGES)[name])
    for expand in EXPANSIONS if name in SNAPSHOTS else [NOTHING]:
        canonical(render_dot(analysis, expand))


def canonical(source: str) -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed: the source is not parsed")
    done = subprocess.run(["dot", "-Tcanon"], input=source.encode(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()


def test_a_drawing_that_is_too_large_is_refused_with_a_way_out() -> None:
    analysis = analysed(*PAGES["deepseek"])
    with pytest.raises(DiagnosticError) as caught:
        render_dot(analysis, frozenset({"layers", "shards"}))
    found = caught.value.diagnostics[0]
    assert (found.code, found.severity) == ("PD603", Severity.ERROR)
    assert found.help is not None
    assert "leave shards out of --expand" in found.help and "--emit json" in found.help
    assert check_drawing(analysis) is None


def test_a_large_drawing_is_a_warning() -> None:
    analysis = analysed(tiny_spec("decode", layers=200), "decode")
    found = check_drawing(analysis, frozenset({"layers"}))
    assert found is not None
    assert (found.code, found.severity) == ("PD603", Severity.WARNING)
    assert render_dot(analysis, frozenset({"layers"})).count("shape=") > 2000


def test_unknown_expansions_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes"):
        render_dot(analysed(tiny_spec("decode"), "decode"), frozenset({"nodes"}))
