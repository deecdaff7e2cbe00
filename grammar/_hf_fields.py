"""Typed access to a Hugging Face config: a value is what it should be, or the error names its key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..compiler.spec import Assumption
from ..compiler.spec.model import MAX_SIZE

__all__ = ["Fields", "MalformedConfig"]

_REQUIRED: Any = object()


class MalformedConfig(Exception):
    """A value that is missing, of the wrong kind, or that the model description cannot express."""

    def __init__(self, message: str, expected: str | None = None, fix: str | None = None) -> None:
        self.expected = expected
        self.fix = fix
        super().__init__(message)


class Fields:
    """One JSON object of a config. ``assumptions`` collects what had to be assumed or left out."""

    def __init__(self, data: dict[str, Any], prefix: str = "") -> None:
        self._data = data
        self._prefix = prefix
        self.assumptions: list[Assumption] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __contains__(self, key: str) -> bool:
        return self._data.get(key) is not None

    def is_zero(self, key: str) -> bool:
        value = self._data.get(key)
        return type(value) in (int, float) and value == 0

    def given(self, key: str) -> bool:
        """Whether the key is there at all, be it with ``null``."""
        return key in self._data

    def bad(self, key: str, expected: str) -> MalformedConfig:
        value = repr(self._data.get(key))
        shown = value if len(value) <= 40 else value[:37] + "..."
        return MalformedConfig(f"`{self._prefix}{key}` is {shown}", expected, "check the config")

    def unsupported(self, key: str, feature: str) -> MalformedConfig:
        return MalformedConfig(
            f"`{self._prefix}{key}`: {feature} cannot be described",
            None,
            "write the model's dimensions in the block instead",
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self._data.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise MalformedConfig(
                f"the config has no `{self._prefix}{key}`", f"`{key}`", "check that the file is complete"
            )
        return default

    def count(self, key: str, default: int | None = _REQUIRED, *, low: int = 1) -> Any:
        """An integer from ``low`` to the largest dimension; ``null`` counts as absent."""
        value = self._get(key, default)
        if value is default and key not in self:
            return value
        if type(value) is not int or not low <= value <= MAX_SIZE:
            raise self.bad(key, f"a whole number of at least {low}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.bad(key, "true or false")
        return value

    def number(self, key: str, default: float = _REQUIRED) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e18:
            raise self.bad(key, "a positive number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, "a string")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """A list whose elements all have that type; empty where absent."""
        value = self._get(key, [])
        if not isinstance(value, list) or any(type(element) is not kind for element in value):
            raise self.bad(key, f"a list of {kind.__name__}")
        return value

    def object(self, key: str) -> Fields | None:
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return Fields(value, f"{self._prefix}{key}.")

    def assume(self, name: str, value: str, why: str) -> None:
        self.assumptions.append(Assumption(name, value, why))
