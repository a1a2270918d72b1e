r"""The probability flow of a model with its divergence, as the integrator of densities takes it.

In :math:`w = x / (\alpha + \sigma)` and :math:`u = \sigma / (\alpha + \sigma)` the flow is :math:`dw/du = N = \epsilon - m`,
with the noise prediction :math:`\epsilon` and the data prediction m. Both are combinations of x and the output of the
network, and so is the rate of the log-density in :math:`\tau = \log u`,

.. math:: G = u\, \nabla_w \cdot N = \sigma\, \nabla_x \cdot (\epsilon - m) .
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scoresde.base.shape import expand
from scoresde.sampling.likelihood.adams import Rates
from scoresde.sampling.likelihood.clock import Where
from scoresde.sampling.likelihood.divergence import TraceEstimate
from scoresde.score import DataMoments, ScoreModel

__all__ = ["Flow"]


class Flow:
    """The rates of a model's flow, with the number of network calls made for them.

    Args:
        model: the score model.
        trace: the estimate of the divergence.
        conditions: the conditions of the batch.
        moments: the moments of the data for a control variate; ``None`` for none.

    Attributes:
        evaluations: the number of network calls so far.
    """

    def __init__(
        self,
        model: ScoreModel,
        trace: TraceEstimate,
        conditions: Mapping[str, Any],
        moments: DataMoments | None = None,
    ) -> None:
        self.model, self.trace, self.conditions, self.moments = model, trace, conditions, moments
        self.evaluations = 0
        self._constant = False  # in x, as far as was seen: a prediction without a graph has no divergence then

    def __call__(self, w: Tensor, where: Where) -> Rates:
        """Return the rates at the states ``w``, shape ``(batch, *event)``, and the points ``where``."""
        return Rates(*(r.detach() for r in self.rates(w.detach(), where, create_graph=False)))

    def recorded(self, w: Tensor, where: Where) -> Rates:
        """Return the rates with gradients to the state, the parameters of the model and the conditions.

        The evaluation is made again in the backward pass, so that no graph of a network is kept.
        """
        found = _Checkpointed.apply(self, where, w, *self.leaves)  # type: ignore[no-untyped-call]
        return Rates(found[0], found[1].detach(), found[2])

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters and conditions that take gradients."""
        told = (v for v in self.conditions.values() if isinstance(v, Tensor) and v.requires_grad)
        return [*(p for p in self.model.parameters() if p.requires_grad), *told]

    def rates(self, w: Tensor, where: Where, create_graph: bool) -> Rates:
        """Compute the rates, with the graph to ``w`` and all else if ``create_graph``."""
        c = self.model.coefficients(where.t)
        of_x, of_output = (eps - x0 for eps, x0 in zip(c.eps, c.x0, strict=True))
        x = expand(where.alpha + where.sigma, w).to(w) * w
        if not x.requires_grad:
            x = x.requires_grad_()
        output = self.predicted(x.clone(), where.t)  # of no leaf, or what writes into it is not told so in plain words
        if not output.requires_grad and not self._constant:
            self._check_constant(x.detach(), where.t, output)
        divergence = of_x * x[0].numel() + of_output * self.trace(output, x, create_graph).double()
        density = where.sigma * divergence + self._variate(where, of_x)
        slope, eps = (expand(a, x).to(x) * x + expand(b, x).to(x) * output for a, b in ((of_x, of_output), c.eps))
        return Rates(slope, eps, density)

    def predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the output of the model at ``x`` and ``t``, and count it."""
        calls = self.model.calls if t.ndim else self.model.calls_at(float(t))
        self.evaluations += calls.forward
        output: Tensor = self.model(x, t, **self.conditions)
        return output

    def _variate(self, where: Where, of_x: Tensor) -> Tensor | float:
        """Return what the probes miss of the divergence for the Gaussian with the moments of the data.

        The probes estimate the part of the output; that of ``of_x`` is known.
        """
        vectors = self.trace.vectors
        if self.moments is None or vectors is None:
            return 0.0

        def slope(e: Tensor) -> Tensor:
            alpha, sigma, known = (c.reshape(-1, *[1] * e.ndim) for c in (where.alpha, where.sigma, of_x))
            return sigma * ((sigma - alpha * e) / (alpha**2 * e + sigma**2) - known)

        forms = [self.moments.quadratic(slope, v) for v in vectors]
        return self.moments.trace(slope, vectors.device) - torch.stack(forms)

    def _check_constant(self, x: Tensor, t: Tensor, output: Tensor) -> None:
        """Refuse a prediction that carries no gradient although it depends on ``x``."""
        self._constant = torch.equal(self.predicted(1.01 * x + 0.01, t), output)
        self._refuse_cut(self._constant)

    @staticmethod
    def _refuse_cut(constant: bool) -> None:
        if not constant:
            raise ValueError(
                "the model's predictions depend on x but carry no gradient, so that the divergence of the flow would be "
                "left out; expected a network without no_grad(), inference_mode() or detach() inside"
            )


class _Checkpointed(torch.autograd.Function):
    """The rates of a flow, computed again for their gradients."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, where: Where, w: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.flow, ctx.where, ctx.leaves = flow, where, leaves
        ctx.save_for_backward(w)
        with torch.enable_grad():
            found = flow.rates(w.detach(), where, create_graph=False)
        return found.slope.detach(), found.eps.detach(), found.density.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_eps: Tensor, of_density: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors
        flow: Flow = ctx.flow
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            found = flow.rates(w, ctx.where, create_graph=True)
            outputs = [(a, b) for a, b in ((found.slope, of_slope), (found.density, of_density)) if a.requires_grad]
            grads = torch.autograd.grad(
                [a for a, _ in outputs], [w, *ctx.leaves], [b for _, b in outputs], allow_unused=True, materialize_grads=True
            )
        return None, None, *grads
