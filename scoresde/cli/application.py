"""The application: its commands, in the order of its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import scoresde
from scoresde.cli import compare, evaluate, installation, reproduce, sample, score, solvers, train

__all__ = ["EXAMPLES", "app", "main"]

app = typer.Typer(
    help="Score-based generative models seen as stochastic differential equations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands, as a typer application."""

EXAMPLES: dict[Callable[..., Any], tuple[str, ...]] = {
    installation.demo: ("scoresde demo --out runs/demo", "scoresde demo --quick"),
    installation.doctor: ("scoresde doctor", "scoresde doctor --no-check"),
    solvers.solvers: ("scoresde solvers", "scoresde solvers --show dpmpp-2m --steps 5 --path lam"),
    train.train: (
        "scoresde train --data digits --out runs/digits",
        "scoresde train --data photos:train --size 64 --labels --out runs/photos",
        "scoresde train --preset edm-cifar10-vp --data cifar10:FOLDER --out runs/edm",
    ),
    sample.sample: (
        "scoresde sample runs/digits -n 64 --solver ddim --steps 50",
        "scoresde sample runs/photos --label cat,dog --out animals.png",
        "scoresde sample runs/digits --label 3 --guidance 4",
        "scoresde sample model.safetensors --shape 3,32,32 --out samples.npz",
    ),
    evaluate.evaluate: (
        "scoresde evaluate runs/digits --against digits -n 1000",
        "scoresde evaluate samples.npy --against photos:val --size 64 --features inception:FILE",
    ),
    score.score: (
        "scoresde score runs/digits --data digits --by likelihood -n 100",
        "scoresde score runs/mnist --data mnist:FOLDER --split test --reference mnist:FOLDER --against fashion-mnist:OTHER",
    ),
    compare.compare: (
        "scoresde compare ring grid --solver ddim,dpmpp-2m --evaluations 5,10,20 --out runs/compared",
        "scoresde compare runs/digits --metric rms -n 64",
    ),
    solvers.choose: (
        "scoresde choose runs/digits --evaluations 5,8,10",
        "scoresde choose runs/digits --label 3 --guidance 4 --out chosen.json",
    ),
    solvers.tune: (
        "scoresde tune runs/digits --evaluations 5,8,10",
        "scoresde sample runs/digits --solver tuned --steps 8",
        "scoresde tune runs/digits --label 3 --guidance 4 --out guided.json",
    ),
    reproduce.presets: ("scoresde presets", "scoresde presets edm-cifar10-vp > run.toml"),
    reproduce.reproduce: (
        "scoresde reproduce edm-cifar10-vp --data cifar10:FOLDER --features inception:FILE --out runs/edm",
    ),
}
"""The commands in the order of the help, each with examples that a user can type."""

for command, lines in EXAMPLES.items():
    # \b keeps the line breaks.
    app.command(epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines))(command)


def main() -> None:
    """Run the console command."""
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
