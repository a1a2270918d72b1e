"""The ends of every range, for every solver: equal times, alpha = 0, networks that fail, half precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from support import covering, generator, mixture, model_on, rms
from torch import Tensor

from scoresde import DDPM, EDM, VP, CosineVP, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.analysis import moments
from scoresde.problems import Gaussian
from scoresde.sde import GaussianSDE
from scoresde.solvers import SOLVERS, Path, RowSolver, make_path
from scoresde.solvers.methods.third_party import SciPy

F64 = torch.float64
ADAPTIVE = ["dpm-12", "dpm-23", "bs3", "dopri5", "gotta-go-fast"]


# Times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9])
@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_times_are_named(solver: str, gap: float) -> None:
    times = [0.9, 0.7, 0.5, 0.5 - gap, 0.3, 0.1]
    with pytest.raises(ValueError, match=rf"t=0\.5 and t={0.5 - gap!r} \(points 2 and 3"):
        sample(model_on(VP()), torch.ones(2, 2, dtype=F64), solver, path=times, progress=False)


@pytest.mark.parametrize("gap", [1e-5, 1e-6])
@pytest.mark.parametrize("solver", [n for n in SOLVERS if not solvers.get(n).stochastic and n != "dpm-fast"])
def test_a_short_step_costs_no_accuracy(solver: str, gap: float) -> None:
    """Little longer than what is refused: the same as without it, but for what one node fewer costs."""
    times, x = [0.9, 0.7, 0.5, 0.3, 0.1], torch.randn(4, 2, generator=generator(), dtype=F64)
    cut = sorted([*times, 0.5 - gap], reverse=True)
    ends = [sample(model_on(VP()), x, solver, path=t, progress=False).x for t in (times, cut)]
    assert rms(ends[1] - ends[0]) < 0.25 * rms(ends[0]), "an extrapolation over the short step would be off by 1e5"


@pytest.mark.parametrize("gap", [1e-5, 1e-6])
@pytest.mark.parametrize("solver", [n for n in SOLVERS if solvers.get(n).description.weak_order and n[:8] != "torchsde"])
def test_a_short_step_costs_no_moments(solver: str, gap: float) -> None:
    times = torch.linspace(0.9, 0.1, 33, dtype=F64).tolist()
    cut = sorted([*times, times[16] - gap], reverse=True)
    one, other = (moments(solver, Path.from_times(VP(), t), [0.5, -0.2], [0.3, 1.2]) for t in (times, cut))
    assert one.distance(other) < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_grids_made_in_float32_are_taken(solver: str) -> None:
    """Karras' grid as k-diffusion makes it: its first level is 80.0000076."""
    ramp = torch.linspace(0, 1, 9)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas[0] = 80.00000762939453
    end = sample(model_on(EDM()), (2, 2), solver, path=torch.cat([sigmas, torch.zeros(1)]), dtype=F64, progress=False)
    assert end.times[0] == 80.0 and bool(torch.isfinite(end.x).all())


def test_times_beyond_rounding_are_refused() -> None:
    for times in ([1.00001, 0.5], [1.0, 0.5, -1e-5]):
        with pytest.raises(ValueError, match="is defined for 0 <= t <= 1"):
            Path.from_times(VP(), times)
    assert Path.from_times(VP(), [1.0000001, 0.5, -1e-9]).ends_clean
    assert make_path(VP(), "t", 4, t_max=1.0000001).times[0] == 1.0
    with pytest.raises(ValueError, match=r"t_max <= 1\.0 on VP"):
        make_path(VP(), "t", 4, t_max=1.0001)


def test_gradients_pass_through_times_within_the_span() -> None:
    times = torch.tensor([0.9, 0.5, 0.1], dtype=F64, requires_grad=True)
    end = sample(model_on(VP()), torch.ones(1, 2, dtype=F64), "ddim", path=times, driver="differentiable", progress=False)
    assert bool(torch.autograd.grad(end.x.sum(), times)[0].abs().gt(0).all())


# Alpha = 0 ---------------------------------------------------------------------------------------------------


@functools.cache
def zero_terminal() -> GaussianSDE:
    """A chain rescaled so that its last alpha is zero (Lin et al., 2023)."""
    kept = torch.cumprod(1 - torch.linspace(1e-3, 0.05, 50, dtype=F64), 0).sqrt()
    kept = ((kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])) ** 2
    return DDPM((1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])).tolist()).sde()


FROM_ZERO: dict[str, Callable[[], GaussianSDE]] = {
    "CosineVP": CosineVP,
    "RectifiedFlow": RectifiedFlow,
    "zero-terminal": zero_terminal,
}


@functools.cache
def flow_end(name: str) -> tuple[Tensor, Tensor]:
    sde = FROM_ZERO[name]()
    x = torch.randn(6, 2, generator=generator(3), dtype=F64) * float(sde.sigma(sde.span[1]))
    tight: solvers.Solver = SciPy(solvers.get("rk45").description, "DOP853", 1e-11, 1e-11)
    if name == "zero-terminal":  # which is smooth in lam alone
        tight = solvers.dormand_prince(1e-6, 1e-6)
    return x, sample(mixture().model(sde), x, tight, path=[sde.span[1], float(sde.time(1.0))], progress=False).x


# Those that evaluate thousands of times take their time on the hundreds of pieces of a chain.
LONG = ("gotta-go-fast", "torchsde-euler", "torchsde-milstein", "torchsde-srk", "rk45")


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("solver", "name"),
    [
        *covering([s for s in SOLVERS if s not in LONG], FROM_ZERO),
        *(pytest.param(s, n, marks=[pytest.mark.slow] if n == "zero-terminal" else []) for s in LONG for n in FROM_ZERO),
    ],
)
def test_every_solver_starts_at_alpha_zero(solver: str, name: str) -> None:
    """Deterministic ones follow the flow from there; the moments of the others come near those of the data."""
    sde, method = FROM_ZERO[name](), solvers.get(solver)
    assert float(sde.alpha(sde.span[1])) == 0
    x, truth = flow_end(name)
    ends = []
    for steps in (16, 64):
        lams = torch.linspace(-4, 1, steps, dtype=F64)
        path = Path.from_times(sde, torch.cat([torch.tensor([sde.span[1]], dtype=F64), sde.time(lams)]))
        if not method.stochastic:
            ends.append(rms(sample(mixture().model(sde), x, method, path=path, progress=False).x - truth))
        elif isinstance(method, RowSolver) and method.description.weak_order:
            found = moments(method, path, [0.7, -0.2], [0.3, 1.2])
            problem = Gaussian([0.7, -0.2], [0.3, 1.2])
            alpha, sigma = path.points[-1].alpha, path.points[-1].sigma
            wanted = alpha**2 * problem.covariance + sigma**2 * torch.eye(2, dtype=F64)
            ends.append(rms(found.mean - alpha * problem.mean.flatten()) + rms(found.covariance - wanted))
        else:
            end = sample(mixture().model(sde), x, method, path=path, seed=1, progress=False).x
            assert bool(torch.isfinite(end).all())
    if ends:
        own = not isinstance(method, RowSolver)  # its tolerance decides, not the number of steps
        assert ends[1] < 0.05 and (own or ends[1] < 0.6 * ends[0] or ends[0] < 0.01), ends


ORDERS = {"dpm-2": 2, "dpm-3": 3, "dpmpp-2s": 2, "dpmpp-3s": 2, "heun": 2, "rk4": 4, "pndm": 2, "plms": 2}


@pytest.mark.parametrize("solver", [*ORDERS, "ddim", "dpmpp-2m", "deis-3", "lms", "unipc-2", "tab-3"])
def test_the_order_is_kept_from_alpha_zero(solver: str) -> None:
    """In the clock of Velocity, whose steps from there are as short as any."""
    sde, method = RectifiedFlow(), solvers.get(solver)
    x, truth = flow_end("RectifiedFlow")
    end = float(sde.time(1.0))
    errors = []
    for steps in (32, 64):
        path = Path.from_times(sde, torch.linspace(1.0, end, steps + 1, dtype=F64))
        errors.append(rms(sample(mixture().model(sde), x, method, path=path, progress=False).x - truth))
    order = ORDERS.get(solver, 1 if solver == "ddim" else 2)
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("solver", ["dpm-2", "ddpm", "er-sde-3", "pndm", "tab-3", "annealed-langevin", "edm", "dpmpp-2s-a"])
def test_moves_back_to_alpha_zero_start_again(solver: str) -> None:
    sde = RectifiedFlow()
    path = Path.from_times(sde, [1.0, 0.6, 0.3, 1.0, 0.5, 0.2, 0.0])
    end = sample(mixture().model(sde), (4, 2), solver, path=path, dtype=F64, progress=False).x
    assert bool(torch.isfinite(end).all()) and rms(end) < 30


def test_analytic_dpm_starts_at_alpha_zero() -> None:
    path = make_path(RectifiedFlow(), "t", 50, t_min=0.05, end="stop")
    found = moments(solvers.analytic_dpm(lambda t: 1.0 / ((1 - t) ** 2 + t**2)), path, [0.0], 1.0)
    assert float(found.covariance) == pytest.approx(0.95**2 + 0.05**2, rel=0.02)


# What fails, ends --------------------------------------------------------------------------------------------


def failing(kind: str, sde: GaussianSDE) -> ScoreModel:
    calls: Iterator[int] = iter(range(20_000))

    def net(x: Tensor, t: Tensor) -> Tensor:
        next(calls)  # a loop without end runs out of these
        below = (t < 0.5).reshape(-1, 1)
        value = {"nan": math.nan, "inf": math.inf}[kind.split()[0]]
        return torch.where(below if "below" in kind else torch.ones_like(below), value, 0.1 * x)

    return ScoreModel(net, sde, "v")


@pytest.mark.parametrize("kind", ["nan", "inf", "nan below", "inf below"])
@pytest.mark.parametrize("solver", [*ADAPTIVE, "rk45"])
def test_networks_that_fail_stop_solvers_that_choose_their_steps(solver: str, kind: str) -> None:
    for sde in (VP(), RectifiedFlow()):
        with pytest.raises(ArithmeticError, match=rf"'{solver}'.* at t=[0-9.e-]+.* Check that the network"):
            sample(failing(kind, sde), torch.ones(2, 2, dtype=F64), solver, progress=False)


@pytest.mark.parametrize("solver", [*ADAPTIVE, "rk45"])
def test_attempts_are_limited_and_the_time_is_named(solver: str) -> None:
    method = solvers.get(solver)
    limit = {"max_evaluations" if solver == "rk45" else "max_attempts": 3}
    method = replace(method, rtol=1e-10, atol=1e-10, **limit)  # type: ignore[arg-type]
    with pytest.raises(ArithmeticError, match=rf"'{solver}' made 3 .*no farther than t=(0\.9|1)"):
        sample(model_on(VP()), torch.ones(2, 2, dtype=F64), method, progress=False)


@pytest.mark.parametrize("solver", ["bs3", "dopri5", "gotta-go-fast"])
def test_a_sudden_jump_of_the_network_has_a_smallest_step(solver: str) -> None:
    """A pole that no step resolves: the error stays above the tolerance however short the step."""
    model = ScoreModel(lambda x, t: 1e12 * torch.sign(torch.sin(1e13 * t)).reshape(-1, 1) * torch.ones_like(x), VP(), "x0")
    method = replace(solvers.get(solver), rtol=1e-6, atol=1e-6, max_attempts=3000)  # type: ignore[call-arg]
    with pytest.raises(ArithmeticError, match=rf"'{solver}'.*t=[0-9.e-]+"):
        sample(model, torch.ones(2, 2, dtype=F64), method, progress=False)


# Half precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_in_half_precision_take_steps_as_long(solver: str, dtype: torch.dtype) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))
    seen: set[torch.dtype] = set()

    def half(x: Tensor, t: Tensor) -> Tensor:
        seen.add(x.dtype)
        return net.to(x.dtype)(x)

    x = torch.randn(4, 2, generator=generator(), dtype=dtype)
    whole, low = (sample(ScoreModel(half, VP(), "v"), y, solver, progress=False, seed=2) for y in (x.float(), x))
    assert low.x.dtype == dtype and seen == {torch.float32, dtype}
    assert low.evaluations < 4 * whole.evaluations
    if solver != "gotta-go-fast":
        torch.testing.assert_close(low.x.float(), whole.x, rtol=0.05, atol=0.05)
