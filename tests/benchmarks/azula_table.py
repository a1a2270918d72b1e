"""Write the table of docs/inverse.md on azula: the exact laws of its posterior methods, on the Gaussian of three dimensions.

    python tests/benchmarks/azula_table.py

It needs azula (``pip install --no-deps azula einops``). Its denoisers run inside a score model of this package. Its samplers
run step by step on the same path, with the draws of noise of this package in place of its own, so that ``analysis.law``
applies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import azula
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.jfps import JFPSDenoiser
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from inverse_tables import MEASURED, SAMPLES, SEEN, SIGMAS, STEPS, THREE, table, written
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scoresde import VP, ScoreModel, sample
from scoresde.analysis import Moments, law
from scoresde.inverse import Conditioned, Observation
from scoresde.problems import Problem
from scoresde.solvers import Description, Point, RowSolver, Update
from scoresde.solvers.updates import States


class Ours(Denoiser):
    """A score model as a denoiser of azula."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.sde.alpha(t), self.model.sde.sigma(t)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        return DiracPosterior(self.model.x0(x_t, t))


class Theirs(Conditioned):
    """A denoiser of azula as a score model."""

    def __init__(self, model: ScoreModel, observation: Observation, make: Callable[..., Denoiser]) -> None:
        super().__init__(model, observation)
        self.make = make

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        seen, t = self.observation, torch.as_tensor(t, dtype=torch.float64)
        made = self.make(Ours(self.model), seen.for_batch(len(x)), seen.operator, seen.sigma**2)
        return made(x, t).mean


class Intercepted(TorchFunctionMode):
    """Takes the draws of a sampler of azula from a run of this package and, for ``alone``, each sample's norm by itself."""

    def __init__(self, draw: Callable[[], Tensor], alone: bool) -> None:
        super().__init__()
        self.draw, self.alone = draw, alone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn_like:
            return self.draw()
        if func is torch.linalg.vector_norm and self.alone:
            return args[0].flatten(1).square().sum(1).sqrt().sum()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class Step(Update):
    """A step of a sampler of azula."""

    at: Point
    to: Point
    sampler: Any
    alone: bool
    ends_step: ClassVar[bool] = True

    def apply(self, on: States) -> None:
        on.predict()  # counts the evaluation, which the sampler makes by itself
        t, s = (torch.tensor(p.t, dtype=torch.float64) for p in (self.at, self.to))
        with Intercepted(lambda: on.draw_apart(self.at, self.to, 0.0), self.alone):
            x = self.sampler.step(on.x, t, s)
        on.replace(x, self.to, True)

    def __str__(self) -> str:
        return f"* {self.at.t:9.5f} {self.to.t:9.5f} azula"


def stepping(model: ScoreModel, seen: Observation, kind: Any, alone: bool = False, **options: Any) -> RowSolver:
    """Return a sampler of azula as a solver."""
    sampler = kind(Ours(model), y=seen.y[None], A=seen.operator, silent=True, **options)
    description = Description(kind.__name__, "peer", f"azula {azula.__version__}", stochastic=True)
    return RowSolver(description, lambda path: [Step(u, v, sampler, alone) for u, v in path.moves])


DENOISERS: dict[str, Callable[..., Denoiser]] = {
    "MMPS, 1 iteration": lambda d, y, a, v: MMPSDenoiser(d, y, a, IsotropicCovariance(torch.tensor(v))),
    "MMPS, 2 iterations": lambda d, y, a, v: MMPSDenoiser(d, y, a, IsotropicCovariance(torch.tensor(v)), iterations=2),
    "TMPD": lambda d, y, a, v: TMPDenoiser(d, y, a, v),
    "JFPS, unit covariance": lambda d, y, a, v: JFPSDenoiser(
        d, y, a, *(IsotropicCovariance(torch.tensor(c)) for c in (v, 1.0)), iterations=2
    ),
    "DiffPIR": lambda d, y, a, v: DiffPIRDenoiser(d, y, a, v),
    "DiffPIR, lambda 1, 2 iterations": lambda d, y, a, v: DiffPIRDenoiser(d, y, a, v, 1.0, iterations=2),
}


def measured(posterior: Problem, model: ScoreModel, solver: str | RowSolver) -> str:
    """Return the distance from the posterior as a cell: exact, or from 10,000 samples of a sampler that is not affine."""
    truth = Moments.of(posterior)
    try:
        return written(law(model, (3,), solver, STEPS).wasserstein(truth))
    except ValueError as error:
        if "not affine" not in str(error):
            raise
    x = sample(model, (SAMPLES, 3), solver, STEPS, progress=False, dtype=torch.float64).x
    return "~" + written(Moments(x.mean(0), x.T.cov()).wasserstein(truth))


def main() -> None:
    """Measure every method at every level of noise."""
    rows: dict[str, list[str]] = {}
    for sigma in SIGMAS:
        posterior = THREE.posterior(SEEN, MEASURED, sigma)
        model, seen = THREE.model(VP()), Observation.of(posterior)
        cells = {name: (Theirs(model, seen, make), "dpmpp-2m") for name, make in DENOISERS.items()}
        cells |= {
            "PiGDM": (model, stepping(model, seen, PGDMSampler, A_inv=seen.operator.pinv)),
            "DPS, a batch of 10,000": (model, stepping(model, seen, DPSSampler)),
            "DPS, one by one": (model, stepping(model, seen, DPSSampler, alone=True)),
        }
        for name, (used, solver) in cells.items():
            rows.setdefault(name, []).append(measured(posterior, used, solver))
            print(sigma, name, rows[name][-1], flush=True)
    table("inverse-azula", ["azula", *(f"{sigma:g}" for sigma in SIGMAS)], [[name, *row] for name, row in rows.items()])


if __name__ == "__main__":
    main()
