"""Cascades: a Gaussian pyramid has the law of the data, and loses variance without augmentation; stages and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import mostly_slow
from torch import Tensor

import scoresde
from scoresde import VP, RectifiedFlow, ScoreModel, Shared, problems, training
from scoresde.analysis import law
from scoresde.models import SuperResolution, UNet
from scoresde.objectives import DSM, BlurredLow, LabelDropout, NoisedLow, SuperResolved, downsampled
from scoresde.sde import GaussianSDE, Time
from scoresde.systems import Cascade, CascadeStage, Resized, train_stage

D = torch.float64
HALVE = torch.kron(torch.eye(2, dtype=D), torch.full((1, 2), 0.5, dtype=D))  # (2, 4): the means of neighbours


HOW: dict[type[GaussianSDE], tuple[str, int, str]] = {VP: ("rk4", 40, "lam"), RectifiedFlow: ("heun", 50, "t")}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance() -> Tensor:
    """A series of four numbers, the nearer the more alike."""
    place = torch.arange(4, dtype=D)
    return torch.exp(-0.5 * (place[:, None] - place).abs())


class Given(ScoreModel):
    """The exact model of N(0, C) given the means of neighbours at time s of an SDE, the condition ``low``."""

    def __init__(self, sde: GaussianSDE, before: GaussianSDE, c: Tensor) -> None:
        super().__init__(None, sde, "x0")
        self.before, self.c = before, c

    def gain(self, alpha: Tensor, sigma: Tensor, level: Tensor) -> Tensor:
        """The matrix of E[x_0 | x_t, low], shape (4, 6)."""
        s = level.clamp(min=1e-12)
        a, noise = (self.before.alpha(s), self.before.sigma(s)) if level > 0 else (1.0, torch.zeros((), dtype=D))
        h = torch.cat([alpha * torch.eye(4, dtype=D), a * HALVE])
        r = torch.diag(torch.cat([(sigma**2).expand(4), (noise**2).expand(2)]))
        return self.c @ h.T @ torch.linalg.inv(h @ self.c @ h.T + r)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        low, level = (v.value if isinstance(v, Shared) else v for v in (conditions["low"], conditions["level"]))
        t = torch.as_tensor(t, dtype=D)
        gain = self.gain(self.sde.alpha(t), self.sde.sigma(t), level.to(D).flatten()[0])
        seen = torch.cat([x.flatten(1), low.reshape(-1, 2).expand(len(x), 2)], 1)
        return (seen @ gain.T).reshape(x.shape)


def composed(sde: GaussianSDE, level: float, fed: Tensor) -> Tensor:
    """The covariance of a second stage whose condition has the covariance ``fed``, from runs without Monte Carlo."""
    model = Given(sde, sde, covariance())
    told = Shared(torch.tensor(level, dtype=D))

    def run(low: Tensor) -> Any:
        return law(model, (1, 4), *HOW[type(sde)], conditions={"low": Shared(low), "level": told})

    own = run(torch.zeros(2, dtype=D))
    columns = torch.stack([run(unit).mean - own.mean for unit in torch.eye(2, dtype=D)], 1)
    return columns @ fed @ columns.T + own.covariance


def low_at(sde: GaussianSDE, level: float) -> tuple[Tensor, float, float]:
    """The covariance of the smaller samples, and alpha and sigma at a level."""
    c = HALVE @ covariance() @ HALVE.T
    return c, float(sde.alpha(level)) if level else 1.0, float(sde.sigma(level)) if level else 0.0


# The start of VP is off by alpha(t_max) times the conditional mean: 7e-3 by default, and 4e-5 here.
SDES = pytest.mark.parametrize("sde", [VP(beta_max=40.0), RectifiedFlow()], ids=["VP", "flow"])


@SDES
@pytest.mark.parametrize("level", mostly_slow([0.0, 0.1, 0.5], {0.1}))
def test_a_cascade_of_exact_models_has_the_law_of_the_data(sde: GaussianSDE, level: float) -> None:
    c, alpha, sigma = low_at(sde, level)
    fed = alpha**2 * c + sigma**2 * torch.eye(2, dtype=D)
    found = composed(sde, level, fed)
    torch.testing.assert_close(found, covariance(), rtol=0, atol=1e-3)
    # Without solvers: the law of the conditional distribution itself, to rounding.
    model = Given(sde, sde, covariance())
    gain = model.gain(torch.tensor(0.0, dtype=D), torch.tensor(1.0, dtype=D), torch.tensor(level, dtype=D))[:, 4:]
    left = covariance() - gain @ (alpha * HALVE) @ covariance()
    torch.testing.assert_close(gain @ fed @ gain.T + left, covariance(), rtol=0, atol=1e-12)


@SDES
@pytest.mark.parametrize("level", mostly_slow([0.1, 0.5], {0.5}))
def test_a_clean_condition_under_a_level_above_zero_is_short_of_variance(sde: GaussianSDE, level: float) -> None:
    # Along a direction of variance v of the smaller samples, the share 1 - r / (1 + r)^2 is left, r = sigma^2 / alpha^2 v.
    c, alpha, sigma = low_at(sde, level)
    found = HALVE @ composed(sde, level, alpha**2 * c) @ HALVE.T
    v, u = torch.linalg.eigh(c)
    r = (sigma / alpha) ** 2 / v
    expected = u @ torch.diag(v * (1 - r / (1 + r) ** 2)) @ u.T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert float(found.trace() / c.trace()) < 0.999


@SDES
def test_truncated_and_augmented_samples_have_one_law(sde: GaussianSDE) -> None:
    c, alpha, sigma = low_at(sde, 0.3)
    base = problems.Gaussian(torch.zeros(1, 2, dtype=D), c)
    stopped = law(base.model(sde), (1, 2), *HOW[type(sde)], t_min=0.3, end="stop").covariance
    torch.testing.assert_close(stopped, alpha**2 * c + sigma**2 * torch.eye(2, dtype=D), rtol=0, atol=1e-3)


def pyramid(sde: GaussianSDE | None = None, highest: float = 0.5) -> Cascade:
    sde = sde or VP()
    base = problems.Gaussian(torch.zeros(1, 2, dtype=D), low_at(sde, 0.0)[0])
    first = CascadeStage(base.model(sde), (1, 2), solver="dpmpp-2m", steps=20)
    return Cascade([first, CascadeStage(Given(sde, sde, covariance()), (1, 4), NoisedLow(highest, sde), "heun", 10)])


def test_smaller_samples_are_noised_at_the_level_that_is_told() -> None:
    seen: dict[str, Any] = {}

    class Watched(Given):
        def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
            seen.update(conditions)
            return super().x0(x, t, **conditions)

    first, second = pyramid().stages
    cascade = Cascade([first, CascadeStage(Watched(VP(), VP(), covariance()), (1, 4), second.augmentation, steps=1)])
    n, alpha, sigma = 2000, float(VP().alpha(0.4)), float(VP().sigma(0.4))
    for level, truncated in ((0.4, False), (0.4, True), (0.0, False), (0.0, True)):
        low = cascade.draw(n, levels=level, truncated=truncated, progress=False, dtype=D)[0].x
        assert seen["level"].tolist() == pytest.approx([level] * n)
        if truncated or not level:
            assert torch.equal(seen["low"], low)
            continue
        noise = (seen["low"] - alpha * low) / sigma
        assert abs(float(noise.mean())) < 5 / (2 * n) ** 0.5 and abs(float(noise.std()) - 1) < 5 / (4 * n) ** 0.5
        assert abs(float((noise * low).mean())) < 5 / (2 * n) ** 0.5
    stopped = cascade.draw(n, levels=0.4, truncated=True, progress=False, dtype=D)[0]
    assert stopped.times[-1] == pytest.approx(0.4)


@pytest.mark.parametrize("truncated", [False, True])
def test_samples_have_the_covariance_of_the_data(truncated: bool) -> None:
    n = 4096
    low, high = pyramid().draw(n, levels=0.2, truncated=truncated, progress=False, dtype=D)
    found = torch.cov(high.x.flatten(1).T)
    # An entry of the covariance of n samples has a standard error of at most sqrt(2 / n) = 0.022.
    torch.testing.assert_close(found, covariance(), rtol=0, atol=5 * 0.022)
    assert low.solver == "dpmpp-2m" and high.solver == "heun" and high.x.shape == (n, 1, 4)


def test_a_sample_depends_on_its_own_seed() -> None:
    many = pyramid().draw(5, levels=0.2, seed=[3, 1, 4, 1, 5], progress=False, dtype=D)[-1].x
    alone = pyramid().draw(1, levels=0.2, seed=[4], progress=False, dtype=D)[-1].x
    torch.testing.assert_close(many[2:3], alone)
    assert torch.equal(many[1], many[3]) and not torch.allclose(many[0], many[1])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"levels": [0.1, 0.2]}, "got 2 levels for a cascade of 2 stages"),
        ({"levels": 0.6}, r"got level 0\.6 before stage 1, which was trained on levels from 0 to 0\.5"),
        ({"levels": -0.1}, r"got level -0\.1 before stage 1"),
        ({"n": 0}, "got n=0"),
    ],
)
def test_levels_that_cannot_be_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyramid().draw(**{"n": 2, "progress": False, **how})


def test_truncation_needs_the_noise_of_the_stage_before() -> None:
    first, second = pyramid().stages
    for other in (BlurredLow(0.5), NoisedLow(0.5, RectifiedFlow())):
        cascade = Cascade([first, CascadeStage(second.model, (1, 4), other)])
        with pytest.raises(ValueError, match="got truncated=True before stage 1, whose augmentation is not the noise"):
            cascade.draw(1, levels=0.1, truncated=True, progress=False)
    with pytest.raises(ValueError, match="got a cascade of no stages"):
        Cascade([])


# Augmentations -------------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_sde_and_none_at_level_zero() -> None:
    low, noise = torch.randn(3, 2, 5, generator=generator(), dtype=D), torch.randn(3, 2, 5, generator=generator(1), dtype=D)
    level = torch.tensor([0.0, 0.2, 0.5])
    found = NoisedLow(0.5, VP()).apply(low, level, noise)
    assert torch.equal(found[0], low[0])
    torch.testing.assert_close(found[1:], VP().perturb(low[1:], level[1:].double(), noise[1:]), rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match=r"got highest=1\.5 for the times of VP"):
        NoisedLow(1.5, VP())
    for wrong in (0.0, float("inf")):
        with pytest.raises(ValueError, match="expected a positive number"):
            BlurredLow(wrong)


@pytest.mark.parametrize("dims", [1, 2])
def test_blur_is_a_gaussian_filter(dims: int) -> None:
    from scipy.ndimage import gaussian_filter

    low, level = torch.randn(3, 2, *[9, 7][:dims], generator=generator(), dtype=D), torch.tensor([0.0, 0.4, 1.0])
    found = BlurredLow(1.0).apply(low, level, low)
    torch.testing.assert_close(found[0], low[0])
    for i in (1, 2):
        for c in range(2):
            one = gaussian_filter(low[i, c].numpy(), float(level[i]), mode="nearest", radius=3)
            torch.testing.assert_close(found[i, c], torch.from_numpy(one), rtol=1e-6, atol=1e-6)


def test_downsampling_is_a_mean() -> None:
    x = torch.randn(2, 3, 4, 6, generator=generator())
    torch.testing.assert_close(downsampled(x, 2), x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5)))
    for wrong in (torch.zeros(2, 3, 5, 4), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match="to reduce by 2; expected"):
            downsampled(wrong, 2)


# The objective, the network and training -----------------------------------------------------------------------------


def test_the_objective_is_the_inner_one_with_smaller_samples_as_conditions() -> None:
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        seen.update(conditions)
        return x * conditions["low"].flatten(1).sum(1)[:, None, None]

    model, sde = ScoreModel(net, VP(), "v"), VP()
    n, x0 = 2000, torch.randn(2000, 1, 4, generator=generator(), dtype=D)
    objective = LabelDropout(SuperResolved("v", 2, NoisedLow(0.5, sde)), {"label": 3}, 0.2)
    loss, t = objective(model, x0, generator(1), label=torch.zeros(n, dtype=torch.int64))
    level, low = seen["level"], seen["low"]
    assert low.shape == (n, 1, 2) and abs(float((seen["label"] == 3).double().mean()) - 0.2) < 0.04 and loss.shape == t.shape
    quantiles = torch.quantile(level.double(), torch.tensor([0.0, 0.5, 1.0], dtype=D))
    torch.testing.assert_close(quantiles, torch.tensor([0.0, 0.25, 0.5], dtype=D), rtol=0, atol=0.02)
    alpha, sigma = (f(level.double())[:, None, None] for f in (sde.alpha, sde.sigma))
    noise = (low - alpha * downsampled(x0, 2)) / sigma
    assert abs(float(noise.mean())) < 0.06 and abs(float(noise.std()) - 1) < 0.06
    # Without draws, as in a report, the smaller samples are clean, and the loss is the inner one.
    eps = torch.randn(n, 1, 4, generator=generator(2), dtype=D)
    found = SuperResolved("v", 2, NoisedLow(0.5, sde)).at(model, x0, t, eps)
    zero = torch.zeros(n)
    torch.testing.assert_close(found, DSM("v").at(model, x0, t, eps, low=downsampled(x0, 2), level=zero))
    with pytest.raises(ValueError, match="got factor=1; expected a whole number of at least 2"):
        SuperResolved("v", 1)


def test_the_network_sees_the_smaller_sample_and_its_level() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SuperResolution(1, {"width": 8, "multipliers": [1, 2], "lean": True, "num_classes": 3}, 2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=generator())
    x, t, low = torch.randn(2, 1, 8, 8), torch.rand(2), torch.randn(2, 2, 4, 4)
    plain = net(x, t, low=low)
    assert torch.equal(plain, net(x, t, low=low, level=torch.zeros(2)))
    for other in ({"low": low + 1}, {"level": torch.full((2,), 0.3)}, {"label": torch.tensor([0, 1])}):
        assert float((net(x, t, **{"low": low, **other}) - plain).detach().abs().max()) > 1e-4
    with pytest.raises(ValueError, match=r"got low of shape \(2, 1, 4, 4\) .* expected \(2, 2, \.\.\)"):
        net(x, t, low=low[:, :1])
    with pytest.raises(ValueError, match="got 'augment' for the U-Net of a SuperResolution"):
        SuperResolution(1, {"augment": 3})


def test_stages_are_trained_in_files_and_drawn_from(tmp_path: Path) -> None:
    x, label, sde = torch.rand(24, 1, 8, 8, generator=generator()) * 2 - 1, torch.arange(24) % 3, VP()
    small: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "lean": True, "blocks": 1, "num_classes": 3}
    how: dict[str, Any] = {"method": training.Method(batch_size=8), "conditions": {"label": label}, "progress": False}
    noise = NoisedLow(0.5, sde)
    base = ScoreModel(UNet(1, **small), sde, "v")
    train_stage(base, x, 2, out=tmp_path / "base.safetensors", steps=2, **how)
    for steps in (1, 2):
        above = ScoreModel(SuperResolution(1, small), sde, "v")
        train_stage(above, x, 1, 2, noise, out=tmp_path / "above.safetensors", steps=steps, **how)
    models = [scoresde.load(tmp_path / name) for name in ("base.safetensors", "above.safetensors")]
    stages = [CascadeStage(models[0], (1, 4, 4), steps=3), CascadeStage(models[1], (1, 8, 8), noise, "ddim", 2)]
    found = Cascade(stages).draw(3, levels=[0.2], conditions={"label": [0, 1, 2]}, progress=False)
    assert [run.x.shape[2] for run in found] == [4, 8] and [run.evaluations for run in found] == [3, 2]
    other = Cascade(stages).draw(3, levels=[0.2], conditions={"label": 0}, own=[{"label": [0, 1, 2]}], progress=False)
    assert torch.equal(other[0].x, found[0].x) and not torch.equal(other[1].x, found[1].x)
    for name in ("base.safetensors", "above.safetensors"):
        assert training.files.runs.steps_done(tmp_path / name) == 2


def test_a_resized_dataset_is_the_data_in_a_lower_resolution() -> None:
    x = torch.rand(6, 1, 8, 8, generator=generator())
    data = scoresde.data.Arrays(x, torch.arange(6) % 2, ("a", "b"))
    resized = Resized(data, 4, {"y": torch.arange(6)})
    found, told = resized.batch(torch.tensor([5, 2]))
    torch.testing.assert_close(found, downsampled(x[[5, 2]], 4))
    assert told["label"].tolist() == [1, 0] and told["y"].tolist() == [5, 2] and resized.event == (1, 2, 2)
    assert resized.classes == ("a", "b") and torch.equal(Resized(x, 1).batch(torch.arange(6))[0], x)
    prints = {Resized(*a).fingerprint() for a in ((x, 1), (x, 2), (x + 1, 2), (x, 2, {"y": torch.arange(6)}))}
    assert len(prints) == 4
    with pytest.raises(ValueError, match=r"to reduce by 3; expected axes that are multiples of 3, not 8"):
        Resized(x, 3)
    with pytest.raises(ValueError, match="got condition 'y' with 2 entries for 6 samples"):
        Resized(x, 2, {"y": torch.arange(2)})
