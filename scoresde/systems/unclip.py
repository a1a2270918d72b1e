r"""unCLIP: a prior that draws the embedding of an image given a text, and a decoder that draws an image given its embedding.

.. math:: p(x \mid y) = \int p(x \mid z_i, y)\, p(z_i \mid y)\, dz_i

The embedding z_i is that of a contrastive model. The decoder alone makes variations of an image, and interpolates between
two. A decoder that is not given the text draws from p(x | z_i), and what z_i does not tell of y is lost; the page on unCLIP
derives by how much.

Source: Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents", 2022,
https://arxiv.org/abs/2204.06125.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.models import Contrastive, TextEncoder
from scoresde.sampling import Samples, encode, sample, slerp
from scoresde.score import ScoreModel
from scoresde.solvers import sample_seeds
from scoresde.solvers.methods.exponential import ddim
from scoresde.systems.conditioning import conditions_of, guided, nulls_of
from scoresde.systems.system import System

__all__ = ["UnCLIP"]


@dataclass(frozen=True, eq=False)
class UnCLIP(System):
    """A trained system.

    Args:
        prior: the model of normalized embeddings of images, such as of an :class:`~scoresde.models.EmbeddingPrior`.
        decoder: the model of images, which takes the condition ``embedding``.
        features: number of features of an embedding.
        event: the shape of an image.
        contrast: the contrastive model of images and texts.
        encoder: the encoder of texts.

    Example:
        >>> import scoresde
        >>> from scoresde.models import EmbeddingPrior, ImageEmbedded
        >>> prior = EmbeddingPrior(6, 5, 7, pooled=6, width=16, depth=1, heads=2)
        >>> decoder = ImageEmbedded(1, {"width": 8, "multipliers": [1, 2]}, 6)
        >>> models = [ScoreModel(prior, scoresde.VP(), "x0"), ScoreModel(decoder, scoresde.VP(), "v")]
        >>> told = {"context": torch.randn(2, 7, 5), "pooled": torch.randn(2, 6)}
        >>> UnCLIP(*models, 6, (1, 8, 8)).draw(n=2, conditions=(told, {}), steps=3, progress=False).x.shape
        torch.Size([2, 1, 8, 8])
    """

    prior: ScoreModel
    decoder: ScoreModel
    features: int
    event: Sequence[int]
    contrast: Contrastive | None = None
    encoder: TextEncoder | None = None

    def conditions(self, prompts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the conditions of texts for the prior and for the decoder, which may take none.

        Raises:
            ValueError: for a system without a text encoder or a contrastive model.
        """
        if self.encoder is None or self.contrast is None:
            raise ValueError(
                "got prompts for a system without a text encoder or a contrastive model; expected both, or "
                "conditions=(of the prior, of the decoder)"
            )
        text, net = self.encoder(list(prompts)), self.decoder.network
        told = {"context": text.tokens, "context_mask": text.mask, "pooled": self.contrast.texts(text.pooled)}
        return told, conditions_of(net, self.encoder, prompts) if "context" in nulls_of(net) else {}

    def embeddings(
        self,
        n: int,
        conditions: Mapping[str, Any],
        *,
        candidates: int = 2,
        guidance: float = 1.0,
        seed: Any = 0,
        **options: Any,
    ) -> Tensor:
        """Draw embeddings of images from the prior, and keep the best candidate of each, shape ``(n, features)``.

        The best is nearest to the vector of the text, the condition ``pooled``, by the dot product. With one candidate the
        embeddings have the law of the prior; a choice among several shifts it towards the text.

        Raises:
            ValueError: for several candidates without a vector of the text, by which to choose.
        """
        if whole("candidates", candidates, 1) > 1 and "pooled" not in conditions:
            raise ValueError(
                f"got candidates={candidates} without the condition 'pooled', the vector of the text by which to choose; "
                "pass it, or candidates=1"
            )
        seeds = [sample_seeds(s, candidates) for s in sample_seeds(seed, n)]
        model, back = guided(self.prior, guidance, conditions), getattr(self.prior.network, "denormalized", None)
        found = []
        for k in range(candidates):
            how = {"seed": [s[k] for s in seeds], "conditions": conditions, **options}
            z = sample(model, (n, self.features), **how).x
            found.append(z if back is None else back(z))
        z = torch.stack(found, 1)  # (n, candidates, features)
        if candidates == 1:
            return z[:, 0]
        score = (z * torch.as_tensor(conditions["pooled"]).to(z)[:, None]).sum(2)
        return z[torch.arange(n, device=z.device), score.argmax(1)]

    def decode(
        self,
        z: Tensor,
        conditions: Mapping[str, Any] | None = None,
        *,
        guidance: float = 1.0,
        start: Any = None,
        **options: Any,
    ) -> Samples:
        """Draw an image of each embedding, of shape ``(n, features)``, from the start of choice."""
        told = {"embedding": z, **(conditions or {})}
        first = (len(z), *self.event) if start is None else start
        return sample(guided(self.decoder, guidance, told), first, conditions=told, **options)

    def draw(
        self,
        prompts: Sequence[str] = (),
        *,
        n: int | None = None,
        conditions: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
        candidates: int = 2,
        guidance: tuple[float, float] = (1.0, 1.0),
        seed: int | Sequence[int] | None = 0,
        of_prior: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Samples:
        """Draw an image of each text.

        Args:
            prompts: the texts; an empty one stands for no text in the decoder.
            n: the number of images, where there are no texts.
            conditions: conditions of the prior and of the decoder, beside those of the texts.
            candidates: the number of embeddings that are drawn for an image, of which the best is kept.
            guidance: the scales of classifier-free guidance of the prior and of the decoder.
            seed: see :func:`scoresde.sample`. An image depends on its own seed.
            of_prior: arguments of :func:`scoresde.sample` for the prior alone.
            options: arguments of :func:`scoresde.sample` for both.
        """
        told = self.conditions(prompts) if prompts else ({}, {})
        size = len(prompts) or n or 1
        seeds = [sample_seeds(s, 2) for s in sample_seeds(seed, size)]
        how = {
            "candidates": candidates,
            "guidance": guidance[0],
            "seed": [s[0] for s in seeds],
            **options,
            **(of_prior or {}),
        }
        z = self.embeddings(size, {**told[0], **conditions[0]}, **how)
        return self.decode(z, {**told[1], **conditions[1]}, guidance=guidance[1], seed=[s[1] for s in seeds], **options)

    def vary(
        self, x: Tensor, *, eta: float = 1.0, steps: int = 50, conditions: Mapping[str, Any] | None = None, **options: Any
    ) -> Samples:
        """Draw a variation of each image: its embedding and its latent are kept, and noise of share ``eta`` is added.

        With ``eta=0`` the image itself returns, up to the error of the steps. Further arguments are those of :meth:`decode`.
        """
        z = self._embedded(x)
        start = self._latent(x, z, steps, conditions)
        return self.decode(z, conditions, start=start, solver=ddim(eta), steps=steps, path="lam", **options)

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        weight: float | Tensor,
        *,
        steps: int = 50,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Samples:
        """Return images between two, by spherical interpolation of their embeddings and latents; 0 is a and 1 is b."""
        first, last = self._embedded(a), self._embedded(b)
        ends = [self._latent(x, z, steps, conditions) for x, z in ((a, first), (b, last))]
        start = slerp(ends[0], ends[1], weight)
        z = slerp(first, last, weight)
        return self.decode(z, conditions, start=start, solver=ddim(0.0), steps=steps, path="lam", **options)

    def _embedded(self, x: Tensor) -> Tensor:
        if self.contrast is None:
            raise ValueError("got images for a system without a contrastive model, which embeds them; expected contrast=..")
        return self.contrast.images(x)

    def _latent(self, x: Tensor, z: Tensor, steps: int, conditions: Mapping[str, Any] | None) -> Tensor:
        return encode(self.decoder, x, "ddim", steps, conditions={"embedding": z, **(conditions or {})}).x
