r"""Models that tell which text belongs to an image, by contrast, in the manner of CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.autoencoder.coder import Encoder, style
from scoresde.models.embedding import TimeFeatures

__all__ = ["Contrastive", "ContrastiveImages"]

TIME_CHANNELS = 16
"""The number of channels with features of the time."""

_LARGEST = math.log(100.0)  # of the factor of the logits, as published


class Contrastive(nn.Module):
    r"""Two networks that map images and text embeddings into one space, where what belongs together is near.

    The logit of a pair is :math:`e^{\tau} f(x) \cdot g(y)`, with both vectors scaled to length 1 unless
    ``normalized=False``, and :math:`e^{\tau} \le 100`. Its softmax over the texts of a batch is the probability that y
    belongs to x, which :class:`~scoresde.objectives.ContrastiveLearning` trains. As an energy it guides samples towards a
    text, see :meth:`energy`; its ranks measure how well images show what they should.

    With ``noised=True`` the network of images is told the time, f(x, t), and is trained on noised images, as GLIDE's is.
    Then :meth:`noised_energy` guides by the noised image itself, without a network of clean images that sees a data
    prediction at high noise, and without a backward call of the score model.

    Args:
        image: f, from images ``(batch, *event)`` to ``(batch, features)``.
        text: g, from text embeddings ``(batch, ..)`` to ``(batch, features)``.
        normalized: whether to scale the vectors to length 1.
        scale: the initial :math:`e^{\tau}`.
        noised: whether f takes the time as well, shape ``(batch,)``, as a second argument.

    Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020; noised: Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with
    Text-Guided Diffusion Models", 2021, https://arxiv.org/abs/2112.10741, section 2.4.

    Raises:
        ValueError: for a ``scale`` that is not above 0 and at most 100; when called, for a missing time of noised images.

    Example:
        >>> model = Contrastive(nn.Linear(4, 2), nn.Linear(3, 2))
        >>> model(torch.randn(5, 4), torch.randn(6, 3)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        image: Callable[..., Tensor],
        text: Callable[[Tensor], Tensor],
        *,
        normalized: bool = True,
        scale: float = 1 / 0.07,
        noised: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < scale <= 100:
            raise ValueError(f"got scale={scale}; expected a number above 0, at most 100")
        self.image, self.text, self.normalized, self.noised = image, text, normalized, noised
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def images(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the vectors of images, of noised ones at the times ``t``, shape ``(batch, features)``."""
        if (t is not None) != self.noised:
            kind, call, energy = (
                ("noised", "x, t", "noised_energy, with of='x',") if self.noised else ("clean", "x", "energy")
            )
            raise ValueError(
                f"got {'no' if t is None else 'a'} time for a contrastive model of {kind} images; expected images({call}), "
                f"and {energy} for guidance"
            )
        f = self.image(x) if t is None else self.image(x, t.expand(len(x)))
        return F.normalize(f, dim=1) if self.normalized else f

    def texts(self, embedding: Tensor) -> Tensor:
        """Return the vectors of text embeddings, shape ``(batch, features)``."""
        g = self.text(embedding)
        return F.normalize(g, dim=1) if self.normalized else g

    @property
    def scale(self) -> Tensor:
        """The factor of the logits."""
        return self.log_scale.clamp(max=_LARGEST).exp()

    def forward(self, x: Tensor, embedding: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the logit of every image with every text, shape ``(images, texts)``."""
        return self.scale * self.images(x, t) @ self.texts(embedding).mT

    def energy(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Return minus the logit of each image with its own text, shape ``(batch,)``, as guidance takes it.

        ``guidance.Energy(model, contrastive.energy, 0.5, takes="pooled")`` guides by it; with ``shares="pooled"`` the model
        gets the embedding as well.
        """
        return -self.scale * (self.images(x) * self.texts(pooled)).sum(1)

    def noised_energy(self, x: Tensor, t: Tensor, pooled: Tensor) -> Tensor:
        """Return minus the logit of each noised image at its time with its own text, shape ``(batch,)``.

        ``guidance.Energy(model, contrastive.noised_energy, 0.5, of="x", takes="pooled")`` guides by it.
        """
        return -self.scale * (self.images(x, t) * self.texts(pooled)).sum(1)

    @torch.no_grad()
    def ranks(self, x: Tensor, embedding: Tensor, right: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Return the place of the right text of each image among all texts, 0 for the best, shape ``(images,)``.

        Args:
            x: images.
            embedding: the embeddings of all texts.
            right: the number of the right text of each image; by default the text of the same place.
            t: the times of noised images.

        Raises:
            ValueError: without ``right``, for other numbers of images and texts.
        """
        logits: Tensor = self(x, embedding, t)
        if right is None and len(logits) != logits.shape[1]:
            raise ValueError(
                f"got {len(logits)} images and {logits.shape[1]} texts; expected as many, or right=.. with the number of "
                "the text of each image"
            )
        chosen = torch.arange(len(logits), device=logits.device) if right is None else right.to(logits.device)
        return (logits > logits.gather(1, chosen[:, None])).sum(1)


class ContrastiveImages(Contrastive):
    """A small contrastive model of images and the pooled embeddings of a frozen text encoder.

    Args:
        channels: number of channels of an image.
        text_features: number of features of a text embedding.
        features: number of features of the common space.
        width: number of channels that ``multipliers`` multiply.
        multipliers: one multiplier per level of the convolutional encoder; each but the last halves the resolution.
        hidden: number of hidden features of the network of the text.
        dropout: probability of zeroing a feature in training.
        noised: whether the network of images is told the time, as features in further channels, for noised images.
        time_scale: the length of the interval of times: 1 for [0, 1].

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, and for no levels.

    Example:
        >>> model = ContrastiveImages(3, 384, 16, 8, (1, 2))
        >>> model(torch.randn(2, 3, 16, 16), torch.randn(2, 384)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        channels: int = 3,
        text_features: int = 384,
        features: int = 128,
        width: int = 32,
        multipliers: Sequence[float] = (1, 2, 4, 4),
        *,
        hidden: int = 256,
        dropout: float = 0.0,
        noised: bool = False,
        time_scale: float = 1.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        sizes = [int(m * width) for m in multipliers]
        if min(channels, text_features, features, hidden, *sizes, len(sizes)) < 1:
            raise ValueError(
                f"got channels={channels}, text_features={text_features}, features={features}, width={width}, "
                f"multipliers={tuple(multipliers)}, hidden={hidden}; expected positive sizes and at least one level"
            )
        body = Encoder(channels + noised * TIME_CHANNELS, sizes[-1], sizes, 1, (), True, style(2, min(8, *sizes), dropout))
        image = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], features))
        layers = [nn.Linear(text_features, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, features)]
        super().__init__(_Timed(image, time_scale) if noised else image, nn.Sequential(*layers), noised=noised)
        self.config: dict[str, Any] = config | {"multipliers": list(multipliers)}

    def images(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the vectors of images, of noised ones at the times ``t``, shape ``(batch, features)``."""
        if x.ndim != 4 or x.shape[1] != self.config["channels"]:
            raise ValueError(
                f"got images of shape {tuple(x.shape)}; expected (batch, {self.config['channels']}, height, width)"
            )
        return super().images(x, t)


class _Timed(nn.Module):
    """A network of images that sees features of the time as further channels."""

    def __init__(self, body: nn.Module, time_scale: float) -> None:
        super().__init__()
        self.body, self.time = body, TimeFeatures(TIME_CHANNELS, time_scale=time_scale)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = self.time(t).to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        found: Tensor = self.body(torch.cat([x, told], 1))
        return found
