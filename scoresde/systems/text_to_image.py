"""Text to image in pixels: GLIDE and Imagen, cascades whose stages are given a text.

GLIDE appends the tokens of the text to each self-attention, and is guided without a classifier or by a contrastive model.
Imagen reads them from a frozen encoder by cross-attention, is guided with dynamic thresholds, and enlarges by efficient
U-Nets that are given the small image with noise.

Sources: Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models",
2022, https://arxiv.org/abs/2112.10741; Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
Understanding", 2022, https://arxiv.org/abs/2205.11487.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from scoresde.models import Inpainting, SuperResolution, TextEncoder, UNet
from scoresde.objectives import NoisedLow
from scoresde.sampling import Samples
from scoresde.score import ScoreModel
from scoresde.sde import CosineVP, GaussianSDE
from scoresde.systems.cascade import Cascade, CascadeStage
from scoresde.systems.conditioning import conditions_of, nulls_of
from scoresde.systems.system import System

__all__ = ["TextToImage", "glide", "imagen", "inpainting", "text_conditions"]


@dataclass(frozen=True, eq=False)
class TextToImage(System):
    """A cascade whose stages are given a text.

    Args:
        cascade: the stages; each gets of the text what its network takes.
        encoder: the text encoder.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(features=6)  # in place of TextEncoder(folder)
        >>> small = {"width": 8, "multipliers": (1, 2)}
        >>> system = imagen(encoder, ((1, 4, 4), (1, 8, 8)), unet=small, above=small)
        >>> [(stage.event, stage.guidance, stage.threshold) for stage in system.cascade.stages]
        [((1, 4, 4), 7.5, 0.995), ((1, 8, 8), 1.0, 0.995)]
    """

    cascade: Cascade
    encoder: TextEncoder

    def conditions(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the conditions of texts for each stage; an empty text stands for no text."""
        found = [text_conditions(stage, self.encoder, prompts) for stage in self.cascade.stages]
        for stage, own in zip(self.cascade.stages, found, strict=True):
            if stage.contrast is not None:
                own["pooled"] = self.encoder(list(prompts)).pooled
        return found

    def draw(
        self,
        prompts: Sequence[str],
        *,
        guidance: float | Sequence[float] | None = None,
        own: Sequence[Mapping[str, Any]] = (),
        **options: Any,
    ) -> tuple[Samples, ...]:
        """Draw an image of each text, and return the samples of every stage.

        Args:
            prompts: the texts.
            guidance: the scale of classifier-free guidance of all stages, or one for each; by default their own.
            own: further conditions of each stage alone.
            options: further arguments of :meth:`Cascade.draw`, such as ``levels``.
        """
        stages = list(self.cascade.stages)
        if guidance is not None:
            scales = [guidance] * len(stages) if isinstance(guidance, int | float) else list(guidance)
            stages = [replace(stage, guidance=float(s)) for stage, s in zip(stages, scales, strict=True)]
        more = [*own, *[{}] * (len(stages) - len(own))]
        told = [{**text, **extra} for text, extra in zip(self.conditions(prompts), more, strict=True)]
        return Cascade(stages).draw(len(prompts), own=told, **options)

    def complete(self, prompts: Sequence[str], x: Tensor, mask: Tensor, **options: Any) -> tuple[Samples, ...]:
        """Draw the rest of images of which a part is known, by a first stage of :func:`inpainting`.

        Args:
            prompts: the texts.
            x: images in the resolution of the first stage.
            mask: 1 where an image is known and 0 elsewhere, shape ``(batch, 1, height, width)``.
            options: further arguments of :meth:`draw`.

        Raises:
            TypeError: for a first stage whose network is no :class:`~scoresde.models.Inpainting`.
        """
        net = self.cascade.stages[0].model.network
        if not isinstance(net, Inpainting):
            raise TypeError(f"got a first stage with a {type(net).__name__}; expected inpainting(system), trained further")
        return self.draw(prompts, own=[{"known": x * mask, "mask": mask}], **options)


def text_conditions(stage: CascadeStage, encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return the conditions of texts that the network of a stage takes; without text, none."""
    net = stage.model.network
    return conditions_of(net, encoder, texts) if nulls_of(net).keys() & {"context", "pooled"} else {}


def glide(
    encoder: TextEncoder,
    events: Sequence[Sequence[int]] = ((3, 64, 64), (3, 256, 256)),
    *,
    unet: Mapping[str, Any] | None = None,
    above: Mapping[str, Any] | None = None,
    sde: GaussianSDE | None = None,
    guidance: float = 3.0,
    **stage: Any,
) -> TextToImage:
    """Return GLIDE, untrained.

    Args:
        encoder: the text encoder, frozen here; the paper trains one together with the base.
        events: the shapes of the samples of the stages.
        unet, above: arguments of the U-Nets of the first stage and of the others.
        sde: the SDE of all stages; by default :class:`~scoresde.CosineVP`.
        guidance: the scale of classifier-free guidance of the first stage.
        stage: further arguments of the stages, such as ``steps``.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(features=6)  # in place of TextEncoder(folder)
        >>> small = {"width": 8, "multipliers": (1, 2)}
        >>> first, above = glide(encoder, ((1, 4, 4), (1, 8, 8)), unet=small, above=small).cascade.stages
        >>> nulls_of(first.model.network), first.guidance, above.augmentation
        ({'context': 0.0, 'context_mask': True, 'pooled': 0.0}, 3.0, None)
    """
    text = {"context": encoder.features, "append_context": True, "pooled": encoder.features}
    return _system(encoder, events, {**text, **(unet or {})}, {**text, **(above or {})}, sde, None, guidance, stage)


def imagen(
    encoder: TextEncoder,
    events: Sequence[Sequence[int]] = ((3, 64, 64), (3, 256, 256), (3, 1024, 1024)),
    *,
    unet: Mapping[str, Any] | None = None,
    above: Mapping[str, Any] | None = None,
    sde: GaussianSDE | None = None,
    guidance: float = 7.5,
    threshold: float = 0.995,
    highest: float = 0.5,
    **stage: Any,
) -> TextToImage:
    """Return Imagen, untrained; ``highest`` is the highest level of the noise on small images, the others as :func:`glide`.

    Args:
        encoder: the text encoder.
        events: the shapes of the samples of the stages.
        unet, above: arguments of the U-Nets of the first stage and of the others, which are efficient ones.
        sde: the SDE of all stages; by default :class:`~scoresde.CosineVP`.
        guidance: the scale of classifier-free guidance of the first stage.
        threshold: the quantile of the dynamic threshold.
        highest: the highest level of the noise on small images.
        stage: further arguments of the stages, such as ``steps``.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(features=6)  # in place of TextEncoder(folder)
        >>> small = {"width": 8, "multipliers": (1, 2)}
        >>> first, above = imagen(encoder, ((1, 4, 4), (1, 8, 8)), unet=small, above=small, steps=10).cascade.stages
        >>> first.threshold, first.steps, above.augmentation.highest
        (0.995, 10, 0.5)
    """
    text = {"context": encoder.features, "pooled": encoder.features}
    lean = {"resample": "outer", "scale_skips": True, "last_attention": True}
    how = {"threshold": threshold, **stage}
    return _system(encoder, events, {**text, **(unet or {})}, {**text, **lean, **(above or {})}, sde, highest, guidance, how)


def _system(
    encoder: TextEncoder,
    events: Sequence[Sequence[int]],
    unet: Mapping[str, Any],
    above: Mapping[str, Any],
    sde: GaussianSDE | None,
    highest: float | None,
    guidance: float,
    stage: Mapping[str, Any],
) -> TextToImage:
    process, channels = sde or CosineVP(), events[0][0]
    noise = None if highest is None else NoisedLow(highest, process)
    first = CascadeStage(ScoreModel(UNet(channels, **unet), process, "v"), events[0], guidance=guidance, **stage)
    others = [
        CascadeStage(ScoreModel(SuperResolution(channels, above), process, "v"), event, noise, **stage)
        for event in events[1:]
    ]
    return TextToImage(Cascade([first, *others]), encoder)


def inpainting(system: TextToImage) -> TextToImage:
    """Return the system with a first stage that completes images: four further channels, whose weights are 0.

    It draws what the system draws, whatever is known, until :func:`~scoresde.systems.train_text_to_image` trains it further.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(features=6)  # in place of TextEncoder(folder)
        >>> small = {"width": 8, "multipliers": (1, 2)}
        >>> system = glide(encoder, ((1, 4, 4), (1, 8, 8)), unet=small, above=small)
        >>> [type(stage.model.network).__name__ for stage in inpainting(system).cascade.stages]
        ['Inpainting', 'SuperResolution']
    """
    first, *others = system.cascade.stages
    net = Inpainting.of(first.model.network)
    model = ScoreModel(net, first.model.sde, first.model.predicts, sigma_data=first.model.sigma_data)
    return replace(system, cascade=Cascade([replace(first, model=model), *others]))
