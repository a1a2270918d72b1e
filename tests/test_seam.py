"""One seam: a score model that overrides its data prediction is honoured by everything, as if it were one network."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import covering
from torch import Tensor, nn

import scoresde
from scoresde import (
    EDM,
    VE,
    VP,
    CosineVP,
    RectifiedFlow,
    ScoreModel,
    SubVP,
    guidance,
    log_likelihood,
    problems,
    sample,
    solvers,
)
from scoresde.comparison import Bias, inject
from scoresde.inverse import DDNM, Mask, Observation, PiGDM
from scoresde.score import PREDICTIONS, Calls, Conditions, Parametrization, Shared, Transformed, Wrapper, target
from scoresde.solvers import DRIVERS

F64 = torch.float64
SDES = [VP(), SubVP(), VE(), EDM(), CosineVP(t_max=0.99), RectifiedFlow(t_max=0.99)]
RUNNABLE = [name for name in DRIVERS if name not in ("cuda-graph", "compiled")]


class Small(nn.Module):
    """A smooth network of few weights, in float64."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(0.4 * torch.randn(d, d, generator=generator, dtype=F64))
        self.u = nn.Parameter(0.4 * torch.randn(d, generator=generator, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        y = torch.tanh(x @ self.w.to(x) + self.u.to(x) * torch.atan(t.to(x))[:, None])
        return y if shift is None else y + shift.to(x).reshape(len(x), -1)


class ByHand(ScoreModel):
    """A network's own conversion, written as an override."""

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return super().x0(x, t, **conditions)


class Scaled(Wrapper):
    """Three quarters of the data prediction."""

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return 0.75 * self.model.x0(x, t, **conditions)


class Guided(Wrapper):
    """Two calls of the network."""

    @property
    def calls(self) -> Calls:
        return Calls(2 * self.model.calls.forward, self.model.calls.backward)

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        with_it, without = self.model.x0(x, t, **conditions), self.model.x0(x, t)
        return without + 2.0 * (with_it - without)


class AsNetwork(nn.Module):
    """A score model as the network of another one, which predicts the data."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.model.x0(x, t, **conditions)


def log_density(x: Tensor, t: Tensor) -> Tensor:
    """A smooth function of the state and the time, one number for each sample."""
    return torch.cos(x.sum(1) + t.to(x)) - 0.1 * x.square().sum(1)


def network(sde: Any, predicts: str = "v") -> ScoreModel:
    return ScoreModel(Small(), sde, predicts)


WRAPPERS: dict[str, Callable[[ScoreModel], ScoreModel]] = {
    "by hand": lambda m: ByHand(m.net, m.sde, m.predicts),
    "wrapper": Wrapper,
    "scaled": Scaled,
    "guided": Guided,
    "transformed": lambda m: Transformed(m, lambda x0, t: x0.clamp(-0.5, 0.5)),
    "nested": lambda m: Scaled(Guided(Transformed(m, lambda x0, t: 0.5 * x0))),
    "erring": lambda m: inject(m, Bias(0.1)),
    "classifier-free": lambda m: guidance.ClassifierFree(m, 2.0, {"shift": torch.zeros(1)}, rescale=0.3),
    "projected": lambda m: guidance.Projected(m, 3.0, {"shift": 0.0}, norm=0.4),
    "cfg++": lambda m: guidance.CFGPlusPlus(m, 0.6, {"shift": 0.0}, steps=5),
    "auto": lambda m: guidance.Auto(m, Scaled(m), torch.tensor([1.5, 2.0, 0.5])),
    "composed": lambda m: guidance.Compose({m: 1.5, guidance.Given(m, without="shift"): -0.5}),
    "mixture": lambda m: guidance.Mixture({m: 0.5, Scaled(m): 0.5}, [log_density, lambda x, t: log_density(x - 0.3, t)]),
    "given": lambda m: guidance.Given(m, {"shift": torch.ones(3, 1, dtype=F64)}, without="other"),
    "classifier": lambda m: guidance.Classifier(m, log_density, 0.7),
    "energy": lambda m: guidance.Energy(m, lambda x0, shift: (x0 - shift).square().sum(1), 0.2, shares="shift"),
    "static threshold": lambda m: guidance.StaticThreshold(guidance.ClassifierFree(m, 2.0, {"shift": 0.0}), -0.5, 0.5),
    "dynamic threshold": lambda m: guidance.DynamicThreshold(guidance.ClassifierFree(m, 2.0, {"shift": 0.0}), 0.9, 0.5),
    "conditioned": lambda m: PiGDM(m, SEEN),
    "conditioned without gradients": lambda m: DDNM(m, SEEN),
}
SEEN = Observation(Mask([True, False]), torch.tensor([0.3], dtype=F64), 0.5)
SHIFT = torch.tensor([[0.3], [-0.2], [0.1]], dtype=F64)


def pair(name: str, sde: Any, predicts: str = "v") -> tuple[ScoreModel, ScoreModel]:
    """A wrapped model, and the same written as one network that predicts the data."""
    wrapped = WRAPPERS[name](network(sde, predicts))
    return wrapped, ScoreModel(AsNetwork(wrapped), sde, "x0")


def start(n: int = 3) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


# Samples, counts, gradients, likelihoods -----------------------------------------------------------------------------


GUIDED = {name for name, make in WRAPPERS.items() if type(make(network(VP()))).__module__.startswith("scoresde.guidance")}


@pytest.mark.parametrize("driver", RUNNABLE)
@pytest.mark.parametrize(
    ("solver", "name"),
    [
        pytest.param(solver, name, marks=pytest.mark.slow if name in GUIDED and solver in ("unipc-3", "dpm-2") else [])
        for solver in ("ddim", "unipc-3", "dpm-2", "sde-dpmpp-2m")
        for name in WRAPPERS
    ],
)
def test_every_driver_honours_an_override(name: str, driver: str, solver: str) -> None:
    wrapped, one = pair(name, VP())
    how: dict[str, Any] = {"driver": driver, "progress": False, "seed": 2, "conditions": {"shift": SHIFT}}
    got, wanted = (sample(m, start(), solver, 5, **how) for m in (wrapped, one))
    torch.testing.assert_close(got.x, wanted.x, rtol=1e-9, atol=1e-10)
    assert got.evaluations == wanted.evaluations * wrapped.calls.forward


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("sde", "predicts"), covering(SDES, PREDICTIONS, 3))
@pytest.mark.parametrize("name", ["scaled", pytest.param("by hand", marks=pytest.mark.slow)])
def test_every_sde_and_prediction_honours_an_override(name: str, sde: Any, predicts: str) -> None:
    wrapped, one = pair(name, sde, predicts)
    x = float(sde.sigma(sde.span[1])) * start()
    for solver in ("ddim", "dpmpp-2m", "heun", "ddpm", "dopri5", "rk45", "pc", "torchsde-euler"):
        got, wanted = (sample(m, x, solver, 4, seed=3, progress=False).x for m in (wrapped, one))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    times = torch.tensor([0.9, 0.4, 0.7], dtype=F64) * sde.span[1]
    for view in ("x0", "eps", "score", "v"):
        torch.testing.assert_close(getattr(wrapped, view)(x, times), getattr(one, view)(x, times), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_every_solver_honours_an_override(solver: str) -> None:
    wrapped, one = pair("scaled", VP())
    got, wanted = (sample(m, start(), solver, 4, seed=3, progress=False) for m in (wrapped, one))
    torch.testing.assert_close(got.x, wanted.x, rtol=1e-7, atol=1e-8)
    assert got.evaluations == wanted.evaluations


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_both_ways_agree_where_nothing_is_changed(predicts: str) -> None:
    """What a network converts directly is what follows from its data prediction."""
    sde, x, t = VP(), start(), torch.tensor([0.9, 0.4, 0.2], dtype=F64)
    direct = network(sde, predicts)
    followed = ByHand(direct.net, sde, predicts)
    for view in ("x0", "eps", "score", "v", "forward"):
        torch.testing.assert_close(getattr(direct, view)(x, t), getattr(followed, view)(x, t), rtol=1e-9, atol=1e-9)
    bound = [m.at(t, device=x.device, dtype=x.dtype) for m in (direct, followed)]
    for a, b, at in zip(*bound, t, strict=True):
        torch.testing.assert_close(a(x), b(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a(x), direct.x0(x, at), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WRAPPERS)
def test_gradients_reach_the_network_and_the_start(name: str) -> None:
    wrapped, one = pair(name, VP())
    found = []
    for model in (wrapped, one):
        x = start().requires_grad_()
        how: dict[str, Any] = {"driver": "differentiable", "progress": False, "conditions": {"shift": SHIFT}}
        sample(model, x, "dpmpp-2m", 4, **how).x.square().sum().backward()
        found.append([x.grad, *(p.grad for p in wrapped.parameters())])
        wrapped.zero_grad()
    for a, b in zip(*found, strict=True):
        assert a is not None and float(a.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in WRAPPERS if n != "transformed"])  # a clamp has kinks
def test_likelihoods_agree(name: str) -> None:
    wrapped, one = pair(name, VP())
    how: dict[str, Any] = {"steps": 12, "conditions": {"shift": SHIFT}}
    got, wanted = (log_likelihood(m, start(), **how) for m in (wrapped, one))
    torch.testing.assert_close(got.log_prob, wanted.log_prob, rtol=1e-8, atol=1e-8)
    assert got.evaluations == 15 * wrapped.calls.forward  # a point more than steps, and two for the prior's mismatch


def test_a_guided_model_counts_forty_for_twenty_steps() -> None:
    drawn = sample(Guided(network(VP())), (3, 2), "ddim", 20, conditions={"shift": 0.1}, progress=False, dtype=F64)
    assert (drawn.evaluations, drawn.backward) == (40, 0)


def test_a_model_states_its_backward_calls() -> None:
    class Pulled(Wrapper):
        @property
        def calls(self) -> Calls:
            return Calls(1, 1)

    assert sample(Pulled(network(VP())), start(), "heun", 5, progress=False).backward == 9


def test_what_a_learned_variance_costs_is_counted() -> None:
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.cat([0.5 * x, 0.1 * x], 1)

    learned = ScoreModel(net, scoresde.DDPM.linear(20, 1e-3, 0.3), "x0", learned_variance=True)

    class Mine(ScoreModel):
        def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return super().x0(x, t, **conditions)

    models = [learned, Transformed(learned, lambda m, t: m), Scaled(learned), Scaled(Scaled(learned))]
    for model in [*models, Mine(net, learned.sde, "x0", learned_variance=True)]:
        seen.clear()
        drawn = sample(model, start(), solvers.ddpm("learned"), 3, progress=False)
        assert drawn.evaluations == len(seen), model


def test_the_inner_network_is_in_evaluation_mode_and_its_home_is_seen() -> None:
    modes = []

    class Spy(Small):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            modes.append(self.training)
            return super().forward(x, t)

    model = Scaled(Scaled(ScoreModel(Spy(), VP())))
    model.train()
    assert sample(model, (2, 2), "ddim", 3, progress=False).x.dtype == F64  # that of the weights
    assert modes == [False] * 3 and all(m.training for m in model.modules())
    assert len(list(model.parameters())) == 2 and model.dtype == F64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_is_started_in_its_own_dtype_and_told_the_time_in_full(dtype: torch.dtype) -> None:
    seen = []

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(2, dtype=dtype))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.extend(t.tolist())
            return self.a * x

    chain = scoresde.DDPM.linear(1000)
    path = torch.tensor([1000, 778, 809, 3], dtype=F64)
    times = (path[[0, 2, 1, 3]] / 1000).tolist()
    for driver in ("fast", "readable", "parallel"):
        seen.clear()
        drawn = sample(ScoreModel(Half(), chain), (2, 2), "ddim", path=times, driver=driver, progress=False)
        assert drawn.x.dtype == dtype
        assert {999.0, 808.0, 777.0} <= set(seen)


# What a subclass may not do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["eps", "score", "v", "forward"])
def test_overriding_what_follows_alone_is_refused(view: str) -> None:
    with pytest.raises(TypeError, match=f"overrides {view} and not x0"):
        type("Mine", (ScoreModel,), {view: lambda self, x, t, **conditions: x})


def test_a_model_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"subclass scoresde\.score\.Wrapper"):
        ScoreModel(network(VP()), VP())
    with pytest.raises(TypeError, match="expected a ScoreModel"):
        Wrapper(Small())  # type: ignore[arg-type]


# Outputs -------------------------------------------------------------------------------------------------------------


class Output:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


@pytest.mark.parametrize("form", [lambda y: y, lambda y: (y, None), lambda y: [y], lambda y: {"sample": y}, Output])
@pytest.mark.parametrize("driver", RUNNABLE)
def test_forms_of_output_are_the_tensor_in_them(driver: str, form: Callable[[Tensor], Any]) -> None:
    net = Small()
    model = ScoreModel(lambda x, t: form(net(x, t)), VP())
    got = sample(model, start(), "dpmpp-2m", 4, driver=driver, progress=False).x
    torch.testing.assert_close(
        got, sample(ScoreModel(net, VP()), start(), "dpmpp-2m", 4, progress=False).x, atol=1e-9, rtol=0
    )


def written(x: Tensor) -> Tensor:
    return x.mul_(0.5)


WRONG: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "first column": (lambda x: x[:, :1], ValueError, r"returned shape \(3, 1\)"),
    "first sample": (lambda x: x[:1], ValueError, r"returned shape \(1, 2\)"),
    "squeezed": (lambda x: x[:, 0], ValueError, r"returned shape \(3,\)"),
    "a number": (lambda x: 1.0, TypeError, "returned a float"),
    "none": (lambda x: None, TypeError, "returned a NoneType"),
    "empty tuple": (lambda x: (), TypeError, "returned a tuple"),
    "mapping without sample": (lambda x: {"out": x}, TypeError, "returned a dict"),
    "more precise": (lambda x: x.double(), ValueError, "returned torch.float64 for x of torch.float32"),
    "complex": (lambda x: x.to(torch.complex64), ValueError, "returned torch.complex64"),
    "integers": (lambda x: x.long(), ValueError, "returned torch.int64"),
    "writes into x": (written, ValueError, "wrote into its input"),
}


@pytest.mark.parametrize("driver", [*RUNNABLE, "dopri5", "rk45", "likelihood", "fit"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_output_is_refused_by_everything(driver: str, case: str) -> None:
    wrong, error, words = WRONG[case]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return wrong(x) if case == "writes into x" else wrong(self.a * x)

    x = start().float()
    kept = x.clone()
    model = ScoreModel(Net(), VP())
    with pytest.raises(error, match=words):
        if driver == "likelihood":
            log_likelihood(model, x, steps=4)
        elif driver == "fit":
            scoresde.fit(model, x, steps=1, batch_size=3, progress=False)
        elif driver in DRIVERS:
            sample(model, x, "dpm-2", 3, driver=driver, progress=False)
        else:
            sample(model, x, driver, 3, progress=False)
    assert torch.equal(x, kept) or driver in ("dopri5", "rk45")


# Conditions ----------------------------------------------------------------------------------------------------------

LABELS = [
    [2, 0, 1],
    (2, 0, 1),
    np.array([2, 0, 1]),
    np.array([2, 0, 1], dtype=np.uint8),
    torch.tensor([2, 0, 1], dtype=torch.int32),
    torch.tensor([2, 0, 1], dtype=torch.uint8),
    [np.int64(2), np.int64(0), np.int64(1)],
    [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
]


@pytest.mark.parametrize("labels", LABELS, ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}")
def test_labels_of_any_kind_are_the_same_labels(labels: Any) -> None:
    found = Conditions.of({"label": labels}, 3)
    assert found.values["label"].dtype == torch.int64 and found.values["label"].tolist() == [2, 0, 1]
    assert found.per_sample == {"label"}


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_a_number_is_one_for_all(label: Any) -> None:
    assert Conditions.of({"label": label}, 3).values["label"].tolist() == [1, 1, 1]


def test_a_shared_matrix_is_never_repeated() -> None:
    """A (4, 4) matrix is no condition of one entry for each of four samples."""
    shapes = []

    def net(x: Tensor, t: Tensor, mixing: Tensor) -> Tensor:
        shapes.append(tuple(mixing.shape))
        return x

    model = ScoreModel(net, VP())
    sample(model, (4, 2), "heun", 6, driver="parallel", conditions={"mixing": Shared(torch.eye(4))}, progress=False)
    assert set(shapes) == {(4, 4)}


@pytest.mark.parametrize(
    ("conditions", "error", "words"),
    [
        ({"shift": torch.ones(2, 1)}, ValueError, "'shift' with 2 entries for 3 samples"),
        ({"shift": [1.0]}, ValueError, "'shift' with 1 entries for 3 samples"),
        ({"shift": ["a", "b"]}, ValueError, "'shift' with 2 entries for 3 samples"),
        ({"t": 1.0}, ValueError, "the name of the state or the time"),
        ([1, 2, 3], TypeError, "expected a mapping from names"),
    ],
)
def test_wrong_conditions_are_named(conditions: Any, error: type[Exception], words: str) -> None:
    for call in (sample, log_likelihood):
        with pytest.raises(error, match=words):
            call(network(VP()), start(), conditions=conditions)


@pytest.mark.parametrize("word", ["num_steps", "progess", "label"])
def test_unknown_arguments_are_errors(word: str) -> None:
    model = ScoreModel(lambda x, t, **anything: x, VP())
    with pytest.raises(TypeError, match=word):
        sample(model, start(), **{word: 5})  # type: ignore[arg-type]


# Where alpha = 0, threads, exact models ------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["eps", "score"])
@pytest.mark.parametrize("sde", [CosineVP(), RectifiedFlow(), scoresde.DDPM([0.1, 0.5, 1.0]).sde()], ids=repr)
def test_what_cannot_be_converted_where_alpha_is_zero_is_refused(sde: Any, predicts: str) -> None:
    model = ScoreModel(Small(), sde, predicts)
    for call in (lambda: sample(model, start(), "ddim", 3, progress=False), lambda: log_likelihood(model, start())):
        with pytest.raises(ValueError, match="expected predicts='v', 'velocity' or 'x0', or a smaller t_max"):
            call()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_the_likelihood_has_its_divergence_in_every_mode(mode: Callable[[], Any]) -> None:
    problem = problems.Gaussian([0.0, 0.0], 1.0)
    x = start()
    with mode():
        found = log_likelihood(problem.model(VP()), x)
    torch.testing.assert_close(found.log_prob, problem.log_prob(x, VP(), VP().span[0]), atol=2e-4, rtol=0)


def test_a_network_that_detaches_has_no_likelihood() -> None:
    net = Small()

    def detached(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x, t)

    with pytest.raises(ValueError, match="carry no gradient"):
        log_likelihood(ScoreModel(detached, VP()), start())


def test_threads_that_sample_one_model_in_training_mode_agree() -> None:
    net = nn.Sequential()
    net.append(nn.Linear(2, 64)).append(nn.Dropout(0.5)).append(nn.Linear(64, 2))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    model = ScoreModel(lambda x, t: net(x), VP())
    model.inner = net
    model.train()
    wanted = sample(model, (4, 2), "ddim", 5, progress=False).x
    found: list[Tensor] = []

    def work() -> None:
        for _ in range(10):
            found.append(sample(model, (4, 2), "ddim", 5, progress=False).x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and all(torch.equal(x, wanted) for x in found)
    assert all(m.training for m in model.modules())


def test_exact_models_have_no_network_and_know_their_problem() -> None:
    problem = problems.ring()
    model = problem.model(VP())
    assert model.problem is problem and model.net is None and not list(model.parameters())
    x, t = start(), torch.tensor([0.9, 0.3, 0.01], dtype=F64)
    m, alpha, sigma = model.x0(x, t), VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    torch.testing.assert_close(model.eps(x, t), (x - alpha * m) / sigma, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.v(x, t), alpha * model.eps(x, t) - sigma * m, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_target_that_is_derived_is_the_published_one(predicts: str) -> None:
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1], dtype=F64), torch.tensor([0.1, 0.7, 0.99], dtype=F64)
    derived = Parametrization(PREDICTIONS[predicts].coefficients)
    for a, b in zip(derived.factors(alpha, sigma, 0.5), PREDICTIONS[predicts].factors(alpha, sigma, 0.5), strict=True):
        torch.testing.assert_close(a, b)


def test_a_prediction_of_ones_own_samples_and_trains() -> None:
    PREDICTIONS.register("mine", Parametrization(PREDICTIONS["v"].coefficients))
    try:
        one = torch.ones(1, 2)
        torch.testing.assert_close(target("mine", one, one, *torch.tensor([[0.8], [0.6]]), 0.5), 0.2 * one)
        net = scoresde.models.MLP(2, hidden=(8,))
        fit = scoresde.fit(ScoreModel(net, VP(), "mine"), torch.randn(16, 2), steps=2, batch_size=8, progress=False)
        assert bool(torch.isfinite(sample(fit.model, (2, 2), "ddim", 2, progress=False).x).all())
    finally:
        PREDICTIONS.unregister("mine")
