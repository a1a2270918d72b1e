"""The command line: ``scoresde demo``, ``train``, ``sample``, ``evaluate``, ``compare`` and ``solvers``.

What the library refuses is one line on standard error and exit status 2; Ctrl-C is 130, after saving.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import scoresde
from scoresde import _runs, data, evaluation, metrics, plots
from scoresde import demo as demonstration
from scoresde._files import replacing
from scoresde.compare import BUDGETS, DEFAULT_SOLVERS, Comparison, best_ratio, suite
from scoresde.objectives import OBJECTIVES
from scoresde.sampling import sample as draw
from scoresde.score import ScoreModel
from scoresde.solvers import SOLVERS, Langevin, LearnedNoise, RowSolver, make_path, plugins, sample_seeds, to_json
from scoresde.solvers import Path as SolverPath
from scoresde.solvers import get as get_solver
from scoresde.training import FitResult, Keep, Trainer, result_of

__all__ = ["main"]

app = typer.Typer(
    help="Score-based generative models seen as stochastic differential equations.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands, as an application of typer."""


def main() -> None:
    """The console command."""
    app()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn what the library raises into a line on standard error and an exit status."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"scoresde: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


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


# demo ----------------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A twentieth of the work, to see that everything runs.")] = False,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")] = True,
) -> None:
    """Train on handwritten digits, sample with every solver, and compare them: pictures and a table.

    Takes about three minutes on two CPU cores. A training that was interrupted continues, a finished one is used again.
    """
    with _reported():
        demonstration.run(out, quick=quick, progress=progress, echo=typer.echo)


# solvers -------------------------------------------------------------------------------------------------------------

_WIDTH = 100
_COLUMNS = f"{'name':<18} {'family':<12} {'order':<7} {'evals/step':<10} {'noise':<6} "


@app.command()
def solvers(
    show: Annotated[str | None, typer.Option(help="Print the rows of this solver as numbers instead.")] = None,
    steps: Annotated[int, typer.Option(help="Number of steps of the rows.")] = 5,
    path: Annotated[str, typer.Option(help="t, quadratic, lam or karras.")] = "lam",
    sde: Annotated[str, typer.Option(help=f"One of {', '.join(_runs.SDES)}.")] = "vp",
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON, to be read back by solvers.from_json.")] = False,
) -> None:
    """The table of solvers: name, family, order, evaluations per step, whether noise is drawn, paper.

    The order is that of the end point's error or, of a solver that draws noise, the weak order: that of the moments. A
    dash stands where it does not follow from the step.
    """
    plugins()  # those that installed packages bring along are listed as well
    if show is not None:
        with _reported():
            _show_rows(show, make_path(_runs.choice(sde).sde(), path, steps), as_json)
        return
    typer.echo(_COLUMNS + "paper")
    typer.echo("-" * _WIDTH)
    for name, make in SOLVERS.items():
        d = make().description
        order = str(d.order) if d.order else f"{d.weak_order:g} weak" if d.weak_order else "-"
        calls = "adaptive" if d.evaluations is None else str(d.evaluations)
        paper = textwrap.wrap(d.paper, _WIDTH - len(_COLUMNS))
        noise = "yes" if d.stochastic else "no"
        typer.echo(f"{name:<18} {d.family:<12} {order:<7} {calls:<10} {noise:<6} {paper[0]}")
        for line in paper[1:]:
            typer.echo(" " * len(_COLUMNS) + line)


def _show_rows(name: str, path: SolverPath, as_json: bool) -> None:
    """Each row y = a x + sum_j w_j N_j + sum_k s_k xi_k with N = p y + q m evaluated at t, newest first."""
    solver = get_solver(name)
    if not isinstance(solver, RowSolver):
        raise ValueError(f"solver {name!r} chooses its own steps, so that it has no rows to show")
    rows = solver.rows(path)
    if as_json:
        typer.echo(json.dumps(to_json(rows)))
        return
    typer.echo("y = a x + sum w N + sum s xi, with N = p y + q m(y, t), newest first; * ends a step\n")
    typer.echo(f"  {'t':>9} {'to':>9} {'a':>11} {'p':>11} {'q':>11}  w | s")
    for row in rows:
        if isinstance(row, LearnedNoise):
            typer.echo(f"* {row.at.t:9.5f} {row.to.t:9.5f} {row.a:11.6g} {row.w:.6g} | {row.lower:.6g} .. {row.upper:.6g}")
            continue
        if isinstance(row, Langevin):
            typer.echo(
                f"  {row.at.t:9.5f} {row.at.t:9.5f} Langevin: snr {row.snr:g}, scale {row.scale:.6g}, norm {row.norm}"
            )
            continue
        at = f"{row.at.t:9.5f}" if row.at is not None else " " * 9
        w, s = (" ".join(f"{x:.6g}" for x in values) for values in (row.w, row.s))
        mark = "*" if row.ends_step else " "
        numbers = f"{row.a:11.6g} {row.p:11.6g} {row.q:11.6g}" if row.at is not None else f"{row.a:11.6g} {'':11} {'':11}"
        typer.echo(f"{mark} {at} {row.to.t:9.5f} {numbers}  {w}" + (f" | {s}" if s else ""))


# train ---------------------------------------------------------------------------------------------------------------


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a TOML file for those that the command line does not give."""
    if path is None:
        return None
    with _reported():
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"cannot read {str(path)!r} as TOML: {error}") from error
        parameters = {p.name: p for p in context.command.params if p.name and p.name not in ("config", "help")}
        parameters["data"] = parameters["data_name"]
        known = sorted(parameters.keys() - {"data_name"})
        options = {}
        for key, value in given.items():
            name = key.replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise ValueError(
                    f"got {key!r} in {str(path)!r}; expected options of scoresde train: {', '.join(known)}{hint}"
                )
            options[str(parameters[name].name)] = value
    context.default_map = options
    return path


_EVERY = "; 0 for never"


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Argument(callback=_from_file, is_eager=True, help="A TOML file of these options, which the line overrides."),
    ] = None,
    *,
    data_name: Annotated[
        str, typer.Option("--data", help="digits, a file (.npy, .npz, IDX, parquet), a folder of images, or hf:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    size: Annotated[int | None, typer.Option(help="Height and width to which image files are scaled and cropped.")] = None,
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="Add the mirror image of each image.")] = False,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Give the network the labels of the data.")] = False,
    label_dropout: Annotated[float, typer.Option(help="Probability of hiding a label, for guidance.")] = 0.1,
    sde: Annotated[str, typer.Option(help=f"One of {', '.join(_runs.SDES)}.")] = "vp",
    predicts: Annotated[
        str | None, typer.Option(help="eps, x0, v, velocity, score or edm; by default what suits the SDE.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(OBJECTIVES)}; by default what suits the SDE.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the whole training, with those of a resumed one.")] = 5000,
    batch_size: Annotated[int, typer.Option(help="Samples per step, of all processes together.")] = 64,
    accumulate: Annotated[int, typer.Option(help="Parts in which a batch is worked through, to save memory.")] = 1,
    lr: Annotated[float, typer.Option(help="Step size of Adam.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = 100,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    ema: Annotated[float, typer.Option(help="Decay per step of the average of the weights.")] = 0.999,
    average: Annotated[
        list[str] | None, typer.Option(help="One more average, such as power-0.1 or exponential-0.99; may be repeated.")
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the U-Net; the MLP is four times as wide.")] = 32,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the network.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--no-channels-last", help="Lay images out with their channels last.")
    ] = False,
    nonfinite: Annotated[str, typer.Option(help="stop or skip: what to do at a loss that is not finite.")] = "stop",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    keep_last: Annotated[int, typer.Option(help="So many older checkpoints stay.")] = 0,
    keep_every: Annotated[int, typer.Option(help="Those at a multiple of so many steps stay" + _EVERY + ".")] = 0,
    keep_best: Annotated[bool, typer.Option("--keep-best/--no-keep-best", help="The best monitored one stays.")] = False,
    monitor_every: Annotated[int, typer.Option(help="Steps between a picture and a distance of samples" + _EVERY + ".")] = 0,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots of power averages" + _EVERY + ".")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard/--no-tensorboard", help="Log for TensorBoard too.")] = False,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Continue from the run folder.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ..")] = None,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")] = True,
) -> None:
    """Train a U-Net on images, or an MLP on vectors, and write the checkpoint, the log and the loss curve.

    On several GPUs or machines: accelerate launch -m scoresde.cli train .., or torchrun.
    """
    with _reported():
        if steps < 1:
            raise ValueError(f"got steps={steps}; expected a whole number of at least 1")
        source, x, classes = _opened(data_name, size, flips, labels)
        chosen = _runs.choice(sde)
        model = _runs.build(x, chosen.sde(), predicts or chosen.predicts, width=width, classes=classes, seed=seed)
        kept = Keep(keep_last, keep_every or None, keep_best) if keep_last or keep_every or keep_best else None
        trainer = Trainer(
            model,
            source,
            objective=objective or chosen.objective,
            batch_size=batch_size,
            lr=lr,
            warmup=warmup,
            clip=clip,
            averages=[ema, *(average or [])],
            seed=seed,
            drop={"label": classes} if classes else None,
            drop_probability=label_dropout,
            precision=precision,
            accumulate=accumulate,
            compile=compile,
            channels_last=channels_last,
            nonfinite=nonfinite,
            out=out / _runs.CHECKPOINT,
            resume=resume,
            save_every=save_every,
            keep=kept,
            snapshot_every=snapshot_every or None,
            tensorboard=tensorboard,
            monitor=_watch(out, x, classes) if monitor_every else None,
            monitor_every=monitor_every or 1,
            device=device,
            progress=progress,
        )
        if trainer.processes.main:
            _describe(model, x, len(source) if isinstance(source, Tensor | data.Dataset) else 0)
            _runs.write_shape(out, x.shape[1:])
        trainer.run(steps)
        if trainer.processes.main:
            _finish(result_of(trainer), out)


def _opened(name: str, size: int | None, flips: bool, labels: bool) -> tuple[Tensor | data.Dataset, Tensor, int]:
    """The data, some of them to see what they are like, and the number of their classes: 0 without labels."""
    found = data.open(name, size=size, flips=flips)
    for skipped in found.skipped:
        typer.echo(f"left out, cannot be read: {skipped}", err=True)
    x = found.samples(range(min(len(found), 4096)))
    if not labels:
        found.labels = None
        return found.tensor() if isinstance(found, data.Arrays) else found, x, 0
    if found.labels is None:
        raise ValueError(
            f"got --labels for {name!r}, which has none; expected sub-folders, an array y or a column of labels"
        )
    return found, x, int(found.labels.max()) + 1


def _describe(model: ScoreModel, x: Tensor, n: int) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    typer.echo(f"data: {n} samples of shape {tuple(x.shape[1:])}, deviation {float(x.std()):.3g}")
    typer.echo(f"model: {type(model.net).__name__} of {parameters} parameters, predicts {model.predicts} on {model.sde!r}")


def _watch(out: Path, x: Tensor, classes: int) -> Callable[[int, ScoreModel], dict[str, float]]:
    """What is looked at during a training: samples, as a picture where they can be drawn, and their energy distance."""
    real = x[:256]

    def watch(step: int, model: ScoreModel) -> dict[str, float]:
        first = next(model.parameters())
        given: dict[str, Any] = {"label": (torch.arange(len(real)) % classes).to(first.device)} if classes else {}
        drawn = draw(model, real.shape, seed=0, progress=False, **given).x.cpu()
        drawable = drawn.shape[1:] == (2,) or (drawn.ndim == 4 and drawn.shape[1] in (1, 3))
        if drawable:
            _write(drawn[:64], [], out / "samples" / f"{step:09d}.png", f"step {step}")
        return {"energy_distance": float(metrics.energy_distance(drawn.flatten(1), real.flatten(1)))}

    return watch


def _finish(result: FitResult, out: Path) -> None:
    """What a training leaves beside the checkpoint, and says."""
    report = result.report
    plots.save(plots.losses(result.history, report.edges, report.loss, report.excess), out / "loss.png")
    typer.echo(f"\nloss by time after {len(result.history)} steps:\n{report}\n")
    typer.echo(f"checkpoint: {out / _runs.CHECKPOINT}\nlog: {(out / _runs.CHECKPOINT).with_suffix('.csv')}")
    typer.echo(f"loss curve: {out / 'loss.png'}\nnow: scoresde sample {out}")


# sample --------------------------------------------------------------------------------------------------------------


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise ValueError(f"got --shape {text!r}; expected whole numbers with commas, such as 1,28,28") from None


def _write(x: Tensor, seeds: list[int], out: Path, title: str) -> None:
    import numpy as np

    if out.suffix == ".png":
        figure = plots.scatter({title: x}) if x.ndim == 2 else plots.panels({title: x}, columns=max(1, round(len(x) ** 0.5)))
        plots.save(figure, out)
        return
    with replacing(out) as temporary:
        if out.suffix == ".npy":
            np.save(temporary, x.numpy())
        else:
            np.savez(temporary, x=x.numpy(), seeds=np.array(seeds))


def _check_output(out: Path, event: tuple[int, ...]) -> None:
    """Fail before the sampling, not after it."""
    if out.suffix not in (".png", ".npy", ".npz"):
        raise ValueError(f"got --out {str(out)!r}; expected a name that ends in .png, .npy or .npz")
    drawable = event == (2,) or (len(event) == 3 and event[0] in (1, 3))
    if out.suffix == ".png" and not drawable:
        raise ValueError(
            f"samples of shape {event} cannot be drawn, only images of one or three channels and points in the plane; "
            "take --out samples.npy"
        )


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint.")],
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    solver: Annotated[str, typer.Option(help="A name of the table: scoresde solvers.")] = "dpmpp-2m",
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    path: Annotated[str, typer.Option(help="t, quadratic, lam or karras.")] = "lam",
    seed: Annotated[int, typer.Option(help="From which each sample's own seed derives.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help=".png, .npy or .npz; by default samples.png (.npy for vectors) in the run folder."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Of a sample, such as 1,28,28, where there is no run folder.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time; they do not depend on it.")] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, ..")] = "cpu",
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")] = True,
) -> None:
    """Draw samples from a trained model and write them to a picture or an array."""
    with _reported():
        for name, number in (("--n", n), ("--batch-size", batch_size)):
            if number < 1:
                raise ValueError(f"got {name} {number}; expected at least 1")
        get_solver(solver)
        model, event = _runs.open_run(run, None if shape is None else _parse_shape(shape))
        if out is None:
            folder = run if run.is_dir() else run.parent
            out = folder / ("samples.png" if len(event) == 3 else "samples.npy")
        _check_output(out, event)
        model.to(device)
        seeds = sample_seeds(seed, n)
        parts = [
            draw(model, (len(s), *event), solver, steps, path, seed=s, progress=progress)
            for s in (seeds[i : i + batch_size] for i in range(0, n, batch_size))
        ]
        x = torch.cat([part.x.cpu() for part in parts])
        calls, seconds = parts[0].evaluations, sum(part.seconds for part in parts)
        _write(x, seeds, out, f"{solver}, {calls} evaluations")
        typer.echo(f"{n} samples by {solver}, {calls} evaluations each, in {seconds:.3g} s: {out}")


# evaluate ------------------------------------------------------------------------------------------------------------


def _samples_to_evaluate(what: Path, n: int, show_bar: bool, **options: Any) -> data.Dataset:
    """The samples in a file or folder, or those of a run or checkpoint, which are drawn beside it."""
    is_run = what.suffix == ".safetensors" or (what / _runs.CHECKPOINT).exists()
    if not is_run:
        return data.open(what)
    from tqdm import tqdm

    model, event = _runs.open_run(what)
    folder = (what if what.is_dir() else what.parent) / "samples"
    with tqdm(total=n, unit=" samples", desc="sampling", disable=not show_bar) as progress:
        drawn = evaluation.generate(model, event, folder, n, progress=progress.update, **options)
    typer.echo(f"samples: {drawn.folder}")
    return drawn


@app.command()
def evaluate(
    samples: Annotated[Path, typer.Argument(help="A run folder or checkpoint to sample from; or samples: file or folder.")],
    against: Annotated[str, typer.Option(help="Data: whatever --data of train may be, or mnist:FOLDER, cifar10:FOLDER ..")],
    split: Annotated[str | None, typer.Option(help="Part of a published set to compare with: train or test.")] = None,
    size: Annotated[int | None, typer.Option(help="Scale and crop the images of a folder to this height and width.")] = None,
    floor: Annotated[str | None, typer.Option(help="Other real data, to compare in the same way: the floor.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Extractor: package.module:name or file.py:name, code of yours; or inception:FILE.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples to draw.")] = 10_000,
    solver: Annotated[str, typer.Option(help="A name of the table: scoresde solvers.")] = "dpmpp-2m",
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    path: Annotated[str, typer.Option(help="t, quadratic, lam or karras.")] = "lam",
    seed: Annotated[int, typer.Option(help="From which each sample's own seed derives.")] = 0,
    classes: Annotated[int | None, typer.Option(help="Of a network with labels: draw each of so many in turn.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that draw; on several GPUs they take turns among them.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples at a time, of the extractor.")] = 256,
    keep: Annotated[int, typer.Option(help="Of how many samples to keep the features: precision, recall, KID.")] = 10_000,
    cache: Annotated[Path | None, typer.Option(help="Folder for the statistics of the real data; none by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores to this file, as JSON.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ..")] = "cpu",
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")] = True,
) -> None:
    """Compare samples with data: Fréchet distance, sFID, KID, precision, recall, Inception score, sliced Wasserstein.

    What was drawn before is used again, so that an evaluation that was stopped continues.
    """
    from tqdm import tqdm

    with _reported():
        extractor = None if features is None else evaluation.find_features(features)
        real = data.open(against, split=split, size=size)
        other = None if floor is None else data.open(floor, size=size)
        drawn = _samples_to_evaluate(
            samples,
            n,
            progress,
            solver=solver,
            steps=steps,
            path=path,
            seed=seed,
            classes=classes,
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
        if out is not None:
            with replacing(out) as temporary:
                temporary.write_text(scores.to_json())
        typer.echo(str(scores))


# compare -------------------------------------------------------------------------------------------------------------


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise ValueError(f"got --evaluations {text!r}; expected whole numbers with commas, such as 5,10,20,50") from None


@app.command()
def compare(
    on: Annotated[
        list[str] | None, typer.Argument(help="Names of problems (ring, grid, ..), or one run folder or checkpoint.")
    ] = None,
    suite_name: Annotated[
        str | None, typer.Option("--suite", help="quick or standard, in place of all that follows.")
    ] = None,
    solver: Annotated[str, typer.Option(help="Names, with commas: scoresde solvers.")] = ",".join(DEFAULT_SOLVERS),
    evaluations: Annotated[str, typer.Option(help="Budgets, with commas.")] = ",".join(map(str, BUDGETS)),
    path: Annotated[str, typer.Option(help="t, quadratic, lam or karras, or several with commas.")] = "lam",
    metric: Annotated[str | None, typer.Option(help="Names, with commas; by default all that apply.")] = None,
    sde: Annotated[str, typer.Option(help=f"Of problems: one of {', '.join(_runs.SDES)}.")] = "vp",
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 256,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    end: Annotated[str, typer.Option(help="denoise, flow or stop: how the last step ends.")] = "flow",
    shape: Annotated[str | None, typer.Option(help="Of a sample, such as 1,28,28, where there is no run folder.")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also the samplers of k-diffusion, diffusers and torchsde.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for results, as they come, and for the report.")] = None,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")] = True,
) -> None:
    """Compare solvers by their error against evaluations of the model: a table and, with --out, charts and a page.

    An interrupted comparison continues where it stopped when the same command is given again.
    """
    with _reported():
        if suite_name is not None:
            if on:
                raise ValueError(f"got {' '.join(on)} and --suite {suite_name}, which brings its own problems; expected one")
            arguments = suite(suite_name).arguments()
        else:
            arguments = {
                **_compared(on or ["ring"], sde, shape),
                "solvers": _listed(solver),
                "evaluations": _numbers(evaluations),
                "paths": _listed(path),
                "metrics": None if metric is None else _listed(metric),
                "n": n,
                "seed": seed,
                "end": end,
            }
        found = scoresde.compare(**arguments, out=out, peers=peers, progress=progress)
        _tell(found, out)


def _compared(names: list[str], sde: str, shape: str | None) -> dict[str, Any]:
    """The problems of these names or, where there is such a file or folder, the model in it."""
    if len(names) == 1 and Path(names[0]).exists():
        model, event = _runs.open_run(Path(names[0]), None if shape is None else _parse_shape(shape))
        return {"problem": {Path(names[0]).name: model}, "shape": event}
    return {"problem": names, "sde": _runs.choice(sde).sde()}


def _tell(found: Comparison, out: Path | None) -> None:
    metrics = list(dict.fromkeys(r.metric for r in found.records))
    typer.echo(found.table(metric=metrics[0]))
    for note in found.about["notes"]:
        typer.echo(f"left out: {note}")
    if any(r.package != "scoresde" and not r.error for r in found.records):
        typer.echo(f"{'problem':<16} {'budget':>6} {'ratio':>8}  best here, best peer ({metrics[0]})")
        for r in best_ratio(found, metrics[0]):
            pair = f"{r.ours.solver} on {r.ours.path}, {r.peer.solver} on {r.peer.path}"
            typer.echo(f"{r.problem:<16} {r.budget:>6} {r.ratio:>8.3f}  {pair}")
    if out is not None:
        for path in found.report(out):
            typer.echo(str(path))


if __name__ == "__main__":
    main()
