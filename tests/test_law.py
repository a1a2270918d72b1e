"""The exact law of affine samplers: against the moments in an eigenbasis, samples, and closed forms of the distance."""

import math
import sys

import pytest
import scipy.linalg
import torch

from scoresde import EDM, VP, problems, sample, solvers
from scoresde.analysis import Moments, law, moments
from scoresde.metrics import gaussian_frechet_distance
from scoresde.problems import Gaussian
from scoresde.score import Wrapper
from scoresde.solvers import SOLVERS, RowSolver, make_path

DATA = Gaussian([0.5, -1.0, 0.2], [[1.0, 0.6, 0.1], [0.6, 0.8, -0.3], [0.1, -0.3, 0.5]])
LINEAR = [
    name
    for name in SOLVERS
    if isinstance(solvers.get(name), RowSolver)
    and all(getattr(row, "linear", False) for row in solvers.get(name).rows(make_path(VP(), "lam", 4)))
]


@pytest.mark.parametrize("solver", LINEAR)
def test_it_has_the_moments_of_the_solver(solver):
    for sde, path, end in [(VP(), "lam", "denoise"), (EDM(), "karras", "stop")]:
        where = make_path(sde, path, 5, end=end)
        expected = moments(solver, where, DATA.mean, DATA.covariance, start="prior")
        found = law(DATA.model(sde), DATA.event, solver, path=where)
        assert torch.allclose(found.mean, expected.mean, atol=1e-9)
        assert torch.allclose(found.covariance, expected.covariance, atol=1e-9)


def test_samples_have_this_law():
    n, model = 20_000, DATA.model(VP())
    found = law(model, (3,), "ddpm", 4, "t", end="stop")
    x = sample(model, (n, 3), "ddpm", 4, "t", end="stop", progress=False, dtype=torch.float64).x
    deviation = found.covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - found.mean).abs() < 5 * deviation / math.sqrt(n)).all())
    # The standard error of a covariance of Gaussians is at most sqrt(2) times the product of the deviations over sqrt(n).
    bound = 5 * math.sqrt(2 / n) * torch.outer(deviation, deviation)
    assert bool(((x.T.cov() - found.covariance).abs() < bound).all())


def test_a_start_and_a_projection_are_pushed_through():
    sde, truth = VP(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    path = make_path(sde, "lam", 20)
    alpha, sigma = path.points[0].alpha, path.points[0].sigma
    marginal = Moments(alpha * DATA.mean, alpha**2 * DATA.covariance + sigma**2 * torch.eye(3, dtype=torch.float64))
    found = law(DATA.model(sde), (3,), "heun", path=path, start=marginal)
    expected = moments("heun", path, DATA.mean, DATA.covariance)
    assert torch.allclose(found.covariance, expected.covariance, atol=1e-9)

    def fix(x, t):
        return torch.cat([truth[:1].expand(len(x), 1), x[:, 1:]], 1)

    found = law(DATA.model(sde), (3,), "ddpm", path=path, project=fix)
    assert float(found.mean[0]) == 1 and float(found.covariance[0].abs().max()) < 1e-15


class Bent(Wrapper):
    def __init__(self, model, size):
        super().__init__(model)
        self.size = size

    def x0(self, x, t, **conditions):
        m = self.model.x0(x, t, **conditions)
        return m + self.size * torch.sin(m)


class Normalised(Wrapper):
    def x0(self, x, t, **conditions):
        m = self.model.x0(x, t, **conditions)
        return m + 0.1 * (1 - m) / (1 - m).norm(dim=1, keepdim=True)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "heun"])
@pytest.mark.parametrize(
    "model",
    [problems.ring().model(VP()), Bent(problems.gaussian().model(VP()), 1e-6), Normalised(problems.gaussian().model(VP()))],
    ids=["mixture", "bent a little", "normalised"],
)
def test_what_is_not_affine_is_refused(model, solver):
    with pytest.raises(ValueError, match="not affine"):
        law(model, (2,), solver, 10)


def test_solvers_that_are_not_affine_are_refused():
    model = problems.gaussian().model(VP())
    with pytest.raises(ValueError, match="not affine"):
        law(model, (2,), "pc", 5)
    with pytest.raises(ValueError, match="chooses its steps"):
        law(model, (2,), "rk45")


def test_many_runs_are_made_in_parts(monkeypatch):
    model = DATA.model(VP())
    whole = law(model, (3,), "ddpm", 5)
    monkeypatch.setattr(sys.modules["scoresde.analysis.law"], "ROWS", 4)
    assert torch.allclose(law(model, (3,), "ddpm", 5).covariance, whole.covariance, atol=1e-14)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_distance_of_gaussians(d):
    draws = torch.Generator().manual_seed(d)
    a, b = (torch.randn(d, d, generator=draws, dtype=torch.float64) for _ in range(2))
    mean = torch.randn(d, generator=draws, dtype=torch.float64)
    one, two = Moments(mean, a @ a.T), Moments(torch.zeros(d).double(), b @ b.T)
    assert one.wasserstein(two) ** 2 == pytest.approx(
        float(gaussian_frechet_distance(one.mean, one.covariance, two.mean, two.covariance)), rel=1e-10
    )
    middle = scipy.linalg.sqrtm(
        scipy.linalg.sqrtm(one.covariance) @ two.covariance.numpy() @ scipy.linalg.sqrtm(one.covariance)
    )
    expected = float(mean.square().sum() + one.covariance.trace() + two.covariance.trace() - 2 * middle.real.trace())
    assert one.wasserstein(two) == pytest.approx(math.sqrt(expected), rel=1e-6)
    assert one.wasserstein(two) == pytest.approx(two.wasserstein(one), rel=1e-12)
    # Close covariances: the difference of traces would leave nothing of 1e-10.
    near = Moments(mean, (1 + 1e-10) ** 2 * one.covariance)
    assert one.wasserstein(near) == pytest.approx(1e-10 * float(one.covariance.trace().sqrt()), rel=1e-3)
    singular = Moments(mean, torch.diag(torch.tensor([1.0, *[0.0] * (d - 1)])).double())
    assert singular.wasserstein(singular) < 1e-12


def test_the_moments_of_a_problem():
    found = Moments.of(problems.textures(3))
    assert found.mean.shape == (9,) and torch.equal(found.covariance, problems.textures(3).covariance)
