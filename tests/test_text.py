"""Text as a condition: frozen encoders and their cache, contrastive models, and a system that takes prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import scoresde
from scoresde import EDM, VP, ScoreModel, guidance, models, problems, training
from scoresde.cli import app
from scoresde.models import Contrastive, ContrastiveImages, KLAutoencoder, TextEncoder, UNet
from scoresde.objectives import ContrastiveLearning
from scoresde.systems import LatentDiffusion, conditions_of, train_latent

MINILM = Path(__file__).resolve().parents[2] / "shared" / "data" / "text-encoder-minilm"
D = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with its tokenizer."""
    return tiny_bert(tmp_path_factory.mktemp("bert"))


# Encoders ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_known_encoder_finds_what_is_alike() -> None:
    pytest.importorskip("transformers")
    if not MINILM.is_dir():
        pytest.skip(f"{MINILM} is not there")
    encoder = TextEncoder(MINILM)
    found = encoder(["red apple", "green apple", "steam locomotive"])
    near = F.cosine_similarity(found.pooled[:1], found.pooled)
    assert near.tolist() == pytest.approx([1.0, 0.80, 0.14], abs=0.005)  # as its folder states
    assert encoder.features == 384 and found.tokens.shape == (3, 32, 384) and found.mask.sum(1).tolist() == [4, 4, 4]


def test_texts_have_tokens_and_vectors(folder: Path) -> None:
    encoder = TextEncoder(folder)
    assert encoder.length == 12 and encoder.features == 8
    texts = ["red apple", "", "steam locomotive green apple"]
    found = encoder(texts)
    assert found.mask.sum(1).tolist() == [4, 2, 6] and found.pooled.shape == (3, 8)
    assert bool((found.tokens[~found.mask] == 0).all()) and bool((found.tokens[found.mask] != 0).all())
    torch.testing.assert_close(found.pooled[0], found.tokens[0, :4].mean(0))
    for i, text in enumerate(texts):  # alone, and in batches of any size
        for one in (encoder(text), encoder(texts, batch_size=2).at(torch.tensor([i]))):
            for a, b in zip(one, found.at(torch.tensor([i])), strict=True):
                torch.testing.assert_close(a, b)
    assert torch.equal(TextEncoder(folder, pooling="first")(texts).pooled, found.tokens[:, 0])
    model = TextEncoder(folder, pooling="model")
    told = model.tokenizer(texts, return_tensors="pt", padding="max_length", max_length=12)
    torch.testing.assert_close(model(texts).pooled, model.model(**told).pooler_output)
    assert TextEncoder(folder, length=3)(texts).mask.sum(1).tolist() == [3, 2, 3]


def test_an_encoder_is_frozen_whatever_the_mode(folder: Path) -> None:
    encoder = TextEncoder(folder)
    net = UNet(1, 8, (1, 2), lean=True, blocks=1, context=8, pooled=8)
    with torch.enable_grad():
        conditions = conditions_of(net, encoder, ["red apple"] * 2)
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2), **conditions).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())
    assert not encoder.model.training and not any(value.requires_grad for value in conditions.values())


def test_embeddings_are_cached_by_identity(folder: Path, tmp_path: Path) -> None:
    texts, cache = ["red apple", "green"], tmp_path / "cache"
    first = TextEncoder(folder, cache=cache)
    found = first(texts)
    (file,) = cache.iterdir()
    again = TextEncoder(folder, cache=cache)
    again._encode = None  # type: ignore[assignment]
    for a, b in zip(again(texts), found, strict=True):
        assert torch.equal(a, b)
    file.write_bytes(b"damaged")
    assert torch.equal(first(texts).pooled, found.pooled) and torch.equal(again(texts).pooled, found.pooled)
    first(texts[::-1])
    TextEncoder(folder, cache=cache, pooling="first")(texts)
    TextEncoder(folder, cache=cache, length=5)(texts)
    other = TextEncoder(folder, cache=cache)
    next(other.model.parameters()).mul_(2.0)
    other(texts)
    assert len(list(cache.iterdir())) == 5


def test_what_is_no_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"folder": tmp_path}, "for a text encoder, where there is no config.json"),
        ({"pooling": "max"}, "got pooling='max'; expected one of 'mean', 'first', 'model'"),
        ({"length": 13}, "got length=13; expected a whole number from 1 to 12"),
    ):
        with pytest.raises(ValueError, match=message):
            TextEncoder(**{"folder": folder, **wrong})  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="from which no text encoder can be loaded"):
        TextEncoder(tmp_path)
    encoder = TextEncoder(folder)
    with pytest.raises(ValueError, match="got no texts to encode"):
        encoder([])
    with pytest.raises(TypeError, match="got a text of type int"):
        encoder(["red", 3])  # type: ignore[list-item]
    for net in (UNet(1, 8, (1, 2)), UNet(1, 8, (1, 2), context=5)):
        with pytest.raises(ValueError, match=r"for embeddings of 8 features; expected .*context=8, pooled=8"):
            conditions_of(net, encoder, ["red"])


# Contrast ------------------------------------------------------------------------------------------------------------


def linear(d: int = 3, k: int = 2, y: int = 4, **how: Any) -> Contrastive:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Contrastive(nn.Linear(d, k, bias=False), nn.Linear(y, k), **how).double()


def test_guidance_by_a_linear_contrastive_model_samples_the_tilted_gaussian() -> None:
    # exp(s c f(x) . g(y)) with a linear f shifts a Gaussian by its covariance, and the prediction of every noised state.
    net, s = linear(normalized=False, scale=1.5), 0.7
    root = torch.randn(3, 3, generator=generator(1), dtype=D)
    data = problems.Gaussian(torch.randn(3, generator=generator(2), dtype=D), root @ root.T)
    y = torch.randn(1, 4, generator=generator(3), dtype=D)
    shift = s * 1.5 * data.covariance @ net.image.weight.T @ net.texts(y)[0]
    tilted = problems.Gaussian(data.mean + shift.detach(), data.covariance)
    x, t = torch.randn(6, 3, generator=generator(4), dtype=D), torch.linspace(0.05, 0.95, 6, dtype=D)
    guided = guidance.Energy(data.model(VP()), net.energy, s, takes="pooled")
    found = guided.x0(x, t, pooled=y.expand(6, 4))
    torch.testing.assert_close(found, tilted.model(VP()).x0(x, t), rtol=1e-6, atol=1e-6)  # the weights began as float32


class LinearOfNoised(nn.Module):
    """f(x, t) = W m(x, t) with the data prediction m of Gaussian data, by their moments and the SDE."""

    def __init__(self, data: problems.Gaussian, sde: Any, weight: torch.Tensor) -> None:
        super().__init__()
        self.data, self.sde, self.weight = data, sde, weight

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.sde.alpha(t)[:, None, None], self.sde.sigma(t)[:, None, None]
        gain = (
            alpha
            * self.data.covariance
            @ torch.linalg.inv(alpha**2 * self.data.covariance + sigma**2 * torch.eye(3, dtype=D))
        )
        return torch.einsum("fd,bde,be->bf", self.weight, gain, x - alpha[:, 0] * self.data.mean)


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=repr)
def test_guidance_by_a_linear_contrastive_model_of_noised_images_samples_the_tilted_gaussian(sde: Any) -> None:
    """E[exp(s c a . x0) | x_t] is exp(s c a . m(x_t)) times a constant, so the model that is linear in m is exact."""
    s, scale = 0.7, 1.5
    root = torch.randn(3, 3, generator=generator(1), dtype=D)
    data = problems.Gaussian(torch.randn(3, generator=generator(2), dtype=D), root @ root.T)
    weight, text = (torch.randn(2, n, generator=generator(5 + n), dtype=D) for n in (3, 4))
    net = Contrastive(
        LinearOfNoised(data, sde, weight), lambda y: y @ text.T, normalized=False, scale=scale, noised=True
    ).double()
    y = torch.randn(1, 4, generator=generator(3), dtype=D)
    shift = s * net.scale.detach() * data.covariance @ weight.T @ (text @ y[0])
    tilted = problems.Gaussian(data.mean + shift, data.covariance)
    low, high = sde.span
    x, t = torch.randn(6, 3, generator=generator(4), dtype=D), torch.linspace(low, high, 6, dtype=D)
    x = x * (sde.alpha(t) + sde.sigma(t))[:, None]
    guided = guidance.Energy(data.model(sde), net.noised_energy, s, of="x", takes="pooled")
    found = guided.x0(x, t, pooled=y.expand(6, 4))
    torch.testing.assert_close(found.detach(), tilted.model(sde).x0(x, t), rtol=1e-8, atol=1e-8)
    assert guided.calls == (1, 0)  # without a backward call of the score model


def test_a_model_of_noised_images_is_trained_on_what_the_sde_noises(tmp_path: Path) -> None:
    sde = VP()
    net = Contrastive(lambda x, t: x[:, :2] + t[:, None].to(x), nn.Linear(4, 2).double(), scale=1.0, noised=True)
    x, y, eps = (torch.randn(5, n, generator=generator(n), dtype=D) for n in (3, 4, 3))
    t = torch.linspace(0.1, 0.9, 5, dtype=D)
    noisy = sde.alpha(t)[:, None] * x + sde.sigma(t)[:, None] * eps
    logits = F.normalize(noisy[:, :2] + t[:, None], dim=1) @ F.normalize(net.text(y), dim=1).T
    own = torch.arange(5)
    expected = -(logits.log_softmax(1)[own, own] + logits.log_softmax(0)[own, own]) / 2
    torch.testing.assert_close(ContrastiveLearning().at(ScoreModel(net, sde), x, t, eps, pooled=y), expected)
    with pytest.raises(ValueError, match=r"got no time for a contrastive model of noised images; expected images\(x, t\)"):
        net.energy(x, y)
    with pytest.raises(ValueError, match="got a time for a contrastive model of clean images"):
        linear().noised_energy(x, t, y)
    # The network of images with the time in further channels is trained, written and read like the other.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ContrastiveImages(1, 4, 8, 8, (1, 2), hidden=8, noised=True)
    images, texts = torch.rand(16, 1, 8, 8, generator=generator()), torch.randn(16, 4, generator=generator(1))
    path = tmp_path / "noised.safetensors"
    how: dict[str, Any] = {"conditions": {"pooled": texts}, "batch_size": 8, "out": path, "progress": False}
    scoresde.fit(ScoreModel(net, sde), images, ContrastiveLearning(), steps=3, **how)
    found = scoresde.load(path).net
    at = torch.full((16,), 0.3)
    assert found.noised and found.ranks(images, texts, t=at).shape == (16,)
    assert not torch.equal(found(images, texts, at), found(images, texts, 2 * at))  # the time is seen


def test_the_loss_is_the_cross_entropy_in_both_directions() -> None:
    net, x, y = (
        linear(),
        torch.randn(5, 3, generator=generator(), dtype=D),
        torch.randn(5, 4, generator=generator(1), dtype=D),
    )
    f, g = F.normalize(net.image(x), dim=1), F.normalize(net.text(y), dim=1)
    logits = f @ g.T / 0.07
    own = torch.arange(5)
    expected = -(logits.log_softmax(1)[own, own] + logits.log_softmax(0)[own, own]) / 2
    model, t = ScoreModel(net, VP()), torch.zeros(5)
    torch.testing.assert_close(ContrastiveLearning().at(model, x, t, x, pooled=y), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(net.energy(x, y), -logits.diagonal(), rtol=1e-6, atol=1e-6)
    # A text that occurs twice is not held against itself.
    net = linear(scale=1.0)  # so that the others count as well
    model, twice = ScoreModel(net, VP()), torch.cat([y[:1], y[:4]])
    rows = net(x, twice).detach()
    rows[0, 1] = rows[1, 0] = -torch.inf
    expected = -(rows.log_softmax(1)[own, own] + rows.log_softmax(0)[own, own]) / 2
    torch.testing.assert_close(ContrastiveLearning().at(model, x, t, x, pooled=twice), expected)


def test_ranks_are_places_among_all_texts() -> None:
    net, x, y = (
        linear(),
        torch.randn(7, 3, generator=generator(), dtype=D),
        torch.randn(9, 4, generator=generator(1), dtype=D),
    )
    right = torch.arange(7) + 1
    order = net(x, y).argsort(1, descending=True)
    assert torch.equal(net.ranks(x, y, right), (order == right[:, None]).long().argmax(1))
    assert torch.equal(net.ranks(x, y[:7]), net.ranks(x, y[:7], torch.arange(7)))
    with pytest.raises(ValueError, match=r"got 7 images and 9 texts; expected as many, or right="):
        net.ranks(x, y)


def test_it_learns_by_fit_to_find_the_right_text(tmp_path: Path) -> None:
    colours = torch.randn(12, 3, generator=generator(2)).clamp(-1, 1)
    texts = torch.randn(12, 5, generator=generator(3))
    kinds = torch.arange(96) % 12
    x = (colours[kinds][:, :, None, None] + 0.1 * torch.randn(96, 3, 8, 8, generator=generator(4))).clamp(-1, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ContrastiveImages(3, 5, 8, 8, (1, 2), hidden=16)
    path = tmp_path / "contrastive.safetensors"
    method = training.Method(batch_size=32, lr=1e-2, ema=None, warmup=0)
    how: dict[str, Any] = {"conditions": {"pooled": texts[kinds]}, "method": method, "out": path, "progress": False}
    scoresde.fit(ScoreModel(net, VP()), x, ContrastiveLearning(), steps=40, **how)
    found = scoresde.load(path).net
    assert isinstance(found, ContrastiveImages)
    first = (found.ranks(x, texts, kinds) == 0).double().mean()
    assert float(first) > 5 / 12  # by chance, a twelfth


def test_what_cannot_be_contrasted_is_refused() -> None:
    model, x = ScoreModel(models.MLP(3), VP()), torch.zeros(2, 3)
    with pytest.raises(TypeError, match="got a MLP for contrastive learning"):
        ContrastiveLearning().at(model, x, torch.zeros(2), x, pooled=x)
    with pytest.raises(ValueError, match="got no condition 'pooled'"):
        ContrastiveLearning().at(model, x, torch.zeros(2), x)
    with pytest.raises(ValueError, match="got the weighting of contrastive learning"):
        _ = ContrastiveLearning().weight
    with pytest.raises(ValueError, match="got scale=0; expected"):
        Contrastive(nn.Identity(), nn.Identity(), scale=0)
    with pytest.raises(ValueError, match="expected positive sizes"):
        ContrastiveImages(3, 0)
    with pytest.raises(ValueError, match=r"got images of shape \(2, 1, 8, 8\); expected \(batch, 3, height, width\)"):
        ContrastiveImages(3, 5)(torch.zeros(2, 1, 8, 8), torch.zeros(2, 5))


# A system that takes prompts -----------------------------------------------------------------------------------------


def test_a_latent_model_of_texts_is_trained_opened_and_drawn_from(folder: Path, tmp_path: Path) -> None:
    encoder, n = TextEncoder(folder, cache=tmp_path / "cache"), 16
    texts = [("red apple", "green apple", "steam locomotive")[i % 3] for i in range(n)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = KLAutoencoder(1, 2, 4, (1, 2), blocks=1, groups=2)
        net = UNet(2, 8, (1, 2), lean=True, blocks=1, context=8, pooled=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2, generator=generator())
    data: Tensor = torch.rand(n, 1, 8, 8, generator=generator())
    method = training.Method(batch_size=8, lr=1e-4)
    options: dict[str, Any] = {"steps": (1, 2), "texts": texts, "encoder": encoder, "progress": False}
    made = train_latent(data, tmp_path / "run", autoencoder, net, methods=(method, method), **options)
    opened = LatentDiffusion.open(tmp_path / "run")
    assert made.model.dropped == opened.model.dropped == {"context": 0.0, "context_mask": True, "pooled": 0.0}
    prompts, how = ["red apple", "steam", ""], {"steps": 2, "progress": False}
    one, two = (system.draw(prompts, guidance=3.0, **how) for system in (made, opened))
    assert torch.equal(one.x, two.x) and one.x.shape == (3, 1, 8, 8) and one.evaluations == 4
    # The command draws the same, takes prompts in turn, and writes the picture of what is decoded.
    for guidance_scale, name in (([], "plain"), (["--guidance", 3.0], "guided")):
        arguments = ["sample", tmp_path / "run", "--prompt", "red apple", "--prompt", "steam", "-n", 3, "--steps", 2]
        out = tmp_path / f"{name}.npz"
        run = CliRunner().invoke(app, [str(a) for a in [*arguments, *guidance_scale, "--no-progress", "--out", out]])
        assert run.exit_code == 0, run.output
        expected = opened.draw(["red apple", "steam", "red apple"], guidance=3.0 if guidance_scale else 1.0, **how)
        torch.testing.assert_close(torch.from_numpy(np.load(out)["x"]), expected.x)
    run = CliRunner().invoke(app, [str(a) for a in [*arguments, "--no-progress"]])
    assert run.exit_code == 0 and (tmp_path / "run" / "samples.png").is_file(), run.output
    # The prompt counts, and an empty one is no text: there guidance changes nothing.
    plain = opened.draw(prompts, **how).x
    moved = (one.x - plain).flatten(1).norm(dim=1)
    assert float(moved[2]) < 1e-3 * float(moved[0]) and float(moved[1]) > 1e-6


def test_the_command_trains_a_system_on_a_file_with_captions(folder: Path, tmp_path: Path) -> None:
    n, run = 12, tmp_path / "run"
    x = torch.randint(0, 256, (n, 16, 16, 4), generator=generator(), dtype=torch.uint8).numpy()
    names = np.array([("red apple", "green apple", "steam locomotive")[i % 3] for i in range(n)])
    np.savez(tmp_path / "emoji.npz", x=x, name=names, y=np.arange(n) % 2)
    asked: list[Any] = ["train", "--data", tmp_path / "emoji.npz", "--out", run, "--system", "latent", "--width", 8]
    asked += ["--autoencoder-steps", 1, "--batch-size", 4, "--no-progress", "--text-encoder", folder]
    for steps in (1, 2):
        done = CliRunner().invoke(app, [str(a) for a in [*asked, "--steps", steps]])
        assert done.exit_code == 0, done.output
    assert training.files.runs.steps_done(run / "model.safetensors") == 2 and "--prompt" in done.output
    assert LatentDiffusion.open(run).model.dropped == {"context": 0.0, "context_mask": True, "pooled": 0.0}
    done = CliRunner().invoke(
        app, ["sample", str(run), "--prompt", "red apple", "--guidance", "4", "-n", "2", "--steps", "2", "--no-progress"]
    )
    assert done.exit_code == 0 and (run / "samples.png").is_file(), done.output  # on white, without a fourth channel
    for more, message in (
        (["--system", "pixels"], "got --system 'pixels'; expected latent"),
        (["--network", "ddpm-cifar10"], "got --network or --monitor-every with --system"),
        (["--labels", "--data", "digits"], "got --text-encoder for data with 0 captions"),
    ):
        done = CliRunner().invoke(app, [str(a) for a in [*asked, *more]])
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    done = CliRunner().invoke(app, ["train", "--data", "digits", "--out", str(run), "--text-encoder", str(folder)])
    assert done.exit_code == 2 and "expected them with --system latent" in " ".join(done.output.split())


def test_captions_are_texts_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    for found, expected in ((np.array(["a", "b"]), ["a", "b"]), (np.array([b"a", b"b"]), ["a", "b"])):
        np.savez(file, x=np.zeros((2, 3)), caption=found, name=np.array(["c", "d"]))
        assert scoresde.data.captions(file) == expected
    np.savez(file, x=np.zeros((2, 3)))
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    assert (
        scoresde.data.captions(file)
        is scoresde.data.captions(tmp_path / "x.npy")
        is scoresde.data.captions("digits")
        is None
    )
    for wrong in (np.zeros(2), np.array([["a"], ["b"]])):
        np.savez(file, x=np.zeros((2, 3)), name=wrong)
        with pytest.raises(ValueError, match="expected one text for each sample"):
            scoresde.data.captions(file)
    np.savez(file, x=np.zeros((2, 3)), name=np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match="never unpickled"):
        scoresde.data.captions(file)
    np.savez_compressed(file, x=np.zeros((2, 3)), name=np.array(["a" * 1000] * 100))
    with pytest.raises(ValueError, match="unpacks to more than 1000 bytes"):
        scoresde.data.captions(file, limit=1000)


def test_a_prompt_for_a_model_without_texts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    scoresde.save(ScoreModel(models.MLP(2), VP(), "v"), path, event=(2,))
    run = CliRunner().invoke(app, ["sample", str(path), "--prompt", "red apple"])
    assert run.exit_code == 2 and "got --prompt 'red apple' for a model that takes no texts" in run.output
