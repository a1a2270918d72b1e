r"""Rectified flow in latents, as Stable Diffusion 3 and Flux: an MM-DiT, times shifted with the resolution, told guidance.

A larger image needs more noise to hide as much, so its times are moved towards the noise,
:math:`s' = k s / (1 + (k - 1) s)`, with k the square root of the ratio of the numbers of pixels. Guidance costs two calls. A
network that is told its scale, and is trained to predict what guidance predicts, needs one.

Sources: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
https://arxiv.org/abs/2403.03206; Black Forest Labs, "FLUX.1", 2024, https://github.com/black-forest-labs/flux; for told
guidance Meng et al., "On Distillation of Guided Diffusion Models", 2023, https://arxiv.org/abs/2210.03142.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.guidance import ClassifierFree
from scoresde.models import Autoencoder, MMDiT
from scoresde.objectives import DSM, Objective, ShiftedTimes, noised
from scoresde.objectives.matching import Around
from scoresde.sampling import Samples
from scoresde.score import ScoreModel
from scoresde.sde import RectifiedFlow
from scoresde.solvers import Shifted, resolution_shift
from scoresde.systems.conditioning import nulls_of
from scoresde.systems.latent import LatentDiffusion, train_latent

__all__ = ["GuidanceTold", "LatentFlow", "train_latent_flow"]


@dataclass(frozen=True, eq=False)
class LatentFlow(LatentDiffusion):
    """A trained system: latent diffusion along a rectified flow.

    Args:
        model: the model of the latents, with the autoencoder.
        event: the shape of a latent, on which the network was trained.
        encoder: the text encoder.
        shift: the shift k of the times at that shape; at others it is multiplied by
            :func:`~scoresde.solvers.resolution_shift`.

    Example:
        >>> import torch
        >>> from scoresde.models import KLAutoencoder
        >>> from scoresde.score import LatentModel
        >>> net = MMDiT(2, 2, 5, width=16, depth=1, heads=2)
        >>> model = LatentModel(ScoreModel(net, RectifiedFlow(), "velocity"), KLAutoencoder(1, 2, 4, (1, 2), groups=2))
        >>> system, text = LatentFlow(model, (2, 4, 4), shift=3.0), {"context": torch.zeros(2, 2, 5)}
        >>> system.draw(n=2, event=(2, 8, 8), conditions=text, steps=2, progress=False).x.shape  # twice the size
        torch.Size([2, 1, 16, 16])
    """

    shift: float = 1.0

    def draw(
        self,
        prompts: Sequence[str] = (),
        *,
        told: float | None = None,
        event: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Samples:
        """Draw a sample for each prompt.

        Args:
            prompts: texts; an empty one stands for no text.
            told: the guidance scale that the network is told, for one that was trained with :class:`GuidanceTold`.
            event: the shape of a latent, of any resolution; by default that of the training.
            conditions: further conditions.
            options: further arguments of :meth:`LatentDiffusion.draw`, such as ``guidance`` of a network
                that is not told it.

        Raises:
            ValueError: for a scale to tell to a network that takes none, and the reverse.
        """
        takes = bool(self.model.network.config["guidance"])
        if (told is None) == takes:
            raise ValueError(
                f"got told={told} for a network with guidance={takes}; expected the scale to tell where it is True, and "
                "guidance=.. where it is not"
            )
        shape = tuple(self.event if event is None else event)
        k = self.shift * resolution_shift(math.prod(shape[1:]), math.prod(self.event[1:]))
        more = {**(conditions or {}), **({} if told is None else {"guidance": float(told)})}
        return super().draw(prompts, event=shape, conditions=more, **{"solver": "euler", "path": Shifted(k), **options})


@dataclass(frozen=True)
class GuidanceTold(Around):
    """An objective by which a network that is told a guidance scale learns what guidance of another one predicts.

    Args:
        inner: the objective, in which the predictions of the guided teacher take the place of data and noise.
        teacher: the score model to guide; it is not trained.
        scales: the range of the guidance scales, which are uniform; in a report the scale is the middle.

    Source: Meng et al., "On Distillation of Guided Diffusion Models", 2023, https://arxiv.org/abs/2210.03142.

    Raises:
        ValueError: for a teacher that is no score model, an inner objective that is no
            :class:`~scoresde.objectives.DSM`, and a range of scales that falls.

    Example:
        >>> import scoresde
        >>> teacher = ScoreModel(MMDiT(4, 2, 5, width=16, depth=1, heads=2), RectifiedFlow(), "velocity")
        >>> net = MMDiT(4, 2, 5, width=16, depth=1, heads=2, guidance=True)
        >>> loss = GuidanceTold(DSM("velocity", "uniform"), teacher)
        >>> x, told = torch.randn(3, 4, 4, 4), {"context": torch.randn(3, 2, 5)}
        >>> found, t = loss(ScoreModel(net, RectifiedFlow(), "velocity"), x, torch.Generator(), **told)
        >>> bool((found < 1e-6).all())  # both predict 0
        True
    """

    teacher: ScoreModel
    scales: tuple[float, float] = (1.0, 6.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scales
        if not isinstance(self.teacher, ScoreModel) or not isinstance(self.wrapped, DSM) or not low <= high:
            raise ValueError(
                f"got teacher={type(self.teacher).__name__}, inner={type(self.wrapped).__name__}, scales={self.scales}; "
                "expected a score model, a DSM, and a range (low, high)"
            )
        self.teacher.requires_grad_(False).eval()

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of the inner objective, and the guidance scales."""
        low, high = self.scales
        u = torch.rand(len(x0), generator=generator, device=generator.device).to(x0)
        return {**super().draws(x0, generator), "guidance": low + (high - low) * u}

    def at(
        self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, guidance: Tensor | None = None, **conditions: Any
    ) -> Tensor:
        """Return the loss at given times and noise, shape ``(batch,)``; see :meth:`Objective.at`."""
        inner = cast(DSM, self.wrapped)
        if guidance is None:
            guidance = torch.full((len(x0),), sum(self.scales) / 2).to(x0)
        x, t = noised(model.sde, x0, t, eps), t.to(torch.float64)
        null = {name: value for name, value in nulls_of(self.teacher.network).items() if name in conditions}
        guided = ClassifierFree(self.teacher, guidance, null)
        output = model(x, t, guidance=guidance, **conditions)
        return inner.of_output(model, output, guided.x0(x, t, **conditions), t, guided.eps(x, t, **conditions))


def train_latent_flow(
    data: Any,
    out: str | os.PathLike[str],
    autoencoder: Autoencoder,
    net: MMDiT,
    *,
    steps: tuple[int, int],
    shift: float = 1.0,
    teacher: LatentFlow | None = None,
    objective: Objective | None = None,
    **options: Any,
) -> LatentFlow:
    """Train a latent rectified flow in a folder, or continue its training.

    Args:
        data: samples of shape ``(n, *event)``, or a dataset.
        out: the folder.
        autoencoder: the autoencoder; with a teacher that of the teacher, and ``steps[0]`` is 0.
        net: the network of the latents, which predicts the velocity.
        steps: the steps of the autoencoder and of the score model.
        shift: the shift k of the times in training and sampling.
        teacher: a system whose guidance a network with ``guidance=True`` learns to be told.
        objective: the objective; by default logit-normal times, shifted.
        options: further arguments of :func:`train_latent`: ``texts``, ``encoder``, ``dropout``, ``methods``, ``device``.

    Example:
        >>> from scoresde.models import TextEncoder
        >>> encoder = TextEncoder("text-encoder-minilm")  # doctest: +SKIP
        >>> net = MMDiT(4, 32, encoder.features)  # doctest: +SKIP
        >>> how = {"steps": (0, 10_000), "texts": texts, "encoder": encoder}  # doctest: +SKIP
        >>> system = train_latent_flow(images, "run", autoencoder, net, **how)  # doctest: +SKIP
    """
    loss = objective or DSM("velocity", ShiftedTimes(shift))
    if teacher is not None:
        loss, options = GuidanceTold(loss, teacher.model.model), {**options, "dropout": 0.0}
    found = train_latent(
        data, out, autoencoder, net, steps=steps, sde=RectifiedFlow(), predicts="velocity", objective=loss, **options
    )
    system = LatentFlow(found.model, found.event, found.encoder, shift)
    system.save(out, written={"model": "model.safetensors"})
    return system
