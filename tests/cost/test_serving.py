"""Continuous batching: the simulated run against closed forms and hand-counted schedules."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost.serving import (
    ClosedLoop,
    Latencies,
    Scheduling,
    StepTable,
    arrival_wait,
    burst_ttft,
    simulate,
    steady_tpot,
)

TOKEN, STEP = 0.001, 0.010
MIXED = Scheduling("mixed", budget=1 << 20)
PROMPTS_FIRST = Scheduling("prefill_first", budget=1 << 20)


def table(clients: int = 64, **fields: float) -> StepTable:
    """A prompt token takes 1 ms, a decode step 10 ms whatever its batch; beside a prompt a decode token adds 1 ms."""
    tokens = np.array([0.0, 1e6])
    free = [0.0] * (clients + 1)
    return StepTable([STEP] * (clients + 1), tokens, tokens * TOKEN, free, prompt_attention=0.0, **fields)


def test_one_client_waits_for_its_prompt_and_then_for_its_steps() -> None:
    found = simulate(table(), MIXED, ClosedLoop(1, prompt=50, output=11, generations=3))
    assert found.ttft == pytest.approx(0.050)
    assert found.tpot == pytest.approx(STEP)
    assert (found.queue, found.prefill) == (0.0, found.ttft)
    assert found.stall == pytest.approx(0.0)
    assert found.longest_gap == pytest.approx(STEP)


def test_prompts_that_fit_a_step_run_together() -> None:
    found = simulate(table(), PROMPTS_FIRST, ClosedLoop(4, prompt=50, output=11, generations=1))
    assert found.ttft == pytest.approx(4 * 0.050)
    assert found.tpot == pytest.approx(STEP)


@pytest.mark.parametrize(("clients", "together"), [(8, 1), (8, 2), (12, 4), (3, 8)])
def test_a_burst_queues_as_its_closed_form_says(clients: int, together: int) -> None:
    scheduling = Scheduling("prefill_first", budget=50 * together)
    found = simulate(table(), scheduling, ClosedLoop(clients, prompt=50, output=5, generations=1))
    assert found.ttft == pytest.approx(burst_ttft(0.050, clients, together))
    assert found.prefill == pytest.approx(0.050 * min(together, clients))


def test_the_prompts_of_others_stall_a_decode() -> None:
    """Three prompts one after another: the first request's second token waits for the two others' prompts."""
    scheduling = Scheduling("prefill_first", budget=50)
    found = simulate(table(), scheduling, ClosedLoop(3, prompt=50, output=5, generations=1))
    mean_wait = (2 + 1 + 0) / 3 * 0.050
    assert found.tpot == pytest.approx(STEP + mean_wait / 4)
    assert found.stall == pytest.approx(mean_wait / 4)
    assert found.longest_gap == pytest.approx(2 * 0.050 + STEP)


def test_a_mixed_step_takes_decodes_along() -> None:
    """The first step has room for one token of the second prompt, the second step for its rest and one decode."""
    scheduling = Scheduling("mixed", budget=51)
    found = simulate(table(), scheduling, ClosedLoop(2, prompt=50, output=3, generations=1))
    assert found.ttft == pytest.approx((0.051 + 0.101) / 2)
    assert found.longest_gap == pytest.approx(0.050)


def test_chunks_keep_to_the_budget_and_whole_prompts_do_not() -> None:
    load = ClosedLoop(1, prompt=100, output=2, generations=1)
    slow = replace(table(), floor=0.060)
    assert simulate(slow, Scheduling("mixed", budget=50), load).ttft == pytest.approx(2 * 0.060)
    assert simulate(slow, Scheduling("mixed", budget=50, chunked=False), load).ttft == pytest.approx(0.100)


def test_a_lag_hands_the_first_token_over_a_step_later() -> None:
    load = ClosedLoop(1, prompt=50, output=4, generations=2)
    lagging = simulate(table(), replace(MIXED, lag=1), load)
    assert lagging.ttft == pytest.approx(0.050 + STEP)
    assert lagging.ttft + 3 * lagging.tpot == pytest.approx(0.050 + 3 * STEP)


def test_sequences_beyond_the_cache_wait_for_others_to_end() -> None:
    load = ClosedLoop(2, prompt=50, output=11, generations=1)
    found = simulate(table(), replace(MIXED, sequences=1), load)
    assert found.queue == pytest.approx((0.050 + 10 * STEP) / 2)
    assert found.tpot == pytest.approx(STEP)


def test_long_runs_settle_at_the_steady_state() -> None:
    """One prompt a step: with the 15 decodes beside it a step takes 55 ms, 45 ms more than a decode step."""
    load = ClosedLoop(16, prompt=40, output=200, generations=40)
    found = simulate(table(), Scheduling("mixed", budget=56), load)
    assert found.tpot == pytest.approx(float(steady_tpot(STEP, 0.045, 16, 200)), rel=0.03)


def test_the_front_end_takes_one_request_at_a_time() -> None:
    load = ClosedLoop(3, prompt=50, output=1, generations=1, transit=0.002, tokenize=1e-3)
    alone = simulate(table(), MIXED, replace(load, clients=1))
    assert alone.queue == pytest.approx(0.002 + 50e-3)
    together = simulate(table(), Scheduling("mixed", budget=50), load)
    # prompts reach the queue 50 ms apart, later than a step takes each
    assert together.ttft - alone.ttft == pytest.approx(50e-3, abs=1e-6)


def test_a_pause_counts_towards_no_latency() -> None:
    load = ClosedLoop(1, prompt=50, output=4, generations=3)
    found, paused = simulate(table(), MIXED, load), simulate(table(), MIXED, replace(load, pause=5.0))
    assert astuple(paused) == pytest.approx(astuple(found))


loads = st.builds(
    ClosedLoop,
    clients=st.integers(1, 12),
    prompt=st.integers(1, 80),
    output=st.integers(1, 20),
    generations=st.integers(1, 4),
    shortest=st.sampled_from((1.0, 0.5)),
    transit=st.sampled_from((0.0, 0.004)),
    tokenize=st.sampled_from((0.0, 1e-4)),
    pause=st.sampled_from((0.0, 0.05)),
)
schedulings = st.builds(
    Scheduling,
    policy=st.sampled_from(("mixed", "prefill_first")),
    budget=st.integers(1, 200),
    chunked=st.booleans(),
    sequences=st.integers(1, 12),
    lag=st.integers(0, 1),
)


@given(loads, schedulings)
@settings(max_examples=150, deadline=None)
def test_every_request_is_answered_and_the_parts_add_up(load: ClosedLoop, scheduling: Scheduling) -> None:
    found: Latencies = simulate(table(), scheduling, load)
    assert found.ttft == pytest.approx(found.queue + found.prefill)
    assert found.prefill > 0 and found.queue >= 0
    assert found.tpot == 0 or load.output > 1
    if scheduling.lag == 0 and found.tpot:
        assert found.tpot >= min(STEP, TOKEN) - 1e-12
    assert found == simulate(table(), scheduling, load)


def test_arrivals_wait_as_in_a_queue_with_fixed_service() -> None:
    rates = np.array([0.0, 5.0, 9.0, 10.0, 20.0])
    expected = [0.0, 0.5 * 0.1 / (2 * 0.5), 0.9 * 0.1 / (2 * 0.1), np.inf, np.inf]
    assert arrival_wait(0.1, rates) == pytest.approx(expected)
