"""Ranks as real processes: the same numbers and bytes as in one process, and no process is left whatever happens."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from paradag import DiagnosticError
from paradag.compiler.run.torch_engine import TorchEngine
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute
from paradag.tests.cli.invoke import invoke
from paradag.tests.passes.validation import damage as d
from paradag.tests.run.builds import DENSE, spec_of
from paradag.tests.run.test_rank_programs import STRATEGIES, assert_alike, assert_equal_on
from paradag.tests.strategies import small_specs

EXAMPLES = Path(__file__).resolve().parents[2] / "ir_examples"
PATIENCE_S = 30.0

slow = pytest.mark.slow
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    """Eight processes for all tests that leave them alone."""
    with TorchEngine(8) as made:
        yield made


def alive(pids: Iterable[int]) -> list[int]:
    """Those of some processes that run; a zombie does not."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "Z"

    return [pid for pid in pids if state(pid) not in "ZX"]


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return holds()


# --- they compute the same --------------------------------------------------------------------------------------------


@slow
@needs_torch
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("batch", [8, 7])
def test_processes_compute_and_move_what_one_process_does(name: str, batch: int, engine: TorchEngine) -> None:
    """With an uneven batch gathers are padded, all-to-alls are not."""
    spec = spec_of(*STRATEGIES[name], batch=batch, prompt=9)
    found, alone = execute(spec, steps=4, engine=engine), execute(spec, steps=4)
    document = found.to_json()
    assert (document["engine"], document["processes"]) == ("torch", 8) and document["backend"] in ("gloo", "nccl")
    for phase, report in found.phases.items():
        assert report.equal and report.max_error < 1e-12, report
        assert_alike(report, alone.phases[phase])


@slow
@needs_torch
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(spec=small_specs())
def test_random_strategies_on_processes(engine: TorchEngine, spec: Spec) -> None:
    assert_equal_on(engine, spec)


@slow
@needs_torch
def test_an_example_from_the_command_line() -> None:
    code, out, err = invoke("verify", str(EXAMPLES / "deepseek-v3-decode-ep144.strat"), "--engine", "torch")
    assert (code, err) == (0, "")
    assert "EQUAL" in out and "8 processes on" in out and "shrunk: decode.ep 144 -> " in out


@slow
@needs_torch
def test_a_wrong_graph_differs_as_it_does_in_one_process(engine: TorchEngine) -> None:
    spec = spec_of(DENSE, "strategy { tp 4 }")
    change = {"decode": lambda graph: d.bypass(graph, "dense_layer", "down.all_reduce")}
    found = execute(spec, change=change, engine=engine).phases["decode"]  # type: ignore[arg-type]
    alone = execute(spec, change=change).phases["decode"]  # type: ignore[arg-type]
    assert not found.equal and not found.fault and found.max_error > 1e-3
    assert found.max_error == pytest.approx(alone.max_error, rel=1e-9)


@slow
@needs_torch
@pytest.mark.parametrize("node, says", [("send", "nobody sent"), ("recv", "does not hold")])
def test_a_message_that_never_comes_is_a_fault_and_no_hang(node: str, says: str) -> None:
    began = time.monotonic()
    spec = spec_of(DENSE, "strategy { pp 2 -> tp 2 }")
    change = {"prefill": lambda graph: d.bypass(graph, "boundary", node)}
    with TorchEngine(4) as own:
        first = own.pool
        found = execute(spec, change=change, engine=own)  # type: ignore[arg-type]
        assert says in found.phases["prefill"].fault
        assert not alive(first.pids.values())
        assert found.phases["decode"].equal, "it starts from the reference's cache, on new processes"
    assert time.monotonic() - began < 60


# --- processes that end -----------------------------------------------------------------------------------------------


def long_run(engine: TorchEngine) -> None:
    execute(spec_of(DENSE, "strategy { pp 2 -> tp 2 }"), steps=200, engine=engine)


def once_running(engine: TorchEngine, rank: int, do: Callable[[int], None]) -> threading.Thread:
    """Do something to the process of a rank once it is well into the run."""

    def watch() -> None:
        eventually(lambda: engine.pool.progress[rank] > 100)
        do(engine.pool.pids[rank])

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@slow
@needs_torch
def test_a_killed_rank_is_named_and_takes_the_others_with_it() -> None:
    with TorchEngine(4) as own:
        own.pool.ready()
        pids = dict(own.pool.pids)
        thread = once_running(own, 2, lambda pid: os.kill(pid, signal.SIGKILL))
        with pytest.raises(DiagnosticError) as raised:
            long_run(own)
        thread.join()
        assert not alive(pids.values())
    (found,) = raised.value.diagnostics
    assert found.code == "PD505"
    assert f"rank 2 (process {pids[2]}) was ended by SIGKILL while it ran " in found.message
    assert (" of " in found.message and "(layer " in found.message) or "step " in found.message


@slow
@needs_torch
def test_a_rank_that_does_not_come_is_not_waited_for_without_end() -> None:
    with TorchEngine(4, timeout_s=3) as own:
        own.pool.ready()
        pids = dict(own.pool.pids)
        thread = once_running(own, 1, lambda pid: os.kill(pid, signal.SIGSTOP))
        began = time.monotonic()
        with pytest.raises(DiagnosticError, match=r"PD505: rank . gave up while it ran") as raised:
            long_run(own)
        # The rank that waits for the stopped one in their collective may have come no further than that one.
        assert re.search(r"furthest behind is rank [01], which ran ", str(raised.value.diagnostics[0].help))
        assert time.monotonic() - began < PATIENCE_S
        thread.join()
        assert not alive(pids.values())


PARENT = """
import signal
import sys
from paradag.compiler.run.torch_engine import TorchEngine
from paradag.tests.run.test_torch_engine import long_run

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
engine = TorchEngine(4)
engine.pool.ready()
print(engine.pool.folder, *engine.pool.pids.values(), engine.pool.host_pid, flush=True)
try:
    with engine:
        long_run(engine)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@slow
@needs_torch
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent(number: int) -> None:
    command = [sys.executable, "-c", PARENT]
    path = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        folder, *ids = parent.stdout.readline().split()
        pids = [int(p) for p in ids]
        assert len(pids) == 5 and len(alive(pids)) == 5
        time.sleep(0.5)
        parent.send_signal(number)
        rest = parent.stdout.read()
    assert rest == ("interrupted\n" if number == signal.SIGINT else "")
    assert eventually(lambda: not alive(pids))
    assert not Path(folder).exists()


# --- without torch ----------------------------------------------------------------------------------------------------


def test_without_torch_there_is_a_diagnostic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = invoke("verify", str(EXAMPLES / "llama-3.1-8b-1gpu.strat"), "--engine", "torch")
    assert (code, out) == (1, "")
    assert err.startswith("error[PD504]") and 'pip install "paradag[verify]"' in err and "Traceback" not in err
