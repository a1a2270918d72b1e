"""Injected errors: their size, what they are in every prediction, and what they do to solvers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from support import SDES, generator, mixture, rms

from scoresde import EDM, VP, RectifiedFlow, ScoreModel, models, problems, sample
from scoresde.comparison import Bias, Field, Rounding, Trained, White, eps_rms, inject
from scoresde.problems import Gaussian
from scoresde.sampling.reference import flow_end
from scoresde.solvers import make_path

DIRECTION = torch.tensor([3.0, -1.0])


def falling(lam):
    """An amplitude that depends on the scale."""
    return 0.1 * torch.sigmoid(-lam)


ERRORS = {
    "bias": Bias(0.1),
    "bias with a direction": Bias(0.1, DIRECTION),
    "white": White(0.1),
    "white by call": White(0.1, generator=generator(3)),
    "field": Field(0.1),
    "short field": Field(0.1, length=0.2, lam_length=0.7, seed=1),
    "falling bias": Bias(falling),
    "falling field": Field(falling, length=0.5),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def states(sde, lam, n=64):
    t = sde.time(torch.tensor(lam, dtype=torch.float64))
    return sde.perturb(mixture().sample(n, generator(2)), t, draw(n, 2, seed=3)), t


# Size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_amplitude_is_the_root_mean_square_under_the_noised_data(sde, error):
    problem = mixture()
    exact = problem.model(sde)
    wrong = inject(exact, error)
    for lam in (-3.3, -0.4, 0.9, 2.6):
        expected = float(falling(torch.tensor(lam))) if callable(error.amplitude) else error.amplitude
        t = float(sde.time(lam))
        assert eps_rms(wrong, exact, problem, t, n=2048, seed=11) == pytest.approx(expected, rel=0.08)


def test_images_are_samples_like_others():
    problem = problems.textures()
    exact = problem.model(VP())
    for error in (Bias(0.1), White(0.1), Field(0.1)):
        assert eps_rms(inject(exact, error), exact, problem, 0.3, n=500, seed=1) == pytest.approx(0.1, rel=0.05)


def test_the_size_of_an_error_is_measured_on_samples_too():
    problem, exact = mixture(), mixture().model(VP())
    bare = ScoreModel(lambda x, t: problem.eps(x, VP(), t), VP())  # does not know its problem
    with pytest.raises(ValueError, match=r"got a model whose data are not known; expected data=, samples or a problem"):
        inject(bare, Field(0.1))
    wrong = inject(bare, Field(0.1), data=problem.sample(4000, generator()))
    assert eps_rms(wrong, exact, problem, 0.4) == pytest.approx(0.1, rel=0.05)


# Every prediction -----------------------------------------------------------------------------------------------------


@given(lam=st.floats(-4.5, 4.0), size=st.floats(0.0, 2.0), name=st.sampled_from(sorted(SDES)))
def test_an_error_of_the_noise_is_an_error_of_everything_else(lam, size, name):
    sde = SDES[name]
    exact, (x, t) = mixture().model(sde), states(sde, lam, n=4)
    wrong = inject(exact, Bias(size, DIRECTION))
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    e = size * DIRECTION.double() / math.sqrt(5.0)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(wrong.eps(x, t) - exact.eps(x, t), e.expand(4, 2), **close)
    torch.testing.assert_close(exact.x0(x, t) - wrong.x0(x, t), (sigma / alpha * e).expand(4, 2), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(alpha * wrong.x0(x, t) + sigma * wrong.eps(x, t), x, **close)
    torch.testing.assert_close(sigma * wrong.score(x, t), -wrong.eps(x, t), **close)


def test_without_signal_there_is_no_error():
    exact = mixture().model(RectifiedFlow())
    x = draw(5, 2)
    for error in (Bias(0.1), Field(0.1), White(0.1)):
        assert torch.equal(inject(exact, error).x0(x, 1.0), exact.x0(x, 1.0))


def test_errors_add_up():
    exact, (x, t) = mixture().model(VP()), states(VP(), 0.3)
    parts = [Bias(0.2), Field(0.1), White(0.3)]
    alone = sum(inject(exact, e).eps(x, t) - exact.eps(x, t) for e in parts)
    for together in (inject(exact, *parts), inject(inject(exact, parts[2]), *parts[:2])):
        torch.testing.assert_close(together.eps(x, t) - exact.eps(x, t), alone)


@pytest.mark.parametrize("error", [Bias(0.1), White(0.1), Field(0.1)], ids=lambda e: type(e).__name__)
def test_an_error_belongs_to_its_sample_and_is_the_same_at_every_call(error):
    exact, (x, t) = mixture().model(VP()), states(VP(), 0.3)
    wrong, again = inject(exact, error), inject(mixture().model(VP()), error)
    both = wrong.eps(x, t)
    assert torch.equal(both, again.eps(x, t)) and not torch.equal(both, exact.eps(x, t))
    torch.testing.assert_close(wrong.eps(x[5:6], t), both[5:6], rtol=0, atol=1e-14)
    torch.testing.assert_close(wrong.eps(x, t.expand(64)), both, rtol=0, atol=1e-14)


# White ----------------------------------------------------------------------------------------------------------------


def white(x, t, **options):
    exact = mixture().model(VP())
    return inject(exact, White(1.0, **options)).eps(x, t) - exact.eps(x, t)


def test_white_errors_are_independent_standard_normal_numbers():
    x, t = states(VP(), 0.0, n=4000)
    e = white(x, t)
    others = (e.flip(1), white(x, t, seed=1), white(x, t * (1 + 1e-15)), white(x * (1 + 1e-15), t), e.roll(1, 0))
    assert stats.kstest(e.flatten().numpy(), "norm").pvalue > 1e-3
    for other in others:
        correlation = (e * other).flatten()[: 4000 if other is others[0] else None].mean()
        assert abs(float(correlation)) < 4 / math.sqrt(4000)
    moved = torch.cat([x[:, :1], x[:, 1:] * (1 + 1e-15)], 1)  # every coordinate counts for every other
    assert abs(float((e[:, 0] * white(moved, t)[:, 0]).mean())) < 4 / math.sqrt(4000)


def test_zero_has_one_error_whatever_its_sign():
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert torch.equal(white(x, 0.3), white(-x, 0.3))


def test_errors_by_call_come_from_the_generator_alone():
    x, t = states(VP(), 0.0)
    g = generator(1)
    exact = mixture().model(VP())
    model = inject(exact, White(1.0, generator=g))
    first, second = (model.eps(x, t) - exact.eps(x, t) for _ in range(2))
    assert abs(float((first * second).mean())) < 4 / math.sqrt(128)
    g.manual_seed(1)
    assert torch.equal(model.eps(x, t) - exact.eps(x, t), first)


# Fields ---------------------------------------------------------------------------------------------------------------


def test_a_field_is_a_draw_of_the_gaussian_process_it_names():
    sde, length, lam_length = VP(), 0.8, 1.5
    t, s = (sde.time(torch.tensor(lam, dtype=torch.float64)) for lam in (0.0, 0.9))
    x = draw(1, 3, seed=1)
    y = x + torch.tensor([[0.5, -0.6, 0.2]], dtype=torch.float64)  # alpha^2 + sigma^2 = 1 on VP
    products = []
    for seed in range(1500):
        raw = Field(1.0, length, lam_length, features=16, seed=seed)._raw(sde, torch.Size([3]))
        here = raw(x, t)
        products.append([float((here * there).mean()) for there in (here, raw(y, t), raw(x, s), raw(y, s))])
    found = torch.tensor(products).mean(0)
    space = math.exp(-float((x - y).square().mean()) / (2 * length**2))
    time = math.exp(-(0.9**2) / (2 * lam_length**2))
    torch.testing.assert_close(found, torch.tensor([1.0, space, time, space * time]), rtol=0, atol=0.08)


def test_a_field_is_smooth_and_white_noise_is_not():
    exact, (x, t) = mixture().model(VP()), states(VP(), 0.0)
    direction = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for error, smooth in ((Field(1.0), True), (White(1.0), False)):
        model = inject(exact, error)
        change = [rms(model.eps(x + h * direction, t) - model.eps(x, t)) for h in (1e-3, 1e-5)]
        assert (change[1] < 0.02 * change[0]) == smooth


# Networks and precision ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_error_of_a_trained_network_falls_with_training_and_scales():
    problem, exact = mixture(), mixture().model(VP())
    (x, t), before = states(VP(), 0.5), torch.random.get_rng_state()
    errors = {steps: Trained((16, 16), steps) for steps in (10, 250)}
    small = inject(exact, errors[250])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert eps_rms(small, exact, problem, t) < 0.6 * eps_rms(inject(exact, errors[10]), exact, problem, t)
    twice, none = (inject(exact, Trained((16, 16), 250, scale=s)).eps(x, t) - exact.eps(x, t) for s in (2.0, 0.0))
    torch.testing.assert_close(twice, 2 * (small.eps(x, t) - exact.eps(x, t)))
    assert not none.any()


def test_rounding_is_the_network_in_half_precision():
    model = ScoreModel(models.MLP(2, hidden=(8,)), VP(), "v")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator(1)))
    x, t = states(VP(), 0.2, n=8)
    coarse = inject(model.double(), Rounding())
    net = models.MLP(2, hidden=(8,))
    net.load_state_dict(model.net.state_dict())
    half = net.to(torch.bfloat16)(x.bfloat16(), t.float().expand(8)).double()
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    torch.testing.assert_close(coarse.eps(x, t), sigma * x + alpha * half, rtol=0, atol=1e-12)


def test_three_more_bits_are_an_eighth_of_the_error():
    problem, exact = mixture(), mixture().model(EDM())
    for lam in (0.0, 1.5, 3.0):
        t = float(EDM().time(lam))
        large, small = (eps_rms(inject(exact, Rounding(d)), exact, problem, t) for d in (torch.bfloat16, torch.float16))
        assert small > 1e-5 and 5 < large / small < 13


# What errors do to solvers --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_smooth_error_all_solvers_of_the_flow_level_off_at_one_floor():
    sde = VP()
    exact = mixture().model(sde)
    wrong, start = inject(exact, Field(0.1, length=1.5)), draw(16, 2)
    truth = flow_end(exact, start, make_path(sde), tolerance=1e-8).x
    floor = rms(flow_end(wrong, start, make_path(sde), tolerance=1e-8).x - truth)
    assert floor > 0.05
    for solver in ("heun", "dpm-2", "dpmpp-2m", "deis-3", "unipc-3"):
        few, many = (rms(sample(wrong, start, solver, n, progress=False).x - truth) for n in (100, 200))
        without = rms(sample(exact, start, solver, 200, progress=False).x - truth)
        assert without < 0.02 * floor  # the solver itself has almost no error left
        assert few == pytest.approx(floor, rel=0.03) and many == pytest.approx(floor, rel=0.01)


def shift(solver, amplitude, steps):
    """By how much a bias moves the end of a run on the same noise: the same for all samples, for data that are Gaussian."""
    exact = Gaussian([0.0, 0.0], 0.25).model(VP())
    start = draw(3, 2)
    ends = [sample(m, start, solver, steps, end="stop", progress=False).x for m in (inject(exact, Bias(amplitude)), exact)]
    moved = ends[0] - ends[1]
    assert moved.std() < 1e-9
    return float(moved.mean())


def expected_shift(eta, amplitude):
    """d z = [-eta z + (1 + eta) (k z - e)] d lam for z = x / sigma, with e^lam E[x_0 | x] = k z; by SciPy."""
    sde = VP()
    ends = [float(sde.lam(t)) for t in reversed(sde.span)]

    def slope(lam, z):
        k = 0.25 * math.exp(2 * lam) / (0.25 * math.exp(2 * lam) + 1)
        return -eta * z + (1 + eta) * (k * z - float(amplitude(torch.tensor(lam))))

    z = integrate.solve_ivp(slope, ends, [0.0], rtol=1e-10, atol=1e-12).y[0, -1]
    return z * float(sde.sigma(sde.span[0]))


def early(lam):
    return 0.1 * torch.sigmoid(-4 * (lam + 2))


def late(lam):
    return 0.1 * torch.sigmoid(4 * (lam - 1))


@pytest.mark.parametrize("amplitude", [early, late])
@pytest.mark.parametrize(("solver", "eta"), [("dpm-2", 0), ("dpmpp-2m", 0), ("sde-dpmpp-2m", 1), ("sde-heun", 1)])
def test_what_a_bias_moves_is_the_solution_of_the_linear_equation(solver, eta, amplitude):
    truth = expected_shift(eta, amplitude)
    errors = [abs(shift(solver, amplitude, n) / truth - 1) for n in (50, 200)]
    assert errors[1] < 4e-3 and errors[1] < errors[0] / 4


def test_noise_forgets_early_errors_and_doubles_late_ones():
    flow, noisy = ({a: abs(shift(s, a, 200)) for a in (early, late)} for s in ("dpm-2", "sde-heun"))
    assert noisy[early] < 0.6 * flow[early]
    assert noisy[late] > 1.2 * flow[late]


def test_white_errors_are_averaged_out_by_steps_whatever_the_order_and_forgotten_with_noise():
    exact = Gaussian([0.3, -0.2], 0.5).model(VP())
    wrong, start = inject(exact, White(0.2)), draw(4000, 2)  # each ratio then has a standard error of 0.6 %

    def error(solver, n):
        return rms(sample(wrong, start, solver, n, progress=False).x - sample(exact, start, solver, n, progress=False).x)

    first = error("ddim", 100)
    assert first / error("ddim", 400) == pytest.approx(2, rel=0.15)
    for solver in ("dpmpp-2m", "dpmpp-3m", "deis-3", "unipc-3"):
        assert error(solver, 100) == pytest.approx(first, rel=0.05)
    for solver in ("ddpm", "sde-dpmpp-2m"):
        assert error(solver, 100) < 0.75 * first


def test_at_few_steps_a_rough_error_is_amplified_by_the_order():
    exact, start = mixture().model(VP()), draw(200, 2)
    wrong = inject(exact, White(0.3))
    truth = flow_end(exact, start, make_path(VP()), tolerance=1e-6).x

    def errors(model, steps):
        same = (
            "ddim",
            "dpmpp-2m: finish='same'",
            "dpmpp-3m: finish='same'",
        )  # as published they lower the order of few steps
        return [rms(sample(model, start, s, steps, progress=False).x - truth) for s in same]

    first, second, third = errors(wrong, 5)
    assert 2 * first < second and 2 * second < third
    first, second, third = errors(exact, 30)  # where the score is exact, it is the other way round
    assert first > 2 * second > 2 * third


# The door -------------------------------------------------------------------------------------------------------------


def test_an_injected_model_has_a_reference_of_its_own_that_is_cached(tmp_path):
    exact, start = mixture().model(VP()), draw(3, 2)
    for seed in (0, 1, 1):
        flow_end(inject(exact, Field(0.1, seed=seed)), start, make_path(VP(), t_min=0.1), tolerance=1e-6, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_an_error_is_refused():
    exact = mixture().model(VP())
    with pytest.raises(TypeError, match="got float for an error of the score; expected Bias"):
        inject(exact, 0.1)
    for kind in (Bias, White, Field):
        with pytest.raises(ValueError, match=r"got amplitude=-0\.1; expected a finite number of at least 0"):
            kind(-0.1)
    with pytest.raises(ValueError, match="got a direction of length zero"):
        Bias(0.1, torch.zeros(2))
    with pytest.raises(ValueError, match=r"got length=0, lam_length=2\.0 and features=128; expected positive"):
        Field(0.1, length=0)
    with pytest.raises(ValueError, match=r"got dtype=torch\.float32; expected torch\.bfloat16"):
        Rounding(torch.float32)
