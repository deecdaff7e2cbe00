"""How close predicted serving metrics are to measured ones, by model, chip, engine and metric.

Rows come from `e2e_h100.csv` and `measured.csv` in the folder that PARADAG_REFERENCE names (default
`../shared/reference`), or from any file with some of the columns of `e2e_h100.csv`. Where columns are absent:
concurrency = batch_size, GPUs = tp * pp * attention DP, flags unset. Rows outside the model's scope are counted with
the reason.

    python benchmarks/accuracy.py [--data CSV]... [--json FILE] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradag.benchmarks.served import predict
from paradag.benchmarks.served_rows import METRICS, Row, read_rows
from paradag.compiler.spec.catalog import model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "accuracy.md"


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
