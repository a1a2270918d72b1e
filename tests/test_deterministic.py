"""The deterministic solvers in their breadth: starts that keep the order, identities, published rules, parity with peers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import diffusers_scheduler, k_diffusion_sampling
from scipy.integrate import quad
from support import SDES, LinearModel, amid_the_modes, covering, generator, model_on, propagate, rms, slopes

from scoresde import EDM, VE, VP, CosineVP, RectifiedFlow, sample, solvers
from scoresde.sde import GaussianSDE
from scoresde.solvers import Noise, Path, Row, RowSolver, make_path
from scoresde.solvers.history import exact_rule, multistep_rows
from scoresde.solvers.methods.third_party import SciPy

F64 = torch.float64


def assert_same_samples(one: RowSolver, other: RowSolver, sde: GaussianSDE, path: Path, tolerance: float = 1e-11) -> None:
    x = torch.randn(6, 2, generator=generator(5), dtype=F64) * path.points[0].sigma
    ends = [sample(model_on(sde), x, solver, path=path, progress=False).x for solver in (one, other)]
    torch.testing.assert_close(ends[0], ends[1], rtol=tolerance, atol=tolerance)


def rugged(sde: GaussianSDE, n: int = 9, seed: int = 3) -> Path:
    """A path whose steps in lam vary threefold, so that a rule for equal steps is not right on it by chance."""
    steps = 0.3 + 0.6 * torch.rand(n, generator=generator(seed), dtype=F64)
    return Path.from_times(sde, sde.time(-3 + torch.cat([torch.zeros(1, dtype=F64), steps.cumsum(0)])), "stop")


# Order -----------------------------------------------------------------------------------------------------

HIGH_ORDER: dict[str, tuple[Callable[[], RowSolver], int]] = {
    "dpmpp-3m-exact": (lambda: solvers.dpmpp_3m("exact", "high-order"), 3),
    "dpmpp-3m-published": (lambda: solvers.dpmpp_3m("published", "high-order"), 2),
    "dpm-3m-exact": (lambda: solvers.dpm_multistep(3, "exact", "high-order"), 3),
    "dpm-3m-published": (lambda: solvers.dpm_multistep(3, "published", "high-order"), 2),
    **{f"deis-{p}": (lambda p=p: solvers.deis(p, "lam", "high-order"), p) for p in (3, 4)},
    **{f"tab-{p}": (lambda p=p: solvers.deis(p, "t", "high-order"), p) for p in (3, 4)},
    **{f"lms-{p}": (lambda p=p: solvers.lms(p, "high-order"), p) for p in (3, 4)},
    **{f"velocity-{p}": (lambda p=p: solvers.velocity(p, "high-order"), p) for p in (3, 4)},
    "unipc-1": (lambda: solvers.unipc(1), 2),
    "unipc-1-bh1": (lambda: solvers.unipc(1, "bh1"), 2),
    "unipc-2-bh1": (lambda: solvers.unipc(2, "bh1", finish="same"), 3),
    "unipc-2-exact": (lambda: solvers.unipc(2, variant="exact", finish="same"), 3),
    "unipc-2-noise": (lambda: solvers.unipc(2, prediction="noise", finish="same"), 3),
    **{f"unipc-{p}": (lambda p=p: solvers.unipc(p, start="high-order", finish="same"), 4) for p in (3, 4)},
    "expam-4": (lambda: solvers.exp_adams_moulton(4, start="high-order"), 4),
    "expam-2-pece": (lambda: solvers.exp_adams_moulton(2, "pece"), 2),
    "expam-3-pece": (lambda: solvers.exp_adams_moulton(3, "pece"), 3),
    "expam-3-noise": (lambda: solvers.exp_adams_moulton(3, prediction="noise", start="high-order"), 3),
}


@pytest.fixture(scope="module")
def references() -> dict[str, torch.Tensor]:
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-13, 1e-13)
    out = {}
    for name in ("VP", "RectifiedFlow"):
        x, t = amid_the_modes(SDES[name])
        out[name] = sample(model_on(SDES[name]), x, tight, t_max=t, end="stop", progress=False).x
    return out


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("solver", "name"), covering(HIGH_ORDER, ["VP", "RectifiedFlow"]))
def test_a_start_of_high_order_keeps_the_order(solver: str, name: str, references: dict[str, torch.Tensor]) -> None:
    make, order = HIGH_ORDER[solver]
    method, (x, t) = make(), amid_the_modes(SDES[name])
    errors = [
        rms(sample(model_on(SDES[name]), x, method, n, t_max=t, end="stop", progress=False).x - references[name])
        for n in ((320, 640) if order == 4 else (160, 320))
    ]
    assert abs(slopes(errors)[0] - order) < 0.3, (errors, slopes(errors))
    if solver.endswith("published"):  # their second difference is at fault, not their start
        assert method.description.order == 2


def test_the_claimed_order_is_that_of_the_start_and_the_finish_asked_for() -> None:
    for make in (solvers.lms, solvers.velocity, solvers.deis):
        assert make(4, start="published").description.order == 2  # type: ignore[operator]
        assert make(4, start="high-order").description.order == 4  # type: ignore[operator]
        assert make(1, start="published").description.order == 1  # type: ignore[operator]
        assert make(4, start="high-order", finish="lower-order").description.order == 2  # type: ignore[operator]
        assert make(4, start="high-order", finish="high-order").description.order == 4  # type: ignore[operator]
    assert [solvers.unipc(p, finish="same").description.order for p in (1, 2, 3, 4)] == [2, 3, 3, 3]
    assert [solvers.unipc(p, start="high-order", finish="same").description.order for p in (1, 2, 3, 4)] == [2, 3, 4, 4]
    assert {solvers.unipc(p, start=s).description.order for p in (1, 2, 3, 4) for s in ("published", "high-order")} == {2}
    assert solvers.dpmpp_3m("exact").description.order == 2
    assert solvers.dpmpp_3m("exact", "high-order").description.order == 3


# The rules -------------------------------------------------------------------------------------------------


@given(
    order=st.integers(1, 4),
    clock=st.sampled_from(["lam", "t", "rho"]),
    name=st.sampled_from(["VP", "CosineVP", "SubVP", "EDM"]),
    seed=st.integers(0, 99),
)
def test_deis_integrates_its_polynomials_exactly(order: int, clock: str, name: str, seed: int) -> None:
    """If eps is a polynomial in the clock of one degree less than nodes, the step is exact: against SciPy's quadrature."""
    sde = SDES[name]
    path = rugged(sde, 5, seed)
    row = solvers.deis(order, clock).rows(path)[4]
    assert isinstance(row, Row)
    u, v = path.points[4:6]
    of_lam = {"lam": lambda lam: lam, "t": lambda lam: float(sde.time(lam)), "rho": lambda lam: math.exp(-lam)}[clock]
    nodes = [path.points[4 - j] for j in range(order)]
    for power in range(order):

        def eps(lam: float, power: int = power) -> float:
            return ((of_lam(lam) - of_lam(u.lam)) / (of_lam(v.lam) - of_lam(u.lam))) ** power

        def integrand(lam: float, eps: Callable[[float], float] = eps) -> float:
            return -v.sigma * math.exp(v.lam - lam) * eps(lam)

        wanted = quad(integrand, u.lam, v.lam, epsabs=1e-13, epsrel=1e-12)[0]
        got = sum(w * eps(node.lam) for w, node in zip(row.w, nodes, strict=True))
        assert got == pytest.approx(wanted, rel=1e-8, abs=1e-9 * v.sigma)


@pytest.mark.parametrize("prediction", [solvers.Data(), Noise(), solvers.Rho(), solvers.Velocity()], ids=repr)
def test_a_rule_that_is_exact_is_the_stencil(prediction: solvers.Prediction) -> None:
    """Two ways to the same rows: as a rule over points, and as a stencil; with and without an opening, up and down."""
    lams = torch.cat([torch.linspace(-3, 1, 9), torch.linspace(-1, 4, 8)]).double()
    path = Path.from_times(VP(), VP().time(lams))
    for opening in ([], [solvers.midpoint] * 2):
        shapes = ([*opening, solvers.multistep(3)] * 7)[: len(opening) + 1]
        one = multistep_rows(prediction, path, (3, exact_rule), opening=opening)
        two = solvers.stencil_rows(prediction, _per_step(path, shapes), path)
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert isinstance(a, Row) and isinstance(b, Row)
            assert (a.at, a.to, a.a, a.s, a.ends_step) == (b.at, b.to, b.a, b.s, b.ends_step)
            assert a.w == pytest.approx(b.w, rel=1e-13)


def _per_step(path: Path, shapes: list[solvers.stencil.Stencil]) -> list[solvers.stencil.Stencil]:
    out, since = [], 0
    for u, v in path.moves:
        since = 0 if v.lam < u.lam else since + 1
        if since:
            out.append(shapes[min(since, len(shapes)) - 1])
    return out


def test_the_published_three_step_rule_lacks_a_factor_of_two() -> None:
    """It is exact on lines, and misses half of the integral of a parabola."""
    path = rugged(VP())
    for published, exact in [
        (solvers.dpmpp_3m(finish="same"), solvers.dpmpp_3m("exact", finish="same")),
        (solvers.dpm_multistep(3, finish="same"), solvers.dpm_multistep(3, "exact", finish="same")),
    ]:
        for i in range(2, 9):
            a, b = published.rows(path)[i], exact.rows(path)[i]
            assert isinstance(a, Row) and isinstance(b, Row)
            u, v = path.points[i : i + 2]
            theta = [(path.points[i - j].lam - u.lam) / (v.lam - u.lam) for j in range(3)]
            for power, share in ((0, 1.0), (1, 1.0), (2, 0.5)):
                sums = [sum(w * x**power for w, x in zip(row.w, theta, strict=True)) for row in (a, b)]
                assert sums[0] == pytest.approx(share * sums[1], rel=1e-11)


def test_what_is_wrong_with_the_published_ipndm_v() -> None:
    """It is not Adams-Bashforth, not even for equal steps; for steps that vary its weights do not add up to one."""
    sde = EDM()
    equal = Path.from_times(sde, torch.linspace(5.0, 1.0, 9, dtype=F64), "stop")
    weights = lambda solver, path, i: [w / (path.points[i + 1].t - path.points[i].t) for w in solver.rows(path)[i].w]  # noqa: E731
    third = np.array([1, -3, 3, -1])
    published, exact = (weights(solvers.ipndm_v(variant=v), equal, 6) for v in ("published", "exact"))
    assert exact == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    np.testing.assert_allclose(np.array(published) - np.array(exact), third / 12, atol=1e-12)
    assert weights(solvers.ipndm_v(3), equal, 6) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    varying = Path.from_times(sde, [9.0, 8.0, 5.5, 5.0, 3.5, 3.0, 1.5, 1.0], "stop")
    assert abs(sum(weights(solvers.ipndm_v(), varying, 6)) - 1) > 0.01
    assert sum(weights(solvers.ipndm_v(variant="exact"), varying, 6)) == pytest.approx(1)


def ipndm_v_weights(
    h: float, h1: float, h2: float, h3: float, *, brackets: bool = False, sign: bool = False, ratio: bool = False
) -> list[float]:
    """The authors' four weights, in their own order of operations, with any of three corrections."""
    b1 = h * (h + h1) / (h1 * (h1 + h2))
    b2 = h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    g1 = (1 - h / (3 * (h + h1))) / 2
    t1 = g1 * b1 if brackets else (1 - h / (3 * (h + h1)) * b1) / 2
    t2 = (g1 + (-1 if sign else 1) * (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))) * b2
    r, q = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    return [
        (2 + h / h1) / 2 + t1 + t2,
        -(h / h1) / 2 - (1 + r) * t1 - (1 + r + q) * t2,
        t1 * r + (r + q * (1 + h2 / h3)) * t2,
        -t2 * q * (h2 / h3 if ratio else r),
    ]


@given(steps=st.lists(st.floats(0.2, 1.0), min_size=4, max_size=4))
def test_the_published_ipndm_v_is_adams_bashforth_but_for_three_slips(steps: list[float]) -> None:
    """A bracket, a sign and a ratio: with all three put right it is the exact rule; the ratio alone makes the sum 1."""
    h3, h2, h1, h = steps
    times = torch.tensor([9.0, *(9.0 - t for t in itertools.accumulate(steps))], dtype=F64)
    path = Path.from_times(EDM(), times, "stop")
    rows = {v: solvers.ipndm_v(variant=v).rows(path)[3] for v in ("published", "exact")}
    got = {v: [-w / h for w in row.w] for v, row in rows.items()}  # type: ignore[union-attr]
    assert got["published"] == pytest.approx(ipndm_v_weights(h, h1, h2, h3), rel=1e-9)
    assert got["exact"] == pytest.approx(
        ipndm_v_weights(h, h1, h2, h3, brackets=True, sign=True, ratio=True), rel=1e-9, abs=1e-12
    )
    assert sum(ipndm_v_weights(h, h1, h2, h3, ratio=True)) == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_the_published_update(order: int) -> None:
    """By hand in rho: DDIM steps with the Adams-Bashforth weights of equal steps."""
    table = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    path, model = rugged(EDM()), model_on(EDM())
    start = x = torch.randn(4, 2, generator=generator(), dtype=F64) * path.points[0].sigma
    past: list[torch.Tensor] = []
    for u, v in path.moves:
        past = [model.eps(x, u.t), *past][:order]
        x = x + (v.t - u.t) * sum(w * e for w, e in zip(table[len(past) - 1], past, strict=True))
    got = sample(model, start, solvers.ipndm(order), path=path, progress=False).x
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


def test_pndm_is_the_published_update() -> None:
    """Algorithm 2 by hand on a variance-preserving path: transfer by DDIM, Runge-Kutta thrice, then Adams-Bashforth."""
    sde, model = VP(), model_on(VP())
    path = make_path(sde, "t", 6, t_min=0.05, end="stop")

    def transfer(x: torch.Tensor, eps: torch.Tensor, t: float, s: float) -> torch.Tensor:
        x0 = (x - sde.sigma(t) * eps) / sde.alpha(t)
        return sde.alpha(s) * x0 + sde.sigma(s) * eps

    start = x = torch.randn(4, 2, generator=generator(), dtype=F64)
    past: list[torch.Tensor] = []
    for i, (t, s) in enumerate(itertools.pairwise(path.times)):
        e1, mid = model.eps(x, t), (t + s) / 2
        past = [e1, *past][:4]
        if i < 3:
            e2 = model.eps(transfer(x, e1, t, mid), mid)
            e3 = model.eps(transfer(x, e2, t, mid), mid)
            e4 = model.eps(transfer(x, e3, t, s), s)
            eps = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            eps = (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3]) / 24
        x = transfer(x, eps, t, s)
    got = sample(model, start, "pndm", path=path, progress=False)
    torch.testing.assert_close(got.x, x, rtol=1e-10, atol=1e-10)
    assert got.evaluations == 6 + 9


def test_plms_is_the_published_update() -> None:
    """As in Stable Diffusion, by hand: a first step with the mean of eps at both ends, then Adams and Bashforth."""
    sde, model = VP(), model_on(VP())
    path = make_path(sde, "t", 7, t_min=0.05, end="stop")

    def transfer(x: torch.Tensor, eps: torch.Tensor, u: solvers.Point, v: solvers.Point) -> torch.Tensor:
        return v.alpha * (x - u.sigma * eps) / u.alpha + v.sigma * eps

    table = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    start = x = torch.randn(4, 2, generator=generator(), dtype=F64)
    past: list[torch.Tensor] = []
    for i, (u, v) in enumerate(path.moves):
        past = [model.eps(x, u.t), *past][:4]
        eps = sum(w * e for w, e in zip(table[len(past) - 1], past, strict=True))
        if i == 0:
            eps = (past[0] + model.eps(transfer(x, past[0], u, v), v.t)) / 2
        x = transfer(x, eps, u, v)  # type: ignore[arg-type]
    got = sample(model, start, "plms", path=path, progress=False)
    torch.testing.assert_close(got.x, x, rtol=1e-10, atol=1e-10)
    assert got.evaluations == 8


def test_gradient_estimation_extrapolates_eps() -> None:
    path, model = rugged(VE()), model_on(VE())
    start = x = torch.randn(4, 2, generator=generator(), dtype=F64) * path.points[0].sigma
    old = None
    for u, v in path.moves:
        eps = model.eps(x, u.t)
        x = x + (v.sigma - u.sigma) * (eps if old is None else 2 * eps - old)
        old = eps
    got = sample(model, start, "gradient-estimation", path=path, progress=False).x
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


def test_kuttas_rule_by_hand() -> None:
    """dx/dt = x on EDM's clock, by a linear model: 1 + z + z^2/2 + z^3/6 is the whole step."""
    path = Path.from_times(EDM(), [3.0, 2.0], "stop")
    for make, powers in ((solvers.explicit_midpoint, 2), (solvers.rk3, 3), (solvers.rk4, 4)):

        class Growing(LinearModel):
            def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return x - t * x  # the slope (x - D) / sigma is x

        x = torch.ones(1, 1, dtype=F64)
        end = solvers.fast(make().rows(path), Growing(EDM(), 0.0, 1.0), x, None)  # type: ignore[arg-type]
        assert float(end) == pytest.approx(sum((-1) ** k / math.factorial(k) for k in range(powers + 1)))


# Identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "RectifiedFlow"])
def test_identities(name: str) -> None:
    sde = SDES[name]
    path = rugged(sde)
    for first in (
        *(solvers.deis(1, clock) for clock in ("lam", "t", "rho")),
        *(solvers.lms(1), solvers.velocity(1), solvers.ipndm(1), solvers.ipndm_v(1), solvers.gradient_estimation(1.0)),
    ):
        assert_same_samples(first, solvers.ddim(), sde, path)
    assert_same_samples(solvers.lms(3), solvers.deis(3, "rho"), sde, path)
    assert_same_samples(solvers.lms(4), solvers.ipndm_v(4, "exact"), sde, path)
    assert_same_samples(solvers.ipndm(2), solvers.gradient_estimation(1.5), sde, path)
    for finish in ("same", "lower-order", "high-order"):
        assert_same_samples(solvers.dpm_multistep(3, "exact", finish=finish), solvers.deis(3, finish=finish), sde, path)
        assert_same_samples(solvers.dpm_multistep(2, "exact", finish=finish), solvers.deis(2, finish=finish), sde, path)
    exact = [solvers.unipc(p, variant="exact", prediction=kind, finish="same") for p, kind in PEC]
    assert_same_samples(exact[0], _pec(2, 3), sde, path)
    assert_same_samples(exact[1], _pec(3, 4), sde, path)
    assert_same_samples(exact[2], _pec(3, 4, Noise()), sde, path)
    assert_same_samples(solvers.exp_adams_moulton(3), _pec(3, 3), sde, path)
    trapezoid = solvers.compose(solvers.get("heun").description, solvers.Data(), solvers.trapezoid)
    assert_same_samples(solvers.exp_adams_moulton(2, "pece"), trapezoid, sde, path)
    if name == "RectifiedFlow":
        assert_same_samples(solvers.velocity(1), solvers.euler("t"), sde, path)
    if name == "EDM":
        assert_same_samples(solvers.deis(3, "t"), solvers.deis(3, "rho"), sde, path)


PEC = [(2, "data"), (3, "data"), (3, "noise")]


def _pec(predictor: int, corrector: int, prediction: solvers.Prediction | None = None) -> RowSolver:
    """Predict, evaluate, correct, in the plainest form: a list of values and the one coefficient routine."""
    kind = prediction or solvers.Data()

    def rows(path: Path) -> list[solvers.rows.Op]:
        out: list[solvers.rows.Op] = []
        for i, (u, v) in enumerate(path.moves):
            h = v.lam - u.lam

            def weights(lams: list[float], u: solvers.Point = u, v: solvers.Point = v, h: float = h) -> tuple[float, ...]:
                integrals = solvers.lagrange_integrals([(lam - u.lam) / h for lam in lams], kind.rate * h)
                return tuple(kind.gain(v) * h * value for value in integrals)

            before = [p.lam for p in reversed(path.points[: i + 1])]
            last, first = i == len(path) - 1, i == 0
            p, q = kind.mix(u) if first else (0.0, 1.0)
            out.append(Row(v, u if first else None, kind.carry(u, v), weights(before[:predictor]), p=p, q=q, ends_step=last))
            if not last:
                p, q = kind.mix(v)
                out.append(Row(v, v, kind.carry(u, v), weights([v.lam, *before][:corrector]), p=p, q=q))
        return out

    return RowSolver(solvers.get("unipc-2").description, rows)


@pytest.mark.parametrize(
    "solver",
    [
        *("dpm-fast", "dpm-2m", "dpm-3m", "dpmpp-2s", "dpmpp-3s", "dpmpp-3m", "deis-3", "rhoab-3", "unipc-2", "unipc-3"),
        *("expam-3", "lms", "plms", "ipndm", "ipndm-v", "gradient-estimation"),
    ],
)
def test_the_sample_does_not_depend_on_the_sde(solver: str) -> None:
    lams = torch.linspace(-3, 4, 13, dtype=F64)
    ends = []
    for sde in (VP(), VE(), EDM(), CosineVP(), RectifiedFlow()):
        path = Path.from_times(sde, sde.time(lams), "stop")
        x = torch.randn(6, 2, generator=generator(5), dtype=F64) * path.points[0].sigma
        ends.append(sample(model_on(sde), x, solver, path=path, progress=False).x / path.points[-1].sigma)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-9, atol=1e-9)


# Paths -----------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), finish=st.sampled_from(["published", "high-order"]))
def test_the_budget_of_dpm_fast_is_kept(n: int, finish: str) -> None:
    """One evaluation per move of the path; given a number, a path of its own, of the fewest steps or one more."""
    path = make_path(VP(), "lam", n, end="stop")
    grouped = [row for row in solvers.dpm_fast(finish=finish).rows(path) if isinstance(row, Row)]
    own = make_path(VP(), "lam", n // 3 + 1 if finish == "published" else -(-n // 3), end="stop")
    given_steps = [row for row in solvers.dpm_fast(n, finish).rows(own) if isinstance(row, Row)]
    for rows in (grouped, given_steps):
        assert sum(row.at is not None for row in rows) == n
    assert [row.to for row in given_steps if row.ends_step] == list(own.points[1:])
    assert {row.to for row in grouped if row.ends_step} <= set(path.points) and grouped[-1].to == path.points[-1]


@pytest.mark.parametrize("given_number", [True, False])
@pytest.mark.parametrize("finish", ["published", "high-order"])
@pytest.mark.parametrize("remainder", [0, 1, 2])
def test_the_order_of_dpm_fast_is_that_of_its_last_step(remainder: int, finish: str, given_number: bool) -> None:
    """Where the model still changes at the end of the path, so that the last step shows."""
    sde, model = VP(), model_on(VP())
    x, t = amid_the_modes(sde)
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-13, 1e-13)
    truth = sample(model, x, tight, t_max=t, t_min=0.2, end="stop", progress=False).x
    errors = []
    for n in (120 + remainder, 240 + remainder):
        method = solvers.dpm_fast(n if given_number else None, finish)
        steps = n if not given_number else n // 3 + 1 if finish == "published" else -(-n // 3)
        errors.append(rms(sample(model, x, method, steps, t_max=t, t_min=0.2, end="stop", progress=False).x - truth))
    order = 3 if finish == "high-order" or remainder == 2 else 2
    assert abs(slopes(errors)[0] - order) < 0.2, (errors, slopes(errors))
    assert order == method.description.order or not given_number
    assert solvers.dpm_fast(finish=finish).description.order == (3 if finish == "high-order" else 2)


@pytest.mark.parametrize("solver", ["dpm-fast", "dpmpp-3m", "unipc-3", "expam-3", "pndm", "plms", "tab-3", "velocity-3"])
def test_history_ends_where_the_path_goes_back(solver: str) -> None:
    """Up, down and up again on Gaussian data, with as many evaluations as moves up (and those of a second start)."""
    sde = VP()
    times = torch.cat([torch.linspace(1.0, 0.3, 300, dtype=F64), torch.linspace(0.6, 0.05, 300, dtype=F64)])
    method, path = solvers.get(solver), Path.from_times(sde, times, "stop")
    assert isinstance(method, RowSolver)
    mean, variance = propagate(method, path, 0.8, 0.5)
    end = path.points[-1]
    assert mean == pytest.approx(end.alpha * 0.8, abs=1e-4)
    assert variance == pytest.approx(end.alpha**2 * 0.25 + end.sigma**2, abs=1e-4)
    evaluations = sum(getattr(row, "at", None) is not None for row in method.rows(path))
    assert evaluations == 598 + {"pndm": 18, "plms": 2}.get(solver, 0)
    again = method.rows(Path(sde, path.points[300:], "stop"))  # the second part is as if it were alone
    for a, b in zip(method.rows(path)[-len(again) :], again, strict=True):
        assert isinstance(a, Row) and isinstance(b, Row)
        assert (a.at is None, a.ends_step, len(a.w)) == (b.at is None, b.ends_step, len(b.w))
        assert (a.a, a.p, a.q, *a.w) == pytest.approx((b.a, b.p, b.q, *b.w), rel=1e-9)


def test_a_high_order_start_begins_again_after_a_move_towards_the_noise() -> None:
    path = Path.from_times(VP(), [1.0, 0.8, 0.6, 0.4, 0.7, 0.5, 0.3, 0.1], "stop")
    for method in (solvers.lms(3, "high-order"), solvers.unipc(3, start="high-order")):
        stages = [isinstance(row, Row) and row.at is not None for row in method.rows(path)]
        assert sum(stages) == 6 + 4 * (2 if "unipc" in method.name else 1) - 0


def test_starts_at_alpha_zero() -> None:
    """From alpha = 0 the first step is the data prediction's alone, and nothing is interpolated over it."""
    sde = RectifiedFlow()
    path = make_path(sde, "t", 6, end="stop")
    for method in (solvers.dpmpp_3m(), solvers.unipc(3), solvers.exp_adams_moulton(3)):
        first, second = method.rows(path)[:2]
        assert isinstance(first, Row) and isinstance(second, Row)
        assert first.ends_step and first.w == pytest.approx((path.points[1].alpha,)) and second.w[1:] == ()
    first, second = solvers.unipc(3, prediction="noise").rows(path)[:2]
    assert (first.p, first.q) == (0, 1) and second.p != 0 and second.w[1:] == (), "from there in the data prediction"
    stages = solvers.dpmpp_3m("exact", "high-order").rows(path)[:2]
    assert [row.ends_step for row in stages] == [False, True] and stages[0].p != 0, "in Velocity, where there is a middle"


# Peers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [
        (solvers.dpmpp_3m("k-diffusion"), "sample_dpmpp_3m_sde", {"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
        (solvers.dpmpp_2s(), "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
        (solvers.deis(2, "rho"), "sample_lms", {"order": 2}),
        (solvers.lms(3), "sample_lms", {"order": 3}),
        (solvers.lms(), "sample_lms", {}),
    ],
    ids=lambda value: str(value) if isinstance(value, str | RowSolver) else "",
)
def test_equal_to_k_diffusion(ours: RowSolver, theirs: str, kwargs: dict[str, object]) -> None:
    peer = k_diffusion_sampling()
    sde, model = EDM(), model_on(EDM())
    sigmas = peer.get_sigmas_karras(12, 0.01, 80.0).to(F64)
    if theirs == "sample_lms":
        sigmas = sigmas[:-1]  # it integrates on to sigma = 0, where we denoise
    x = 80 * torch.randn(8, 2, generator=generator(), dtype=F64)
    wanted = getattr(peer, theirs)(lambda y, s: model.x0(y, s[0]), x.clone(), sigmas, disable=True, **kwargs)
    end = "stop" if theirs == "sample_lms" else "denoise"
    got = sample(model, x, ours, path=Path.from_times(sde, sigmas.clamp(max=80.0), end), progress=False).x
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("evaluations", [7, 8, 9, 12])
def test_dpm_fast_is_equal_to_k_diffusions(evaluations: int) -> None:
    peer = k_diffusion_sampling()
    sde, model = EDM(), model_on(EDM())
    x = 80 * torch.randn(8, 2, generator=generator(), dtype=F64)
    torch.set_default_dtype(F64)  # in which it lays out its grid
    try:
        ends = (torch.tensor(-math.log(sigma)) for sigma in (80.0, 0.01))
        wanted = peer.DPMSolver(lambda y, s: model.x0(y, s[0])).dpm_solver_fast(x, *ends, evaluations)
    finally:
        torch.set_default_dtype(torch.float32)
    path = make_path(sde, "lam", evaluations // 3 + 1, t_min=0.01, end="stop")
    got = sample(model, x, solvers.dpm_fast(evaluations), path=path, progress=False)
    torch.testing.assert_close(got.x, wanted, rtol=1e-10, atol=1e-10)
    assert got.evaluations == evaluations
    # The same steps between the ends of as many moves, however these are spaced.
    uneven = make_path(sde, "karras", evaluations, t_min=0.01, end="stop")
    got = sample(model, x, solvers.dpm_fast(spacing="even"), path=uneven, progress=False)
    torch.testing.assert_close(got.x, wanted, rtol=1e-10, atol=1e-10)
    assert got.evaluations == evaluations


@pytest.mark.parametrize("spacing", ["path", "even"])
def test_dpm_fast_in_data_prediction_is_third_order(spacing: str) -> None:
    sde, model = VP(), model_on(VP())
    x, t = amid_the_modes(sde)
    truth = sample(model, x, solvers.rk45(1e-12, 1e-12), 1, t_max=t, t_min=0.2, end="stop", progress=False).x
    method = solvers.dpm_fast(finish="high-order", spacing=spacing, prediction=solvers.Data())
    ends = [sample(model, x, method, n, t_max=t, t_min=0.2, end="stop", progress=False).x for n in (60, 120)]
    assert abs(slopes([rms(end - truth) for end in ends])[0] - 3) < 0.2


DIFFUSERS = [
    *[
        (
            solvers.unipc(p, b, kind, finish="same"),
            ("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
            {"solver_order": p, "solver_type": b, "predict_x0": kind == "data"},
        )
        for p, b, kind in [
            *[(1, "bh2", "data"), (2, "bh2", "data"), (2, "bh1", "data"), (3, "bh2", "data"), (3, "bh1", "data")],
            *[(2, "bh2", "noise"), (3, "bh1", "noise"), (4, "bh2", "data")],
        ]
    ],
    *[
        (
            solver,
            ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
            {"solver_order": p, "algorithm_type": kind, "final_sigmas_type": "sigma_min"},
        )
        for solver, p, kind in [
            (solvers.dpm_multistep(2, finish="same"), 2, "dpmsolver"),
            (solvers.dpm_multistep(3, finish="same"), 3, "dpmsolver"),
            (solvers.dpmpp_2m(finish="same"), 2, "dpmsolver++"),
            (solvers.dpmpp_3m(finish="same"), 3, "dpmsolver++"),
        ]
    ],
    *[(solvers.deis(p), ("scheduling_deis_multistep", "DEISMultistepScheduler"), {"solver_order": p}) for p in (1, 2, 3)],
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("ours", "where", "kwargs"), DIFFUSERS, ids=lambda v: str(v) if isinstance(v, RowSolver) else "")
def test_equal_to_diffusers(ours: RowSolver, where: tuple[str, str], kwargs: dict[str, object]) -> None:
    sde, model = VP(), model_on(VP())
    path = rugged(sde)
    scheduler = diffusers_scheduler(*where)(lower_order_final=False, **kwargs)
    scheduler.set_timesteps(len(path))
    scheduler.sigmas = torch.tensor([math.exp(-p.lam) for p in path.points], dtype=F64)  # it keeps float32
    x = start = torch.randn(4, 2, generator=generator(), dtype=F64) * path.points[0].sigma
    for i, u in enumerate(path.points[:-1]):
        scheduler._step_index = i if scheduler._step_index is None else scheduler._step_index
        eps = model.eps(x, u.t)
        if "dpmsolver_" in where[0]:  # its step casts the sample to float32; what it calls does not
            converted = scheduler.convert_model_output(eps, sample=x)
            outputs = [*scheduler.model_outputs[1:], converted]
            scheduler.model_outputs = outputs
            order = min(i + 1, scheduler.config.solver_order)
            update = ["dpm_solver_first_order", "multistep_dpm_solver_second_order", "multistep_dpm_solver_third_order"]
            x = getattr(scheduler, update[order - 1] + "_update")(converted if order == 1 else outputs, sample=x)
            scheduler._step_index += 1
        else:
            x = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
    got = sample(model, start, ours, path=path, progress=False).x
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


def test_plms_is_equal_to_diffusers() -> None:
    model, sde = model_on(VP()), VP()
    scheduler = diffusers_scheduler("scheduling_pndm", "PNDMScheduler")(skip_prk_steps=True)
    scheduler.set_timesteps(10)
    times = torch.linspace(0.1, 1.0, 10, dtype=F64)
    scheduler.alphas_cumprod = torch.zeros(1000, dtype=F64)
    scheduler.alphas_cumprod[torch.arange(0, 1000, 100)] = sde.alpha(times) ** 2
    time_of = dict(zip(range(0, 1000, 100), times.tolist(), strict=True))
    x = start = torch.randn(4, 2, generator=generator(), dtype=F64)
    for t in scheduler.timesteps[:-1].tolist():  # the last one goes to sigma = 0
        x = scheduler.step(model.eps(x, time_of[t]), t, x).prev_sample
    path = Path.from_times(sde, times.flip(0), "stop")
    got = sample(model, start, "plms", path=path, progress=False)
    torch.testing.assert_close(got.x, x, rtol=1e-10, atol=1e-10)
    assert got.evaluations == 10


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: solvers.deis(5), "got order=5; expected 1, 2, 3 or 4"),
        (lambda: solvers.deis(2, "sigma"), "got clock='sigma'; expected 'lam', 't' or 'rho'"),
        (lambda: solvers.lms(4, "heun"), "got start='heun'; expected 'published' or 'high-order'"),
        (lambda: solvers.unipc(5), "got order=5; expected 1, 2, 3 or 4"),
        (lambda: solvers.unipc(2, "bh3"), "got b='bh3'; expected 'bh1' or 'bh2'"),
        (lambda: solvers.unipc(2, prediction="v"), "got prediction='v'; expected 'data' or 'noise'"),
        (lambda: solvers.unipc(2, variant="true"), "got variant='true'; expected 'published' or 'exact'"),
        (lambda: solvers.exp_adams_moulton(1), "got order=1; expected 2, 3 or 4"),
        (lambda: solvers.exp_adams_moulton(2, "pecece"), "got mode='pecece'; expected 'pec' or 'pece'"),
        (lambda: solvers.dpmpp_3m("exakt"), "got variant='exakt'; expected 'published' or 'exact'"),
        (lambda: solvers.dpmpp_2m(finish="final"), "got finish='final'; expected one of 'published', 'lower-order', 'same'"),
        (lambda: solvers.er_sde_solver(finish="high-order"), "no singlestep step; expected 'same' or 'lower-order'"),
        (lambda: solvers.sde_dpmpp("2s", finish="lower-order"), "whose steps look back on none; expected 'same'"),
        (lambda: solvers.dpm_multistep(4), "got order=4; expected 2 or 3"),
        (lambda: solvers.ipndm(0), "got order=0; expected 1, 2, 3 or 4"),
        (lambda: solvers.ipndm_v(4, "v"), "got variant='v'; expected 'published' or 'exact'"),
        (lambda: solvers.gradient_estimation(0.5), "got gamma=0.5; expected a number between 1"),
        (lambda: solvers.explicit_midpoint("lam"), "got clock='lam'; expected one of t, rho"),
        (lambda: solvers.dpm_fast(0), "got evaluations=0; expected at least 1"),
        (lambda: solvers.dpm_fast(finish="exact"), "got finish='exact'; expected 'published' or 'high-order'"),
        (lambda: solvers.dpm_fast(spacing="lam"), "got spacing='lam'; expected 'path' or 'even'"),
        (
            lambda: solvers.dpm_fast(9).rows(make_path(VP(), "lam", 9)),
            "got a path of 8 steps for 9 evaluations of 'dpm-fast'; expected 4 steps",
        ),
    ],
)
def test_bad_arguments(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
