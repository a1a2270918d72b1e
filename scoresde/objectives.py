r"""Denoising score matching: a weighting, a distribution of times, and nothing else.

With :math:`x_t = \alpha x_0 + \sigma \epsilon` every objective here is

.. math:: L = E_{t \sim p}\, E\; w(t)\, \tfrac1d \lVert \hat\epsilon(x_t, t) - \epsilon \rVert^2,

and the published ones differ by w and p (with :math:`\hat\sigma = \sigma / \alpha`, and :math:`\sigma_d` the
deviation of the data; the score is :math:`-\epsilon / \sigma`, and an error of x_0 is :math:`-\hat\sigma` times one of
eps):

===========  ==========================================  ===================================================
weighting    in its source                               w, in terms of eps
===========  ==========================================  ===================================================
ncsn         :math:`\sigma^2` on the score               1
ddpm         1 on eps ("simple")                         1
likelihood   :math:`g^2` on the score                    :math:`g^2 / \sigma^2 = -2\, d\lambda/dt`
edm          :math:`(\hat\sigma^2 + \sigma_d^2) /        :math:`(\hat\sigma^2 + \sigma_d^2) / \sigma_d^2`
             (\hat\sigma \sigma_d)^2` on x_0
===========  ==========================================  ===================================================

The error is measured where the network speaks: eps and x_0 are linear in its output n, so that an error of eps is
:math:`D (n - n^*)` with n* the output that would give the true eps, and the loss :math:`(w D^2)(n - n^*)^2`: no large
terms are subtracted, whatever the network predicts.

Sources: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011; Song and Ermon, 2019,
https://arxiv.org/abs/1907.05600; Ho et al., 2020, https://arxiv.org/abs/2006.11239; Song et al., "Maximum Likelihood
Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258; Karras et al., 2022,
https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from scoresde._shape import check_batch, expand
from scoresde.chain import ChainSDE
from scoresde.score import ScoreModel
from scoresde.sde import AffineSDE

__all__ = [
    "DSM",
    "OBJECTIVES",
    "TIMES",
    "WEIGHTINGS",
    "AutoTimes",
    "LikelihoodTimes",
    "LogNormalTimes",
    "StepTimes",
    "Times",
    "UniformTimes",
    "Weighting",
    "noised",
    "objective",
    "target",
]

T = TypeVar("T")


def _named(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"got {what} {name!r}; expected one of {', '.join(table)}{hint}")
    return table[name]


# Weightings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighting:
    """A weight on the squared error of one quantity.

    It is given on the quantity, eps or x_0, for which it stays finite at the ends of time.

    Args:
        name: what it is called.
        on: ``"eps"`` or ``"x0"``.
        function: ``function(sde, t, sigma_data)``, float64, shape of ``t``.
    """

    name: str
    on: Literal["eps", "x0"]
    function: Callable[[AffineSDE, Tensor, float], Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if self.on not in ("eps", "x0"):
            raise ValueError(f"got a weighting on {self.on!r}; expected 'eps' or 'x0'")


def _one(sde: AffineSDE, t: Tensor, sigma_data: float) -> Tensor:
    return torch.ones_like(t)


def _likelihood(sde: AffineSDE, t: Tensor, sigma_data: float) -> Tensor:
    return sde.diffusion_squared(t) * (-2 * sde.log_sigma(t)).exp()


def _edm(sde: AffineSDE, t: Tensor, sigma_data: float) -> Tensor:
    # (s^2 + d^2) / (s d)^2 = 1 / d^2 + 1 / s^2 with s = sigma / alpha, which is infinite, harmlessly, for alpha = 0.
    return sigma_data**-2 + (2 * sde.lam(t)).exp()


WEIGHTINGS: dict[str, Weighting] = {
    "ncsn": Weighting("ncsn", "eps", _one),
    "ddpm": Weighting("ddpm", "eps", _one),
    "likelihood": Weighting("likelihood", "eps", _likelihood),
    "edm": Weighting("edm", "x0", _edm),
}
"""The published weightings by name."""


# Distributions of times ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times(ABC):
    """Interface of a distribution of times: a map from the uniform distribution on [0, 1).

    That map being explicit, times can be stratified, binned by their quantiles, and integrated over exactly.
    """

    @abstractmethod
    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        """The times at the quantiles ``u``, float64, and the weight that each carries in the mean; shapes of ``u``."""

    def sample(
        self, n: int, sde: AffineSDE, *, generator: torch.Generator, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` times and their weights, each of shape ``(n,)``, on the generator's device.

        Stratified times share one random offset, u_i = (u + i / n) mod 1: each has the right distribution by itself,
        so nothing is biased, and together they cover it evenly (Kingma et al., 2021, appendix I.1).
        """
        size = 1 if stratified else n
        u = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
        if stratified:
            u = (u + torch.arange(n, device=u.device) / n) % 1.0
        return self.at(u, sde)


@dataclass(frozen=True)
class UniformTimes(Times):
    """Uniform from ``t_min`` to ``t_max``, weight 1."""

    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        return torch.lerp(torch.full_like(u, low), torch.full_like(u, high), u), torch.ones_like(u)


@dataclass(frozen=True)
class StepTimes(Times):
    """The steps of a chain, t = k / n for k = 1..n with equal probability, weight 1.

    Raises:
        ValueError: if the model is not made of a chain.
    """

    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        if not isinstance(sde, ChainSDE):
            raise ValueError(
                f"got discrete times for a model of {type(sde).__name__}; they belong to a chain: build the model with "
                "sde.discretize(n), or take times='uniform'"
            )
        n = len(sde.chain)
        return ((u * n).floor().clamp(max=n - 1) + 1) / n, torch.ones_like(u)


@dataclass(frozen=True)
class AutoTimes(Times):
    """The steps of the chain for a model made of one, uniform for any other."""

    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        times: Times = StepTimes() if isinstance(sde, ChainSDE) else UniformTimes()
        return times.at(u, sde)


@dataclass(frozen=True)
class LikelihoodTimes(Times):
    r"""Importance sampling for the likelihood weighting: density proportional to :math:`g^2 / \sigma^2`.

    That is :math:`-2\,d\lambda/dt`: uniform in lam. The weight is the density of the uniform distribution on the span
    over this one,

    .. math:: \frac{1}{(t_{max} - t_{min})\, p(t)} = \frac{\lambda(t_{min}) - \lambda(t_{max})}
              {(t_{max} - t_{min})\, |d\lambda/dt|},

    so that the mean of weight times anything is the mean of that over uniform times, and the likelihood weighting
    becomes a constant. Source: Song et al., "Maximum Likelihood Training", 2021, section 5.

    Raises:
        ValueError: if lam is not finite at both ends of time.
    """

    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        ends = sde.lam(torch.tensor([low, high], dtype=torch.float64))
        top, bottom = ends.tolist()
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"got half log signal-to-noise ratios from {top:.4g} to {bottom:.4g} over {type(sde).__name__}'s "
                "times; times uniform in them need finite ends: take a smaller t_max (0.999), or a positive t_min"
            )
        t = sde.time(torch.lerp(torch.full_like(u, top), torch.full_like(u, bottom), u)).clamp(low, high)
        return t, 2 * (top - bottom) / (high - low) / _likelihood(sde, t, 1.0)


@dataclass(frozen=True)
class LogNormalTimes(Times):
    r"""EDM's distribution, :math:`\log(\sigma / \alpha) \sim N(P_{mean}, P_{std}^2)`, limited to the span; weight 1.

    The distribution is a part of EDM's objective, so it is not corrected for.

    Args:
        mean, std: P_mean and P_std, for data of deviation 0.5.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"got std={self.std}; expected a positive number")

    def at(self, u: Tensor, sde: AffineSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        top, bottom = sde.lam(torch.tensor([low, high], dtype=torch.float64)).tolist()
        lam = -(self.mean + self.std * torch.special.ndtri(u)).clamp(-top, -bottom)
        return sde.time(lam).clamp(low, high), torch.ones_like(u)


TIMES: dict[str, Times] = {
    "auto": AutoTimes(),
    "uniform": UniformTimes(),
    "steps": StepTimes(),
    "likelihood": LikelihoodTimes(),
    "lognormal": LogNormalTimes(),
}
"""The distributions of times by name."""


# The loss ------------------------------------------------------------------------------------------------------------


def noised(sde: AffineSDE, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps, with float64 coefficients and in the type of the data."""
    t = t.to(torch.float64)
    return expand(sde.alpha(t), x0).to(x0) * x0 + expand(sde.sigma(t), x0).to(x0) * eps


def target(predicts: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    r"""The output with which a network that predicts ``predicts`` would be right about ``x0`` and ``eps``.

    For EDM's F it is :math:`(\sigma x_0 / \sigma_d - \alpha \sigma_d\, \epsilon) / r` with
    :math:`r^2 = \sigma^2 + \alpha^2 \sigma_d^2`.

    Args:
        predicts: a key of :data:`scoresde.score.PREDICTIONS`.
        x0, eps: data and noise, shape ``(batch, *event)``.
        alpha, sigma: float64, shape ``(batch,)``.
        sigma_data: standard deviation of the data.

    Example:
        >>> one, alpha, sigma = torch.ones(1, 1), torch.tensor([0.8]), torch.tensor([0.6])
        >>> round(target("v", one, one, alpha, sigma, 0.5).item(), 6)
        0.2
    """
    one, zero, r = torch.ones_like(alpha), torch.zeros_like(alpha), torch.hypot(alpha * sigma_data, sigma)
    of_x0, of_eps = {
        "eps": (zero, one),
        "x0": (one, zero),
        "v": (-sigma, alpha),
        "velocity": (-one, one),
        "score": (zero, -1 / sigma),
        "edm": (sigma / (sigma_data * r), -alpha * sigma_data / r),
    }[predicts]
    return expand(of_x0, x0).to(x0) * x0 + expand(of_eps, x0).to(x0) * eps


@dataclass(frozen=True)
class DSM:
    """Denoising score matching with a weighting and a distribution of times.

    Args:
        weighting: a name in :data:`WEIGHTINGS` or any :class:`Weighting`.
        times: a name in :data:`TIMES` or any :class:`Times`.
        stratified: spread the times of a batch evenly; see :meth:`Times.sample`.

    Example:
        >>> from scoresde import VP, ScoreModel
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP())  # exact for standard normal data
        >>> generator = torch.Generator().manual_seed(0)
        >>> x0 = torch.randn(4096, 2, generator=generator)
        >>> loss, t = DSM("ddpm", "uniform")(model, x0, generator)
        >>> floor = (VP().alpha(t) ** 2).mean()  # what no model can do better than
        >>> abs(loss.mean() - floor).item() < 0.02
        True
    """

    weighting: str | Weighting = "ddpm"
    times: str | Times = "auto"
    stratified: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.weighting, str):
            _named(WEIGHTINGS, self.weighting, "weighting")
        if isinstance(self.times, str):
            _named(TIMES, self.times, "times")

    @property
    def weight(self) -> Weighting:
        """The weighting itself."""
        return WEIGHTINGS[self.weighting] if isinstance(self.weighting, str) else self.weighting

    @property
    def distribution(self) -> Times:
        """The distribution of times itself."""
        return TIMES[self.times] if isinstance(self.times, str) else self.times

    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, **conditions: Any
    ) -> tuple[Tensor, Tensor]:
        """The loss of each sample of a batch at a random time and noise, and the times, both of shape ``(batch,)``.

        Args:
            model: the score model.
            x0: data of shape ``(batch, *event)``.
            generator: where all randomness comes from.
            conditions: given to the network.
        """
        check_batch(x0)
        t, importance = self.distribution.sample(len(x0), model.sde, generator=generator, stratified=self.stratified)
        eps = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
        loss = self.at(model, x0, t.to(x0.device), eps, **conditions)
        return importance.to(loss) * loss, t.to(x0.device)

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """The weighted squared error at given times and noise, averaged over an event, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and standard normal noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            conditions: given to the network.
        """
        t = t.to(torch.float64)
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        error = model(noised(model.sde, x0, t, eps), t, **conditions) - target(
            model.predicts, x0, eps, alpha, sigma, model.sigma_data
        )
        coefficients = model.coefficients(t)
        of_output = (coefficients.eps if self.weight.on == "eps" else coefficients.x0)[1]
        weight = self.weight.function(model.sde, t, model.sigma_data) * of_output**2
        mean: Tensor = (error**2).flatten(1).mean(1)
        return weight.to(error) * mean


OBJECTIVES: dict[str, DSM] = {
    "ncsn": DSM("ncsn", "auto"),
    "ddpm": DSM("ddpm", "auto"),
    "likelihood": DSM("likelihood", "likelihood"),
    "edm": DSM("edm", "lognormal"),
}
"""The published objectives: NCSN's and DDPM's (equal in terms of eps), maximum likelihood, and EDM's."""


def objective(name: str | DSM) -> DSM:
    """The objective called ``name``, or ``name`` itself where it is one already.

    Example:
        >>> objective("edm")
        DSM(weighting='edm', times='lognormal', stratified=True)
    """
    return _named(OBJECTIVES, name, "objective") if isinstance(name, str) else name
