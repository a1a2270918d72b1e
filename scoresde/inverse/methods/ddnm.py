"""The denoising diffusion null-space model (DDNM): the measured part of the data prediction is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from scoresde.inverse.conditioned import Conditioned, check_linear
from scoresde.inverse.methods.ddrm import ddrm
from scoresde.inverse.observation import Observation
from scoresde.score import ScoreModel
from scoresde.sde import Time
from scoresde.solvers import RowSolver

__all__ = ["DDNM", "ddnm_plus"]


class DDNM(Conditioned):
    r"""The null-space model: the data prediction agrees with the measurement, and its null space is the network's.

    .. math:: \hat x_0 + A^\dagger (y - A \hat x_0)

    with the Moore-Penrose inverse. The ``"ddpm"`` solver makes it the paper's sampler, and :func:`repaint`'s path its time
    travel. The measurement is taken to be without noise, so samples have y's noise in them; :func:`ddnm_plus` honours it.
    What is measured passes to the null space by the network alone, so the null space is drawn given a wrong state: samples
    are biased where the data are correlated.

    Linear operators; any noise, which is left out. A prediction costs no backward call.

    Args:
        model: the model of the data.
        observation: the measurement.

    Raises:
        ValueError: for a nonlinear operator.

    Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2022,
    https://arxiv.org/abs/2212.00490, algorithm 1.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import DDNM, Observation
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.0)
        >>> scoresde.sample(DDNM(model, seen), (2, 2), "ddpm", 20, progress=False).x[:, 0]
        tensor([1., 1.])
    """

    def __init__(self, model: ScoreModel, observation: Observation) -> None:
        super().__init__(model, observation)
        check_linear(observation, "DDNM")

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction that agrees with the measurement, shape of ``x``."""
        m, seen = self.model.x0(x, t, **conditions), self._observed(x, t)
        return m + seen.operator.pinv(seen.residual(m))


def ddnm_plus(observation: Observation, eta: float = 0.85) -> RowSolver:
    r"""DDNM+, which honours the noise of the measurement: :func:`ddrm` with eta_b = 1.

    Its data prediction :math:`m + \Lambda A^\dagger (y - A m)` and its noise are chosen for each singular value s so that
    the noise of y is a part of that of the step, which gives the updates of DDRM with eta_b = 1, number for number.

    Args:
        observation: the measurement.
        eta: the share of fresh noise, from 0 to 1.

    Raises:
        ValueError: for a nonlinear operator or one without a singular value decomposition, Poisson noise, and other values.

    Source: Wang et al., 2022, section 3.3 and appendix I.

    Example:
        >>> import torch
        >>> from scoresde.inverse.operators import Mask
        >>> ddnm_plus(Observation(Mask([True, False]), torch.tensor([1.0]), 0.1))
        <solver ddnm+>
    """
    solver = ddrm(observation, eta, eta_b=1.0)
    description = replace(solver.description, name="ddnm+", paper="Wang et al. 2022, arXiv:2212.00490")
    return replace(solver, description=description)
