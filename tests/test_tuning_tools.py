"""Tools of papers: DPM-Solver-v3 against its authors' code, mid-points, the optimal variance, each with a closed form."""

import json
import math
import pickle

import pytest
import torch
from support import SDES, generator, mixture, rms
from torch import Tensor

import scoresde
from scoresde import VP, ScoreModel, problems, sample, solvers, tuning
from scoresde.analysis import law
from scoresde.base.identity import digest
from scoresde.comparison import flow_end
from scoresde.solvers.fitted import GeneralLinear, Midpoints, MidpointSteps, Statistics
from scoresde.solvers.path import Path, make_path
from scoresde.solvers.updates import evaluations

F64 = torch.float64

# DPM-Solver-v3 ----------------------------------------------------------------------------------------------------------

# Computed with the authors' DPM_Solver_v3 (https://github.com/thu-ml/DPM-Solver-v3, codebases/score_sde) in float64, for the
# statistics and the network below: steps, times, order, p_pseudo, use_corrector, c_pseudo, lower_order_final.
PUBLISHED = {
    (5, "lam", 1, 0, 0, 0, 0): [2.982476677, -5.5623444137, -2.1269078328, 2.5515060669],
    (5, "lam", 2, 0, 0, 0, 1): [-1.5750693945, 3.8386036196, 1.4801179193, -2.6135542763],
    (5, "lam", 3, 0, 0, 0, 0): [14.6303251617, -12.9538723913, -11.8140532892, 5.0679409392],
    (5, "lam", 3, 1, 0, 0, 1): [1.7358267697, 2.5541320481, -0.0433610037, -1.9653816275],
    (5, "lam", 2, 0, 1, 0, 0): [4.6771654502, -5.7967192523, -4.5401800514, 2.6001072364],
    (5, "lam", 3, 0, 1, 0, 1): [-0.7690583525, -3.2997982894, 0.6446479857, 1.5636289814],
    (5, "lam", 3, 1, 1, 1, 1): [3.2603430743, -8.0485642024, -2.0230755573, 3.8514142108],
    (5, "lam", 2, 0, 1, 1, 0): [7.1253213616, -8.4542817611, -4.7771257856, 4.1027319533],
    (7, "t", 2, 0, 0, 0, 1): [-0.1148343097, 0.3065885003, 0.7655423616, 1.0362264134],
    (7, "t", 3, 1, 0, 0, 1): [1.1863571513, -0.5884905774, 1.1220765519, 1.0882228296],
    (7, "t", 3, 0, 1, 0, 1): [-0.0233753663, -1.2383029817, -0.1442679911, 1.4803627159],
    (7, "t", 3, 1, 1, 1, 1): [0.6868189332, -0.8114790248, 0.9705103174, 1.4662005187],
}


def made_up(n: int = 60) -> Statistics:
    lam = torch.linspace(float(VP().lam(1.0)), float(VP().lam(1e-3)), n + 1, dtype=F64)
    x, k = lam[:, None, None, None], torch.arange(2).reshape(1, 1, 1, 2)
    linear = 1 / (1 + (2 * x).exp()) * (0.8 + 0.1 * k) + 0.05
    return Statistics(lam, linear, 0.3 * torch.sin(x + k), 0.2 * torch.cos(2 * x - k))


class MadeUp(ScoreModel):
    def x0(self, x: Tensor, t: object, **conditions: object) -> Tensor:
        t = torch.as_tensor(t, dtype=F64)
        return (x - self.sde.sigma(t) * (0.8 * x + 0.3 * torch.sin(2 * x + 3 * t))) / self.sde.alpha(t)


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_dpm_solver_v3_is_its_authors(case: tuple[int, str, int, int, int, int, int]) -> None:
    steps, path, nodes, *flags = case
    solver = GeneralLinear(made_up(), nodes, *map(bool, flags), any_model=True)
    x = torch.tensor([[[[0.7, -1.2]]], [[[-0.4, 0.3]]]], dtype=F64)
    model = MadeUp(None, VP())
    found = sample(model, x, solver, steps, path, end="stop", progress=False)
    assert found.evaluations == steps
    assert found.x.flatten().tolist() == pytest.approx(PUBLISHED[case], rel=1e-6, abs=1e-6)
    for driver in ("readable", "differentiable"):
        other = sample(model, x, solver, steps, path, end="stop", driver=driver, progress=False)
        torch.testing.assert_close(other.x, found.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "CosineVP", "RectifiedFlow"])
def test_one_step_is_exact_for_gaussian_data_with_a_diagonal_covariance(name: str) -> None:
    """Up to the trapezoids over the grid, whose error falls with the square of its interval."""
    sde = SDES[name]
    model = problems.Gaussian([1.0, -0.5], [[0.5, 0.0], [0.0, 2.0]]).model(sde)
    first = sde.span[1] if math.isfinite(float(sde.lam(sde.span[1]))) else float(sde.time(-5.0))
    x = torch.randn(8, 2, generator=generator(), dtype=F64) * float(sde.sigma(first))
    assert model.moments is not None
    end, errors = model.moments.flow(x, sde, first, sde.span[0]), []
    for grid in (50, 100):
        solver = tuning.dpm_solver_v3(model, (4, 2), grid=grid)
        assert solver.statistics is not None and float(solver.statistics.growth.abs().max()) == 0  # f is one number
        path = make_path(sde, "lam", 1, t_max=first, end="stop")
        found = sample(model, x, solver, path=path, progress=False)
        assert found.evaluations == 1
        errors.append(rms(found.x - end))
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("linear", "growth", "names"),
    [(1.0, 0.0, ("ddim", "dpmpp-2m")), (0.0, -1.0, ("ddim", "dpm-2m"))],
    ids=["data", "noise"],
)
def test_with_constant_statistics_it_interpolates_the_data_or_the_noise_prediction(
    linear: float, growth: float, names: tuple[str, str]
) -> None:
    """Up to the trapezoids over the grid."""
    sde, model, x = VP(), mixture().model(VP()), torch.randn(4, 2, generator=generator(), dtype=F64)
    for nodes, name in ((1, names[0]), (2, f"{names[1]}: variant='exact', finish='lower-order'")):
        given: tuple[Path] = (make_path(sde, "lam", 8, end="stop"),)
        wanted, errors = sample(model, x, name, path=given[0], progress=False).x, []
        for n in (400, 800):
            lam = torch.linspace(float(sde.lam(1.0)), float(sde.lam(1e-3)), n + 1, dtype=F64)
            zero = torch.zeros(n + 1, 2, dtype=F64)
            known = Statistics(lam, zero + linear, zero + growth, zero)
            solver = GeneralLinear(known, nodes, corrector=False, any_model=True)
            errors.append(rms(sample(model, x, solver, path=given[0], progress=False).x - wanted))
        assert errors[1] < 1e-2 and errors[0] / errors[1] == pytest.approx(4, rel=0.1), (name, errors)


def test_statistics_are_averages_along_trajectories() -> None:
    """l by the whole Jacobian, and s and b by least squares, at one point of the grid, from trajectories solved apart."""
    sde, model = VP(), mixture().model(VP())
    x = torch.randn(40, 2, generator=generator(), dtype=F64)
    known = tuning.linear_statistics(model, x, grid=100, probes=40)
    i, h = 45, float(known.lam.diff().mean())
    f = []
    for j in (i - 1, i, i + 1):
        t = float(sde.time(known.lam[j]))
        y = flow_end(model, x, make_path(sde, [1.0, t], end="stop"), tolerance=1e-8).x
        jacobian = torch.func.vmap(torch.func.jacrev(lambda z, t=t: model.eps(z[None], t)[0]))(y)
        diagonal = float(sde.sigma(t)) * jacobian.diagonal(dim1=1, dim2=2).mean(0)
        torch.testing.assert_close(known.linear[j], diagonal, rtol=0.05, atol=0.01)
        f.append((float(sde.sigma(t)) * model.eps(y, t) - known.linear[j] * y) / float(sde.alpha(t)))
    slope = (f[2] - f[0]) / (2 * h)
    for k in (0, 1):
        line = torch.stack([f[1][:, k], torch.ones(40, dtype=F64)], 1)
        growth, constant = torch.linalg.lstsq(line, slope[:, k]).solution.tolist()
        assert float(known.growth[i, k]) == pytest.approx(growth, abs=0.02)
        assert float(known.constant[i, k]) == pytest.approx(constant, abs=0.02)


def test_dpm_solver_v3_belongs_to_its_model_and_its_grid() -> None:
    model = problems.ring().model(VP())
    solver = tuning.dpm_solver_v3(model, (16, 2), grid=30)
    back = pickle.loads(pickle.dumps(solver))
    x = torch.randn(3, 2, generator=generator(), dtype=F64)
    assert torch.equal(sample(model, x, back, 6, progress=False).x, sample(model, x, solver, 6, progress=False).x)
    assert digest(back) == digest(solver)
    for end in ("denoise", "flow"):
        assert sample(model, x, solver, 6, end=end, progress=False).evaluations == 6
    with pytest.raises(ValueError, match="not the model for which"):
        sample(problems.moons().model(VP()), x, solver, 6, progress=False)
    with pytest.raises(ValueError, match="expected fewer steps, or statistics on a finer grid"):
        sample(model, x, solver, 60, progress=False)
    with pytest.raises(ValueError, match="expected t_max and t_min between those of the statistics"):
        sample(model, x, solver, 6, t_min=1e-5, progress=False)
    with pytest.raises(ValueError, match="driver 'parallel' cannot run"):
        sample(model, x, solver, 6, driver="parallel", progress=False)
    lam = torch.tensor([0.0, 1.0, 3.0])
    for wrong in (
        lambda: GeneralLinear(any_model=True),
        lambda: GeneralLinear(made_up(), 4),
        lambda: Statistics(lam, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2)),
        lambda: Statistics(lam[:2], torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 3)),
        lambda: Statistics(lam[:2], torch.zeros(2, 2), torch.zeros(2, 2), torch.full((2, 2), math.nan)),
        lambda: tuning.linear_statistics(model, (4, 2), grid=1),
    ):
        with pytest.raises(ValueError, match=r"^got .*; expected"):
            wrong()


# Mid-points -------------------------------------------------------------------------------------------------------------


def untouched(path: Path, places: float = 0.5, scales: float = 1.0) -> Midpoints:
    points, n = path.points[:-1], len(path)
    logs = tuple(p.log_alpha for p in points), tuple(p.log_sigma for p in points)
    return Midpoints(
        (MidpointSteps(path.times[:-1], *logs, (places,) * (n - 1), (scales,) * (n - 1), 0.1, 0.2, 0.3),), any_model=True
    )


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "SubVP"])
def test_the_middle_and_a_scale_of_one_are_dpm_solver_2(name: str) -> None:
    sde = SDES[name]
    path, model = make_path(sde, "karras", 5), mixture().model(sde)
    x = torch.randn(4, 2, generator=generator(), dtype=F64) * float(sde.sigma(sde.span[1]))
    found = sample(model, x, untouched(path), 5, progress=False)
    wanted = sample(model, x, "dpm-2", path=path, progress=False)
    torch.testing.assert_close(found.x, wanted.x, rtol=1e-9, atol=1e-9)
    assert found.evaluations == wanted.evaluations == 9 == evaluations(untouched(path).rows(path))


def test_a_gaussian_in_one_dimension_is_solved_exactly() -> None:
    """Its flow is a factor, and one scale can make the factor of a step any number."""
    model = problems.Gaussian([0.0], [[0.7]]).model(VP())
    solver = tuning.midpoints(model, 5, end="flow", starts=32, penalty=0.0, iterations=60, tolerance=1e-9, progress=False)
    one = solver.steps[0]
    assert one.held_out < 1e-6 and one.untuned > 1e-3


def test_a_fit_is_closer_on_starts_that_it_never_saw_and_the_copies_of_the_fit_are_the_solver() -> None:
    model = problems.ring().model(VP())
    solver = tuning.midpoints(model, 7, starts=128, tolerance=1e-6, iterations=10, progress=False)
    one = solver.steps[0]
    assert one.held_out < 0.3 * one.untuned and one.held_out < 1.3 * one.training
    noise = solvers.FreshNoise(solvers.sample_seeds(0, 256), torch.device("cpu"))
    x = noise.normal(torch.empty(256, 2, dtype=F64)).mul_(float(VP().sigma(1.0)))[192:]
    ends = flow_end(model, x, make_path(VP(), "lam", 2, end="denoise"), tolerance=1e-7).x
    assert rms(sample(model, x, solver, 4, progress=False).x - ends) == pytest.approx(one.held_out, rel=1e-3)


def test_mid_points_are_written_read_and_refused(tmp_path) -> None:
    model = problems.ring().model(VP())
    solver = untouched(make_path(VP(), "karras", 3), 0.4, 1.1)
    solver.write(tmp_path / "mine.json")
    for back in (solvers.get(str(tmp_path / "mine.json")), pickle.loads(pickle.dumps(solver))):
        assert back == solver and digest(back) == digest(solver)
    assert sample(model, (2, 2), str(tmp_path / "mine.json"), 3, progress=False).evaluations == 5
    strict = Midpoints(solver.steps, "another")
    with pytest.raises(ValueError, match="not the model for which"):
        sample(model, (2, 2), strict, 3, progress=False)
    with pytest.raises(ValueError, match="for a solver tuned for 3 steps; expected steps=3"):
        sample(model, (2, 2), solver, 4, progress=False)
    with pytest.raises(ValueError, match="stops before sigma = 0"):
        sample(model, (2, 2), solver, 3, end="stop", progress=False)
    with pytest.raises(ValueError, match="marginals differ"):
        sample(problems.ring().model(VP(beta_max=15.0)), (2, 2), solver, 3, progress=False)
    for change in ({"version": 0}, {"steps": [{}]}, {"steps": []}):
        (tmp_path / "bad.json").write_text(json.dumps({**solver.to_json(), **change}))
        with pytest.raises(ValueError, match=r"^got .*; expected"):
            solvers.get(str(tmp_path / "bad.json"))
    one = solver.steps[0]
    for wrong in ({"places": (0.5,)}, {"places": (0.5, 1.0)}, {"times": one.times[::-1]}, {"scales": (math.nan, 1.0)}):
        with pytest.raises(ValueError, match=r"^got .*; expected"):
            MidpointSteps(**{**vars(one), **wrong})
    for given in ({"evaluations": 6}, {"evaluations": 1}, {"end": "stop"}, {"starts": 2}):
        with pytest.raises(ValueError, match="expected"):
            tuning.midpoints(model, **{"evaluations": 5, **given}, progress=False)  # type: ignore[arg-type]


# The optimal variance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "SubVP"])
def test_the_law_of_isotropic_gaussian_data_is_exact_after_any_steps(name: str, eta: float) -> None:
    """Up to the spread of the measurement, and the start, whose variance is not that of the noised data."""
    sde, mean, variance = SDES[name], torch.tensor([0.3, -1.0], dtype=F64), 0.6
    model = problems.Gaussian(mean.tolist(), variance).model(sde)
    solver = tuning.optimal_variance(model, eta=eta, n=20_000, grid=200)
    for steps in (1, 2, 5):
        found = law(model, (2,), solver, steps, "lam", end="stop")
        low, high = ((float(sde.alpha(t)) ** 2, float(sde.sigma(t)) ** 2) for t in sde.span)
        wanted = low[0] * variance + low[1]
        start = high[1] / (high[0] * variance + high[1])
        assert found.covariance.diagonal().tolist() == pytest.approx([wanted] * 2, rel=0.02 + 2 * abs(1 - start))
        plain = law(model, (2,), solvers.ancestral(), steps, "lam", end="stop").covariance[0, 0]
        assert steps > 2 or eta < 1 or abs(float(plain) - wanted) > 0.2 * wanted


def test_the_measured_square_is_that_of_the_score() -> None:
    """It is measured as the error of the noise prediction, and known in closed form for Gaussian data."""
    sde, problem = VP(), problems.ring()
    model = problem.model(sde)
    found = tuning.squared_score(model, n=20_000, grid=100)
    for t in (1.0, 0.3, 0.05):
        eps = torch.randn(20_000, 2, generator=generator(8), dtype=F64)
        x = sde.perturb(problem.sample(20_000, generator(7), F64), t, eps)
        assert found(t) == pytest.approx(float(model.score(x, t).square().mean()), rel=0.03)
    assert pickle.loads(pickle.dumps(found)) == found
    found = tuning.squared_score(problems.Gaussian([1.0, 0.0], 0.7).model(sde), n=20_000, grid=100)
    for t in (1.0, 0.3, 0.01):  # what a step needs is 1 - sigma^2 Gamma, also where it is small
        alpha, sigma = float(sde.alpha(t)) ** 2, float(sde.sigma(t)) ** 2
        assert 1 - sigma * found(t) == pytest.approx(alpha * 0.7 / (alpha * 0.7 + sigma), rel=0.02)


@pytest.mark.parametrize("name", ["ring", "grid", "funnel"])
def test_the_noise_of_a_step_is_the_mean_square_of_what_its_mean_leaves(name: str) -> None:
    """That is the variance of least Kullback-Leibler divergence, here by pairs of the forward process."""
    sde, problem = VP(), problems.PROBLEMS[name]()
    model = problem.model(sde)
    solver = tuning.optimal_variance(model, n=20_000)
    g = generator(4)
    for u, v in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.2)):
        row = solver.rows(Path.from_times(sde, [u, v, 0.5 * v], "stop"))[0]
        data = problem.sample(20_000, g, F64)
        x_v = sde.perturb(data, v, torch.randn(data.shape, generator=g, dtype=F64))
        ratio = float(sde.alpha(u) / sde.alpha(v))
        spread = math.sqrt(float(sde.sigma(u)) ** 2 - (ratio * float(sde.sigma(v))) ** 2)
        x_u = ratio * x_v + spread * torch.randn(data.shape, generator=g, dtype=F64)
        left = x_v - row.a * x_u - row.w[0] * model.x0(x_u, u)  # type: ignore[attr-defined]
        assert row.s[0] ** 2 == pytest.approx(float(left.square().mean()), rel=0.04)  # type: ignore[attr-defined]
    back = pickle.loads(pickle.dumps(solver))
    assert sample(model, (4, 2), back, 5, progress=False).solver == "analytic-dpm"


def test_what_has_no_data_is_refused() -> None:
    net = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), VP())
    with pytest.raises(ValueError, match="without its data; expected data=samples"):
        tuning.optimal_variance(net)
    assert (
        sample(net, (2, 2), tuning.optimal_variance(net, data=torch.zeros(4, 2), grid=5), 3, progress=False).evaluations == 3
    )
    with pytest.raises(ValueError, match="eta"):
        tuning.optimal_variance(problems.ring().model(VP()), eta=2.0, n=8, grid=3)
