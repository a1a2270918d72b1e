"""The solver that chooses, its spacing and its end, against formulas and against the flow solved to 1e-10."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SDES, generator, mixture, model_on, rms

import scoresde
from scoresde import DDPM, VP, RectifiedFlow, compare, problems, sample, solvers
from scoresde.analysis import law
from scoresde.sampling.plan import plan
from scoresde.sampling.reference import flow_end
from scoresde.sde import FunctionSDE, GaussianSDE, GeneralSDE
from scoresde.solvers import PATHS, Arctan, Path, Row, make_path

F64 = torch.float64
AUTO = solvers.auto()
EDGES = sorted({s for c in AUTO.choices for s in (c.steps, c.steps - 1) if s} | {2, 3, 40})
"""Numbers of steps at both ends of every row of the table."""


def prior(sde: GaussianSDE, n: int = 16) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator(3), dtype=F64) * float(sde.sigma(sde.span[1]))


# The spacing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@settings(max_examples=15)
@given(n=st.integers(3, 40), centre=st.floats(-1, 2), width=st.floats(0.5, 8))
def test_arctan_is_equidistant_in_the_arcus_tangens_of_lam(name: str, n: int, centre: float, width: float) -> None:
    sde = SDES[name]
    low, high = float(sde.time(-2.5)), float(sde.time(3.0))
    lam = np.array([float(sde.lam(t)) for t in Arctan(centre, width)(sde, n, low, high).tolist()])
    steps = np.diff(np.arctan((lam - centre) / width))
    np.testing.assert_allclose(
        steps, (math.atan((3 - centre) / width) - math.atan((-2.5 - centre) / width)) / (n - 1), rtol=1e-6
    )


def test_a_wide_arctan_is_even_in_lam_and_a_narrow_one_dense_at_its_centre() -> None:
    spacings = ("lam", Arctan(0.0, 1e4))
    even, wide = (torch.tensor([p.lam for p in make_path(VP(), s, 20, end="stop").points]) for s in spacings)
    torch.testing.assert_close(wide[1:], even[1:], atol=0.03, rtol=0)  # but for a start at -5.02 in place of -5
    lam = torch.tensor([p.lam for p in make_path(VP(), "arctan", 40, end="stop").points])
    shortest = lam[:-1][lam.diff().argmin()]
    assert abs(float(shortest) - 0.6) < 0.3 and float(lam.diff()[-1]) > 2 * float(lam.diff().min())


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_a_width_that_is_not_positive_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="expected a finite and a positive number"):
        Arctan(width=width)


# The end ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["velocity-1", "velocity-3", "abm-2", "abm-4", "lms", "ipndm-v-3: variant='exact'"])
@pytest.mark.parametrize("name", SDES)
def test_the_step_to_the_clean_data_integrates_the_polynomial_through_the_newest_nodes(solver: str, name: str) -> None:
    """To tau = 0 or rho = 0, by NumPy's polynomials and not by the exponential integrals of the solvers."""
    sde = SDES[name]
    path = make_path(sde, "lam", 7, t_max=float(sde.time(-3.0)), t_min=float(sde.time(3.0)), end="extrapolate")
    method = solvers.get(solver)
    assert isinstance(method, solvers.RowSolver)
    row = method.rows(path)[-1]
    assert isinstance(row, Row) and row.to.sigma == 0 and row.ends_step
    rho = solver[:1] in "li"
    clock = [math.exp(-p.lam) if rho else 1 / (1 + math.exp(p.lam)) for p in reversed(path.points[:-1])]
    order = int(solver[-1]) if solver[-1].isdigit() else 4 if solver == "lms" else 3
    u, wanted = path.points[-2], []
    for j in range(order):
        basis = np.polynomial.Polynomial([1.0])
        for i in range(order):
            if i != j:
                basis *= np.polynomial.Polynomial([-clock[i], 1.0]) / (clock[j] - clock[i])
        wanted.append(-float(basis.integ()(clock[0]) - basis.integ()(0.0)))
    np.testing.assert_allclose(row.w[:order], wanted, rtol=1e-7, atol=1e-12)
    assert not any(row.w[order:]) and row.a == pytest.approx(1 / (u.alpha if rho else u.alpha + u.sigma), rel=1e-12)


def test_extrapolation_ends_closer_than_either_other_end_on_smooth_data_and_on_points() -> None:
    """By a factor of sigma: the data prediction is off by sigma^2 / 2 times the score, the flow by sigma on points."""
    sde, steps = VP(), 60
    cases = {"smooth": mixture(), "points": problems.Empirical(torch.tensor([[1.0, 0.0], [-0.5, 0.8]], dtype=F64))}
    errors: dict[str, dict[str, float]] = {}
    for name, problem in cases.items():
        model, x = problem.model(sde), prior(sde, 6)
        end = flow_end(model, x, make_path(sde, "lam", 2), to="data", tolerance=1e-8).x
        errors[name] = {
            e: rms(sample(model, x, "auto", steps, "arctan", end=e, progress=False).x - end)
            for e in ("denoise", "flow", "extrapolate")
        }
    assert errors["smooth"]["extrapolate"] < 0.2 * errors["smooth"]["denoise"], errors
    assert errors["points"]["extrapolate"] < 0.02 * errors["points"]["flow"], errors


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "ddim", "dopri5", "unipc-3", "sde-dpmpp-2m", "pc", "rk45", "deis-3"])
def test_other_solvers_refuse_to_extrapolate(solver: str) -> None:
    with pytest.raises(ValueError, match=r"got end='extrapolate'.*expected end='denoise' or 'flow'"):
        sample(model_on(VP()), (2, 2), solver, 4, end="extrapolate", progress=False)


def test_nodes_that_all_but_coincide_are_not_extrapolated_through() -> None:
    sde, x = VP(), prior(VP(), 4)
    times = torch.tensor(make_path(sde, "lam", 12).times[:-1], dtype=F64)
    twice = torch.cat([times[:-1], times[-1:] * (1 + 1e-5), times[-1:]])
    ends = []
    for t in (times, twice):
        path = Path(sde, Path.from_times(sde, torch.cat([t, torch.zeros(1)])).points, "extrapolate")
        ends.append(sample(model_on(sde), x, "abm-4", path=path, progress=False).x)
    assert rms(ends[1] - ends[0]) < 1e-3


# The choice -------------------------------------------------------------------------------------------------------------


def test_the_table_begins_at_one_step_and_rises() -> None:
    for solver in (solvers.auto(), solvers.auto_sde()):
        starts = [choice.steps for choice in solver.choices]
        assert starts[0] == 1 and starts == sorted(set(starts))
        assert all(c.cut >= 0 and c.solver.stochastic == solver.stochastic for c in solver.choices)
        assert all(c.solver.description.evaluations == 1 for c in solver.choices)
        last = solver.choices[-1].solver.description
        assert (solver.description.order, solver.description.weak_order) == (last.order, last.weak_order)


@pytest.mark.parametrize("solver", ["auto", "auto-sde"])
@pytest.mark.parametrize("name", [*SDES, "chain"])
def test_what_runs_is_the_choice_on_its_own_path_and_costs_one_evaluation_a_step(solver: str, name: str) -> None:
    sde = DDPM().sde() if name == "chain" else SDES[name]
    method, model = solvers.get(solver), mixture().model(sde)
    assert isinstance(method, solvers.Chooser)
    for steps in (1, 2, 5, 10, 33):
        got = sample(model, (3, 2), solver, steps, dtype=F64, progress=False)
        path = method.own_path(sde, steps)
        choice = method.choice(steps)
        wanted = sample(model, (3, 2), choice.solver, path=path, dtype=F64, progress=False)
        assert torch.equal(got.x, wanted.x) and got.solver == wanted.solver == choice.solver.name
        assert got.evaluations == steps == len(path) and got.times == wanted.times
        assert got.times[0] == sde.span[1] and path.end == ("denoise" if method.stochastic else "extrapolate")


@pytest.mark.parametrize("steps", EDGES)
def test_a_row_of_the_table_serves_from_its_number_of_steps_on(steps: int) -> None:
    below = [c for c in AUTO.choices if c.steps <= steps]
    assert AUTO.choice(steps) is below[-1]
    assert sample(model_on(VP()), (2, 2), steps=steps, progress=False).solver == below[-1].solver.name


def test_auto_is_the_default_of_everything_that_samples() -> None:
    model, x = mixture().model(VP()), prior(VP())
    one, two = (sample(model, x, *how, steps=9, progress=False) for how in ((), ("auto",)))
    assert torch.equal(one.x, two.x) and one.solver == "abm-3"
    assert scoresde.sampling.sdedit(model, x, 0.5, steps=9).solver == "abm-3"
    gaussian = problems.gaussian()
    assert law(gaussian.model(VP()), (2,), steps=9).covariance.shape == (2, 2)


def test_a_path_of_the_user_keeps_the_choice_of_the_solver_and_an_end_of_the_user_is_taken() -> None:
    model, x = mixture().model(VP()), prior(VP())
    for path in ("t", "lam", "karras", PATHS["quadratic"], [1.0, 0.6, 0.3, 0.1, 0.0], make_path(VP(), "lam", 7)):
        got = sample(model, x, "auto", 6, path, progress=False)
        assert got.solver == AUTO.choice(len(got.times) - 1).solver.name
        where = path if isinstance(path, Path | list) else make_path(VP(), path, 6, end="extrapolate")
        assert torch.equal(got.x, sample(model, x, got.solver, path=where, progress=False).x)
    for end in ("denoise", "flow", "stop"):
        got = sample(model, x, steps=6, end=end, progress=False)
        wanted = AUTO.own_path(VP(), 6, end=end)
        assert got.times == wanted.times and wanted.end == end
        assert wanted.points[-1 if end == "stop" else -2].t == VP().span[0]  # no sooner than asked for
    assert sample(model, x, steps=6, t_min=0.02, progress=False).times[-2] == 0.02


@pytest.mark.parametrize("name", SDES)
def test_short_spans_are_sampled_too(name: str) -> None:
    sde = SDES[name]
    for lam in (-1.0, 1.5):
        t = float(sde.time(lam))
        x = sde.perturb(mixture().sample(4, generator(), dtype=F64), t, torch.randn(4, 2, generator=generator(1), dtype=F64))
        for steps in (1, 5, 12):
            got = sample(model_on(sde), x, steps=steps, t_max=t, progress=False)
            lams = [float(sde.lam(s)) for s in got.times[:-1]]
            assert lams == sorted(lams) and got.evaluations == steps and bool(torch.isfinite(got.x).all())


def test_settings_and_rows_do_not_depend_on_what_ran_before() -> None:
    """The plan of a call by name is kept, and another number of steps, end or path is another plan."""
    sde = VP()
    how = [(8, None, None), (9, None, None), (8, None, "flow"), (8, "lam", None)]
    plans = [plan("auto", AUTO, sde, path, steps, None, None, end) for steps, path, end in how]
    again = [plan("auto", AUTO, sde, path, steps, None, None, end) for steps, path, end in how]
    assert all(a is b for a, b in zip(plans, again, strict=True))
    assert len({(*p.times, p.end) for p, _ in plans}) == len(how)


# Accuracy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", SDES)
def test_the_default_is_several_times_closer_to_the_end_of_the_flow_than_dpmpp_2m(name: str) -> None:
    """From x at the prior to x(0), on every SDE; the bounds leave a factor of two and more."""
    sde, problem = SDES[name], problems.random_mixture(4, 6, 2, seed=8, noise=0.2)
    model = problem.model(sde)
    t = sde.span[1] if math.isfinite(float(sde.lam(sde.span[1]))) else float(sde.time(-5.0))
    x = torch.randn(12, 4, generator=generator(2), dtype=F64) * float(sde.sigma(t))
    end = flow_end(model, x, make_path(sde, "lam", 2, t_max=t), to="data", tolerance=1e-8).x
    for steps, bound in ((8, 0.5), (16, 0.25), (50, 0.1)):
        mine, named = (
            rms(sample(model, x, solver, steps, t_max=t, end=e, progress=False).x - end)
            for solver, e in (("auto", None), ("dpmpp-2m", "flow"))
        )
        assert mine < bound * named, (steps, mine, named)


# Elsewhere --------------------------------------------------------------------------------------------------------------


def test_an_sde_without_marginals_is_sampled_by_heuns_method() -> None:
    sde = GeneralSDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), t_max=2.0, std=math.sqrt(0.5))
    model = scoresde.ScoreModel(lambda x, t: -x / 0.5, sde, "score")
    found = {s: sample(model, (4, 2), s, steps=6, progress=False) for s in ("auto", "auto-sde")}
    assert found["auto"].solver == "heun" and found["auto-sde"].solver == "euler-maruyama"
    assert torch.equal(found["auto"].x, sample(model, (4, 2), "heun", steps=6, progress=False).x)
    with pytest.raises(ValueError, match="end"):
        sample(model, (4, 2), end="extrapolate", progress=False)


def test_a_comparison_measures_it_on_its_own_path_from_the_end_of_the_flow() -> None:
    found = compare("gaussian", ["auto", "abm-3"], [8, 12], ["lam", "karras"], ["rms"], n=8, progress=False)
    (mine,) = found.select(solver="auto", budget=8)
    assert mine.path == "own" and mine.steps == mine.evaluations == 8 and not mine.error
    problem = problems.gaussian()
    assert {r.path for r in found.records if r.solver == "abm-3"} == {"lam", "karras"}
    assert mine.value < min(r.value for r in found.select(solver="abm-3", budget=8))
    stopped = compare(problem, ["auto"], [8], metrics=["rms"], n=8, end="stop", progress=False).records[0]
    assert not stopped.error and stopped.value < 0.1


def test_rectified_flow_starts_at_alpha_zero() -> None:
    got = sample(mixture().model(RectifiedFlow()), (200, 2), steps=10, dtype=F64, progress=False)
    assert got.times[0] == 1.0 and got.evaluations == 10
    assert abs(float(got.x.mean()) - float(mixture().mean.mean())) < 0.15


def test_a_schedule_of_the_user_is_sampled() -> None:
    sde = FunctionSDE(lambda t: 0 * t, lambda t: torch.log(t), t_min=0.01, t_max=10.0)
    assert sample(mixture().model(sde), (4, 2), progress=False).evaluations == 20
