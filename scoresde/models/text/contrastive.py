r"""Models that tell which text belongs to an image, by contrast, in the manner of CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.autoencoder.coder import Encoder, style

__all__ = ["Contrastive", "ContrastiveImages"]

_LARGEST = math.log(100.0)  # of the factor of the logits, as published


class Contrastive(nn.Module):
    r"""Two networks that map images and text embeddings into one space, where what belongs together is near.

    The logit of a pair is :math:`e^{\tau} f(x) \cdot g(y)`, with both vectors scaled to length 1 unless
    ``normalized=False``, and :math:`e^{\tau} \le 100`. Its softmax over the texts of a batch is the probability that y
    belongs to x, which :class:`~scoresde.objectives.ContrastiveLearning` trains. As an energy it guides samples towards a
    text, see :meth:`energy`; its ranks measure how well images show what they should.

    Args:
        image: f, from images ``(batch, *event)`` to ``(batch, features)``.
        text: g, from text embeddings ``(batch, ..)`` to ``(batch, features)``.
        normalized: whether to scale the vectors to length 1.
        scale: the initial :math:`e^{\tau}`.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020.

    Raises:
        ValueError: for a ``scale`` that is not above 0 and at most 100.

    Example:
        >>> model = Contrastive(nn.Linear(4, 2), nn.Linear(3, 2))
        >>> model(torch.randn(5, 4), torch.randn(6, 3)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        image: Callable[[Tensor], Tensor],
        text: Callable[[Tensor], Tensor],
        *,
        normalized: bool = True,
        scale: float = 1 / 0.07,
    ) -> None:
        super().__init__()
        if not 0 < scale <= 100:
            raise ValueError(f"got scale={scale}; expected a number above 0, at most 100")
        self.image, self.text, self.normalized = image, text, normalized
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def images(self, x: Tensor) -> Tensor:
        """Return the vectors of images, shape ``(batch, features)``."""
        f = self.image(x)
        return F.normalize(f, dim=1) if self.normalized else f

    def texts(self, embedding: Tensor) -> Tensor:
        """Return the vectors of text embeddings, shape ``(batch, features)``."""
        g = self.text(embedding)
        return F.normalize(g, dim=1) if self.normalized else g

    @property
    def scale(self) -> Tensor:
        """The factor of the logits."""
        return self.log_scale.clamp(max=_LARGEST).exp()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the logit of every image with every text, shape ``(images, texts)``."""
        return self.scale * self.images(x) @ self.texts(embedding).mT

    def energy(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Return minus the logit of each image with its own text, shape ``(batch,)``, as guidance takes it.

        ``guidance.Energy(model, contrastive.energy, 0.5, takes="pooled")`` guides by it; with ``shares="pooled"`` the model
        gets the embedding as well.
        """
        return -self.scale * (self.images(x) * self.texts(pooled)).sum(1)

    @torch.no_grad()
    def ranks(self, x: Tensor, embedding: Tensor, right: Tensor | None = None) -> Tensor:
        """Return the place of the right text of each image among all texts, 0 for the best, shape ``(images,)``.

        Args:
            x: images.
            embedding: the embeddings of all texts.
            right: the number of the right text of each image; by default the text of the same place.

        Raises:
            ValueError: without ``right``, for other numbers of images and texts.
        """
        logits: Tensor = self(x, embedding)
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
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        sizes = [int(m * width) for m in multipliers]
        if min(channels, text_features, features, hidden, *sizes, len(sizes)) < 1:
            raise ValueError(
                f"got channels={channels}, text_features={text_features}, features={features}, width={width}, "
                f"multipliers={tuple(multipliers)}, hidden={hidden}; expected positive sizes and at least one level"
            )
        body = Encoder(channels, sizes[-1], sizes, 1, (), True, style(2, min(8, *sizes), dropout))
        image = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], features))
        layers = [nn.Linear(text_features, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, features)]
        super().__init__(image, nn.Sequential(*layers))
        self.config: dict[str, Any] = config | {"multipliers": list(multipliers)}

    def images(self, x: Tensor) -> Tensor:
        """Return the vectors of images, shape ``(batch, features)``."""
        if x.ndim != 4 or x.shape[1] != self.config["channels"]:
            raise ValueError(
                f"got images of shape {tuple(x.shape)}; expected (batch, {self.config['channels']}, height, width)"
            )
        return super().images(x)
