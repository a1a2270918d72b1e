"""The application: its commands, in the order of its help."""

from __future__ import annotations

from typing import Annotated

import typer

import scoresde
from scoresde.cli import compare, demo, evaluate, presets, reproduce, sample, solvers, train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Score-based generative models seen as stochastic differential equations.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands, as an application of typer."""

for command in (
    demo.demo,
    solvers.solvers,
    train.train,
    sample.sample,
    evaluate.evaluate,
    compare.compare,
    presets.presets,
    reproduce.reproduce,
):
    app.command()(command)


def main() -> None:
    """The console command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scoresde {scoresde.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
