"""GLIDE, Imagen and latent rectified flows: appended tokens, inpainting channels, told guidance, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import mostly_slow, tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from scoresde import VP, RectifiedFlow, ScoreModel, guidance, training
from scoresde.cli import app
from scoresde.models import ContrastiveImages, Inpainting, KLAutoencoder, MMDiT, SuperResolution, TextEncoder, UNet
from scoresde.models.blocks import Attention
from scoresde.objectives import DSM, Inpainted, NoisedLow, SuperResolved
from scoresde.solvers import Shifted
from scoresde.systems import (
    Cascade,
    CascadeStage,
    GuidanceTold,
    LatentFlow,
    System,
    TextToImage,
    glide,
    imagen,
    inpainting,
    nulls_of,
    train_latent_flow,
    train_text_to_image,
)
from scoresde.training import CheckpointError

SMALL: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "blocks": 1}
EVENTS = ((1, 4, 4), (1, 8, 8))
TEXTS = [("red apple", "green apple", "steam locomotive")[i % 3] for i in range(12)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=generator()) * 2 - 1


def randomized(net: Any) -> Any:
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.2, generator=generator(i))
    return net


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(tiny_bert(tmp_path_factory.mktemp("bert")), length=4)


def state(model: Any) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


# Appended tokens ------------------------------------------------------------------------------------------------------


def test_appended_tokens_are_further_keys_and_values_of_self_attention() -> None:
    net = randomized(UNet(1, 8, (1, 2), context=5, append_context=True))
    layer = next(part for part in net.modules() if isinstance(part, Attention))
    assert layer.appended is not None and not any(type(part).__name__ == "CrossAttention" for part in net.modules())
    x, tokens = torch.randn(2, 16, 3, 3, generator=generator()), torch.randn(2, 4, 5, generator=generator(1))
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    # By the definition, one head and one query at a time.
    points = layer.norm(x).flatten(2).mT
    q, k, v = (part.unflatten(2, (layer.heads, -1)) for part in layer.qkv(points).chunk(3, 2))
    more = [part.unflatten(2, (layer.heads, -1)) for part in layer.appended(tokens).chunk(2, 2)]
    expected = torch.zeros_like(points)
    for b in range(2):
        keys, values = (torch.cat([own[b], other[b][mask[b]]]) for own, other in zip((k, v), more, strict=True))
        for h in range(layer.heads):
            weights = torch.softmax(q[b, :, h] @ keys[:, h].T / q.shape[-1] ** 0.5, 1)
            expected[b].unflatten(1, (layer.heads, -1))[:, h] = weights @ values[:, h]
    expected = x + layer.output(expected).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x, tokens, mask), expected, rtol=1e-4, atol=1e-5)
    # A text of which nothing is attended to is the plain self-attention.
    torch.testing.assert_close(layer(x, tokens, mask)[1], layer(x)[1], rtol=1e-4, atol=1e-5)


# Inpainting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"context": 5, "append_context": True}, {"dims": 1, "num_classes": 3}])
def test_inpainting_channels_equal_the_base_until_they_are_trained(how: dict[str, Any]) -> None:
    base = randomized(UNet(2, 8, (1, 2), **how))
    net = Inpainting.of(base)
    axes = (8,) * how.get("dims", 2)
    x, t, known = torch.randn(3, 2, *axes), torch.rand(3), torch.randn(3, 2, *axes)
    told = {"context": torch.randn(3, 4, 5)} if "context" in how else {}
    mask = (torch.rand(3, 1, *axes) < 0.5).float()
    torch.testing.assert_close(net(x, t, known=known, mask=mask, **told), base(x, t, **told), rtol=1e-5, atol=1e-6)
    loss = net(x, t, known=known, mask=mask, **told).square().mean()
    loss.backward()
    assert float(net.unet.stem.weight.grad[:, 2:].abs().max()) > 0  # and they are trained
    with torch.no_grad():
        net.unet.stem.weight += 0.1
    seen = net(x, t, known=known, mask=mask, **told)
    torch.testing.assert_close(net(x, t, known=known + (1 - mask), mask=mask, **told), seen)  # the rest is hidden
    assert float((net(x, t, known=known + mask, mask=mask, **told) - seen).detach().abs().max()) > 1e-4
    with pytest.raises(ValueError, match=r"got known of shape .* expected"):
        net(x, t, known=known, mask=known, **told)


def test_what_cannot_be_completed_is_refused() -> None:
    with pytest.raises(TypeError, match="got a SuperResolution to complete images; expected a UNet"):
        Inpainting.of(SuperResolution(1, SMALL))
    with pytest.raises(ValueError, match="got a U-Net of 1 channels with out_channels=2"):
        Inpainting.of(UNet(1, 8, (1, 2), out_channels=2))
    with pytest.raises(ValueError, match="got 'out_channels' for the U-Net of an Inpainting"):
        Inpainting(1, {"out_channels": 2})
    with pytest.raises(ValueError, match="got everything=2; expected a probability"):
        Inpainted("v", 2)


def test_a_box_is_erased_and_at_times_everything() -> None:
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        seen.update(conditions)
        return x * 0

    n, x0 = 4000, torch.ones(4000, 2, 4, 3)
    model, objective = ScoreModel(net, VP(), "v"), Inpainted("v", 0.25)
    loss, t = objective(model, x0, generator())
    mask = seen["mask"]
    assert mask.shape == (n, 1, 4, 3) and torch.equal(seen["known"], mask.expand_as(x0))
    erased = 1 - mask[:, 0]
    rows, columns = erased.amax(2), erased.amax(1)
    torch.testing.assert_close(erased, rows[:, :, None] * columns[:, None])  # a box
    # Each size from 1 to the axis is as likely as the others; whole boxes come from chance and from everything.
    sizes = torch.stack([((rows.sum(1) == 1) & (columns.sum(1) == 1)).double(), (erased.sum((1, 2)) == 12).double()])
    expected = torch.tensor([0.75 / 12, 0.25 + 0.75 / 12], dtype=torch.float64)
    torch.testing.assert_close(sizes.mean(1), expected, rtol=0, atol=5 * (0.25 / n) ** 0.5)
    eps = torch.randn(x0.shape, generator=generator(1))
    found = objective.at(model, x0, t, eps)
    assert not seen["mask"].any() and not seen["known"].any()
    torch.testing.assert_close(found, DSM("v").at(model, x0, t, eps))
    assert loss.shape == t.shape


# GLIDE and Imagen -----------------------------------------------------------------------------------------------------


def system(kind: Any, encoder: TextEncoder) -> TextToImage:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: TextToImage = kind(encoder, EVENTS, unet=SMALL, above=SMALL, sde=VP(), steps=3)
    for stage in found.cascade.stages:
        randomized(stage.model.network)
    return found


@pytest.mark.parametrize("kind", [glide, imagen])
def test_a_text_cascade_has_its_parts(kind: Any, encoder: TextEncoder) -> None:
    found = system(kind, encoder)
    base, above = found.cascade.stages
    how: dict[str, Any] = {"levels": 0.0, "progress": False}
    plain = found.draw(["red apple", "steam"], guidance=1.0, **how)
    assert [s.x.shape for s in plain] == [(2, 1, 4, 4), (2, 1, 8, 8)] and [s.evaluations for s in plain] == [3, 3]
    guided = found.draw(["red apple", "steam"], **how)
    assert [s.evaluations for s in guided] == [6, 3]
    if kind is imagen:
        assert base.threshold == above.threshold == 0.995 and above.augmentation == NoisedLow(0.5, VP())
        assert above.model.network.unet.outer and float(guided[0].x.abs().max()) <= 1 + 1e-5
    else:
        assert base.model.network.config["append_context"] and above.augmentation is None
    # The guided base is the one of the parts, called by hand.
    told = found.conditions(["red apple", "steam"])[0]
    null = nulls_of(base.model.network)
    by_hand: ScoreModel = guidance.ClassifierFree(base.model, base.guidance, null)
    by_hand = guidance.DynamicThreshold(by_hand, 0.995) if kind is imagen else by_hand
    x, t = torch.randn(2, 1, 4, 4, generator=generator()), 0.5
    assert torch.equal(base.steered(told).x0(x, t, **told), by_hand.x0(x, t, **told))


def test_a_contrastive_model_guides_a_stage(encoder: TextEncoder) -> None:
    found = system(glide, encoder)
    contrast = randomized(ContrastiveImages(1, 8, 6, 8, (1, 2), hidden=8)).eval().requires_grad_(False)
    for p in (True, False):  # a network that takes the vector of the text as well, and one that does not
        net = randomized(UNet(1, context=8, append_context=True, **SMALL, **({"pooled": 8} if p else {})))
        stage = CascadeStage(ScoreModel(net, VP(), "v"), (1, 4, 4), steps=3, contrast=contrast, towards=0.3)
        text = TextToImage(Cascade([stage]), found.encoder)
        told = text.conditions(["red apple", "steam"])[0]
        x, t = torch.randn(2, 1, 4, 4, generator=generator()), torch.tensor(0.4, dtype=torch.float64)
        inner = {name: value for name, value in told.items() if p or name != "pooled"}
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            energy = contrast.energy(stage.model.x0(leaf, t, **inner), told["pooled"]).sum()
        pull = torch.autograd.grad(energy, leaf)[0]
        expected = stage.model.score(x, t, **inner) - 0.3 * pull
        torch.testing.assert_close(stage.steered(told).score(x, t, **told), expected, rtol=1e-4, atol=1e-4)
        assert text.draw(["red apple", "steam"], progress=False)[0].backward == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow([glide, imagen], {imagen}))
def test_a_text_cascade_is_trained_opened_and_completes(kind: Any, encoder: TextEncoder, tmp_path: Path) -> None:
    how: dict[str, Any] = {"method": training.Method(batch_size=4), "progress": False}
    for steps in ((1, 1), (2, 1)):
        made = train_text_to_image(system(kind, encoder), images(), tmp_path, TEXTS, steps=steps, **how)
    opened = TextToImage.open(tmp_path)
    told: dict[str, Any] = {"guidance": [2.0, 1.0], "progress": False}
    one, two = (found.draw(["red apple", ""], **told)[-1].x for found in (made, opened))
    assert torch.equal(one, two) and type(System.open(tmp_path)) is TextToImage
    # The first stage completes images: it is the base at step 0, and after a training the known part counts.
    small = F.avg_pool2d(images(2), 2)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    completing = inpainting(opened)
    same = completing.complete(["red apple", ""], small, mask, **told)[-1].x
    torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-4)
    how["method"] = training.Method(batch_size=4, lr=0.05, warmup=0, ema=None)
    trained = train_text_to_image(completing, images(), tmp_path / "more", TEXTS, steps=(3, 0), **how)
    after = [trained.complete(["red apple", ""], x, mask, **told)[0].x for x in (small, small + 0.5)]
    assert float((after[0] - after[1]).abs().max()) > 1e-4
    assert [training.files.runs.steps_done(tmp_path / f"cascade.stages.{k}.model.safetensors") for k in (0, 1)] == [2, 1]
    with pytest.raises(TypeError, match="got a first stage with a UNet; expected inpainting"):
        opened.complete(["a"], small[:1], mask[:1])


# Folders -------------------------------------------------------------------------------------------------------------


def test_systems_are_saved_with_all_their_parts(encoder: TextEncoder, tmp_path: Path) -> None:
    found = system(imagen, encoder)
    contrast = randomized(ContrastiveImages(1, 8, 6, 8, (1, 2), hidden=8)).eval()
    stages = [CascadeStage(s.model, s.event, s.augmentation, "ddim", 2, "t", 2.0, None, contrast, 0.1)
              for s in found.cascade.stages]  # fmt: skip
    whole = TextToImage(Cascade(stages), encoder)
    whole.save(tmp_path)
    back = TextToImage.open(tmp_path)
    for one, other in zip(whole.cascade.stages, back.cascade.stages, strict=True):
        for name in ("solver", "steps", "path", "guidance", "threshold", "towards", "augmentation"):
            assert getattr(one, name) == getattr(other, name), name
        assert tuple(one.event) == tuple(other.event)
        assert all(map(torch.equal, state(one.model), state(other.model)))
        assert all(map(torch.equal, state(one.contrast), state(other.contrast)))
    assert back.encoder.identity == encoder.identity
    with pytest.raises(CheckpointError, match="holds a TextToImage; expected a Cascade"):
        Cascade.open(tmp_path)
    file = tmp_path / "system.json"
    text = file.read_text()
    for damaged, message in (
        ("{", "does not describe a system"),
        (text.replace('"TextToImage"', '"Other"'), "does not describe a system"),
        (text.replace("cascade.stages.0.model.safetensors", "../elsewhere.safetensors"), "expected one in the same folder"),
        ('["a"]', "holds a list; expected a System"),
    ):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            System.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no system\.json"):
        System.open(tmp_path / "nothing")
    guided = guidance.ClassifierFree(stages[0].model, 2.0, {"pooled": 0.0})
    with pytest.raises(TypeError, match=r"got a ClassifierFree for stages\.0\.model of a system to save"):
        Cascade([CascadeStage(guided, (1, 4, 4))]).save(tmp_path)


def test_a_cascade_without_texts_is_saved_as_well(tmp_path: Path) -> None:
    base = CascadeStage(ScoreModel(randomized(UNet(1, **SMALL)), VP(), "v"), (1, 4, 4), steps=3)
    above = ScoreModel(randomized(SuperResolution(1, SMALL)), VP(), "v")
    cascade = Cascade([base, CascadeStage(above, (1, 8, 8), NoisedLow(0.5, VP()), steps=3)])
    cascade.save(tmp_path)
    one, two = (c.draw(2, levels=[0.2], progress=False)[-1].x for c in (cascade, Cascade.open(tmp_path)))
    assert torch.equal(one, two)
    run = CliRunner().invoke(app, ["sample", str(tmp_path)])
    assert run.exit_code == 2 and "holds a Cascade, a system of several models" in " ".join(run.output.split())


# Latent rectified flow ------------------------------------------------------------------------------------------------


def network(told: bool = False) -> MMDiT:
    return randomized(MMDiT(2, 2, 8, width=16, depth=1, single=1, heads=2, rotary=(2, 2, 4), pooled=8, guidance=told))  # type: ignore[no-any-return]


def test_a_network_that_is_told_the_scale_is_trained_to_be_guided() -> None:
    teacher = ScoreModel(network(), RectifiedFlow(), "velocity")
    null = nulls_of(teacher.network)

    class Guided(nn.Module):
        """What guidance predicts, in one network."""

        def forward(self, x: Tensor, t: Tensor, guidance: Tensor, **told: Tensor) -> Tensor:
            absent = {name: torch.full_like(told[name], null[name]) for name in told}
            weak = teacher.net(x, t, **absent)
            return weak + guidance[:, None, None, None] * (teacher.net(x, t, **told) - weak)

    x, told = torch.randn(6, 2, 4, 4), {"context": torch.randn(6, 3, 8), "pooled": torch.randn(6, 8)}
    objective = GuidanceTold(DSM("velocity", "uniform"), teacher, (2.0, 5.0))
    exact, other = (ScoreModel(net, RectifiedFlow(), "velocity") for net in (Guided(), network(True)))
    with torch.no_grad():
        loss, _ = objective(exact, x, generator(), **told)
        more, _ = objective(other, x, generator(), **told)
    assert float(loss.max()) < 1e-6 * float(more.min())
    scales = objective.draws(torch.zeros(2000, 1), generator())["guidance"]
    assert 2.0 <= float(scales.min()) < 2.02 and 4.98 < float(scales.max()) <= 5.0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    for wrong in ({"scales": (5.0, 2.0)}, {"inner": SuperResolved("v")}, {"teacher": None}):
        with pytest.raises(ValueError, match="expected a score model, a DSM, and a range"):
            GuidanceTold(**{"inner": "v", "teacher": teacher, "scales": (1.0, 2.0), **wrong})


def test_a_latent_flow_is_trained_and_its_guidance_is_told_to_a_student(encoder: TextEncoder, tmp_path: Path) -> None:
    method = training.Method(batch_size=4)
    autoencoder = KLAutoencoder(1, 2, 4, (1, 2), blocks=1, groups=2)
    how: dict[str, Any] = {"texts": TEXTS, "encoder": encoder, "methods": (method, method), "progress": False}
    made = train_latent_flow(images(), tmp_path / "a", autoencoder, network(), steps=(1, 2), shift=3.0, **how)
    opened = LatentFlow.open(tmp_path / "a")
    assert opened.shift == 3.0 and opened.model.predicts == "velocity"
    draw: dict[str, Any] = {"steps": 3, "progress": False}
    one, two = (found.draw(["red apple", ""], guidance=3.0, **draw) for found in (made, opened))
    assert torch.equal(one.x, two.x) and one.evaluations == 6
    # The times are shifted, and more so in a higher resolution.
    sde = made.model.sde
    large = opened.draw(["red apple"], event=(2, 8, 8), **draw)
    assert large.x.shape == (1, 1, 16, 16)
    for found, k in ((one, 3.0), (large, 6.0)):
        ends = found.times[0], found.times[-1]
        expected = Shifted(k)(sde, 3, max(ends), sde.span[0])
        torch.testing.assert_close(torch.tensor(found.times[:3], dtype=torch.float64), expected[:3], rtol=1e-6, atol=1e-9)
    student = train_latent_flow(
        images(), tmp_path / "b", made.model.autoencoder, network(True), steps=(0, 1), shift=3.0, teacher=made, **how
    )
    few = student.draw(["red apple", ""], told=4.0, **draw)
    assert few.evaluations == 3
    assert not torch.equal(few.x, student.draw(["red apple", ""], told=1.0, **draw).x)
    for system_, wrong in ((student, {}), (made, {"told": 3.0})):
        with pytest.raises(ValueError, match="for a network with guidance="):
            system_.draw(["red apple"], **wrong)
