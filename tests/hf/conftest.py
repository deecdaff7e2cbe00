"""Tests against ``transformers`` run on request (``-m huggingface``) and where the extra is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.huggingface)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}: pip install 'paradag[verify]'"))
