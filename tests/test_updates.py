"""One loop: updates apply themselves to any states, drivers say what they can do, and rows use the network's own output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import pytest
import torch
from support import covering, generator, model_on
from torch import Tensor

from scoresde import EDM, VP, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.sde import GaussianSDE
from scoresde.solvers import DRIVERS, SOLVERS, FreshNoise, Point, RowSolver, Update, evaluations, make_path
from scoresde.solvers.drivers.model import bind

F64 = torch.float64
ROWS = {name: solver for name in SOLVERS if isinstance(solver := solvers.get(name), RowSolver)}
LINEAR = [name for name, s in ROWS.items() if all(row.linear for row in s.rows(make_path(VP(), "lam", 3)))]
RUNNING: dict[str, solvers.Driver] = {
    "readable": solvers.Readable(),
    "fast": solvers.Fast(),
    "compiled": solvers.Compiled("eager"),
    "parallel": solvers.Parallel(tolerance=0.0, window=3),
    "differentiable": solvers.Differentiable(),
    "differentiable, no checkpoints": solvers.Differentiable(checkpoint=False),
}


def last(driver: solvers.Driver, rows: Sequence[Update], model: object, x: Tensor) -> Tensor:
    found = driver(rows, model, x, FreshNoise(range(len(x)), x.device))  # type: ignore[arg-type]
    if isinstance(found, Tensor):
        return found
    *_, state = found
    return state.x


class Denoiser:
    """E[x_0 | x] = tanh(x) in the plane, as a network might have it, whose output is ``kind``."""

    def __init__(self, sde: GaussianSDE, kind: str, fused: bool = True, buffer: bool = False) -> None:
        self.sde, self.kind, self.fused = sde, kind, fused
        self.buffer: Tensor | None = torch.empty(0) if buffer else None
        self.converted, self.outputs = 0, 0

    def made_of(self, t: Tensor) -> tuple[float, float]:
        """of_x and of_output."""
        a, s = self.sde.alpha(t.to(F64)), self.sde.sigma(t.to(F64))
        pair = {"x0": (0 * a, 1 + 0 * a), "eps": (1 / a, -s / a), "velocity": (1 / (a + s), -s / (a + s))}[self.kind]
        return float(pair[0]), float(pair[1])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._kept(torch.tanh(x))

    def _kept(self, n: Tensor) -> Tensor:
        if self.buffer is None:
            return n
        if self.buffer.shape != n.shape:
            self.buffer = torch.empty_like(n)
        return self.buffer.copy_(n)

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        def one(t: Tensor) -> Callable[[Tensor], Tensor]:
            of_x, of_output = self.made_of(t)

            def output(x: Tensor) -> Tensor:
                self.outputs += 1
                return self._kept((torch.tanh(x) - of_x * x) / of_output)

            def x0(x: Tensor) -> Tensor:
                self.converted += 1
                return of_x * x + of_output * output(x)

            if self.fused:
                x0.output, x0.of_x, x0.of_output = output, of_x, of_output  # type: ignore[attr-defined]
            return x0

        return [one(t) for t in times]


def start() -> Tensor:
    return torch.randn(3, 2, generator=generator(1), dtype=F64)


# Updates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halfway(Update):
    """A third kind of update, as a reader might write it: halfway to the data prediction, in absolute value."""

    at: Point
    to: Point
    ends_step: bool = True

    def apply(self, on: solvers.updates.States) -> None:
        m = on.predict()
        on.replace(0.5 * (on.x + m.abs()), self.to, self.ends_step)

    def __str__(self) -> str:
        return "* halfway"


@pytest.mark.parametrize("driver", [d for d, made in RUNNING.items() if not made.needs_linear_rows])
def test_an_update_of_the_readers_own_runs_on_every_driver(driver: str) -> None:
    path = make_path(VP(), "lam", 4)
    linear = solvers.dpmpp_2m().rows(path)
    rows = [*linear[:2], Halfway(path.points[2], path.points[2]), *linear[2:]]
    x = start()
    got = last(RUNNING[driver], rows, Denoiser(VP(), "x0"), x)
    y, old = x, None
    for i, row in enumerate(linear):
        if i == 2:
            y = 0.5 * (y + torch.tanh(y).abs())
        m = torch.tanh(y)
        y = row.a * y + row.w[0] * m + (row.w[1] * old if len(row.w) > 1 else 0)
        old = m
    torch.testing.assert_close(got, y, rtol=1e-12, atol=1e-12)
    assert evaluations(rows) == evaluations(linear) + 1


def test_a_driver_that_needs_linear_rows_refuses_it() -> None:
    point = make_path(VP(), "lam", 4).points[1]
    with pytest.raises(ValueError, match="whose rows are linear"):
        last(solvers.Parallel(), [Halfway(point, point)], Denoiser(VP(), "x0"), start())


@pytest.mark.parametrize("solver", ROWS)
def test_evaluations_are_counted_as_they_are_made(solver: str) -> None:
    model = Denoiser(VP(), "x0")
    rows = ROWS[solver].rows(make_path(VP(), "t", 7))
    last(solvers.Fast(), rows, model, start())
    assert evaluations(rows) == model.outputs


@pytest.mark.parametrize("solver", ROWS)
def test_every_update_is_one_line_of_a_table(solver: str) -> None:
    for row in ROWS[solver].rows(make_path(VP(), "t", 4)):
        assert str(row).startswith("* " if row.ends_step else "  ") and "\n" not in str(row)


# Drivers -----------------------------------------------------------------------------------------------------


def test_drivers_say_what_they_can_do() -> None:
    able = {name: (d.shows_states, d.differentiates, d.takes_gradients, d.needs_linear_rows) for name, d in DRIVERS.items()}
    assert able == {
        "readable": (True, False, True, False),
        "fast": (False, False, False, False),
        "compiled": (True, False, False, False),
        "cuda-graph": (False, False, False, False),
        "parallel": (True, False, False, True),
        "differentiable": (True, True, True, False),
    }
    for driver in DRIVERS.values():
        assert type(driver)(**{f.name: getattr(driver, f.name) for f in fields(driver)}) == driver  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in DRIVERS if name not in ("cuda-graph", "compiled")])
def test_a_partial_of_a_driver_is_that_driver(name: str) -> None:
    wanted = sample(model_on(VP()), start(), "ddpm", 5, driver=name, progress=False)
    for driver in (DRIVERS[name], functools.partial(DRIVERS[name]), functools.partial(functools.partial(DRIVERS[name]))):
        assert torch.equal(sample(model_on(VP()), start(), "ddpm", 5, driver=driver, progress=False).x, wanted.x)


def test_a_partial_sets_options_and_refuses_what_is_none() -> None:
    assert solvers.drivers.driver(functools.partial(solvers.parallel, window=8)) == solvers.Parallel(window=8)
    with pytest.raises(TypeError, match="got windw for driver 'parallel'; expected anderson, tolerance, window"):
        sample(model_on(VP()), start(), driver=functools.partial(solvers.parallel, windw=8), progress=False)
    with pytest.raises(ValueError, match="expected window >= 1"):
        solvers.Parallel(window=0)


@pytest.mark.parametrize("kind", [lambda *a, **k: solvers.differentiable(*a, **k), print, 3, None, solvers.Parallel])
def test_what_says_nothing_of_itself_is_no_driver(kind: object) -> None:
    """Gradients would be lost in silence, or a tensor taken for states."""
    with pytest.raises(TypeError, match=r"expected a name \(readable, fast, .*Custom\(function"):
        sample(model_on(VP()), start(), "ddim", 3, driver=kind, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", ["differentiable", "readable", "fast"])
def test_a_loop_of_the_readers_own_is_wrapped_with_what_it_can_do(inner: str) -> None:
    it = DRIVERS[inner]
    loop = solvers.Custom(
        lambda *args, **kwargs: it(*args, **kwargs), it.shows_states, it.differentiates, it.takes_gradients
    )
    x = start().requires_grad_(it.differentiates)
    got = sample(model_on(VP()), x, "dpmpp-2m", 4, driver=loop, progress=False).x
    assert torch.equal(got.detach(), sample(model_on(VP()), start(), "dpmpp-2m", 4, driver=inner, progress=False).x)
    assert got.requires_grad == it.differentiates
    if it.differentiates:
        assert torch.autograd.grad(got.sum(), x)[0].abs().min() > 0
    if not it.shows_states:
        with pytest.raises(ValueError, match="overwrites its states and has none to show"):
            sample(model_on(VP()), x, "ddim", 4, driver=loop, callback=print, progress=False)


@pytest.mark.parametrize("driver", [*RUNNING, "auto"])
@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "pc", "pc-underdamped", "edm", "learned"])
def test_steps_are_counted_from_one_to_the_last(solver: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = solvers.ddpm("learned") if solver == "learned" else ROWS[solver]
    it = RUNNING.get(driver, solvers.Fast())
    rows = method.rows(make_path(VP(), "lam", 5))
    if it.needs_linear_rows and not all(row.linear for row in rows):
        pytest.skip("not a solver for this driver")
    net = (lambda x, t: torch.cat([x, x], 1)) if solver == "learned" else (lambda x, t: x)
    model = ScoreModel(net, VP(), learned_variance=solver == "learned")
    counts: list[int] = []
    totals: list[int] = []

    class Bar:
        n = 0

        def __init__(self, total: int, **kwargs: object) -> None:
            totals.append(total)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *args: object) -> None: ...

        def update(self, by: int) -> None:
            self.n += by
            counts.append(self.n)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    sample(model, start(), method, 5, driver=RUNNING.get(driver, "auto"), progress=True)
    assert counts == list(range(1, sum(row.ends_step for row in rows) + 1)) and totals == [len(counts)]


# The network's own output ------------------------------------------------------------------------------------


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("solver", "kind"), covering(LINEAR, ["eps", "velocity", "x0"]))
def test_rows_made_of_the_networks_output_are_the_same_rows(solver: str, kind: str) -> None:
    rows = ROWS[solver].rows(make_path(VP(), "lam", 4))
    for name, driver in RUNNING.items():
        fused, apart = Denoiser(VP(), kind), Denoiser(VP(), kind, fused=False)
        got = last(driver, rows, fused, start())
        torch.testing.assert_close(got, last(driver, rows, apart, start()), rtol=1e-9, atol=1e-9)
        if name != "parallel":  # which calls the model itself, at many times at once
            assert fused.converted == 0 and fused.outputs == apart.converted == evaluations(rows)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("solver", "kind"), [("dpm-3", "eps"), ("lms", "eps"), ("pndm", "eps"), ("velocity-2", "velocity")])
def test_what_the_network_predicts_is_taken_as_it_is(solver: str, kind: str, sde: GaussianSDE) -> None:
    """p = 0 and q = 1 exactly, however the conversion there and back rounds."""
    rows = ROWS[solver].rows(make_path(sde, "lam", 50, t_max=0.9 * sde.span[1], end="stop"))
    bound, _ = bind(rows, Denoiser(sde, kind), start())  # type: ignore[arg-type]
    assert {(row.p, row.q) for row in bound if row.at is not None} == {(0.0, 1.0)}  # type: ignore[attr-defined]
    assert {(row.p, row.q) for row in rows if row.at is not None} != {(0.0, 1.0)}  # type: ignore[attr-defined]


def test_langevin_corrections_take_the_data_prediction() -> None:
    rows = solvers.predictor_corrector(solvers.dpm_solver(2)).rows(make_path(VP(), "lam", 4))
    fused, apart = Denoiser(VP(), "eps"), Denoiser(VP(), "eps", fused=False)
    got = last(solvers.Fast(), rows, fused, start())
    torch.testing.assert_close(got, last(solvers.Fast(), rows, apart, start()), rtol=1e-10, atol=1e-10)
    assert fused.converted == sum(not row.linear for row in rows) > 0


# Memory that the model keeps ---------------------------------------------------------------------------------


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("solver", "kind"), covering(LINEAR, ["x0", "eps"]))
def test_a_model_may_return_the_same_memory_at_each_call(solver: str, kind: str) -> None:
    rows = ROWS[solver].rows(make_path(VP(), "lam", 4))
    for driver in ("readable", "fast", "compiled", "parallel"):
        for fused in (True, False):
            models = (Denoiser(VP(), kind, fused, buffer) for buffer in (True, False))
            one, other = (last(RUNNING[driver], rows, model, start()) for model in models)
            assert torch.equal(one, other), (driver, fused)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "unipc-3"])
def test_memory_that_comes_round_or_is_reused_late_is_never_read_too_late(solver: str) -> None:
    """Predictions in memory that alternates; reused from the second or the third on; and later, which is an error."""
    rows = ROWS[solver].rows(make_path(VP(), "lam", 9))
    depth = max(row.lookback[0] for row in rows)

    class Turns:
        def __init__(self, memory: Callable[[int], int]) -> None:
            self.memory, self.calls = memory, 0
            self.rooms = [torch.empty(3, 2, dtype=F64) for _ in range(99)]

        def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
            def x0(x: Tensor) -> Tensor:
                self.calls += 1
                return self.rooms[self.memory(self.calls)].copy_(torch.tanh(x))

            return [x0] * len(times)

    wanted = last(solvers.Fast(), rows, Turns(lambda k: k), start())
    for memory in (lambda k: k % 2, lambda k: k % 3, lambda k: 0, lambda k: min(k, max(depth - 1, 1))):
        assert torch.equal(last(solvers.Fast(), rows, Turns(memory), start()), wanted)
    with pytest.raises(RuntimeError, match="copies them all"):
        last(solvers.Fast(), rows, Turns(lambda k: min(k, depth + 2)), start())
    late = last(solvers.Readable(), rows, Turns(lambda k: min(k, depth + 2)), start())
    assert torch.equal(late, wanted)


def test_history_survives_the_evaluations_of_corrections() -> None:
    """A row that looks back on the one evaluation before a Langevin correction, which evaluates too."""
    path = make_path(VP(), "lam", 3)
    u, v, w = path.points[:3]
    first = solvers.Row(v, u, 0.5, (0.5,))
    again = solvers.Row(w, None, 0.5, (0.25,))
    rows = [first, solvers.Langevin(v, 0.1), again]
    for driver in (solvers.Readable(), solvers.Fast(), solvers.Compiled("eager")):
        one, other = (last(driver, rows, Denoiser(VP(), "x0", False, buffer), start()) for buffer in (True, False))
        assert torch.equal(one, other)


def test_a_draw_of_a_correction_is_not_remembered() -> None:
    """The same noise reaches a later row whether or not a correction drew in between."""
    path = make_path(VP(), "lam", 3)
    u, v, w = path.points[:3]
    rows = [
        solvers.Row(v, u, 0.0, (), (1.0,), draw=(u, v)),
        solvers.Langevin(v, 0.1),
        solvers.Row(w, None, 0.0, (), (1.0,)),
    ]
    for driver in (solvers.Readable(), solvers.Fast(), solvers.Compiled("eager")):
        noise = FreshNoise(range(3), torch.device("cpu")).normal(torch.empty(3, 2, dtype=F64))
        torch.testing.assert_close(last(driver, rows, Denoiser(VP(), "x0"), start()), noise)
