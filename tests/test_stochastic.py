"""Solvers of the reverse SDE and paths that go back: published updates, identities, exact moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import k_diffusion_sampling
from scipy.integrate import quad
from support import SDES, finite_start, generator, mixture, model_on, propagate, slopes

from scoresde import EDM, VE, VP, sample, solvers
from scoresde.solvers import FreshNoise, Path, Point, Row, RowSolver, make_path
from scoresde.solvers.methods import er

F64 = torch.float64
ETAS = [0.3, 1.0]


def maps(solver: RowSolver, path: Path) -> list[tuple[object, ...]]:
    """The rows as linear maps in (x, model history, noise): equality is a proof that two solvers are the same."""
    return [(r.at, r.to, r.a, r.w, r.s, r.p, r.q, r.ends_step) for r in solver.rows(path)]  # type: ignore[union-attr]


def assert_same(one: RowSolver, other: RowSolver, path: Path) -> None:
    for a, b in zip(maps(one, path), maps(other, path), strict=True):
        for x, y in zip(a, b, strict=True):
            if isinstance(x, float | tuple) and not isinstance(x, Point):
                assert x == pytest.approx(y, rel=1e-9, abs=1e-11)
            else:
                assert x == y


# Published updates ---------------------------------------------------------------------------------------------------

PATH = make_path(EDM(), "karras", 8)
SIGMAS = torch.tensor([p.sigma for p in PATH.points], dtype=F64)
SHAPE = (6, 2)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return model_on(EDM()).x0(x, sigma)


class Recorded(FreshNoise):
    """Keeps the draw of each interval by the level at which it starts, for a peer to be given the same."""

    def __init__(self) -> None:
        super().__init__(range(SHAPE[0]), torch.device("cpu"))
        self.drawn: dict[float, torch.Tensor] = {}

    def __call__(self, start: Point, to: Point, out: torch.Tensor, kernel: float = 0.0) -> torch.Tensor:
        self.drawn[start.sigma] = self.normal(out).clone()
        return out

    def at(self, sigma: torch.Tensor | float) -> torch.Tensor:
        key = min(self.drawn, key=lambda s: abs(s - float(sigma)))
        assert key == pytest.approx(float(sigma), rel=1e-9)
        return self.drawn[key]


def run(solver: RowSolver, path: Path = PATH) -> tuple[torch.Tensor, torch.Tensor, Recorded]:
    noise = Recorded()
    x = 80 * torch.randn(SHAPE, generator=generator(1), dtype=F64)
    return x, solvers.fast(solver.rows(path), model_on(path.sde), x, noise), noise  # type: ignore[arg-type]


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("kind", "variant", "name", "options"),
    [
        ("2m", "published", "sample_dpmpp_2m_sde", {"solver_type": "midpoint"}),
        ("2m", "exact", "sample_dpmpp_2m_sde", {"solver_type": "heun"}),
        ("3m", "published", "sample_dpmpp_3m_sde", {}),
    ],
)
def test_sde_dpmpp_is_k_diffusions(kind: str, variant: str, name: str, options: dict[str, str], eta: float) -> None:
    x, got, noise = run(solvers.sde_dpmpp(kind, eta, variant))
    peer = getattr(k_diffusion_sampling(), name)
    wanted = peer(denoiser, x, SIGMAS, eta=eta, noise_sampler=lambda s, _: noise.at(s), disable=True, **options)
    assert_close(got, wanted)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "variant"), [("2m", "published"), ("2m", "exact"), ("3m", "published")])
def test_sde_dpmpp_is_its_formula(kind: str, variant: str, eta: float) -> None:
    """k-diffusion's updates from its formulas, so that they are held where it is not installed."""
    x, got, noise = run(solvers.sde_dpmpp(kind, eta, variant))
    past: list[tuple[float, torch.Tensor]] = []  # h of the step after it, and the prediction, newest first
    for i, (u, v) in enumerate(PATH.moves[:-1]):
        m, h = denoiser(x, torch.tensor(u.sigma, dtype=F64)), v.lam - u.lam
        z = (1 + eta) * h
        y = v.sigma / u.sigma * math.exp(-eta * h) * x - math.expm1(-z) * m
        phi_2 = math.expm1(-z) / z + 1
        if i > 0:
            first = (m - past[0][1]) * h / past[0][0]
            if kind == "3m" and i > 1:
                r0, r1 = past[0][0] / h, past[1][0] / h
                second = (past[0][1] - past[1][1]) / r1
                d1, d2 = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
                y = y + phi_2 * d1 - (phi_2 / z - 0.5) * d2
            else:
                y = y + (-0.5 * math.expm1(-z) if (kind, variant) == ("2m", "published") else phi_2) * first
        if eta:
            y = y + v.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * noise.at(u.sigma)
        x, past = y, [(h, m), *past]
    assert_close(got, denoiser(x, torch.tensor(PATH.points[-2].sigma, dtype=F64)))


def test_sde_dpmpp_2s_is_k_diffusions_with_the_exact_joint_law_of_its_two_draws() -> None:
    method = solvers.sde_dpmpp("2s")
    x, got, noise = run(method)
    factors = {row.at.sigma: row.s for row in method.rows(PATH) if len(row.s) == 2}  # type: ignore[union-attr]
    middles = dict(zip(SIGMAS[:-2].tolist(), factors, strict=True))

    def sampler(sigma: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        start = min(middles, key=lambda s: abs(s - float(sigma)))
        if abs(float(to) / middles[start] - 1) < 1e-9:  # the stage: the first half alone
            return noise.at(start)
        second, first = factors[middles[start]]
        return (first * noise.at(start) + second * noise.at(middles[start])) / math.hypot(first, second)

    assert_close(got, k_diffusion_sampling().sample_dpmpp_sde(denoiser, x, SIGMAS, noise_sampler=sampler, disable=True))


@pytest.mark.parametrize("s_noise", [1.0, 1.003])
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (solvers.euler_ancestral, "sample_euler_ancestral"),
        (solvers.dpm2_ancestral, "sample_dpm_2_ancestral"),
        (solvers.dpmpp_2s_ancestral, "sample_dpmpp_2s_ancestral"),
    ],
)
def test_the_ancestral_family_is_k_diffusions(make: Callable[..., RowSolver], name: str, eta: float, s_noise: float) -> None:
    x, got, noise = run(make(eta, s_noise))

    def sampler(sigma: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        variance = eta**2 * to**2 * (1 - to**2 / sigma**2)
        return noise.at((to**2 - variance).sqrt())  # ours is drawn from the overshot level on

    peer = getattr(k_diffusion_sampling(), name)
    # The last move is to zero, before which k-diffusion, too, adds no noise.
    assert_close(got, peer(denoiser, x, SIGMAS, eta=eta, s_noise=s_noise, noise_sampler=sampler, disable=True))


@pytest.mark.parametrize("s_noise", [1.0, 1.007])
@pytest.mark.parametrize(
    ("inner", "name"),
    [(solvers.euler("rho"), "sample_euler"), (solvers.heun("rho"), "sample_heun"), (solvers.dpm_solver(2), "sample_dpm_2")],
)
def test_churn_is_karras(inner: RowSolver, name: str, s_noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"s_churn": 2.0, "s_tmin": 0.01, "s_tmax": 50.0}
    x, got, noise = run(solvers.detour(inner, lambda path: solvers.churn(path, **limits), s_noise=s_noise))
    module, levels = k_diffusion_sampling(), iter(SIGMAS[:-1].tolist())
    drawn = sorted(noise.drawn)
    assert len(drawn) == int(((SIGMAS >= 0.01) & (SIGMAS <= 50)).sum())

    def randn_like(like: torch.Tensor) -> torch.Tensor:  # it draws at each level, churned or not
        level = next(levels)
        near = [s for s in drawn if abs(s / level - 1) < 1e-9]
        return noise.drawn[near[0]] if near else torch.zeros_like(like)

    monkeypatch.setattr(module.torch, "randn_like", randn_like)
    assert_close(got, getattr(module, name)(denoiser, x, SIGMAS, s_noise=s_noise, disable=True, **limits))


SA_ORDERS = [(1, 0), (2, 0), (3, 0), (1, 2), (2, 2), (3, 4)]


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("lowers", [True, False])
@pytest.mark.parametrize(("predictor", "corrector"), SA_ORDERS)
@pytest.mark.parametrize("steps", [3, 7])
def test_sa_solver_is_the_published_update(steps: int, predictor: int, corrector: int, lowers: bool, tau: float) -> None:
    """The authors' code for few steps by hand: their integrals, their terms for two points, their orders at both ends."""
    path = make_path(VP(), "t", steps, t_min=0.05, end="stop")
    model, c = model_on(VP()), 1 + tau**2

    def integral(power: int, start: float, end: float) -> float:
        """Of e^(c s) s^power, which is all that they integrate."""
        return quad(lambda s: math.exp(c * s) * s**power, start, end, epsabs=1e-14, epsrel=1e-13)[0]

    def update(
        x: torch.Tensor, u: Point, v: Point, points: list[tuple[float, torch.Tensor]], xi: torch.Tensor
    ) -> torch.Tensor:
        h, lams = v.lam - u.lam, [lam for lam, _ in points]
        powers = [integral(k, u.lam, v.lam) for k in range(len(points))]
        w = [
            float(np.polynomial.polynomial.polyfromroots([b for b in lams if b != a]) @ powers)
            / math.prod(a - b for b in lams if b != a)
            for a in lams
        ]
        if len(points) == 2:  # h^2 / 2 for (h c - 1 + e^-hc) / c^2
            term = math.exp(c * v.lam) * (h**2 / 2 - (h * c - 1 + math.exp(-h * c)) / c**2) / (lams[0] - lams[1])
            w = [w[0] + term, w[1] - term]
        drift = c * v.sigma * math.exp(-(tau**2) * v.lam) * sum(a * m for a, (_, m) in zip(w, points, strict=True))
        noise = v.sigma * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * xi
        return math.exp(-(tau**2) * h) * v.sigma / u.sigma * x + drift + noise  # type: ignore[no-any-return]

    x, got, noise = run(solvers.sa_solver(predictor, corrector, tau, finish="published" if lowers else "same"), path)
    past = [(path.points[0].lam, model.x0(x, path.points[0].t))]  # newest first
    for step, (u, v) in enumerate(path.moves, 1):
        xi = noise.at(u.sigma) if tau else torch.zeros_like(x)
        orders = min(predictor, step), min(corrector, step + 1)
        if lowers and step >= max(predictor, corrector - 1):
            orders = min(orders[0], steps - step + 1), min(orders[1], steps - step + 2)
        predicted = update(x, u, v, past[: orders[0]], xi)
        past = [(v.lam, model.x0(predicted, v.t)), *past]
        x = update(x, u, v, past[: orders[1]], xi) if corrector and step < steps else predicted
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


def test_sa_solver_takes_tau_at_the_end_of_each_step() -> None:
    """As the authors' code does: a tau that is zero from the second point on leaves no noise but in the first step."""
    path = make_path(VP(), "lam", 6, end="stop")
    first = path.points[1].lam
    rows = solvers.sa_solver(2, 0, lambda lam: float(lam <= first)).rows(path)
    assert [bool(row.s) for row in rows] == [True] + [False] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_solver_is_the_published_update(order: int) -> None:
    """The authors' Taylor form on a variance-preserving SDE, written out by hand."""
    path, model = make_path(VP(), "lam", 7, end="stop"), model_on(VP())

    def phi(rho: float) -> float:
        return rho * (math.exp(rho**0.3) + 10)

    x, got, noise = run(solvers.er_sde_solver(order), path)
    rho = [p.sigma / p.alpha for p in path.points]
    predictions: list[torch.Tensor] = []
    slopes_before = None
    for i, (u, v) in enumerate(path.moves):
        a, b = rho[i], rho[i + 1]
        r = phi(b) / phi(a)
        m = model.x0(x, u.t)
        y = r * x / u.alpha + (1 - r) * m + math.sqrt(b**2 - a**2 * r**2) * noise.at(u.sigma)
        grid = [b + k / 100 * (a - b) for k in range(100)]
        if order > 1 and i > 0:
            slope = (m - predictions[-1]) / (a - rho[i - 1])
            y = y + (b - a + phi(b) * sum((a - b) / 100 / phi(g) for g in grid)) * slope
            if order == 3 and slopes_before is not None:
                bend = 2 * (slope - slopes_before) / (a - rho[i - 2])
                y = y + ((b - a) ** 2 / 2 + phi(b) * sum((g - a) * (a - b) / 100 / phi(g) for g in grid)) * bend
            slopes_before = slope
        x = v.alpha * y
        predictions.append(m)
    assert_close(got, x)


def test_seeds_2_is_the_published_update() -> None:
    path, model = make_path(VP(), "lam", 5, end="stop"), model_on(VP())
    x, got, noise = run(solvers.seeds(2), path)
    for u, v in path.moves:
        h = v.lam - u.lam
        s = solvers.points(VP(), VP().time(torch.tensor([u.lam + h / 2], dtype=F64)))[0]
        z1, z2 = noise.at(u.sigma), noise.at(s.sigma)
        y = s.alpha / u.alpha * x - 2 * s.sigma * math.expm1(h / 2) * model.eps(x, u.t)
        y = y + s.sigma * math.sqrt(math.expm1(h)) * z1
        x = v.alpha / u.alpha * x - 2 * v.sigma * math.expm1(h) * model.eps(y, s.t)
        x = x + v.sigma * (math.sqrt(math.exp(2 * h) - math.exp(h)) * z1 + math.sqrt(math.expm1(h)) * z2)
    assert_close(got, x)


# Identities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "SubVP", "RectifiedFlow"])
def test_without_noise_they_are_their_deterministic_twins(name: str) -> None:
    path = make_path(SDES[name], "karras", 9, t_max=finite_start(SDES[name]))
    assert_same(solvers.sde_dpmpp("1", 0), solvers.ddim(), path)
    for finish in ("same", "lower-order", "high-order"):
        assert_same(solvers.sde_dpmpp("2m", 0, finish=finish), solvers.dpmpp_2m(finish=finish), path)
        assert_same(solvers.sde_dpmpp("2m", 0, "exact", finish), solvers.dpmpp_2m("exact", finish), path)
        assert_same(solvers.sde_dpmpp("3m", 0, finish=finish), solvers.dpmpp_3m("k-diffusion", finish=finish), path)
        assert_same(solvers.sde_dpm_solver(2, 0, finish=finish), solvers.dpm_multistep(2, finish=finish), path)
        assert_same(solvers.sa_solver(2, 0, 0, "exact", finish), solvers.dpmpp_2m("exact", finish), path)
    assert_same(solvers.sde_dpm_solver(1, 0), solvers.dpm_solver(1), path)
    for order in (1, 2, 3):
        assert_same(solvers.seeds(order, 0), solvers.dpm_solver(order), path)
    assert_same(solvers.er_sde_solver(1, er.power(0)), solvers.ddim(), path)
    # To sigma = 0 SA-Solver corrects once more, since the evaluation is there.
    path = Path(path.sde, path.points[:-1], "stop")
    for order, finish in itertools.product((2, 3), ("same", "lower-order", "high-order")):
        one = solvers.sa_solver(order, order, 0, "exact", finish)
        assert_same(one, solvers.exp_adams_moulton(order, finish=finish), path)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "SubVP"])
def test_identities_with_noise(name: str, eta: float) -> None:
    path = make_path(SDES[name], "karras", 9)
    assert_same(solvers.sde_dpmpp("1"), solvers.ancestral("lower"), path)
    assert_same(solvers.sde_dpm_solver(1, eta), solvers.seeds(1, eta), path)
    assert_same(solvers.er_sde_solver(1, er.power(eta)), solvers.sde_dpmpp("1", eta), path)
    for finish in ("same", "lower-order", "high-order"):
        one = solvers.sa_solver(3, 0, math.sqrt(eta), "exact", finish)
        assert_same(one, solvers.sde_dpmpp("3m", eta, "exact", finish), path)
    assert_same(solvers.analytic_dpm(lambda t: 1 / float(SDES[name].sigma(t)) ** 2, eta), solvers.ddim(eta), path)


@pytest.mark.parametrize("eta", ETAS)
def test_ddim_with_noise_is_ddim_on_the_overshot_path(eta: float) -> None:
    """Two rows there are one row here: a x + w m carried on by the forward kernel."""
    path = make_path(VP(), "karras", 9, t_min=0.01)
    rows = solvers.euler_ancestral(eta).rows(path)
    whole = solvers.ddim(eta).rows(path)
    assert len(rows) == 2 * len(whole) - 1
    for one, up, down in zip(whole[:-1], rows[:-1:2], rows[1::2], strict=True):
        assert isinstance(one, Row) and isinstance(up, Row) and isinstance(down, Row)
        assert down.a * up.a == pytest.approx(one.a, rel=1e-9)
        assert down.a * up.w[0] == pytest.approx(one.w[0], rel=1e-9)
        assert down.s[0] == pytest.approx(one.s[0], rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, *ETAS])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda eta, kind=kind: solvers.sde_dpmpp(kind, eta) for kind in ("1", "2s", "2m", "3m")),
        *(lambda eta, order=order: solvers.seeds(order, eta) for order in (1, 2, 3)),
        lambda eta: solvers.sde_dpm_solver(2, eta),
    ],
)
def test_a_constant_function_is_its_value(make: Callable[[object], RowSolver], eta: float) -> None:
    assert_same(make(lambda lam: eta), make(eta), make_path(VP(), "t", 6))


def test_detours_of_no_length_are_none() -> None:
    path = make_path(VP(), "karras", 9)
    assert solvers.churn(path, 0.0) == path
    assert solvers.overshoot(path, 0.0) == path
    assert solvers.restart(path, [(0.1, 1.0, 0)]) == path
    assert solvers.restart(path, [(0.1, 0.1001, 5)]) == path, "both ends are nearest to one point"
    assert_same(solvers.edm_stochastic(0.0), solvers.heun("rho"), path)
    assert_same(solvers.euler_ancestral(0.0), solvers.ddim(), path)


# Exact moments -------------------------------------------------------------------------------------------------------


@given(
    mean=st.floats(-2, 2),
    std=st.floats(0.1, 2),
    eta=st.floats(0, 1),
    steps=st.integers(1, 6),
    name=st.sampled_from(["VP", "VE", "SubVP"]),
)
def test_analytic_dpm_is_exact_on_gaussian_data(mean: float, std: float, eta: float, steps: int, name: str) -> None:
    sde = SDES[name]

    def squared_score(t: float) -> float:
        return 1 / float(sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2)

    path = make_path(sde, "t", steps, end="stop", t_min=0.1)
    got = propagate(solvers.analytic_dpm(squared_score, eta), path, mean, std)
    end = path.points[-1]
    assert got[0] == pytest.approx(end.alpha * mean, rel=1e-9, abs=1e-9)
    if eta == 1:
        assert got[1] == pytest.approx(end.alpha**2 * std**2 + end.sigma**2, rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "weak"),
    [
        (solvers.sde_dpmpp("2m", variant="exact"), 2),
        (solvers.sde_dpmpp("3m", variant="exact"), 2),
        (solvers.sde_dpmpp("2m", lambda lam: 1 / (1 + lam**2)), 2),
        (solvers.sde_dpmpp("2s", lambda lam: 1 / (1 + lam**2)), 2),
        (solvers.sde_dpmpp("2s", 0.4), 2),
        (solvers.sa_solver(1, 2), 2),
        (solvers.sa_solver(2, 0), 2),
        (solvers.sa_solver(3, 4, 0.7, "exact"), 2),
        (solvers.sa_solver(2, 2, lambda lam: float(-3 < lam < 0)), 2),
        (solvers.sa_solver(1, 0), 1),
        (solvers.er_sde_solver(2, variant="exact"), 2),
        (solvers.sde_heun(0.5), 2),
        (solvers.euler_ancestral(0.5), 1),
        (solvers.detour(solvers.dpmpp_2m(), lambda p: solvers.restart(p, [(0.4, 2.0, 3)])), 2),
        (solvers.detour(solvers.dpm_solver(2), lambda p: solvers.churn(p, 30.0)), 2),
    ],
)
def test_variants_converge_at_their_weak_order(solver: RowSolver, weak: int) -> None:
    errors = []
    for steps in (150, 300):
        path = make_path(VP(), "lam", steps, t_min=0.2, end="stop")
        mean, variance = propagate(solver, path, 0.8, 0.5)
        end = path.points[-1]
        errors.append(abs(mean - end.alpha * 0.8) + abs(variance - end.alpha**2 * 0.25 - end.sigma**2))
    assert weak - 0.15 < slopes(errors)[0] < weak + 0.6, (errors, slopes(errors))
    assert weak == (solver.description.weak_order or weak)


def test_more_noise_than_the_forward_kernel_has_breaks_the_marginals() -> None:
    path = make_path(VP(), "lam", 400, t_min=0.2, end="stop")
    end = path.points[-1]
    truth = end.alpha**2 * 0.25 + end.sigma**2
    exact, more = (propagate(solvers.edm_stochastic(s_noise=s), path, 0.8, 0.5)[1] - truth for s in (1.0, 1.01))
    assert abs(exact) < 1e-3 < more


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["VP", "VE", "RectifiedFlow"])
def test_one_point_is_reached_exactly_with_any_noise(name: str, eta: float) -> None:
    """Where the data are one point the data prediction is constant, and every solver in it exact, however long its steps."""
    path = make_path(SDES[name], "t", 5, end="stop")
    for kind in ("1", "2m", "3m"):
        mean, variance = propagate(solvers.sde_dpmpp(kind, eta), path, 0.6, 0.0)
        end = path.points[-1]
        assert mean == pytest.approx(end.alpha * 0.6) and variance == pytest.approx(end.sigma**2)


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [EDM(), VE(), VP()], ids=repr)
def test_the_overshoot_never_leaves_the_sde(sde: EDM) -> None:
    path = make_path(sde, "lam", 6)
    beyond = solvers.overshoot(path)
    assert all(math.isfinite(p.lam) for p in beyond.points[:-1]) and beyond.ends_clean
    ends = [v for u, v in beyond.moves if v.lam < u.lam]
    least_noise = math.isfinite(float(sde.lam(0.0)))  # nothing lies beyond the last point of VE, at its sigma_min
    assert ends == [v for u, v in path.moves[:-1]][: -1 if least_noise else None]


def test_restart_goes_through_the_interval_k_times() -> None:
    path = make_path(EDM(), "karras", 18)
    again = solvers.restart(path, [(0.1, 1.0, 2), (5.0, 20.0, 1)])
    ups = [(u.sigma, v.sigma) for u, v in again.moves if v.lam < u.lam]
    near = [min((p.sigma for p in path.points), key=lambda s: abs(s - level)) for level in (0.1, 1.0, 5.0, 20.0)]
    assert ups == [(near[2], near[3]), (near[0], near[1]), (near[0], near[1])]


def test_restart_and_churn_run_through_the_front_door() -> None:
    model = mixture().model(EDM())
    for name in ("edm", "restart", "euler-a"):
        samples = sample(model, (4, 2), name, 10, "karras", progress=False)
        assert bool(torch.isfinite(samples.x).all())
    plain = sample(model, (4, 2), "heun", 10, "karras", progress=False).evaluations
    assert sample(model, (4, 2), "edm", 10, "karras", progress=False).evaluations == plain


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: solvers.sde_dpmpp("4m"), "expected one of '1', '2s', '2m', '3m'"),
        (lambda: solvers.sde_dpmpp("2m", -1), "expected a number >= 0"),
        (lambda: solvers.sde_dpmpp("2m", lambda lam: -1.0).rows(PATH), r"got eta\(lam="),
        (lambda: solvers.sde_dpmpp("2m", variant="exakt"), "expected 'published' or 'exact'"),
        (lambda: solvers.sde_dpm_solver(3), "expected 1 or 2"),
        (lambda: solvers.seeds(4), "expected 1, 2 or 3"),
        (lambda: solvers.sa_solver(0), "got predictor=0"),
        (lambda: solvers.sa_solver(2, -1), "got corrector=-1"),
        (lambda: solvers.sa_solver(tau=-0.5), "got tau=-0.5"),
        (lambda: solvers.sa_solver(variant="x"), "expected 'published' or 'exact'"),
        (lambda: solvers.er_sde_solver(4), "expected 1, 2 or 3"),
        (lambda: solvers.er_sde_solver(variant="x"), "expected 'published' or 'exact'"),
        (lambda: solvers.er_sde_solver(1, lambda rho: rho**0.5).rows(PATH), "not to decrease with rho"),
        (lambda: solvers.sde_heun(0), "without noise it is the solver 'heun'"),
        (lambda: solvers.analytic_dpm(lambda t: 1.0, 2.0), "got eta=2.0"),
        (lambda: solvers.churn(PATH, -1), "expected s_churn >= 0"),
        (lambda: solvers.overshoot(PATH, 1.5), "got eta=1.5"),
        (lambda: solvers.restart(PATH, [(1.0, 0.5, 1)]), "expected levels 0 < low < high"),
        (lambda: solvers.detour(solvers.ddim(), lambda p: p, s_noise=-1), "got s_noise=-1"),
    ],
)
def test_bad_arguments(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_descriptions_say_what_they_are() -> None:
    for make in (solvers.sde_dpmpp, solvers.sde_dpm_solver, solvers.seeds):
        assert make().stochastic and not make(eta=0).stochastic  # type: ignore[operator]
    assert not solvers.sa_solver(tau=0).stochastic and solvers.sa_solver().stochastic
    assert solvers.edm_stochastic(s_noise=1.003).description.weak_order is None
