"""The command ``scoresde score``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.source import Labels, Limit, chosen_labels, open_data, open_model
from scoresde.data import Dataset
from scoresde.evaluation import ANOMALY_SCORES, Detector
from scoresde.metrics import auroc_estimate

__all__ = ["score"]

Scores = dict[str, tuple[Tensor, Tensor]]


def _samples(data: Dataset, start: int, n: int, event: tuple[int, ...], option: str) -> Tensor:
    """Return the ``n`` samples from number ``start`` on, or as many as there are; check their shape against the model's."""
    if tuple(data.event) != tuple(event):
        raise ValueError(
            f"got {option} with samples of shape {tuple(data.event)} for a model of {tuple(event)}; expected the same: "
            "--size scales the images of a folder"
        )
    if len(data) <= start:
        raise ValueError(
            f"got {option} with {len(data)} samples, all of which are scored; expected more of them, a smaller --n, or "
            "others"
        )
    return data.samples(range(start, min(start + n, len(data))))


def _write(rows: list[tuple[str, int, Scores]], names: list[str], out: Path) -> None:
    """Write a line for each sample: its dataset, its number there, and the scores with their errors."""
    with replacing(out) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["set", "index", *(column for name in names for column in (name, f"{name} error"))])
        for label, count, scores in rows:
            for i in range(count):
                numbers = [f"{float(value[i]):.8g}" for name in names for value in scores[name]]
                table.writerow([label, i, *numbers])


@reported()
def score(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint, published weights, or folder of diffusers.")],
    data: Annotated[str, typer.Option(help="Samples to score, as for --data of train: mnist:FOLDER, a file ..")],
    reference: Annotated[
        str | None, typer.Option(help="Samples like the training data; if the same as --data, those after the first --n.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Anomalies to score too; the AUROC of each score against --data is printed.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Scores: {', '.join(ANOMALY_SCORES)}; may be repeated; settings may follow: 'loss-excess: draws=8'."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a published dataset: train or test.")] = None,
    size: Annotated[int | None, typer.Option(help="Scale and crop the images of a folder to this height and width.")] = None,
    unreadable: options.Unreadable = "raise",
    limit: Limit = None,
    n: options.Samples = 1000,
    seed: options.Seed = 0,
    label: Labels = None,
    out: Annotated[Path | None, typer.Option(help="Table, .csv; by default scores.csv in the run folder.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in one call of the model; scores do not depend on it.")] = 256,
    device: options.Device = "cpu",
) -> None:
    """Score how anomalous samples are under a model, and write a table.

    A score is larger for anomalies. All scores but the likelihood compare with --reference, preferably samples on which the
    model was not trained. The first --n samples of each dataset are scored.
    """
    if n < 1:
        raise ValueError(f"got --n {n}; expected at least 1")
    names = list(by or (["loss-excess"] if reference else ["likelihood"]))
    made = {name: ANOMALY_SCORES.make(name) for name in names}
    if reference is None and (missing := [name for name, kind in made.items() if kind.needs_reference]):
        raise ValueError(
            f"got --by {missing[0]!r} without --reference; expected samples of the data of the model to compare with, "
            "or --by likelihood"
        )
    where = as_device(device)
    model, event, classes = open_model(run)
    labels = chosen_labels(label, model, classes)
    conditions = None if labels is None else {"label": labels[0]}
    model.to(where)
    how = {"split": split, "size": size, "unreadable": unreadable, "limit": limit}
    opened = {
        option: _samples(open_data(name, **how), n * (option == "reference" and name == data), n, event, f"--{option}").to(
            where
        )
        for option, name in (("data", data), ("against", against), ("reference", reference))
        if name is not None
    }
    scores: dict[str, Scores] = {option: {} for option in opened if option != "reference"}
    for name, kind in made.items():
        detector = Detector(model, kind, opened.get("reference"), seed=seed, conditions=conditions, batch_size=batch_size)
        for option, found in scores.items():
            value, error = detector(opened[option], conditions=conditions)
            found[name] = value.cpu(), error.cpu()
    if out is None:
        out = (run if run.is_dir() else run.parent) / "scores.csv"
    _write([(option, len(opened[option]), found) for option, found in scores.items()], names, out)
    for name in names:
        inside = scores["data"][name][0]
        line = f"{name:<16} median {float(inside.median()):.5g}"
        if "against" in scores:
            area = auroc_estimate(inside, scores["against"][name][0])
            line += f", AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
        typer.echo(line)
    typer.echo(f"table: {out}")
