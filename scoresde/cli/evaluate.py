"""The command ``scoresde evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scoresde import data, evaluation
from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.base.processes import launch_rank
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.source import Guidance, Labels, Limit, chosen_labels, guided, open_data, open_model
from scoresde.training.files import runs
from scoresde.weights import recognizes

__all__ = ["evaluate"]


def _samples_to_evaluate(what: Path, n: int, show_bar: bool, unreadable: str, limit: int | None, **how: Any) -> data.Dataset:
    """Return the samples in a file or folder, or draw those of a run or checkpoint into files beside it."""
    is_run = what.suffix == ".safetensors" or (what / runs.CHECKPOINT).exists() or (what.is_dir() and recognizes(what))
    label, guidance = how.pop("label"), how.pop("guidance")
    if not is_run:
        given = [f"--label {','.join(label)}"] if label else []
        given += [f"--guidance {guidance}"] if guidance is not None else []
        if given:
            raise ValueError(
                f"got {' and '.join(given)} for samples that are drawn already; expected a run folder or a checkpoint to "
                f"sample from in place of {str(what)!r}"
            )
        return open_data(what, unreadable=unreadable, limit=limit)
    from tqdm.auto import tqdm

    model, event, classes = open_model(what)
    how["labels"] = chosen_labels(label, model, classes)
    model = guided(model, guidance, how["labels"])
    folder = (what if what.is_dir() else what.parent) / "samples"
    with tqdm(total=n, unit=" samples", desc="sampling", disable=not show_bar) as progress:
        drawn = evaluation.generate(model, event, folder, n, progress=progress.update, **how)
    if launch_rank()[0] == 0:
        typer.echo(f"samples: {drawn.folder}")
    return drawn


@reported()
def evaluate(
    samples: Annotated[Path, typer.Argument(help="Run folder or checkpoint to sample from, or file or folder of samples.")],
    against: Annotated[str, typer.Option(help="Data, as for --data of train, to compare with: mnist:FOLDER, a file ..")],
    split: Annotated[str | None, typer.Option(help="Split of a published dataset to compare with: train or test.")] = None,
    size: Annotated[int | None, typer.Option(help="Scale and crop the images of a folder to this height and width.")] = None,
    unreadable: options.Unreadable = "raise",
    limit: Limit = None,
    floor: Annotated[str | None, typer.Option(help="Other real data, compared in the same way: the floor.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Extractor: inception:FILE, or your code as package.module:name or file.py:name.")
    ] = None,
    n: options.Samples = 10_000,
    solver: options.Solver = "auto",
    steps: options.Steps = 20,
    path: options.OwnPath = None,
    end: options.OwnEnd = None,
    seed: options.Seed = 0,
    label: Labels = None,
    guidance: Guidance = None,
    processes: Annotated[
        int, typer.Option(help="Number of processes that draw; on several GPUs they take turns among them.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples in one call of the extractor.")] = 256,
    keep: Annotated[int, typer.Option(help="Samples whose features to keep for precision, recall, KID.")] = 10_000,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which the statistics of samples and data are kept; none by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores to this file, as JSON.")] = None,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> evaluation.Scores:
    """Compare samples with data: Fréchet distance, sFID, KID, precision, recall, Inception score, sliced Wasserstein.

    Samples from an earlier run of the command are used again, so that an evaluation that was stopped continues. Several
    processes that are given the command at once, by torchrun or by hand, share the drawing and the reading of samples.
    """
    from tqdm.auto import tqdm

    rank, count = launch_rank()
    if count > 1 and cache is None:
        raise ValueError(f"got {count} processes without a folder to share; expected --cache FOLDER, which all of them see")
    progress = progress and rank == 0
    as_device(device)
    extractor = None if features is None else evaluation.find_features(features)
    real = open_data(against, split=split, size=size, unreadable=unreadable, limit=limit)
    other = None if floor is None else open_data(floor, size=size, unreadable=unreadable, limit=limit)
    drawn = _samples_to_evaluate(
        samples,
        n,
        progress,
        unreadable,
        limit,
        solver=solver,
        steps=steps,
        path=path,
        end=end,
        seed=seed,
        label=label,
        guidance=guidance,
        processes=processes,
        device=device,
    )
    with tqdm(unit=" samples", desc="reading", disable=not progress) as bar:
        scores = evaluation.evaluate(
            drawn,
            real,
            extractor,
            floor=other,
            cache=cache,
            keep=keep,
            seed=seed,
            batch_size=batch_size,
            device=device,
            progress=bar.update,
        )
    if rank != 0:
        return scores
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(scores.to_json())
    typer.echo(str(scores))
    return scores
