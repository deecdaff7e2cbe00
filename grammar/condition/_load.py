"""A condition file to a :class:`~paradag.compiler.spec.LoadedSpec`: read, complete, validate, account for lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...compiler.diagnostics import Diagnostic, DiagnosticError
from ...compiler.spec import LoadedSpec, Pack, Spec
from .._source import MAX_BYTES
from ._assume import complete
from ._claims import Claims
from ._markdown import read_markdown
from ._strategy import strategies
from ._tree import read_json, read_yaml

__all__ = ["ConditionError", "is_condition", "load_condition_text"]

_READERS = {".md": read_markdown, ".markdown": read_markdown, ".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}

_NEEDED = {
    "model.layers.count": "the number of layers",
    "model.hidden": "the hidden (token) dimension",
    "model.attention.heads": "the number of attention heads",
    "model.attention.head_dim": "the dimension of a head",
    "workload.input": "the prompt length, or a range of sequence lengths",
}
_CHIP = {
    "memory": "memory per accelerator",
    "bandwidth": "memory bandwidth per accelerator",
    "compute": "computing power per accelerator",
}
_MAX_LINES = 20_000


class ConditionError(DiagnosticError):
    """Raised where a condition gives no spec. ``lines`` accounts for the lines nevertheless."""

    def __init__(self, claims: Claims) -> None:
        super().__init__(claims.diagnostics, {claims.file: claims.text})
        self.lines = claims.account()


def is_condition(path: Path, text: str) -> bool:
    """Whether a file is a condition: by its suffix, and JSON where it describes a model and a cluster."""
    suffix = path.suffix.lower()
    if suffix != ".json":
        return suffix in _READERS
    return all(re.search(rf'"{key}"\s*:\s*\{{', text) for key in ("model", "cluster")) and '"schema"' not in text[:200]


def load_condition_text(text: str, file: str = "condition.md", pack: Pack | None = None) -> LoadedSpec:
    """The spec that the text of a condition file describes; the suffix of ``file`` tells its kind.

    Args:
        text: The file's content.
        file: Its name in messages.
        pack: Knowledge that the spec is judged by; its accelerators stand in for missing links too.

    Raises:
        ConditionError: what is missing and cannot be assumed, or is malformed; its ``texts`` hold the text.
    """
    claims = Claims(file, text)
    if len(text) > MAX_BYTES or len(claims.source) > _MAX_LINES:
        claims.report("PD002", f"the text has {len(claims.source):,} lines", 1, f"at most {_MAX_LINES:,}")
    elif not text.strip():
        claims.report("PD004", "the file is empty", 1, "a description of model, cluster and workload")
    else:
        _READERS[Path(file).suffix.lower()](claims)
    spec = None
    if not any(d.is_error for d in claims.diagnostics):
        complete(claims, Path(file).stem, pack)
        spec = _spec(claims)
    if spec is None or any(d.is_error for d in claims.diagnostics):
        raise ConditionError(claims)
    sources = {path: claims.span(c.line) for path, c in claims.by_path.items() if c.line}
    return LoadedSpec(
        spec if pack is None else spec.model_copy(update={"pack": pack}),
        sources | _places(claims),
        tuple(claims.assumptions),
        tuple(claims.diagnostics),
        {file: text},
        claims.account(),
    )


def _places(claims: Claims) -> dict[str, Any]:
    """Places of strategies, which rules look up as ``strategy.PHASE.NAME``."""
    degrees = {name: claims.span(c.line) for name, c in claims.under("degrees")}
    return {f"strategy.{phase}.{name}": span for phase in ("prefill", "decode") for name, span in degrees.items()}


def _spec(claims: Claims) -> Spec | None:
    _report_missing(claims)
    if any(d.is_error for d in claims.diagnostics):
        return None
    data: dict[str, Any] = {}
    for path, claim in claims.by_path.items():
        if path.startswith(("degrees.", "gpus.")):
            continue
        *outer, last = path.split(".")
        inner = data
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = claim.value
    try:
        spec = Spec.model_validate(data)
    except ValidationError as error:
        for issue in error.errors(include_url=False):
            _report_invalid(claims, [str(part) for part in issue["loc"]], issue["type"], issue["msg"])
        return None
    experts = spec.model.moe.experts if spec.model.moe else None
    return spec if spec.strategies else spec.model_copy(update={"strategies": strategies(claims, experts=experts)})


def _report_missing(claims: Claims) -> None:
    """One error that lists everything that is missing and cannot be assumed."""
    lacking = [what for path, what in _NEEDED.items() if claims.get(path) is None]
    if any(claims.under("model.moe")):
        fields = {"experts": "the number of experts", "ffn": "the hidden size of an expert"}
        lacking += [what for key, what in fields.items() if claims.get(f"model.moe.{key}") is None]
    elif claims.get("model.ffn") is None:
        lacking.append("the FFN width")
    if claims.get("cluster.accelerator.catalog") is None:
        given = {path.partition(".")[0] for path, _ in claims.under("cluster.accelerator")}
        lacking += [what for key, what in _CHIP.items() if key not in given]
    if lacking:
        claims.diagnostics.append(
            Diagnostic(
                "PD013",
                f"the condition does not give {', '.join(lacking)}",
                claims.span(1),
                "what cannot be assumed: model dimensions, accelerator, prompt length",
                "add a line for each; `docs/conditions.md` shows how they are written",
            )
        )


def _report_invalid(claims: Claims, loc: list[str], kind: str, message: str) -> None:
    path = ".".join(loc)
    while path and path not in claims.by_path and "." in path:
        path = path.rpartition(".")[0]
    line = claims.by_path[path].line if path in claims.by_path else 1
    name = ".".join(loc)
    if kind == "extra_forbidden":
        claims.report("PD011", f"unknown key `{name}`", line, "a field of the spec", "see `docs/conditions.md`")
    elif kind == "missing":
        claims.report("PD013", f"no `{name}`", line, f"`{name}`", "add it")
    else:
        claims.report("PD015", f"`{name}`: {message}", line, message, "correct the value")
