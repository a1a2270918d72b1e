"""The demonstration: train on handwritten digits, sample with every solver, compare, and leave pictures and a table.

It uses the public API only, as a user of the library would.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde import data, metrics, plots
from scoresde.base.files import replacing
from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.sde import VP, GaussianSDE
from scoresde.solvers import SOLVERS, Solver, rk45
from scoresde.solvers import Path as SolverPath
from scoresde.solvers.drivers import State
from scoresde.training import Files, FitResult, fit, networks
from scoresde.training.files import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["run"]


@dataclass(frozen=True)
class Budget:
    """The number of steps of a solver, its path, and the solver itself where it is not the default of its name."""

    steps: int
    path: str = "lam"
    make: Callable[[], Solver] | None = None


BUDGETS: dict[str, Budget] = {
    "euler-maruyama": Budget(100, "quadratic"),
    "reverse-diffusion": Budget(100, "quadratic"),
    "ddpm": Budget(100, "quadratic"),
    "ncsn": Budget(100, "quadratic"),
    "annealed-langevin": Budget(40, "quadratic"),
    "pc": Budget(60, "quadratic"),
    "euler": Budget(50, "t"),
    "heun": Budget(25, "t"),
    "rk4": Budget(12, "t"),
    "rk45": Budget(2, make=lambda: rk45(rtol=1e-3, atol=1e-3)),
    "ddim": Budget(40),
    "dpm-1": Budget(40),
    "dpm-2": Budget(15),
    "dpm-3": Budget(10),
    "dpmpp-2m": Budget(20),
    "torchsde-euler": Budget(100, "quadratic"),
    "torchsde-milstein": Budget(60, "quadratic"),
    "torchsde-srk": Budget(40, "quadratic"),
}
"""The solvers of the demonstration, from every family, each with its budget."""

TRAINING_STEPS = 2400
_STRIP_TIMES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0)


@dataclass(frozen=True)
class Entry:
    """A row of the table, with the samples ``x``."""

    solver: str
    family: str
    steps: int | None
    evaluations: int | None
    seconds: float | None
    energy: float
    frechet: float
    x: Tensor


class _Quality:
    """Distances of samples, clipped to the range of a pixel, from the held-out digits."""

    def __init__(self, classifier: metrics.ImageClassifier, held_out: Tensor) -> None:
        self.classifier, self.held_out = classifier, held_out
        self.features = classifier.features(held_out)

    def __call__(self, x: Tensor) -> tuple[float, float]:
        x = x.clamp(-1, 1)
        energy = metrics.energy_distance(x, self.held_out)
        return float(energy), float(metrics.frechet_distance(self.classifier.features(x), self.features))

    def floor(self, real: Tensor) -> tuple[float, float]:
        """Return the mean distances over disjoint parts of the training digits, each as large as the held-out set."""
        sets = [part for part in torch.split(real, len(self.held_out)) if len(part) == len(self.held_out)]
        pairs = [self(part) for part in sets]
        return sum(e for e, _ in pairs) / len(pairs), sum(f for _, f in pairs) / len(pairs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run on a single thread.

    On images this small a second thread gains little, and where other work holds its core it costs many times over.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def run(
    out: str | Path = "runs/demo",
    *,
    quick: bool = False,
    progress: bool = True,
    echo: Callable[[str], object] = print,
) -> list[Entry]:
    """Run the demonstration and write its pictures and its table to the folder ``out``.

    A training that was interrupted continues, and a finished one is used again.

    Args:
        out: the folder of the run.
        quick: whether to do about a twentieth of the work, to see that everything runs; the samples are then not digits.
        progress: whether to show a progress bar for the training.
        echo: a function called with each line of the report.

    Returns:
        The rows of the table, the floor first.

    Example:
        >>> rows = run("runs/demo", quick=True)  # doctest: +SKIP
    """
    out = Path(out)
    images, labels = data.load_digits()
    training, held_out = data.split(len(images))
    if quick:
        held_out = held_out[:48]
    echo(f"[1/5] data: {len(training)} handwritten digits to train on, {len(held_out)} held out")
    result = _train(images[training], out, TRAINING_STEPS // 20 if quick else TRAINING_STEPS, progress, echo)
    model, report = result.model, result.report

    echo("[3/5] pictures of the forward and the reverse process")
    plots.save_figure(plots.losses(result.history, report.edges, report.loss, report.excess), out / "loss.png")
    generator = torch.Generator().manual_seed(1)
    times = _STRIP_TIMES[::-1]
    forward = _forward(model.sde, images[held_out[:8]], times, generator)
    plots.save_figure(plots.strips({"forward SDE": forward}, times, "From digits to noise"), out / "forward.png")
    reverse = _reverse(model, images.shape[1:], 20 if quick else 200, generator)
    plots.save_figure(plots.strips(reverse, _STRIP_TIMES, "From the same noise to digits"), out / "reverse.png")

    echo("[4/5] a classifier, whose features the Fréchet distance is measured in")
    classifier = metrics.train_classifier(images[training], labels[training], epochs=1 if quick else 12)
    accuracy = float((classifier(images[held_out]).argmax(1) == labels[held_out]).float().mean())
    quality = _Quality(classifier, images[held_out])
    order = torch.randperm(len(training), generator=generator)
    floor = Entry("real digits", "floor", None, None, None, *quality.floor(images[training[order]]), images[held_out])
    echo(f"      {accuracy:.1%} of the held-out digits recognised; {_scores(floor)} for real ones")

    echo(f"[5/5] {len(held_out)} samples by each of {len(BUDGETS)} solvers")
    shape = images[held_out].shape
    entries = [floor, *_compare(model, quality, shape, quick, echo)]
    spread = _spread(model, quality, shape)
    echo(f"      from seed to seed: standard deviation {spread[0]:.4f} and {spread[1]:.2f}")
    with replacing(out / "table.md") as temporary:
        temporary.write_text(markdown(entries, spread), encoding="utf-8")
    title = f"Samples by every solver (E: energy distance, F: Fréchet distance, of {len(held_out)} samples from real digits)"
    grids = {_title(entry): entry.x[:40] for entry in entries}
    plots.save_figure(plots.panels(grids, columns=8, title=title), out / "samples.png")
    plots.save_figure(_overview(reverse, entries), out / "overview.png", dpi=110)
    for name, what in _FILES.items():
        echo(f"{what + ':':<22} {out / name}")
    return entries


_FILES = {
    "loss.png": "loss",
    "forward.png": "forward process",
    "reverse.png": "reverse process",
    "samples.png": "samples by solver",
    "overview.png": "overview",
    "table.md": "table",
}


def _train(x: Tensor, out: Path, steps: int, progress: bool, echo: Callable[[str], object]) -> FitResult:
    checkpoint = out / runs.CHECKPOINT
    done = runs.steps_done(checkpoint)
    model = networks.build(x, VP(), "v")
    parameters = sum(p.numel() for p in model.parameters())
    if done >= steps:
        echo(f"[2/5] training: skipped, {checkpoint} holds a finished one of {done} steps")
    else:
        start = f", continued from step {done} of {checkpoint}" if done else ""
        echo(f"[2/5] training: a U-Net of {parameters} parameters, {steps} steps{start}")
    files = Files(checkpoint, save_every=200, log=False)
    return fit(model, x, steps=steps, batch_size=64, lr=2e-3, files=files, progress=progress)


def _forward(sde: GaussianSDE, x0: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw a trajectory of the forward SDE from each of ``x0``, at ``times`` from 0, by its exact transitions."""
    states = [x0]
    for u, v in itertools.pairwise(times):
        ratio = float(sde.alpha(v) / sde.alpha(u))
        std = math.sqrt(float(sde.sigma(v)) ** 2 - (ratio * float(sde.sigma(u))) ** 2)
        states.append(ratio * states[-1] + std * torch.randn(x0.shape, generator=generator))
    return torch.stack(states)


def _reverse(model: ScoreModel, event: Sequence[int], steps: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Run the time-reversed SDE and the probability flow from the same noise; return both at the times of the strip."""
    start = model.sde.prior((4, *event), generator=generator)
    path = SolverPath.from_times(model.sde, torch.linspace(model.sde.span[1], 0, steps + 1, dtype=torch.float64))
    wanted = {round((1 - t) * steps) for t in _STRIP_TIMES}
    strips = {}
    for label, solver in (("reverse SDE", "ncsn"), ("probability flow", "ddim")):
        states = [start]

        def keep(state: State, states: list[Tensor] = states) -> None:
            if state.step in wanted:
                states.append(state.x.clone())

        sample(model, start, solver, path=path, progress=False, callback=keep)
        strips[label] = torch.stack(states)
    return strips


def _compare(
    model: ScoreModel, quality: _Quality, shape: Sequence[int], quick: bool, echo: Callable[[str], object]
) -> list[Entry]:
    """Sample with every solver of the demonstration; return the entries ordered by family and evaluations."""
    entries = []
    for i, (name, budget) in enumerate(BUDGETS.items(), start=1):
        solver = (budget.make or SOLVERS[name])()
        steps = max(2, budget.steps // 10) if quick else budget.steps
        drawn = sample(model, shape, solver, steps, budget.path, progress=False)
        scores = quality(drawn.x)
        taken = None if solver.description.evaluations is None else steps  # an adaptive solver chooses its own
        entry = Entry(name, solver.description.family, taken, drawn.evaluations, drawn.seconds, *scores, drawn.x)
        cost = f"{drawn.evaluations:4} evaluations {drawn.seconds:6.1f} s"
        echo(f"      {i:2}/{len(BUDGETS)} {name:<18} {cost}   {_scores(entry)}")
        entries.append(entry)
    return sorted(entries, key=lambda e: (e.family, e.evaluations or 0))


def _spread(model: ScoreModel, quality: _Quality, shape: Sequence[int]) -> tuple[float, float]:
    """Return the standard deviation of both distances over seeds, measured with a solver that costs little."""
    scores = torch.tensor([quality(sample(model, shape, steps=15, seed=seed, progress=False).x) for seed in range(1, 6)])
    energy, frechet = scores.std(0).tolist()
    return energy, frechet


def _scores(entry: Entry) -> str:
    return f"energy distance {entry.energy:7.4f}, Fréchet distance {entry.frechet:6.2f}"


def _title(entry: Entry) -> str:
    if entry.evaluations is None:
        return f"{entry.solver}, held out\nfloor: E {entry.energy:.4f}, F {entry.frechet:.2f}"
    return (
        f"{entry.solver}, {entry.evaluations} evaluations, {entry.seconds:.1f} s\n"
        f"E {entry.energy:.4f}, F {entry.frechet:.2f}"
    )


def _overview(reverse: dict[str, Tensor], entries: Sequence[Entry]) -> Figure:
    shown = {e.solver: e for e in entries}
    names = [name for name in ("real digits", "dpmpp-2m", "ddim", "ddpm", "pc") if name in shown]
    grids = {}
    for name in names:
        entry = shown[name]
        calls = "held out" if entry.evaluations is None else f"{entry.evaluations} evaluations"
        grids[f"{name}, {calls}"] = entry.x[:36]
    return plots.overview({name: x[:, :3] for name, x in reverse.items()}, _STRIP_TIMES, grids, columns=6)


def markdown(entries: Sequence[Entry], spread: tuple[float, float]) -> str:
    """Return the table as Markdown with the meaning of its columns; ``spread`` holds the standard deviations over seeds."""
    n = len(entries[0].x)
    lines = [
        "# Solvers on handwritten digits",
        "",
        f"{n} samples each, against {n} held-out digits; smaller is better. The floor is the mean distance of sets of as",
        "many real training digits from the held-out ones. The energy distance, of pixels, is unbiased, so that about zero",
        "of either sign is perfect; the Fréchet distance, of the features of a classifier, is biased upwards, for the",
        "floor as for all others.",
        "",
        f"From one seed to another the distances of the same solver have a standard deviation of {spread[0]:.4f} and "
        f"{spread[1]:.2f}. All",
        "solvers here but torchsde's start from the same noise, so that they differ among themselves by less than that; yet",
        "differences well below it say nothing.",
        "",
        "| solver | family | steps | evaluations | seconds | energy distance | Fréchet distance |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for e in entries:
        counts = " | ".join("" if count is None else str(count) for count in (e.steps, e.evaluations))
        seconds = "" if e.seconds is None else f"{e.seconds:.1f}"
        lines.append(f"| {e.solver} | {e.family} | {counts} | {seconds} | {e.energy:.4f} | {e.frechet:.2f} |")
    return "\n".join(lines) + "\n"
