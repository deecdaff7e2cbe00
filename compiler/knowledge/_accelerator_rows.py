"""Accelerators of a knowledge pack: tables as in the catalogue, whole ones for new chips, parts for known ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import DTYPES
from ..spec.catalog import accelerator_rows
from ._reader import Reader

_SHARES = frozenset({"network_efficiency"})
_COUNTS = frozenset({"gpus_per_node", "units"})
_POSITIVE = frozenset({"memory_gb", "memory_gb_per_s", "scale_out_gb_per_s", "host_gb_per_s"})
_TEXTS = frozenset({"vendor", "architecture", "compute_capability", "confidence"})
_LISTS = frozenset({"sources", "notes"})
_KEYS = _SHARES | _COUNTS | _POSITIVE | _TEXTS | _LISTS | {"tflops", "scale_up"}
_NEEDED = ("tflops", "memory_gb", "memory_gb_per_s", "scale_up", "gpus_per_node")
_FORMATS = frozenset({*DTYPES, "fp4"} - {"nvfp4", "mxfp4"})
_LINK = {"name": "text", "gb_per_s": "positive", "domain": "count"}


def accelerator_table(reader: Reader, base: tuple[str, ...], tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the whole catalogue with those of the pack over them; faults are reported to the reader.

    Args:
        reader: Reads the pack.
        base: Path of the tables in its file.
        tables: They, by name.
    """
    rows = accelerator_rows()
    for name, table in tables.items():
        path = (*base, name)
        if not isinstance(table, dict):
            reader.wrong(path, f"`{name}` is no table", "a table such as `[accelerators.my_chip]`")
        elif (own := _row(reader, path, table)) is not None:
            cited = reader.toml.span(*path)
            rows[name] = _merged(reader, path, rows.get(name), own, f"{cited.file}:{cited.line}")
    return {name: row for name, row in rows.items() if row}


def _row(reader: Reader, path: tuple[str, ...], table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checked table; None where anything is wrong with it."""
    before = len(reader.found)
    for key in reader.keys(path, table, _KEYS):
        at, value = (*path, key), table[key]
        if key in _SHARES:
            reader.number(at, value, least=0.0, most=1.0)
        elif key in _POSITIVE:
            reader.number(at, value, least=0.0)
        elif key in _TEXTS:
            reader.text(at, value)
        elif key in _LISTS:
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                reader.wrong(at, f"`{key}` is no list of texts", f'`{key} = ["..."]`')
        elif key in _COUNTS:
            reader.count(at, value)
        elif not isinstance(value, dict):
            reader.wrong(at, f"`{key}` is no table", "`tflops = { bf16 = 400 }`, or `scale_up = { gb_per_s = 200 }`")
        elif key == "tflops":
            for dtype in reader.keys(at, value, _FORMATS):
                reader.number((*at, dtype), value[dtype], least=0.0)
        else:
            for part in reader.keys(at, value, frozenset(_LINK)):
                _link_part(reader, (*at, part), value[part])
    return dict(table) if len(reader.found) == before else None


def _link_part(reader: Reader, at: tuple[str, ...], value: Any) -> None:
    kind = _LINK[at[-1]]
    if kind == "text":
        reader.text(at, value)
    elif kind == "count":
        reader.count(at, value)
    else:
        reader.number(at, value, least=0.0)


def _merged(
    reader: Reader, path: tuple[str, ...], known: Mapping[str, Any] | None, own: dict[str, Any], cited: str
) -> dict[str, Any]:
    """The pack's row over the catalogue's; of a chip that the catalogue does not have, nothing may be missing."""
    if known is not None:
        nested: dict[str, Any] = {k: {**known.get(k, {}), **own[k]} for k in ("tflops", "scale_up") if k in own}
        return {**known, **own, **nested, "sources": [*own.get("sources", []), cited, *known["sources"]]}
    missing = [key for key in _NEEDED if key not in own]
    missing += [f"tflops.{d}" for d in ("bf16",) if "tflops" in own and d not in own["tflops"]]
    missing += [f"scale_up.{k}" for k in ("gb_per_s", "domain") if "scale_up" in own and k not in own["scale_up"]]
    if missing:
        listed = ", ".join(f"`{key}`" for key in missing)
        reader.wrong(path, f"accelerator `{path[-1]}` lacks {listed}", "every figure of a chip that is not catalogued")
        return {}
    plain = {"vendor": "", "architecture": "", "compute_capability": "", "confidence": "pack"}
    row = {**plain, **own, "sources": [*own.get("sources", []), cited]}
    return {**row, "scale_up": {"name": "scale-up", **own["scale_up"]}}
