"""Hugging Face ``config.json`` to the fields of :class:`~paradag.compiler.spec.ModelSpec`. Nothing is downloaded.

The fields mean what the ``transformers`` classes of each model type make of them, with those classes' defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..compiler.diagnostics import Diagnostic, DiagnosticError, Span
from ..compiler.spec import Assumption, ModelSpec
from ._hf_families import FAMILIES
from ._hf_fields import Fields, MalformedConfig
from ._source import read_source
from ._words import nearest, quoted

__all__ = ["SUPPORTED_MODEL_TYPES", "load_hf_config", "read_hf_config"]

SUPPORTED_MODEL_TYPES = tuple(FAMILIES)


def read_hf_config(config: str | Path | dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """The fields of a :class:`~paradag.compiler.spec.ModelSpec`, nested as there, from a config file or its content.

    Args:
        config: Path of a ``config.json``, or its parsed content.
        name: The model's name; by default the file's stem, or its folder's name for ``config.json``.

    Raises:
        DiagnosticError: PD001 to PD003 for an unreadable file, PD020 for a model type that is not supported, PD021 for
            a value that is missing, odd or not expressible, with the key named.

    >>> fields = read_hf_config({
    ...     "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100,
    ...     "num_attention_heads": 4, "intermediate_size": 128, "torch_dtype": "bfloat16",
    ... })
    >>> fields["attention"]["kind"], fields["ffn"]
    ('mha', 128)
    """
    if isinstance(config, dict):
        return _convert(config, name or str(config.get("_name_or_path") or "model"), None)[0]
    path = Path(config)
    span = Span(str(path), 1, 1, 1, 1)
    return _convert(_parse(read_source(path), str(path), span), name or _name_of(path), span)[0]


def load_hf_config(written: str, base: Path, span: Span) -> tuple[dict[str, Any], list[Assumption]]:
    """The same for a path as written in a strategy file in folder ``base``, with what had to be assumed.

    Raises:
        DiagnosticError: At ``span``; PD022 for a path that leaves ``base``, symbolic links followed.
    """
    try:
        root = base.resolve()
        path = (root / written).resolve()
        inside = path.is_relative_to(root)
    except (OSError, ValueError, RuntimeError) as error:
        raise DiagnosticError(
            [Diagnostic("PD001", "malformed path of a config", span, "a file beside this one", "check the path")]
        ) from error
    if not inside:
        message = f"`{written}` lies outside the folder of this file"
        fix = "copy the config beside this file"
        raise DiagnosticError([Diagnostic("PD022", message, span, "a relative path without `..`", fix)])
    return _convert(_parse(read_source(path, name=written, span=span), written, span), _name_of(path), span)


def _name_of(path: Path) -> str:
    return path.resolve().parent.name or "model" if path.name == "config.json" else path.stem


def _parse(text: str, shown: str, span: Span) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DiagnosticError(
            [Diagnostic("PD021", f"`{shown}` is not JSON: {reason[:200]}", span, "a JSON object", "check the file")]
        ) from error
    if not isinstance(data, dict):
        raise DiagnosticError([Diagnostic("PD021", f"`{shown}` is not a JSON object", span, "an object of settings")])
    return data


def _convert(data: dict[str, Any], name: str, span: Span | None) -> tuple[dict[str, Any], list[Assumption]]:
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        shown = "the config has no `model_type`"
        if kind is not None:
            shown = f"model type `{str(kind)[:40]}` is not supported"
        close = nearest(kind, SUPPORTED_MODEL_TYPES, cutoff=0.8) if isinstance(kind, str) else []
        fix = "write the model's dimensions in the block instead"
        if close:
            fix = f"if it has the same architecture as `{close[0]}`, {fix}"
        raise DiagnosticError([Diagnostic("PD020", shown, span, quoted(SUPPORTED_MODEL_TYPES), fix)])
    fields = Fields(data)
    try:
        model = {"name": name, **FAMILIES[kind](fields)}
    except MalformedConfig as error:
        raise DiagnosticError([Diagnostic("PD021", str(error), span, error.expected, error.fix)]) from error
    _check_bounds(model, span)
    return model, fields.assumptions


def _check_bounds(model: dict[str, Any], span: Span | None) -> None:
    try:
        ModelSpec.model_validate(model)
    except ValidationError as error:
        raise DiagnosticError(
            Diagnostic("PD021", f"`{'.'.join(map(str, issue['loc']))}`: {issue['msg'].lower()}", span)
            for issue in error.errors(include_url=False, include_input=False)
        ) from error
