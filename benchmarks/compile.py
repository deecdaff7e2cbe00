"""How compiling scales: build and critical path of one DAG family, against the same graph in networkx.

The family is DeepSeek-V3 decode on 320 GPUs (`ir_examples/deepseek-v3-decode-ep320.strat`), longer and longer chains
of decode steps: about 145,000 nodes a step. Every row runs in a child process of its own, so that its peak memory is
its own: the growth of the resident set over what it was after imports (for networkx: after the columns were loaded).

    python benchmarks/compile.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent.parent / "ir_examples" / "deepseek-v3-decode-ep320.strat"
STEPS = (1, 2, 4, 7, 14, 35)
NETWORKX_NODES = 1_100_000
REPEATS = 5


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="only the two smallest rows")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "STEPS", "COLUMNS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, steps, columns = arguments.child
        print(json.dumps(_ours(int(steps), Path(columns)) if kind == "ours" else _networkx(Path(columns))))
        return
    rows = [_row(steps) for steps in (STEPS[:2] if arguments.quick else STEPS)]
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _row(steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        columns = Path(folder) / "columns.npz"
        row = _child("ours", steps, columns)
        empty = dict.fromkeys(("networkx_build_s", "networkx_critical_path_s", "networkx_peak_mb"))
        theirs = _child("networkx", steps, columns) if row["nodes"] <= NETWORKX_NODES else empty
    return {**row, **theirs}


def _child(kind: str, steps: int, columns: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, str(steps), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} at {steps} steps failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _ours(steps: int, columns: Path) -> dict[str, Any]:
    import numpy as np

    from paradag.compiler.build import build_graph
    from paradag.compiler.cost import node_costs, resolve_hardware
    from paradag.compiler.driver import load, lowering_passes
    from paradag.passes.analysis import critical_path, flatten, unroll

    spec = load(EXAMPLE).spec
    hardware, _ = resolve_hardware(spec.cluster, spec.model.dtype)

    def build() -> Any:
        graph = build_graph(spec, "decode", "benchmark", steps)
        for graph_pass in lowering_passes(spec, "decode"):
            graph = graph_pass.run(graph)
        return flatten(unroll(graph), node_costs(graph, hardware))

    baseline = _resident_mb()
    _reset_peak()
    flat, build_s = _median(build)
    _, path_s = _median(lambda: critical_path(flat))
    peak = _peak_mb() - baseline
    sources, targets = flat.edges()
    np.savez(columns, sources=sources, targets=targets, duration=flat.duration, layer=flat.column("layer"))
    return {
        "nodes": flat.node_count,
        "edges": flat.edge_count,
        "build_s": build_s,
        "critical_path_s": path_s,
        "peak_mb": peak,
    }


def _networkx(columns: Path) -> dict[str, Any]:
    import networkx as nx
    import numpy as np

    with np.load(columns) as data:
        sources, targets = data["sources"].tolist(), data["targets"].tolist()
        duration, layer = data["duration"].tolist(), data["layer"].tolist()
    baseline = _resident_mb()
    _reset_peak()
    began = time.perf_counter()
    graph: nx.DiGraph = nx.DiGraph()
    for number, (seconds, where) in enumerate(zip(duration, layer, strict=True)):
        graph.add_node(number, duration=seconds, layer=where)
    for a, b in zip(sources, targets, strict=True):
        graph.add_edge(a, b, weight=duration[b])
    built = time.perf_counter()
    nx.dag_longest_path(graph, weight="weight")
    done = time.perf_counter()
    return {
        "networkx_build_s": built - began,
        "networkx_critical_path_s": done - built,
        "networkx_peak_mb": _peak_mb() - baseline,
    }


def _median(work: Callable[[], Any]) -> tuple[Any, float]:
    seconds, result = [], None
    for _ in range(REPEATS):
        result = None
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return result, statistics.median(seconds)


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {key} in /proc/self/status: this benchmark measures memory on Linux only")


def _resident_mb() -> float:
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    return _status_mb("VmHWM")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _print(rows: list[dict[str, Any]]) -> None:
    heads = ("nodes", "edges", "build s", "path s", "peak MB", "nx build s", "nx path s", "nx MB", "faster", "smaller")
    print(" ".join(f"{head:>10}" for head in heads))
    for r in rows:
        build, path, peak = r["build_s"], r["critical_path_s"], r["peak_mb"]
        cells = [f"{r['nodes']:,}", f"{r['edges']:,}", f"{build:.3f}", f"{path:.3f}", f"{peak:.1f}"]
        if r["networkx_build_s"] is not None:
            nx_build, nx_path, nx_peak = (r[f"networkx_{k}"] for k in ("build_s", "critical_path_s", "peak_mb"))
            cells += [f"{nx_build:.2f}", f"{nx_path:.2f}", f"{nx_peak:.0f}"]
            cells += [f"{(nx_build + nx_path) / (build + path):.0f}x", f"{nx_peak / peak:.1f}x"]
        print(" ".join(f"{cell:>10}" for cell in cells))
    print(f"growth exponent of build + critical path: {growth_exponent(rows):.2f}")


def growth_exponent(rows: list[dict[str, Any]]) -> float:
    """Slope of log(seconds) over log(nodes), least squares."""
    points = [(math.log(r["nodes"]), math.log(r["build_s"] + r["critical_path_s"])) for r in rows]
    mean_x, mean_y = (statistics.fmean(p[i] for p in points) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


if __name__ == "__main__":
    main()
