"""Write the tables of docs/inverse.md: how far every method for inverse problems is from the exact posterior.

    python tests/benchmarks/inverse_tables.py [gaussian] [starts] [operators] [mixtures]

A method or a sampler that is registered in ``scoresde.inverse`` gets a row. On Gaussian data the distance is exact, by
``scoresde.analysis.law``. Where a method is not affine it is that of the Gaussian with the moments of 10,000 samples, and
marked by a tilde.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from scoresde import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP, compare, problems, sample
from scoresde.analysis import Moments, law
from scoresde.comparison.measures import MEASURES, Run
from scoresde.inverse import METHODS, MMPS, SAMPLERS, Blur, Downsample, Fourier, Mask, Observation, Operator, Radon, smc
from scoresde.inverse.operators import gaussian_kernel
from scoresde.problems import Gaussian, Problem
from scoresde.solvers import centred

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
SIGMAS = (0.5, 0.1, 0.01)
STEPS, SAMPLES = 100, 10_000
SOLVERS = ("dpmpp-2m", "ddim", "ddpm")
EXACT = "exact score"
THREE = Gaussian([0.3, -0.5, 0.2], [[1.0, 0.6, 0.3], [0.6, 0.8, 0.1], [0.3, 0.1, 0.5]])
SEEN, MEASURED = Mask([True, True, False]), [0.8, -0.2]


def distance(posterior: Problem, method: str, solver: str) -> str:
    """Return the 2-Wasserstein distance of what a method samples from the posterior, as a cell of a table."""
    event, truth = tuple(posterior.event), Moments.of(posterior)
    try:
        if method == EXACT:
            model, used = posterior.model(VP()), solver
        elif method in SAMPLERS:
            model, used = posterior.given.prior.model(VP()), SAMPLERS[method](Observation.of(posterior))
        else:
            model, used = METHODS[method](posterior.given.prior.model(VP()), Observation.of(posterior)), solver
        try:
            return written(law(model, event, used, STEPS).wasserstein(truth))
        except ValueError as error:
            if "not affine" not in str(error):
                raise
        x = sample(model, (SAMPLES, *event), used, STEPS, progress=False, dtype=torch.float64).x.flatten(1)
        return "~" + written(Moments(x.mean(0), x.T.cov()).wasserstein(truth))
    except (ValueError, FloatingPointError):
        return "none"


def written(value: float) -> str:
    """Return a distance to two digits, and to four places."""
    return f"{value:.0f}" if value < 5e-5 or value > 9.5 else f"{value:.2g}"


def table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table of Markdown, the smallest distances of every column in bold, but for those of exact rows."""
    numbers = [[cell.lstrip("~") for cell in row] for row in rows]
    exact = [row[0].startswith("exact") for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row, value in zip(rows, numbers, strict=True):
        others = [n for n, known in zip(numbers, exact, strict=True) if not known]
        best = [min(float(n[i]) for n in others if n[i][:1].isdigit()) for i in range(1, len(row))]
        bold = [v[:1].isdigit() and value in others and float(v) <= least for v, least in zip(value[1:], best, strict=True)]
        lines.append(
            "| " + " | ".join([row[0], *(f"**{c}**" if b else c for c, b in zip(row[1:], bold, strict=True))]) + " |"
        )
    (OUT / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def gaussian() -> None:
    """Three dimensions, of which two are measured."""
    given = [THREE.posterior(SEEN, MEASURED, sigma) for sigma in SIGMAS]
    rows = [[m, *(distance(each, m, solver) for each in given for solver in SOLVERS)] for m in (EXACT, *METHODS)]
    table("inverse-gaussian", ["method", *(f"{sigma:g}, {solver}" for sigma in SIGMAS for solver in SOLVERS)], rows)
    rows = [[sampler, *(distance(each, sampler, "") for each in given)] for sampler in SAMPLERS]
    table("inverse-gaussian-samplers", ["sampler", *(f"{sigma:g}" for sigma in SIGMAS)], rows)


def starts() -> None:
    """The Gaussian of three dimensions on every SDE, by MMPS, from a plain and a centred start."""
    rows = []
    for sde in (VP(), SubVP(), VE(), EDM(), CosineVP(), RectifiedFlow()):
        cells = []
        for sigma in SIGMAS:
            posterior = THREE.posterior(SEEN, MEASURED, sigma)
            model = METHODS["mmps"](posterior.given.prior.model(sde), Observation.of(posterior))
            for solver in ("dpmpp-2m", centred("dpmpp-2m")):
                cells.append(written(law(model, (3,), solver, STEPS).wasserstein(Moments.of(posterior))))
        rows.append([f"`{type(sde).__name__}`", *cells])
    table("inverse-starts", ["SDE", *(f"{sigma:g}{kind}" for sigma in SIGMAS for kind in ("", ", centred"))], rows)


def operators() -> None:
    """Stationary textures of 4 x 4 pixels: a Gaussian in 16 dimensions, under every kind of operator."""
    prior, event = Gaussian(torch.zeros(1, 4, 4), problems.textures(4, 1).covariances[0]), (1, 4, 4)
    frequencies = torch.zeros(4, 4, dtype=torch.bool)
    frequencies[:2, :3] = True
    kinds: dict[str, Operator] = {
        "Mask": Mask(torch.arange(16).reshape(event) % 2 == 0),
        "Downsample": Downsample(2, event),
        "Blur": Blur(gaussian_kernel(0.8, 3), event),
        "Fourier": Fourier(frequencies, event),
        "Radon": Radon([20.0, 110.0], event),
    }
    truth = prior.sample(1, torch.Generator().manual_seed(0), torch.float64)
    given = []
    for operator in kinds.values():
        noise = torch.randn(operator.measured, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        given.append(prior.posterior(operator, operator(truth)[0] + 0.1 * noise, 0.1))
    tight = "mmps, 16 iterations"
    METHODS.register(tight, functools.partial(MMPS, iterations=16))
    rows = [[m, *(distance(each, m, "dpmpp-2m") for each in given)] for m in (EXACT, *METHODS, *SAMPLERS)]
    table("inverse-operators", ["method", *kinds], rows)


MIXED = ("wasserstein", "mode-weights", "mean", "covariance")


def mixtures() -> None:
    """A ring in two dimensions of which one is measured, and random mixtures in 8 and 64 of which four are."""
    for d, sigmas in ((2, (0.3, 0.1)), (8, (0.5, 0.1)), (64, (0.5,))):
        prior = problems.ring() if d == 2 else problems.random_mixture(d, 8)
        matrix = torch.tensor([[1.0, 0.3]]) if d == 2 else torch.eye(d)[:4]
        truth = prior.sample(1, torch.Generator().manual_seed(3), torch.float64)[0]
        for sigma in sigmas:
            noise = torch.randn(len(matrix), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            posterior = prior.posterior(matrix, matrix.double() @ truth + sigma * noise, sigma)
            mixture(posterior, f"inverse-mixture-{d}-{sigma:g}".replace(".", ""))


def mixture(posterior: Problem, name: str, n: int = 1000, evaluations: int = 200) -> None:
    """All methods on one posterior, with the same evaluations, forward and backward."""
    event = tuple(posterior.event)
    methods = {EXACT: "ddpm", **{m: f"{m} + ddpm" for m in METHODS}, **{m: m for m in SAMPLERS}}
    found = compare({name: posterior}, methods, [evaluations], metrics=list(MIXED), n=n, progress=False)
    cells = {(r.solver, r.metric): written(max(r.value, 0.0)) if not r.error else "none" for r in found.records}
    rows = [[method, *(cells[method, metric] for metric in MIXED)] for method in methods]
    model, dtype = posterior.given.prior.model(VP()), torch.float64
    end = smc(model, Observation.of(posterior), (n, *event), steps=evaluations // 2, dtype=dtype, progress=False).x
    truth, other = (posterior.sample(n, torch.Generator().manual_seed(seed), dtype) for seed in (5, 6))
    for label, x in (("smc", end), ("exact samples", other)):
        run = Run(posterior, model, VP(), x, x, evaluations, 0.0, True, torch.Generator().manual_seed(0), truth=truth)
        rows.append([label, *(written(max(run.estimate(MEASURES[metric]).value, 0.0)) for metric in MIXED)])
    table(name, ["method", *MIXED], [rows[-1], *rows[:-1]])


TABLES: dict[str, Callable[[], None]] = {
    "gaussian": gaussian,
    "starts": starts,
    "operators": operators,
    "mixtures": mixtures,
}

if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or TABLES:
        TABLES[chosen]()
