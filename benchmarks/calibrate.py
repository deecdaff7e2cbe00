"""Fit the cost model to measured kernels and collectives, and say how far it is off on rows it has not seen.

    python benchmarks/calibrate.py                 # the table of errors
    python benchmarks/calibrate.py --json FILE     # the same as data
    python benchmarks/calibrate.py --write         # store the fits in compiler/spec/calibration.json

The rows come from ``$PARADAG_REFERENCE/kernels/*.csv.gz`` (default ``../shared/reference``): AIConfigurator's database
of measured latencies, Apache-2.0. Each table is halved by a checksum of its rows; fits use one half, errors are those
of the other. Two runs give the same figures.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paradag.compiler.cost.fit import first_half, residual
from paradag.compiler.cost.measured import LAWS, Chip, Columns, Floats
from paradag.compiler.cost.records import render_fits
from paradag.compiler.spec.calibration import Fit, LaunchParameters, Residual, StreamingParameters
from paradag.compiler.spec.catalog import CatalogEntry, accelerator

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("PARADAG_REFERENCE", ROOT / ".." / "shared" / "reference"))
TARGET = ROOT / "compiler" / "spec" / "calibration.json"
CHIPS = {
    "a100_sxm": "a100_sxm_80gb",
    "b200_sxm": "b200_sxm",
    "h100_sxm": "h100_sxm",
    "h200_sxm": "h200_sxm",
    "l40s": "l40s",
}
"""Catalogue entries of the measured systems."""
CACHE = {"a100_sxm": 40e6, "b200_sxm": 126e6, "h100_sxm": 50e6, "h200_sxm": 50e6, "l40s": 96e6}
"""Bytes of last-level cache (vendor architecture papers)."""
ROTATION = 5
"""Weights that the GEMM benchmark runs through in turn, against warm caches (AIConfigurator's collectors)."""
FORMATS = {
    "bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "sq": "int8", "int4_wo": "int4", "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4",
}  # fmt: skip
"""Variants of paradag by the tables' formats; weight-only int8 is left out, an int8 product takes the int8 unit."""
AIMS = {"GEMM": 0.08, "prefill": 0.10, "decode": 0.10, "grouped GEMM": 0.15, "collectives": 0.15, "exchanges": 0.15}
"""Median absolute errors to stay below, by class of :func:`pooled`."""
POOLS = {
    "gemm": "GEMM", "prefill": "prefill", "mla_prefill": "prefill", "decode": "decode", "decode_mha": "decode",
    "mla_decode": "decode", "experts": "grouped GEMM", "dispatch": "exchanges", "combine": "exchanges",
}  # fmt: skip
"""Classes whose rows are judged together; the others are collectives."""
SOURCE = "AIConfigurator 0.12 database (Apache-2.0)"
FEWEST = 24
"""Rows below which a class is not fitted."""

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Measured rows of one class, variant, chip and engine."""

    system: str
    engine: str
    kind: str
    variant: str
    rows: Sequence[Row]
    columns: Columns
    seconds: Floats


@dataclass(frozen=True)
class Result:
    """A fit and its errors on the other half of the rows."""

    table: Table
    fit: Fit
    errors: Residual
    signed: Floats


def read(system: str, name: str) -> list[Row]:
    """Rows of a table, or none where the system was not measured for it."""
    path = REFERENCE / "kernels" / f"{system}_{name}.csv.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def table(
    system: str, engine: str, kind: str, variant: str, rows: Sequence[Row], **columns: str | Callable[[Row], float]
) -> Iterator[Table]:
    """A table whose columns are named, or computed from a row; nothing where there are too few rows."""
    if len(rows) < FEWEST:
        return
    law = LAWS[kind]
    values = {
        name: np.array([_value(row, columns[name]) if name in columns else law.optional[name] for row in rows], float)
        for name in law.columns
    }
    yield Table(system, engine, kind, variant, rows, values, np.array([float(r["latency_us"]) for r in rows]) * 1e-6)


def _value(row: Row, column: str | Callable[[Row], float]) -> float:
    return float(row[column] or 0) if isinstance(column, str) else column(row)


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    groups.pop(None, None)
    return groups


def tables(system: str) -> Iterator[Table]:
    """All tables of a measured system."""
    for engine in ("vllm", "trtllm", "sglang"):
        yield from engine_tables(system, engine)
    yield from mla_tables(system)
    yield from collective_tables(system)
    yield from exchange_tables(system)


def engine_tables(system: str, engine: str) -> Iterator[Table]:
    """Products, attention and experts of one engine."""
    for variant, rows in _grouped(read(system, f"gemm_{engine}"), lambda r: FORMATS.get(r["dtype"])).items():
        yield from table(system, engine, "gemm", variant, rows, m="m", n="n", k="k")
    cached = {"bfloat16": "bf16", "fp8": "fp8"}
    shared = {"heads": "n_heads", "kv_heads": "n_kv", "head_dim": "head_dim", "batch": "batch_size", "window": "window"}
    plain = [r for r in read(system, f"context_attention_{engine}") if r["dtype"] == "bfloat16"]
    for variant, rows in _grouped(plain, lambda r: cached[r["kv_dtype"]]).items():
        yield from table(system, engine, "prefill", variant, rows, new="s", past="prefix", **shared)
    plain = [r for r in read(system, f"generation_attention_{engine}") if r["dtype"] == "bfloat16" and in_use(r)]
    for (kind, variant), rows in _grouped(
        plain, lambda r: ("decode_mha" if r["n_heads"] == r["n_kv"] else "decode", cached[r["kv_dtype"]])
    ).items():
        yield from table(system, engine, kind, variant, rows, context="s", **shared)
    for variant, rows in _grouped(read(system, f"moe_{engine}"), lambda r: expert_variant(system, r)).items():
        yield from table(
            system, engine, "experts", variant, rows,
            tokens="num_tokens", hidden="hidden", inter="inter", top_k="topk", experts="experts",
            moe_tp="moe_tp", moe_ep="moe_ep", skew=skew,
        )  # fmt: skip


def in_use(row: Row) -> bool:
    """Whether a model could have these heads: kernels for more than 32 query heads per KV head are a class apart."""
    return float(row["n_heads"]) <= 32 * float(row["n_kv"])


def expert_variant(system: str, row: Row) -> str | None:
    """Variant of an expert row; on Blackwell mxfp4 weights meet mxfp8 activations, elsewhere bf16 ones."""
    if row["dtype"] == "w4a16_mxfp4" and system.startswith("b200"):
        return None
    return FORMATS.get(row["dtype"])


def skew(row: Row) -> float:
    """Exponent of the load, below 0 where rows are dealt out evenly."""
    name = row["distribution"]
    return -1.0 if name == "balanced" else float(name.removeprefix("power_law_"))


def mla_tables(system: str) -> Iterator[Table]:
    """The attention kernels of MLA; whole blocks with their projections (``*_module``, ``wideep_*``) are left out."""
    rows = [r for r in read(system, "mla") if r["op"] in ("context_mla", "generation_mla") and r["dtype"] == "bfloat16"]
    cached = {"bfloat16": "bf16", "fp8": "fp8"}
    for (op, engine, kv), group in _grouped(
        rows, lambda r: (r["op"], r["backend_version"].split("-")[0], r["kv_dtype"])
    ).items():
        if op == "context_mla":
            yield from table(
                system, engine, "mla_prefill", cached[kv], group,
                batch="batch_size", new="s", past="prefix", heads="n_heads", kv_heads="n_heads",
                head_dim=lambda r: 192.0, v_dim=lambda r: 128.0,
            )  # fmt: skip
        else:
            yield from table(
                system, engine, "mla_decode", cached[kv], group,
                batch="batch_size", context="s", heads="n_heads",
                kv_lora=lambda r: 512.0, rope_dim=lambda r: 64.0,
            )  # fmt: skip


_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
_ALL_REDUCE = {"SGLang_CustomAllReduce_graph": "sglang", "vLLM_custom_graph": "vllm", "TRTLLM": "trtllm"}
_NCCL = {"nccl_all_gather": "all_gather", "nccl_reduce_scatter": "reduce_scatter", "nccl_alltoall": "all_to_all"}


def collective_tables(system: str) -> Iterator[Table]:
    """Collectives inside a node: each engine's newest all-reduce, NCCL's newest release for the others."""
    rows = read(system, "collectives")

    def size(row: Row) -> float:
        return float(row["elements"]) * _BYTES[row["dtype"]]

    def local(row: Row) -> float:
        """An all-gather's elements are those of the result."""
        return size(row) / float(row["num_gpus"])

    custom = [r for r in rows if r["kernel"] in _ALL_REDUCE]
    for engine, group in _grouped(custom, lambda r: _ALL_REDUCE[r["kernel"]]).items():
        own = [r for r in group if r["backend_version"].startswith(engine)]
        yield from table(system, engine, "all_reduce", "any", newest(own or group), bytes=size, ranks="num_gpus")
    for op, group in _grouped(rows, lambda r: _NCCL.get(r["op"])).items():
        payload = local if op == "all_gather" else size
        for engine in ("vllm",):
            yield from table(system, engine, op, "any", newest(group), bytes=payload, ranks="num_gpus")
    pairs = newest([r for r in rows if r["op"] == "nccl_alltoall" and r["num_gpus"] == "2"])
    # of two ranks, each sends half of its buffer to the other
    yield from table(system, "vllm", "p2p", "any", pairs, bytes=lambda r: size(r) / 2, ranks="num_gpus")


def newest(rows: Sequence[Row]) -> list[Row]:
    """Rows of the latest version in the table."""

    def version(row: Row) -> tuple[int, ...]:
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in row["backend_version"].split("."))

    latest = max(map(version, rows), default=())
    return [r for r in rows if version(r) == latest]


_MODES = {
    "deepep_ht": "normal", "deepep_normal": "normal", "trtllm_deepep_ht": "normal",
    "deepep_ll": "low_latency", "trtllm_deepep_ll": "low_latency",
}  # fmt: skip
_ROW_BYTES = {("dispatch", "fp8"): 1.0, ("dispatch", "nvfp4"): 4.5 / 8, ("dispatch", "fp4"): 4.5 / 8}


def exchange_tables(system: str) -> Iterator[Table]:
    """Expert dispatch and combine of DeepEP and its relatives, driven by 20 or more multiprocessors."""
    rows = [r for r in read(system, "moe_a2a") if r["comm"] in _MODES and r["sms"] in ("0", "20", "24")]
    for (op, mode, engine), group in _grouped(
        rows, lambda r: (r["op"].removeprefix("moe_a2a_"), _MODES[r["comm"]], r["backend_version"].split("-")[0])
    ).items():

        def payload(row: Row, op: str = op) -> float:
            # an unnamed format is DeepEP's own: fp8 rows there, bf16 rows back; "default" is bf16 both ways
            width = _ROW_BYTES.get((op, row["dtype"] or "fp8"), 2.0)
            return float(row["num_tokens"]) * float(row["topk"]) * float(row["hidden"]) * width

        yield from table(system, engine, op, mode, group, bytes=payload, ranks="ep", top_k="topk")


def chip_of(system: str, kind: str, variant: str) -> Chip:
    """Datasheet figures for a class and variant."""
    entry = accelerator(CHIPS[system])
    dtype = "bf16" if kind not in ("gemm", "experts") else variant.removesuffix("_block")
    return Chip(
        peak=entry.peak_flops(dtype).flops,
        bandwidth=entry.bandwidth,
        units=units_of(entry),
        link=entry.scale_up.bandwidth or 1.0,
        network=entry.scale_out.bandwidth or 1.0,
        domain=entry.gpus_per_node,
        cache=CACHE[system],
        rotation=ROTATION,
    )


def units_of(entry: CatalogEntry) -> int:
    """Multiprocessors of a measured chip."""
    if entry.units is None:
        raise SystemExit(f"{entry.name}: the catalogue does not say how many multiprocessors it has")
    return entry.units


def calibrate(measured: Table) -> Result:
    """Fit on one half of the rows, report on the other."""
    law, half = LAWS[measured.kind], first_half(measured.rows)
    chip = chip_of(measured.system, measured.kind, measured.variant)
    seen = {name: values[half] for name, values in measured.columns.items()}
    unseen = {name: values[~half] for name, values in measured.columns.items()}
    parameters = law.fit(seen, measured.seconds[half], chip, measured.variant)
    predicted = law.predict(parameters, unseen, chip, measured.variant)
    errors = residual(predicted, measured.seconds[~half])
    versions = sorted({r["backend_version"] for r in measured.rows})
    return Result(
        measured,
        Fit(parameters, errors, f"{SOURCE}: {', '.join(versions)}"),
        errors,
        predicted / measured.seconds[~half] - 1,
    )


def derived(system: str, results: Sequence[Result]) -> dict[tuple[str, str, str], Fit]:
    """Streaming and launch figures, which no table measures by themselves, by (engine, class, variant)."""
    fits: dict[tuple[str, str, str], Fit] = {}
    for result in results:
        if (result.table.kind, result.table.variant) == ("gemm", "bf16"):
            p = result.fit.parameters
            fits[result.table.engine, "streaming", "any"] = Fit(
                StreamingParameters(p.latency_s, p.bandwidth_efficiency),  # type: ignore[attr-defined]
                None,
                "derived: an empty bf16 product's latency and the bandwidth that its weights stream at",
            )
    names = {"SGLang_CustomAllReduce_eager": "sglang", "vLLM_custom_eager": "vllm"}
    eager = _grouped(read(system, "collectives"), lambda r: names.get(r["kernel"]))
    for engine, rows in eager.items():
        small = [float(r["latency_us"]) * 1e-6 for r in newest(rows) if float(r["elements"]) <= 8192]
        source = f"{SOURCE}: median of eager all-reduces of at most 16 KiB"
        fits[engine, "launch", "any"] = Fit(LaunchParameters(float(np.median(small))), None, source)
    return fits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"store the fits in {TARGET.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as data")
    parser.add_argument("--only", default="", help="classes to fit, separated by commas")
    parser.add_argument("--system", default=",".join(CHIPS), help="systems to fit, separated by commas")
    options = parser.parse_args(arguments)
    if options.write and (options.only or options.system != ",".join(CHIPS)):
        parser.error("--write stores all classes of all systems: leave --only and --system out")
    if not (REFERENCE / "kernels").is_dir():
        print(f"no tables in {REFERENCE / 'kernels'}: set PARADAG_REFERENCE", file=sys.stderr)
        return 2
    only = set(options.only.split(",")) - {""}
    everything: list[Result] = []
    fits: dict[str, dict[str, dict[tuple[str, str], Fit]]] = {}
    lines: list[Mapping[str, Any]] = []
    for system in options.system.split(","):
        results = [calibrate(t) for t in tables(system) if not only or t.kind in only]
        everything += results
        chip = fits.setdefault(CHIPS[system], {})
        for r in results:
            chip.setdefault(r.table.engine, {})[r.table.kind, r.table.variant] = r.fit
            lines.append(line(r))
            print(text(lines[-1]), flush=True)
        for (engine, kind, variant), fit in derived(system, results).items():
            chip.setdefault(engine, {})[kind, variant] = fit
    print(*pooled(everything), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    if options.write:
        # the digits and the order of a calibration file
        document = tomllib.loads(render_fits(fits, {}))
        TARGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def pooled(results: Sequence[Result]) -> Iterator[str]:
    """Median absolute error of each class and chip, all rows together, and how many tables meet the aims."""
    rows: dict[str, dict[str, list[Floats]]] = {}
    for r in results:
        chips = rows.setdefault(POOLS.get(r.table.kind, "collectives"), {})
        chips.setdefault(r.table.system, []).append(np.abs(r.signed))
    for kind, chips in rows.items():
        medians = (f"{chip} {100 * float(np.median(np.concatenate(parts))):.1f} %" for chip, parts in chips.items())
        yield f"{kind} (aim {100 * AIMS[kind]:.0f} %): " + ", ".join(medians)
    met = sum(r.errors.median <= AIMS[POOLS.get(r.table.kind, "collectives")] for r in results)
    yield f"{met} of {len(results)} tables meet the aim"


def line(result: Result) -> dict[str, Any]:
    """One row of the report."""
    t = result.table
    return {
        "chip": t.system, "engine": t.engine, "class": t.kind, "variant": t.variant, **asdict(result.errors),
        "parameters": asdict(result.fit.parameters),
    }  # fmt: skip


def text(row: Mapping[str, Any]) -> str:
    """The same for people."""
    shares = "  ".join(f"{name} {100 * row[name]:6.1f} %" for name in ("median", "mean", "bias"))
    return f"{row['chip']:9} {row['engine']:7} {row['class']:14} {row['variant']:11} n {row['rows']:5}  {shares}"


if __name__ == "__main__":
    sys.exit(main())
