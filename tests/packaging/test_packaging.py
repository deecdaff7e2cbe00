"""What an installed paradag holds: the same files as the checkout, whichever way it was built.

The builds call the build backend directly, offline, on a copy of the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import paradag
from paradag.compiler.diagnostics import CODES

ROOT = Path(__file__).parents[2]
CODE = ("compiler", "grammar", "passes")
EXAMPLES = "ir_examples"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Prints, in a fresh interpreter, where paradag lies and that its data files are readable.
PROBE = """
import json, sys
from importlib.resources import files
import paradag
from paradag.compiler.diagnostics import CODES
from paradag.compiler.spec.catalog import accelerator_names, model_names
print(json.dumps({
    "file": paradag.__file__,
    "version": paradag.__version__,
    "accelerators": len(accelerator_names()),
    "models": len(model_names()),
    "grammar": files("paradag.grammar").joinpath("strat.lark").is_file(),
    "examples": sum(f.name.endswith(".strat") for f in files("paradag").joinpath("ir_examples").iterdir()),
    "rules": len(CODES),
    "typed": files("paradag").joinpath("py.typed").is_file(),
}))
"""


def code_files(root: Path) -> Iterator[PurePosixPath]:
    """Every file below the code folders, caches left out."""
    for folder in CODE:
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield PurePosixPath(path.relative_to(root).as_posix())


def expected_files(root: Path) -> set[str]:
    """What an installation must hold of the tree below ``root``."""
    examples = (PurePosixPath(EXAMPLES, path.name) for path in (root / EXAMPLES).glob("*.strat"))
    knowledge = (PurePosixPath(p.relative_to(root).as_posix()) for p in (root / "docs" / "knowledge").rglob("*.md"))
    files = {PurePosixPath("__init__.py"), PurePosixPath("py.typed"), *code_files(root), *examples, *knowledge}
    return {f"paradag/{path}" for path in files}


def test_every_package_is_listed() -> None:
    found = {"paradag", f"paradag.{EXAMPLES}"}
    found |= {".".join(("paradag", *path.parent.parts)) for path in code_files(ROOT) if path.suffix == ".py"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)


def test_every_package_has_an_init() -> None:
    missing = {path.parent for path in code_files(ROOT) if not (ROOT / path.parent / "__init__.py").exists()}
    assert not missing


def test_the_root_holds_no_other_module() -> None:
    """A module beside the root's ``__init__.py`` would be installed as part of the package."""
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_version_has_one_source() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "paradag.__version__"}
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == paradag.__version__


def test_every_dependency_has_a_floor() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in (*PROJECT["project"]["dependencies"], *extras["test"]):
        assert re.fullmatch(r"[a-z0-9-]+>=\d+(\.\d+)*", requirement), requirement


@pytest.mark.parametrize(("marker", "ending"), [("main job", "-o out"), ("tests", "pytest")])
def test_readme_has_the_commands_that_ci_runs(marker: str, ending: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"<!-- ci: {marker} -->\n```sh\n(.*?)\n```", readme, re.DOTALL)
    assert len(blocks) == 1
    assert blocks[0].startswith("python3 -m venv")
    assert blocks[0].endswith(ending)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a distribution is built from, without what earlier builds left in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77")
    copy = tmp_path_factory.mktemp("tree") / "paradag"
    caches = shutil.ignore_patterns("__pycache__", "*_cache")
    for folder in (*CODE, EXAMPLES, "docs", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=caches)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


def build(tree: Path, kind: str, target: Path) -> Path:
    """Build a ``wheel``, ``editable`` or ``sdist`` of ``tree`` into ``target`` and return the file."""
    target.mkdir(parents=True, exist_ok=True)
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def contents(wheel: Path) -> set[str]:
    """The wheel's files, its metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def probe(site: Path) -> dict[str, object]:
    """Import paradag from the site folder ``site`` in a fresh interpreter, away from the checkout."""
    # -S, then by hand: an installation that the running environment has must not be found first
    dependencies = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    start = f"import site\nfor folder in {[str(site), *dependencies]!r}: site.addsitedir(folder)\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", start + PROBE]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def assert_complete(found: dict[str, object], inside: Path) -> None:
    examples = len(list((ROOT / EXAMPLES).glob("*.strat")))
    assert Path(str(found["file"])).is_relative_to(inside)
    assert found["version"] == paradag.__version__
    assert (found["accelerators"], found["grammar"], found["typed"]) == (24, True, True)
    assert found["models"]
    assert found["rules"] == len(CODES)
    assert found["examples"] == examples


def test_wheel_holds_the_tree_and_works(tree: Path, tmp_path: Path) -> None:
    wheel = build(tree, "wheel", tmp_path / "dist")
    assert contents(wheel) == expected_files(tree)
    with zipfile.ZipFile(wheel) as archive:
        metadata = {PurePosixPath(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        assert "LICENSE" in metadata
        assert b"paradag = paradag.compiler.cli:main" in archive.read(metadata["entry_points.txt"])
        assert f"Version: {paradag.__version__}\n".encode() in archive.read(metadata["METADATA"])
        archive.extractall(tmp_path / "site")
    assert_complete(probe(tmp_path / "site"), tmp_path / "site")


def test_source_distribution_builds_the_same_wheel(tree: Path, tmp_path: Path) -> None:
    sdist = build(tree, "sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests"} <= {path.name for path in source.iterdir()}
    assert contents(build(source, "wheel", tmp_path / "wheel")) == expected_files(tree)


def test_editable_install_finds_its_data(tree: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tree, "editable", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "site")
    assert_complete(probe(tmp_path / "site"), tree)
