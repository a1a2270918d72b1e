r"""Score models: a network, what it predicts, and the conversions between all that it could have predicted.

With :math:`x = \alpha x_0 + \sigma \epsilon`, a prediction of any one of

==========  ==================================================  ===========================================
predicts    the network's output                                source
==========  ==================================================  ===========================================
eps         the noise :math:`\epsilon`                          Ho et al., 2020
x0          the data :math:`x_0`                                Vincent, 2011; Ho et al., 2020
v           :math:`\alpha \epsilon - \sigma x_0`                Salimans and Ho, 2022
velocity    :math:`\epsilon - x_0`                              Lipman et al., 2022; Liu et al., 2022
score       :math:`\nabla \log p_t(x) = -\epsilon / \sigma`     Song and Ermon, 2019
edm         F of the preconditioned denoiser, eq. (7)           Karras et al., 2022
==========  ==================================================  ===========================================

determines the others. Each conversion is linear in ``x`` and the output, with the coefficients written in the form that
does not cancel, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.names import near
from scoresde.base.shape import check_batch, expand
from scoresde.sde import GaussianSDE, Time
from scoresde.sde.chain import Chain

__all__ = ["PREDICTIONS", "Coefficients", "ScoreModel"]


@dataclass(frozen=True)
class Coefficients:
    """x0 = ``x0[0]`` x + ``x0[1]`` n and eps = ``eps[0]`` x + ``eps[1]`` n for an output n of the network at ``c_in`` x."""

    x0: tuple[Tensor, Tensor]
    eps: tuple[Tensor, Tensor]
    c_in: Tensor | None = None


def _of_eps(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((1 / a, -s / a), (torch.zeros_like(a), torch.ones_like(a)))


def _of_x0(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((torch.zeros_like(a), torch.ones_like(a)), (1 / s, -a / s))


def _of_v(a: Tensor, s: Tensor, d: float) -> Coefficients:
    r = a**2 + s**2
    return Coefficients((a / r, -s / r), (s / r, a / r))


def _of_velocity(a: Tensor, s: Tensor, d: float) -> Coefficients:
    r = a + s
    return Coefficients((1 / r, -s / r), (1 / r, a / r))


def _of_score(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((1 / a, s**2 / a), (torch.zeros_like(a), -s))


def _of_edm(a: Tensor, s: Tensor, d: float) -> Coefficients:
    # D = c_skip x / a + c_out F(c_in x / a) with rho = s / a, multiplied out so that a = 0 and s = 0 are both finite.
    r = torch.hypot(a * d, s)
    return Coefficients((d**2 * a / r**2, s * d / r), (s / r**2, -a * d / r), c_in=1 / r)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], Coefficients]] = {
    "eps": _of_eps,
    "x0": _of_x0,
    "v": _of_v,
    "velocity": _of_velocity,
    "score": _of_score,
    "edm": _of_edm,
}
"""What a network may predict: name -> coefficients of (alpha, sigma, sigma_data)."""


class ScoreModel(nn.Module):
    r"""An estimate of the score of the noised data, whatever its network predicts.

    Args:
        net: ``net(x, t, **conditions) -> (batch, *event)``, with ``t`` of shape ``(batch,)``.
        sde: the forward SDE, or a chain, whose network is then addressed by its step: ``chain.index(t)`` = 0..n-1.
        predicts: a key of :data:`PREDICTIONS`.
        sigma_data: standard deviation of the data, for ``"edm"``.
        learned_variance: the network returns twice the channels (dimension 1 of x): after the prediction, what tells where
            the logarithm of the reverse variance lies between its bounds, -1 at the lower and 1 at the upper one. Only
            the ancestral solvers with ``variance="learned"`` and the variational bound use it. Source: Nichol and
            Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672.
        time: what the network gets for ``t``: a function of it, by default ``t`` itself, the index for a chain, and
            :math:`c_{noise} = \tfrac14 \log(\sigma / \alpha)` for ``"edm"`` (limited to 10, where alpha = 0).

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None], VP())  # right for standard normal data
        >>> x = torch.ones(2, 3)
        >>> bool(torch.allclose(model.score(x, 0.3), -x))
        True
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE | Chain,
        predicts: str = "eps",
        *,
        sigma_data: float = 0.5,
        learned_variance: bool = False,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if predicts not in PREDICTIONS:
            hint = near(predicts, PREDICTIONS)
            raise ValueError(f"got predicts={predicts!r}; expected one of {', '.join(PREDICTIONS)}{hint}")
        if not isinstance(sde, GaussianSDE | Chain):
            raise TypeError(
                f"got {type(sde).__name__} for the SDE of a score model; expected an SDE with Gaussian marginals or a chain"
            )
        if not sigma_data > 0:
            raise ValueError(f"got sigma_data={sigma_data}; expected a positive number")
        self.net = net
        self.sde = sde.sde() if isinstance(sde, Chain) else sde
        self.sde.check_schedule()
        self.predicts = predicts
        self.sigma_data = sigma_data
        self.learned_variance = learned_variance
        self._time = time or (sde.index if isinstance(sde, Chain) else self._default_time)

    def _default_time(self, t: Tensor) -> Tensor:
        return (-self.sde.lam(t) / 4).clamp(max=10.0) if self.predicts == "edm" else t

    def coefficients(self, t: Time) -> Coefficients:
        """The conversion at the times ``t``, in float64, shapes of ``t``."""
        t = self.sde.check_time(t).to(torch.float64)
        return PREDICTIONS[self.predicts](self.sde.alpha(t), self.sde.sigma(t), self.sigma_data)

    def _native(self, x: Tensor, t: Tensor, c_in: Tensor | None, conditions: dict[str, Any]) -> Tensor:
        return self._outputs(x, t, c_in, conditions)[0]

    def _outputs(
        self, x: Tensor, t: Tensor, c_in: Tensor | None, conditions: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        check_batch(x)
        expand(t, x)  # a clear error for a wrong shape, before the network sees it
        net_t = self._time(t.to(torch.float64)).to(device=x.device, dtype=x.dtype).expand(x.shape[0])
        output = self.net(x if c_in is None else expand(c_in, x).to(x) * x, net_t, **conditions)
        if self.learned_variance:
            return _halves(output, x)
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for x of shape {tuple(x.shape)}; expected the same"
            )
        return output, None

    def forward(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """The network's own output at ``x`` and ``t``, whatever it predicts; shape of ``x``."""
        t = self.sde.check_time(t)
        return self._native(x, t, self.coefficients(t).c_in, conditions)

    def outputs(self, x: Tensor, t: Time, **conditions: Any) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, and the fraction f of the learned variance, both of the shape of ``x``.

        The logarithm of the reverse variance is (1 - f) times that of the lower bound plus f times that of the upper one.

        Raises:
            ValueError: for a model without a learned variance.
        """
        t = self.sde.check_time(t)
        output, fraction = self._outputs(x, t, self.coefficients(t).c_in, conditions)
        return output, self._learned(fraction)

    def _learned(self, fraction: Tensor | None) -> Tensor:
        if fraction is None:
            raise ValueError(
                "got a model without a learned variance; expected ScoreModel(net, sde, learned_variance=True), whose "
                "network returns twice the channels, or a fixed variance: 'lower' or 'upper'"
            )
        return fraction

    def _combine(self, pair: tuple[Tensor, Tensor], x: Tensor, output: Tensor) -> Tensor:
        of_x, of_output = (expand(c, x).to(x) for c in pair)
        return of_x * x + of_output * output

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """The data prediction E[x_0 | x_t = x], shape of ``x``."""
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        return self._combine(c.x0, x, self._native(x, t, c.c_in, conditions))

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """The noise prediction E[eps | x_t = x] = -sigma score, shape of ``x``."""
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        return self._combine(c.eps, x, self._native(x, t, c.c_in, conditions))

    def score(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """The score of the noised data, -eps / sigma, shape of ``x``."""
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        sigma = self.sde.sigma(t.to(torch.float64))
        pair = (-c.eps[0] / sigma, -c.eps[1] / sigma)
        return self._combine(pair, x, self._native(x, t, c.c_in, conditions))

    def v(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """alpha eps - sigma x0, shape of ``x``."""
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        alpha, sigma = self.sde.alpha(t.to(torch.float64)), self.sde.sigma(t.to(torch.float64))
        pair = (alpha * c.eps[0] - sigma * c.x0[0], alpha * c.eps[1] - sigma * c.x0[1])
        return self._combine(pair, x, self._native(x, t, c.c_in, conditions))

    def at(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """The data prediction at each of ``times`` as a function of ``x`` alone, with all host work done here.

        The coefficients are Python numbers and the network's times lie on ``device``, so that a call launches the
        network and one fused update, and nothing waits for the device.
        """
        networks, (of_x, of_output) = self._bound(times, device, dtype, conditions)

        def bind(net: Callable[[Tensor], Tensor], a: float, b: float) -> Callable[[Tensor], Tensor]:
            def x0(x: Tensor) -> Tensor:
                output = _halves(net(x), x)[0] if self.learned_variance else net(x)
                return output if a == 0 and b == 1 else torch.add(b * output, x, alpha=a)

            return x0

        return [bind(*each) for each in zip(networks, of_x, of_output, strict=True)]

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """:meth:`at`, with the fraction of the learned variance beside each data prediction; see :meth:`outputs`."""
        if not self.learned_variance:
            self._learned(None)
        networks, (of_x, of_output) = self._bound(times, device, dtype, conditions)

        def bind(net: Callable[[Tensor], Tensor], a: float, b: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            def both(x: Tensor) -> tuple[Tensor, Tensor]:
                output, fraction = _halves(net(x), x)
                return torch.add(b * output, x, alpha=a), fraction

            return both

        return [bind(*each) for each in zip(networks, of_x, of_output, strict=True)]

    def _bound(
        self, times: Tensor, device: torch.device, dtype: torch.dtype, conditions: dict[str, Any]
    ) -> tuple[list[Callable[[Tensor], Tensor]], tuple[list[float], list[float]]]:
        """The network at each of ``times``, and the coefficients of the data prediction as Python numbers."""
        times = times.to(device="cpu", dtype=torch.float64)
        c = self.coefficients(times)
        net_times = self._time(times).to(device=device, dtype=dtype)
        c_in = [None] * len(times) if c.c_in is None else c.c_in.tolist()

        def bind(t: Tensor, scale: float | None) -> Callable[[Tensor], Tensor]:
            return lambda x: self.net(x if scale is None else scale * x, t.expand(x.shape[0]), **conditions)

        return [bind(t, scale) for t, scale in zip(net_times, c_in, strict=True)], (c.x0[0].tolist(), c.x0[1].tolist())

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.net.parameters()) if isinstance(self.net, nn.Module) else 0
        net = type(self.net).__name__ + f" of {parameters:,} parameters" * bool(parameters)
        learned = ", learned_variance=True" * self.learned_variance
        return f"{type(self).__name__}({net}, sde={self.sde!r}, predicts={self.predicts!r}{learned})"

    def _repr_markdown_(self) -> str:
        return f"`{self!r}`"


def _halves(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction, and the second output from [-1, 1] to [0, 1], as the authors scale it."""
    if output.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        raise ValueError(
            f"the network returned shape {tuple(output.shape)} for x of shape {tuple(x.shape)}; a learned variance needs "
            f"twice the channels, {(x.shape[0], 2 * x.shape[1], *x.shape[2:])}"
        )
    prediction, second = output.chunk(2, dim=1)
    return prediction, 0.5 * (second + 1)
