"""The result of a likelihood along the flow, with its errors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Likelihood"]


class Likelihood(NamedTuple):
    """The result of :func:`log_likelihood`. All but ``latent`` have the shape ``(batch,)`` and are float64.

    Args:
        log_prob: the log-density in nats.
        latent: the end of the flow at ``t_max``, shape of the states: that of the data or, on an SDE with several variables,
            ``(batch, b, *event)``, the end of the first draw.
        evaluations: the number of network calls, each with the divergence at the same point.
        discretization: the error of ``log_prob`` from the steps, in nats: twice the sum of the errors of all steps.
        probe_error: the standard error of ``log_prob`` from the random probes: zero with the exact divergence, NaN
            (unknown) with a single estimate.
        mismatch: the log-density of the noised data at the latent minus the log-density of the prior there. Where the
            moments of the data are known, it is computed from them and is part of ``log_prob``. Otherwise it is estimated
            from the predictions of the model at ``t_max``, and is not part of ``log_prob``.
        estimates: the number of independent estimates: of the divergence or, on an SDE with several variables, draws of the
            others.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> found = Likelihood(zero - 2.5, torch.zeros(1, 2), 60, zero + 0.01, zero + 0.02, zero, estimates=1)
        >>> found.error  # of the steps and of the probes
        tensor([0.0300])
    """

    log_prob: Tensor
    latent: Tensor
    evaluations: int
    discretization: Tensor
    probe_error: Tensor
    mismatch: Tensor
    estimates: int

    @property
    def error(self) -> Tensor:
        """The half width of an interval for ``log_prob`` at 95 %: the steps' error, and Student's interval of the probes.

        It contains neither the error of the model nor the mismatch of the prior.
        """
        if self.estimates == 1:
            return self.discretization + self.probe_error
        from scipy import stats

        return self.discretization + float(stats.t.ppf(0.975, self.estimates - 1)) * self.probe_error
