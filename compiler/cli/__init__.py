"""The command line.

Each command is a function in a module of this package and is registered below. A command module imports typer and
:mod:`._common` at its top, and everything that it works with inside the function: ``paradag --version`` and ``--help``
then load no numpy and no grammar.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..diagnostics import DiagnosticError
from ._common import OutputFormat, example, exit_code, report
from .calibrate import calibrate_command
from .catalogue import accelerators_command, models_command
from .check import check_command
from .compile import compile_command
from .explain import explain_command, rules_command
from .fix import fix_command
from .fmt import fmt_command
from .plan import plan_command
from .verify import verify_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="paradag",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # plain text: the same in a pipe, in a log and in a terminal
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ... import __version__

        typer.echo(f"paradag {__version__}")
        raise typer.Exit


@app.callback(epilog=example("paradag accelerators", "paradag models --format json"))
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compile parallel strategies of LLM inference into explicit execution DAGs."""


app.command("compile", epilog=example("paradag compile ir_examples/llama-3.1-70b-tp8.strat -o out"))(compile_command)
app.command("explain", epilog=example("paradag explain PD211"))(explain_command)
app.command("rules", epilog=example("paradag rules --format json"))(rules_command)
app.command("check", epilog=example("paradag check *.strat --format sarif > findings.sarif"))(check_command)
app.command("fix", epilog=example("paradag fix model.strat --diff", "paradag fix model.strat --write"))(fix_command)
app.command("plan", epilog=example("paradag plan model.strat --objective throughput --save-path out"))(plan_command)
app.command("verify", epilog=example("paradag verify ir_examples/mixtral-8x7b-ep4-tp2.strat"))(verify_command)
app.command("fmt", epilog=example("paradag fmt model.strat", "paradag fmt *.strat --check"))(fmt_command)
app.command("accelerators", epilog=example("paradag accelerators --format json"))(accelerators_command)
app.command("calibrate", epilog=example("paradag calibrate kernels.csv --accelerator h200_sxm -o my-h200.toml"))(
    calibrate_command
)
app.command("models", epilog=example("paradag models --format json"))(models_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 clean, 1 on errors in the input, 2 on usage errors and unreadable files."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="paradag")
    except DiagnosticError as error:
        report(error.diagnostics, OutputFormat.TEXT)
        sys.exit(exit_code(error.diagnostics))
