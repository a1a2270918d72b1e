"""Orders, linear maps, moments and stability of solvers: each measured against something that knows nothing of it."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import k_diffusion_sampling
from support import BasisNoise, LinearModel, generator, mixture, model_on

from scoresde import EDM, VE, VP, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.analysis import Measurement, convergence, fingerprint, growth, moments, stability, to_rows
from scoresde.analysis.convergence import judge
from scoresde.analysis.moments import exact
from scoresde.base.names import Table
from scoresde.problems import Gaussian
from scoresde.solvers import SOLVERS, Description, FreshNoise, Path, Point, RowSolver, make_path, stencil_rows

F64 = torch.float64


def declares_an_order(name: str) -> bool:
    """Whether it does, and in a way that can be measured without drawing samples."""
    solver = solvers.get(name)
    claim = solver.description
    return claim.order is not None or (claim.weak_order is not None and isinstance(solver, RowSolver))


GATED = [name for name in SOLVERS if declares_an_order(name)]
DETERMINISTIC = [name for name in GATED if not solvers.get(name).stochastic]


def described(order: int, rows: Callable[[Path], Any], name: str = "mine") -> RowSolver:
    return RowSolver(Description(name, "exponential", "this test", order=order), rows)


# Convergence ---------------------------------------------------------------------------------------------------------


LONG: dict[str, Any] = {"steps": (320, 640, 1280, 2560), "path": "karras", "t_max": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    # The sums of the published rule err at first order, behind a second-order term a hundred times larger.
    "er-sde-2": LONG,
    "er-sde-3": LONG,
    # Its last steps depend on the remainder of the evaluations by three.
    "dpm-fast": {"steps": (24, 48, 96, 192, 384)},
    # Churn goes up from the start of its path, which has to be the noisiest point.
    "edm": {"steps": (160, 320, 640), "t_max": 1.0},
}
"""Solvers whose order shows elsewhere than others', and why."""


@pytest.mark.sweep(3)
@pytest.mark.parametrize("solver", GATED)
def test_every_solver_has_the_order_it_declares(solver: str) -> None:
    found = convergence(solver, **SETTINGS.get(solver, {}))
    assert found.verdict == "confirmed", found
    assert [m.steps for m in found.few] == [5, 10, 20] and all(m.error < math.inf for m in found.few)


@pytest.mark.parametrize(("declared", "verdict"), [(1, "higher"), (2, "confirmed"), (3, "lower")])
def test_the_verdict_compares_with_what_is_declared(declared: int, verdict: str) -> None:
    mine = described(declared, lambda path: stencil_rows(solvers.Data(), solvers.multistep(2), path))
    assert convergence(mine, steps=(20, 40, 80, 160)).verdict == verdict


def test_a_wrong_coefficient_fails() -> None:
    def rows(path: Path) -> list[Any]:
        good = stencil_rows(solvers.Data(), solvers.multistep(2), path)
        return [replace(row, w=(row.w[0] * 1.001, *row.w[1:])) for row in good]  # type: ignore[union-attr]

    found = convergence(described(2, rows), steps=(20, 40, 80, 160))
    assert found.verdict != "confirmed" and found.measurements[-1].error > 1e-4


@given(
    order=st.sampled_from([1.0, 2.0, 3.0, 4.0]),
    constant=st.floats(0.01, 100),
    bend=st.floats(-2, 2),
    floor=st.sampled_from([0.0, 1e-12]),
)
def test_a_known_law_is_recognised(order: float, constant: float, bend: float, floor: float) -> None:
    """C n^-p (1 + c / n), with an error below that does not fall."""
    steps = [10 * 2**i for i in range(9)]
    errors = [constant * n**-order * (1 + bend / n) + floor for n in steps]
    measured = [Measurement(n, n, e) for n, e in zip(steps, errors, strict=True)]
    found = judge(solvers.get("ddim"), order, measured, [], 3e-11, 0.95)
    assert found.verdict == "confirmed" and found.order == pytest.approx(order, abs=0.1)
    expected = next((n for n, e in zip(steps, errors, strict=True) if e < 3e-11), None)
    assert found.rounding == expected
    if bend == 0 and floor == 0:
        low, high = found.interval
        assert low - 1e-9 <= order <= high + 1e-9


def test_errors_that_do_not_settle_are_left_undecided() -> None:
    errors = [1.0, 0.5, 0.4, 0.05, 0.04, 0.001]
    measured = [Measurement(10 * 2**i, 1, e) for i, e in enumerate(errors)]
    found = judge(solvers.get("ddim"), 1.0, measured, [], 1e-12, 0.95)
    assert found.verdict == "undecided" and math.isnan(found.order)
    diverging = [Measurement(n, 1, math.nan) for n in (10, 20, 40)]
    assert judge(solvers.get("ddim"), 1.0, diverging, [], 1e-12, 0.95).verdict == "undecided"


def test_a_model_and_another_sde_are_measured_too() -> None:
    start = EDM().sigma(80.0) * torch.randn(3, 2, generator=generator(1), dtype=F64)
    found = convergence("heun", model_on(EDM()), start=start, steps=(40, 80, 160), path="karras")
    assert found.verdict == "confirmed" and [m.evaluations for m in found.measurements] == [80, 160, 320]
    assert convergence("ddim", sde=RectifiedFlow(), steps=(40, 80, 160)).verdict == "confirmed"
    assert "asymptotic" in repr(found) and "heun: order 2 declared, confirmed" in repr(found)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: convergence("rk45"), "declares no order"),
        (lambda: convergence("torchsde-srk"), "makes no rows"),
        (lambda: convergence("ddim", steps=(10, 20)), "at least three growing numbers"),
        (lambda: convergence("ddim", confidence=2), "between 0 and 1"),
        (lambda: convergence("ddpm", mixture()), "expected a Gaussian"),
        (lambda: convergence("ddim", model_on(VP())), "a model without a start"),
        (lambda: convergence("ddim", model_on(VP()), VE()), "expected the same, or no sde"),
        (lambda: convergence("ddim", start=torch.ones(2, 2)), "rounding would hide the order"),
        (lambda: moments("rk45", make_path(VP(), "t", 3), [0.0], 1.0), "makes no rows"),
        (lambda: moments("ddim", make_path(VP(), "t", 3), [0.0], 1.0, start="data"), "expected 'marginal' or 'prior'"),
        (lambda: moments("pc", make_path(VP(), "t", 3), [0.0], 1.0), "output is not Gaussian"),
        (lambda: moments("pc", make_path(VP(), "t", 3), [0.0], 1.0, corrector="no"), "expected 'refuse' or 'mean-field'"),
        (lambda: fingerprint("ddim"), "without a path"),
        (lambda: fingerprint("pc", make_path(VP(), "t", 4)), "not a fixed linear map"),
        (lambda: fingerprint(lambda denoise, x, noise: denoise(x, 1.0).clamp(-1, 1)), "not a fixed linear map"),
        (lambda: fingerprint(lambda denoise, x, noise: x + 1), "more than start, predictions and noise"),
        (lambda: fingerprint(lambda denoise, x, noise: denoise(x[:, :3], 1.0)), "expected the shape of its start"),
        (lambda: stability("ddpm", 1.0), "expected a deterministic solver"),
        (lambda: stability("ddim", 0.0), "between 0 and 10"),
        (lambda: stability("dpm-fast", 0.1), "whose steps are not the moves of its path"),
    ],
)
def test_bad_arguments(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


# Moments -------------------------------------------------------------------------------------------------------------


def by_the_driver(solver: RowSolver, path: Path, mean: float, std: float) -> tuple[float, float]:
    """Mean and variance by the fast driver on affine forms, with coefficients of one in the first place."""
    rows = solver.rows(path)
    draws = sum(getattr(row, "draw", None) is not None for row in rows)
    x, start = torch.zeros(1, 2 + draws, dtype=F64), path.points[0]
    x[0, 0], x[0, 1] = start.alpha * mean, math.sqrt(start.alpha**2 * std**2 + start.sigma**2)
    end = solvers.fast(rows, LinearModel(path.sde, mean, std), x, BasisNoise())[0]
    return float(end[0]), float((end[1:] ** 2).sum())


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=["VP", "EDM"])
@pytest.mark.parametrize("solver", [*GATED, "annealed-langevin"])
def test_moments_are_those_of_the_driver(solver: str, sde: VP) -> None:
    method = solvers.get(solver)
    assert isinstance(method, RowSolver)
    for path in (make_path(sde, "karras", 7), make_path(sde, "lam", 7, end="stop")):
        found = moments(method, path, [0.8], 0.25)
        wanted = by_the_driver(method, path, 0.8, 0.5)
        assert (float(found.mean), float(found.covariance)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


class OneImpulse(FreshNoise):
    """Noise of which sample k of the batch gets the k-th number that is drawn, as one, and nothing else."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __call__(self, start: Point, to: Point, out: torch.Tensor, kernel: float = 0.0) -> torch.Tensor:
        out.zero_()
        for j in range(out.shape[1]):
            out[self.next + j, j] = 1
        self.next += out.shape[1]
        return out


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m", "heun", "euler-maruyama", "annealed-langevin"])
def test_moments_of_correlated_data_are_those_of_the_exact_model_on_impulses(solver: str) -> None:
    """Without any eigenbasis: the affine map is read off the library's own score model, one impulse a sample."""
    mean = [0.5, -1.0, 0.2]
    covariance = [[1.0, 0.6, 0.1], [0.6, 0.8, -0.3], [0.1, -0.3, 0.5]]
    sde, problem = VP(), Gaussian(mean, covariance)
    path, method, model = make_path(sde, "lam", 6, end="stop"), solvers.get(solver), problem.model(sde)
    assert isinstance(method, RowSolver)
    rows, start = method.rows(path), path.points[0]
    draws = sum(getattr(row, "draw", None) is not None for row in rows)
    x = torch.zeros(1 + 3 + 3 * draws, 3, dtype=F64) + start.alpha * problem.mean
    at_start = start.alpha**2 * problem.covariance + start.sigma**2 * torch.eye(3, dtype=F64)
    x[1:4] += torch.linalg.cholesky(at_start).T
    end = solvers.fast(rows, model, x, OneImpulse(4))  # type: ignore[arg-type]
    columns = end[1:] - end[0]
    found = moments(method, path, mean, covariance)
    torch.testing.assert_close(found.mean, end[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.covariance, columns.T @ columns, rtol=1e-9, atol=1e-10)


def test_moments_tend_to_the_law_of_the_data() -> None:
    mean, covariance = [0.3, -0.4], [[1.0, 0.5], [0.5, 0.6]]
    distances = []
    for n in (400, 800):
        path = make_path(VP(), "lam", n, end="stop")
        distances.append(moments("ncsn", path, mean, covariance).distance(exact(path, mean, covariance)))
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.1) and distances[1] < 0.03


def test_the_prior_as_a_start_costs_what_is_left_of_the_data() -> None:
    """The flow carries the prior's error along: with white data the exact one would stay N(0, 1)."""
    path = make_path(VP(), "t", 5, end="stop")
    found = moments("ddpm", path, [0.0], 1.0, start="prior")
    wanted = 1 - (path.points[0].alpha * math.prod(abs(row.a + row.w[0]) for row in _white(path))) ** 2  # type: ignore[union-attr]
    assert float(found.covariance) == pytest.approx(wanted, abs=1e-12)
    assert float(moments("ddpm", path, [0.0], 1.0).covariance) == pytest.approx(1, abs=1e-12)


def _white(path: Path) -> Iterator[Any]:
    """The rows of ddpm on white data, where m = alpha x: y = (a + w alpha) x + s xi."""
    ddpm = solvers.get("ddpm")
    assert isinstance(ddpm, RowSolver)
    for row in ddpm.rows(path):
        assert row.at is not None and isinstance(row, solvers.Row)
        yield replace(row, w=(row.w[0] * row.at.alpha,))


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_mean_field_is_the_corrector_in_many_dimensions(norm: str) -> None:
    """Monte Carlo on 2,000 copies of two variances: the standard error of each is one part in a hundred."""
    copies, variances = 2000, torch.tensor([0.3, 2.0], dtype=F64)
    solver, path = solvers.predictor_corrector(corrections=2, snr=0.3, norm=norm), make_path(VP(), "t", 8)
    x = sample(
        Gaussian(torch.zeros(2 * copies), variances.repeat(copies)).model(VP()),
        (8, 2 * copies),
        solver,
        path=path,
        dtype=F64,
        progress=False,
    ).x
    found = moments(solver, path, [0.0, 0.0], variances, start="prior", corrector="mean-field")
    plain = moments(solvers.reverse_diffusion(), path, [0.0, 0.0], variances, start="prior")
    drawn = x.reshape(-1, 2).square().mean(0)
    torch.testing.assert_close(found.covariance.diag(), drawn, rtol=0.04, atol=0)
    assert bool(((plain.covariance.diag() / drawn - 1).abs() > 0.1).any()), "the corrector does something here"


# Fingerprints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), VE(), EDM()], ids=["VP", "VE", "EDM"])
def test_one_solver_by_three_names(sde: VP) -> None:
    path = make_path(sde, "karras", 12)
    ddim = fingerprint("ddim", path)
    for other in ("dpm-1", solvers.euler("rho")):
        assert ddim.differences(fingerprint(other, path)) == []
    assert fingerprint(solvers.ddim(1.0), path).differences(fingerprint("ncsn", path)) == []
    assert fingerprint("ddim", path).differences(fingerprint("dpmpp-2m", path)) != []
    assert fingerprint("ddim", path).differences(fingerprint("heun", path))[0].term == "evaluations"


PEERS = [
    ("ddim", "sample_euler"),
    ("dpmpp-2m: finish='same'", "sample_dpmpp_2m"),
    ("heun", "sample_heun"),
    ("ncsn", "sample_euler_ancestral"),
]


def peer_sampler(name: str, sigmas: torch.Tensor) -> Callable[..., torch.Tensor]:
    peer = k_diffusion_sampling()

    def run(denoise: Callable[..., torch.Tensor], x: torch.Tensor, noise: Callable[..., torch.Tensor]) -> torch.Tensor:
        kwargs = {"noise_sampler": noise} if "ancestral" in name else {}
        return getattr(peer, name)(denoise, x, sigmas, disable=True, **kwargs)

    return run


@pytest.mark.parametrize(("ours", "theirs"), PEERS)
def test_k_diffusions_samplers_are_ours_whatever_the_model(ours: str, theirs: str) -> None:
    sigmas = k_diffusion_sampling().get_sigmas_karras(9, 0.01, 80.0).to(F64).clamp(max=80.0)
    one = fingerprint(ours, Path.from_times(EDM(), sigmas))
    other = fingerprint(peer_sampler(theirs, sigmas))
    assert one.differences(other) == []


@pytest.mark.parametrize(("ours", "theirs"), PEERS)
def test_rows_recovered_from_k_diffusion_run_on_our_drivers(ours: str, theirs: str) -> None:
    sigmas = k_diffusion_sampling().get_sigmas_karras(9, 0.01, 80.0).to(F64).clamp(max=80.0)
    rows = to_rows(fingerprint(peer_sampler(theirs, sigmas)), EDM())
    assert solvers.from_json(json.loads(json.dumps(solvers.to_json(rows)))) == rows
    assert max(len(row.w) for row in rows) == (2 if theirs in ("sample_dpmpp_2m", "sample_heun") else 1)  # type: ignore[union-attr]
    model, x = model_on(EDM()), 80 * torch.randn(4, 2, generator=generator(), dtype=F64)

    def denoise(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model.x0(y, sigma[0])

    noises = [FreshNoise(range(4), x.device) for _ in range(2)]
    wanted = peer_sampler(theirs, sigmas)(denoise, x, lambda *_: noises[0].normal(torch.empty_like(x)))
    got = solvers.fast(rows, model, x, noises[1])  # type: ignore[arg-type]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_a_wrong_coefficient_is_found_and_located() -> None:
    path, ours = make_path(EDM(), "karras", 8), solvers.get("dpmpp-2m")
    assert isinstance(ours, RowSolver)
    rows = ours.rows(path)
    rows[4] = replace(rows[4], w=(rows[4].w[0], rows[4].w[1] * (1 + 1e-6)))  # type: ignore[union-attr, type-var, index]
    planted = fingerprint(described(2, lambda _: rows), path)
    found = fingerprint(ours, path).differences(planted)
    assert (found[0].place, found[0].term) == ("evaluation 6", "m4"), "made by the fifth row from the fourth prediction"
    assert found[0].other / found[0].one == pytest.approx(1, abs=1e-3)
    assert "evaluation 6, m4: " in str(found[0])


@given(st.lists(st.floats(-2, 2).filter(lambda c: abs(c) > 0.01), min_size=9, max_size=9), st.floats(0.5, 1.5))
def test_any_linear_sampler_is_reproduced_by_its_rows(c: list[float], stretch: float) -> None:
    """Noise before the first evaluation, two draws at once, an evaluation away from the path and one that goes back."""

    def foreign(denoise: Callable[..., torch.Tensor], x: torch.Tensor, noise: Callable[..., torch.Tensor]) -> torch.Tensor:
        x = stretch * x + c[0] * noise()
        m1 = denoise(x, 0.8)
        y = c[1] * x + c[2] * m1 + c[3] * noise() + c[4] * noise()
        m2 = denoise(y, torch.tensor([0.3]))
        z = x + c[5] * m1 + c[6] * m2
        m3 = denoise(z, 0.5)
        noise()  # drawn and not used
        return c[7] * z + c[8] * m3 - m1

    sde = VP()
    found = fingerprint(foreign)
    assert [call.t for call in found.calls] == pytest.approx([0.8, 0.3, 0.5])
    assert found.end.x == pytest.approx(c[7] * stretch) and len(found.end.xi) == 4
    model, x = mixture().model(sde), torch.randn(3, 2, generator=generator(), dtype=F64)
    noises = [FreshNoise(range(3), x.device) for _ in range(2)]
    wanted = foreign(lambda y, t: model.x0(y, float(t)), x, lambda: noises[0].normal(torch.empty_like(x)))
    got = solvers.fast(to_rows(found, sde, 0.2), model, x, noises[1])  # type: ignore[arg-type]
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_long_samplers_get_more_coordinates_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("scoresde.analysis.fingerprint"), "SIZES", (4, 64))
    assert len(fingerprint("ddim", make_path(VP(), "t", 63)).calls) == 63
    with pytest.raises(ValueError, match="more than 63 evaluations and draws"):
        fingerprint("ddim", make_path(VP(), "t", 64))


def test_noise_from_elsewhere_is_noticed() -> None:
    sigmas = torch.tensor([80.0, 5.0, 1.0, 0.0], dtype=F64)
    peer = k_diffusion_sampling()
    with torch.random.fork_rng(), pytest.raises(ValueError, match=r"all noise from the function|more than start"):
        fingerprint(lambda denoise, x, noise: peer.sample_euler(denoise, x, sigmas, disable=True, s_churn=3.0))


def test_times_in_other_units_are_converted() -> None:
    path = make_path(VP(), "t", 4)
    ours = fingerprint("ddim", path)

    def in_steps(denoise: Callable[..., torch.Tensor], x: torch.Tensor, noise: object) -> torch.Tensor:
        for state in solvers.readable(solvers.ddim().rows(path), Thousandths(denoise), x, None):  # type: ignore[arg-type]
            x = state.x
        return x

    assert ours.differences(fingerprint(in_steps, time=lambda k: k / 1000)) == []
    assert {d.term for d in ours.differences(fingerprint(in_steps))} == {"t"}
    assert str(ours).splitlines()[0].startswith("m1 at t=1 ") and str(ours).splitlines()[-1].split()[-1] == "m4"


class Thousandths:
    def __init__(self, denoise: Callable[..., torch.Tensor]) -> None:
        self.denoise = denoise

    def at(self, times: torch.Tensor, **_: object) -> Sequence[Callable[[torch.Tensor], torch.Tensor]]:
        return [lambda x, t=t: self.denoise(x, 1000 * t) for t in times]


# Stability -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [name for name in DETERMINISTIC if name != "dpm-fast"])
def test_growth_is_the_flows_to_the_order_of_the_solver(solver: str) -> None:
    """The principal root is e^{(mu - 1) h} + O(h^{p + 1}), for every history: a second measure of the order."""
    mu, steps = torch.tensor([-0.6, 0.4], dtype=F64), (0.02, 0.01)
    errors = [float((growth(solver, h, mu) - torch.exp((mu - 1) * h)).abs().max()) for h in steps]
    order = solvers.get(solver).description.order
    assert order is not None and (math.log2(errors[0] / errors[1]) > order + 0.8 or errors[1] < 1e-13)


@pytest.mark.parametrize("h", [0.1, 0.5, 2.0])
def test_stability_of_ddim_in_closed_form(h: float) -> None:
    assert stability("ddim", h) == pytest.approx(-(1 + math.exp(-h)) / (1 - math.exp(-h)), rel=1e-6)


@pytest.mark.parametrize(
    ("solver", "limit"),
    [("ddim", 2.0), ("heun", 2.0), ("dpm-2", 2.0), ("dpm-3", 2.5127), ("rk4", 2.7853), ("dpmpp-2m", 1.0)],
)
def test_short_steps_have_the_classical_intervals(solver: str, limit: float) -> None:
    """(mu - 1) h tends to the real stability interval of the Runge-Kutta or Adams-Bashforth method that it becomes."""
    h = 1e-3
    assert (1 - stability(solver, h, -4000.0)) * h == pytest.approx(limit, abs=0.01)


def test_beyond_the_limit_samples_do_grow() -> None:
    """On the model itself, from the public side: mu x / alpha as a network."""
    h, sde = 1.0, EDM()
    edge = stability("dpmpp-2m", h)
    times = torch.exp(torch.linspace(4.3, -4.7, 10, dtype=F64)).clamp(*sde.span)
    for mu, grows in ((edge * 0.9, False), (edge * 1.2, True)):
        model = ScoreModel(lambda x, t, mu=mu: mu * x, sde, "x0")
        x = sample(model, torch.ones(1, 1, dtype=F64), "dpmpp-2m", path=times, progress=False).x
        assert (float(x.abs()) > 1) is grows
    assert stability("ddim", 1.0, lowest=-1.0) == -1.0


# The table -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> Iterator[Table[Callable[..., solvers.Solver]]]:
    """The table, put back as it was afterwards."""
    before = set(SOLVERS)
    yield SOLVERS
    for name in set(SOLVERS) - before:
        SOLVERS.unregister(name)


def mine() -> RowSolver:
    return described(2, lambda path: stencil_rows(solvers.Data(), solvers.multistep(2), path))


def test_a_readers_solver_enters_the_table(table: Table[Callable[..., solvers.Solver]]) -> None:
    assert table.register("mine", mine) is mine and list(table)[-1] == "mine"
    assert sample(model_on(VP()), (2, 2), "mine", 4, progress=False).solver == "mine"
    assert convergence("mine", steps=(20, 40, 80)).verdict == "confirmed"
    with pytest.raises(ValueError, match="got a second solver 'mine'"):
        table.register("mine", mine)
    with pytest.raises(ValueError, match="expected a function that returns a Solver when it is called without arguments"):
        table.register("three", lambda: 3)  # type: ignore[arg-type, return-value]


def test_installed_packages_bring_their_solvers(
    table: Table[Callable[..., solvers.Solver]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = importlib.metadata.EntryPoint("mine", f"{__name__}:mine", "scoresde.solvers")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: (entry,) if group == entry.group else ())
    monkeypatch.setattr(table, "_loaded", None)
    assert solvers.get("mine").name == "mine" and table.load() == ("mine",)


@pytest.mark.parametrize("page", ["analysis", "your_own_solver", "inverse", "coming_from"])
def test_the_pages_code_runs(page: str, table: Table[Callable[..., solvers.Solver]]) -> None:
    path = pathlib.Path(__file__).resolve().parents[1] / "docs" / f"{page}.md"
    failed, run = doctest.testfile(str(path), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0 and run > 5
