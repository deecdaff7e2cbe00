"""The planner against AIConfigurator 0.12 on the same model, chip, GPU budget and requirements, in one run.

A strategy counts only if its latency was computed. Ours are layouts with a pipeline, a replica's batch, micro-batches
and a chunk size, each phase on its own; replicas of one strategy count once and pairs of phases do not count. The
peer's are the distinct points (degrees, batch, context tokens, role) at which it predicts one worker, aggregated or of
a disaggregated phase; its pairs do not count either. Each side runs in a child process of its own; seconds are those of
the search, without imports.

    PARADAG_PEER_PYTHON=/path/to/python python benchmarks/plan.py [--json FILE] [--quick]

Without ``PARADAG_PEER_PYTHON`` (an interpreter that has ``aiconfigurator``) the peer's fields are null. Model
configurations are read from ``../shared/reference/hf``; where that is absent, nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT.parent / "shared" / "reference" / "hf"


@dataclass(frozen=True)
class Case:
    """One question: a model on so many GPUs of a chip, with lengths in tokens and limits in milliseconds."""

    name: str
    config: str
    chip: str
    gpus: int
    input: int
    output: int
    ttft_ms: int
    tpot_ms: int


CASES = (
    Case("llama-3.1-8b on 8 H100", "llama-3.1-8b.json", "h100_sxm", 8, 4000, 500, 1000, 20),
    Case("llama-3.1-70b on 16 H100", "llama-3.1-70b.json", "h100_sxm", 16, 4000, 500, 2000, 50),
    Case("qwen3-32b on 8 H200", "qwen3-32b.json", "h200_sxm", 8, 4000, 500, 2000, 30),
    Case("qwen3-30b-a3b on 8 H200", "qwen3-30b-a3b.json", "h200_sxm", 8, 4000, 500, 1000, 20),
    Case("qwen3-235b-a22b on 16 H200", "qwen3-235b-a22b.json", "h200_sxm", 16, 4000, 500, 2000, 50),
    Case("deepseek-v3 on 16 H100", "deepseek-v3.json", "h100_sxm", 16, 4000, 500, 1000, 50),
    Case("deepseek-v3 on 32 H200", "deepseek-v3.json", "h200_sxm", 32, 4000, 500, 2000, 50),
)
QUICK = (0, 3)
CHILD_SECONDS = 900


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="only two small cases")
    parser.add_argument("--child", type=int, metavar="CASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(_ours(CASES[arguments.child])))
        return
    if not CONFIGS.is_dir():
        print(f"{CONFIGS} is absent: nothing to run", file=sys.stderr)
        rows = []
    else:
        rows = [_row(number) for number in (QUICK if arguments.quick else range(len(CASES)))]
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _row(number: int) -> dict[str, Any]:
    ours = _child([sys.executable, __file__, "--child", str(number)], {})
    peer = _peer(CASES[number]) or {}
    return {
        "case": CASES[number].name,
        **{f"ours_{key}": ours[key] for key in ("s", "cpu_s", "strategies")},
        **{f"peer_{key}": peer.get(key) for key in ("s", "cpu_s", "strategies")},
    }


def _child(command: list[str], extra: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=CHILD_SECONDS, env={**os.environ, **extra}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _ours(case: Case) -> dict[str, Any]:
    import paradag
    import paradag.compiler.plan  # what only the first use imports is no part of the search

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text((CONFIGS / case.config).read_text())
        file = Path(folder) / "case.strat"
        file.write_text(
            f'model hf "config.json" {{ }}\n'
            f"cluster {{ accelerator {case.chip}  nodes {case.gpus // 8} of 8 }}\n"
            f"workload {{ input {case.input} tokens  output {case.output} tokens\n"
            f"    require ttft <= {case.ttft_ms} ms  require tpot <= {case.tpot_ms} ms }}\n"
        )
        loaded = paradag.load(file)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = paradag.plan(loaded, "throughput")
    return {
        "s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "strategies": plan.evaluated,
        "tokens_per_s": plan.chosen.numbers.tokens_per_s if plan.chosen else None,
    }


_PEER = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from aiconfigurator.cli.api import cli_default
from aiconfigurator.sdk import sweep
path, gpus, system, isl, osl, ttft, tpot = sys.argv[1:]
known = set()
def counted(predict):
    # asked again for another limit on TPOT, it answers from its cache: a point counts once
    def call(*args, **kwargs):
        summary = predict(*args, **kwargs)
        model, runtime = kwargs["model"].config, kwargs["runtime_config"]
        degrees = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "cp_size")
        known.add((predict.__name__, kwargs.get("role"), runtime.batch_size, kwargs.get("ctx_tokens"),
                   *(getattr(model, d, None) for d in degrees)))
        return summary
    return call
sweep.predict_agg_worker = counted(sweep.predict_agg_worker)
sweep.predict_disagg_worker = counted(sweep.predict_disagg_worker)
wall, cpu = time.perf_counter(), time.process_time()
try:
    cli_default(path, int(gpus), system, isl=int(isl), osl=int(osl), ttft=float(ttft), tpot=float(tpot))
except Exception as error:
    print(type(error).__name__, str(error)[:300], file=sys.stderr)
print(json.dumps({"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "strategies": len(known)}))
"""


def _peer(case: Case) -> dict[str, Any] | None:
    """The peer's row; None where there is no peer or it evaluates nothing."""
    python = os.environ.get("PARADAG_PEER_PYTHON")
    if not python:
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / Path(case.config).stem
        place.mkdir()
        (place / "config.json").write_text((CONFIGS / case.config).read_text())
        numbers = (case.gpus, case.chip, case.input, case.output, case.ttft_ms, case.tpot_ms)
        command = [python, "-c", _PEER, str(place), *map(str, numbers)]
        found = _child(command, {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""})
    return found if found["strategies"] else None


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'case':<28}{'ours s':>9}{'cpu s':>8}{'strategies':>12}{'per cpu s':>11}"
          f"{'peer s':>9}{'cpu s':>8}{'strategies':>12}{'per cpu s':>11}{'ratio':>8}")  # fmt: skip
    for row in rows:
        rates = [
            row[f"{side}_strategies"] / row[f"{side}_cpu_s"] if row[f"{side}_strategies"] else None
            for side in ("ours", "peer")
        ]
        cells = [f"{row['case']:<28}"]
        for side, rate in zip(("ours", "peer"), rates, strict=True):
            if rate is None:
                cells.append(f"{'-':>9}{'-':>8}{'-':>12}{'-':>11}")
            else:
                cells.append(
                    f"{row[f'{side}_s']:9.2f}{row[f'{side}_cpu_s']:8.2f}{row[f'{side}_strategies']:12,}{rate:11,.0f}"
                )
        ours, peer = rates
        cells.append(f"{ours / peer:8.0f}" if ours and peer else f"{'-':>8}")
        print("".join(cells))


if __name__ == "__main__":
    main()
