"""A short fuzz of every reader: whatever the input, a reader answers, and raises nothing but diagnostics.

`python -m paradag.benchmarks.fuzz` runs the same readers for as long as one likes, guided by coverage.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradag.tests.fuzzing import READERS, Reader

RUNS = {"strat": 60, "dot": 60, "condition": 100, "json": 40}


def damaged(reader: Reader, rng: random.Random) -> bytes:
    """A seed with some pieces dropped, doubled, swapped with another seed's, or replaced by words and noise."""
    seeds, words = reader.seeds(), reader.words()
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        low = rng.randrange(len(data) + 1)
        high = min(len(data), low + rng.choice((0, 1, 4, 30, 200)))
        other = rng.choice(seeds)
        begin = rng.randrange(len(other) + 1)
        data[low:high] = rng.choice(
            (
                b"",
                bytes(data[low:high]) * 2,
                other[begin : begin + 60],
                rng.choice(words).encode(),
                rng.randbytes(3),
                b"9" * rng.choice((1, 30)),
                rng.choice((b"{", b"}", b"[" * 50, b'"', b"\n", b"#", b"-")),
            )
        )
    return bytes(data[: reader.longest])


@pytest.mark.parametrize("name", READERS)
def test_every_input_gets_an_answer(name: str) -> None:
    reader = READERS[name]

    @settings(max_examples=RUNS[name], deadline=20_000, suppress_health_check=list(HealthCheck), database=None)
    @given(st.randoms(use_true_random=False))
    def reads(rng: random.Random) -> None:
        reader.read(damaged(reader, rng))

    reads()


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_are_read(name: str) -> None:
    for seed in READERS[name].seeds():
        READERS[name].read(seed)
