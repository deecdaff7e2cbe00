"""Finding users' passes: a class in a file, in a module, or registered under an entry point."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ..compiler.diagnostics import Diagnostic, DiagnosticError
from ..compiler.ir.graph import LEVELS
from .manager import GraphPass, Scheduled

GROUP = "paradag.passes"

_SPEC = re.compile(r"(?P<source>.+?)(?:\{(?P<options>[^{}]*)\})?(?:@after=(?P<after>[A-Za-z_][\w-]*))?", re.DOTALL)


def load_pass(text: str, folder: Path | None = None) -> Scheduled:
    """The pass that ``--pass`` names.

    Forms: ``./my.py:Name``, ``package.module:Name`` or the name of an installed pass, each with optional
    ``{option=value, ...}`` for the class's fields and ``@after=PASS`` (default: after ``tp``).

    Args:
        text: The specification.
        folder: Folder against which a relative file is resolved; default the working directory.

    Raises:
        DiagnosticError: PD503 malformed, PD501 not found, PD502 failed to load.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None or not match["source"]:
        raise _malformed(text)
    options = _options(match["options"] or "", text)
    source = match["source"]
    if ":" in source:
        place, _, name = source.rpartition(":")
        target = _from_file(place, name, folder) if place.endswith(".py") else _from_module(place, name)
    else:
        target = _from_entry_point(source)
    return Scheduled(_instance(target, options, text), match["after"] or LEVELS[-1])


def installed_passes() -> dict[str, EntryPoint]:
    """Registered passes by name, not yet imported.

    Raises:
        DiagnosticError: two distributions register the same name (PD501).
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in found and found[point.name].value != point.value:
            message = f"pass {point.name!r} is registered twice: {found[point.name].value} and {point.value}"
            raise DiagnosticError([Diagnostic("PD501", message, help="uninstall one of the two packages")])
        found[point.name] = point
    return found


def _from_file(place: str, name: str, folder: Path | None) -> Any:
    path = ((folder or Path.cwd()) / place).resolve()
    if not path.is_file():
        raise _missing(f"no file {place}")
    spec = importlib.util.spec_from_file_location(f"paradag_user_pass_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise _missing(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(f"{place} does not load", error) from error
    return _attribute(module, name, place)


def _from_module(place: str, name: str) -> Any:
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise _missing(f"no module {place!r}") from error
    except Exception as error:
        raise _failed(f"module {place!r} does not load", error) from error
    return _attribute(module, name, place)


def _from_entry_point(name: str) -> Any:
    known = installed_passes()
    if name not in known:
        raise _missing(f"no installed pass {name!r}; installed: {', '.join(sorted(known)) or 'none'}")
    try:
        return known[name].load()
    except Exception as error:
        raise _failed(f"installed pass {name!r} does not load", error) from error


def _attribute(module: Any, name: str, place: str) -> Any:
    if not hasattr(module, name):
        classes = sorted(k for k, v in vars(module).items() if isinstance(v, type) and hasattr(v, "run"))
        raise _missing(f"no {name!r} in {place}; passes there: {', '.join(classes) or 'none'}")
    return getattr(module, name)


def _instance(target: Any, options: dict[str, Any], text: str) -> GraphPass:
    if not isinstance(target, type):
        raise DiagnosticError(
            [Diagnostic("PD503", f"{text!r} does not name a class", expected="a class with name and run")]
        )
    try:
        made = target(**options)
    except Exception as error:
        raise _failed(f"{text!r} cannot be made", error) from error
    if not isinstance(made, GraphPass) or not isinstance(made.name, str) or not made.name:
        message = f"{target.__name__} is not a pass"
        raise DiagnosticError([Diagnostic("PD503", message, expected="a class with a `name` and `run(graph)`")])
    return made


def _options(text: str, whole: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise _malformed(whole)
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _malformed(text: str) -> DiagnosticError:
    expected = "FILE.py:Class, module:Class or NAME, then optional {option=value} and @after=PASS"
    return DiagnosticError([Diagnostic("PD503", f"cannot read pass specification {text!r}", expected=expected)])


def _missing(message: str) -> DiagnosticError:
    return DiagnosticError([Diagnostic("PD501", message)])


def _failed(message: str, error: Exception) -> DiagnosticError:
    return DiagnosticError([Diagnostic("PD502", f"{message}: {type(error).__name__}: {error}")])


def load_passes(texts: Sequence[str], folder: Path | None = None) -> list[Scheduled]:
    """All passes that ``--pass`` options name, in order."""
    return [load_pass(text, folder) for text in texts]
