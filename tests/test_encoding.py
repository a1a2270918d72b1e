"""Encoding along the flow, against its closed form on Gaussian data, by every deterministic solver and under every SDE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from support import SDES, finite_start, generator, mixture, model_on, rms
from torch import Tensor

from scoresde import DDPM, EDM, VP, GeneralSDE, NonFiniteError, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.problems import Gaussian
from scoresde.sampling import Bidirectional, Coupled, decode, encode
from scoresde.sampling.editing.mirror import Mirrored, MirroredSDE, mirrored_path
from scoresde.sde import GaussianSDE
from scoresde.solvers import SOLVERS, make_path

F64 = torch.float64
DETERMINISTIC = [name for name in SOLVERS if not solvers.get(name).stochastic]
STEPPED = [name for name in DETERMINISTIC if solvers.get(name).description.order is not None]
MEAN, VARIANCE = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([0.8, 0.1], dtype=F64)
DATA = Gaussian(MEAN, VARIANCE.diag())
WITH_CHAIN = {**SDES, "chain": DDPM.linear(200, 1e-3, 0.1).sde()}


def drawn(n: int = 6) -> Tensor:
    return DATA.sample(n, generator(3), dtype=F64)


class Exact(ScoreModel):
    """The exact model of these data, which is called ten thousand times here: as little work as can be."""

    def __init__(self, sde: GaussianSDE) -> None:
        super().__init__(None, sde, "x0")

    def _of(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor | float, Tensor | float]:
        alpha, sigma = (f(torch.as_tensor(t, dtype=F64)) for f in (self.sde.alpha, self.sde.sigma))
        alpha, sigma = (v[:, None] if v.ndim else float(v) for v in (alpha, sigma))
        return (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2), alpha, sigma

    def x0(self, x: Tensor, t: Tensor | float) -> Tensor:
        z, alpha, _ = self._of(x, t)
        return MEAN + alpha * VARIANCE * z

    def eps(self, x: Tensor, t: Tensor | float) -> Tensor:
        z, _, sigma = self._of(x, t)
        return sigma * z


def exact_flow(sde: GaussianSDE, x: Tensor, u: float, v: float) -> Tensor:
    """The flow from u to v on these data: each coordinate keeps its quantile."""
    before, after = ((sde.alpha(t) ** 2 * VARIANCE + sde.sigma(t) ** 2).sqrt() for t in (u, v))
    return sde.alpha(v) * MEAN + (x - sde.alpha(u) * MEAN) * after / before


def test_the_cheap_model_is_the_exact_one() -> None:
    x = torch.randn(5, 2, generator=generator(), dtype=F64)
    for t in (0.01, 0.4, torch.linspace(0.1, 1, 5, dtype=F64)):
        for name in ("x0", "eps"):
            torch.testing.assert_close(getattr(Exact(VP()), name)(x, t), getattr(DATA.model(VP()), name)(x, t))


# The mirrored process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", WITH_CHAIN.values(), ids=WITH_CHAIN)
def test_the_mirrored_process_is_one_like_any_other(sde: GaussianSDE) -> None:
    mirror = MirroredSDE(sde)
    low, high = sde.span
    # Up to a little before the end: where alpha = 0 there, so is the mirrored sigma.
    t = mirror.opposite(torch.linspace(low, finite_start(sde), 67, dtype=F64)[1:-1])
    eps = 1e-6 * (high - low)
    for name, derivative in (("log_alpha", "d_log_alpha"), ("log_sigma", "d_log_sigma"), ("alpha", "d_alpha")):
        function = getattr(mirror, name)
        slope = (function(t + eps) - function(t - eps)) / (2 * eps)
        close = torch.isclose(slope, getattr(mirror, derivative)(t), rtol=2e-3, atol=1e-6)
        assert close.double().mean() > (0.9 if sde is WITH_CHAIN["chain"] else 0.99), name  # a chain's slope has jumps
    torch.testing.assert_close(mirror.time(mirror.lam(t)), t, rtol=1e-7, atol=1e-9 * high)
    g2 = -2 * mirror.sigma(t) ** 2 * (mirror.d_log_alpha(t) - mirror.d_log_sigma(t))
    torch.testing.assert_close(mirror.diffusion_squared(t), g2, rtol=1e-7, atol=0)


def test_the_mirror_of_the_mirror_is_the_process_itself() -> None:
    twice, t = MirroredSDE(MirroredSDE(VP())), torch.linspace(*VP().span, 9, dtype=F64)
    for name in ("log_alpha", "log_sigma", "d_log_alpha", "d_log_sigma", "diffusion_squared"):
        torch.testing.assert_close(getattr(twice, name)(t), getattr(VP(), name)(t), rtol=1e-9, atol=1e-12)
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(), dtype=F64)
    torch.testing.assert_close(Mirrored(Mirrored(model)).x0(x, 0.3), model.x0(x, 0.3), rtol=1e-12, atol=1e-12)


def test_a_path_and_its_mirror_have_the_same_points() -> None:
    path = make_path(EDM(), "karras", 7, end="stop")
    mirror = mirrored_path(path)
    assert [p.sigma for p in mirror.points] == [p.alpha for p in reversed(path.points)]
    assert [p.alpha for p in mirror.points] == [p.sigma for p in reversed(path.points)]
    assert all(a.lam < b.lam for a, b in mirror.moves)


# The closed form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", WITH_CHAIN.values(), ids=WITH_CHAIN)
@pytest.mark.parametrize("path", ["lam", "karras"])
def test_encoding_is_the_flow_and_decoding_its_inverse(sde: GaussianSDE, path: str) -> None:
    model, x = Exact(sde), drawn()
    found = encode(model, x, steps=60, path=path)
    truth = exact_flow(sde, x, *sde.span)
    assert rms(found.x - truth) / rms(truth) < (1e-2 if path == "karras" or sde is WITH_CHAIN["chain"] else 1e-4)
    back = decode(model, found.x, steps=60, path=path)
    assert float((back.x - x).abs().max()) < (1e-2 if path == "karras" else 1e-4)
    assert back.times == tuple(reversed(found.times)) and found.times[0] == sde.span[0]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_deterministic_solver_encodes_with_its_order(name: str) -> None:
    """From times inside the span, where neither end hides the error of the steps."""
    sde, x = VP(), drawn()
    ends = {"t_min": float(sde.time(2.0)), "t_max": float(sde.time(-2.0))}
    truth = exact_flow(sde, x, ends["t_min"], ends["t_max"])
    order = solvers.get(name).description.order
    # The last step of UniPC, which is of order one, and the last of abm-2, which is not corrected, show from 48 steps on.
    steps = (48, 144) if name.startswith(("unipc", "abm-2")) else (16, 48)
    errors = [rms(encode(Exact(sde), x, name, n, **ends).x - truth) for n in steps]
    if order is None:  # the tolerance decides
        assert errors[0] < 0.1
    else:
        assert errors[1] < 0.05
        assert math.log(errors[0] / errors[1], 3) > order - 0.3


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", ["dopri5", "rk45", "dpm-3", "velocity-3", "plms"])
def test_solvers_of_every_kind_encode_under_every_sde(name: str, sde: GaussianSDE) -> None:
    x, truth = drawn(), exact_flow(sde, drawn(), *sde.span)
    assert rms(encode(Exact(sde), x, name, 40).x - truth) / rms(truth) < 1e-2


def test_ddim_encodes_by_the_published_inversion() -> None:
    """x_v = alpha_v m + sigma_v eps upwards, both at the lower point: DDIM inversion, also to alpha = 0."""
    for sde in (VP(), EDM(), RectifiedFlow()):
        model, x = model_on(sde), mixture().sample(4, generator(1), dtype=F64)
        path = make_path(sde, "lam", 9, end="stop")
        y = x
        for u, v in zip(path.points[::-1], path.points[-2::-1], strict=False):
            m = model.x0(y, u.t)
            y = v.alpha * m + v.sigma * (y - u.alpha * m) / u.sigma
        torch.testing.assert_close(encode(model, x, "ddim", 9).x, y, rtol=1e-9, atol=1e-9)


def test_ddim_is_consistent_across_numbers_of_steps() -> None:
    """One latent, decoded by few steps and by many, is one sample up to an error of first order."""
    model = model_on(VP())
    latent = torch.randn(64, 2, generator=generator(2), dtype=F64)
    truth = decode(model, latent, "rk4", 200).x
    errors = [rms(decode(model, latent, "ddim", n).x - truth) for n in (50, 100, 200)]
    assert errors[0] < 0.1
    assert all(0.75 < math.log2(a / b) < 1.25 for a, b in itertools.pairwise(errors))


def test_latents_of_data_are_draws_of_the_prior() -> None:
    z = encode(mixture().model(VP()), mixture().sample(4000, generator(5), dtype=F64), "dpmpp-2m", 60).x
    # Four standard errors of a mean and of a variance; the prior misses the data's trace, alpha_T^2 = 4e-5.
    assert z.mean(0).abs().max() < 4 / 4000**0.5 + 0.01
    assert (z.T.cov() - torch.eye(2, dtype=F64)).abs().max() < 4 * (2 / 4000) ** 0.5


@pytest.mark.sweep(2)
@pytest.mark.parametrize("sde", WITH_CHAIN.values(), ids=WITH_CHAIN)
def test_the_round_trip_of_200_steps(sde: GaussianSDE) -> None:
    model, x = Exact(sde), drawn()
    back = decode(model, encode(model, x, steps=200).x, steps=200)
    assert float((back.x - x).abs().max()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_round_trip_of_every_solver(sde: GaussianSDE, name: str) -> None:
    """At 200 steps; those of first order, and those with a loose tolerance by default, are off by their order."""
    model, x = model_on(sde), mixture().sample(4, generator(1), dtype=F64)
    back = decode(model, encode(model, x, name, 200).x, name, 200)
    order = solvers.get(name).description.order
    bound = 2.0 if order is None else {1: 0.2, 2: 5e-3, 3: 1e-4, 4: 1e-6}[order]
    assert float((back.x - x).abs().max()) < bound


@pytest.mark.parametrize("sde", [RectifiedFlow()], ids=repr)
def test_the_round_trip_of_an_adaptive_solver_is_within_its_tolerance(sde: GaussianSDE) -> None:
    model, x, tight = model_on(sde), mixture().sample(4, generator(1), dtype=F64), solvers.dormand_prince(1e-8, 1e-8)
    back = decode(model, encode(model, x, tight).x, tight)
    assert float((back.x - x).abs().max()) < 1e-6


def test_encoding_runs_on_every_driver_and_differentiates() -> None:
    model, x = model_on(VP()), mixture().sample(3, generator(1), dtype=F64).requires_grad_()
    fast = encode(model, x, "dpmpp-2m", 12)
    for driver in ("readable", "parallel", "differentiable"):
        other = encode(model, x, "dpmpp-2m", 12, driver=driver)
        torch.testing.assert_close(other.x, fast.x, rtol=1e-3, atol=1e-3 if driver == "parallel" else 0)
    assert fast.evaluations == 12
    for sde in (VP(), RectifiedFlow()):
        problem = Exact(sde)
        (gradient,) = torch.autograd.grad(encode(problem, x, "rk4", 30, driver="differentiable").x.sum(), x)
        (truth,) = torch.autograd.grad(exact_flow(sde, x, *sde.span).sum(), x)
        torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-4)


def test_conditions_and_calls_go_through() -> None:
    class Shifted(ScoreModel):
        def x0(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
            return 0 * x + conditions["at"][:, None]

    model = Shifted(None, VP())
    x = torch.ones(2, 1, dtype=F64)
    found = encode(model, x, "ddim", 10, conditions={"at": [1.0, 3.0]})
    a, s = (float(f(VP().span[0])) for f in (VP().alpha, VP().sigma))
    eps = (1 - a * torch.tensor([[1.0], [3.0]], dtype=F64)) / s  # constant along the flow of a point
    b, r = (float(f(1.0)) for f in (VP().alpha, VP().sigma))
    torch.testing.assert_close(found.x, b * torch.tensor([[1.0], [3.0]], dtype=F64) + r * eps)
    assert found.evaluations == 10


# Invertible methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Coupled(), Coupled(0.93), Bidirectional(), Bidirectional(0.98)], ids=repr)
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_invertible_methods_undo_their_steps_to_rounding(sde: GaussianSDE, method: Coupled | Bidirectional) -> None:
    model, x = model_on(sde), mixture().sample(4, generator(1), dtype=F64)
    for n in (1, 2, 30):
        how = {"solver": method, "steps": n, "t_max": finite_start(sde)}
        up = encode(model, x, **how)
        down = decode(model, up.x, partner=up.info["partner"], **how)
        scale = max(float(v.abs().max()) for v in (x, up.x, up.info["partner"]))  # rounding is relative to the states
        assert float((down.x - x).abs().max()) < 1e-11 * scale
        z = x * sde.prior_std
        down = decode(model, z, **how)
        up = encode(model, down.x, partner=down.info["partner"], **how)
        assert float((up.x - z).abs().max()) < 1e-10 * max(scale, sde.prior_std)


@pytest.mark.parametrize(("method", "order"), [(Coupled(), 1), (Bidirectional(), 2), (Bidirectional(0.5), 1)], ids=repr)
def test_invertible_methods_follow_the_flow(method: Coupled | Bidirectional, order: int) -> None:
    sde, x = VP(), drawn()
    ends = {"t_min": float(sde.time(2.0)), "t_max": float(sde.time(-2.0))}
    truth = exact_flow(sde, x, ends["t_min"], ends["t_max"])
    up = [rms(encode(Exact(sde), x, method, n, **ends).x - truth) for n in (50, 100, 200)]
    down = [rms(decode(Exact(sde), truth, method, n, **ends).x - x) for n in (50, 100, 200)]
    for errors in (up, down):
        if method != Bidirectional(0.5) or errors is down:  # upwards its factor 1 / gamma amplifies errors
            assert all(order - 0.3 < math.log2(a / b) for a, b in itertools.pairwise(errors)), errors
            assert errors[-1] < 0.05


def test_coupled_is_the_published_step() -> None:
    """Wallace et al., 2022, equation (14), with their a_t and b_t."""
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(), dtype=F64)
    u, v = make_path(VP(), [0.8, 0.6], end="stop").points
    a = v.alpha / u.alpha
    b = v.sigma - a * u.sigma

    def eps(y: Tensor) -> Tensor:
        return model.eps(y, u.t)

    p = 0.93
    x_inter = a * x + b * eps(x)
    y_inter = a * x + b * eps(x_inter)
    x_next = p * x_inter + (1 - p) * y_inter
    y_next = p * y_inter + (1 - p) * x_next
    found = decode(model, x, Coupled(0.93), path=[0.8, 0.6])
    torch.testing.assert_close(found.x, x_next)
    torch.testing.assert_close(found.info["partner"], y_next)
    assert found.evaluations == 2


# States on the way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_kept_states_are_on_the_flow_and_change_nothing(name: str) -> None:
    sde = VP()
    model, start = Exact(sde), sde.prior_std * torch.randn(4, 2, generator=generator(6), dtype=F64)
    keep = [0.9, 0.51, 0.2, 0.05]
    how = {"steps": 30, "end": "stop", "progress": False}
    found = sample(model, start, name, keep=keep, **how)
    assert torch.equal(found.x, sample(model, start, name, **how).x)
    assert list(found.states) == keep
    end_error = rms(found.x - exact_flow(sde, start, 1.0, sde.span[0]))
    for t, x in found.states.items():
        # Interpolation adds an error of fourth order to that of the steps, which is the largest in the middle.
        assert rms(x - exact_flow(sde, start, 1.0, t)) < 5 * end_error + 2e-3


def test_interpolation_between_points_is_of_fourth_order() -> None:
    for sde in (VP(), RectifiedFlow(), EDM()):
        model, start = Exact(sde), sde.prior_std * torch.randn(4, 2, generator=generator(6), dtype=F64)
        t = [float(sde.time(lam)) for lam in (-1.5123, 0.0377, 1.1234)]
        errors = []
        for n in (30, 120):
            found = sample(model, start, "rk4", n, keep=t, end="stop", progress=False)
            errors.append(max(rms(found.states[s] - exact_flow(sde, start, sde.span[1], s)) for s in t))
        assert errors[-1] < 1e-6 and math.log(errors[0] / errors[-1], 4) > 3, (sde, errors)


@pytest.mark.parametrize(
    "solver", ["ddpm", "edm", "restart", "torchsde-euler", "gotta-go-fast", "dpmpp-2m", "dopri5", "rk45"]
)
def test_states_at_points_of_the_path_are_those_of_the_callback(solver: str) -> None:
    model, seen = model_on(VP()), {}
    how = {"solver": solver, "steps": 6, "progress": False}
    plain = sample(model, (3, 2), callback=lambda state: seen.update({state.point.t: state.x.clone()}), **how)
    keep = [t for t in seen if t in plain.times][-3:]
    found = sample(model, (3, 2), keep=[1.0, *keep], **how)
    assert torch.equal(found.x, plain.x)
    for t in keep:
        assert torch.equal(found.states[t], seen[t])
    assert found.states[1.0].std() > 0.3  # the start


def test_encoding_keeps_states_too() -> None:
    for sde in (VP(), RectifiedFlow()):
        x = drawn()
        keep = [sde.span[0], 0.2, 0.66, sde.span[1]]
        for method in ("rk4", "dopri5"):
            found = encode(Exact(sde), x, method, 80, keep=keep)
            assert list(found.states) == keep
            for t, state in found.states.items():
                assert rms(state - exact_flow(sde, x, sde.span[0], t)) < 1e-4
    path = [1.0, 0.7, 0.3, 0.01]
    found = encode(DATA.model(VP()), x, Bidirectional(), path=path, keep=[0.3, 1.0])
    assert torch.equal(found.states[1.0], found.x) and found.states[0.3].shape == x.shape


# Refusals -------------------------------------------------------------------------------------------------------------

OU = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: math.sqrt(2) * torch.ones_like(x), t_max=3.0)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m, x: encode(m, x, "ddpm"), ValueError, "which draws noise, .* expected a deterministic one"),
        (lambda m, x: decode(m, x, "euler-a"), ValueError, "expected a deterministic one"),
        (lambda m, x: encode(m, x, "ddmi"), ValueError, "did you mean"),
        (lambda m, x: encode(m, x, 3), TypeError, "expected a name, a solver object"),
        (lambda m, x: encode(lambda x, t: x, x), TypeError, r"ScoreModel\(net, sde\) makes one"),
        (lambda m, x: encode(ScoreModel(lambda x, t: x, OU), x), ValueError, "expected a model on a GaussianSDE"),
        (lambda m, x: encode(m, x[:0]), ValueError, "got 0 samples"),
        (lambda m, x: encode(m, x * math.nan), ValueError, "6 numbers that are not finite"),
        (lambda m, x: encode(m, x[:, 0]), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m, x: encode(m, x, path=[1.0, 0.5, 0.0]), ValueError, "ends at sigma = 0"),
        (lambda m, x: encode(m, x, path=[1.0, 0.2, 0.5]), ValueError, "goes back towards the noise"),
        (lambda m, x: encode(m, x, steps=0), ValueError, "got steps=0"),
        (lambda m, x: encode(m, x, t_max=2.0), ValueError, "got t_max=2.0"),
        (lambda m, x: encode(m, x, partner=x), ValueError, "got a partner for solver 'rk4'"),
        (lambda m, x: decode(m, x, "heun", partner=x), ValueError, "got a partner for solver 'heun'"),
        (lambda m, x: decode(m, x, Coupled(), partner=x[:1]), ValueError, "got a partner of shape"),
        (lambda m, x: decode(m, x, Coupled(), end="denoise"), ValueError, "expected 'stop'"),
        (lambda m, x: encode(model_on(RectifiedFlow()), x, Coupled()), ValueError, "where alpha = 0, .*smaller t_max"),
        (
            lambda m, x: encode(ScoreModel(lambda x, t: x, RectifiedFlow()), x),
            ValueError,
            "where alpha = 0 .*or a smaller t_max",
        ),
        (lambda m, x: Coupled(0.3), ValueError, "got mix=0.3"),
        (lambda m, x: Bidirectional(0.0), ValueError, "got gamma=0.0"),
        (
            lambda m, x: encode(m, x, keep=[1.5]),
            ValueError,
            "got keep=1.5, outside the path; expected times from 0.001 to 1",
        ),
        (lambda m, x: encode(m, x, keep=[1e-4]), ValueError, "got keep=0.0001, outside the path"),
        (lambda m, x: sample(m, (3, 2), keep=[], progress=False), ValueError, "expected a list of times"),
        (lambda m, x: sample(m, (3, 2), keep=[math.nan], progress=False), ValueError, "got keep=nan, outside the path"),
        (
            lambda m, x: sample(m, (3, 2), t_min=0.01, keep=[5e-3], progress=False),
            ValueError,
            "from 0.01 to 1, or 0 for the",
        ),
        (lambda m, x: sample(m, (3, 2), "ddpm", keep=[0.5], progress=False), ValueError, "between two points of the path"),
        (lambda m, x: sample(m, (3, 2), "gotta-go-fast", keep=[0.5], progress=False), ValueError, "between two points"),
        (lambda m, x: encode(m, x, Bidirectional(), keep=[0.5]), ValueError, "between two points of the path"),
        (
            lambda m, x: sample(m, (3, 2), driver="fast", keep=[0.5], progress=False),
            ValueError,
            "got times to keep for driver 'fast'",
        ),
        (
            lambda m, x: sample(OU.reverse(lambda x, t: -x), (3, 1), "heun", keep=[0.5], progress=False),
            ValueError,
            "got keep for an SDE without marginals",
        ),
    ],
)
def test_bad_input(call: Callable[[ScoreModel, Tensor], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(model_on(VP()), mixture().sample(3, generator(), dtype=F64))


def test_a_network_that_fails_on_the_way_up_is_named_with_its_time() -> None:
    class Broken(ScoreModel):
        def x0(self, x: Tensor, t: Tensor | float) -> Tensor:
            return x * (math.nan if float(t) > 0.5 else 0.9)

    x = torch.ones(2, 2, dtype=F64)
    for method in ("ddim", Bidirectional()):
        with pytest.raises(NonFiniteError, match="became non-finite in step 2") as caught:
            encode(Broken(None, VP()), x, method, path=[1.0, 0.8, 0.6, 0.01])
        assert caught.value.t == pytest.approx(0.8) and bool(caught.value.last_finite.isfinite().all())
