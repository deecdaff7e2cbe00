"""The catalogue of serving engines: how each fills a step, and what its host side costs (``engines.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["Engine", "engine", "engine_names"]


@dataclass(frozen=True)
class Engine:
    """A serving engine.

    Attributes:
        name: As in the catalogue.
        policy: ``mixed``: prompt chunks share steps with decodes. ``prefill_first``: prompts alone, decodes wait.
        budget: (least bytes of GPU memory, tokens of a step with prompts), ascending.
        chunked: Whether a prompt is cut at the budget.
        lag: Steps after its own at whose end a token is handed over.
        memory_fraction: Share of a GPU's memory that weights, activations and KV cache may fill.
        output_reserved: Share of its output for which a sequence must find KV cache when it is admitted.
        step_s: Host seconds per decode step that no overlap hides.
        sequence_s: Host seconds per sequence and decode step.
        issue_s: Host seconds per kernel of a step with prompts, which no captured graph replays: what such a step takes
            at least.
        request_s: Seconds between a client's sending and the queue that requests spend side by side.
        tokenize_s: Seconds per prompt token of the front end, which takes one request at a time.
        fused: Operators that kernels before or after them do along, without a launch of their own.
        within: Operators whose time is part of a neighbour's measured one.
        quantizing: By format of the weights, operators that hand their result to a product in that format.
        notes: Which setting of the engine the entry describes.
        sources: Where the figures come from.
    """

    name: str
    policy: Literal["mixed", "prefill_first"]
    budget: tuple[tuple[float, int], ...]
    chunked: bool
    lag: int
    memory_fraction: float
    output_reserved: float
    step_s: float
    sequence_s: float
    issue_s: float
    request_s: float
    tokenize_s: float
    fused: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    quantizing: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def default_budget(self, memory: float) -> int:
        """Tokens of a step that holds prompts, as the engine sets it on a GPU of ``memory`` bytes."""
        return [tokens for least, tokens in self.budget if memory >= least][-1]


def engine_names() -> tuple[str, ...]:
    """Names of all catalogued engines."""
    return tuple(_engines())


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        KeyError: there is none.
    """
    return _engines()[name]


@cache
def _engines() -> Mapping[str, Engine]:
    text = files(__package__).joinpath("engines.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: _entry(name, row) for name, row in tomllib.loads(text).items()})


def _entry(name: str, row: dict[str, Any]) -> Engine:
    budget = tuple((least * 1e9, tokens) for least, tokens in row.pop("budget"))
    lists: dict[str, Any] = {key: tuple(row.pop(key, ())) for key in ("fused", "within", "notes", "sources")}
    quantizing = {dtype: tuple(operators) for dtype, operators in row.pop("quantizing", {}).items()}
    return Engine(name=name, budget=budget, quantizing=quantizing, **lists, **row)
