"""The early steps of the default solver: made by the Gaussian of the data, at no evaluation, where the model is it."""

import math

import pytest
import torch
from support import SDES, generator, mixture, rms
from torch import Tensor

import scoresde
from scoresde import VP, RectifiedFlow, ScoreModel, problems, sample, solvers
from scoresde.comparison import flow_end
from scoresde.sampling import measure_departure
from scoresde.sampling.early import HISTORY, EarlyGaussian, early
from scoresde.score import Calls, DataMoments, Departure, MomentSums, Wrapper
from scoresde.score.departure import fingerprint
from scoresde.solvers import Parallel, make_path
from scoresde.training.files import checkpoint

F64 = torch.float64
AUTO = solvers.auto()


def known(problem=None, sde=None) -> ScoreModel:
    """An exact model that knows its departure from the Gaussian of its data."""
    model = (problem or problems.ring()).model(sde or VP())
    model.departure = measure_departure(model)
    return model


def prior(sde: scoresde.GaussianSDE, n: int, *event: int) -> Tensor:
    return torch.randn(n, *event, generator=generator(5), dtype=F64) * float(sde.sigma(sde.span[1]))


# The departure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
def test_the_departure_of_two_points_is_its_closed_form_at_high_noise(name: str) -> None:
    """For +-a in one dimension, m = a tanh(a y / rho^2) with y = x / alpha, and m_G = a^2 y / (a^2 + rho^2).

    The third cumulant vanishes, and the fourth is -2 a^4: the difference is a^4 / 3 (3 y / rho^4 - y^3 / rho^6) to leading
    order, whose mean square under N(0, rho^2) is a^8 / 9 (9 - 18 + 15) / rho^6.
    """
    a, sde = 0.7, SDES[name]
    model = problems.Empirical(torch.tensor([[a], [-a]], dtype=F64)).model(sde)
    found = measure_departure(model, n=4000)
    assert len(found.lam) > 6
    lam, error = min(zip(found.lam, found.errors, strict=True), key=lambda pair: abs(pair[0] + 3.0))
    rho = math.exp(-lam)
    assert error == pytest.approx(math.sqrt(6) * a**4 / 3 / rho**4, rel=0.15)
    assert found.weights == 0 and found.fits(model)
    assert max(found.errors[:-1]) <= 0.03


def test_the_departure_is_a_length_so_that_directions_without_a_shape_change_nothing() -> None:
    """Two points in one direction, and any number of directions with a Gaussian beside."""
    levels = []
    for beside in (0, 3, 30):
        means = torch.zeros(2, 1 + beside, dtype=F64)
        means[:, 0] = torch.tensor([1.0, -1.0])
        found = measure_departure(problems.GaussianMixture(means, 0.04).model(VP()), n=2000)
        levels.append([found.level(tolerance) for tolerance in (1e-4, 1e-3, 1e-2)])
    assert levels[1] == pytest.approx(levels[0], abs=0.05) and levels[2] == pytest.approx(levels[0], abs=0.05)


def test_the_level_is_where_the_error_first_exceeds_the_tolerance() -> None:
    found = Departure((-4.0, -3.0, -2.0, -1.0), (1e-6, 1e-4, 1e-5, 1e-2))
    assert found.level(1e-5) == pytest.approx(-3.5) and found.level(1e-7) is None and found.level(1.0) == -1.0
    assert found.level(1e-6) == -4.0 and Departure((-4.0, -3.0), (0.0, 1.0)).level(0.5) == -4.0
    assert Departure.from_tensors(found.to_tensors()) == found
    for wrong in (((), ()), ((1.0,), (1.0, 2.0)), ((2.0, 1.0), (0.1, 0.1)), ((1.0,), (math.nan,)), ((1.0,), (-1.0,))):
        with pytest.raises(ValueError, match=r"^got the levels .*; expected"):
            Departure(*wrong)
    with pytest.raises(ValueError, match="expected lam, errors and weights"):
        Departure.from_tensors({"lam": torch.ones(1)})


def test_it_is_told_apart_by_the_weights_but_for_their_precision() -> None:
    torch.manual_seed(0)
    model = ScoreModel(scoresde.models.MLP(2, hidden=(64, 64)), VP(), "v")
    found = Departure((-4.0,), (0.1,), fingerprint(model))
    assert found.fits(model.bfloat16()) and found.fits(model.double())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    assert not found.fits(model)


# The run ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5, 8, 12])
@pytest.mark.parametrize("name", SDES)
def test_all_evaluations_are_made_after_the_level_and_the_run_is_the_method_on_the_path_written_out(
    name: str, steps: int
) -> None:
    sde = SDES[name]
    model, x = known(mixture(), sde), prior(sde, 6, 2)
    made: list[float] = []

    class Watched(Wrapper):
        def x0(self, x: Tensor, t: Tensor, **conditions: object) -> Tensor:
            made.append(float(t))
            return self.model.x0(x, t)

    watched = Watched(model)
    watched.moments, watched.departure = model.moments, model.departure
    found = sample(watched, x, steps=steps, progress=False)
    until, moments = found.info["gaussian until"], model.moments
    assert moments is not None and model.departure is not None
    level = model.departure.level(min(7 / steps**4, 1.4e-2))
    assert float(sde.lam(until)) == pytest.approx(level, abs=1e-6)
    assert len(made) == steps == found.evaluations and max(made) < until and found.times[0] == sde.span[1]
    # By hand: the Gaussian carries the start, and predicts at the level and at five times before it.
    choice = AUTO.choice(steps)
    own = choice.path(sde, steps + 1, t_max=until)
    lams = [p.lam for p in own.points]
    gap = lams[1] - lams[0]
    before = [lams[0] - gap * sum(HISTORY[:k]) for k in (5, 4, 3, 2, 1)]
    times = sde.time(torch.tensor([v for v in before if v > float(sde.lam(sde.span[1])) + 1e-6], dtype=F64)).tolist()
    path = solvers.Path.from_times(sde, [*times, *own.times], "extrapolate")
    hybrid = EarlyGaussian(model, moments, until)
    by_hand = sample(hybrid, moments.flow(x, sde, sde.span[1], path.times[0]), choice.solver, path=path, progress=False)
    torch.testing.assert_close(found.x, by_hand.x, rtol=0, atol=1e-9)
    assert by_hand.evaluations == steps and found.times[1:] == pytest.approx(by_hand.times, rel=1e-9)


@pytest.mark.parametrize("name", SDES)
def test_gaussian_data_are_closer_by_far(name: str) -> None:
    """The model never departs: the Gaussian carries the start past all levels, and the error falls at least tenfold."""
    sde = SDES[name]
    problem = problems.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 2.0]])
    model, x = problem.model(sde), prior(sde, 8, 2)
    plain = {n: sample(model, x, steps=n, progress=False).x for n in (6, 12)}
    model.departure = measure_departure(model)
    assert model.moments is not None
    end = model.moments.flow(x, sde, sde.span[1], float(sde.time(torch.tensor(14.0, dtype=F64))))
    for n, other in plain.items():
        assert rms(sample(model, x, steps=n, progress=False).x - end) < 0.1 * rms(other - end), n


@pytest.mark.parametrize("make", [problems.ring, problems.checkerboard, lambda: problems.random_mixture(16, seed=101)])
def test_the_default_is_closer_with_the_departure_known(make) -> None:
    """By 0.35 to 0.6 in the geometric mean; the bound leaves a third."""
    model = make().model(VP())
    x = prior(VP(), 64, *model.problem.event)
    end = flow_end(model, x, make_path(VP(), "lam", 2), to="data", tolerance=1e-6).x
    plain = {n: rms(sample(model, x, steps=n, progress=False).x - end) for n in (5, 8, 12, 20)}
    model.departure = measure_departure(model)
    ratios = [rms(sample(model, x, steps=n, progress=False).x - end) / plain[n] for n in plain]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) < 0.85, ratios


@pytest.mark.parametrize("driver", ["fast", "readable", "differentiable", Parallel(tolerance=0)])
def test_every_driver_makes_the_same_run(driver: object) -> None:
    model, x = known(), prior(VP(), 5, 2)
    wanted = sample(model, x, steps=7, progress=False)
    found = sample(model, x, steps=7, driver=driver, progress=False)  # type: ignore[arg-type]
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-12)
    assert found.info["gaussian until"] == wanted.info["gaussian until"] and found.times == wanted.times


def test_gradients_flow_through_the_start() -> None:
    model, x = known(), prior(VP(), 3, 2).requires_grad_()
    out = sample(model, x, steps=5, driver="differentiable", progress=False).x
    (slope,) = torch.autograd.grad(out.sum(), x)
    h = 1e-6 * torch.ones_like(x)
    ends = [sample(model, (x + s * h).detach(), steps=5, progress=False).x.sum() for s in (1, -1)]
    assert float(slope.sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_states_are_kept_before_the_path_and_on_it_and_the_samples_do_not_change() -> None:
    model, x = known(), prior(VP(), 5, 2)
    wanted = sample(model, x, steps=6, progress=False)
    keep = [1.0, 0.99, wanted.times[1], 0.3, 0.0]
    found = sample(model, x, steps=6, keep=keep, progress=False)
    assert torch.equal(found.x, wanted.x) and list(found.states) == keep
    torch.testing.assert_close(found.states[1.0], x)
    assert torch.equal(found.states[0.0], found.x)
    assert model.moments is not None
    torch.testing.assert_close(found.states[0.99], model.moments.flow(x, VP(), 1.0, 0.99))
    end = flow_end(model, x, make_path(VP(), [1.0, 0.3], end="stop")).x
    assert rms(found.states[0.3] - end) < 0.02
    seen: list[float] = []
    sample(model, x, steps=6, callback=lambda state: seen.append(state.point.t), progress=False)  # type: ignore[func-returns-value]
    assert seen == list(wanted.times[2:])


def test_drawn_and_given_starts_are_the_same_and_single_precision_is_kept() -> None:
    model = known()
    found = sample(model, (3, 2), steps=6, seed=4, dtype=torch.float32, progress=False)
    start = scoresde.sampling.start.start((3, 2), model, 4, float(VP().sigma(1.0)), None, torch.float32)[0]
    assert found.x.dtype == torch.float32 and torch.equal(found.x, sample(model, start, steps=6, progress=False).x)


# Where there are no early steps -----------------------------------------------------------------------------------------


def test_nothing_changes_without_the_departure_or_where_the_user_says_how_to_sample() -> None:
    model, x = known(), prior(VP(), 4, 2)
    for how in (
        {"solver": "abm-3"},
        {"path": "arctan"},
        {"steps": 3},
        {"t_max": 0.9},
        {"transform": lambda m, t: m},
        {"project": lambda x, t: x},
        {"solver": "auto-sde"},
    ):
        assert "gaussian until" not in sample(model, x, **{"steps": 6, **how}, progress=False).info  # type: ignore[arg-type]
    assert early(Wrapper(model), AUTO, 6, t_max=None, t_min=None, end=None) is None
    other = problems.ring().model(VP())
    for moments, departure in ((None, model.departure), (model.moments, None), (model.moments, Departure((-4.0,), (9.0,)))):
        other.moments, other.departure = moments, departure
        assert "gaussian until" not in sample(other, x, steps=6, progress=False).info
    stale = Departure(model.departure.lam, model.departure.errors, 1.0)  # type: ignore[union-attr]
    other.moments, other.departure = model.moments, stale
    assert "gaussian until" not in sample(other, x, steps=6, progress=False).info


def test_moments_that_do_not_fit_the_model_are_never_used() -> None:
    model = problems.ring().model(VP())
    shifted = DataMoments(torch.tensor([3.0, 0.0], dtype=F64), torch.ones(2, dtype=F64))
    model.moments = shifted
    model.departure = measure_departure(model)
    plan = early(model, AUTO, 5, t_max=None, t_min=None, end=None)
    assert plan is None and model.departure.errors[0] > 0.01
    assert "gaussian until" not in sample(model, (2, 2), steps=5, progress=False).info
    for wrong in ({"shape": (3,)}, {"n": 1}, {"levels": 1}):
        with pytest.raises(ValueError, match="expected"):
            measure_departure(model, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without the moments"):
        measure_departure(Wrapper(model))


def test_the_scale_of_the_data_makes_no_difference() -> None:
    """Data of a tenth of the size, on an SDE with a tenth of the noise, depart at a tenth of the level."""
    means = torch.tensor([[1.0, 0.5], [-0.6, 0.2], [0.3, -1.0]], dtype=F64)
    big, small = (problems.GaussianMixture(c * means, (c * 0.2) ** 2) for c in (1.0, 0.1))
    sdes = scoresde.VE(sigma_min=0.01, sigma_max=50.0), scoresde.VE(sigma_min=0.001, sigma_max=5.0)
    one, other = (measure_departure(p.model(s)) for p, s in zip((big, small), sdes, strict=True))
    assert one.errors == pytest.approx(other.errors, rel=5e-3)  # in single precision
    assert [v + math.log(10) for v in one.lam] == pytest.approx(other.lam, abs=1e-9)


def test_the_model_with_the_gaussian_counts_and_answers_at_times_of_each_sample() -> None:
    model = known()
    assert model.moments is not None
    hybrid = EarlyGaussian(model, model.moments, 0.6)
    x, t = prior(VP(), 4, 2), torch.tensor([0.9, 0.6, 0.59, 0.1], dtype=F64)
    found = hybrid.x0(x, t)
    for i, u in enumerate(t.tolist()):
        own = model.moments.x0(x[i : i + 1], VP(), u) if u >= 0.6 else model.x0(x[i : i + 1], u)
        torch.testing.assert_close(found[i : i + 1], own)
        (bound,) = hybrid.at(t[i : i + 1], device=x.device, dtype=x.dtype)
        torch.testing.assert_close(bound(x[i : i + 1]), own)
        assert hybrid.calls_at(u) == (Calls(0, 0) if u >= 0.6 else Calls(1, 0))


# Training ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (300,), (2, 4, 40)])
def test_sums_over_batches_give_the_moments_of_all_samples(shape: tuple[int, ...]) -> None:
    size, g = math.prod(shape), generator(2)
    factors = torch.randn(size, min(size, 12), generator=g, dtype=F64)
    data = 5 + (torch.randn(400, factors.shape[1], generator=g, dtype=F64) @ factors.T).reshape(-1, *shape)
    sums = MomentSums(shape)
    for part in data.split(90):
        sums.add(part)
    found, measured = sums.moments(), torch.cov(data.flatten(1).T)
    torch.testing.assert_close(found.mean, data.mean(0))
    identity = torch.eye(size, dtype=F64).reshape(size, *shape)
    covariance = found.apply(lambda e: e, identity).flatten(1)
    torch.testing.assert_close(covariance, measured, rtol=0, atol=1e-6 * float(measured.abs().max()))
    other = MomentSums(shape)
    other.fill(sums.to_tensors())
    assert other.count == 400 and torch.equal(other.moments().variances, found.variances)
    with pytest.raises(ValueError, match="expected those over samples of shape"):
        MomentSums((size + 1,)).fill(sums.to_tensors())
    for wrong in (lambda: sums.add(torch.zeros(2, size + 1)), MomentSums(shape).moments):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def test_what_a_low_rank_misses_is_spread_over_the_other_directions() -> None:
    """The trace is that of the data, and the largest variances are found although no rank is enough."""
    g = generator(1)
    scales = torch.cat([torch.tensor([5.0, 3.0]), 0.3 * torch.ones(398)]).double()
    data = torch.randn(2000, 400, generator=g, dtype=F64) * scales
    sums = MomentSums((400,))
    sums.add(data)
    found, measured = sums.moments(), torch.cov(data.T)
    assert float(found.trace(lambda e: e)) == pytest.approx(float(measured.trace()), rel=1e-10)
    assert found.variances[:2].tolist() == pytest.approx(torch.linalg.eigvalsh(measured).flip(0)[:2].tolist(), rel=0.05)
    assert 0 < found.rest < 0.1


def test_sums_of_several_processes_are_those_of_one() -> None:
    data = torch.randn(60, 300, generator=generator(3), dtype=F64)
    one, parts = MomentSums((300,)), [MomentSums((300,)) for _ in range(2)]
    one.add(data)
    sent: list[list[Tensor]] = [[], []]
    for rank in range(2):  # once to learn what each sends, and once with the sums of both

        def keep(tensors: list[Tensor], rank: int = rank) -> None:
            sent[rank].extend(t.clone() for t in tensors)

        MomentSums((300,)).add(data[30 * rank : 30 * rank + 30], keep)
    begun = sent[0][0] + sent[1][0]
    for rank, part in enumerate(parts):
        exchanges: list[list[Tensor]] = []

        def over(tensors: list[Tensor], exchanges: list[list[Tensor]] = exchanges) -> None:
            exchanges.append(tensors)
            if len(exchanges) == 1:
                tensors[0].copy_(begun)

        part.add(data[30 * rank : 30 * rank + 30], over)
    total = {name: parts[0].to_tensors()[name] + parts[1].to_tensors()[name] for name in ("total", "products", "square")}
    for name, value in total.items():
        torch.testing.assert_close(value, one.to_tensors()[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts[0].to_tensors()["shift"], one.to_tensors()["shift"])


def test_a_training_knows_the_moments_of_its_data_and_goes_on_with_their_sums(tmp_path) -> None:
    data = torch.randn(40, 2, generator=generator(4)) * torch.tensor([1.0, 0.5]) + 0.3
    how = {"objective": "v", "method": scoresde.training.Method(batch_size=8), "progress": False}

    def trainer(out: str) -> scoresde.training.Trainer:
        torch.manual_seed(0)
        model = ScoreModel(scoresde.models.MLP(2, hidden=(16,)), VP(), "v")
        return scoresde.training.Trainer(model, data, files=scoresde.training.Files(tmp_path / out, log=False), **how)  # type: ignore[arg-type]

    whole = trainer("whole")
    whole.run(7)
    trainer("parts").run(3)
    again = trainer("parts")
    again.run(7)
    for done in (whole, again):
        assert done.sums is not None and done.sums.count == 40  # each sample once
        assert done.model.moments is not None and done.sampled.moments is not None
        torch.testing.assert_close(done.sampled.moments.mean, data.double().mean(0))
        torch.testing.assert_close(
            done.sampled.moments.apply(lambda e: e, torch.eye(2, dtype=F64)), torch.cov(data.double().T)
        )
        assert done.sampled.departure is not None and done.sampled.departure.fits(done.sampled)
    files = [checkpoint.read(tmp_path / name).tensors for name in ("whole", "parts")]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    loaded = scoresde.load(tmp_path / "whole")
    assert loaded.departure == whole.sampled.departure and loaded.moments is not None
    torch.testing.assert_close(loaded.moments.mean, data.double().mean(0))


@pytest.mark.slow
def test_a_trained_network_is_sampled_closer_to_its_own_flow() -> None:
    torch.manual_seed(0)
    model = ScoreModel(scoresde.models.MLP(2, hidden=(64, 64)), VP(), "v")
    model = scoresde.fit(model, problems.ring(), "v", steps=2000, progress=False).model.double()
    x = prior(VP(), 256, 2)
    end = flow_end(model, x, make_path(VP(), "lam", 4, end="flow"), tolerance=1e-6).x
    ratios = []
    for n in (5, 6, 8, 10):
        found = sample(model, x, steps=n, progress=False)
        assert found.info["gaussian until"] < 0.95
        departure, model.departure = model.departure, None
        plain = sample(model, x, steps=n, progress=False)
        model.departure = departure
        ratios.append(rms(found.x - end) / rms(plain.x - end))
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) < 0.75, ratios


def test_rectified_flow_starts_at_alpha_zero() -> None:
    model = known(mixture(), RectifiedFlow())
    found = sample(model, (6, 2), steps=6, dtype=F64, progress=False)
    assert found.times[0] == 1.0 and found.info["gaussian until"] < 0.99 and bool(torch.isfinite(found.x).all())
