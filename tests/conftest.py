"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a shared machine makes single examples slow now and then, and that is no fault of the code.
# The same examples in every run; `--hypothesis-profile=search` draws new ones.
settings.register_profile("paradag", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("paradag")
