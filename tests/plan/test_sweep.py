"""Sweeps: the same results whatever becomes of the workers, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.cli.sweep import Job, plan_job, result_folders
from paradag.compiler.driver import load
from paradag.compiler.plan._local import LocalExecutor
from paradag.compiler.plan.sweep import ATTEMPTS, Done, Failed, Lost, sweep
from paradag.tests.cli.invoke import invoke
from paradag.tests.plan.jobs import Square, square

pytestmark = pytest.mark.slow

CONDITION = """
model "dense" { layers 1 hidden 256 vocab 512 ffn 768 attention gqa { heads 8 kv_heads 2 head_dim 32 } }
cluster {
    accelerator "toy" { compute 1 TFLOPS bf16  memory 64 MB  bandwidth 100 GB/s }
    nodes 1 of 1
    link scale_up { bandwidth 20 GB/s  latency 2 us }
}
workload { batch BATCH input 48 tokens output 8 tokens }
"""

Outcome = Done[int] | Failed


def folder_of_conditions(folder: Path, batches: Sequence[int]) -> Path:
    """A folder with a small condition for each batch."""
    folder.mkdir()
    for batch in batches:
        (folder / f"batch{batch}.strat").write_text(CONDITION.replace("BATCH", str(batch)), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def squares(jobs: Sequence[Square], workers: int) -> dict[int, Outcome]:
    return dict(sweep(enumerate(jobs), LocalExecutor(square, workers)))


# --- what happens to jobs, whatever runs them -----------------------------------------------------------------------


class Scripted:
    """An executor without workers: job ``n`` loses as many as the script says, the newest job ends first."""

    def __init__(self, losses: Sequence[int], slots: int) -> None:
        self.losses = list(losses)
        self.slots = slots
        self.flying: list[int] = []
        self.submitted: Counter[int] = Counter()
        self.closed = False

    def submit(self, number: int, job: int) -> None:
        assert number == job and number not in self.flying
        self.flying.append(number)
        self.submitted[number] += 1
        assert len(self.flying) <= self.slots

    def wait(self) -> list[tuple[int, Done[int] | Failed | Lost]]:
        number = self.flying.pop()
        if self.losses[number] >= self.submitted[number]:
            return [(number, Lost("gone"))]
        return [(number, Done(number**2))]

    def close(self) -> None:
        self.closed = True


@given(st.lists(st.integers(0, ATTEMPTS + 1), max_size=12), st.integers(1, 4))
def test_a_lost_worker_costs_its_own_job_and_no_other(losses: list[int], slots: int) -> None:
    executor = Scripted(losses, slots)
    outcomes = dict(sweep(((n, n) for n in range(len(losses))), executor))
    for number, lost in enumerate(losses):
        assert executor.submitted[number] == min(lost + 1, ATTEMPTS)
        assert outcomes[number] == (
            Done(number**2) if lost < ATTEMPTS else Failed("it lost 3 workers, the last one gone")
        )
    assert executor.closed


def test_jobs_are_taken_as_workers_become_free() -> None:
    taken: list[int] = []
    jobs = ((n, n) for n in range(10) if taken.append(n) is None)  # type: ignore[func-returns-value]
    executor = Scripted([0] * 10, slots=3)
    with closing(sweep(jobs, executor)) as outcomes:
        next(outcomes)
        assert taken == [0, 1, 2]
    assert executor.closed


# --- processes ------------------------------------------------------------------------------------------------------


def test_local_workers_may_be_killed_and_work_may_fail(tmp_path: Path) -> None:
    jobs = [
        Square(0),
        Square(1, deaths=1, folder=tmp_path),
        Square(2, deaths=ATTEMPTS, folder=tmp_path),
        Square(3, fault="no such number"),
        Square(4),
    ]
    assert squares(jobs, workers=2) == {
        0: Done(0),
        1: Done(1),
        2: Failed("it lost 3 workers, the last one killed by SIGKILL"),
        3: Failed("RuntimeError: no such number"),
        4: Done(16),
    }


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_sweep_left_early_leaves_no_process() -> None:
    executor = LocalExecutor(square, 2)
    with closing(sweep(enumerate([Square(0), Square(1, seconds=600), Square(2, seconds=600)]), executor)) as outcomes:
        assert next(outcomes) == (0, Done(0))
        workers = executor.workers
        assert len(workers) == 2 and all(map(is_alive, workers))
    assert not any(map(is_alive, workers))


PARENT = """
from paradag.compiler.plan._local import LocalExecutor
from paradag.tests.plan.jobs import Square, square
executor = LocalExecutor(square, 1)
executor.submit(0, Square(0))
executor.wait()
executor.submit(1, Square(1, seconds=600))
print(*executor.workers, flush=True)
executor.wait()
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
    until = monotonic() + 30
    while is_alive(worker) and monotonic() < until:
        sleep(0.02)
    assert not is_alive(worker)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_plans_are_the_same_with_a_worker_killed_half_way(tmp_path: Path) -> None:
    sources = sorted(folder_of_conditions(tmp_path / "in", [1, 2, 3]).iterdir())
    jobs = [Job(load(source), {"top": 3}) for source in sources]
    executor = LocalExecutor(plan_job, 2)
    answers = {}
    with closing(sweep(enumerate(jobs), executor)) as outcomes:
        for number, outcome in outcomes:
            if not answers:
                os.kill(executor.workers[-1], signal.SIGKILL)
            assert isinstance(outcome, Done)
            answers[number] = outcome.result
    assert [answers[n] for n in range(3)] == [plan_job(job) for job in jobs]
    assert len({answer.files["decode_strategy.json"] for answer in answers.values()}) == 3


def test_a_sweep_plans_each_file_as_it_would_be_alone(tmp_path: Path) -> None:
    """Broken and infeasible files among them are told, and stop nothing; the exit code is the worst of all."""
    source, out = folder_of_conditions(tmp_path / "in", [1, 2]), tmp_path / "out"
    (source / "broken.strat").write_text("model {", encoding="utf-8")
    (source / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    tight = CONDITION.replace("BATCH", "2 require tpot <= 0.001 us")
    (source / "tight.strat").write_text(tight, encoding="utf-8")
    alone = {}
    for batch in (1, 2):
        assert invoke("plan", source / f"batch{batch}.strat", "--save-path", tmp_path / f"batch{batch}")[0] == 0
        alone[f"batch{batch}"] = contents(tmp_path / f"batch{batch}")

    code, output, said = invoke("plan", source, "--save-path", out, "--workers", 2)

    assert code == 1
    assert "error[PD303]" in said and "error[PD010]" in said and "[4/4]" in said and "config" not in said
    paths = [Path(p) for p in json.loads(output)["save_path"]]
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in paths} == contents(out)
    assert [p.parent.name for p in paths if p.name == "decode.strat"] == ["batch1", "batch2"]
    assert {b: contents(out / b) for b in alone} == alone

    code, output, _ = invoke("plan", source / "batch1.strat", tmp_path / "none.strat", "--save-path", out)
    assert code == 2 and {Path(p).parent for p in json.loads(output)["save_path"]} == {out / "batch1"}


def test_files_with_one_stem_have_folders_of_their_own() -> None:
    sources = [Path("a/x.strat"), Path("b/x.strat"), Path("a/x.md"), Path("x-2.strat"), Path("b/X.strat")]
    assert [f.name for f in result_folders(sources, Path("out"))] == ["x", "x-3", "x-4", "x-2", "X-5"]


@given(st.lists(st.sampled_from(["x", "X", "x-2", "x-3", "x-2-2", "y"]), max_size=8))
def test_folders_of_results_differ(stems: list[str]) -> None:
    sources = [Path(str(number), f"{stem}.strat") for number, stem in enumerate(stems)]
    folders = [f.name.casefold() for f in result_folders(sources, Path("out"))]
    assert len(set(folders)) == len(stems)


def test_a_folder_without_files_cannot_be_planned(tmp_path: Path) -> None:
    code, output, said = invoke("plan", tmp_path, "--save-path", tmp_path / "out")
    assert (code, json.loads(output)) == (2, {"save_path": []})
    assert "error[PD001]" in said and "no file to plan" in said


def check_interrupt(folder: Path, *options: str) -> None:
    """Ctrl-C after the first of many files."""
    source, out = folder_of_conditions(folder / "in", range(1, 40)), folder / "out"
    # a shell's background jobs ignore the signal, and so would their children
    main = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from paradag.compiler.cli import main; main()"
    )
    command = [sys.executable, "-c", main, "plan", str(source), "--save-path", str(out), "--workers", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, said = process.communicate(timeout=60)
    assert first.startswith("[1/39]") and "Traceback" not in said and "interrupted: " in said
    paths = json.loads(output)["save_path"]
    assert process.returncode == 130
    assert paths and {Path(p).relative_to(out).as_posix() for p in paths} <= contents(out).keys()
    assert len({Path(p).parent for p in paths}) < 39


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    check_interrupt(tmp_path)


def test_a_worker_that_cannot_be_started_is_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = LocalExecutor(square, 1)
    start, starts = executor._start, iter([True, False])

    def fail_once() -> object:
        if next(starts, False):
            raise OSError(errno.EMFILE, "Too many open files")
        return start()

    monkeypatch.setattr(executor, "_start", fail_once)
    assert dict(sweep([(0, Square(3))], executor)) == {0: Done(9)}


def test_without_ray_the_executor_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of_conditions(tmp_path / "in", [1])
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, said = invoke("plan", source, "--save-path", tmp_path / "out", "--executor", "ray")
    assert code == 1 and "error[PD606]" in said and 'pip install "paradag[ray]"' in said
