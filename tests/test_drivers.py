"""Drivers: all compute what the readable loop computes; hooks; gradients; adaptive solvers."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import k_diffusion_sampling
from support import SDES, covering, finite_start, generator, model_on, mostly_slow, rms, slopes
from torch import Tensor

from scoresde import EDM, VP, GeneralSDE, ScoreModel, sample, solvers
from scoresde.problems import GaussianMixture
from scoresde.solvers import SOLVERS, FreshNoise, Path, RowSolver, exponential_moments, make_path, scalar
from scoresde.solvers.adaptive.control import Controller
from scoresde.solvers.adaptive.pairs import Where
from scoresde.solvers.methods.third_party import SciPy

F64 = torch.float64
ROWS = {name: solver for name in SOLVERS if isinstance(solver := solvers.get(name), RowSolver)}
LINEAR = [
    name
    for name, solver in ROWS.items()
    if all(isinstance(row, solvers.Row) for row in solver.rows(make_path(VP(), "lam", 4)))
]
SOME = ["ddim", "dpmpp-2m", "dpm-3", "heun", "rk4", "ddpm", "euler-maruyama"]
EAGER = functools.partial(solvers.compiled, backend="eager")
PAIRS = ["dpm-12", "dpm-23", "bs3", "dopri5"]


def start_on(sde: VP, n: int = 4) -> Tensor:
    return torch.randn(n, 2, generator=generator(5), dtype=F64) * float(sde.sigma(finite_start(sde)))


def draw(solver: str | solvers.Solver, driver: object = "readable", steps: int = 8, **kwargs: object) -> Tensor:
    sde = kwargs.pop("sde", VP())
    start = kwargs.pop("start", start_on(sde))  # type: ignore[arg-type]
    return sample(model_on(sde), start, solver, steps, driver=driver, seed=3, progress=False, **kwargs).x  # type: ignore[arg-type]


# All drivers compute the same --------------------------------------------------------------------------------


@pytest.mark.sweep(3)
@pytest.mark.parametrize("solver", LINEAR)
def test_every_linear_solver_runs_on_every_driver(solver: str) -> None:
    wanted = draw(solver, steps=5)
    assert torch.equal(draw(solver, "fast", 5), wanted)
    assert torch.equal(draw(solver, "differentiable", 5), wanted)
    torch.testing.assert_close(draw(solver, EAGER, 5), wanted, rtol=1e-10, atol=1e-10)
    exact = functools.partial(solvers.parallel, tolerance=0.0, window=4)
    torch.testing.assert_close(draw(solver, exact, 5), wanted, rtol=1e-9, atol=1e-9)


class Jumping(torch.nn.Module):
    """A network that no line approximates: it jumps, or swings faster than the inputs of neighbouring steps differ."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sign(torch.sin(5 * x)) if self.kind == "steps" else torch.sin(20 * x) + 0.3 * torch.sin(57 * x.flip(-1))


def narrow() -> ScoreModel:
    """Twelve modes so narrow that the predictions hold still, and then change all at once."""
    means = torch.randn(12, 2, generator=generator(), dtype=F64)
    return GaussianMixture(means, torch.full((12,), 0.01**2, dtype=F64), torch.full((12,), 1 / 12, dtype=F64)).model(VP())


SHARP = {
    "modes": model_on(VP()),
    "narrow modes": narrow(),
    "jumps": ScoreModel(Jumping("steps"), VP(), "x0"),
    "swings": ScoreModel(Jumping("swings"), VP(), "x0"),
}


def distances(x: Tensor, y: Tensor) -> float:
    """The largest distance of a sample, as the driver measures it where alpha = 1."""
    return float((x - y).square().mean(1).sqrt().max())


@given(
    on=st.sampled_from(sorted(SHARP)),
    solver=st.sampled_from(SOME),
    steps=st.integers(1, 30),
    window=st.none() | st.integers(1, 50),
    anderson=st.integers(0, 4),
    tolerance=st.sampled_from([1e-2, 1e-4, 1e-6]),
)
@settings(max_examples=25)
def test_parallel_is_sequential_to_its_tolerance(
    on: str, solver: str, steps: int, window: int | None, anderson: int, tolerance: float
) -> None:
    driver = solvers.Parallel(window, tolerance, anderson)
    got = sample(SHARP[on], start_on(VP()), solver, steps, driver=driver, seed=3, progress=False)
    one = sample(SHARP[on], start_on(VP()), solver, steps, driver="readable", seed=3, progress=False)
    assert distances(got.x, one.x) <= max(got.info["distance"], 1e-11) <= max(tolerance, 1e-11)
    assert 1 <= got.info["sweeps"] <= 2 * one.evaluations and one.evaluations <= got.evaluations
    assert got.info["window"] <= one.evaluations


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_parallel_chooses_window_and_tolerance(dtype: torch.dtype) -> None:
    start = start_on(VP()).to(dtype)
    got, one = (sample(model_on(VP()), start, "ddim", 30, driver=d, progress=False) for d in ("parallel", "fast"))
    assert got.info["window"] == 30 and got.info["sweeps"] < 25
    assert distances(got.x, one.x) <= torch.finfo(dtype).eps ** 0.5


def test_parallel_takes_a_smaller_window_where_the_memory_is_full() -> None:
    rows = 8 * len(start_on(VP()))

    def crowded(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > rows:
            raise torch.OutOfMemoryError(f"{len(x)} samples")
        return torch.tanh(x)

    model = ScoreModel(crowded, VP(), "x0")
    got, one = (sample(model, start_on(VP()), "ddim", 40, driver=d, progress=False) for d in ("parallel", "fast"))
    assert got.info["window"] <= 8
    assert distances(got.x, one.x) <= 1.5e-8
    rows = len(start_on(VP())) - 1
    with pytest.raises(torch.OutOfMemoryError):
        sample(model, start_on(VP()), "ddim", 4, driver="parallel", progress=False)


def test_an_estimate_counts_a_sample_whose_moves_do_not_fall_as_endless() -> None:
    distance = sys.modules["scoresde.solvers.drivers.parallel"]._distance
    moves = torch.tensor([1e-3, 0.0], dtype=F64)
    assert distance(moves, None) == math.inf and distance(0 * moves, None) == 0
    assert distance(moves, torch.tensor([1e-1, 0.0], dtype=F64)) == pytest.approx(1e-3 / 9)  # no less than the safe factor
    assert distance(moves, torch.tensor([3e-3, 0.0], dtype=F64)) == pytest.approx(5e-4)
    assert distance(moves, torch.tensor([1.9e-3, 0.0], dtype=F64)) == math.inf
    assert distance(torch.tensor([0.0, 1e-9]), torch.tensor([1.0, 0.0])) == math.inf
    assert distance(torch.tensor([math.nan, 0.0]), moves) == math.inf


@pytest.mark.parametrize("solver", ["ddim", "dpm-3", "ddpm"])
def test_parallel_takes_a_tenth_of_the_sequential_calls(solver: str) -> None:
    driver = functools.partial(solvers.parallel, window=300, tolerance=1e-3)
    got = sample(model_on(VP()), start_on(VP()), solver, 100, driver=driver, seed=3, progress=False)
    assert got.info["sweeps"] <= 14
    assert rms(got.x - draw(solver, steps=100)) < 1e-3


def test_anderson_acceleration_saves_sweeps() -> None:
    """On data far from the linearisation, twelve narrow modes; and it ends in the same place."""
    means = torch.randn(12, 8, generator=generator(), dtype=F64)
    model = GaussianMixture(means, torch.full((12,), 0.05**2, dtype=F64), torch.full((12,), 1 / 12, dtype=F64)).model(VP())
    x = torch.randn(4, 8, generator=generator(1), dtype=F64)
    drivers = [functools.partial(solvers.parallel, window=60, anderson=a, tolerance=1e-5) for a in (0, 1)]
    runs = [sample(model, x, "ddim", 60, driver=driver, progress=False) for driver in drivers]
    assert runs[1].info["sweeps"] < runs[0].info["sweeps"]
    torch.testing.assert_close(runs[0].x, runs[1].x, rtol=1e-3, atol=1e-3)


def test_parallel_hands_conditions_to_each_copy_of_the_batch() -> None:
    model = ScoreModel(lambda x, t, shift: torch.zeros_like(x) + shift, VP(), "x0")
    shift = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    got = sample(model, (3, 2), "heun", 6, driver="parallel", conditions={"shift": shift}, progress=False)
    assert torch.allclose(got.x, shift)


def test_parallel_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="Langevin corrections, whose step depends on the state"):
        draw("pc", "parallel")
    with pytest.raises(ValueError, match="expected window >= 1"):
        draw("ddim", functools.partial(solvers.parallel, window=0))


# Compiled ----------------------------------------------------------------------------------------------------


def test_solvers_of_one_length_of_history_share_a_compilation() -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(graph)
        return graph.forward

    driver = functools.partial(solvers.compiled, backend=backend)
    for solver, total in (("ddim", 1), ("dpm-2", 1), ("euler", 1), ("dpmpp-2m", 2), ("heun", 2), ("ddpm", 3), ("ncsn", 3)):
        for steps in (4, 9):
            draw(solver, driver, steps)
            assert len(compilations) == total, (solver, steps)


@pytest.mark.slow
def test_compiled_by_the_real_compiler() -> None:
    for solver in ("dpmpp-2m", "ddpm", "pc"):
        torch.testing.assert_close(draw(solver, "compiled"), draw(solver), rtol=1e-9, atol=1e-9)


def test_compiled_runs_langevin_corrections_and_paths_that_go_back() -> None:
    path = Path.from_times(VP(), [1.0, 0.6, 0.3, 0.5, 0.2, 0.0])
    for solver in ("pc", "dpmpp-2m", "ddpm"):
        torch.testing.assert_close(draw(solver, EAGER, path=path), draw(solver, path=path), rtol=1e-10, atol=1e-10)
        if solver != "pc":
            exact = functools.partial(solvers.parallel, tolerance=0.0)
            torch.testing.assert_close(draw(solver, exact, path=path), draw(solver, path=path), rtol=1e-9, atol=1e-9)


# CUDA graph --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "ddpm", "pc"])
def test_a_cuda_graph_is_fast(solver: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)).cuda()
    model = ScoreModel(lambda x, t: net(x), VP(), "x0")
    method, x = solvers.get(solver), torch.randn(5, 2, generator=generator()).cuda()
    assert isinstance(method, RowSolver)
    rows = method.rows(make_path(VP(), "lam", 6))

    class Door:
        def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> object:
            return model.at(times, device=device, dtype=dtype)

    with torch.no_grad():
        captured = solvers.CapturedSampler(rows, Door(), x, FreshNoise(range(5), x.device))  # type: ignore[arg-type]
        for scale, seeds in ((1.0, [0, 1, 2, 3, 4]), (0.5, [9, 8, 7, 6, 5]), (1.0, [0, 1, 2, 3, 4])):
            wanted = solvers.fast(rows, Door(), scale * x, FreshNoise(seeds, x.device))  # type: ignore[arg-type]
            torch.testing.assert_close(captured(scale * x, seeds), wanted)
        with pytest.raises(ValueError, match="captured for"):
            captured(x[:3])


def test_a_cuda_graph_needs_cuda() -> None:
    with pytest.raises(ValueError, match="needs a CUDA device"):
        draw("ddim", "cuda-graph")


# Hooks -------------------------------------------------------------------------------------------------------

STATES = ["readable", EAGER, functools.partial(solvers.parallel, tolerance=1e-12), "differentiable"]


@pytest.mark.parametrize("driver", STATES, ids=["readable", "compiled", "parallel", "differentiable"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpm-2", "ddpm"])
def test_every_driver_honours_the_hooks(driver: object, solver: str) -> None:
    def on_sphere(x: Tensor, t: float) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)

    def clip(m: Tensor, t: object) -> Tensor:
        return m.clamp(-0.4, 0.4)

    seen: list[solvers.State] = []
    wanted: list[solvers.State] = []
    hooks = {"project": on_sphere, "transform": clip}
    end = draw(solver, driver, callback=seen.append, **hooks)
    draw(solver, "readable", callback=wanted.append, **hooks)
    assert [s.step for s in seen] == [s.step for s in wanted] == list(range(1, 9))
    for one, other in zip(seen, wanted, strict=True):
        assert one.point == other.point
        torch.testing.assert_close(one.x, other.x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end.norm(dim=1), torch.ones(4, dtype=F64))
    assert not torch.allclose(end, draw(solver, driver, project=on_sphere), atol=1e-3), "the transform matters"
    torch.testing.assert_close(draw(solver, "fast", **hooks), wanted[-1].x, rtol=0, atol=0)

    stopped = sample(
        model_on(VP()),
        start_on(VP()),
        solver,
        8,
        driver=driver,
        seed=3,
        progress=False,
        callback=lambda s: s.step == 3,
        **hooks,
    )
    assert len(stopped.times) == 4
    torch.testing.assert_close(stopped.x, wanted[2].x, rtol=1e-8, atol=1e-8)


def test_a_projection_follows_langevin_corrections_too() -> None:
    norms: list[Tensor] = []
    end = draw("pc", project=lambda x, t: x / x.norm(dim=1, keepdim=True), callback=lambda s: norms.append(s.x.norm(dim=1)))
    assert torch.allclose(torch.stack(norms), torch.ones(1, dtype=F64))
    assert torch.equal(draw("pc", "fast", project=lambda x, t: x / x.norm(dim=1, keepdim=True)), end)


def test_early_stop_of_other_loops() -> None:
    stopped = sample(model_on(VP()), (3, 2), "dopri5", 8, callback=lambda s: s.step == 2, progress=False)
    assert len(stopped.times) == 3
    sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: torch.ones_like(x))
    stopped = sample(
        sde.reverse(lambda x, t: -x), (3, 2), "euler-maruyama", 8, "t", callback=lambda s: s.step == 2, progress=False
    )
    assert len(stopped.times) == 3


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"driver": "fsat"}, "did you mean 'fast'"),
        ({"driver": "fast", "callback": print}, "overwrites its states and has none to show"),
        ({"driver": "cuda-graph", "callback": print}, "overwrites its states and has none to show"),
        ({"solver": "rk45", "driver": "fast"}, "makes no rows that a driver could run"),
        ({"solver": "dopri5", "project": lambda x, t: x}, "cannot project the states"),
    ],
)
def test_what_a_driver_cannot_do_is_refused(kwargs: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(kwargs.pop("solver", "ddim"), **kwargs)  # type: ignore[arg-type]


def test_an_sde_without_marginals_has_no_drivers() -> None:
    sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: torch.ones_like(x))
    with pytest.raises(ValueError, match="got driver for an SDE without marginals"):
        sample(sde.reverse(lambda x, t: -x), (3, 2), "euler-maruyama", 8, "t", driver="fast", progress=False)


# Differentiable ----------------------------------------------------------------------------------------------

TIMES = torch.tensor([0.9, 0.7, 0.45, 0.3, 0.1], dtype=F64)
CHECKED_WHOLE = ["ddim", "dpm-3", "dpmpp-2m", "rk4", "ddpm", "euler-maruyama", "er-sde-3", "dpmpp-2s-a", "pc"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("solver", "checkpoint"), covering(CHECKED_WHOLE, [True, False]))
def test_gradients_with_respect_to_start_and_times(solver: str, checkpoint: bool) -> None:
    """Against finite differences; the last of the times included."""
    driver = functools.partial(solvers.differentiable, checkpoint=checkpoint)
    sde = VP()

    def end(x: Tensor, times: Tensor) -> Tensor:
        return sample(model_on(sde), x, solver, path=times, driver=driver, seed=3, progress=False).x

    x, times = start_on(sde, 1).requires_grad_(), TIMES.clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (x, times), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["EDM", "SubVP", "CosineVP", "RectifiedFlow"])
@pytest.mark.parametrize("solver", ["dpm-3", "dpmpp-2m", "rk4"])
def test_gradients_with_respect_to_times_on_other_sdes(solver: str, name: str) -> None:
    def end(times: Tensor) -> Tensor:
        sde = SDES[name]
        return sample(model_on(sde), start_on(sde, 1), solver, path=times, driver="differentiable", progress=False).x

    assert torch.autograd.gradcheck(end, (TIMES.clone().requires_grad_(),), eps=1e-6, atol=1e-6, rtol=1e-4)


# The second path begins with a move shorter than a churn, goes back, and ends at sigma = 0.
TIMES_OF: dict[str, list[float]] = {"down": TIMES.tolist(), "back": [0.95, 0.93, 0.5, 0.7, 0.4, 0.45, 0.2, 0.0]}
WITH_OPTIONS: dict[str, Callable[[], RowSolver]] = {
    "ddim-eta": lambda: solvers.ddim(0.5),
    "sde-dpmpp-3m-eta(lam)": lambda: solvers.sde_dpmpp("3m", lambda lam: 1 / (1 + lam**2)),
    "sa-tau(lam)": lambda: solvers.sa_solver(2, 3, lambda lam: 0.5 / (1 + lam**2), "exact"),
    "er-sde-3-exact": lambda: solvers.er_sde_solver(3, variant="exact"),
    "edm-small-churn": lambda: solvers.edm_stochastic(0.5, s_noise=1.003),
    "dpm2-a-eta": lambda: solvers.dpm2_ancestral(0.4),
    "pc-dpmpp": lambda: solvers.predictor_corrector(solvers.dpmpp_2m(), 2, norm="batch"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("solver", "which"), covering([*ROWS, *WITH_OPTIONS], TIMES_OF))
def test_every_solver_that_makes_rows_is_differentiable_in_the_times(solver: str, which: str) -> None:
    """The same numbers, and the derivative in one direction against a central difference."""
    method = WITH_OPTIONS.get(solver, lambda: solvers.get(solver))()
    plain = torch.tensor(TIMES_OF[which], dtype=F64)
    times, direction = plain.clone().requires_grad_(), torch.randn(len(plain), generator=generator(1), dtype=F64)
    direction[plain == 0] = 0
    got = draw(method, "differentiable", path=times)
    torch.testing.assert_close(got.detach(), draw(method, path=plain), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(got.sum(), times)
    ends = [float(draw(method, path=plain + sign * 1e-5 * direction).sum()) for sign in (1, -1)]
    assert float(gradient @ direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5)


def test_the_sum_of_coefficients_takes_any_iterable_and_keeps_gradients() -> None:
    """A generator is read once, and floats add up to the last digit."""
    assert scalar.fsum(x for x in [1e16, 1.0, -1e16]) == 1.0
    terms = torch.tensor([1.0, 2.0, 4.0], dtype=F64, requires_grad=True)
    mixed = [0.5, *(scalar.plain(t).as_subclass(scalar.Coefficient) for t in terms)]
    total = scalar.fsum(x for x in mixed)
    assert scalar.value(total) == 7.5
    assert torch.autograd.grad(scalar.plain(total), terms)[0].tolist() == [1.0] * 3


def test_gradients_with_respect_to_the_network_and_the_coefficients() -> None:
    rows = solvers.dpmpp_2m().rows(make_path(VP(), TIMES))
    x = start_on(VP(), 2)

    def end(weight: Tensor, *factors: Tensor) -> Tensor:
        class Net:
            def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> object:
                return [lambda y: torch.tanh(y @ weight)] * len(times)

        mine = [
            replace(row, a=a, w=(w, *row.w[1:]))  # type: ignore[type-var]
            for row, a, w in zip(rows, factors[: len(rows)], factors[len(rows) :], strict=True)
        ]
        *_, last = solvers.differentiable(mine, Net(), x, FreshNoise([], x.device))  # type: ignore[arg-type]
        return last.x

    weight = torch.randn(2, 2, generator=generator(), dtype=F64).requires_grad_()
    factors = [torch.tensor(c, dtype=F64, requires_grad=True) for c in [r.a for r in rows] + [r.w[0] for r in rows]]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(end, (weight, *factors), eps=1e-6, atol=1e-7)


def test_checkpoints_keep_one_state_per_evaluation_and_nothing_of_the_network() -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(4, 500), torch.nn.SiLU(), torch.nn.Linear(500, 4))
    model = ScoreModel(lambda x, t: wide(x), VP(), "x0")

    def kept(steps: int, checkpoint: bool) -> int:
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if not isinstance(x, torch.nn.Parameter) and x._base is None:
                seen[x.data_ptr()] = x.numel()
            return x

        driver = functools.partial(solvers.differentiable, checkpoint=checkpoint)
        start = torch.randn(8, 4, generator=generator()).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            end = sample(model, start, "dpmpp-2m", steps, driver=driver, progress=False).x
        del end
        return sum(seen.values())

    assert kept(20, True) <= 21 * 2 * 32, "states, and no activations of 500 features"
    assert kept(20, False) > 20 * 8 * 500


def test_a_backward_pass_evaluates_in_evaluation_mode() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))
            self.modes: list[bool] = []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.modes.append(self.training)
            return self.scale * x

    net = Net()
    x = sample(ScoreModel(net, VP()), (2, 2), "ddim", 4, driver="differentiable", progress=False).x
    x.sum().backward()
    assert net.modes == [False] * 8 and net.training and net.scale.grad is not None


def test_solvers_that_compute_with_plain_floats_refuse_to_lose_a_gradient() -> None:
    def rows(path: Path) -> list[solvers.Row]:
        return [solvers.one_step(u, v, a=math.exp(v.log_sigma - u.log_sigma), w=1.0) for u, v in path.moves]

    mine = RowSolver(solvers.get("ddim").description, rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="which would lose them"):
        draw(mine, "differentiable", path=TIMES.clone().requires_grad_())
    for driver in ("fast", "parallel", EAGER):
        with pytest.raises(ValueError, match="take driver='differentiable'"):
            draw("ddim", driver, path=TIMES.clone().requires_grad_())


@given(z=st.floats(-60, 60), count=st.integers(1, 6))
def test_moments_of_tensors_are_those_of_floats(z: float, count: int) -> None:
    tensor = torch.tensor(z, dtype=F64, requires_grad=True)
    got = exponential_moments(tensor.as_subclass(scalar.Coefficient), count)  # type: ignore[arg-type]
    for k, (one, wanted) in enumerate(zip(got, exponential_moments(z, count), strict=True)):
        assert scalar.value(one) == pytest.approx(wanted, rel=1e-11)
        # dM_k / dz = M_{k+1} - M_k
        (slope,) = torch.autograd.grad(scalar.plain(one), tensor, retain_graph=True)
        pair = exponential_moments(z, k + 2)
        assert float(slope) == pytest.approx(pair[k + 1] - pair[k], rel=1e-7, abs=1e-11 * abs(wanted))


@given(x=st.floats(-5, 5))
def test_scalar_functions_take_floats_and_tensors_alike(x: float) -> None:
    tensor = torch.tensor(x, dtype=F64, requires_grad=True)
    for name in ("exp", "expm1"):
        mine = getattr(scalar, name)
        assert mine(x) == pytest.approx(float(getattr(mpmath, name)(x)), rel=1e-14)
        assert scalar.value(mine(tensor)) == pytest.approx(mine(x), rel=1e-14)
    for name in ("log", "log1p", "sqrt"):
        mine = getattr(scalar, name)
        assert scalar.value(mine(tensor.square() + 0.1)) == pytest.approx(mine(x**2 + 0.1), rel=1e-14)
    assert scalar.isfinite(tensor) and not scalar.isfinite(math.inf)  # type: ignore[arg-type]


# Adaptive ----------------------------------------------------------------------------------------------------


def reference(sde: VP) -> Tensor:
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-12, 1e-12)
    return sample(model_on(sde), start_on(sde), tight, t_max=finite_start(sde), end="stop", progress=False).x


def adaptive(name: str, tolerance: float, clock: str = "lam") -> solvers.Adaptive:
    if name == "bs3":
        return solvers.bogacki_shampine(tolerance, tolerance, clock)
    if name == "dopri5":
        return solvers.dormand_prince(tolerance, tolerance, clock)
    return solvers.dpm_adaptive(int(name[-2:]), tolerance, tolerance)


CASES = [*((name, "lam") for name in PAIRS), ("bs3", "rho"), ("dopri5", "rho")]


@pytest.mark.parametrize("name", mostly_slow(["VP", "RectifiedFlow"], {"RectifiedFlow"}))
@pytest.mark.parametrize(("pair", "clock"), CASES)
def test_accuracy_follows_the_tolerance(pair: str, clock: str, name: str) -> None:
    """And the number of steps grows as tolerance^(-1 / order), which only a pair of that order does."""
    sde = SDES[name]
    truth, errors, steps = reference(sde), [], []
    tolerances = {"dopri5": (1e-4, 1e-6, 1e-8), "bs3": (1e-4, 1e-6)}.get(pair, (1e-3, 1e-5))
    for tolerance in tolerances:
        method = adaptive(pair, tolerance, clock)
        end = sample(model_on(sde), start_on(sde), method, 1, t_max=finite_start(sde), end="stop", progress=False)
        errors.append(rms(end.x - truth) / rms(truth))
        steps.append(float(end.info["accepted"].double().mean()))
        assert errors[-1] < 100 * tolerance
    assert all(one > 5 * other for one, other in itertools.pairwise(errors))
    order = method.pair.order
    assert slopes(steps[::-1], tolerances[0] / tolerances[1])[0] == pytest.approx(1 / order, rel=0.3)


@pytest.mark.parametrize(("pair", "clock"), CASES)
def test_a_pair_has_the_orders_it_claims(pair: str, clock: str) -> None:
    """With steps of one length: a tolerance that accepts everything, and a controller that changes nothing."""
    sde, model, path = VP(), model_on(VP()), Path.from_times(VP(), [0.8, 0.3])
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-13, 1e-13)
    truth = sample(model, start_on(sde), tight, path=path, progress=False).x
    span = path.points[1].lam - path.points[0].lam
    errors = []
    for n in (16, 32):
        method = replace(adaptive(pair, 1e9, clock), first_step=span / n, controller=Controller(1e-30, safety=1.0))
        end = sample(model, start_on(sde), method, path=path, progress=False)
        assert end.info["accepted"].tolist() == [n] * 4
        errors.append(rms(end.x - truth))
    # In rho the leading error of dopri5 is so small here that the next one shows.
    assert method.pair.order - 0.3 < slopes(errors)[0] < method.pair.order + 1.1


@pytest.mark.parametrize(("pair", "order"), [("bs3", 3), ("dopri5", 5)])
def test_both_estimates_of_a_tableau_are_quadratures_of_their_order(pair: str, order: int) -> None:
    """sum_j w_j c_j^k = 1 / (k + 1) for k below the order, and of the other estimate for one power less."""
    tableau = adaptive(pair, 1e-3, "rho").pair
    one = torch.ones(1, dtype=F64)
    where = [Where(lam, lam, one, one) for lam in tableau.lams(0 * one, 0.3 * one)]
    n, length = len(tableau.c), math.exp(-0.3) - 1
    for i, top in ((n, order), (n + 1, order - 1)):
        w = [float(weight) / length for weight in tableau.weights(where, i)]
        for k in range(order + 1):
            defect = sum(wj * c**k for wj, c in zip(w, tableau.c, strict=False)) - 1 / (k + 1)
            assert (abs(defect) < 1e-12) == (k < top), (i, k)
    for i in range(1, n):  # every stage is where it says it is
        assert sum(float(weight) for weight in tableau.weights(where, i)) / length == pytest.approx(tableau.c[i], rel=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("event", [(2,), (3, 4, 4)])
def test_each_sample_is_independent_of_its_batch(name: str, event: tuple[int, ...]) -> None:
    model = ScoreModel(lambda x, t: torch.tanh(x) * VP().sigma(t).reshape(-1, *([1] * len(event))).to(x), VP())
    x = torch.randn(5, *event, generator=generator()) * torch.tensor([0.1, 1, 3, 1, 10]).reshape(-1, *([1] * len(event)))
    both = sample(model, x, name, 6, progress=False)
    for i in range(5):
        alone = sample(model, x[i : i + 1], name, 6, progress=False)
        assert torch.equal(alone.x[0], both.x[i])
        for key in ("accepted", "rejected"):
            assert alone.info[key][0] == both.info[key][i]
    assert len(set(both.info["accepted"].tolist())) > 1, "each has steps of its own"


@pytest.mark.parametrize("name", PAIRS)
def test_evaluations_and_rejections_are_counted(name: str) -> None:
    calls = []
    base = model_on(VP())
    model = ScoreModel(lambda x, t: calls.append(t) or base.eps(x, t), VP())  # type: ignore[func-returns-value]
    method = replace(adaptive(name, 1e-4), first_step=3.0)
    end = sample(model, start_on(VP(), 1), method, 1, end="stop", progress=False)
    assert end.evaluations == len(calls)
    accepted, rejected = int(end.info["accepted"]), int(end.info["rejected"])
    assert rejected > 0, "the first step is far too long"
    n = len(method.pair.c)
    # An accepted step of a pair that does not evaluate at its end evaluates at the next start, the last one excepted.
    expected = 1 + (n - 1) * (accepted + rejected) + (0 if method.pair.reuses_last else accepted - 1)
    assert end.evaluations == expected


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", PAIRS)
def test_states_between_lie_on_the_solution(name: str) -> None:
    sde, model = VP(), model_on(VP())
    tolerance = 1e-7 if name == "dopri5" else 1e-5
    seen: list[solvers.State] = []
    path = make_path(sde, "lam", 12, t_min=0.05, end="stop")
    end = sample(model, start_on(sde), adaptive(name, tolerance), path=path, callback=seen.append, progress=False)
    assert [s.step for s in seen] == list(range(1, 13)) and [s.point for s in seen] == list(path.points[1:])
    direct = sample(model, start_on(sde), adaptive(name, tolerance), path=[path.times[0], path.times[-1]], progress=False)
    assert torch.equal(direct.x, end.x), "points between change nothing"
    tight = SciPy(solvers.get("rk45").description, "DOP853", 1e-12, 1e-12)
    for state in seen[::3]:
        truth = sample(model, start_on(sde), tight, path=[path.times[0], state.point.t], progress=False).x
        assert rms(state.x - truth) < 300 * tolerance


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_is_the_published_algorithm(order: int) -> None:
    """The authors' loop for one sample, written out by hand: the same attempts, and the same result."""
    sde, model = VP(), model_on(VP())
    x = start = start_on(sde, 1)
    lam, end = float(sde.lam(1.0)), float(sde.lam(1e-3))

    def eps(y: Tensor, at: float) -> Tensor:
        return model.eps(y, float(sde.time(at)))

    def step(y: Tensor, u: float, v: float, *terms: tuple[float, Tensor]) -> Tensor:
        """alpha_v / alpha_u y - sigma_v sum w eps."""
        t, s = float(sde.time(u)), float(sde.time(v))
        return sde.alpha(s) / sde.alpha(t) * y - sde.sigma(s) * sum(w * e for w, e in terms)

    h, attempts, before = 0.05, [0, 0], x
    while end - lam > 1e-9:
        h = min(h, end - lam)
        e0, (p1, c) = eps(x, lam), (math.expm1(h), 0.5 if order == 2 else 1 / 3)
        e1 = eps(step(x, lam, lam + c * h, (math.expm1(c * h), e0)), lam + c * h)
        if order == 2:
            low, high = step(x, lam, lam + h, (p1, e0)), step(x, lam, lam + h, (p1, e1))
        else:
            low = step(x, lam, lam + h, (p1, e0), (p1 / (2 * c), e1 - e0))
            phi = math.expm1(2 * h / 3) / (2 * h / 3) - 1
            e2 = eps(step(x, lam, lam + 2 * h / 3, (math.expm1(2 * h / 3), e0), (2 * phi, e1 - e0)), lam + 2 * h / 3)
            high = step(x, lam, lam + h, (p1, e0), (1.5 * (p1 / h - 1), e2 - e0))
        scale = torch.maximum(torch.tensor(0.0078), 0.05 * torch.maximum(low.abs(), before.abs()))
        error = float(((high - low) / scale).square().mean().sqrt())
        attempts[error > 1] += 1
        if error <= 1:
            x, lam, before = high, lam + h, low
        h = 0.9 * h * error ** (-1 / order)
    got = sample(model, start, f"dpm-{order - 1}{order}", t_min=1e-3, end="stop", path="t", progress=False)
    assert [int(got.info["accepted"]), int(got.info["rejected"])] == attempts and min(attempts) > 0
    torch.testing.assert_close(got.x, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("seed", "tolerance", "batch"), [(0, 0.05, 1), (1, 0.05, 1), (2, 0.01, 1), (3, 0.3, 1), (4, 0.05, 5)]
)
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_is_k_diffusions(
    order: int, seed: int, tolerance: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, model = k_diffusion_sampling(), model_on(EDM())
    # It adds 1e-8 to the error, so as not to divide by zero: without that the steps are the same to rounding.
    monkeypatch.setattr(peer.PIDStepSizeController.__init__, "__defaults__", (1, 0.81, 0.0))
    x = 80 * torch.randn(batch, 2, generator=generator(seed), dtype=F64)
    torch.set_default_dtype(F64)
    try:
        wanted, info = peer.sample_dpm_adaptive(
            lambda y, s: model.x0(y, s[0]), x, 0.01, 80.0, order=order, rtol=tolerance, disable=True, return_info=True
        )
    finally:
        torch.set_default_dtype(torch.float32)
    norm = "sample" if batch == 1 else "batch"
    method = solvers.dpm_adaptive(10 * (order - 1) + order, tolerance, controller="k-diffusion", norm=norm)
    # Its tolerances are for x / alpha, so that the steps are the same under any SDE.
    for sde in (EDM(), VP()):
        ends = [float(sde.time(-math.log(sigma))) for sigma in (80.0, 0.01)]
        scale = [float(sde.alpha(t)) for t in ends]
        got = sample(model_on(sde), scale[0] * x, method, path=ends, progress=False)
        assert got.info["accepted"].tolist() == [info["n_accept"]] * batch
        assert got.info["rejected"].tolist() == [info["n_reject"]] * batch
        torch.testing.assert_close(got.x / scale[1], wanted, rtol=1e-9, atol=1e-9)


NEAR_THE_LIMIT = st.floats(1.45, 2.0)


@given(errors=st.lists(st.floats(1e-4, 20) | NEAR_THE_LIMIT, min_size=1, max_size=6), order=st.sampled_from([2, 3]))
def test_the_k_diffusion_controller_judges_as_theirs(errors: list[float], order: int) -> None:
    """Attempt by attempt: what is accepted, and the length that follows."""
    controller = solvers.dpm_adaptive(10 * (order - 1) + order, controller="k-diffusion").controller
    theirs = k_diffusion_sampling().PIDStepSizeController(0.05, 0, 1, 0, order, 0.81, eps=0.0)
    one = torch.ones(1, dtype=F64)
    progress = controller.start(0.05, one)
    for error in errors:
        good, progress = controller.judge(progress, error * one, progress.length, one.bool())
        assert bool(good) == theirs.propose_step(error)
        assert float(progress.length) == pytest.approx(theirs.h, rel=1e-12)


def test_adaptive_solvers_say_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="expected positive tolerances"):
        solvers.dormand_prince(rtol=0)
    with pytest.raises(ValueError, match="expected 12 or 23"):
        solvers.dpm_adaptive(3)
    with pytest.raises(ValueError, match="expected 'lam' or 'rho'"):
        solvers.bogacki_shampine(clock="t")
    with pytest.raises(ValueError, match="positive integral part"):
        Controller(integral=0.0)
    with pytest.raises(ValueError, match="expected a positive length"):
        draw(replace(solvers.dormand_prince(), first_step=0.0), "auto")
    with pytest.raises(ValueError, match="expected 'state' or 'estimate'"):
        replace(solvers.dormand_prince(), before="end")
    with pytest.raises(ValueError, match="expected 'published' or 'k-diffusion'"):
        solvers.dpm_adaptive(controller="pid")
    with pytest.raises(ValueError, match="expected 'sample' or 'batch'"):
        solvers.dpm_adaptive(norm="all")
    with pytest.raises(ValueError, match="expected 'state' or 'data'"):
        replace(solvers.dpm_adaptive(), scale="alpha")
    with pytest.raises(ValueError, match="goes back towards the noise"):
        draw("dopri5", "auto", path=[1.0, 0.4, 0.6, 0.2])
    broken = ScoreModel(lambda x, t: x * torch.nan, VP())
    with pytest.raises(ArithmeticError, match="Check that the network is finite"):
        sample(broken, (2, 2), "dopri5", progress=False)
    with pytest.raises(ArithmeticError, match="take larger tolerances"):
        draw(replace(solvers.dormand_prince(), max_attempts=3), "auto")
