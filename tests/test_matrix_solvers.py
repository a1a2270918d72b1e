"""Solvers of SDEs with matrix coefficients: orders, exactness on Gaussian data, the scalar case, and the uses of sample."""

from __future__ import annotations

import functools

import pytest
import scipy.integrate
import torch
from torch import Tensor

import scoresde
from scoresde import VP, sample, solvers
from scoresde.problems import Gaussian
from scoresde.score import Wrapper
from scoresde.sde import CLD, Anisotropic, Blurring, LinearSDE, MatrixSDE, Subspace, ThirdOrderLangevin
from scoresde.solvers import MATRIX_SOLVERS, make_matrix_path, make_path, matrix_rows, stencil_rows
from scoresde.solvers.matrix.flow import root_of
from scoresde.solvers.matrix.prediction import MatrixData, MatrixNoise
from tests.support import covering, generator, mixture, mostly_slow, slopes

F64 = torch.float64
SDES: dict[str, MatrixSDE] = {
    "CLD": CLD(),
    "ThirdOrderLangevin": ThirdOrderLangevin(),
    "Blurring": Blurring((2,), blur=1.0),
    "Anisotropic": Anisotropic(torch.tensor([[2.0, 0.8], [0.8, 1.0]])),
    "LinearSDE": LinearSDE([[-1.0, 2.0], [-0.5, -1.5]], [[0.3, 0.0], [0.2, 1.1]], [[0.0, 0.0], [0.0, 0.5]], beta_max=4.0),
}
"""SDEs of data with two numbers; a new one is tested by being added here."""
MADE = {name: MATRIX_SOLVERS.make(name) for name in MATRIX_SOLVERS}
FLOW = [name for name, made in MADE.items() if not made.stochastic]
NOISY = [name for name, made in MADE.items() if made.stochastic]
every = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


def amid(sde: MatrixSDE) -> tuple[float, float]:
    """The times at which lam = 0 and lam = 1."""
    start, end = sde.time(torch.tensor([0.0, 1.0], dtype=F64)).tolist()
    return start, end


def times(sde: MatrixSDE, n: int) -> list[float]:
    """n + 1 times between these, even in lam."""
    found: list[float] = sde.time(torch.linspace(0, 1, n + 1, dtype=F64)).tolist()
    return found


# Orders --------------------------------------------------------------------------------------------------------------


@functools.cache
def end_of_flow(name: str) -> tuple[Tensor, Tensor]:
    """States amid the modes, and where the flow takes them, by SciPy's method of order 8 on the equation itself."""
    sde, model = SDES[name], mixture().model(SDES[name])
    (start, end), x0 = amid(sde), mixture().sample(4, generator(1), F64)
    z = sde.perturb(x0, start, torch.randn(sde.state_shape(x0.shape), generator=generator(2), dtype=F64))

    def slope(t: float, y: object) -> object:
        drift, noise = sde.rates(t)
        state = torch.as_tensor(y, dtype=F64).reshape(z.shape)
        return (sde.map(drift) * state - 0.5 * (sde.map(noise) * model.score(state, t))).flatten().numpy()

    found = scipy.integrate.solve_ivp(slope, (start, end), z.flatten().numpy(), "DOP853", rtol=1e-10, atol=1e-10)
    return z, torch.from_numpy(found.y[:, -1]).reshape(z.shape)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "sde"), covering(FLOW, SDES))
def test_the_flow_converges_with_the_declared_order(name, sde):
    z, expected = end_of_flow(sde)
    model, errors = mixture().model(SDES[sde]), []
    for steps in (12, 24):
        found = sample(model, z, name, path=times(SDES[sde], steps), end="stop", progress=False).x
        errors.append(float((found - expected).square().mean().sqrt()))
    assert abs(slopes(errors)[0] - MADE[name].description.order) < 0.25
    assert errors[1] < 0.05


class Affine:
    """A model of Gaussian data on affine forms: rows of coefficients, the first row of 1."""

    def __init__(self, model: scoresde.ScoreModel) -> None:
        self.model = model

    def at(self, times, *, device, dtype):
        def bind(t):
            def evaluate(x):
                found = self.model.x0(x, t)
                found[1:] -= self.model.x0(torch.zeros_like(x[:1]), t)
                return found

            return evaluate

        return [bind(t) for t in times.tolist()]


class Units:
    """Noise that is the next unit vectors instead of numbers, one for each number of a state."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __call__(self, start, to, out, kernel=0.0):
        size = out[0].numel()
        out.zero_()[self.next : self.next + size] = torch.eye(size, dtype=out.dtype).reshape(-1, *out.shape[1:])
        self.next += size
        return out


def law(problem: Gaussian, sde: MatrixSDE, t: float) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of the flattened states, by unit vectors through the marginal."""
    d = problem.event.numel()
    roots = torch.linalg.cholesky(problem.covariance).mT
    zero = torch.zeros(sde.state_shape((d, d)), dtype=F64)
    data = sde.perturb(roots, t, zero).flatten(1)
    size = zero[0].numel()
    noise = sde.perturb(torch.zeros(size, d, dtype=F64), t, torch.eye(size, dtype=F64).reshape(size, *zero.shape[1:]))
    return sde.perturb(problem.mean[None], t, zero[:1]).flatten(), data.mT @ data + noise.flatten(1).mT @ noise.flatten(1)


def moments(solver, sde: MatrixSDE, problem: Gaussian, path, start) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of a solver's last state, from the Gaussian ``start``."""
    rows = solver.rows(path)
    size = len(start[0])
    draws = sum(row.draws for row in rows)
    forms = torch.zeros(1 + size + draws * size, size, dtype=F64)
    forms[0], forms[1 : 1 + size] = start[0], torch.linalg.cholesky(start[1]).mT
    forms = forms.reshape(-1, *sde.state_shape((1, *problem.event))[1:])
    *_, last = solvers.Readable()(rows, Affine(problem.model(sde)), forms, Units(1 + size))
    found = last.x.flatten(1)
    return found[0], found[1:].mT @ found[1:]


def wrong(found, expected) -> float:
    return float(torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)]).norm())


GAUSSIAN = Gaussian([0.3, -0.5], [[0.5, 0.2], [0.2, 0.3]])


@pytest.mark.parametrize(("name", "sde"), covering(NOISY, ["CLD", "ThirdOrderLangevin", "Anisotropic"]))
def test_the_sde_converges_with_the_declared_weak_order(name, sde):
    if name == "sscs" and not isinstance(SDES[sde], CLD | ThirdOrderLangevin):
        pytest.skip("it splits off a stationary law")
    process = SDES[sde]
    expected = law(GAUSSIAN, process, amid(process)[1])
    errors = []
    for steps in (48, 96) if name == "sde-noise-2" else (16, 32):  # its error falls late
        path = make_matrix_path(process, times(process, steps))
        found = moments(MADE[name], process, GAUSSIAN, path, law(GAUSSIAN, process, amid(process)[0]))
        errors.append(wrong(found, expected))
    assert abs(slopes(errors)[0] - MADE[name].description.weak_order) < 0.3, errors


@every
@pytest.mark.parametrize("name", ["gddim", "gddim-sde", "sde-data-2", "noise-2", "root-2", "data-midpoint"])
def test_one_data_point_is_exact_in_two_steps(name, sde):
    # The data prediction is then a constant. So is the noise along the flow in its own coordinates, and no other noise.
    point = Gaussian([0.7, -0.4], 0.0)
    start, end = (law(Gaussian([0.7, -0.4], 1e-18), sde, t) for t in amid(sde))
    found = moments(MADE[name], sde, point, make_matrix_path(sde, times(sde, 2)), start)
    exact = wrong(found, end) < 1e-9
    assert exact == (name != "root-2" or sde.variables == 1)


def test_gddim_predicts_noise_that_is_constant_along_the_flow():
    sde, path = CLD(), make_matrix_path(CLD(), "t", 6, end="stop")
    prepared = MatrixNoise(clock="t").prepared(sde, path.moves, path.points)
    model = Gaussian([0.7, -0.4], 0.0).model(sde)
    z = sde.prior((1, 2, 2), generator=generator(), dtype=F64)
    seen = []
    for row, point in zip(MADE["gddim"].rows(path), path.points[:-1], strict=True):
        m = model.x0(z, point.t)
        seen.append(row.p * z + row.q * m)
        z = row.a * z + row.w[0] * seen[-1]
    assert prepared.turns.keys() >= set(path.points)
    for noise in seen[1:]:
        torch.testing.assert_close(noise, seen[0], rtol=1e-9, atol=1e-9)


def test_gddim_is_published_for_one_node_with_noise_alone():
    with pytest.raises(ValueError, match="which has one node where there is noise; expected order=1"):
        solvers.gddim(2, eta=1.0)


def test_the_splitting_sampler_is_exact_on_the_stationary_law():
    # Velocities of the stationary variance from the start: the states are N(0, diag(1, M)) at all times.
    sde, normal = CLD(gamma=1.0), Gaussian([0.0, 0.0], 1.0)
    expected = law(normal, sde, 1.0)
    torch.testing.assert_close(expected[1].diagonal(), torch.tensor([1.0, 1.0, 0.25, 0.25], dtype=F64))
    found = moments(MADE["sscs"], sde, normal, make_matrix_path(sde, "t", 3, end="stop"), expected)
    assert wrong(found, expected) < 1e-12


def test_the_splitting_sampler_is_the_published_step():
    # Dockhorn et al., algorithm 1, without its noise: half an Ornstein-Uhlenbeck step, a kick of the velocity by the score
    # at the start of the step, and half a step again.
    sde, model, t, h = CLD(), mixture().model(CLD()), 0.6, 0.1
    mass, beta = sde.mass, sde.beta_min
    friction = 2 * mass**0.5
    backward = torch.tensor([[0.0, -1 / mass], [1.0, -friction / mass]], dtype=F64)
    half = torch.matrix_exp(0.5 * h * beta * backward)
    z = sde.prior((4, 2, 2), generator=generator(), dtype=F64)
    expected = torch.einsum("ij,njd->nid", half, z)
    kick = 2 * friction * beta * h * (model.score(expected, t)[:, 1] + expected[:, 1] / mass)
    expected = torch.einsum("ij,njd->nid", half, torch.stack([expected[:, 0], expected[:, 1] + kick], 1))
    rows = MADE["sscs"].rows(make_matrix_path(sde, [t, t - h]))
    found = solvers.fast(rows, model, z, lambda start, to, out, kernel: out.zero_())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # The noise of half a step keeps the stationary law diag(1, M).
    noise = rows[0].s[0].matrix
    law = torch.diag(torch.tensor([1.0, mass], dtype=F64))
    torch.testing.assert_close(noise @ noise.mT + half @ law @ half.mT, law, rtol=1e-12, atol=1e-13)


# The linear part -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_linear_part_keeps_the_marginal_and_its_integrals_have_closed_forms(sde, eta):
    prediction = MatrixData(eta)
    for path in (make_matrix_path(sde, "lam", 5, end="stop"), make_matrix_path(sde, "t", 12, end="stop")):
        made = prediction.prepared(sde, path.moves, path.points).intervals
        for u, v in path.moves:
            over = made[u, v]
            carry, expected = prediction.carry(sde, over), sde.covariance(v.t)
            size = expected.diagonal(dim1=-2, dim2=-1).sqrt()
            noise = prediction.noise(sde, over)
            kept = carry @ sde.covariance(u.t) @ carry.mT + noise @ noise.mT
            assert float(((kept - expected) / size[..., :, None] / size[..., None, :]).abs().max()) < 1e-11
            if eta == 1:  # the regression of a Gaussian process backwards in time
                backward = sde.covariance(v.t) @ sde.transition(u.t, v.t).mT @ torch.linalg.inv(sde.covariance(u.t))
                torch.testing.assert_close(carry, backward, rtol=1e-9, atol=1e-11 * float(backward.abs().max()))
            # a constant prediction moves the mean by what is not carried
            weights = prediction.weights(sde, over, [prediction.clock_of(u), prediction.clock_of(v)])
            moved = sde.mean_factor(v.t) - carry @ sde.mean_factor(u.t)
            torch.testing.assert_close(sum(weights), moved, rtol=1e-9, atol=1e-11)


def test_a_root_of_a_covariance_is_one_also_where_that_is_singular():
    for rank in (1, 2, 3):
        a = (
            torch.randn(4, 3, rank, generator=generator(rank), dtype=F64)
            * torch.tensor([1.0, 1e-4, 1e-8], dtype=F64)[:, None]
        )
        covariance = a @ a.mT
        found = root_of(covariance)
        size = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        assert float(((found @ found.mT - covariance) / size[..., :, None] / size[..., None, :]).abs().max()) < 1e-14


# The scalar case -----------------------------------------------------------------------------------------------------


SCALAR = LinearSDE([[-0.5]], [[1.0]], beta_min=0.1, beta_max=20.0)
"""VP, by matrices of one number."""


SHAPES = [*map(solvers.multistep, (1, 2, 3)), solvers.midpoint, solvers.trapezoid, solvers.radau]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("predicts", ["data", "noise"])
def test_one_variable_gives_the_rows_of_the_scalar_solvers(shape, eta, predicts):
    scalar = solvers.Data(eta) if predicts == "data" else solvers.Noise(eta)
    matrix = MatrixData(eta) if predicts == "data" else MatrixNoise(eta)
    path = make_path(VP(), "lam", 6)
    rows = stencil_rows(scalar, shape, path)
    made = matrix_rows(matrix, shape, make_matrix_path(SCALAR, path.times))
    assert len(rows) == len(made)
    one = torch.ones(1, 1, dtype=F64)
    for row, other in zip(rows, made, strict=True):
        for name in ("a", "p", "q", "w", "s"):
            numbers, maps = getattr(row, name), getattr(other, name)
            if name in "apq":
                numbers, maps = (numbers,), (maps,)
            found = [float(f * one) if not isinstance(f, float) else f for f in maps]
            assert found == pytest.approx(list(numbers), rel=1e-11, abs=1e-13), name
        assert (row.at is None) == (other.at is None) and row.ends_step == other.ends_step and row.draws == other.draws


SAME = {"gddim": "ddim", "gddim-2": "tab-2", "gddim-3": "tab-3", "gddim-4": "tab-4", "gddim-sde": "sde-dpmpp-1"}


@pytest.mark.parametrize("name", SAME)
def test_gddim_is_ddim_and_its_extensions_where_the_coefficients_are_numbers(name):
    problem = mixture()
    options = {"steps": 8, "path": "t", "seed": 3, "dtype": F64, "progress": False}
    one, other = (sample(problem.model(s), (5, 2), n, **options).x for s, n in ((SCALAR, name), (VP(), SAME[name])))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


# Sampling ------------------------------------------------------------------------------------------------------------

BACK = (solvers.Stage(0.7, (0,)), solvers.Stage(0.3, (0,)), solvers.Stage(1.0, (0,)))
RUN = {"steps": 6, "dtype": F64, "progress": False}


@pytest.mark.parametrize("name", mostly_slow(MATRIX_SOLVERS, {"gddim-2", "noise-midpoint", "sde-data-midpoint", "sscs"}))
def test_drivers_agree_and_calls_are_counted(name):
    model, calls = mixture().model(CLD()), []
    fast, readable = (sample(model, (3, 2), name, driver=driver, **RUN) for driver in ("fast", "readable"))
    assert torch.equal(fast.x, readable.x) and fast.x.shape == (3, 2)
    seen = sample(model, (3, 2), name, callback=calls.append, **RUN)
    assert torch.equal(seen.x, calls[-1].x[:, 0]) and len(calls) == 6 and calls[0].x.shape == (3, 2, 2)
    assert fast.evaluations == 5 * MADE[name].description.evaluations + 1
    alone = sample(model, (1, 2), name, seed=fast.seeds[1:2], **{**RUN})
    torch.testing.assert_close(alone.x, fast.x[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", mostly_slow(SDES, {"CLD", "Blurring"}))
def test_samples_of_a_mixture_have_its_mean_and_covariance(sde):
    problem, sde = mixture(), SDES[sde]
    for name in ("data-2", "gddim-sde"):
        x = sample(problem.model(sde), (2000, 2), name, 60, dtype=F64, progress=False).x
        spread = problem.covariance.diagonal().sqrt()
        assert float(((x.mean(0) - problem.mean) / spread).abs().max()) < 0.1
        error = (x.T.cov() - problem.covariance) / torch.outer(spread, spread)
        assert float(error.abs().max()) < 0.15


def test_gradients_flow_through_the_differentiable_driver():
    sde, model = CLD(), mixture().model(CLD())
    z = sde.prior((2, 2, 2), generator=generator(), dtype=F64).requires_grad_()

    def end(start):
        return sample(model, start, "data-2", 4, driver="differentiable", progress=False).x.square().sum()

    (gradient,) = torch.autograd.grad(end(z), z)
    direction = torch.randn(z.shape, generator=generator(1), dtype=F64)
    with torch.no_grad():
        slope = (end(z + 1e-5 * direction) - end(z - 1e-5 * direction)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-6)


class Twice(Wrapper):
    def x0(self, x, t, **conditions):
        return 2 * self.model.x0(x, t, **conditions)


def test_wrappers_transforms_and_projections_work():
    sde, model = CLD(), mixture().model(CLD())
    wrapped, z = Twice(model), CLD().prior((3, 2, 2), generator=generator(), dtype=F64)
    doubled = sde.score(z, 2 * model.x0(z, 0.4), 0.4)
    assert torch.equal(wrapped.score(z, 0.4), doubled) and torch.equal(
        wrapped.eps(z, 0.4), sde.eps(z, 2 * model.x0(z, 0.4), 0.4)
    )
    transformed = sample(model, (3, 2), "data-2", transform=lambda m, t: 2 * m, **RUN)
    assert torch.equal(transformed.x, sample(wrapped, (3, 2), "data-2", **RUN).x)
    frozen = sample(model, (3, 2), "data-2", project=lambda x, t: torch.zeros_like(x), **RUN)
    assert float(frozen.x.abs().max()) == 0


def test_states_are_kept_at_times_of_the_path():
    model = mixture().model(CLD())
    plain = sample(model, (3, 2), "sde-data-2", path=[1.0, 0.5, 0.2, 0.0], **{**RUN, "steps": 3})
    kept = sample(model, (3, 2), "sde-data-2", path=[1.0, 0.5, 0.2, 0.0], keep=[0.2, 1.0], **{**RUN, "steps": 3})
    assert torch.equal(kept.x, plain.x) and kept.times == (1.0, 0.5, 0.2, 0.0)
    assert {t: tuple(x.shape) for t, x in kept.states.items()} == {0.2: (3, 2, 2), 1.0: (3, 2, 2)}


def test_a_path_that_goes_back_takes_the_forward_kernel():
    # From the exact law at each time to the exact law at the next, by the reverse SDE and by the forward kernel.
    sde, point = CLD(), Gaussian([0.7, -0.4], 0.0)
    path = make_matrix_path(sde, [0.8, 0.3, 0.6, 0.2])
    start, end = (law(Gaussian([0.7, -0.4], 1e-18), sde, t) for t in (0.8, 0.2))
    assert wrong(moments(MADE["gddim-sde"], sde, point, path, start), end) < 1e-9
    assert [row.goes_back for row in MADE["gddim"].rows(path)] == [False, True, False]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: sample(m, (2, 2), "dpmpp-2m", **RUN),
            "whose coefficients are matrices; expected a solver of|got matrix solver",
        ),
        (lambda m: sample(m, (2, 2), solvers.ddim(), **RUN), "expected a solver of scoresde.solvers.MATRIX_SOLVERS"),
        (lambda m: sample(mixture().model(VP()), (2, 2), solvers.gddim(), **RUN), "on an SDE with scalar ones"),
        (lambda m: sample(m, (2, 2), "gddim", end="flow", **RUN), "got end='flow' on CLD"),
        (lambda m: sample(m, (2, 2), "gddim", path="leading", **RUN), "which has no steps"),
        (lambda m: sample(m, (2, 2), "gddim", path=[0.5, 0.2], **RUN), "while the prior is at t=1"),
        (lambda m: sample(m, (2, 2), "gddim", path=[1.0, 0.0, 0.2], **RUN), "expected 0 < t <= 1 on CLD"),
        (lambda m: sample(m, (2, 2), "gddim", path=[1.0, 0.5, 0.5], **RUN), "equal or nearly so"),
        (lambda m: sample(m, (2, 2), "gddim", path=[0.5, 1.0], **RUN), "not its noisiest point"),
        (lambda m: sample(m, (2, 2), "gddim", keep=[0.123], **RUN), "expected times of the path"),
        (lambda m: sample(m, (2, 2), "gddim", keep=[], **RUN), "expected a list of times"),
        (lambda m: sample(m, (2, 2), "gddim", t_min=0.0, **RUN), "expected 0 < t_min < t_max"),
        (lambda m: sample(m, (2, 3), "gddim", **RUN), r"a state of GaussianMixture\(components=3, event=\(2,\)\) on CLD"),
        (lambda m: sample(m, torch.zeros(2, 2), "gddim", progress=False), r"expected states \(batch, 2, \*event\)"),
        (lambda m: sample(m, (2,), "gddim", **RUN), "at least one event dimension"),
        (lambda m: sample(m, (2, 2), "gddim", driver="parallel", **RUN), "take driver='fast'"),
        (lambda m: sample(m, (2, 2), "gddim", driver="compiled", **RUN), "take driver='fast'"),
        (lambda m: sample(m, (2, 2), "gddim", noise=solvers.BrownianNoise([1, 2], "cpu"), **RUN), "leave noise out"),
        (
            lambda m: sample(mixture().model(Blurring((2,))), (2, 2), "sscs", **RUN),
            "SDE with constant matrices, such as CLD",
        ),
        (lambda m: solvers.exponential("velocity"), "got predicts='velocity'; expected one of 'data', 'noise'"),
        (lambda m: solvers.exponential("data", 5), "got order=5"),
        (lambda m: solvers.exponential(stages="rk4"), "got stages='rk4'"),
        (lambda m: solvers.exponential(clock="rho"), "got clock='rho'"),
        (lambda m: solvers.exponential(eta=-1.0), "got eta=-1.0"),
        (lambda m: solvers.em(-1.0), "got eta=-1.0"),
        (lambda m: MatrixNoise(coordinates="x"), "got coordinates='x'"),
        (lambda m: matrix_rows(MatrixData(), solvers.stencil.rk4, make_matrix_path(CLD())), "explicit weights"),
        (lambda m: matrix_rows(MatrixData(1.0), BACK, make_matrix_path(CLD(), "lam", 3)), "whose stages go back"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(mixture().model(CLD()))


def test_start_procedures_keep_the_order():
    z, expected = end_of_flow("CLD")
    model, errors = mixture().model(CLD()), []
    for steps in (12, 24):
        solver = solvers.exponential("data", 3, start="high-order")
        found = sample(model, z, solver, path=times(CLD(), steps), end="stop", progress=False).x
        errors.append(float((found - expected).square().mean().sqrt()))
    assert solver.description.order == 3 and abs(slopes(errors)[0] - 3) < 0.25


def test_the_subspace_is_never_left():
    vectors = torch.linalg.qr(torch.randn(4, 2, generator=generator(), dtype=F64)).Q.mT
    sde = Subspace(vectors)
    x = sample(Gaussian(torch.zeros(4), 0.3).model(sde), (50, 4), "gddim-sde", **RUN).x
    torch.testing.assert_close(x @ vectors.mT @ vectors, x, rtol=1e-12, atol=1e-12)
