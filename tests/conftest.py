"""Settings for all tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# No deadline: a shared machine makes single examples slow now and then, and that is no fault of the code.
# The same examples in every run; `--hypothesis-profile=search` draws new ones.
settings.register_profile("paradag", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("paradag")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays, and tests make many objects that live long: look for cycles less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
