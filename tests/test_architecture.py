"""Imports go one way, files stay small, every package is declared."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each package may import those before it in this list (and itself).
LAYERS = [
    "compiler.diagnostics",
    "compiler.spec",
    "compiler.ir",
    "grammar",
    "compiler.knowledge",
    "compiler.build",
    "compiler.cost",
    "compiler.run",
    "passes.lowering",
    "passes.analysis",
    "passes.validation",
    "passes",
    "compiler.emit",
    "compiler.plan",
    "compiler.driver",
    "compiler.verification",
    "compiler.outputs",
    "compiler.cli",
]


def modules() -> list[Path]:
    return [p for folder in ("compiler", "grammar", "passes") for p in sorted((ROOT / folder).rglob("*.py"))]


def layer(dotted: str) -> int | None:
    """Index of the most specific layer that the module belongs to."""
    found = [i for i, name in enumerate(LAYERS) if dotted == name or dotted.startswith(f"{name}.")]
    return max(found, key=lambda i: len(LAYERS[i])) if found else None


def imports(path: Path) -> list[str]:
    """Modules of paradag that a file imports at run time, as dotted names below the root."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in guarded:
            base = package[: len(package) - node.level + 1]
            if node.module:
                found.append(".".join([*base, *node.module.split(".")]))
            else:
                found += [".".join([*base, alias.name]) for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return
    for imported in imports(path):
        other = layer(imported)
        assert other is None or other <= own, f"{LAYERS[own]} imports {imported}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420
