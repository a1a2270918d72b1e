"""``scoresde presets``."""

from __future__ import annotations

from typing import Annotated

import typer

from scoresde import presets as published
from scoresde.cli.errors import reported

__all__ = ["presets"]


@reported()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one as TOML, to edit and to train from.")] = None,
) -> None:
    """The table of published trainings: FID, evaluations for a sample, images seen, hours of an A100, and the paper's cost.

    The hours are expected ones: three forward passes for every image at 40 % of the peak of bfloat16.
    """
    if name is not None:
        typer.echo(published.get(name).text, nl=False)
        return
    typer.echo(f"{'name':<22} {'FID':>5} {'evaluations':>11} {'images':>7} {'A100 hours':>10}  as the paper states it")
    typer.echo("-" * 100)
    published.PRESETS.load()  # those that installed packages bring along are listed as well
    for preset in map(published.get, published.PRESETS):
        told = preset.published
        typer.echo(
            f"{preset.name:<22} {told['fid']:>5.2f} {told['evaluations']:>11} {preset.images / 1e6:>6.1f}M "
            f"{preset.cost['a100-hours']:>10.1f}  {told['hardware']}"
        )
