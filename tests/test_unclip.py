"""unCLIP: exact on jointly Gaussian images and texts, biased as derived without it; candidates, variations, training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support import mostly_slow, tiny_bert
from torch import Tensor, nn

from scoresde import VP, RectifiedFlow, ScoreModel, Shared, problems, training
from scoresde.analysis import law
from scoresde.models import Contrastive, ContrastiveImages, EmbeddingPrior, ImageEmbedded, TextEncoder, UNet
from scoresde.sde import GaussianSDE, Time
from scoresde.solvers import sample_seeds
from scoresde.systems import System, UnCLIP, nulls_of, train_unclip

D = torch.float64
HOW: dict[type[GaussianSDE], tuple[str, int, str]] = {VP: ("rk4", 40, "lam"), RectifiedFlow: ("heun", 50, "t")}
SDES = pytest.mark.parametrize("sde", [VP(beta_max=40.0), RectifiedFlow()], ids=["VP", "flow"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The truth: x ~ N(0, C) of 4 numbers, the embedding z = W x of 2, the text y = H x + noise of 2 -------------------------


class World(NamedTuple):
    c: Tensor
    w: Tensor
    h: Tensor
    r: Tensor


def world() -> World:
    root = normal(4, 4, seed=1)
    c = root @ root.T / 4 + 0.2 * torch.eye(4, dtype=D)
    return World(c, normal(2, 4, seed=2) / 2, normal(2, 4, seed=3) / 2, 0.3 * torch.eye(2, dtype=D))


def gain(c: Tensor, h: Tensor, r: Tensor) -> Tensor:
    """The matrix K of E[x | h x + noise] = K (h x + noise)."""
    return c @ h.T @ torch.linalg.inv(h @ c @ h.T + r)


class Linear(ScoreModel):
    """The exact model of a part ``a x`` of N(0, C) given observations ``h x + N(0, r)``, which are conditions by name."""

    def __init__(self, sde: GaussianSDE, c: Tensor, a: Tensor, given: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(None, sde, "x0")
        self.c, self.a, self.given = c, a, given

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=D)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        h = torch.cat([alpha * self.a, *(h for h, _ in self.given.values())])
        r = torch.block_diag((sigma**2).expand(len(self.a)).diag(), *(r for _, r in self.given.values()))
        told = [v.value if isinstance(v := conditions[name], Shared) else v for name in self.given]
        seen = torch.cat([x, *(value.expand(len(x), -1) for value in told)], 1)
        return seen @ (self.a @ gain(self.c, h, r)).T


def system(sde: GaussianSDE, *, text: bool = True) -> UnCLIP:
    c, w, h, r = world()
    z, y = (w, 1e-12 * torch.eye(2, dtype=D)), (h, r)
    decoder = Linear(sde, c, torch.eye(4, dtype=D), {"embedding": z, **({"text": y} if text else {})})
    return UnCLIP(Linear(sde, c, w, {"text": y}), decoder, 2, (4,))


def composed(found: UnCLIP) -> tuple[Tensor, Tensor]:
    """The matrix of the mean of x given y, and its covariance, by runs without Monte Carlo."""
    names = found.decoder.given
    how = HOW[type(found.prior.sde)]

    def run(model: ScoreModel, event: int, **told: Tensor) -> Any:
        return law(model, (event,), *how, conditions={name: Shared(v) for name, v in told.items()})

    zero, units = torch.zeros(2, dtype=D), torch.eye(2, dtype=D)
    prior = torch.stack([run(found.prior, 2, text=unit).mean for unit in units], 1)
    nothing = dict.fromkeys(names, zero)
    of = {name: torch.stack([run(found.decoder, 4, **{**nothing, name: unit}).mean for unit in units], 1) for name in names}
    mean = of["embedding"] @ prior + of.get("text", torch.zeros(4, 2, dtype=D))
    spread = of["embedding"] @ run(found.prior, 2, text=zero).covariance @ of["embedding"].T
    return mean, spread + run(found.decoder, 4, **nothing).covariance


@SDES
def test_prior_and_decoder_have_the_law_of_images_given_a_text(sde: GaussianSDE) -> None:
    c, _, h, r = world()
    k = gain(c, h, r)
    mean, covariance = composed(system(sde))
    torch.testing.assert_close(mean, k, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, c - k @ h @ c, rtol=0, atol=1e-3)


@SDES
def test_without_the_text_the_decoder_has_the_derived_bias(sde: GaussianSDE) -> None:
    # With G = C W' (W C W')^-1, K and P the gain and the covariance of x given y: mean G W K y in place of K y, and
    # covariance C - G W C + G W P W' G'. Nothing is lost along the rows of W.
    c, w, h, r = world()
    k, g = gain(c, h, r), gain(c, w, torch.zeros(2, 2, dtype=D))
    p = c - k @ h @ c
    mean, covariance = composed(system(sde, text=False))
    torch.testing.assert_close(mean, g @ w @ k, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, c - g @ w @ c + g @ w @ p @ w.T @ g.T, rtol=0, atol=1e-3)
    torch.testing.assert_close(w @ mean, w @ k, rtol=0, atol=1e-3)
    assert float((mean - k).abs().max()) > 0.1 and float((covariance - p).diagonal().max()) > 0.01


def test_samples_have_that_law() -> None:
    c, _, h, r = world()
    y, n = torch.tensor([1.0, -0.5], dtype=D), 4096
    told = {"text": y.expand(n, 2)}
    how: dict[str, Any] = {"n": n, "candidates": 1, "solver": "rk4", "steps": 10, "progress": False, "dtype": D}
    x = system(VP(beta_max=40.0)).draw(conditions=(told, told), **how).x
    k = gain(c, h, r)
    scale = (c - k @ h @ c).diagonal().sqrt()
    assert float(((x.mean(0) - k @ y) / scale).abs().max()) < 5 / n**0.5 + 1e-2
    # An entry of the correlation matrix has a standard error of at most sqrt(2 / n).
    torch.testing.assert_close(torch.cov(x.T) / torch.outer(scale, scale), (c - k @ h @ c) / torch.outer(scale, scale),
                               rtol=0, atol=5 * (2 / n) ** 0.5)  # fmt: skip


# Candidates, variations, interpolation -------------------------------------------------------------------------------


def test_the_candidate_nearest_to_the_text_is_kept() -> None:
    found = UnCLIP(problems.Gaussian([0.0, 0.0], torch.eye(2)).model(VP()), system(VP()).decoder, 2, (4,))

    class Told(ScoreModel):
        def x0(self, x: Tensor, t: Time, pooled: Tensor, **conditions: Any) -> Tensor:
            return found.prior.x0(x, t)

    n, model = 2000, UnCLIP(Told(None, VP(), "x0"), found.decoder, 2, (4,))
    told = {"pooled": torch.tensor([[2.0, 0.0]], dtype=D).expand(n, 2)}
    draw = functools.partial(model.embeddings, n, told, solver="rk4", steps=6, dtype=D, progress=False)
    one, two, three = (draw(candidates=k) for k in (1, 2, 3))
    # The best of k draws of N(0, 1): the means of the largest of 1, 2 and 3 are 0, 1 / sqrt(pi) and 3 / 2 sqrt(pi).
    means = torch.stack([z.mean(0) for z in (one, two, three)])
    expected = torch.tensor([[0.0, 0.0], [0.5642, 0.0], [0.8463, 0.0]], dtype=D)
    torch.testing.assert_close(means, expected, rtol=0, atol=5 / n**0.5)
    alone = model.embeddings(1, {"pooled": told["pooled"][:1]}, solver="rk4", steps=6, dtype=D, progress=False, seed=[7])
    many = model.embeddings(2, {"pooled": told["pooled"][:2]}, solver="rk4", steps=6, dtype=D, progress=False, seed=[3, 7])
    torch.testing.assert_close(many[1:], alone)
    with pytest.raises(ValueError, match="got candidates=2 without the condition 'pooled'"):
        model.embeddings(2, {})


def test_variations_keep_the_embedding_and_interpolations_the_ends() -> None:
    c, w, _, _ = world()
    contrast = Contrastive(lambda x: x @ w.T, nn.Identity(), normalized=False)
    exact = system(VP(beta_max=40.0), text=False)
    found = UnCLIP(exact.prior, exact.decoder, 2, (4,), contrast)
    x = normal(64, 4, seed=5) @ torch.linalg.cholesky(c).T
    how: dict[str, Any] = {"steps": 300, "progress": False}
    back = found.vary(x, eta=0.0, **how).x
    assert float((back - x).abs().max()) < 0.05
    varied = found.vary(x, eta=1.0, **how).x
    assert float(((varied - x) @ w.T).abs().max()) < 0.05 < 0.3 < float((varied - x).abs().mean())
    other = x.roll(1, 0)
    for weight, end in ((0.0, x), (1.0, other)):
        torch.testing.assert_close(found.interpolate(x, other, weight, **how).x, end, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="got images for a system without a contrastive model"):
        exact.vary(x)
    with pytest.raises(ValueError, match="got prompts for a system without a text encoder"):
        exact.draw(["red apple"])


# The network and the training ----------------------------------------------------------------------------------------


def network(text: int = 8) -> ImageEmbedded:
    net = ImageEmbedded(1, {"width": 8, "multipliers": [1, 2], "lean": True, "append_context": True}, 6, text)
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(i))
    return net


def test_the_decoder_sees_embedding_and_text_where_they_are() -> None:
    net, x, t = network(), normal(2, 1, 8, 8, dtype=torch.float32), torch.rand(2)
    z, tokens = normal(2, 6, seed=1, dtype=torch.float32), normal(2, 3, 8, seed=2, dtype=torch.float32)
    mask = torch.tensor([[True, True, False]] * 2)
    plain = net(x, t, embedding=z, context=tokens, context_mask=mask)
    hidden = tokens.clone()
    hidden[:, 2] += 1
    torch.testing.assert_close(net(x, t, embedding=z, context=hidden, context_mask=mask), plain)
    for other in ({"embedding": z + 1}, {"context": tokens + 1}, {"context_mask": None}):
        told = {"embedding": z, "context": tokens, "context_mask": mask, **other}
        assert float((net(x, t, **told) - plain).detach().abs().max()) > 1e-3
    assert nulls_of(net) == {"context": 0.0, "context_mask": True, "embedding": 0.0}
    assert nulls_of(network(0)) == {"embedding": 0.0}
    for told, message in (
        ({"embedding": z[:, :5], "context": tokens}, r"got an embedding of shape \(2, 5\) .* expected \(2, 6\)"),
        ({"embedding": z}, "got no context for a network with text=8"),
    ):
        with pytest.raises(ValueError, match=message):
            net(x, t, **told)
    with pytest.raises(ValueError, match="got 'pooled' for the U-Net of an ImageEmbedded"):
        ImageEmbedded(1, {"pooled": 3})
    with pytest.raises(ValueError, match="got append_context=True with context=None"):
        UNet(1, 8, (1, 2), append_context=True)


@pytest.mark.parametrize("text", mostly_slow([8, 0], {8}))
def test_it_is_trained_in_a_folder_and_opened_again(text: int, tmp_path: Path, tmp_path_factory: Any) -> None:
    encoder = TextEncoder(tiny_bert(tmp_path_factory.mktemp("bert")), length=4)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names, method = (
        [("red apple", "green apple", "steam locomotive")[i % 3] for i in range(12)],
        training.Method(batch_size=4),
    )

    def run(steps: tuple[int, int]) -> UnCLIP:
        torch.manual_seed(0)
        contrast = ContrastiveImages(1, 8, 6, 8, (1, 2), hidden=8)
        prior = EmbeddingPrior(6, 8, 4, pooled=6, width=16, depth=1, heads=2)
        how: dict[str, Any] = {"texts": names, "encoder": encoder, "methods": (method, method), "progress": False}
        return train_unclip(x, tmp_path, prior, network(text), contrast, steps=steps, **how)

    run((1, 1))
    made = run((2, 2))
    assert [training.files.runs.steps_done(tmp_path / f"{name}.safetensors") for name in ("prior", "decoder")] == [2, 2]
    opened = UnCLIP.open(tmp_path)
    assert isinstance(System.open(tmp_path), UnCLIP) and made.prior.dropped.keys() == {"context", "context_mask", "pooled"}
    # The prior is trained on normalized embeddings, and draws them in their own units.
    z = made.contrast.images(x)
    torch.testing.assert_close(opened.prior.network.mean, z.mean(0))
    torch.testing.assert_close(opened.prior.network.std, z.std(0))
    how: dict[str, Any] = {"steps": 3, "progress": False, "guidance": (2.0, 3.0)}
    one, two = (found.draw(["red apple", "steam", ""], **how).x for found in (made, opened))
    assert torch.equal(one, two) and one.shape == (3, 1, 8, 8)
    assert found_alone(opened, one[1], **how)
    varied = opened.vary(x[:2], steps=3, conditions=opened.conditions(["red", "steam"])[1], progress=False)
    assert varied.x.shape == (2, 1, 8, 8)


def found_alone(found: UnCLIP, expected: Tensor, **how: Any) -> bool:
    """Whether the second of three samples is what its own seed and text give alone."""
    seed = sample_seeds(0, 3)[1]
    return bool(torch.allclose(found.draw(["steam"], seed=[seed], **how).x[0], expected, atol=1e-5))
