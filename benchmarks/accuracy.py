"""How close predicted serving metrics are to measured ones, by model, chip, engine and metric.

Rows come from `e2e_h100.csv` and `measured.csv` in the folder that PARADAG_REFERENCE names (default
`../shared/reference`), or from any file with some of the columns of `e2e_h100.csv`. Where columns are absent:
concurrency = batch_size, GPUs = tp * pp * attention DP, flags unset. Rows outside the model's scope are counted with
the reason.

    python benchmarks/accuracy.py [--data CSV]... [--json FILE] [--write]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paradag.compiler.build import build_graph
from paradag.compiler.cost import resolve_hardware
from paradag.compiler.cost.serving import ClosedLoop, Latencies
from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.driver import lowering_passes
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.spec import AcceleratorSpec, ChainTerm, ClusterSpec, ModelSpec, Spec, StrategySpec, WorkloadSpec
from paradag.compiler.spec.catalog import accelerator, accelerator_names, model, model_names
from paradag.compiler.spec.engines import engine
from paradag.passes.analysis.serving import Point, ServingModel, disaggregated
from paradag.passes.analysis.step_times import StepTimes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
FLAGS = ("flag_topology_bug", "flag_moe_group_mismatch", "flag_tpot_conflict", "possible_mtp", "flag_queueing")
DOUBTS = {"engine_not_named": "?", "per_gpu_or_total": "ambiguous"}
"""Doubts that the notes of `measured.csv` name, and what tells them; such rows are groups of their own."""
METRICS = ("tpot_ms", "ttft_ms", "latency_s", "output_tok_s")

DTYPES: Mapping[str, str | None] = {
    **dict.fromkeys(("", "none", "nan", "gemm=nan"), None),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16"), "bf16"),
    **dict.fromkeys(("fp8", "fp8_block", "fp8_static", "fp8_ootb", "w8a8"), "fp8"),
    **dict.fromkeys(("nvfp4", "fp4"), "nvfp4"),
    **dict.fromkeys(("mxfp4", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"), "mxfp4"),
    **dict.fromkeys(("int8", "int8_wo"), "int8"),
    **dict.fromkeys(("int4", "int4_wo", "w4afp8"), "int4"),
}
"""Format of the weights by the names of quantization modes; None leaves the catalogue's."""
CHIPS = {"A100": "a100_sxm_80gb", "A100-40GB": "a100_sxm_40gb", "H100": "h100_sxm", "H100-PCIe": "h100_pcie"}
ENGINES = ("vllm", "sglang", "trtllm")
SKEW = 1.01
"""Expert loads of synthetic prompts follow a power law with this exponent, as in AIConfigurator's expert benchmarks."""
MODELS = {"llama-7b": "llama-2-7b", "llama-70b": "llama-2-70b"}
"""Names of the first Llama releases, whose dimensions are those of the second."""


class OutOfScope(Exception):
    """A row that the model does not cover; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Parallelism of one worker."""

    tp: int = 1
    pp: int = 1
    adp: int = 1
    ep: int = 1
    workers: int = 1

    @property
    def masked(self) -> bool:
        """Expert parallelism without a dispatch.

        Without attention DP every rank sees all tokens: engines let each rank compute its own experts of every token,
        and one all-reduce adds the results.
        """
        return self.ep > 1 and self.adp == 1


@dataclass(frozen=True)
class Setup:
    """What is lowered once: a model on a chip, an engine, and the layout of its workers (prefill and decode apart)."""

    model: str
    dtype: str | None
    expert_dtype: str | None
    kv_dtype: str
    block_scales: bool
    chip: str
    engine: str
    prefill: Layout
    decode: Layout
    separate: bool


@dataclass(frozen=True)
class Row:
    """A measured row: who was measured under which load, and the metrics measured and predicted."""

    id: str
    group: tuple[str, str, str]
    measured: Mapping[str, float]
    flags: tuple[str, ...] = ()
    setup: Setup | None = None
    point: Point | None = None
    reason: str = ""
    predicted: Mapping[str, float] = field(default_factory=dict)


# --- reading --------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, of either layout."""
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    if table and "metric" in table[0]:
        return [_row(_from_measurement(r), {r["metric"]: number(r, "value")}, str(i)) for i, r in enumerate(table)]
    rows = []
    for index, r in enumerate(table):
        measured = {m: number(r, f"silicon_{m}") for m in METRICS if number(r, f"silicon_{m}") > 0}
        rows.append(_row(r, measured, str(index)))
    return rows


def number(row: Mapping[str, str], key: str, default: float = 0.0) -> float:
    """A column as a number, or the default where it is absent or no number."""
    try:
        value = float(row.get(key) or default)
    except ValueError:
        return default
    return value if value == value else default


def _from_measurement(row: Mapping[str, str]) -> dict[str, str]:
    """A row of `measured.csv` under the column names of `e2e_h100.csv`; a static batch where no server was measured."""
    chip = CHIPS.get(row["gpu"], row["gpu"].lower().replace("-", "_"))
    online = "online serving" in row["note"]
    doubts = [name for name, sign in DOUBTS.items() if sign in row["engine"] + row["note"]]
    return {
        "id": row["id"], "model_path": row["model"], "system": chip, "backend": row["engine"],
        "origin": row["note"] if online or "max load" in row["note"] else "static batch",
        "precision": row["dtype"], "isl": row["input_len"], "osl": row["output_len"], "concurrency": row["batch"],
        "tp_size": row["tp"], "pp_size": row["pp"], "attention_dp_size": row["dp"],
        "moe_ep_size": row["ep"] or "1", "metric": row["metric"], "doubts": " ".join(doubts),
    }  # fmt: skip


def _row(row: Mapping[str, str], measured: Mapping[str, float], default_id: str) -> Row:
    path, chip = row.get("model_path") or "", row.get("system") or ""
    name = (row.get("backend") or "").lower()
    name = next((e for e in ENGINES if name.startswith(e)), name)
    flags = tuple(f for f in FLAGS if (row.get(f) or "").lower() in ("true", "1", "1.0"))
    flags += tuple((row.get("doubts") or "").split())
    made = Row(row.get("id") or default_id, (path.rsplit("/", 1)[-1], chip, name), measured, flags)
    try:
        if not set(measured) & set(METRICS):
            raise OutOfScope(f"metric {row.get('metric', 'none')}: not predicted")
        return replace(made, setup=_setup(row, path, chip, name), point=_point(row))
    except OutOfScope as error:
        return replace(made, reason=str(error))


def catalogue_name(path: str) -> str:
    """The catalogue's name of a model path: its last part without words for tuning and formats.

    Raises:
        OutOfScope: the catalogue has no such model.
    """
    name = path.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-").removeprefix("nvidia-")
    tuned = "instruct|chat|base|hf|it|thinking"
    stored = "fp8|fp4|nvfp4|mxfp4|bf16|fp16|dynamic|kv|static|block"
    ending = rf"-({tuned}|{stored}|v[\d.]+|\d{{4}})$"
    while name not in model_names():
        if name in MODELS:
            return MODELS[name]
        shorter = re.sub(ending, "", name)
        if shorter == name:
            raise OutOfScope(f"model {path}: not in the catalogue")
        name = shorter
    return name


def _setup(row: Mapping[str, str], path: str, chip: str, engine_name: str) -> Setup:
    name = catalogue_name(path)
    if chip not in accelerator_names():
        raise OutOfScope(f"chip {chip}: not in the catalogue")
    if engine_name not in ENGINES:
        raise OutOfScope(f"engine {engine_name}: not in the catalogue")
    spec = model(name)
    modes = [row.get(k) or row.get("precision") or "" for k in ("gemm_quant_mode", "moe_quant_mode")]
    gemm, moe = (_dtype(mode) for mode in modes)
    if spec.moe is not None and spec.moe.dtype is not None:
        # published with experts in a format of their own (gpt-oss): the checkpoint is what was served
        gemm = moe = None
    block = "block" in modes[0] or ((gemm or spec.dtype) == "fp8" and _has_block_scales(name, path))
    narrow = (gemm or spec.dtype) in ("fp8", "nvfp4")
    kv = _dtype(row.get("kvcache_quant_mode") or "") or ("fp8" if engine_name == "trtllm" and narrow else "bf16")
    separate = (row.get("mode") or "agg") not in ("agg", "aggregated", "ifb")
    parts = ("prefill_", "decode_") if separate else ("", "")
    prefill, decode = (_layout(row, spec, part) for part in parts)
    return Setup(name, gemm, moe, kv, block, chip, _engine_entry(row, engine_name), prefill, decode, separate)


def _engine_entry(row: Mapping[str, str], name: str) -> str:
    """The engine's entry: vLLM's scheduler is asynchronous from 0.14 on, and in InferenceX's launch scripts before."""
    version = re.search(r"0\.(\d+)", row.get("backend_version") or row.get("backend") or "")
    synchronous = name == "vllm" and version is not None and int(version[1]) < 14
    return "vllm_sync" if synchronous and "InferenceX" not in (row.get("origin") or "") else name


def _has_block_scales(name: str, path: str) -> bool:
    """Whether a published fp8 checkpoint scales blocks of 128 x 128: DeepSeek's, Qwen3's own and MiniMax's do."""
    own = name.startswith(("deepseek", "kimi", "minimax"))
    return own or (path.startswith("Qwen/") and "fp8" in path.lower())


def _dtype(mode: str) -> str | None:
    if mode.lower() not in DTYPES:
        raise OutOfScope(f"precision {mode}: unknown")
    return DTYPES[mode.lower()]


def _layout(row: Mapping[str, str], spec: ModelSpec, part: str) -> Layout:
    """Parallelism of a worker; attention DP of a dense model is data parallelism."""
    columns = ("tp_size", "pp_size", "attention_dp_size", "moe_ep_size", "num_workers")
    tp, pp, adp, ep, workers = (max(1, int(number(row, part + key, 1))) for key in columns)
    if spec.moe is None:
        return Layout(tp, pp, workers=workers * adp)
    return Layout(tp, pp, adp, ep if (tp * adp) % ep == 0 else 1, workers)


def _point(row: Mapping[str, str]) -> Point:
    """The load of a row: closed-loop clients, or one static batch."""
    prompt, output = int(number(row, "isl")), max(1, int(number(row, "osl")))
    adp = max(1.0, number(row, "attention_dp_size", 1))
    clients = int(number(row, "concurrency") or number(row, "batch_size"))
    if not prompt or not clients:
        raise OutOfScope("input length or batch not stated as a number")
    origin = row.get("origin") or ""
    if "max load" in origin:
        raise OutOfScope("throughput at the highest load: no latency at a stated one")
    if origin.startswith("static batch"):
        return Point(ClosedLoop(clients, prompt, output, generations=1), clients * prompt, host=False)
    if "InferenceX" in origin:
        # 10 requests per client, lengths uniform between 80 % and 100 % of the nominal ones
        return Point(ClosedLoop(clients, prompt, output, shortest=0.8))
    if "sglang" in (row.get("backend") or ""):
        return Point(ClosedLoop(clients, prompt, output))
    # launch configurations that AIConfigurator generates set the budget of a step: batch + input + 1500 tokens
    return Point(ClosedLoop(clients, prompt, output), int(clients / adp) + prompt + 1500)


# --- predicting -----------------------------------------------------------------------------------------------------


def predict(rows: Sequence[Row]) -> list[Row]:
    """The rows with their predictions: one lowering per setup, all its rows at once."""
    done = list(rows)
    by_setup: dict[Setup, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.setup is not None:
            by_setup[row.setup].append(index)
    for setup, indices in by_setup.items():
        points = [p for i in indices if (p := rows[i].point)]
        try:
            found = _latencies(setup, points)
        except DiagnosticError as error:
            for i in indices:
                done[i] = replace(rows[i], reason=error.diagnostics[0].message)
            continue
        for i, point, latency in zip(indices, points, found, strict=True):
            done[i] = replace(rows[i], predicted=_metrics(point.load, latency))
    return done


def _metrics(load: ClosedLoop, latency: Latencies) -> dict[str, float]:
    total = latency.ttft + (load.output - 1) * latency.tpot
    rate = load.clients * load.output / total
    figures = (latency.tpot * 1e3, latency.ttft * 1e3, total, rate)
    return {m: f for m, f in zip(METRICS, figures, strict=True) if f > 0}


def _latencies(setup: Setup, points: Sequence[Point]) -> list[Latencies]:
    prefill = serving_model(setup, setup.prefill)
    if setup.separate:
        workers = setup.prefill.workers, setup.decode.workers
        return disaggregated(prefill, serving_model(setup, setup.decode), points, *workers)
    shares = [replace(p, load=replace(p.load, clients=-(-p.load.clients // setup.prefill.workers))) for p in points]
    return prefill.latencies(shares)


def serving_model(setup: Setup, layout: Layout) -> ServingModel:
    """A worker under the load of one engine, lowered once."""
    spec = _spec(setup, layout)
    kernels = setup.engine.removesuffix("_sync")
    hardware, _ = resolve_hardware(spec.cluster, spec.model.dtype, kernels, block_scales=setup.block_scales, skew=SKEW)
    phases: tuple[Phase, Phase] = ("prefill", "decode")
    served = engine(setup.engine)

    times = [
        StepTimes(
            _lowered(spec, phase), hardware, fused=served.fused,
            within=served.within,
            experts=_lowered(_spec(setup, layout, masked=False), phase) if layout.masked else None,
        )
        for phase in phases
    ]  # fmt: skip
    return ServingModel(times[0], times[1], served)


def _lowered(spec: Spec, phase: Phase) -> Graph:
    graph = build_graph(spec, phase, spec.model.name)
    for each in lowering_passes(spec, phase):
        graph = each.run(graph)
    return graph


def _spec(setup: Setup, layout: Layout, *, masked: bool = True) -> Spec:
    """The spec of a worker; ``masked`` writes expert parallelism without a dispatch as expert TP."""
    served = model(setup.model)
    changes: dict[str, Any] = {"kv_dtype": setup.kv_dtype, "dtype": setup.dtype or served.dtype}
    if served.moe and setup.expert_dtype:
        changes["moe"] = served.moe.model_copy(update={"dtype": setup.expert_dtype})
    node = accelerator(setup.chip).gpus_per_node
    ranks = layout.tp * layout.adp
    cluster = ClusterSpec(
        accelerator=AcceleratorSpec(name=setup.chip, catalog=setup.chip),
        nodes=-(-ranks * layout.pp // node),
        gpus_per_node=node,
    )
    terms = [ChainTerm(name="tp", degree=layout.tp)]
    if served.moe:
        ep = 1 if masked and layout.masked else layout.ep
        terms.insert(0, ChainTerm(name="ep", degree=ep, etp=ranks // ep))
    if layout.pp > 1:
        terms.insert(0, ChainTerm(name="pp", degree=layout.pp))
    phases: tuple[Phase, Phase] = ("prefill", "decode")
    return Spec(
        model=served.model_copy(update=changes),
        cluster=cluster,
        workload=WorkloadSpec(batch=layout.adp, input=1024, output=2),
        strategies=tuple(StrategySpec(phase=p, chain=tuple(terms), ranks=ranks) for p in phases),
    )


# --- reporting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Relative errors of a group of rows: (predicted - measured) / measured."""

    model: str
    chip: str
    engine: str
    metric: str
    n: int
    median: float
    mean: float
    bias: float


def summarize(rows: Iterable[Row]) -> list[Errors]:
    """Errors by model, chip, engine and metric, flagged rows apart; and over all dense and all MoE models of a chip."""
    groups: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.setup is None:
            continue
        name, chip, engine_name = row.group
        kind = "(all MoE)" if model(row.setup.model).moe else "(all dense)"
        for metric in METRICS:
            if metric not in row.measured or metric not in row.predicted:
                continue
            error = row.predicted[metric] / row.measured[metric] - 1
            flags = f" [{', '.join(row.flags)}]" if row.flags else ""
            groups[name + flags, chip, engine_name, metric].append(error)
            if not row.flags:
                groups[kind, chip, "", metric].append(error)
    found = []
    for key, errors in sorted(groups.items(), key=lambda item: (item[0][1], METRICS.index(item[0][3]), item[0])):
        sizes = [abs(e) for e in errors]
        found.append(
            Errors(*key, len(errors), statistics.median(sizes), statistics.mean(sizes), statistics.mean(errors))
        )
    return found


def table(errors: Iterable[Errors]) -> list[str]:
    """A Markdown table of errors."""
    lines = [
        "| model | chip | engine | metric | n | median | mean | bias |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for e in errors:
        cells = (e.model, e.chip, e.engine, e.metric.rsplit("_", 1)[0].replace("_", " "), str(e.n))
        lines.append(f"| {' | '.join(cells)} | {e.median:.1%} | {e.mean:.1%} | {e.bias:+.1%} |")
    return lines


def left_out(rows: Iterable[Row]) -> list[str]:
    """How many rows are outside the scope, by reason."""
    reasons = Counter(r.reason for r in rows if r.reason)
    return [f"- {count} rows: {reason}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))]


def document(row: Row) -> dict[str, Any]:
    """A row as it stands in the JSON."""
    return {
        "id": row.id,
        "ttft_ms": row.measured.get("ttft_ms"),
        "tpot_ms": row.measured.get("tpot_ms"),
        "predicted_ttft_ms": row.predicted.get("ttft_ms"),
        "predicted_tpot_ms": row.predicted.get("tpot_ms"),
        "reason_if_skipped": row.reason or None,
    }


def write_page(text: str) -> None:
    """Put the tables into the documentation, between its two marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->")
    PAGE.write_text(f"{before}<!-- table -->\n{text}<!-- end of table -->{after}", encoding="utf-8")


def main() -> None:
    """Read, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", metavar="CSV", help="rows to check instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row with its prediction")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/accuracy.md")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("PARADAG_REFERENCE", ROOT.parent / "shared" / "reference"))
    files = arguments.data or [folder / "e2e_h100.csv", folder / "measured.csv"]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise SystemExit(f"no measured rows at {', '.join(missing)}: give --data CSV or set PARADAG_REFERENCE")
    every: list[Row] = []
    texts = []
    for file in files:
        rows = predict(read_rows(file))
        every += rows
        lines = [f"### {file.name}", "", *table(summarize(rows)), ""]
        if skipped := left_out(rows):
            count = sum(bool(r.reason) for r in rows)
            lines += [f"{count} of {len(rows)} rows are outside the scope:", "", *skipped, ""]
        texts.append("\n".join([*lines, ""]))
    print("".join(texts), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps([document(r) for r in every], indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        write_page("\n" + "".join(texts))


if __name__ == "__main__":
    main()
