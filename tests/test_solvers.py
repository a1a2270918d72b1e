"""Every solver of the table: the order it claims, its exact moments, its identities, its drivers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from support import (
    SDES,
    BasisNoise,
    amid_the_modes,
    covering,
    finite_start,
    generator,
    mixture,
    model_on,
    mostly_slow,
    propagate,
    rms,
    slopes,
)

from scoresde import DDPM, EDM, NCSN, VE, VP, CosineVP, RectifiedFlow, discretize, sample, solvers
from scoresde.problems import Gaussian
from scoresde.sde import GaussianSDE
from scoresde.solvers import SOLVERS, FreshNoise, Path, RowSolver, make_path
from scoresde.solvers.methods import third_party
from scoresde.solvers.methods.drift_diffusion import euler_maruyama
from scoresde.solvers.methods.third_party import SciPy, affine_dynamics

F64 = torch.float64
ROW_SOLVERS = [name for name in SOLVERS if isinstance(solvers.get(name), RowSolver)]
DETERMINISTIC = [name for name in SOLVERS if solvers.get(name).description.order is not None]
WEAK = [name for name in ROW_SOLVERS if solvers.get(name).description.weak_order is not None]
VARIANTS = {
    "dpmpp-2m-exact": solvers.dpmpp_2m("exact"),
    "euler-rho": solvers.euler("rho"),
    "heun-rho": solvers.heun("rho"),
    "rk4-rho": solvers.rk4("rho"),
    "midpoint-rho": solvers.explicit_midpoint("rho"),
    "rk3-rho": solvers.rk3("rho"),
}


def start_on(sde: object, n: int = 6) -> torch.Tensor:
    x = torch.randn(n, 2, generator=generator(5), dtype=F64)
    return x * float(sde.sigma(finite_start(sde)))  # type: ignore[attr-defined]


_references: dict[str, torch.Tensor] = {}


def reference(name: str, t_min: float | None = None) -> torch.Tensor:
    """The end of the probability flow by SciPy's order-8 method in t, which shares no coefficient with ours."""
    key = name if t_min is None else f"{name}, {t_min}"
    if key not in _references:
        x, t = amid_the_modes(SDES[name])
        tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-12, 1e-12)
        _references[key] = sample(model_on(SDES[name]), x, tight, t_max=t, t_min=t_min, end="stop", progress=False).x
    return _references[key]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("solver", "name"), covering([*DETERMINISTIC, *VARIANTS], SDES))
def test_deterministic_solvers_have_the_order_they_claim(solver: str, name: str) -> None:
    sde, model = SDES[name], model_on(SDES[name])
    method = VARIANTS.get(solver) or solvers.get(solver)
    x, t = amid_the_modes(sde)
    # The last step of some is of order one, which shows where the model still changes.
    t_min = float(sde.time(1.0)) if solver == "dpm-fast" or solver.startswith("unipc") else None
    errors = []
    for steps in (102, 204):  # by the same remainder modulo 3: it ends alike
        end = sample(model, x, method, steps, t_max=t, t_min=t_min, end="stop", progress=False).x
        errors.append(rms(end - reference(name, t_min)))
    assert method.description.order is not None
    assert errors[1] > 1e-11, "at rounding level: no order can be read from it"
    assert abs(slopes(errors)[0] - method.description.order) < 0.25, (errors, slopes(errors))


def weak_errors(method: RowSolver, sde: GaussianSDE, t_min: float | None = None) -> list[float]:
    """Of mean and variance on Gaussian data, propagated exactly, on paths of 400 and 800 steps."""
    errors = []
    for steps in (400, 800):
        path = make_path(sde, "lam", steps, t_min=t_min, end="stop")
        mean, variance = propagate(method, path, 0.8, 0.5)
        end = path.points[-1]
        errors.append(abs(mean - end.alpha * 0.8) + abs(variance - end.alpha**2 * 0.25 - end.sigma**2))
    return errors


@pytest.mark.parametrize(("solver", "name"), covering(WEAK, ["VP", "VE", "EDM", "SubVP", "FunctionSDE"]))
def test_stochastic_solvers_converge_at_the_weak_order_they_claim(solver: str, name: str) -> None:
    """Mean and variance on Gaussian data, propagated exactly: no Monte Carlo."""
    method = solvers.get(solver)
    assert isinstance(method, RowSolver)
    errors = weak_errors(method, SDES[name])
    order = method.description.weak_order
    assert order is not None and slopes(errors)[-1] > order - 0.12, slopes(errors)
    assert errors[-1] < 0.02
    if name == "VP":
        # No better either. Stopped early: on the way down to little noise the leading terms of some of them nearly cancel.
        errors = weak_errors(method, SDES[name], t_min=0.2)
        slack = 0.65 if solver in ("er-sde-2", "er-sde-3") else 0.12  # whose term of first order is tiny
        assert slopes(errors)[-1] < order + slack, slopes(errors)


@pytest.mark.parametrize(
    "solver", mostly_slow(DETERMINISTIC, {"euler", "heun", "ddim", "dpmpp-2m", "unipc-3", "velocity-2"})
)
def test_deterministic_solvers_transport_gaussians_exactly_in_the_limit(solver: str) -> None:
    method = solvers.get(solver)
    assert isinstance(method, RowSolver)
    path = make_path(VP(), "lam", 3000, end="stop")
    mean, variance = propagate(method, path, 0.8, 0.5)
    end = path.points[-1]
    assert mean == pytest.approx(end.alpha * 0.8, abs=1e-4)
    assert variance == pytest.approx(end.alpha**2 * 0.25 + end.sigma**2, abs=1e-3)


def test_the_upper_variance_is_exact_for_white_data() -> None:
    """On data N(0, 1) a variance-preserving ancestral step with beta as its variance is the exact reverse transition."""
    for steps in (3, 10, 100):
        _, variance = propagate(solvers.ddpm(), make_path(VP(), "t", steps, end="stop"), 0.0, 1.0)
        assert variance == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("t_min", [1e-2, 1e-3, 1e-5])
def test_what_the_smallest_time_costs(t_min: float) -> None:
    """The same chain, denoised at the end, lacks exactly the variance sigma(t_min)^2."""
    sde = VP()
    _, variance = propagate(solvers.ddpm(), make_path(sde, "t", 1000, t_min=t_min), 0.0, 1.0)
    assert 1 - variance == pytest.approx(float(sde.sigma(t_min) ** 2), rel=1e-6)


def test_the_lower_variance_is_exact_for_one_point() -> None:
    for name in ("VP", "VE", "RectifiedFlow"):
        path = make_path(SDES[name], "t", 7, end="stop")
        mean, variance = propagate(solvers.ncsn(), path, 0.6, 0.0)
        end = path.points[-1]
        assert mean == pytest.approx(end.alpha * 0.6) and variance == pytest.approx(end.sigma**2)


# Identities ------------------------------------------------------------------------------------------------


def assert_same_rows(one: RowSolver, other: RowSolver, path: Path, tolerance: float = 1e-12) -> None:
    """Equality of the linear maps in (x, m, xi): a proof that two one-evaluation solvers are the same."""
    for a, b in zip(one.rows(path), other.rows(path), strict=True):
        maps = [(r.a + r.w[0] * r.p, r.w[0] * r.q, sum(r.s)) for r in (a, b)]  # type: ignore[union-attr]
        assert maps[0] == pytest.approx(maps[1], rel=1e-9, abs=tolerance)


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "SubVP"])
def test_identities_between_solvers(name: str) -> None:
    path = make_path(SDES[name], "karras", 12)
    assert_same_rows(solvers.ddim(), solvers.dpm_solver(1), path)
    assert_same_rows(solvers.ddim(), solvers.euler("rho"), path)
    assert_same_rows(solvers.ddim(1e-12), solvers.ddim(), path, 1e-9)
    assert_same_rows(solvers.ddim(1.0), solvers.ancestral("lower"), path)
    assert_same_rows(solvers.ancestral(1.0), solvers.ancestral("upper"), path)
    assert_same_rows(solvers.ancestral("upper"), solvers.ddpm(), path)
    assert_same_rows(solvers.ancestral("lower"), solvers.ncsn(), path)


def test_on_edm_time_is_rho() -> None:
    path = make_path(EDM(), "karras", 9, end="stop")
    model, x = model_on(EDM()), start_on(EDM())
    for make in (solvers.euler, solvers.heun, solvers.rk4):
        ends = [sample(model, x, make(clock), path=path, progress=False).x for clock in ("t", "rho")]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["ddim", "dpm-1", "dpm-2", "dpm-3", "dpmpp-2m", "ddpm", "ncsn", "euler-rho", "heun-rho"])
def test_the_sample_does_not_depend_on_the_sde(solver: str) -> None:
    """The same path in lam on another SDE is the same sampler in other units of x."""
    method = VARIANTS.get(solver) or solvers.get(solver)
    lams = torch.linspace(-3, 4, 15, dtype=F64)
    ends = []
    for sde in (VP(), VE(), EDM(), CosineVP(), RectifiedFlow()):
        path = Path.from_times(sde, sde.time(lams))
        x = start_on(VP()) * path.points[0].sigma
        end = sample(model_on(sde), x, method, path=path, seed=3, progress=False).x
        ends.append(end / path.points[-1].sigma)
    if solver == "ddpm":
        ends = [ends[0]]  # sigma_u / sigma_v, the ratio of the two variances, is not a function of lam alone
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-9, atol=1e-9)


def test_dpmpp_2m_is_the_published_update() -> None:
    """Algorithm 2 of the paper, written out by hand."""
    sde, model = VP(), model_on(VP())
    path = make_path(sde, "quadratic", 7, end="stop")
    x, old, h_old = start_on(sde), None, None
    for u, v in zip(path.points[:-1], path.points[1:], strict=True):
        m, h = model.x0(x, u.t), v.lam - u.lam
        d = m
        if old is not None and h_old is not None:
            r = h_old / h
            d = (1 + 1 / (2 * r)) * m - 1 / (2 * r) * old
        x, old, h_old = v.sigma / u.sigma * x - v.alpha * (math.exp(-h) - 1) * d, m, h
    # Their code lowers the order of the last step, which the algorithm does not.
    got = sample(model, start_on(sde), solvers.dpmpp_2m(finish="same"), path=path, progress=False).x
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


def test_dpm_solver_3_is_the_published_update() -> None:
    """Algorithm 2 of the paper, written out by hand."""
    sde, model = VP(), model_on(VP())
    path = make_path(sde, "lam", 4, end="stop")
    x = start_on(sde)
    for u, v in zip(path.points[:-1], path.points[1:], strict=True):
        h = v.lam - u.lam
        s1, s2 = (float(sde.time(u.lam + c * h)) for c in (1 / 3, 2 / 3))
        (a1, b1), (a2, b2) = ((float(sde.alpha(s)), float(sde.sigma(s))) for s in (s1, s2))
        e0 = model.eps(x, u.t)
        d1 = model.eps(a1 / u.alpha * x - b1 * math.expm1(h / 3) * e0, s1) - e0
        u2 = a2 / u.alpha * x - b2 * math.expm1(2 * h / 3) * e0
        u2 = u2 - 2 * b2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
        d2 = model.eps(u2, s2) - e0
        x = v.alpha / u.alpha * x - v.sigma * math.expm1(h) * e0 - 1.5 * v.sigma * (math.expm1(h) / h - 1) * d2
    got = sample(model, start_on(sde), "dpm-3", path=path, progress=False).x
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


# Langevin --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_corrector_is_the_published_one(norm: str) -> None:
    """Algorithm 4/5 by hand, after one reverse-diffusion step on a chain, with the same noise."""
    chain, snr = DDPM([0.1, 0.2, 0.3]), 0.16
    sde, problem = chain.sde(), mixture()
    model, x, seeds = problem.model(sde), start_on(VP()), list(range(6))
    path = Path.from_times(sde, [1.0, 2 / 3])
    got = sample(model, x, solvers.predictor_corrector(snr=snr, norm=norm), path=path, seed=seeds, progress=False).x

    noise = FreshNoise(seeds, x.device)
    beta = 0.3
    z = noise.normal(torch.empty_like(x))
    x = (2 - math.sqrt(1 - beta)) * x + beta * model.score(x, 1.0) + math.sqrt(beta) * z
    z = noise.normal(torch.empty_like(x))
    grad = model.score(x, 2 / 3)
    lengths = [v.norm(dim=1, keepdim=True) for v in (z, grad)]
    if norm == "batch":
        lengths = [v.mean() for v in lengths]
    # The path ends here, so that there is no further transition to take alpha from.
    step = 2 * (snr * lengths[0] / lengths[1]) ** 2
    torch.testing.assert_close(got, x + step * grad + torch.sqrt(2 * step) * z, rtol=1e-9, atol=1e-9)


def test_the_corrector_takes_alpha_of_the_transition() -> None:
    chain = DDPM([0.1, 0.2, 0.3])
    path = Path.from_times(chain.sde(), [1.0, 2 / 3, 1 / 3])
    corrections = [op for op in solvers.predictor_corrector().rows(path) if isinstance(op, solvers.Langevin)]
    assert corrections[0].scale == pytest.approx(1 - 0.2) and corrections[1].scale == 1
    levels = NCSN([0.1, 0.2, 0.3])
    path = Path.from_times(levels.sde(), [1.0, 2 / 3, 1 / 3])
    rows = solvers.predictor_corrector(solvers.ncsn(), corrections=2).rows(path)
    assert [op.scale for op in rows if isinstance(op, solvers.Langevin)] == pytest.approx([1] * 4)


@pytest.mark.parametrize("r", [0.05, 0.2, 1.0])
def test_annealed_langevin_reaches_its_stationary_variance_at_each_level(r: float) -> None:
    """With variance V, x <- (1 - r sigma^2 / 2V) x + sqrt(r) sigma z is an AR(1): V_inf = V / (1 - r sigma^2 / 4V)."""
    sde, std, t = VE(), 0.5, 0.4
    path = Path.from_times(sde, [t, t - 1e-6])
    rows = solvers.annealed_langevin(steps_per_level=4000 if r < 0.1 else 1000, step=r).rows(path)
    solver = replace(solvers.annealed_langevin(), rows=lambda _: rows[:-1] if rows[-1].at is None else rows)  # type: ignore[union-attr]
    _, variance = propagate(solver, path, 0.0, std)
    sigma2 = float(sde.sigma(t) ** 2)
    total = std**2 + sigma2
    assert variance == pytest.approx(total / (1 - r * sigma2 / (4 * total)), rel=1e-6)


# Drivers, counts, seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VP", "VE", "EDM"])
@pytest.mark.parametrize("solver", ROW_SOLVERS)
def test_drivers_agree_bit_for_bit(solver: str, name: str) -> None:
    method, sde = solvers.get(solver), SDES[name]
    assert isinstance(method, RowSolver)
    x, model = start_on(sde).float(), model_on(sde)
    rows = method.rows(make_path(sde, "lam", 6))

    class Door:
        def at(self, times: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> object:
            return model.at(times, device=device, dtype=dtype)

    before = x.clone()
    *_, last = solvers.readable(rows, Door(), x, FreshNoise(range(6), x.device))  # type: ignore[arg-type]
    end = solvers.fast(rows, Door(), x, FreshNoise(range(6), x.device))  # type: ignore[arg-type]
    assert torch.equal(last.x, end) and torch.equal(x, before)


def test_a_model_that_returns_its_input_is_not_overwritten() -> None:
    class Identity:
        def at(self, times: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> object:
            return [lambda x: x] * len(times)

    x = torch.randn(2, 3, generator=generator())
    for solver in ("dpmpp-2m", "dpm-3", "heun"):
        method = solvers.get(solver)
        assert isinstance(method, RowSolver)
        rows = method.rows(make_path(VP(), "lam", 5))
        *_, last = solvers.readable(rows, Identity(), x, BasisNoise())  # type: ignore[arg-type]
        assert torch.equal(last.x, solvers.fast(rows, Identity(), x, BasisNoise()))  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_per_step_are_as_declared(solver: str) -> None:
    method = solvers.get(solver)
    declared = method.description.evaluations
    counted = sample(model_on(VP()), (2, 2), method, 5, "t", end="stop", progress=False).evaluations
    if declared is None:
        assert counted > 5
    else:
        assert counted == 5 * declared
    # The last move, to sigma = 0, costs one and is the same for all.
    whole = sample(model_on(VP()), (2, 2), method, 6, "t", progress=False).evaluations
    assert declared is None or whole == counted + 1 + (solver == "annealed-langevin") * declared


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(solver: str) -> None:
    model, path = model_on(VP()), make_path(VP(), "t", 6)
    batch = sample(model, (3, 2), solver, path=path, seed=11, progress=False)
    alone = sample(model, (1, 2), solver, path=path, seed=batch.seeds[1:2], progress=False)
    if solver == "rk45":  # one system for the whole batch: equal to its tolerance
        torch.testing.assert_close(alone.x[0], batch.x[1], rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(alone.x[0], batch.x[1])
    other = sample(model, (3, 2), solver, path=path, seed=12, progress=False)
    assert not torch.allclose(other.x, batch.x)


@pytest.mark.parametrize("solver", ROW_SOLVERS)
def test_rows_survive_json(solver: str) -> None:
    method = solvers.get(solver)
    assert isinstance(method, RowSolver)
    rows = method.rows(make_path(VP(), "lam", 4))
    assert solvers.from_json(json.loads(json.dumps(solvers.to_json(rows)))) == rows


CARRIES_ZERO_ALPHA = {
    *("sde-dpmpp-1", "sde-dpmpp-2m", "sde-dpmpp-3m", "sa"),
    *("euler", "heun", "rk4", "rk45", "ddim", "dpmpp-2m", "ddpm", "ncsn", "reverse-diffusion", "pc"),
    "pc-underdamped",
    *("midpoint", "rk3", "dpmpp-3m", "unipc-2", "unipc-3", "expam-2", "expam-3", "velocity-1", "velocity-2", "velocity-3"),
}


ZERO_ALPHA = {
    "flow": RectifiedFlow(),
    "cosine": CosineVP(),
    "ddpm-chain": DDPM([0.3, 0.5, 0.8, 1.0]).sde(),
    "flow-chain": discretize(RectifiedFlow(), 5).sde(),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("solver", "name"), covering(SOLVERS, ZERO_ALPHA))
def test_alpha_zero_is_carried_on_every_spacing(solver: str, name: str) -> None:
    sde = ZERO_ALPHA[name]
    own = not isinstance(solvers.get(solver), RowSolver)  # a loop of its own is slow
    for path in ("lam",) if own else ("t", "lam"):
        samples = sample(model_on(sde), (64, 2), solver, 40, path, progress=False)
        assert bool(torch.isfinite(samples.x).all())
        assert rms(samples.x) < 3 or solver not in CARRIES_ZERO_ALPHA


def test_inner_stages_from_infinite_lam_are_those_of_velocity() -> None:
    mine = RowSolver(solvers.get("ddim").description, lambda p: solvers.stencil_rows(solvers.Data(), solvers.midpoint, p))
    path = make_path(RectifiedFlow(), "t", 5)
    assert list(mine.rows(path)[:2]) == solvers.stencil_rows(solvers.Velocity(), solvers.midpoint, path)[:2]
    noisy = RowSolver(mine.description, lambda p: solvers.stencil_rows(solvers.Data(1.0), solvers.midpoint, p))
    first = noisy.rows(path)[0]
    assert first.ends_step and first.draw == path.moves[0], "with noise, in one move of the data prediction"


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_torchsde_follows_its_brownian_path(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Euler (and Milstein, the noise being additive) is our Euler-Maruyama on the same increments, to rounding; its SRK
    is closer than Euler to the solution of the same path on a finer grid."""
    sde, model = VP(), model_on(VP())
    times = torch.linspace(1.0, 0.1, 33, dtype=F64).tolist()
    x, seeds = start_on(sde, 4), [3, 4, 5, 6]
    brownian = third_party._per_sample_brownian(seeds, x, times[0] - times[-1], "space-time" if method == "srk" else "none")
    monkeypatch.setattr(third_party, "_per_sample_brownian", lambda *_: brownian)

    class SamePath(FreshNoise):
        def __call__(self, start: solvers.Point, to: solvers.Point, out: torch.Tensor, kernel: float = 0.0) -> torch.Tensor:
            increment = brownian(*(torch.tensor(1.0 - p.t, dtype=F64) for p in (start, to)))
            return out.copy_(increment / math.sqrt(start.t - to.t))

    class Door:
        def __call__(self, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return model.x0(y, t)

    dynamics = affine_dynamics(sde, Door(), 1.0)  # type: ignore[arg-type]

    def ours(factor: int) -> torch.Tensor:
        fine = torch.linspace(1.0, 0.1, 32 * factor + 1, dtype=F64).tolist()
        *_, last = euler_maruyama(dynamics, x, fine, SamePath(seeds, x.device))
        return last.x

    got = sample(model, x, f"torchsde-{method}", path=Path.from_times(sde, times), seed=seeds, progress=False).x
    if method == "srk":
        truth = ours(64)
        assert rms(got - truth) < 0.5 * rms(ours(1) - truth)
    else:
        torch.testing.assert_close(got, ours(1), rtol=1e-8, atol=1e-8)


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match="did you mean 'dpmpp-2m'"):
        solvers.get("DPM++2M")
    with pytest.raises(ValueError, match="did you mean 'euler-maruyama'"):
        solvers.get("euler_maruyma")
    with pytest.raises(ValueError, match=r"one of the \d+ names in list\(scoresde.solvers.SOLVERS\), or a solver object$"):
        solvers.get("qqqqqq")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: solvers.ddim(2.0), "got eta=2.0; expected a number between 0"),
        (lambda: solvers.dpm_solver(4), "expected 1, 2 or 3"),
        (lambda: solvers.dpmpp_2m("exakt"), "expected 'published' or 'exact'"),
        (lambda: solvers.ancestral("beta"), "expected 'lower', 'upper'"),
        (lambda: solvers.ancestral(1.5), "expected 'lower', 'upper'"),
        (lambda: solvers.euler("lam"), "got clock='lam'"),
        (lambda: solvers.euler_maruyama(0.0), "without noise it is the solver 'euler'"),
        (lambda: solvers.predictor_corrector(solvers.rk45()), "expected a solver that makes rows"),
        (lambda: solvers.predictor_corrector(corrections=0), "at least 1"),
        (lambda: solvers.predictor_corrector(norm="mean"), "expected 'sample' or 'batch'"),
        (lambda: solvers.predictor_corrector(snr=-1), "expected a positive number"),
        (lambda: solvers.annealed_langevin(0), "at least 1"),
        (lambda: solvers.annealed_langevin(step=5), "diverge"),
        (lambda: solvers.rk45(rtol=0), "expected positive tolerances"),
        (lambda: solvers.torchsde_solver("heun"), "expected one of"),
        (lambda: solvers.multistep(0), "at least 1"),
        (lambda: solvers.sample_seeds(-1, 2), "at least 0"),
        (lambda: solvers.sample_seeds([1, 2, 3], 2), "expected one per sample"),
    ],
)
def test_bad_arguments(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()  # type: ignore[operator]


def test_explicit_weights_need_a_prediction_without_a_rate() -> None:
    from scoresde.solvers.stencil import rk4

    with pytest.raises(ValueError, match="expected one whose rate is zero"):
        solvers.stencil_rows(solvers.Data(), rk4, make_path(VP(), "t", 3))


# Paths that go both ways, and their end --------------------------------------------------------------------


def test_a_move_towards_the_noise_is_the_forward_kernel() -> None:
    """Up and down again: every solver keeps the law of Gaussian data, to the accuracy of its steps up."""
    sde = VP()
    there = torch.linspace(1.0, 0.3, 400, dtype=F64)
    again = torch.linspace(0.6, 0.05, 400, dtype=F64)
    for name in ("ddim", "dpmpp-2m", "heun", "ddpm", "reverse-diffusion", "dpm-2"):
        method, path = solvers.get(name), Path.from_times(sde, torch.cat([there, again]))
        assert isinstance(method, RowSolver)
        mean, variance = propagate(method, path, 0.8, 0.5)
        end = path.points[-1]
        assert mean == pytest.approx(end.alpha * 0.8, abs=0.01)
        assert variance == pytest.approx(end.alpha**2 * 0.25 + end.sigma**2, abs=0.02)
        assert sum(getattr(row, "at", None) is None for row in method.rows(path)) == 1


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", [solvers.Data, solvers.Noise, solvers.Rho])
def test_the_stages_of_a_stochastic_step_share_its_noise(prediction: type, eta: float) -> None:
    """However a step is cut into stages, the noise at its end has the variance of the whole interval."""
    path = make_path(VP(), "lam", 5, end="stop")
    whole = solvers.stencil_rows(prediction(eta), solvers.multistep(1), path)
    cut = [row for row in solvers.stencil_rows(prediction(eta), solvers.radau, path) if row.ends_step]  # type: ignore[union-attr]
    for one, other in zip(whole, cut, strict=True):
        assert len(other.s) == 3 and len(one.s) == 1  # type: ignore[union-attr]
        assert sum(s**2 for s in other.s) == pytest.approx(one.s[0] ** 2, rel=1e-10)  # type: ignore[union-attr]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_flows_end_is_the_mean_of_both_others_and_closer_for_smooth_data(solver: str) -> None:
    sde, model = EDM(), model_on(EDM())
    x = sde.perturb(
        mixture().sample(100, generator(1), dtype=F64), 0.1, torch.randn(100, 2, generator=generator(2), dtype=F64)
    )
    if solver in ("annealed-langevin", "pc"):
        pytest.skip("it moves at the last point before it leaves it")
    ends = {
        end: sample(model, x, solver, path=Path.from_times(sde, [0.1, 0.0], end), progress=False).x
        for end in ("denoise", "flow")
    }
    torch.testing.assert_close(ends["flow"], (x + ends["denoise"]) / 2)
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-11, 1e-12)
    truth = sample(model, x, tight, path=Path.from_times(sde, [0.1, 1e-6], "stop"), progress=False).x
    assert rms(ends["flow"] - truth) < rms(ends["denoise"] - truth) / 20
    assert rms(ends["flow"] - truth) < rms(x - truth) / 20


def test_mixed_stencils_are_taken_step_by_step() -> None:
    path = make_path(VP(), "lam", 6, end="stop")
    shapes = [solvers.radau, solvers.midpoint, solvers.multistep(1)]
    rows = solvers.stencil_rows(solvers.Noise(), shapes, path)
    assert [row.ends_step for row in rows] == [False, False, True, False, True, True, True, True, True]  # type: ignore[union-attr]


# A centred start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SDES, ["VP", "EDM", "RectifiedFlow"]))
def test_a_centred_start_has_the_mean_of_the_noised_data(name: str) -> None:
    """To the square of alpha / sigma at the end of time, against the marginal in closed form; no step at alpha = 0."""
    sde, mean, variance = SDES[name], torch.tensor([3.0, -1.0], dtype=F64), 2.0
    model, t = Gaussian(mean, variance).model(sde), sde.span[1]
    path = make_path(sde, "lam", 5)
    plain, rows = (solver.rows(path) for solver in (solvers.get("dpmpp-2m"), solvers.centred("dpmpp-2m")))
    if float(sde.alpha(t)) == 0:
        assert rows == plain
        return
    first, rest = rows[0], rows[1:]
    assert list(rest) == list(plain)
    z = float(sde.sigma(t)) * torch.randn(5, 2, generator=generator(), dtype=F64)
    moved = first.a * z + first.w[0] * model.x0(z, t)
    ratio = float((sde.alpha(t) / sde.sigma(t)) ** 2)
    spread = (1 + variance * ratio) ** 0.5  # of the noised data, relative to the noise
    wanted = float(sde.alpha(t)) * mean + spread * z
    bound = variance * ratio * (float(sde.alpha(t)) * mean.norm() + 0.5 * z.norm(dim=1))
    assert bool(((moved - wanted).norm(dim=1) <= bound + 1e-12).all())
    assert bool(((z - wanted).norm(dim=1) > 5 * bound).any()) == (ratio < 1e-3)


def test_a_centred_solver_runs_on_every_driver_and_is_counted() -> None:
    model, x = model_on(EDM()), 80 * torch.randn(4, 2, generator=generator(), dtype=F64)
    for solver in ("dpmpp-2m", "ddpm", "auto", "heun", "pc"):
        made = solvers.centred(solver)
        wanted = sample(model, x, made, 6, seed=1, driver="readable", progress=False)
        plain = sample(model, x, solver, 6, seed=1, progress=False)
        assert wanted.evaluations == plain.evaluations + 1
        found = sample(model, x, made, 6, seed=1, driver="fast", progress=False)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-10, atol=1e-10)
        kept = sample(model, x, made, 6, seed=1, progress=False, callback=lambda state: None)
        torch.testing.assert_close(kept.x, wanted.x, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="got solver 'rk45', which makes no rows"):
        solvers.centred("rk45")
