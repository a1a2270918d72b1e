"""The teleported start, against the flow of the model solved to a small tolerance, and against closed forms."""

import math

import pytest
import torch
from support import SDES, generator, rms
from torch import Tensor

import scoresde
from scoresde import VP, ScoreModel, problems, sample, training
from scoresde.comparison import flow_end
from scoresde.sampling import teleport
from scoresde.score import DataMoments
from scoresde.solvers import make_path
from scoresde.solvers.fitted import model_identity
from scoresde.training.files import checkpoint

F64 = torch.float64


def drawn(sde: scoresde.GaussianSDE, n: int, *event: int) -> Tensor:
    return torch.randn(n, *event, generator=generator(5), dtype=F64) * float(sde.sigma(sde.span[1]))


def end_of(model: ScoreModel, x: Tensor, t: float, tolerance: float = 1e-7) -> Tensor:
    return flow_end(model, x, make_path(model.sde, "lam", 2, t_max=t), to="data", tolerance=tolerance).x


@pytest.mark.parametrize("name", SDES)
def test_gaussian_data_are_carried_to_the_end_on_every_sde(name: str) -> None:
    """The model does not depart at all, so that the search ends at the last lam it may try, and the flow is exact."""
    sde = SDES[name]
    model = problems.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 2.0]]).model(sde)
    x = drawn(sde, 8, 2)
    found = teleport(model, x, tolerance=1e-6, halvings=10)
    low, high = max(float(sde.lam(sde.span[1])), -7.0), float(sde.lam(sde.span[0]))
    assert float(sde.lam(found.t)) == pytest.approx(high - (high - low) / 2**10, rel=1e-6)
    assert found.error < 1e-6 and found.evaluations == 10
    torch.testing.assert_close(end_of(model, found.x, found.t), end_of(model, x, sde.span[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [(problems.grid, 1e-2), (problems.ring, 1e-3), (lambda: problems.random_mixture(8, seed=2), 1e-4)],
    ids=["grid", "ring", "mixture"],
)
def test_the_error_of_the_jump_is_below_the_tolerance(make, tolerance: float) -> None:
    """Between the end of the flow from the teleported start and that from the start itself, both solved."""
    model = make().model(VP())
    x = drawn(VP(), 24, *model.problem.event)
    found = teleport(model, x, tolerance=tolerance)
    assert 0 < found.error <= tolerance and found.t < 1.0
    error = rms(end_of(model, found.x, found.t) - end_of(model, x, 1.0))
    assert error < tolerance
    later = teleport(model, x, t=0.5 * found.t)
    assert rms(end_of(model, later.x, later.t) - end_of(model, x, 1.0)) > 2 * error  # the level matters


def test_the_steps_that_are_spared_make_the_default_closer() -> None:
    model = problems.ring().model(VP())
    x = drawn(VP(), 64, 2)
    found, end = teleport(model, x), end_of(model, x, 1.0)
    for steps in (8, 12, 20):
        plain, carried = (
            rms(sample(model, y, steps=steps, t_max=t, progress=False).x - end) for y, t in ((x, 1.0), (found.x, found.t))
        )
        assert carried < 0.8 * plain, steps


def test_moments_that_do_not_fit_are_noticed() -> None:
    model, x = problems.ring().model(VP()), drawn(VP(), 16, 2)
    right = teleport(model, x)
    shifted = DataMoments(torch.tensor([3.0, 0.0], dtype=F64), torch.ones(2, dtype=F64))
    found = teleport(model, x, moments=shifted)
    assert found.t == 1.0 and torch.equal(found.x, x) and found.error == 0 and right.t < 0.8


def test_a_time_is_taken_without_evaluations_and_a_shape_is_drawn_as_for_sampling() -> None:
    model = problems.ring().model(VP())
    found = teleport(model, (8, 2), t=0.7, seed=3, dtype=F64)
    assert found.t == 0.7 and found.evaluations == 0 and math.isnan(found.error)
    start = scoresde.sampling.start.start((8, 2), model, 3, float(VP().sigma(1.0)), None, F64)[0]
    assert model.moments is not None
    torch.testing.assert_close(found.x, model.moments.flow(start, VP(), 1.0, 0.7))


def test_conditions_are_those_of_the_samples_and_a_network_takes_measured_moments() -> None:
    class Labelled(ScoreModel):
        def x0(self, x: Tensor, t: object, *, label: Tensor, **conditions: object) -> Tensor:
            assert len(label) == len(x)
            alpha, sigma = (f(self.sde.check_time(t)).reshape(-1, 1).to(x) for f in (self.sde.alpha, self.sde.sigma))  # type: ignore[arg-type]
            return alpha / (alpha**2 + sigma**2) * x  # standard normal data

    model = Labelled(None, VP())
    with pytest.raises(ValueError, match=r"got a model without the moments.*expected model\.moments"):
        teleport(model, (100, 2), conditions={"label": list(range(100))})
    model.moments = DataMoments.of(torch.randn(20_000, 2, generator=generator(1)))
    found = teleport(model, (100, 2), conditions={"label": list(range(100))}, tolerance=0.05, pilot=16)
    assert found.t < 0.5 and found.x.dtype == torch.float32


@pytest.mark.parametrize("kind", ["full", "low-rank", "diagonal", "fourier"])
def test_moments_are_kept_in_checkpoints_and_leave_the_identity_as_it_is(kind: str, tmp_path) -> None:
    data = torch.randn(50, 1, 4, 4, generator=generator(2), dtype=F64)

    def made() -> ScoreModel:
        torch.manual_seed(0)
        return ScoreModel(scoresde.models.UNet(1, width=8, multipliers=(1,), blocks=1, attention=()), VP(), "v")

    model, file = made(), tmp_path / "model.safetensors"
    before = model_identity(model)
    model.moments = DataMoments.of(data, kind, rank=3)
    assert model_identity(model) == before
    scoresde.save(model, file, event=(1, 4, 4))
    x = drawn(VP(), 3, 1, 4, 4)
    wanted = model.moments.flow(x, VP(), 1.0, 0.3)
    for loaded in (scoresde.load(file), scoresde.load(file, made().net), scoresde.load(file, model=made())):
        assert loaded.moments is not None
        torch.testing.assert_close(loaded.moments.flow(x, VP(), 1.0, 0.3), wanted, rtol=0, atol=1e-12)
        assert model_identity(loaded) == before
    run = tmp_path / "run"
    how = {"method": training.Method(batch_size=4), "files": training.Files(run), "progress": False}
    training.Trainer(model, data.float(), "v", **how).run(1)  # type: ignore[arg-type]
    kept = scoresde.load(run).moments
    assert kept is not None and torch.equal(kept.variances, model.moments.variances)
    stored = checkpoint.read(file)
    checkpoint.write(file, stored.description, {**stored.tensors, "moments.rest": torch.tensor([-1.0, 2.0])})
    with pytest.raises(checkpoint.CheckpointError, match="damaged moments"):
        scoresde.load(file)


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"t": 2.0}, {"t": 1e-6}, {"pilot": 0}, {"halvings": 0}])
def test_wrong_arguments_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^got .*expected"):
        teleport(problems.ring().model(VP()), (2, 2), **wrong)  # type: ignore[arg-type]
