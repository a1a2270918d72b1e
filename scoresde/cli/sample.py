"""The command ``scoresde sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from scoresde import plots
from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.source import Guidance, Labels, Prompts, chosen_labels, chosen_prompts, guided, open_model
from scoresde.cli.words import draw_words, has_words
from scoresde.sampling import sample as draw
from scoresde.score import ScoreModel
from scoresde.solvers import get, sample_seeds

__all__ = ["sample", "write"]


def write(x: Tensor, seeds: list[int], out: Path, title: str) -> None:
    """Write samples to a picture or an array, depending on the ending of ``out``."""
    import numpy as np

    if out.suffix == ".png":
        figure = plots.scatter({title: x}) if x.ndim == 2 else plots.panels({title: x}, columns=max(1, round(len(x) ** 0.5)))
        plots.save_figure(figure, out)
        return
    with replacing(out) as temporary:
        if out.suffix == ".npy":
            np.save(temporary, x.numpy())
        else:
            np.savez(temporary, x=x.numpy(), seeds=np.array(seeds))


def _shown(model: ScoreModel, event: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the data that a sample stands for, which of latents are decoded."""
    with torch.no_grad():
        data = model.to_data(torch.zeros(1, *event, device=model.device, dtype=model.dtype))
    return tuple(data.shape[1:])


def _check_output(out: Path, event: tuple[int, ...]) -> None:
    """Refuse an output that cannot be written, before the sampling and not after it."""
    if out.suffix not in (".png", ".npy", ".npz"):
        raise ValueError(f"got --out {str(out)!r}; expected a name that ends in .png, .npy or .npz")
    drawable = event == (2,) or (len(event) == 3 and event[0] in (1, 3))
    if out.suffix == ".png" and not drawable:
        raise ValueError(
            f"samples of shape {event} cannot be drawn, only images of one or three channels and points in the plane; "
            "take --out samples.npy"
        )


@reported()
def sample(
    run: Annotated[
        Path,
        typer.Argument(help="Run folder, checkpoint, published weights, or folder of diffusers, as for scoresde.load."),
    ],
    n: options.Samples = 64,
    solver: options.Solver = "auto",
    steps: options.Steps = 20,
    path: options.OwnPath = None,
    end: options.OwnEnd = None,
    seed: options.Seed = 0,
    label: Labels = None,
    prompt: Prompts = None,
    guidance: Guidance = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file, .png, .npy or .npz; by default samples.png (vectors .npy, words .txt) in the run folder."
        ),
    ] = None,
    shape: options.Shape = None,
    batch_size: Annotated[int, typer.Option(help="Samples in one call of the model; results do not depend on it.")] = 512,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """Draw samples from a trained model and write them to a picture, an array or a text."""
    for name, number in (("--n", n), ("--batch-size", batch_size)):
        if number < 1:
            raise ValueError(f"got {name} {number}; expected at least 1")
    where = as_device(device)
    if has_words(run):
        if label or prompt or guidance is not None or shape is not None or end is not None:
            raise ValueError(
                "got --label, --prompt, --guidance, --shape or --end for a model of words, which has none of them; expected "
                "--solver, --steps, --path and --seed"
            )
        options_of_words: dict[str, Any] = {"batch_size": batch_size, "device": where, "progress": progress}
        draw_words(run, n, solver, steps, path, seed, out, **options_of_words)
        return
    if solver != "tuned":
        get(solver)
    model, event, classes = open_model(run, shape)
    labels = chosen_labels(label, model, classes)
    told = chosen_prompts(prompt, model, run)
    shown = _shown(model, event)
    model = guided(model, guidance, labels, told.null)
    if out is None:
        folder = run if run.is_dir() else run.parent
        out = folder / ("samples.png" if len(shown) == 3 else "samples.npy")
    _check_output(out, shown)
    model.to(where)
    seeds = sample_seeds(seed, n)
    parts = []
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        conditions: dict[str, Any] = (
            {} if labels is None else {"label": [labels[i % len(labels)] for i in range(start, stop)]}
        )
        conditions |= told.at([i % len(prompt or [""]) for i in range(start, stop)])
        shape_of_part = (stop - start, *event)
        parts.append(
            draw(
                model,
                shape_of_part,
                solver,
                steps,
                path,
                conditions=conditions,
                seed=seeds[start:stop],
                end=end,
                device=where,
                progress=progress,
            )
        )
    x = torch.cat([part.x.cpu() for part in parts])
    calls, seconds = parts[0].evaluations, sum(part.seconds for part in parts)
    ran = solver if parts[0].solver == solver else f"{solver} ({parts[0].solver})"
    write(x, seeds, out, f"{ran}, {calls} evaluations")
    typer.echo(f"{n} samples by {ran}, {calls} evaluations each, in {seconds:.3g} s: {out}")
