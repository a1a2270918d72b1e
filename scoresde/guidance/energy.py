"""Guidance by any differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from scoresde.guidance.classifier import check_callable
from scoresde.guidance.scale import Scale
from scoresde.guidance.tilted import Tilted
from scoresde.score import ScoreModel

__all__ = ["Energy"]


class Energy(Tilted):
    r"""Guidance towards low values of a function E: the score gets :math:`-s\, \nabla_x E`.

    By default E is a function of clean data, applied to the data prediction, as a distance of CLIP features to those of a
    text is. The aim is the density :math:`p(x_0)\, e^{-s E(x_0)}`, which guidance reaches only approximately, because
    :math:`E[e^{-sE(x_0)} \mid x]` is not :math:`e^{-s E(D(x))}`. :func:`~scoresde.guidance.feynman_kac` samples it.

    Args:
        model: any score model.
        energy: ``energy(x0, **conditions)`` or, with ``of="x"``, ``energy(x, t, **conditions)``, returning shape
            ``(batch,)``. A module moves with the model.
        scale: s, a number, a tensor with one for each sample, or a function of time.
        of: ``"x0"`` or ``"x"``.
        takes, shares: the names of conditions that the function gets alone, or together with the model.

    Raises:
        TypeError: for a function that cannot be called with these arguments.
        ValueError: for a value of a wrong shape or without a gradient, and where alpha = 0.

    Sources: Zhao et al., "EGSDE", 2022, https://arxiv.org/abs/2207.06635; Yu et al., "FreeDoM: Training-Free Energy-Guided
    Conditional Diffusion Model", 2023, https://arxiv.org/abs/2303.09833.

    Example:
        >>> import torch, scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> right = Energy(model, lambda x0: -x0[:, 0], 2.0)
        >>> samples = scoresde.sample(right, (64, 2), "ddim", 20, progress=False)
        >>> samples.x[:, 0].mean().item() > 0.3, samples.backward
        (True, 20)
    """

    def __init__(
        self,
        model: ScoreModel,
        energy: Callable[..., Tensor],
        scale: Scale = 1.0,
        *,
        of: str = "x0",
        takes: Sequence[str] | str = (),
        shares: Sequence[str] | str = (),
    ) -> None:
        super().__init__(model, scale, of, takes, shares)
        check_callable(energy, "energy", of, (*self.takes, *self.shares))
        self.energy: Any = energy

    def potential(self, at: Tensor, *t: Tensor, **conditions: Any) -> Tensor:
        """Return minus the energy, shape ``(batch,)``."""
        found = self.energy(at, *t, **conditions)
        return -found if isinstance(found, Tensor) else found  # what is no tensor is refused by its name
