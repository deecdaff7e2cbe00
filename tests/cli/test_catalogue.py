"""``paradag --version``, ``paradag accelerators`` and ``paradag models``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import paradag
from paradag.compiler.cli import app, main
from paradag.compiler.spec.catalog import accelerator, accelerator_names, model, model_names
from paradag.compiler.spec.counts import parameters

runner = CliRunner()


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"paradag {paradag.__version__}\n")


@pytest.mark.parametrize("command", [[], ["accelerators"], ["models"]])
def test_help_shows_an_example(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example:\n    paradag {' '.join(command)}" in result.output


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [(["unheard-of"], "unheard-of"), (["models", "--format", "xml"], "xml"), (["models", "x"], "x")],
)
def test_usage_errors_exit_with_2(arguments: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert wrong in output.err
    assert output.out == ""


def test_tables_do_not_depend_on_the_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for command, names in (("accelerators", accelerator_names()), ("models", model_names())):
        monkeypatch.setenv("COLUMNS", "20")
        narrow = runner.invoke(app, [command])
        monkeypatch.setenv("COLUMNS", "200")
        assert narrow.output == runner.invoke(app, [command]).output
        assert narrow.exit_code == 0
        assert tuple(line.split()[0] for line in narrow.output.splitlines()[2:]) == names


def test_table_figures() -> None:
    lines = {line.split()[0]: line.split() for line in runner.invoke(app, ["accelerators"]).output.splitlines()[2:]}
    assert lines["h200_sxm"][1:7] == ["141", "4800", "989", "1979", "-", "1979"]
    assert lines["tpu_v6e"][12:14] == ["-", "high"]
    assert lines["tpu_v6e"][-6:] == ["-", "median", "of", "all", "measured", "chips"]
    assert lines["h100_sxm"][-2:] == ["h100_sxm,", "vllm"]
    assert lines["h20"][-3:] == ["h100_sxm", "(also", "Hopper)"]
    assert "671,026,404,352" in runner.invoke(app, ["models"]).output


def test_accelerators_as_json() -> None:
    rows = json.loads(runner.invoke(app, ["accelerators", "--format", "json"]).output)
    assert [row["name"] for row in rows] == list(accelerator_names())
    b200 = next(row for row in rows if row["name"] == "b200_sxm")
    assert b200["peak_flops"]["nvfp4"] == 9e15
    assert b200["scale_up"] == {"name": "NVLink5", "bandwidth_bytes_per_s": 9e11, "latency_s": 2e-6, "domain": 8}
    gemm = b200["fitted"]["classes"]["gemm"]["nvfp4"]
    assert 0.3 < gemm["parameters"]["compute_efficiency"] <= 1.05
    assert gemm["inherited_from"] is None and gemm["residual"]["median"] < 0.1 and gemm["source"]
    assert all(row["sources"] and row["memory_bytes"] == accelerator(row["name"]).memory for row in rows)


def test_models_as_json() -> None:
    rows = json.loads(runner.invoke(app, ["models", "--format", "json"]).output)
    assert [row["name"] for row in rows] == list(model_names())
    for row in rows:
        spec = model(row["name"])
        assert row["parameters"] == parameters(spec)
        assert type(spec).model_validate(row["model"]) == spec


def test_version_loads_nothing_heavy() -> None:
    program = (
        "import sys; from paradag.compiler.cli import main\n"
        "try: main(['--version'])\n"
        "finally: print(sorted({'numpy', 'networkx', 'lark', 'pydantic', 'orjson'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"paradag {paradag.__version__}\n[]\n"
