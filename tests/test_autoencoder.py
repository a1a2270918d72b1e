"""Autoencoders against published code, probabilistic PCA and Lloyd-Max; their training, and the scale of their latents."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support import covering, mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import models, training
from scoresde.models import (
    AUTOENCODERS,
    Autoencoder,
    Codebook,
    KLAutoencoder,
    PatchDiscriminator,
    Reconstructed,
    VQAutoencoder,
)
from scoresde.models.autoencoder.kl import kl
from scoresde.objectives import Autoencoding
from scoresde.score import ScoreModel
from scoresde.training import CheckpointError, fit_autoencoder, load_autoencoder

SMALL: dict[str, Any] = {"latent_channels": 2, "width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 32, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(1)) * 2 - 1


def small(kind: type[Autoencoder] = KLAutoencoder, **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**{"channels": 1, **SMALL, **({"codes": 8} if kind is VQAutoencoder else {}), **more})


BOTH = pytest.mark.parametrize("kind", [KLAutoencoder, VQAutoencoder])

# Shapes, counts and published code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@BOTH
def test_latents_have_the_shape_that_is_told(kind: type[Autoencoder], dims: int) -> None:
    net, x = small(kind, dims=dims, latent_channels=1), torch.zeros(2, 1, *[8, 4, 6][:dims])
    z = net.encode(x)
    assert tuple(z.shape[1:]) == net.latent_event(x.shape[1:]) == Autoencoder.latent_event(net, x.shape[1:])
    net.factor = None  # then by encoding
    assert tuple(z.shape[1:]) == Autoencoder.latent_event(net, x.shape[1:]) and net.decode(z).shape == x.shape
    assert net.training


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"got x of shape \(2, 3, 8, 8\) for an autoencoder of 1 channels and 2 axes"),
        (torch.zeros(2, 1, 8), "expected .batch, 1, "),
        (torch.zeros(2, 1, 8, 7), "divides each axis by 2; expected .* multiples of 2"),
    ],
)
@BOTH
def test_data_that_do_not_fit_are_refused(kind: type[Autoencoder], x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind).encode(x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "expected positive sizes and at least one level"),
        ({"multipliers": ()}, "at least one level"),
        ({"dims": 4}, "got dims=4"),
        ({"attention": (2,)}, r"got attention at levels \[2\]; expected levels from -2 to 1"),
        ({"groups": 3}, "for a normalization in 3 groups"),
    ],
)
@BOTH
def test_sizes_that_cannot_be_are_refused(kind: type[Autoencoder], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind, **wrong)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_published_autoencoders_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        net = AUTOENCODERS[name].build()
    assert sum(p.numel() for p in net.parameters()) == AUTOENCODERS[name].parameters
    kinds = {"kl": KLAutoencoder, "vq": VQAutoencoder}
    assert type(net) is kinds[name[:2]] and net.latent_event((3, 64, 64))[1] == 64 // int(name[4])


# Gaussian latents ----------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_distributions() -> None:
    mean, log_variance = torch.randn(2, 3, 2, 4, generator=generator(), dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl(mean, log_variance), torch.distributions.kl_divergence(q, p).flatten(1).sum(1))


def test_logarithms_of_variances_are_clamped() -> None:
    net = small(quant=False)
    for bias, bound in ((-99.0, -30.0), (99.0, 20.0)):
        nn.init.constant_(net.encoder.output.bias, bias)
        assert bool((net.moments(images())[1] == bound).all())


class Linear(Autoencoder):
    """A linear autoencoder with Gaussian latents of constant variance, whose optimum is probabilistic PCA."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__(k)
        self.down, self.up = nn.Linear(d, k), nn.Linear(k, d)
        self.log_variance = nn.Parameter(torch.zeros(k))

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)

    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        mean, log_variance = self.down(x), self.log_variance.expand(len(x), -1)
        return Reconstructed(self.up(mean + (0.5 * log_variance).exp() * noise), kl(mean, log_variance) / x[0].numel())


def test_a_linear_autoencoder_reaches_probabilistic_pca() -> None:
    d, k, n = 6, 2, 2048
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator(2), dtype=torch.float64))[0]
    spread = torch.tensor([3.0, 2.0, 0.7, 0.6, 0.5, 0.4], dtype=torch.float64)
    x = torch.randn(n, d, generator=generator(3), dtype=torch.float64) * spread @ basis.T + 0.5
    one = torch.eye(d, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    top, noise = vectors[:, -k:], values[:-k].mean()  # the maximum likelihood of probabilistic PCA, in closed form
    covariance = top @ torch.diag(values[-k:] - noise) @ top.T + noise * one
    best = torch.distributions.MultivariateNormal(x.mean(0), covariance).log_prob(x).mean()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Linear(d, k).double()
    objective, method = (
        Autoencoding(penalty=1.0, distance="l2", scale=None),
        training.Method(schedule="cosine-500", clip=99.0),
    )
    how: dict[str, Any] = {"batch_size": 512, "lr": 3e-2, "ema": 0.98, "progress": False, "method": method}
    found = fit_autoencoder(net, x, objective, steps=500, **how)
    w, mean = found.autoencoder.up.weight.detach(), found.autoencoder.up.bias.detach()
    cosines = torch.linalg.svdvals(torch.linalg.qr(w)[0].T @ top).clamp(max=1)
    assert float(cosines.acos().max()) < 0.01 * torch.pi / 2
    own = torch.distributions.MultivariateNormal(mean, w @ w.T + found.scale**2 * one).log_prob(x).mean()
    assert 0 <= float(best - own) < 0.01 * abs(float(best))
    assert found.scale == pytest.approx(float(noise.sqrt()), rel=0.02)


# Codebooks -----------------------------------------------------------------------------------------------------------


class Identity(Autoencoder):
    """Data quantised as they are."""

    def __init__(self, codebook: Codebook) -> None:
        super().__init__(1)
        self.codebook = codebook
        self.unused = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        return x + 0 * self.unused

    def decode(self, z: Tensor) -> Tensor:
        return self.codebook.lookup(self.codebook.indices(z))

    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        return Reconstructed(*self.codebook(self.encode(x)))


LLOYD_MAX = {0.363380: (-0.797885, 0.797885), 0.117482: (-1.51042, -0.452780, 0.452780, 1.51042)}


@pytest.mark.parametrize(("distortion", "update"), covering(LLOYD_MAX, ["gradient", "ema"]))
def test_codes_of_a_normal_variable_reach_lloyd_max(distortion: float, update: str) -> None:
    levels = LLOYD_MAX[distortion]
    # Max, "Quantizing for Minimum Distortion", 1960, table I. The data are quantiles: no error of a draw.
    x = torch.special.ndtri((torch.arange(8192, dtype=torch.float64) + 0.5) / 8192)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = Codebook(len(levels), 1, update=update, decay=0.9).double()
    net = Identity(codes).double()
    found = fit_autoencoder(
        net, x, Autoencoding(penalty=1.0, distance="l2"), steps=200, batch_size=2048, lr=0.15, ema=0.9, progress=False,
        method=training.Method(schedule="cosine-200"),
    ).autoencoder  # fmt: skip
    assert found.codebook.weight.flatten().sort().values.tolist() == pytest.approx(levels, abs=0.02)
    assert float(((found.decode(x).detach() - x) ** 2).mean()) == pytest.approx(distortion, rel=3e-3)


def test_the_penalty_has_the_commitment_on_the_term_of_the_encoder() -> None:
    codes = Codebook(3, 2, commitment=0.5).double()
    z = torch.randn(5, 2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    quantised, penalty = codes.eval()(z)
    e = codes.lookup(codes.indices(z))
    of_z, of_e = torch.autograd.grad(penalty.sum(), [z, codes.weight])
    torch.testing.assert_close(of_z, 2 * 0.5 * (z - e) / 6)
    expected = torch.zeros_like(codes.weight).index_add_(
        0, codes.indices(z).flatten(), (2 * (e - z) / 6).detach().movedim(1, -1).flatten(0, 1)
    )
    torch.testing.assert_close(of_e, expected)
    (straight,) = torch.autograd.grad(quantised.sum(), z)
    assert torch.equal(straight, torch.ones_like(z)) and torch.allclose(quantised, e)
    assert bool((codes.indices(z) == torch.cdist(z.movedim(1, -1), codes.weight).argmin(-1)).all())


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_are_revived(update: str) -> None:
    z = torch.randn(512, 2, generator=generator())
    counts = {}
    for revive in (0.0, 0.1):
        codes = Codebook(16, 2, update=update, decay=0.9, revive=revive)
        codes.weight.data[1:] += 100  # far from everything
        if update == "ema":
            codes.sums.copy_(codes.weight / 16)
        for _ in range(60):
            codes(z)
        counts[revive] = len(codes.indices(z).unique())
    assert counts[0.0] == 1 and counts[0.1] >= 14


def test_a_batch_that_is_not_finite_changes_no_code() -> None:
    codes = Codebook(4, 1, update="ema", revive=0.5)
    before = {name: value.clone() for name, value in codes.state_dict().items() if name != "calls"}
    codes(torch.tensor([[float("nan")], [1.0]]))
    assert all(torch.equal(before[name], codes.state_dict()[name]) for name in before)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"update": "sum"}, {"decay": 1.0}, {"commitment": -1.0}, {"revive": 1.0}])
def test_codebooks_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    first = "commitment" if wrong.keys() & {"decay", "revive"} else next(iter(wrong))
    with pytest.raises(ValueError, match=f"got {first}="):
        Codebook(**{"size": 4, "features": 2, **wrong})
    with pytest.raises(ValueError, match=r"got vectors of shape \(3, 3\) for codes of 2 features"):
        Codebook(4, 2)(torch.zeros(3, 3))


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "family"), [("l1", torch.distributions.Laplace), ("l2", torch.distributions.Normal)])
def test_the_reconstruction_is_a_likelihood(distance: str, family: Any) -> None:
    net, x, eps = small().double().eval(), images().double(), torch.randn(32, 1, 8, 8, dtype=torch.float64)
    found, penalty = net(x, eps.flatten(1)[:, :32].reshape(-1, 2, 4, 4))
    losses = []
    for scale in (0.5, 2.0):
        loss = Autoencoding(3.0, distance, scale).at(ScoreModel(net, scoresde.VP()), x, torch.zeros(32), eps)
        losses.append(loss - 3.0 * penalty + family(found, scale).log_prob(x).flatten(1).mean(1))
    torch.testing.assert_close(losses[0], losses[1])  # up to the constant of the density
    assert float(losses[0].detach().std()) < 1e-12


def test_features_are_compared_by_their_mean_square() -> None:
    net, x, eps = small().eval(), images(), torch.randn(32, 1, 8, 8)
    model, t = ScoreModel(net, scoresde.VP()), torch.zeros(32)
    plain = Autoencoding(0.0).at(model, x, t, eps)
    found, _ = net(x, eps.flatten(1)[:, :32].reshape(-1, 2, 4, 4))
    both = Autoencoding(0.0, features=lambda y: [y, 2 * y], of_features=0.1).at(model, x, t, eps)
    torch.testing.assert_close(both - plain, 0.1 * 5 * ((x - found) ** 2).flatten(1).mean(1))


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_discriminator_and_the_autoencoder_have_opposite_terms(adaptive: bool) -> None:
    judge = PatchDiscriminator(1, 8, 1, groups=2).double()
    net, x = small().double(), images().double()
    model, t, eps = ScoreModel(net, scoresde.VP()), torch.zeros(32), torch.randn(32, 1, 8, 8, dtype=torch.float64)
    objective = Autoencoding(0.0, discriminator=judge, adversarial=0.3, adaptive=adaptive)
    last = net.last_layer
    found, _ = net(x, eps.flatten(1)[:, :32].reshape(-1, 2, 4, 4))
    plain, fooled = Autoencoding(0.0).at(model, x, t, eps).mean(), -judge(found).mean()
    (of_plain,), (of_fooled,) = (torch.autograd.grad(v, last, retain_graph=True) for v in (plain, fooled))
    factor = of_plain.norm() / (of_fooled.norm() + 1e-4) if adaptive else 1.0
    own, *of_judge = torch.autograd.grad(objective.at(model, x, t, eps).mean(), [last, *judge.parameters()])
    torch.testing.assert_close(own, of_plain + 0.3 * factor * of_fooled)
    hinge = 0.5 * (nn.functional.relu(1 - judge(x)).mean() + nn.functional.relu(1 + judge(found.detach())).mean())
    for one, other in zip(of_judge, torch.autograd.grad(hinge, list(judge.parameters())), strict=True):
        torch.testing.assert_close(one, other)
    value = objective.at(model, x, t, eps)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(objective.at(model, x, t, eps), value)


def test_the_answer_of_the_discriminator_does_not_depend_on_the_batch() -> None:
    judge, x = PatchDiscriminator(1, 8, 2), images(4, size=32)
    torch.testing.assert_close(judge(x)[:2], judge(x[:2]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distance": "l3"}, "got distance='l3'; expected one of 'l1', 'l2'"),
        ({"penalty": -1.0}, "got penalty=-1.0"),
        ({"adversarial": float("nan")}, "got adversarial=nan"),
        ({"scale": 0.0}, "got scale=0.0; expected a positive number, or None"),
        ({"discriminator": lambda x: x}, "got a discriminator of type function"),
    ],
)
def test_objectives_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Autoencoding(**wrong)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got MLP to train as an autoencoder; expected a models\.Autoencoder"):
        fit_autoencoder(models.MLP(2), images(), steps=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got a MLP to train as an autoencoder"):
        Autoencoding().at(ScoreModel(models.MLP(2), scoresde.VP()), images(), torch.zeros(32), images())
    with pytest.raises(ValueError, match="got latents of 128 numbers for data of 64; expected no more numbers"):
        fit_autoencoder(small(latent_channels=8), images(), steps=1, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="got the weighting of an autoencoder"):
        _ = Autoencoding().weight


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mostly_slow([KLAutoencoder, VQAutoencoder], {VQAutoencoder}))
def test_a_resumed_training_is_an_uninterrupted_one(kind: type[Autoencoder], tmp_path: Path) -> None:
    def run(steps: int, out: Path | None = None) -> training.AutoencoderFit:
        more = {"update": "ema"} if kind is VQAutoencoder else {}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            judge = PatchDiscriminator(1, 4, 1, groups=2)
        objective = Autoencoding(0.1, scale=None, discriminator=judge)
        return fit_autoencoder(small(kind, **more), images(), objective, steps=steps, out=out, batch_size=8, progress=False)

    path = tmp_path / "autoencoder.safetensors"
    whole = run(4)
    run(2, path)
    parts = run(4, path)
    assert whole.history == parts.history and whole.scale == parts.scale != 1.0
    back, raw = load_autoencoder(path), load_autoencoder(path, ema=False)
    for one, *others in ((whole.autoencoder, parts.autoencoder, back), (whole.raw, parts.raw, raw)):
        for other in others:
            assert not other.training
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name]), name
    x = images()
    torch.testing.assert_close(back.standardized(x), whole.autoencoder.standardized(x))


def test_losses_fall_and_latents_are_measured() -> None:
    for kind in (KLAutoencoder, VQAutoencoder):
        x = torch.linspace(-1, 1, 8)[None, None, :, None] * torch.rand(64, 1, 1, 1, generator=generator()) + torch.zeros(8)
        found = fit_autoencoder(small(kind), x, steps=20, batch_size=32, lr=3e-2, progress=False, ema=None)
        losses = [loss for _, loss in found.history]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
        z = found.autoencoder.standardized(x).detach()
        torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-3, atol=0)
        assert float(z.mean((0, 2, 3)).abs().max()) < 1e-3
        torch.testing.assert_close(found.autoencoder.restored(z), found.autoencoder.decode(found.autoencoder.encode(x)))


def test_the_scale_of_latents_does_not_depend_on_the_batches() -> None:
    net, x = small().eval(), images(37)
    for data in (x, x.split(5), iter([x[:1], x[1:36], x[36:]])):
        net.measure(data)
        z = net.encode(x)
        torch.testing.assert_close(net.latent_mean, z.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(net.latent_std, z.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)
    for no_data in ([], torch.zeros(0, 1, 8, 8)):
        with pytest.raises(ValueError, match="got no data to measure latents on"):
            net.measure(no_data)
    with torch.no_grad():
        net.quant.weight[0] = 0
    with pytest.raises(ValueError, match="channel 0 does not vary"):
        net.measure(x)
    with pytest.raises(ValueError, match=r"got latents of shape \(2, 3, 4, 4\) .* have 2 channels"):
        net.restored(torch.zeros(2, 3, 4, 4))


def test_what_is_no_autoencoder_is_not_loaded_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    scoresde.save(ScoreModel(models.MLP(2), scoresde.VP()), path)
    with pytest.raises(CheckpointError, match="holds a MLP; expected an autoencoder"):
        load_autoencoder(path)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch() -> None:
    runs = [
        fit_autoencoder(small(), images(), steps=3, batch_size=8, progress=False, method=training.Method(accumulate=n))
        for n in (1, 2)
    ]
    for a, b in itertools.pairwise(runs):
        torch.testing.assert_close(torch.tensor(a.history), torch.tensor(b.history), rtol=1e-5, atol=1e-6)
