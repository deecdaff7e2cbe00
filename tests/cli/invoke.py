"""Running the command line in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from paradag.compiler.cli import app


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; whatever else is raised is a fault and goes on."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
