"""Python code in the README and the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paradag import compile as compile_strategy
from paradag.grammar.condition import load_condition_text

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md", "docs/passes.md", "docs/tutorial.md", "docs/costs.md", "docs/metrics.md", "docs/explain.md",
    "docs/packs.md", "docs/verify.md",
]  # fmt: skip
FENCE = re.compile(r"(?:<!-- file: (?P<file>[\w.]+) -->\n)?```(?P<kind>python|strat)\n(?P<code>.*?)```", re.DOTALL)


def blocks(page: str, kind: str) -> list[re.Match[str]]:
    return [m for m in FENCE.finditer((ROOT / page).read_text(encoding="utf-8")) if m["kind"] == kind]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page, "python"):
        exec(compile(block["code"], page, "exec"), namespace)


def test_the_readme_pass_is_short_and_halves_the_bytes_of_dispatch(tmp_path: Path) -> None:
    block = next(b for b in blocks("README.md", "python") if b["file"])
    assert block["file"] == "fp8_dispatch.py"
    body = [line for line in block["code"].splitlines() if line.strip()]
    assert len(body) < 15
    script = tmp_path / block["file"]
    script.write_text(block["code"])
    example = ROOT / "ir_examples" / "mixtral-8x7b-ep4-tp2.strat"

    def dispatched(passes: list[str]) -> float:
        traffic = compile_strategy(example, phase="decode", passes=passes).phases["decode"].traffic
        return sum(t.bytes for t in traffic if t.op == "Dispatch")

    assert dispatched([f"{script}:Fp8Dispatch@after=tp"]) == dispatched([]) / 2


def test_the_readme_picture_is_the_strategy_beside_it() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    source = re.search(r"```text\n# model\.strat\n(.*?)```", text, re.DOTALL)
    assert source is not None
    compiled = compile_strategy(source[1])
    assert str(compiled.status) == "VALID" and compiled.phases["decode"].graph.mesh.gpus == 4


@pytest.mark.parametrize(("kind", "file"), [("markdown", "a.md"), ("yaml", "a.yaml")])
def test_the_conditions_of_the_documentation_load(kind: str, file: str) -> None:
    text = (ROOT / "docs" / "conditions.md").read_text(encoding="utf-8")
    block = re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    assert block is not None
    loaded = load_condition_text(block[1], file)
    assert not loaded.diagnostics
    assert {u.use for u in loaded.lines} <= {"field", "layout"}
