"""Whole pipelines of diffusers, tiny and random: their text encoders are read alike, and a prompt gives the same image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import diffusers_class
from test_weights_diffusers import _FLUX, _SD3, assert_equal, normal, peer
from torch import Tensor, nn

import scoresde
from scoresde import guidance, weights
from scoresde.score import LatentModel
from scoresde.solvers import Shifted
from scoresde.weights import WeightsError
from scoresde.weights.diffusers.prompts import Prompted

TEXTS = ["red apple", "a green steam locomotive on rails", ""]
_LETTERS = [chr(code) for code in range(97, 123)]
_WORDS = [*_LETTERS, *[letter + "</w>" for letter in _LETTERS], "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
_LENGTH = 12


def transformers() -> Any:
    return pytest.importorskip("transformers")


def clip_tokenizer(folder: Path) -> Any:
    """A tokenizer of letters, with one word that is merged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(_WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers().CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "red", "apple", "steam", "green"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=_LENGTH
    )


def clip(width: int, projected: int = 0) -> Any:
    module = transformers()
    config = module.CLIPTextConfig(
        vocab_size=len(_WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=_LENGTH,
        projection_dim=projected or width,
        bos_token_id=len(_WORDS) - 2,
        eos_token_id=len(_WORDS) - 1,
        pad_token_id=len(_WORDS) - 1,
    )
    return noisy((module.CLIPTextModelWithProjection if projected else module.CLIPTextModel)(config))


def t5(width: int) -> Any:
    module = transformers()
    config = module.T5Config(vocab_size=7, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return noisy(module.T5EncoderModel(config))


def noisy(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return net.eval()


def vae(channels: int, **changes: Any) -> Any:
    return peer(
        "AutoencoderKL",
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        **changes,
    )


def unet(context: int, **changes: Any) -> Any:
    return peer(
        "UNet2DConditionModel",
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": context,
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        | changes,
    )


def scheduler(name: str, **config: Any) -> Any:
    return diffusers_class(name)(**config)


def stable(folder: Path) -> Any:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers_class("StableDiffusionPipeline")(
        vae=vae(4),
        text_encoder=clip(6),
        tokenizer=clip_tokenizer(folder / "made"),
        unet=unet(6),
        scheduler=scheduler("DDIMScheduler", **betas, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
    )


def stable_xl(folder: Path, silent: bool = True) -> Any:
    tokenizer = clip_tokenizer(folder / "made")
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 5 + 24,
    }
    return diffusers_class("StableDiffusionXLPipeline")(
        vae=vae(4),
        text_encoder=clip(6),
        text_encoder_2=clip(8, projected=5),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(14, **more),
        scheduler=scheduler("EulerDiscreteScheduler", beta_schedule="scaled_linear"),
        force_zeros_for_empty_prompt=silent,
        add_watermarker=False,
    )


def stable_3(folder: Path) -> Any:
    tokenizer = clip_tokenizer(folder / "made")
    net = peer("SD3Transformer2DModel", **_SD3 | {"joint_attention_dim": 16, "pooled_projection_dim": 9})
    return diffusers_class("StableDiffusion3Pipeline")(
        transformer=net,
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(6, projected=4),
        tokenizer=tokenizer,
        text_encoder_2=clip(8, projected=5),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(16),
        tokenizer_3=t5_tokenizer(),
    )


def flux(folder: Path) -> Any:
    net = peer(
        "FluxTransformer2DModel", **_FLUX | {"joint_attention_dim": 16, "in_channels": 16, "pooled_projection_dim": 6}
    )
    return diffusers_class("FluxPipeline")(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=1.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(6),
        tokenizer=clip_tokenizer(folder / "made"),
        text_encoder_2=t5(16),
        tokenizer_2=t5_tokenizer(),
        transformer=net,
    )


def loaded(make: Callable[[Path], Any], folder: Path) -> tuple[Any, LatentModel]:
    pipeline = make(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    model = scoresde.load(folder / "pipeline")
    assert isinstance(model, LatentModel)
    return pipeline, model


def told(model: LatentModel, event: tuple[int, ...] = (4, 8, 8)) -> dict[str, Tensor]:
    inner: Any = model.model
    return inner.told(torch.zeros(len(TEXTS), *event), {"prompt": TEXTS})


pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
def test_stable_diffusion_draws_the_same_image_of_a_prompt(tmp_path: Path) -> None:
    pipeline, model = loaded(stable, tmp_path)
    assert weights.event(tmp_path / "pipeline") == (4, 8, 8) and model.event((3, 16, 16)) == (4, 8, 8)
    assert_equal(told(model)["context"], pipeline.encode_prompt(TEXTS, "cpu", 1, False)[0])
    z, prompts = normal(2, 4, 8, 8), ["red apple", "green"]
    expected = pipeline(prompts, latents=z, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
    guided = guidance.ClassifierFree(model, 3.0, {"prompt": ""})
    settings: dict[str, Any] = {"path": "trailing", "steps": 4, "conditions": {"prompt": prompts}, "progress": False}
    samples = scoresde.sample(guided, z, "ddim", **settings)
    assert_equal((samples.x / 2 + 0.5).clamp(0, 1), expected, 1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_stable_diffusion_xl_reads_prompts_alike(tmp_path: Path) -> None:
    pipeline, model = loaded(stable_xl, tmp_path)
    found = told(model)
    for i, text in enumerate(TEXTS):
        context, absent, pooled, absent_pooled = pipeline.encode_prompt(text, device="cpu")
        context, pooled = (context, pooled) if text else (absent, absent_pooled)  # no prompt is told as zeros
        torch.testing.assert_close(found["context"][i : i + 1], context, rtol=0, atol=1e-5)
        torch.testing.assert_close(found["pooled"][i : i + 1, :5], pooled, rtol=0, atol=1e-5)
    sizes = torch.tensor([16.0, 16, 0, 0, 16, 16])  # pixels of an image that is not cut
    angle = sizes[:, None] * torch.tensor([1.0, 0.01])
    torch.testing.assert_close(found["pooled"][0, 5:], torch.cat([angle.cos(), angle.sin()], 1).flatten())
    samples = scoresde.sample(model, (2, 4, 8, 8), steps=2, conditions={"prompt": "red apple"}, progress=False)
    assert samples.x.shape == (2, 3, 16, 16)


@pytest.mark.slow
@torch.no_grad()
def test_stable_diffusion_3_reads_prompts_alike(tmp_path: Path) -> None:
    pipeline, model = loaded(stable_3, tmp_path)
    context, _, pooled, _ = pipeline.encode_prompt(TEXTS, TEXTS, TEXTS, do_classifier_free_guidance=False)
    found = told(model)
    assert_equal(found["context"], context)
    assert_equal(found["pooled"], pooled)


@pytest.mark.slow
@torch.no_grad()
def test_flux_draws_the_same_image_of_a_prompt(tmp_path: Path) -> None:
    pipeline, model = loaded(flux, tmp_path)
    context, pooled, _ = pipeline.encode_prompt(TEXTS, TEXTS)
    found = told(model)
    assert_equal(found["context"], context)
    assert_equal(found["pooled"], pooled)
    z, prompts, n = normal(2, 4, 4, 4), ["red apple", "green"], 3
    packed = z.view(2, 4, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 16)
    size = {"height": 8, "width": 8}
    expected = pipeline(prompts, latents=packed, num_inference_steps=n, output_type="pt", **size).images
    path = [1 - i / n for i in range(n)]
    settings: dict[str, Any] = {"conditions": {"prompt": prompts}, "progress": False}
    samples = scoresde.sample(model, z, "euler", path=[*path, 0.0], **settings)
    assert_equal((samples.x / 2 + 0.5).clamp(0, 1), expected, 1e-4)
    shifted = scoresde.sample(model, z, "euler", path=Shifted(3.0), steps=3, **settings)
    assert torch.isfinite(shifted.x).all()


# What does not fit ---------------------------------------------------------------------------------------------------


class Counted:
    """Prompts told as their numbers of letters."""

    calls = 0

    def __call__(self, texts: Any, event: Any) -> dict[str, Tensor]:
        self.calls += 1
        return {"pooled": torch.tensor([[float(len(text))] for text in texts])}


def lengths() -> tuple[Prompted, Counted]:
    prompts = Counted()
    net = scoresde.ScoreModel(lambda x, t, pooled: 0 * x + pooled, scoresde.VP(), "x0")
    return Prompted(net, prompts), prompts


def test_prompts_are_read_once_for_a_run() -> None:
    model, prompts = lengths()
    for _ in range(2):
        samples = scoresde.sample(model, (3, 2), "ddim", 5, conditions={"prompt": ["a", "bcd", "a"]}, progress=False)
        torch.testing.assert_close(samples.x, torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]]))
    assert prompts.calls == 1
    one = scoresde.sample(model, (3, 2), "ddim", 5, conditions={"prompt": "bcde"}, progress=False)
    torch.testing.assert_close(one.x, torch.full((3, 2), 4.0))
    own = scoresde.sample(model, (3, 2), "ddim", 5, conditions={"pooled": torch.ones(3, 1)}, progress=False)
    torch.testing.assert_close(own.x, torch.ones(3, 2))
    for i in range(20):
        model.told(torch.zeros(1, 2), {"prompt": "a" * i})
    assert len(model._known) <= 8


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"prompt": [1, 2, 3]}, TypeError, "got a prompt of type .*; expected a text for each sample"),
        ({"prompt": ["a", "b"]}, ValueError, "with 2 entries for 3 samples"),
        ({"prompt": "a", "pooled": torch.ones(3, 1)}, ValueError, "got a prompt and pooled, which the prompt stands for"),
    ],
)
def test_prompts_that_do_not_fit(conditions: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scoresde.sample(lengths()[0], (3, 2), "ddim", 5, conditions=conditions, progress=False)


@pytest.mark.slow
def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    pipeline = stable(tmp_path)
    folder = tmp_path / "pipeline"
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    for changes, message in [
        ({"text_encoder": ["transformers", "BertModel"]}, "is of a BertModel; expected one of CLIPTextModel"),
        ({"text_encoder_3": index["text_encoder"]}, "cannot be loaded"),
    ]:
        (folder / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(WeightsError, match=message):
            scoresde.load(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert isinstance(scoresde.load(folder).model, scoresde.ScoreModel)  # without text encoders, it takes their tokens
