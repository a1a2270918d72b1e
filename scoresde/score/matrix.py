r"""Score models of networks on SDEs with matrix coefficients.

The score of the state is determined by the prediction of the data alone, :math:`-\Sigma^{-1} (z - \psi\, E[x_0 \mid z])`,
so the network has as many outputs as the data have numbers, however many variables the state has. That prediction depends on
the state through one observation of the data alone,

.. math:: y = \frac{c^T L^{-1} z}{|c|^2} \sim N(x_0, |c|^{-2} I), \qquad c = L^{-1} \psi .

A network with EDM's preconditioning gets this observation. It has the same task as under a scalar SDE at the same lam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import check_batch, expand
from scoresde.score.model import ScoreModel
from scoresde.score.output import evaluate_bound, unwrapped
from scoresde.sde import MatrixSDE, ModalMap, Time

__all__ = ["MatrixModel"]

KINDS = ("eps", "x0", "edm")


class MatrixModel(ScoreModel):
    r"""The score model of a network on an SDE with matrix coefficients.

    The output n gives the data prediction as follows, with the whitened state :math:`\zeta = L^{-1} z` and
    :math:`c = L^{-1} \psi`:

    =========  ==========================================================================================================
    predicts   data prediction
    =========  ==========================================================================================================
    ``"eps"``  :math:`(\zeta_b - n) / c_b`; n is the noise of the last variable, as in critically damped Langevin diffusion
    ``"x0"``   n
    ``"edm"``  :math:`(\sigma_d^2 |c|^2\, y + \sigma_d \sqrt{s}\, n) / s` with :math:`s = 1 + \sigma_d^2 |c|^2`: the best
               linear prediction for data of variance :math:`\sigma_d^2`, and an output of variance about one. The network
               gets the observation y scaled to variance one, and the time :math:`-\lambda / 4`
    =========  ==========================================================================================================

    Args:
        net: ``net(z, t, **conditions)``, which returns the shape of the data. With ``"edm"`` it gets that shape too, with
            the others all variables side by side in dimension 1: ``(batch, b * d)`` for vectors, and
            ``(batch, b * channels, height, width)`` for images.
        sde: the SDE.
        predicts: ``"eps"``, ``"x0"`` or ``"edm"``.
        sigma_data: standard deviation of the data, for ``"edm"``.
        time: a function that maps ``t`` to the time input of the network.

    Raises:
        TypeError: for an SDE without matrix coefficients.
        ValueError: for another prediction.

    Example:
        >>> from scoresde.models import MLP
        >>> from scoresde.sde import CLD
        >>> model = MatrixModel(MLP(2), CLD())
        >>> model.x0(torch.randn(8, 2, 2), 0.5).shape, model.score(torch.randn(8, 2, 2), 0.5).shape
        (torch.Size([8, 2]), torch.Size([8, 2, 2]))
    """

    def __init__(
        self,
        net: Callable[..., Any] | None,
        sde: MatrixSDE,
        predicts: str = "edm",
        *,
        sigma_data: float = 0.5,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(sde, MatrixSDE):
            raise TypeError(
                f"got {type(sde).__name__} for the SDE of a MatrixModel; expected one with matrix coefficients, such as "
                "CLD(): for others ScoreModel(net, sde)"
            )
        if predicts not in KINDS:
            raise ValueError(f"got predicts={predicts!r} on {type(sde).__name__}; expected 'eps', 'x0' or 'edm'")
        super().__init__(net, sde, "score", sigma_data=sigma_data, time=time)
        self.predicts = predicts

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction E[x_0 | z_t = x], shape of the data."""
        t = self._sde.check_time(t)
        n = self._output(x, t, conditions)
        if self.predicts == "x0":
            return n
        of_state, of_output = self._factors(t)
        return of_state * x + of_output * n

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the prediction of the noise of the last variable, shape of the data."""
        if self.predicts == "eps":
            return self._output(x, self._sde.check_time(t), conditions)
        return super().eps(x, t, **conditions)

    def forward(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the output of the network at the states ``x``, shape of the data."""
        return self._output(x, self._sde.check_time(t), conditions)

    @property
    def _sde(self) -> MatrixSDE:
        sde: Any = self.sde
        matrix: MatrixSDE = sde
        return matrix

    def _factors(self, t: Tensor) -> tuple[ModalMap, ModalMap]:
        """Return the factors of the state and of the output in the data prediction."""
        sde = self._sde
        f = sde.factors(t)
        whitening = sde.whitening(f.root)
        if self.predicts == "eps":
            signal = f.signal[..., -1:, :]
            of_state, of_output = whitening[..., -1:, :] / signal, -1 / signal
        else:
            variance = self.sigma_data**2
            known = 1 + variance * f.signal.square().sum(-2, keepdim=True)
            of_state, of_output = variance * f.signal.mT @ whitening / known, self.sigma_data / known.sqrt()
        return sde.map(of_state, to_state=False), sde.map(of_output, of_state=False, to_state=False)

    def _output(self, z: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
        sde = self._sde
        shape = sde.data_shape(check_batch(z).shape)
        if sde.state_shape(shape) != z.shape or len(shape) < 2:
            raise ValueError(
                f"got a state of shape {tuple(z.shape)} on {type(sde).__name__}; expected "
                f"(batch, {sde.variables}, *event), one entry of dimension 1 for each variable"
            )
        expand(t, z)
        given = z
        if self.predicts == "edm":
            f = sde.factors(t)
            snr = f.signal.square().sum(-2, keepdim=True)
            pooled = f.signal.mT @ sde.whitening(f.root) / (snr * (1 + self.sigma_data**2 * snr)).sqrt()
            given = sde.map(pooled, to_state=False) * z
        elif sde.variables > 1:
            given = given.flatten(1, 2)
        times = self._time(t).to(device=z.device, dtype=torch.promote_types(z.dtype, torch.float32)).expand(z.shape[0])
        return evaluate_bound(self.net, given, times, unwrapped(conditions), False, shape)

    def _default_time(self, t: Tensor) -> Tensor:
        return -self._sde.lam(t) / 4 if self.predicts == "edm" else t
