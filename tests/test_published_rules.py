"""What a published name means: the authors' code at its defaults, written out here from its formulas; and how a run ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, amid_the_modes, generator, model_on, rms, slopes
from torch import Tensor

from scoresde import EDM, VP, RectifiedFlow, sample, solvers
from scoresde.analysis import moments
from scoresde.solvers import SOLVERS, Path, Point, Row, RowSolver, make_path

F64 = torch.float64


def evaluated(model: Any, x: Tensor, u: Point, prediction: str) -> Tensor:
    return model.x0(x, u.t) if prediction == "data" else model.eps(x, u.t)  # type: ignore[no-any-return]


def carried(x: Tensor, u: Point, v: Point, prediction: str) -> Tensor:
    return v.sigma / u.sigma * x if prediction == "data" else v.alpha / u.alpha * x


# DPM-Solver and DPM-Solver++, multistep -------------------------------------------------------------------------------


def lu_multistep(
    model: Any, path: Path, x: Tensor, order: int, prediction: str, lower_order_final: bool = True
) -> list[Tensor]:
    """Lu et al.'s ``sample(method="multistep")``: phi_1 = e^z - 1, phi_2 = phi_1 / z - 1, phi_3 = phi_2 / z - 1/2.

    z is -h in the data and h in the noise prediction, and alpha_v or sigma_v stands before everything, with a minus sign.
    """
    past: list[tuple[float, Tensor]] = []
    states, steps = [], len(path)
    for step, (u, v) in enumerate(path.moves, 1):
        past = [(u.lam, evaluated(model, x, u, prediction)), *past][:3]
        used = min(step, order) if step < order else order
        if lower_order_final and steps < 10 and step >= order:
            used = min(order, steps + 1 - step)
        h, m = v.lam - u.lam, [value for _, value in past]
        z, scale = (-h, v.alpha) if prediction == "data" else (h, v.sigma)
        phi_1 = math.expm1(z)
        phi_2 = phi_1 / z - 1
        phi_3 = phi_2 / z - 0.5
        out = carried(x, u, v, prediction) - scale * phi_1 * m[0]
        if used == 2:
            slope = (m[0] - m[1]) * h / (u.lam - past[1][0])
            out = out - 0.5 * scale * phi_1 * slope
        if used == 3:
            r0, r1 = (u.lam - past[1][0]) / h, (past[1][0] - past[2][0]) / h
            first, second = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
            d1 = first + r0 / (r0 + r1) * (first - second)
            d2 = (first - second) / (r0 + r1)
            out = out - scale * (phi_2 * d1 + phi_3 * d2)
        x = out
        states.append(x)
    return states


@pytest.mark.parametrize("spacing", ["t", "quadratic", "lam"])
@pytest.mark.parametrize(
    ("name", "order", "prediction"),
    [("dpmpp-2m", 2, "data"), ("dpmpp-3m", 3, "data"), ("dpm-2m", 2, "noise"), ("dpm-3m", 3, "noise")],
)
def test_dpm_solver_is_the_authors_code_at_its_defaults(name: str, order: int, prediction: str, spacing: str) -> None:
    """With every number of steps from the order on, on both sides of the ten from which on they keep the order."""
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(3), dtype=F64)
    for steps in (order, 4, 7, 9, 10, 13):
        path = make_path(VP(), spacing, steps, t_min=0.01, end="stop")
        wanted = lu_multistep(model, path, x, order, prediction)
        got: list[Tensor] = []
        sample(model, x, name, path=path, callback=lambda s, got=got: got.append(s.x.clone()), progress=False)  # type: ignore[misc]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("end", ["denoise", "flow", "stop"])
def test_the_move_to_zero_is_no_step_of_the_finish(end: str) -> None:
    """With ``denoise_to_zero`` the authors lower the same steps and then return the data prediction."""
    method = solvers.dpmpp_3m()
    path = make_path(VP(), "t", 8, end=end)
    steps = len(path) - (end != "stop")
    nodes = [len(row.w) for row in method.rows(path)[:steps]]  # type: ignore[union-attr]
    assert nodes == [1, 2, *[3] * (steps - 4), 2, 1]


# How a run ends -------------------------------------------------------------------------------------------------------

MULTISTEP: dict[str, tuple[Callable[..., RowSolver], str]] = {
    "dpmpp-2m": (solvers.dpmpp_2m, "below ten"),
    "dpmpp-3m": (solvers.dpmpp_3m, "below ten"),
    "dpmpp-3m-exact": (lambda finish: solvers.dpmpp_3m("exact", finish=finish), "below ten"),
    "dpmpp-3m-k": (lambda finish: solvers.dpmpp_3m("k-diffusion", finish=finish), "same"),
    "dpm-2m": (lambda finish: solvers.dpm_multistep(2, finish=finish), "below ten"),
    "dpm-3m": (lambda finish: solvers.dpm_multistep(3, finish=finish), "below ten"),
    **{f"deis-{p}": (lambda finish, p=p: solvers.deis(p, finish=finish), "same") for p in (2, 3, 4)},
    **{f"tab-{p}": (lambda finish, p=p: solvers.deis(p, "t", finish=finish), "same") for p in (2, 3, 4)},
    **{f"rhoab-{p}": (lambda finish, p=p: solvers.deis(p, "rho", finish=finish), "same") for p in (2, 3, 4)},
    "lms": (solvers.lms, "same"),
    "plms": (solvers.plms, "same"),
    "pndm": (solvers.pndm, "same"),
    "ipndm": (solvers.ipndm, "same"),
    "ipndm-v": (solvers.ipndm_v, "same"),
    "gradient-estimation": (solvers.gradient_estimation, "same"),
    **{f"velocity-{p}": (lambda finish, p=p: solvers.velocity(p, finish=finish), "same") for p in (2, 3, 4)},
    **{f"unipc-{p}": (lambda finish, p=p: solvers.unipc(p, finish=finish), "lower-order") for p in (1, 2, 3, 4)},
    **{f"expam-{p}": (lambda finish, p=p: solvers.exp_adams_moulton(p, finish=finish), "same") for p in (2, 3, 4)},
    "expam-3-pece": (lambda finish: solvers.exp_adams_moulton(3, "pece", finish=finish), "same"),
    **{f"sde-dpmpp-{k}": (lambda finish, k=k: solvers.sde_dpmpp(k, finish=finish), "same") for k in ("2m", "3m")},
    "sde-dpm-2": (lambda finish: solvers.sde_dpm_solver(finish=finish), "same"),
    "sa": (lambda finish: solvers.sa_solver(finish=finish), "lower-order"),
    **{f"er-sde-{p}": (lambda finish, p=p: solvers.er_sde_solver(p, finish=finish), "same") for p in (2, 3)},
}
"""Every multistep family, and what the authors' code does at the end."""


def nodes_of_steps(solver: RowSolver, path: Path) -> list[list[int]]:
    """Of each step towards the data, how many evaluations each of its rows weighs in."""
    out: list[list[int]] = [[]]
    for row in solver.rows(path):
        assert isinstance(row, Row)
        if row.goes_back:
            continue
        out[-1].append(sum(w != 0 for w in row.w))
        if row.ends_step:
            out.append([])
    return out[:-1]


@pytest.mark.parametrize("name", MULTISTEP)
def test_every_multistep_family_ends_in_each_way(name: str) -> None:
    make, published = MULTISTEP[name]
    most = int(make(finish="same").description.name[-1]) if name[-1] in "234" else None
    for steps in (9, 10, 24):
        path = make_path(VP(), "t", steps, t_min=0.05, end="stop")
        rows = {f: make(finish=f).rows(path) for f in ("published", "lower-order", "same")}
        means = "lower-order" if published == "lower-order" or (published == "below ten" and steps < 10) else "same"
        assert list(map(str, rows["published"])) == list(map(str, rows[means]))
        same, lowered = (nodes_of_steps(make(finish=f), path) for f in ("same", "lower-order"))
        order = max(max(n) for n in lowered) if most is None else max(same[-1][0], 1)
        for left, (one, other) in enumerate(zip(reversed(lowered), reversed(same), strict=True), 1):
            assert len(one) == len(other) or left == 1
            for k, (a, b) in enumerate(zip(one, other, strict=False)):
                # A corrector has one node more; a predictor that is evaluated again one less.
                assert a == max(1, min(b, left + k - name.endswith("pece")))
            if left >= order:
                assert one == other
        assert lowered[-1][0] == 1 < same[-1][0] or name in ("unipc-1", "expam-3-pece")


@pytest.mark.parametrize("name", [name for name in MULTISTEP if name in SOLVERS])
def test_the_finish_is_one_setting_away_from_every_name(name: str) -> None:
    path = make_path(VP(), "t", 6, t_min=0.05, end="stop")
    for finish in ("lower-order", "same"):
        named = solvers.get(f"{name}: finish='{finish}'")
        assert isinstance(named, RowSolver)
        assert list(map(str, named.rows(path))) == list(map(str, MULTISTEP[name][0](finish=finish).rows(path)))


@pytest.mark.parametrize("name", [name for name in MULTISTEP if not name.startswith("er-sde")])
def test_the_finish_of_high_order_looks_back_on_no_step_before(name: str) -> None:
    """Its last step is the same whatever the steps before were, and the evaluations of the others are those of "same"."""
    make, _ = MULTISTEP[name]
    solver, times = make(finish="high-order"), [0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    lasts = []
    for start in ([], [0.95], [0.97, 0.9]):
        path = Path.from_times(VP(), [*start, *times], "stop")
        rows = solver.rows(path)
        ends = [i for i, row in enumerate(rows) if row.ends_step]
        lasts.append(rows[ends[-2] + 1 :])
        one, other = nodes_of_steps(solver, path), nodes_of_steps(make(finish="same"), path)
        assert [n[0] for n in one[:-2]] == [n[0] for n in other[:-2]]
    assert lasts[0] == lasts[1] == lasts[2]
    assert lasts[0][0].at == path.points[-2] and len(lasts[0]) <= 3


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_run_that_goes_back_ends_once(name: str) -> None:
    """Before a move towards the noise nothing is lowered; the last part of the path ends as if it were alone."""
    make, _ = MULTISTEP[name]
    first, second = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    path = Path.from_times(VP(), [*first, *second], "stop")
    alone = [
        nodes_of_steps(make(finish=f), Path.from_times(VP(), t, "stop"))
        for f, t in (("same", first), ("lower-order", second))
    ]
    assert nodes_of_steps(make(finish="lower-order"), path) == [*alone[0], *alone[1]]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("finish", ["lower-order", "high-order"])
@pytest.mark.parametrize("name", [n for n, (make, _) in MULTISTEP.items() if not make(finish="same").stochastic])
def test_each_finish_keeps_the_order_that_it_claims(name: str, finish: str) -> None:
    """Where the model still changes at the end of the path, so that the last step shows."""
    make, _ = MULTISTEP[name]
    method, (x, t) = make(finish=finish), amid_the_modes(VP())
    ends = [sample(model_on(VP()), x, method, n, t_max=t, t_min=T_ONE, end="stop", progress=False).x for n in (60, 120)]
    order = method.description.order
    assert order is not None
    assert abs(slopes([rms(end - truth()) for end in ends])[0] - order) < 0.35


T_ONE = float(VP().time(1.0))
_truth: list[Tensor] = []


def truth() -> Tensor:
    if not _truth:
        x, t = amid_the_modes(VP())
        tight = solvers.rk45(1e-11, 1e-11, "DOP853")
        _truth.append(sample(model_on(VP()), x, tight, 1, t_max=t, t_min=T_ONE, end="stop", progress=False).x)
    return _truth[0]


# DPM-Solver, singlestep -----------------------------------------------------------------------------------------------


def lu_step(model: Any, x: Tensor, points: Sequence[Point], prediction: str) -> Tensor:
    """Lu et al.'s singlestep update of order ``len(points) - 1`` with r1 and r2 where the inner points are."""
    (u, *inner, v), n = points, evaluated(model, x, points[0], prediction)

    def linear(to: Point, second: float, slope: Tensor | float) -> Tensor:
        """From u to ``to``, with N_u, and ``slope`` times what their code has for it."""
        h = to.lam - u.lam
        z, scale = (-h, to.alpha) if prediction == "data" else (h, to.sigma)
        return carried(x, u, to, prediction) - scale * math.expm1(z) * n - scale * second * slope

    def phi_2(to: Point) -> float:
        h = to.lam - u.lam
        z = -h if prediction == "data" else h
        return math.expm1(z) / z - 1

    def fraction(s: Point) -> float:
        return (s.lam - u.lam) / (v.lam - u.lam)

    if not inner:
        return linear(v, 0.0, 0.0)
    n1 = evaluated(model, linear(inner[0], 0.0, 0.0), inner[0], prediction)
    r1 = fraction(inner[0])
    if len(inner) == 1:
        z = (u.lam - v.lam) if prediction == "data" else (v.lam - u.lam)
        return linear(v, 0.5 / r1 * math.expm1(z), n1 - n)
    r2 = fraction(inner[1])
    n2 = evaluated(model, linear(inner[1], r2 / r1 * phi_2(inner[1]), n1 - n), inner[1], prediction)
    return linear(v, 1 / r2 * phi_2(v), n2 - n)


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("spacing", ["t", "quadratic"])
@pytest.mark.parametrize("n", [2, 3, 7, 8, 9])
def test_dpm_fast_is_the_authors_code_on_its_spacings_in_t(n: int, spacing: str, prediction: str) -> None:
    """``method="singlestep"``, ``order=3``: steps end where the orders add up to, and pass over points of the grid."""
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(3), dtype=F64)
    path = make_path(VP(), spacing, n, t_min=0.05, end="stop")
    k = n // 3 + 1
    orders = {0: [3] * (k - 2) + [2, 1], 1: [3] * (k - 1) + [1], 2: [3] * (k - 1) + [2]}[n % 3]
    wanted, at = x, 0
    for order in orders:
        wanted = lu_step(model, wanted, path.points[at : at + order + 1], prediction)
        at += order
    kind = solvers.Data() if prediction == "data" else solvers.Noise()
    found = sample(model, x, solvers.dpm_fast(prediction=kind), path=path, progress=False)
    torch.testing.assert_close(found.x, wanted, rtol=1e-9, atol=1e-9)
    assert found.evaluations == n == at
    if prediction == "noise" and n > 2:
        even = sample(model, x, solvers.dpm_fast(inner="lam"), path=path, progress=False)
        assert even.evaluations == n and not torch.allclose(even.x, wanted, atol=1e-4)


@pytest.mark.parametrize("spacing", ["t", "quadratic", "lam"])
@pytest.mark.parametrize(
    ("make", "order", "prediction"),
    [
        (lambda inner: solvers.dpm_solver(2, inner), 2, "noise"),
        (lambda inner: solvers.dpm_solver(3, inner), 3, "noise"),
        (solvers.dpmpp_2s, 2, "data"),
        (solvers.dpmpp_3s, 3, "data"),
    ],
)
def test_singlestep_solvers_with_the_stages_of_the_authors_code(
    make: Callable[[str], RowSolver], order: int, prediction: str, spacing: str
) -> None:
    """``method="singlestep_fixed"``: k steps on the grid of k times ``order``, whose points between are the stages."""
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(3), dtype=F64)
    path, grid = (make_path(VP(), spacing, k, t_min=0.05, end="stop") for k in (4, 4 * order))
    wanted = x
    for i in range(4):
        wanted = lu_step(model, wanted, grid.points[i * order : (i + 1) * order + 1], prediction)
    found = sample(model, x, make(spacing), path=path, progress=False)
    torch.testing.assert_close(found.x, wanted, rtol=1e-9, atol=1e-9)
    assert found.evaluations == 4 * order


@pytest.mark.parametrize("inner", ["t", "quadratic"])
@pytest.mark.parametrize("order", [2, 3])
def test_stages_even_in_t_keep_the_order(order: int, inner: str) -> None:
    method, (x, t) = solvers.dpm_solver(order, inner), amid_the_modes(VP())
    ends = [sample(model_on(VP()), x, method, n, t_max=t, t_min=T_ONE, end="stop", progress=False).x for n in (40, 80)]
    assert method.description.order == order
    assert abs(slopes([rms(end - truth()) for end in ends])[0] - order) < 0.3


def test_stages_at_points_of_a_path_that_goes_back_or_starts_at_alpha_zero() -> None:
    path = Path.from_times(VP(), [1.0, 0.8, 0.6, 0.4, 0.7, 0.5, 0.3, 0.1], "stop")
    rows = solvers.dpm_fast().rows(path)
    assert [row.at.t if row.at else None for row in rows] == [1.0, 0.8, 0.6, None, 0.7, 0.5, 0.3]  # type: ignore[union-attr]
    flow = make_path(RectifiedFlow(), "t", 7, end="stop")
    for method in (solvers.dpm_fast(), solvers.dpm_solver(3, "t"), solvers.dpmpp_2s("quadratic")):
        end = sample(model_on(RectifiedFlow()), (3, 2), method, path=flow, progress=False).x
        assert bool(torch.isfinite(end).all())
    with pytest.raises(ValueError, match="got inner='sigma'; expected 'lam', 't', 'quadratic'"):
        solvers.dpm_solver(2, "sigma")
    with pytest.raises(ValueError, match="got inner='t'; expected 'path' or 'lam'"):
        solvers.dpm_fast(inner="t")


# Adaptive steps -------------------------------------------------------------------------------------------------------


def lu_adaptive(model: Any, sde: Any, x: Tensor, order: int, t_max: float, t_min: float, tolerances: Sequence[float]) -> Any:
    """Lu et al.'s ``dpm_solver_adaptive``: the largest error of the batch, one step for all."""
    rtol, atol = tolerances

    def at(lam: float) -> Point:
        return solvers.points(sde, sde.time(torch.tensor([lam], dtype=F64)))[0]

    def update(x: Tensor, u: Point, h: float, fractions: Sequence[float], to: float) -> Tensor:
        return lu_step(model, x, [u, *(at(u.lam + r * h) for r in fractions), at(to)], "noise")

    lam, end, h, before = float(sde.lam(t_max)), float(sde.lam(t_min)), 0.05, x
    accepted, rejected = 0, 0
    while end - lam > 1e-9:
        u, low_r, high_r = at(lam), *{2: ([], [0.5]), 3: ([1 / 3], [1 / 3, 2 / 3])}[order]
        lower, higher = update(x, u, h, low_r, lam + h), update(x, u, h, high_r, lam + h)
        delta = torch.maximum(torch.full_like(x, atol), rtol * torch.maximum(lower.abs(), before.abs()))
        error = float(((higher - lower) / delta).square().mean(1).sqrt().max())
        if error <= 1:
            x, before, lam, accepted = higher, lower, lam + h, accepted + 1
        else:
            rejected += 1
        h = min(0.9 * h * error ** (-1 / order), end - lam)
    return x, accepted, rejected


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("seed", "tolerances"), [(1, (0.05, 0.0078)), (2, (0.01, 0.001))])
def test_dpm_adaptive_of_a_batch_is_the_authors_code(order: int, seed: int, tolerances: tuple[float, float]) -> None:
    sde = VP()
    model, x = model_on(sde), torch.randn(5, 2, generator=generator(seed), dtype=F64)
    wanted, accepted, rejected = lu_adaptive(model, sde, x, order, 1.0, 0.01, tolerances)
    method = solvers.dpm_adaptive(10 * (order - 1) + order, *tolerances, norm="batch")
    got = sample(model, x, method, path=[1.0, 0.01], progress=False)
    assert got.info["accepted"].tolist() == [accepted] * 5 and got.info["rejected"].tolist() == [rejected] * 5
    torch.testing.assert_close(got.x, wanted, rtol=1e-8, atol=1e-8)
    mean = sample(model, x, replace(method, norm="batch"), path=[1.0, 0.01], progress=False)
    assert not torch.equal(mean.x, got.x), "the root mean square over the batch is another rule"


# Predictor-corrector --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["denoise", "stop"])
@pytest.mark.parametrize("predictor", ["ddpm", "dpmpp-2m"])
def test_corrections_that_come_first_are_made_at_the_start_of_each_step(predictor: str, end: str) -> None:
    """Song et al.'s ``pc_sampler``: for each time the corrector, then the predictor; none after the last."""
    path, base = make_path(VP(), "t", 4, end=end), solvers.get(predictor)
    assert isinstance(base, RowSolver)
    first, last = (solvers.predictor_corrector(base, 2, order=f"{k}-first").rows(path) for k in ("corrector", "predictor"))
    out: list[object] = []
    for row, u in zip(base.rows(path), path.points, strict=False):
        scale = math.exp(2 * (u.log_alpha - path.points[path.points.index(u) + 1].log_alpha))
        out += [*[("C", u, scale)] * 2, row]
    seen = [("C", row.at, row.scale) if isinstance(row, solvers.Langevin) else row for row in first]
    assert seen == out
    assert len(last) == len(first) - 2 * (end == "denoise")
    with pytest.raises(ValueError, match="got order='both'; expected 'predictor-first' or 'corrector-first'"):
        solvers.predictor_corrector(order="both")


def test_corrections_may_come_first_at_alpha_zero_and_are_counted() -> None:
    model = model_on(RectifiedFlow())
    found = sample(model, (4, 2), solvers.predictor_corrector(order="corrector-first"), 5, progress=False)
    assert found.evaluations == 10 and bool(torch.isfinite(found.x).all())


# Restart --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "n"),
    [([(0.06, 0.3, 2, 3)], 18), ([(0.59, 1.09, 1, 4), (0.06, 0.3, 3, 6)], 36), ([(0.3, 1.0, 1, 2)], 9)],
)
def test_restart_is_the_authors_code(info: list[tuple[float, float, int, int]], n: int) -> None:
    """Xu et al.'s ``restart_sampler`` on EDM: the lower level is a point of the path, the points above it Karras' own."""

    def levels(low: float, high: float, count: int) -> Tensor:
        i = torch.arange(count, dtype=F64)
        return (high ** (1 / 7) + i / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7

    main = levels(0.002, 80.0, n)
    wanted = []
    low_of = {
        int(torch.argmin((torch.cat([main, torch.zeros(1)]) - low).abs())): (low, high, k, m) for low, high, k, m in info
    }
    for i, sigma in enumerate(main.tolist()):
        wanted.append(sigma)
        if i in low_of:
            _, high, k, m = low_of[i]
            wanted += levels(sigma, high, m).tolist() * k
    path = solvers.restart(make_path(EDM(), "karras", n), [row[:3] for row in info], [row[3] for row in info])
    assert [p.sigma for p in path.points] == pytest.approx([*wanted, 0.0], rel=1e-9)
    calls = sample(model_on(EDM()), (2, 2), solvers.restart_heun([info[0][:3]], info[0][3]), n, "karras", progress=False)
    assert calls.evaluations == 2 * n - 1 + 2 * info[0][2] * (info[0][3] - 1)


def test_the_default_restart_is_theirs_for_few_evaluations_and_errors_say_so() -> None:
    path = make_path(EDM(), "karras", 18)
    named = solvers.get("restart")
    assert isinstance(named, RowSolver)
    assert named.rows(path) == solvers.heun("rho").rows(solvers.restart(path, [(0.06, 0.3, 2)], 3))
    assert named.description.weak_order is None and solvers.restart_heun(n_restart=None).description.weak_order == 2
    low = make_path(EDM(sigma_max=0.2), "karras", 9)
    assert max(p.sigma for p in solvers.restart(low, [(0.06, 0.3, 1)], 3).points) <= 0.2 * (1 + 1e-12)
    level = path.points[10].sigma
    assert solvers.restart(path, [(0.98 * level, 0.99 * level, 2)], 3) == path, "no level above the one it starts at"
    for wrong in (1, [3, 3], 2.5):
        with pytest.raises(ValueError, match="expected a whole number of at least 2, both ends included"):
            solvers.restart(path, [(0.06, 0.3, 2)], wrong)  # type: ignore[arg-type]


# Langevin dynamics at one level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VP", "VE", "RectifiedFlow"])
@given(
    mean=st.floats(-2, 2), std=st.floats(0.1, 2), step=st.floats(0.05, 1.9), decay=st.floats(0, 1), steps=st.integers(1, 40)
)
def test_langevin_at_one_level_is_its_recursion(
    name: str, mean: float, std: float, step: float, decay: float, steps: int
) -> None:
    """On N(mean, std^2) mean and variance of every iteration are known, from alpha = 0 on too."""
    sde = SDES[name]
    path = make_path(sde, "t", steps, t_min=0.3 * sde.span[1], end="stop")
    got = moments(solvers.langevin(step, decay), path, [mean], std**2, start="marginal")
    u, v = path.points[0], path.points[-1]
    m, variance = u.alpha * mean, u.alpha**2 * std**2 + u.sigma**2
    if u.alpha:
        m, variance = m * v.alpha / u.alpha, variance * (v.alpha / u.alpha) ** 2
    else:  # the data prediction there is the mean of the data, and the rest is carried as noise
        m, variance = v.alpha * mean, v.sigma**2
    target = v.alpha**2 * std**2 + v.sigma**2
    for k in range(steps):
        pull = 0.5 * step * (1 + k) ** -decay * v.sigma**2 / target
        m = m - pull * (m - v.alpha * mean)
        variance = (1 - pull) ** 2 * variance + step * (1 + k) ** -decay * v.sigma**2
    assert float(got.mean) == pytest.approx(m, rel=1e-9, abs=1e-9)
    assert float(got.covariance) == pytest.approx(variance, rel=1e-9)


def test_a_falling_step_loses_the_bias_of_a_constant_one() -> None:
    path = make_path(VP(), "t", 4000, t_min=0.5, end="stop")
    target = path.points[-1].alpha ** 2 * 0.25 + path.points[-1].sigma ** 2
    bias = [abs(float(moments(m, path, [0.8], 0.25).covariance) / target - 1) for m in (solvers.langevin(), solvers.sgld())]
    assert bias[0] == pytest.approx(1 / (1 - 0.05 * path.points[-1].sigma ** 2 / target) - 1, rel=1e-6)
    assert bias[1] < 0.05 * bias[0]
    with pytest.raises(ValueError, match="got step=4; expected a number between 0 and 4"):
        solvers.langevin(4)
    with pytest.raises(ValueError, match="got decay=2; expected a number between 0"):
        solvers.langevin(0.1, 2)
    with pytest.raises(ValueError, match="with a constant step it is the solver 'langevin'"):
        solvers.sgld(0.1, 0)
