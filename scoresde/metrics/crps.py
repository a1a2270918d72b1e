"""The continuous ranked probability score of forecasts, of samples and of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["crps", "gaussian_crps"]


def crps(draws: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    r"""Return the continuous ranked probability score of forecasts given by samples, for each number; smaller is better.

    .. math:: \mathrm{CRPS} = E |X - y| - \tfrac{1}{2} E |X - X'|

    for independent X, X' from the forecast. In expectation over y it is smallest for the true law, which makes it a proper
    score, and it is in the unit of y. For a forecast of one point it is the absolute error.

    Args:
        draws: samples of the forecast, shape ``(n, *event)``.
        y: what happened, shape ``event``, or any shape that broadcasts to it.
        fair: estimate the second expectation over pairs of different samples, which makes the score unbiased in their
            number. Otherwise the score is that of the empirical distribution, which is larger for fewer samples.

    Returns:
        The score of each number, shape ``event``, float64.

    Raises:
        ValueError: for values that are not finite, a ``y`` of another shape, and a single sample with ``fair=True``.

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007,
    https://doi.org/10.1198/016214506000001437; Ferro, "Fair scores for ensemble forecasts", 2014,
    https://doi.org/10.1002/qj.2270.

    Example:
        >>> crps(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0]), fair=False)  # 1/2 - 1/4
        tensor([0.2500], dtype=torch.float64)
    """
    n = len(draws) if draws.ndim else 0
    try:
        fits = n > 0 and y.expand(draws.shape[1:]).ndim >= 0
    except RuntimeError:
        fits = False
    if not fits or not bool(torch.isfinite(draws).all() and torch.isfinite(y).all()):
        raise ValueError(
            f"got samples of shape {tuple(draws.shape)} for y of shape {tuple(y.shape)}; expected finite numbers, samples "
            "of shape (n, *event) and y of shape event"
        )
    if fair and n < 2:
        raise ValueError("got one sample for a fair score; expected at least two, or fair=False for its absolute error")
    x, y = draws.double().sort(0).values, y.double()
    weight = 2 * torch.arange(n, dtype=torch.float64, device=x.device) - (n - 1)  # of the i-th smallest, in all pairs
    spread = torch.einsum("i,i...->...", weight, x - x.mean(0)) / (n * (n - 1 if fair else n))
    return (x - y).abs().mean(0) - spread


def gaussian_crps(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    r"""Return the continuous ranked probability score of Gaussian forecasts, in closed form.

    .. math:: s \Big( z (2 \Phi(z) - 1) + 2 \varphi(z) - \frac{1}{\sqrt{\pi}} \Big), \qquad z = \frac{y - \mu}{s} ,

    whose expectation is :math:`s / \sqrt{\pi}` if y has the law of the forecast.

    Args:
        mean, std, y: shapes that broadcast; standard deviations are positive.

    Returns:
        The score of each number, float64.

    Raises:
        ValueError: for standard deviations that are not positive.

    Source: Gneiting et al., "Calibrated Probabilistic Forecasting Using Ensemble Model Output Statistics and Minimum CRPS
    Estimation", 2005, https://doi.org/10.1175/MWR2904.1, equation (5).

    Example:
        >>> round(gaussian_crps(torch.zeros(1), torch.ones(1), torch.zeros(1)).item(), 6)  # (sqrt(2) - 1) / sqrt(pi)
        0.233695
    """
    mean, std, y = (torch.as_tensor(v).double() for v in (mean, std, y))
    if not bool((std > 0).all()):
        raise ValueError(f"got a standard deviation of {float(std.min())}; expected positive numbers")
    z = (y - mean) / std
    density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
    return std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
