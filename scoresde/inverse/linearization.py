r"""The data prediction of a model at a state, with products of its Jacobian, whatever the mode of autograd.

With :math:`\hat x_0(x) = E[x_0 \mid x_t = x]` the covariance of the data given the noised state and the data prediction
conditioned on a measurement y are (Efron, "Tweedie's Formula and Selection Bias", 2011,
https://doi.org/10.1198/jasa.2011.tm11181)

.. math:: \operatorname{cov}[x_0 \mid x] = \frac{\sigma_t^2}{\alpha_t} \frac{\partial \hat x_0}{\partial x}, \qquad
          E[x_0 \mid x, y] = \hat x_0 + \frac{\sigma_t^2}{\alpha_t} \nabla_x \log p_t(y \mid x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE, MatrixSDE, Time

__all__ = ["Linearization"]


class Linearization:
    r"""The data prediction of a model at states ``x`` and a time ``t``, with its transposed Jacobian.

    Gradients are enabled inside, under ``no_grad`` and ``inference_mode`` too. Where they are enabled outside, the results
    carry gradients with respect to ``x`` and the parameters.

    Where alpha / sigma is below the square root of the rounding error of the dtype, the Jacobian is a difference of equal
    numbers, and at alpha = 0 the covariance is 0 / 0. The state is then scaled to the noise of the time at which alpha /
    sigma is that large, and everything is computed there. It tells as little of the data.

    Args:
        model: the model whose prediction is differentiated.
        x: states, ``(batch, *event)``.
        t: a time, ``()`` or ``(batch,)``.
        conditions: the conditions of the model.

    Attributes:
        m: the data prediction, shape of ``x``.
        alpha, sigma: the marginal at the time, shape ``()`` or ``(batch,)``, float64; with matrix coefficients that of a
            scalar SDE at the same lam whose squares sum to 1.

    Raises:
        ValueError: for a model whose predictions depend on ``x`` and carry no gradient.

    Example:
        >>> from scoresde import VP, problems
        >>> model = problems.Gaussian([0.0, 0.0], 1.0).model(VP())
        >>> with torch.no_grad():
        ...     at = Linearization(model, torch.ones(1, 2), 0.5, {})
        ...     v = at.covariance_times(torch.ones(1, 2))  # of standard normal data it is sigma^2 I
        >>> torch.allclose(v, VP().sigma(0.5).float() ** 2)
        True
    """

    def __init__(self, model: ScoreModel, x: Tensor, t: Time, conditions: Mapping[str, Any]) -> None:
        self.keeps_graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x, time = _away_from_pure_noise(model.sde, _normal(x), _normal(model.sde.check_time(t)))
            start = x if self.keeps_graph and x.requires_grad else x.detach().requires_grad_()
            self._x = start.clone()  # a network that writes into a leaf gets an error of torch's in place of ours
            self._m = _predicted(model, self._x, time, {name: _normal(value) for name, value in conditions.items()})
            at = time.detach().to(torch.float64)
            self._sde, self._at = cast(Any, model.sde), at
            self.alpha, self.sigma = (c.to(x.device) for c in _marginal(self._sde, at))
        self.m = self._out(self._m)

    def pull(self, v: Tensor) -> Tensor:
        """Return the transposed Jacobian of the data prediction times ``v``, shape of ``x``: one backward call."""
        with torch.inference_mode(False), torch.enable_grad():
            v = _normal(v) if self.keeps_graph else _normal(v).detach()
            (found,) = torch.autograd.grad(self._m, self._x, v, retain_graph=True, create_graph=self.keeps_graph)
        return self._out(found)

    def covariance_times(self, v: Tensor) -> Tensor:
        r"""Return the covariance of the data given the state times ``v``, :math:`\sigma^2 / \alpha` times :meth:`pull`."""
        if isinstance(self._sde, MatrixSDE):
            return self._sde.to_data(self._at) * self.pull(v)
        return expand(self.sigma**2 / self.alpha, v).to(v.dtype) * self.pull(v)

    def signal_times(self, v: Tensor) -> Tensor:
        r"""Return :math:`\alpha` times :meth:`pull`, which is alpha^2 / sigma^2 times :meth:`covariance_times`."""
        if isinstance(self._sde, MatrixSDE):
            return self._sde.map(self._sde.mean_factor(self._at).mT, to_state=False) * self.pull(v)
        return expand(self.alpha, v).to(v.dtype) * self.pull(v)

    def _out(self, value: Tensor) -> Tensor:
        return value if self.keeps_graph else value.detach()


def _normal(value: Any) -> Any:
    """Return a tensor that autograd can use, also for one that was made in inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _marginal(sde: GaussianSDE | MatrixSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, with matrix coefficients those whose squares sum to 1 at the same lam."""
    if isinstance(sde, MatrixSDE):
        twice = 2 * sde.lam(t)
        return twice.sigmoid().sqrt(), (-twice).sigmoid().sqrt()
    return sde.alpha(t), sde.sigma(t)


def _away_from_pure_noise(sde: GaussianSDE | MatrixSDE, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state and the time, or the scaled state at the time where a covariance can be computed."""
    least = 0.5 * math.log(torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps)
    at = t.to(torch.float64)
    noisy = sde.lam(at) < least
    if not bool(noisy.any()):
        return x, t
    moved = torch.where(noisy, sde.time(torch.full_like(at, least)), at)
    if isinstance(sde, MatrixSDE):
        return sde.map(sde.factors(moved).root @ sde.whitening(sde.factors(at).root)) * x, moved
    return x * expand(sde.sigma(moved) / sde.sigma(at), x).to(x), moved


def _predicted(model: ScoreModel, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Return the data prediction with its graph, and refuse a network that cuts it."""
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "got a model whose parameters were made in inference mode, through which nothing can be differentiated; "
            "expected one that was made or loaded outside torch.inference_mode()"
        )
    if type(model).x0 is not ScoreModel.x0:
        m = known = model.x0(x, t, **conditions)
    else:  # the data prediction of a network has a part in x beside the output, which would hide that it is cut
        known = model(x, t, **conditions)
        of_x, of_output = (expand(c, x).to(x) for c in model.coefficients(t).x0)
        m = of_x * x + of_output * known
    if known.requires_grad:
        return m
    with torch.no_grad():
        moved = model(1.01 * x + 0.01, t, **conditions), model(x, t, **conditions)
    if not torch.equal(*moved):
        raise ValueError(
            "the model's predictions depend on x but carry no gradient, so that what a measurement says of x would be left "
            "out; expected a network without no_grad(), inference_mode() or detach() inside, or a method that needs no "
            "gradient: DDNM, DiffPIR, ddrm, daps, replacement or repaint"
        )
    return m + 0 * x
