"""Underdamped Langevin corrections: their stationary law in closed form, their limit, their gain."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SDES, BasisNoise, LinearModel, finite_start, generator, model_on, propagate

from scoresde import VE, VP, ScoreModel, sample, solvers
from scoresde.solvers import FreshNoise, Path, Row, RowSolver, make_path

F64 = torch.float64


def corrections(count: int, step: float, friction: float, sde: VE, t: float) -> list[Row]:
    """The rows of one correction at ``t``, alone."""
    path = Path.from_times(sde, [finite_start(sde), t])
    rows = solvers.underdamped_corrector(solvers.ddim(), count, step, friction).rows(path)
    assert len(rows) == 1 + count and all(isinstance(row, Row) for row in rows)
    return rows[1:]  # type: ignore[return-value]


def run_alone(rows: list[Row], sde: VE, mean: float, std: float, start: tuple[float, float]) -> tuple[float, float]:
    """Exact mean and variance after ``rows`` on data N(mean, std^2), from a start of this mean and deviation."""
    x = torch.zeros(1, 2 + len(rows), dtype=F64)
    x[0, 0], x[0, 1] = start
    *_, last = solvers.readable(rows, LinearModel(sde, mean, std), x, BasisNoise())
    return float(last.x[0, 0]), float(last.x[0, 1:].square().sum())


@given(
    std=st.floats(0.0, 3.0),
    mean=st.floats(-2, 2),
    count=st.integers(1, 8),
    step=st.floats(0.05, 1.8),
    friction=st.floats(0, 5),
    name=st.sampled_from(sorted(SDES)),
    fraction=st.floats(0.1, 0.9),
)
@settings(deadline=None)
def test_it_leaves_exactly_one_gaussian_unchanged(
    std: float, mean: float, count: int, step: float, friction: float, name: str, fraction: float
) -> None:
    """With the variance V of the noised data, V / (1 - h^2 sigma^2 / 4V), whatever friction and number of steps."""
    sde = SDES[name]
    t = fraction * finite_start(sde)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    v = alpha**2 * std**2 + sigma**2
    kept = v / (1 - step**2 * sigma**2 / (4 * v))
    start = alpha * mean, math.sqrt(kept)
    rows = corrections(count, step, friction, sde, t)  # type: ignore[arg-type]
    got = run_alone(rows, sde, mean, std, start)  # type: ignore[arg-type]
    assert got[0] == pytest.approx(alpha * mean, rel=1e-9, abs=1e-9 * math.sqrt(v))
    assert got[1] == pytest.approx(kept, rel=1e-9)


@pytest.mark.parametrize(("friction", "count"), [(0.3, 3), (1.0, 5), (5.0, 1)])
def test_it_converges_to_that_gaussian_from_another(friction: float, count: int) -> None:
    rows = corrections(count, 0.8, friction, VE(), 0.4) * 300
    sigma2 = float(VE().sigma(0.4)) ** 2
    v = 0.25 + sigma2
    mean, variance = run_alone(rows, VE(), 0.7, 0.5, (5.0, 3.0))
    assert mean == pytest.approx(0.7, rel=1e-6)
    assert variance == pytest.approx(v / (1 - 0.64 * sigma2 / (4 * v)), rel=1e-6)


@pytest.mark.parametrize("name", ["VP", "VE", "RectifiedFlow"])
def test_with_infinite_friction_it_is_overdamped(name: str) -> None:
    """Row for row the step of annealed Langevin dynamics with r = h^2, composed by hand where it looks back."""
    sde, t, h = SDES[name], 0.5 * finite_start(SDES[name]), 0.6
    (row,) = corrections(1, h, math.inf, sde, t)  # type: ignore[arg-type]
    annealed = solvers.annealed_langevin(1, step=h**2).rows(Path.from_times(sde, [t, 0.5 * t]))[0]
    assert isinstance(annealed, Row)
    assert (row.a, row.at, row.to) == (annealed.a, annealed.at, annealed.to)
    assert row.w[0] * row.p == pytest.approx(annealed.w[0] * annealed.p, rel=1e-12)
    assert row.w[0] * row.q == pytest.approx(annealed.w[0] * annealed.q, rel=1e-12)
    assert row.s[0] == pytest.approx(annealed.s[0], rel=1e-12)
    many = corrections(6, h, math.inf, sde, t)  # type: ignore[arg-type]
    for start in ((2.0, 0.3), (-1.0, 4.0)):
        one = run_alone([row] * 6, sde, 0.2, 0.7, start)  # type: ignore[arg-type]
        assert run_alone(many, sde, 0.2, 0.7, start) == pytest.approx(one, rel=1e-10)  # type: ignore[arg-type]


def test_a_row_is_the_splitting_with_its_velocity() -> None:
    """O B A B O, as the papers write it, on a mixture and with the same noise."""
    sde, t, h, gamma, n = VP(), 0.3, 0.7, 0.9, 4
    model, x = model_on(sde), torch.randn(5, 2, generator=generator(), dtype=F64)
    rows = corrections(n, h, gamma, sde, t)  # type: ignore[arg-type]
    *_, last = solvers.readable(rows, model, x, FreshNoise(range(5), x.device))  # type: ignore[arg-type]
    noise, sigma = FreshNoise(range(5), x.device), float(sde.sigma(t))
    v = noise.normal(torch.empty_like(x))
    for k in range(n):
        v = v + 0.5 * h * sigma * model.score(x, t)
        x = x + h * sigma * v
        v = v + 0.5 * h * sigma * model.score(x, t)
        if k + 1 < n:
            v = math.exp(-gamma * h) * v + math.sqrt(1 - math.exp(-2 * gamma * h)) * noise.normal(torch.empty_like(x))
    torch.testing.assert_close(last.x, x, rtol=1e-10, atol=1e-10)


def test_a_velocity_crosses_a_wide_direction_in_a_tenth_of_the_evaluations() -> None:
    """Both have the same bias; deviations 1 and 10 in units of sigma, and a start that is off by one of them."""
    sde, t, h = VE(), 0.4, 0.4
    sigma = float(sde.sigma(t))
    std = sigma * math.sqrt(99)
    goal = 100 * sigma**2 / (1 - h**2 / 400)

    def error(count: int, friction: float, rounds: int) -> float:
        rows = corrections(count, h, friction, sde, t) * rounds
        mean, variance = run_alone(rows, sde, 0.0, std, (10 * sigma, 0.0))
        return max(abs(mean) / (10 * sigma), abs(variance / goal - 1))

    underdamped, overdamped = error(200, 0.2, 1), error(1, math.inf, 2000)
    assert underdamped < 0.01 < 0.1 < overdamped
    assert error(200, 0.2, 1) < error(200, 2.0, 1) and error(200, 0.2, 1) < error(200, 0.0, 1), "critical damping is best"


@pytest.mark.parametrize("name", ["dpmpp-3m", "unipc-3", "dpm-3", "ddpm", "sde-dpmpp-2s", "pndm"])
def test_the_predictor_keeps_its_own_history(name: str) -> None:
    """Corrections so short that they do nothing leave the predictor's result, although they stand between its rows."""
    base = solvers.get(name)
    assert isinstance(base, RowSolver)
    corrected = solvers.underdamped_corrector(base, 2, 1e-9)
    path = make_path(VP(), "lam", 6, t_min=0.01)

    class Apart(FreshNoise):
        """Draws of the corrections do not take from those of the predictor."""

        def __call__(self, start: object, to: object, out: torch.Tensor, kernel: float = 0.0) -> torch.Tensor:
            return out.zero_() if start == to else self.normal(out)

    x = torch.randn(4, 2, generator=generator(), dtype=F64)
    ends = [solvers.fast(s.rows(path), model_on(VP()), x, Apart(range(4), x.device)) for s in (base, corrected)]  # type: ignore[arg-type]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-7)


def test_a_correction_after_a_bad_predictor_repairs_the_marginal() -> None:
    """On Gaussian data, exactly; and more of them repair more."""
    path, truth = make_path(VP(), "lam", 8, t_min=0.3, end="stop"), 0.6
    end = path.points[-1]
    exact = end.alpha**2 * truth**2 + end.sigma**2

    def error(solver: solvers.RowSolver) -> float:
        return abs(propagate(solver, path, 0.0, truth)[1] - exact) / exact

    bare = error(solvers.euler_maruyama())
    few, many = (error(solvers.underdamped_corrector(solvers.euler_maruyama(), n, 0.2)) for n in (3, 30))
    assert many < 0.2 * bare and many < few < bare


@pytest.mark.parametrize("driver", ["readable", "differentiable", functools.partial(solvers.compiled, backend="eager")])
def test_corrections_follow_steps_with_learned_noise_too(driver: object) -> None:
    net = ScoreModel(lambda x, t: torch.cat([0.1 * x, 0 * x], 1), VP(), learned_variance=True)
    base = solvers.ancestral("learned")
    for corrected in (solvers.underdamped_corrector(base, 2), solvers.predictor_corrector(base)):
        assert sum(not row.ends_step for row in corrected.rows(make_path(VP(), "t", 5))) == 4
        ends = [sample(net, (3, 2), corrected, 5, driver=d, progress=False, dtype=F64).x for d in ("fast", driver)]  # type: ignore[arg-type]
        torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"predictor": solvers.dormand_prince()}, "expected a solver that makes rows"),
        ({"corrections": 0}, "got corrections=0; expected a whole number of at least 1"),
        ({"step": 2.0}, "got step=2.0; expected a number between 0 and 2"),
        ({"friction": -1.0}, "got friction=-1.0; expected a number of at least 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        solvers.underdamped_corrector(**kwargs)  # type: ignore[arg-type]


def test_rows_keep_the_predictors_claims() -> None:
    method = solvers.underdamped_corrector(replace(solvers.heun()), 4)
    assert method.description.evaluations == 6 and method.stochastic
