"""What solvers, paths and drivers obey, against formulas of the papers written out here and not against one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, finite_start, generator, model_on
from torch import Tensor

from scoresde import VP, sample, solvers
from scoresde.analysis import moments
from scoresde.sde import GaussianSDE
from scoresde.solvers import DRIVERS, SOLVERS, FreshNoise, Path, Row, RowSolver, make_path
from scoresde.solvers.adaptive.pairs import DPM_12, DPM_23, Pair, Where, _phi

F64 = torch.float64
CPU = torch.device("cpu")
ROWS = {name: solver for name in SOLVERS if isinstance(solver := solvers.get(name), RowSolver)}


# Paths ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@given(steps=st.integers(2, 60), low=st.floats(0.02, 0.3))
def test_karras_is_equidistant_in_the_seventh_root_of_sigma_over_alpha(name: str, steps: int, low: float) -> None:
    """Karras et al., 2022, equation (5): sigma there is that of x / alpha, on every SDE and not on EDM alone."""
    sde = SDES[name]
    start = finite_start(sde)
    path = make_path(sde, "karras", steps, t_max=start, t_min=low * start, end="stop")
    level = np.array([(float(sde.sigma(t)) / float(sde.alpha(t))) ** (1 / 7) for t in path.times])
    assert len(path.times) == steps + 1 and path.times[0] == start and path.times[-1] == low * start
    np.testing.assert_allclose(np.diff(level), (level[-1] - level[0]) / steps, rtol=1e-7)


@pytest.mark.parametrize("name", SDES)
@given(steps=st.integers(2, 60), low=st.floats(0.02, 0.3))
def test_the_other_spacings_are_equidistant_in_what_they_are_named_after(name: str, steps: int, low: float) -> None:
    sde = SDES[name]
    start = finite_start(sde)
    measures: dict[str, Callable[[float], float]] = {
        "t": lambda t: t,
        "quadratic": math.sqrt,
        "lam": lambda t: math.log(float(sde.alpha(t)) / float(sde.sigma(t))),
    }
    for spacing, measure in measures.items():
        path = make_path(sde, spacing, steps, t_max=start, t_min=low * start, end="stop")
        values = np.array([measure(t) for t in path.times])
        np.testing.assert_allclose(np.diff(values), (values[-1] - values[0]) / steps, rtol=1e-7, err_msg=spacing)


# Moves towards the noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ROWS)
@pytest.mark.parametrize("name", ["VP", "SubVP", "VE", "FunctionSDE"])
def test_a_move_towards_the_noise_is_the_forward_transition(name: str, solver: str) -> None:
    """x_v given x_u is N(alpha_v / alpha_u x_u, sigma_v^2 - (alpha_v / alpha_u)^2 sigma_u^2), and nothing is evaluated."""
    sde, low = SDES[name], SDES[name].span[1]
    times = [low * share for share in (0.93, 0.61, 0.29, 0.52, 0.2)]
    path = Path.from_times(sde, times, "stop")
    back = path.points[3]
    rows = ROWS[solver].rows(path)
    i = next(i for i, row in enumerate(rows) if row.to == back)
    row, here = rows[i], rows[i - 1].to.t  # where EDM's churn has been before
    assert isinstance(row, Row) and not any(row.w) and row.ends_step
    assert here == path.times[2] or solver == "edm"
    alpha, sigma = (np.array([float(f(t)) for t in (here, back.t)]) for f in (sde.alpha, sde.sigma))
    ratio = alpha[1] / alpha[0]
    assert row.a == pytest.approx(ratio, rel=1e-12)
    assert math.hypot(*row.s) == pytest.approx(math.sqrt(sigma[1] ** 2 - ratio**2 * sigma[0] ** 2), rel=1e-9)


# Annealed Langevin dynamics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@given(mean=st.floats(-3, 3), std=st.floats(0, 2), corrections=st.integers(1, 6), step=st.floats(0.01, 1.5))
def test_annealed_langevin_keeps_alpha_times_the_mean_and_the_variance_of_its_recursion(
    name: str, mean: float, std: float, corrections: int, step: float
) -> None:
    """Song and Ermon's algorithm 1 on N(mean, std^2): V' = (1 - c)^2 V + r sigma^2 with c = r sigma^2 / 2 V_t."""
    sde = SDES[name]
    path = make_path(sde, "lam", 7, t_max=0.9 * sde.span[1], t_min=0.05 * sde.span[1], end="stop")
    got = moments(solvers.annealed_langevin(corrections, step), path, [mean], std**2)
    alpha, sigma = (np.array([float(f(t)) for t in path.times]) for f in (sde.alpha, sde.sigma))
    target = alpha**2 * std**2 + sigma**2
    variance = target[0]
    for i in range(len(path)):
        for _ in range(corrections):
            pull = 0.5 * step * sigma[i] ** 2 / target[i]
            variance = (1 - pull) ** 2 * variance + step * sigma[i] ** 2
        variance *= (alpha[i + 1] / alpha[i]) ** 2  # x / alpha is kept from level to level
    assert float(got.mean) == pytest.approx(alpha[-1] * mean, rel=1e-9, abs=1e-9)
    assert float(got.covariance) == pytest.approx(variance, rel=1e-9)


# Counting -------------------------------------------------------------------------------------------------------------


class Exact:
    """The data prediction of a mixture, bound to times or not, as drivers ask for it."""

    def __init__(self, sde: GaussianSDE) -> None:
        self.model = model_on(sde)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model.x0(x, t)

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        return self.model.at(times, device=device, dtype=dtype)


@pytest.mark.parametrize("driver", [name for name in DRIVERS if name not in ("compiled", "cuda-graph")])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "dpm-3", "unipc-3", "heun", "ddpm", "pc", "annealed-langevin"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steps_are_counted_from_one_to_their_number_by_every_driver(steps: int, solver: str, driver: str) -> None:
    if solver == "pc" and driver in ("parallel", "differentiable"):
        pytest.skip("a correction whose step depends on the state does not run there")
    path = make_path(VP(), "lam", steps)
    rows, x, noise = ROWS[solver].rows(path), torch.zeros(2, 2, dtype=F64), FreshNoise(range(2), CPU)
    seen: list[int] = []
    run = DRIVERS[driver]
    if driver == "fast":
        run(rows, Exact(VP()), x, noise, seen.append)
    else:
        seen += [state.step for state in run(rows, Exact(VP()), x, noise)]
    if solver == "pc":  # the state after a correction is of the same step
        seen = [step for step, _ in itertools.groupby(seen)]
    ends = sum(row.ends_step for row in rows)
    assert seen == list(range(1, ends + 1))
    if solver not in ("annealed-langevin", "pc"):
        assert ends == steps == len(path)


@pytest.mark.parametrize("solver", ["ddim", "dpm-3", "ddpm", "dopri5", "dpm-12", "gotta-go-fast", "rk45"])
def test_the_front_door_tells_a_callback_the_steps_done(solver: str) -> None:
    """The last of them is the number of steps of the path, whether a solver goes by its points or chooses its own."""
    seen: list[int] = []
    sample(model_on(VP()), (2, 2), solver, 5, callback=lambda state: seen.append(state.step), progress=False)
    assert seen == sorted(set(seen)) and seen[-1] == 5 and seen[0] >= 1
    if isinstance(solvers.get(solver), RowSolver):
        assert seen == [1, 2, 3, 4, 5]


# UniPC ----------------------------------------------------------------------------------------------------------------


def unipc_states(model: Any, path: Path, x: Tensor, order: int, b: str, prediction: str, lowers: bool) -> list[Tensor]:
    """Zhao et al., 2023, algorithms 5 to 8, with B(h) where the paper has it, and the authors' c = 1/2 of one difference.

    With ``lowers`` the orders are those of their code by default: rising at the start, falling at the end.

    In the data prediction (algorithms 7, 8), with D_k = (m_k - m_u) / r_k and R_ik = r_k^(i-1),

        x_v = sigma_v / sigma_u x_u - alpha_v (e^-h - 1) m_u - alpha_v B(-h) sum a_k D_k,
        B R a = [k! z phi_(k+1)(z)] with z = -h;

    in the noise prediction with alpha and sigma exchanged, and z = h.
    """
    states, known = [], []  # (lam, N), newest first
    sign = -1.0 if prediction == "data" else 1.0

    def evaluate(y: Tensor, t: float) -> Tensor:
        return model.x0(y, t) if prediction == "data" else model.eps(y, t)

    def update(u: Any, v: Any, nodes: list[tuple[float, Tensor]], start: Tensor, y: Tensor, simple: bool) -> Tensor:
        h = v.lam - u.lam
        hh = sign * h
        scale, carry = (v.alpha, v.sigma / u.sigma) if prediction == "data" else (v.sigma, v.alpha / u.alpha)
        big = {"bh1": hh, "bh2": math.expm1(hh)}[b]
        out = carry * y - scale * math.expm1(hh) * start
        if not nodes:
            return out
        r = [(lam - u.lam) / h for lam, _ in nodes]
        differences = [(n - start) / each for (_, n), each in zip(nodes, r, strict=True)]
        if simple:
            a = [0.5]
        else:
            with mp.workdps(40):  # phi_(k+1) = (phi_k - 1 / k!) / z, which cancels
                z = mp.mpf(hh)
                phi, phis = mp.expm1(z) / z, []
                for k in range(1, len(r) + 1):
                    phi = (phi - 1 / mp.factorial(k)) / z
                    phis.append(phi * mp.factorial(k) * z)
                matrix = mp.matrix([[mp.mpf(each) ** i for each in r] for i in range(len(r))])
                a = [float(v) for v in mp.lu_solve(matrix, mp.matrix(phis) / big)]
        return out - scale * big * sum(w * d for w, d in zip(a, differences, strict=True))

    for i, (u, v) in enumerate(path.moves):
        if i == 0:
            known = [(u.lam, evaluate(x, u.t))]
        used = min(order, len(path) - i) if lowers and i + 1 >= order else order
        past = known[1:used]
        start = known[0][1]
        predicted = update(u, v, past, start, x, simple=len(past) == 1)
        if i == len(path) - 1:
            states.append(predicted)
            break
        new = (v.lam, evaluate(predicted, v.t))
        x = update(u, v, [*past, new], start, x, simple=not past)
        known = [new, *known]
        states.append(x)
    return states


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "steps"), [(1, 1), (1, 20), (2, 2), (2, 5), (2, 20), (3, 3), (3, 4), (3, 20)])
def test_unipc_is_the_papers_update_with_its_function_b(order: int, steps: int, b: str, prediction: str) -> None:
    path = make_path(VP(), "t", steps, t_min=0.1, end="stop")
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(3), dtype=F64)
    for lowers, finish in ((True, "published"), (False, "same")):
        wanted = unipc_states(model, path, x, order, b, prediction, lowers)
        got: list[Tensor] = []
        method = solvers.unipc(order, b, prediction, finish=finish)
        sample(model, x, method, path=path, callback=lambda s, got=got: got.append(s.x.clone()), progress=False)  # type: ignore[misc]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    if steps == 20:
        other_b = unipc_states(model, path, x, order, {"bh1": "bh2", "bh2": "bh1"}[b], prediction, lowers)
        assert float((other_b[10] - wanted[10]).abs().max()) > 1e-7, "B matters, in the shortcuts"
    if b == "bh1" and prediction == "data" and order > 1:
        assert [str(row) for row in solvers.get(f"unipc-{order}").rows(path)] == [  # type: ignore[attr-defined]
            str(row) for row in solvers.unipc(order, b, prediction, finish="lower-order").rows(path)
        ]


# Embedded pairs -------------------------------------------------------------------------------------------------------


def where(lams: Sequence[float]) -> list[Where]:
    lam = torch.tensor(lams, dtype=F64)
    return [
        Where(one[None], one[None], torch.sigmoid(2 * one).sqrt()[None], torch.sigmoid(-2 * one).sqrt()[None]) for one in lam
    ]


@pytest.mark.parametrize("pair", [DPM_12, DPM_23], ids=["dpm-12", "dpm-23"])
@given(h=st.one_of(st.floats(1e-7, 0.03), st.floats(0.005, 0.02), st.floats(0.03, 3.0)), u=st.floats(-4, 4))
def test_the_pairs_of_dpm_solver_integrate_constants_and_lines_exactly(pair: Pair, h: float, u: float) -> None:
    """-sigma integral of e^(v - s) (s - u)^k ds over what a stage covers, in 40 digits, for steps of any length.

    Constants by every stage and both ends; lines by those with two nodes or more, where DPM-Solver means them to be.
    """
    points = where([float(lam) for lam in pair.lams(torch.tensor(u, dtype=F64), torch.tensor(u + h, dtype=F64))])
    lams = [float(point.lam) for point in points]
    for i in range(1, len(points) + 1):
        to = min(i, len(points) - 1)
        weights = [float(w) for w in pair.weights(points, i)]
        with mp.workdps(40):
            length, sigma = mp.mpf(lams[to]) - mp.mpf(lams[0]), mp.mpf(float(points[to].sigma))
            constant = -sigma * mp.expm1(length)
            line = -sigma * (mp.expm1(length) - length)
        assert sum(weights) == pytest.approx(float(constant), rel=1e-12), i
        several = sum(w != 0 for w in weights) > 1
        if several and not (i == len(points) and pair is DPM_23):
            got = sum(w * (lam - lams[0]) for w, lam in zip(weights, lams, strict=False))
            # lam itself is rounded, of which the step is a difference
            assert got == pytest.approx(float(line), rel=1e-11 + 1e-14 / h), i


@given(size=st.one_of(st.floats(1e-9, 0.05), st.floats(0.05, 5)), sign=st.sampled_from([-1, 1]))
def test_the_function_that_the_pairs_take_is_right_on_both_sides_of_its_series(size: float, sign: int) -> None:
    h = sign * size
    with mp.workdps(60):
        wanted = mp.expm1(mp.mpf(h)) / mp.mpf(h) - 1
    # beyond 0.01 the subtraction loses 1e-16 / (h / 2)
    assert float(_phi(torch.tensor(h, dtype=F64))) == pytest.approx(float(wanted), rel=1e-13, abs=0)
    assert float(_phi(torch.zeros((), dtype=F64))) == 0
