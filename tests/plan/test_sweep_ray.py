"""Sweeps on a Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import pytest

from paradag.compiler.plan._ray import RayExecutor
from paradag.compiler.plan.sweep import ATTEMPTS, Done, Failed, sweep
from paradag.tests.cli.invoke import invoke
from paradag.tests.plan.jobs import Square, square
from paradag.tests.plan.test_sweep import check_interrupt, contents, folder_of_conditions

# read when ray is imported; workers inherit them
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"})
ray = pytest.importorskip("ray", reason='ray is not installed (pip install ".[test,ray]")')

pytestmark = pytest.mark.ray

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU, named in RAY_ADDRESS, and room for others.

    This process is connected while there is no other node: Ray takes any one of its machine, and a process cannot live
    without the one it took.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            patch.setenv("RAY_ADDRESS", cluster.address)
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """A second node."""
    node = cluster.add_node(**NODE)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node, allow_graceful=False)


# These two come first: nothing is connected yet, and no node has died.


def test_an_address_where_no_cluster_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of_conditions(tmp_path / "in", [1])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, _, said = invoke("plan", source, "--save-path", tmp_path / "out", "--executor", "ray")
    assert code == 1 and "error[PD606]: no Ray cluster answers at 127.0.0.1:1" in said


@pytest.mark.usefixtures("cluster")
def test_a_command_of_its_own_connects_and_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    check_interrupt(tmp_path, "--executor", "ray")


# Then this process is connected.


@pytest.mark.usefixtures("second")
def test_workers_may_be_killed_and_work_may_fail(cluster: Any, tmp_path: Path) -> None:
    jobs = [
        Square(0),
        Square(1, deaths=1, folder=tmp_path),
        Square(2, deaths=ATTEMPTS, folder=tmp_path),
        Square(3, fault="no such number"),
        Square(4),
    ]
    outcomes = dict(sweep(enumerate(jobs), RayExecutor(square)))
    lost = outcomes.pop(2)
    assert isinstance(lost, Failed) and lost.reason.startswith("it lost 3 workers")
    assert outcomes == {0: Done(0), 1: Done(1), 3: Failed("RuntimeError: no such number"), 4: Done(16)}


def test_a_node_killed_half_way_costs_only_its_share(cluster: Any, second: Any) -> None:
    jobs = [Square(n, seconds=0.5) for n in range(8)]
    outcomes = {}
    with closing(sweep(enumerate(jobs), RayExecutor(square))) as found:
        for number, outcome in found:
            if not outcomes:
                cluster.remove_node(second, allow_graceful=False)
            outcomes[number] = outcome
    assert outcomes == {n: Done(n**2) for n in range(8)}


def test_plans_are_those_of_local_processes_with_a_node_killed_half_way(
    cluster: Any, second: Any, tmp_path: Path
) -> None:
    source = folder_of_conditions(tmp_path / "in", range(1, 9))
    (source / "broken.strat").write_text("model {", encoding="utf-8")
    out = tmp_path / "ray"

    def kill_node() -> None:
        while not any(out.glob("*/decode.strat")):
            sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)

    killer = Thread(target=kill_node, daemon=True)
    killer.start()
    code, output, said = invoke("plan", source, "--save-path", out, "--executor", "ray")
    killer.join(timeout=30)
    assert code == 1 and "error[PD010]" in said and "PD605" not in said, said
    assert not killer.is_alive() and len(cluster.list_all_nodes()) == 1

    assert invoke("plan", source, "--save-path", tmp_path / "local", "--workers", 2)[0] == 1
    assert contents(out) == contents(tmp_path / "local")
    assert len({Path(p).parent for p in json.loads(output)["save_path"]}) == 8
