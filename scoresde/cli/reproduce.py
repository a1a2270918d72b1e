"""The commands ``scoresde presets`` and ``scoresde reproduce``: published trainings, their samplers, and their FID."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import typer

from scoresde import presets as published
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.evaluation import find_features
from scoresde.presets import find_preset
from scoresde.sde.names import sde
from scoresde.solvers import get as get_solver
from scoresde.solvers import make_path

__all__ = ["presets", "reproduce"]


@reported()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset as TOML, to edit and to train from.")] = None,
) -> None:
    """List the published trainings: FID, evaluations per sample, images seen, hours of an A100, and the paper's cost.

    The hours are estimates: three forward passes for every image at 40 % of the peak of bfloat16.
    """
    if name is not None:
        typer.echo(published.find_preset(name).text, nl=False)
        return
    typer.echo(f"{'name':<22} {'FID':>5} {'evaluations':>11} {'images':>7} {'A100 hours':>10}  as the paper states it")
    typer.echo("-" * 100)
    published.PRESETS.load()  # presets of installed packages are listed too
    for preset in map(published.find_preset, published.PRESETS):
        told = preset.published
        typer.echo(
            f"{preset.name:<22} {told['fid']:>5.2f} {told['evaluations']:>11} {preset.images / 1e6:>6.1f}M "
            f"{preset.cost['a100-hours']:>10.1f}  {told['hardware']}"
        )


@reported()
def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a preset: scoresde presets lists them.")],
    data: Annotated[str, typer.Option(help="Training dataset: cifar10:FOLDER.")],
    out: options.Out,
    features: Annotated[str, typer.Option(help="Extractor for the FID: inception:FILE, or your code, as for evaluate.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change an option of train, precision=bf16, or of the sampling, sample.n=1000; may be repeated."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="Number of processes that draw; on several GPUs they take turns among them.")
    ] = 1,
    device: Annotated[str | None, typer.Option(help="Device: cpu, cuda, ..; by default cuda where there is one.")] = None,
    progress: options.Progress = True,
) -> None:
    """Train a preset, draw as many samples as its paper with its sampler, and print their FID beside the published one.

    The command goes from the data to the number. Given again after an interruption, it continues.
    """
    preset, changes = find_preset(name), _changes(change or [])
    where = {"device": device or ("cuda" if torch.cuda.is_available() else "cpu"), "progress": progress}
    fixed = {"against": data, "features": features, "out": out / "scores.json", "cache": out / "statistics"}
    sampling = _options(context, "evaluate", preset.sample, changes["sample"], {**fixed, "processes": processes, **where})
    training = _options(context, "train", preset.train, changes["train"], {"data": data, "out": out, **where})
    find_features(features)  # report errors of the evaluation before the training, not after it
    make_path(sde(training["sde"]), sampling["path"], sampling["steps"], end=sampling["end"])
    get_solver(sampling["solver"])
    if not _call(context, "train", [], training):
        return  # only the first of several processes goes on
    scores = _call(context, "evaluate", [str(out)], sampling)
    typer.echo(
        f"\nFID {scores.frechet:.4g} of {scores.n} samples against {scores.m}; published: {preset.published['fid']:g} with "
        f"{preset.published['evaluations']} evaluations ({preset.published['source']})"
    )


def _changes(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return options of the training, ``key=value``, and of the sampling, ``sample.key=value``, from TOML or bare text."""
    changes: dict[str, dict[str, Any]] = {"train": {}, "sample": {}}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"got --set {text!r}; expected an option and its value: steps=1000, or sample.n=1000")
        table, _, option = key.strip().rpartition(".")
        if table not in ("", "sample"):
            raise ValueError(f"got --set {text!r}; expected an option of the training, or sample.NAME, one of the sampling")
        try:
            changes[table or "train"][option] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[table or "train"][option] = value.strip()
    return changes


def _command(context: typer.Context, name: str) -> Any:
    return context.find_root().command.commands[name]  # type: ignore[attr-defined]


def _options(context: typer.Context, name: str, *sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of another command; later sources win over earlier ones."""
    given: dict[str, Any] = {}
    for source in sources:
        given |= options.checked(_command(context, name), source, "--set")
    return given


def _call(context: typer.Context, name: str, line: list[str], given: dict[str, Any]) -> Any:
    """Call another command with these options and return its result."""
    command = _command(context, name)
    with command.make_context(name, line, parent=context, default_map=given) as inner:
        return command.invoke(inner)
