"""Measured rows of served models: who was measured under which load, in terms of the catalogues.

Rows come from files with some of the columns of `e2e_h100.csv`, or those of `measured.csv`. Where columns are absent:
concurrency = batch_size, GPUs = tp * pp * attention DP, flags unset.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from paradag.benchmarks.launches import Launch, launch_of
from paradag.compiler.spec import ModelSpec
from paradag.compiler.spec.catalog import accelerator_names, model, model_names
from paradag.passes.analysis.serving import Point

FLAGS = ("flag_topology_bug", "flag_moe_group_mismatch", "flag_tpot_conflict", "possible_mtp", "flag_queueing")
DOUBTS = {"engine_not_named": "?", "per_gpu_or_total": "ambiguous"}
"""Doubts that the notes of `measured.csv` name, and what tells them; such rows are groups of their own."""
METRICS = ("tpot_ms", "ttft_ms", "latency_s", "output_tok_s")

DTYPES: Mapping[str, str | None] = {
    **dict.fromkeys(("", "none", "nan", "auto", "gemm=nan"), None),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "half"), "bf16"),
    **dict.fromkeys(("fp8", "fp8_block", "fp8_static", "fp8_ootb", "fp8_e4m3", "w8a8"), "fp8"),
    **dict.fromkeys(("nvfp4", "fp4", "modelopt_fp4"), "nvfp4"),
    **dict.fromkeys(("mxfp4", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"), "mxfp4"),
    **dict.fromkeys(("int8", "int8_wo"), "int8"),
    **dict.fromkeys(("int4", "int4_wo", "w4afp8"), "int4"),
}
"""Format of the weights by the names of quantization modes; None leaves the catalogue's."""
CHIPS = {
    "a100": "a100_sxm_80gb",
    "a100_sxm": "a100_sxm_80gb",
    "a100_40gb": "a100_sxm_40gb",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "h100_80gb_hbm3": "h100_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "gb200": "gb200_nvl72",
    "gb200_sxm": "gb200_nvl72",
    "gb300": "gb300_nvl72",
    "gb300_sxm": "gb300_nvl72",
}
"""Names of chips in the files where they are not those of the catalogue."""
ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "trt": "trtllm", "tensorrt_llm": "trtllm"}
"""Engines by what the names in the files begin with; a front such as Dynamo before them is left out."""
MODELS = {
    "llama-7b": "llama-2-7b", "llama-70b": "llama-2-70b",  # the first release has the second's dimensions
    "deepseek-v3.1": "deepseek-v3", "deepseek-v3.1-terminus": "deepseek-v3",
    "kimi-k2.5": "kimi-k2",
    "glm-4.6": "glm-4.5", "glm-4.7": "glm-4.5",
    "qwen3-235b": "qwen3-235b-a22b", "qwen3-30b": "qwen3-30b-a3b",
    "mixtral8x7b": "mixtral-8x7b", "mixtral8x22b": "mixtral-8x22b",
}  # fmt: skip
"""Releases whose dimensions, as far as text goes, are those of a catalogued one; and AIConfigurator's short names."""
MOST_CLIENTS, MOST_TOKENS = 1 << 16, 1 << 22
"""Rows beyond these are slips: no server was measured there."""


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
    expert_kernels: str
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


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, of either layout. A row that cannot be read says so and stops no other."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = [{k: v or "" for k, v in r.items() if k} for r in csv.DictReader(file)]
    if table and "metric" in table[0]:
        return [_row(_from_measurement(r), {r["metric"]: number(r, "value")}, str(i)) for i, r in enumerate(table)]
    rows = []
    for index, r in enumerate(table):
        measured = {m: number(r, f"silicon_{m}") for m in METRICS if number(r, f"silicon_{m}") > 0}
        rows.append(_row(r, measured, str(index)))
    return rows


def number(row: Mapping[str, str], key: str, default: float = 0.0) -> float:
    """A column as a number, or the default where it is absent or no finite number."""
    try:
        value = float(row.get(key) or default)
    except ValueError:
        return default
    return value if isfinite(value) else default


def _from_measurement(row: Mapping[str, str]) -> dict[str, str]:
    """A row of `measured.csv` under the column names of `e2e_h100.csv`; a static batch where no server was measured."""
    row = defaultdict(str, row)
    online = "online serving" in row["note"]
    doubts = [name for name, sign in DOUBTS.items() if sign in row["engine"] + row["note"]]
    return {
        "id": row["id"], "model_path": row["model"], "system": row["gpu"], "backend": row["engine"],
        "origin": row["note"] if online or "max load" in row["note"] else "static batch",
        "precision": row["dtype"], "isl": row["input_len"], "osl": row["output_len"], "concurrency": row["batch"],
        "tp_size": row["tp"], "pp_size": row["pp"], "attention_dp_size": row["dp"],
        "moe_ep_size": row["ep"] or "1", "metric": row["metric"], "doubts": " ".join(doubts),
    }  # fmt: skip


def _row(row: Mapping[str, str], measured: Mapping[str, float], default_id: str) -> Row:
    path, chip = (row.get("model_path") or row.get("model") or "").strip(), chip_name(row.get("system") or "")
    engine = engine_name(row.get("backend") or "")
    flags = tuple(f for f in FLAGS if (row.get(f) or "").lower() in ("true", "1", "1.0"))
    flags += tuple((row.get("doubts") or "").split())
    made = Row(row.get("id") or default_id, (path.rsplit("/", 1)[-1], chip, engine), measured, flags)
    try:
        if row.get("metric") and not set(measured) & set(METRICS):
            raise OutOfScope(f"metric {row['metric']}: not predicted")
        launch = launch_of(row.get("origin") or "", engine, chip, catalogue_name(path))
        return replace(made, setup=_setup(row, path, chip, engine, launch), point=_point(row, launch, engine))
    except OutOfScope as error:
        return replace(made, reason=str(error))


def chip_name(system: str) -> str:
    """The catalogue's name of a chip, or the name as the file has it in lower case."""
    name = system.strip().lower().replace("-", "_").replace(" ", "_").removeprefix("nvidia_")
    return CHIPS.get(name, name)


def engine_name(backend: str) -> str:
    """The engine of a backend's name, or that name in lower case."""
    name = backend.strip().lower()
    plain = name.removeprefix("dynamo-").replace("-", "_")
    return next((entry for start, entry in ENGINES.items() if plain.startswith(start)), name)


def catalogue_name(path: str) -> str:
    """The catalogue's name of a model path: its last part without words for tuning and formats.

    Raises:
        OutOfScope: the catalogue has no such model.
    """
    name = path.rsplit("/", 1)[-1].lower().replace("_", "-")
    for maker in ("meta-", "nvidia-", "moe-"):
        name = name.removeprefix(maker)
    name = re.sub(r"^llama(?=\d)", "llama-", name)
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


def _setup(row: Mapping[str, str], path: str, chip: str, engine: str, launch: Launch) -> Setup:
    name = catalogue_name(path)
    if chip not in accelerator_names():
        raise OutOfScope(f"chip {chip}: not in the catalogue")
    if engine not in ENGINES.values():
        raise OutOfScope(f"engine {engine}: not in the catalogue")
    spec = model(name)
    modes = [_mode(row, key) for key in ("gemm_quant_mode", "moe_quant_mode")]
    gemm, moe = (_dtype(mode) for mode in modes)
    if spec.moe is not None and spec.moe.dtype is not None:
        # published with experts in a format of their own (gpt-oss): the checkpoint is what was served
        gemm = moe = None
    block = "block" in modes[0] or ((gemm or spec.dtype) == "fp8" and _has_block_scales(name, path))
    narrow = (gemm or spec.dtype) in ("fp8", "nvfp4")
    kv = _dtype(row.get("kvcache_quant_mode") or "") or launch.kv_dtype
    kv = kv or ("fp8" if engine == "trtllm" and narrow else "bf16")
    separate = (row.get("mode") or "agg").lower() not in ("agg", "aggregated", "ifb")
    parts = ("prefill_", "decode_") if separate else ("", "")
    prefill, decode = (_layout(row, spec, part) for part in parts)
    entry = _engine_entry(row, engine, launch)
    return Setup(name, gemm, moe, kv, block, chip, entry, launch.expert_kernels, prefill, decode, separate)


def _engine_entry(row: Mapping[str, str], name: str, launch: Launch) -> str:
    """The engine's entry: vLLM's scheduler is asynchronous from 0.14 on, and before where the launch turns it on."""
    version = re.search(r"0\.(\d+)", row.get("backend_version") or row.get("backend") or "")
    synchronous = name == "vllm" and version is not None and int(version[1]) < 14
    return "vllm_sync" if synchronous and not launch.asynchronous else name


def _has_block_scales(name: str, path: str) -> bool:
    """Whether a published fp8 checkpoint scales blocks of 128 x 128: DeepSeek's, Qwen3's own and MiniMax's do.

    GLM's scale channels. Their experts are not those that the calibration has without blocks (Triton's at its default
    tiles, which no engine serves them with); the nearest measured ones are those with blocks.
    """
    own = name.startswith(("deepseek", "kimi", "minimax", "glm"))
    return own or (path.startswith("Qwen/") and "fp8" in path.lower())


def _mode(row: Mapping[str, str], key: str) -> str:
    """A quantization mode, or the row's precision where it has none."""
    own = (row.get(key) or "").lower()
    return own if DTYPES.get(own, own) else (row.get("precision") or "").lower()


def _dtype(mode: str) -> str | None:
    if mode.lower() not in DTYPES:
        raise OutOfScope(f"precision {mode}: unknown")
    return DTYPES[mode.lower()]


def _layout(row: Mapping[str, str], spec: ModelSpec, part: str) -> Layout:
    """Parallelism of a worker; attention DP of a dense model is data parallelism."""
    columns = ("tp_size", "pp_size", "attention_dp_size", "moe_ep_size", "num_workers")
    tp, pp, adp, ep, workers = (max(1, int(number(row, part + key, 1))) for key in columns)
    if number(row, part + "n_gpus") == tp * pp and tp % adp == 0:
        tp //= adp  # counted as ranks over which attention is data parallel (TensorRT-LLM's and SGLang's flags)
    if spec.moe is None:
        return Layout(tp, pp, workers=workers * adp)
    return Layout(tp, pp, adp, ep if (tp * adp) % ep == 0 else 1, workers)


def _decode_batch(row: Mapping[str, str]) -> float:
    """Sequences of all decode workers, where prompts have workers of their own."""
    groups = number(row, "decode_num_workers", 1) * number(row, "decode_attention_dp_size", 1)
    return number(row, "decode_batch_size") * max(1.0, groups)


def _point(row: Mapping[str, str], launch: Launch, engine: str) -> Point:
    """The load of a row: closed-loop clients, or one static batch."""
    prompt, output = int(number(row, "isl")), max(1, int(number(row, "osl")))
    clients = int(number(row, "concurrency") or number(row, "batch_size") or _decode_batch(row))
    if prompt < 1 or clients < 1:
        raise OutOfScope("input length or batch not stated as a number")
    if clients > MOST_CLIENTS or prompt + output > MOST_TOKENS:
        raise OutOfScope("more clients or tokens than any server takes")
    if "max load" in (row.get("origin") or ""):
        raise OutOfScope("throughput at the highest load: no latency at a stated one")
    groups = max(1, int(number(row, "attention_dp_size", 1)))
    return launch.point(clients, prompt, output, groups, engine)
