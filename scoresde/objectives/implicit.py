r"""Implicit and sliced score matching, which need samples of the noised data only and use the trace of the score's Jacobian.

By integration by parts, the mean squared error of the score is, up to a constant,

.. math:: E\; w(t)\, \tfrac{\sigma^2}{d} \left( \| s(x_t) \|^2 + 2\, \mathrm{tr}\, \nabla s(x_t) \right),

in which the noise that produced x_t does not appear. The expected gradient is that of denoising score matching.

Sources: Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005; Song et al., "Sliced Score
Matching", 2019, https://arxiv.org/abs/1905.07088; Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix",
1989.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.trace import quadratic_forms, unit_vectors
from scoresde.objectives.matching import Weighted, noised
from scoresde.score import ScoreModel

__all__ = ["ImplicitScoreMatching"]


@dataclass(frozen=True)
class ImplicitScoreMatching(Weighted):
    r"""Score matching by the trace of the Jacobian.

    Args:
        weighting, times, stratified: the same as in :class:`~scoresde.objectives.DSM`.
        trace: ``"exact"`` takes one backward pass per dimension of the data. ``"hutchinson"`` takes the mean of
            :math:`v^T \nabla s\, v` over random probes v; this is sliced score matching with variance reduction.
            ``"sliced"`` replaces the squared norm by :math:`(v^T s)^2` as well; this is plain sliced score matching.
        probes: ``"rademacher"`` (random signs) or ``"gaussian"``.
        projections: the number of probes for each sample.

    Raises:
        ValueError: if ``trace`` or ``probes`` is unknown, or ``projections`` is below 1.

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP())  # exact for standard normal data
        >>> generator = torch.Generator().manual_seed(0)
        >>> x0 = torch.randn(4096, 2, generator=generator)
        >>> loss, t = ImplicitScoreMatching(times="uniform")(model, x0, generator)
        >>> abs(loss.mean() + (VP().sigma(t) ** 2).mean()).item() < 0.05  # sigma^2 (1 - 2)
        True
    """

    trace: str = "exact"
    probes: str = "rademacher"
    projections: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trace not in ("exact", "hutchinson", "sliced"):
            raise ValueError(f"got trace={self.trace!r}; expected 'exact', 'hutchinson' or 'sliced'")
        if self.probes not in ("rademacher", "gaussian") or self.projections < 1:
            raise ValueError(
                f"got probes={self.probes!r} and projections={self.projections}; expected 'rademacher' or 'gaussian', and "
                "at least one projection"
            )

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the probes, shape ``(projections, *x0.shape)``; none for the exact trace."""
        if self.trace == "exact":
            return {}
        shape = (self.projections, *x0.shape)
        v = torch.randn(shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
        return {"directions": torch.where(v < 0, -1.0, 1.0).to(v) if self.probes == "rademacher" else v}

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        directions: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Return the loss at given times and noise, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            directions: the probes, shape ``(projections, *x0.shape)``; with ``None`` the trace is exact.
            conditions: passed to the network.
        """
        t = t.to(torch.float64)
        exact = directions is None
        with torch.enable_grad():
            x = noised(model.sde, x0, t, eps).detach().requires_grad_()
            predicted = model.eps(x, t, **conditions)
            probes = unit_vectors(x0) if directions is None else directions
            derivatives = quadratic_forms(predicted, x, probes, create_graph=True)
        # -sigma times the score is eps.
        trace = derivatives.sum(0) if exact else derivatives.mean(0)
        if exact or self.trace == "hutchinson":
            square = predicted.square().flatten(1).sum(1)
        else:
            square = (probes * predicted).flatten(2).sum(2).square().mean(0)
        weight = self.weight.function(model.sde, t, model.sigma_data)
        if self.weight.on == "x0":
            weight = weight * (-2 * model.sde.lam(t)).exp()
        loss = weight.to(x0) * (square - 2 * model.sde.sigma(t).to(x0) * trace) / x0[0].numel()
        return loss if torch.is_grad_enabled() else loss.detach()
