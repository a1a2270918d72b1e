"""The gradient of the likelihood of a measurement with respect to the state that was measured."""

from __future__ import annotations

from torch import Tensor

from scoresde.inverse.observation import Observation

__all__ = ["likelihood_gradient"]


def likelihood_gradient(observation: Observation, x0: Tensor) -> Tensor:
    r"""Return :math:`\nabla_{x_0} \log p(y \mid x_0)`, shape of ``x0``, whatever the mode of autograd.

    With Gaussian noise it is :math:`J^T (y - A(x_0)) / \sigma^2`, with J the Jacobian of A. With Poisson noise of gain g and
    background b it is :math:`g\, J^T (y - A(x_0)) / (A(x_0) + b)`; an intensity below that of one count is taken to be one.

    Args:
        observation: the measurement, with noise.
        x0: states, ``(batch, *event)``.

    Example:
        >>> import torch
        >>> from scoresde.inverse import Observation
        >>> from scoresde.inverse.operators import Mask
        >>> likelihood_gradient(Observation(Mask([True, False]), torch.tensor([1.0]), 0.5), torch.zeros(1, 2))
        tensor([[4., 0.]])
    """
    operator = observation.operator
    of = operator(x0)
    residual = observation.for_batch(len(x0), of) - of
    if observation.noise == "poisson":
        residual = observation.gain * residual / (of + observation.background).clamp(min=1 / observation.gain)
    else:
        residual = residual / observation.sigma**2
    return operator.vjp(x0, residual)
