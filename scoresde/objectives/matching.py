r"""Objectives: a loss at given data, time and noise, averaged over a distribution of times.

Denoising score matching is, with :math:`x_t = \alpha x_0 + \sigma \epsilon`,

.. math:: L = E_{t \sim p}\, E\; w(t)\, \tfrac1d \lVert \hat\epsilon(x_t, t) - \epsilon \rVert^2,

and the published objectives differ by w and p. The error is measured where the network speaks: eps and x_0 are linear in
its output n, so that an error of eps is :math:`D (n - n^*)` with n* the output that would give the true eps, and the loss
:math:`(w D^2)(n - n^*)^2`: no large terms are subtracted, whatever the network predicts.

Source: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.names import Table
from scoresde.base.shape import check_batch, expand
from scoresde.objectives.times import TIMES, Times, quantiles
from scoresde.objectives.weightings import WEIGHTINGS, Weighting
from scoresde.score import ScoreModel, target
from scoresde.sde import GaussianSDE

__all__ = ["DSM", "NOISES", "OBJECTIVES", "Around", "Objective", "Weighted", "noised", "objective"]


def noised(sde: GaussianSDE, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps, with float64 coefficients and in the type of the data."""
    t = t.to(torch.float64)
    return expand(sde.alpha(t), x0).to(x0) * x0 + expand(sde.sigma(t), x0).to(x0) * eps


@dataclass(frozen=True)
class Objective(ABC):
    """Interface of an objective: what training calls."""

    @property
    @abstractmethod
    def weight(self) -> Weighting:
        """The weighting in which an error of the score is measured."""

    @property
    @abstractmethod
    def distribution(self) -> Times:
        """The distribution of times."""

    @property
    def spread(self) -> bool:
        """Whether the times of a batch are stratified; see :func:`quantiles`."""
        return True

    @property
    def companion(self) -> nn.Module:
        """What is trained along with the network; of most objectives, nothing: a module without parameters."""
        return nn.Module()

    @abstractmethod
    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """The loss at given times and noise, averaged over an event, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and standard normal noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            conditions: given to the network.
        """

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What :meth:`at` takes that is random beside times and noise."""
        return {}

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
        u = quantiles(len(x0), generator, self.spread)
        t, importance = self.distribution.at(u, model.sde)
        eps = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
        loss = self.at(model, x0, t.to(x0.device), eps, **self.draws(x0, generator), **conditions)
        self.distribution.observe(u, loss)
        return importance.to(loss) * loss, t.to(x0.device)


def times_of(times: str | Times) -> Times:
    """The distribution called ``times``, or ``times`` itself."""
    return TIMES[times] if isinstance(times, str) else times


NOISES = ("fresh", "antithetic", "control")
"""How denoising score matching uses its noise: see :class:`DSM`."""


@dataclass(frozen=True)
class Weighted(Objective):
    """Interface of the objectives that are a weighting and a distribution of times."""

    weighting: str | Weighting = "ddpm"
    times: str | Times = "auto"
    stratified: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.weighting, str):  # kept as the table spells it, so that one objective has one description
            object.__setattr__(self, "weighting", WEIGHTINGS.name(self.weighting))
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))

    @property
    def weight(self) -> Weighting:
        """The weighting itself."""
        return WEIGHTINGS[self.weighting] if isinstance(self.weighting, str) else self.weighting

    @property
    def distribution(self) -> Times:
        """The distribution of times itself."""
        return times_of(self.times)

    @property
    def spread(self) -> bool:
        return self.stratified


@dataclass(frozen=True)
class DSM(Weighted):
    r"""Denoising score matching with a weighting and a distribution of times.

    Args:
        weighting: a name in :data:`WEIGHTINGS` or any :class:`Weighting`.
        times: a name in :data:`TIMES` or any :class:`Times`.
        stratified: spread the times of a batch evenly; see :func:`quantiles`.
        noise: ``"fresh"``; ``"antithetic"``, the mean of the losses at eps and -eps; or ``"control"``, which takes away
            what the linear term in eps does at the mean of x_t: with the output n and its target
            :math:`n^* = a x_0 + b\, \epsilon` the loss gets

            .. math:: 2 b\, \frac{\alpha^2}{\alpha^2 + \sigma^2}\, \epsilon \cdot (n(\alpha x_0, t) - a x_0),

            whose mean is zero and which cancels most of the gradient's noise where sigma is small. Both cost two
            evaluations of the network.

    Source of the control variate, here with a factor that fades it out under noise: Wang et al., "A Wasserstein Minimum
    Velocity Approach to Learning Unnormalized Models", 2020, https://arxiv.org/abs/2002.07501.

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

    noise: str = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in NOISES:
            raise ValueError(f"got noise={self.noise!r}; expected one of {', '.join(NOISES)}")

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        t = t.to(torch.float64)
        x = noised(model.sde, x0, t, eps)
        loss = self.of_output(model, model(x, t, **conditions), x0, t, eps)
        if self.noise == "antithetic":
            other = model(noised(model.sde, x0, t, -eps), t, **conditions)
            return 0.5 * (loss + self.of_output(model, other, x0, t, -eps))
        if self.noise == "control":
            return loss + self._control(model, x0, t, eps, conditions)
        return loss

    def of_output(self, model: ScoreModel, output: Tensor, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss where the network returned ``output``, whatever it predicts; shape ``(batch,)``."""
        t = t.to(torch.float64)
        error = output - target(model.predicts, x0, eps, model.sde.alpha(t), model.sde.sigma(t), model.sigma_data)
        mean: Tensor = (error**2).flatten(1).mean(1)
        return self._scale(model, t).to(error) * mean

    def _scale(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The weight of a squared error of the network's output, float64."""
        coefficients = model.coefficients(t)
        of_output = (coefficients.eps if self.weight.on == "eps" else coefficients.x0)[1]
        return self.weight.function(model.sde, t, model.sigma_data) * of_output**2

    def _control(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, conditions: dict[str, Any]) -> Tensor:
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        centre = model(expand(alpha, x0).to(x0) * x0, t, **conditions)
        of_data = target(model.predicts, x0, torch.zeros_like(x0), alpha, sigma, model.sigma_data)
        of_noise = target(model.predicts, torch.zeros_like(x0), eps, alpha, sigma, model.sigma_data)
        fading = alpha**2 / (alpha**2 + sigma**2)
        product: Tensor = (of_noise * (centre - of_data)).flatten(1).mean(1)
        return 2 * (self._scale(model, t) * fading).to(product) * product


OBJECTIVES: Table[Objective] = Table(
    "objective",
    "scoresde.objectives.OBJECTIVES",
    {
        "ncsn": DSM("ncsn", "auto"),
        "ddpm": DSM("ddpm", "auto"),
        "likelihood": DSM("likelihood", "likelihood"),
        "edm": DSM("edm", "lognormal"),
        "v": DSM("v", "auto"),
        "flow": DSM("velocity", "uniform"),
        "flow-logit-normal": DSM("velocity", "logit-normal"),
        "min-snr": DSM("min-snr", "auto"),
        "p2": DSM("p2", "auto"),
        "sigmoid": DSM("sigmoid", "likelihood"),
    },
    also="an Objective",
    check=lambda value: isinstance(value, Objective),
    expects="an Objective",
)
"""The published objectives: NCSN's and DDPM's (equal in terms of eps), maximum likelihood, EDM's, v-prediction's, rectified
flow's with uniform and with logit-normal times, min-SNR-gamma, P2, and the sigmoid weighting of the likelihood."""


def objective(name: str | Objective) -> Objective:
    """Return the objective called ``name``, or ``name`` itself where it is one already.

    Example:
        >>> objective("edm")
        DSM(weighting='edm', times='lognormal', stratified=True, noise='fresh')
    """
    return OBJECTIVES[name] if isinstance(name, str) else name


@dataclass(frozen=True)
class Around(Objective):
    """Interface of the objectives that do something before or after another one, ``inner``, which may be a name."""

    inner: str | Objective

    def __post_init__(self) -> None:
        objective(self.inner)  # refuses an unknown name

    @property
    def wrapped(self) -> Objective:
        """The inner objective itself."""
        return objective(self.inner)

    @property
    def weight(self) -> Weighting:
        """That of the inner objective."""
        return self.wrapped.weight

    @property
    def distribution(self) -> Times:
        """That of the inner objective."""
        return self.wrapped.distribution

    @property
    def spread(self) -> bool:
        return self.wrapped.spread

    @property
    def companion(self) -> nn.Module:
        """That of the inner objective."""
        return self.wrapped.companion

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of the inner objective."""
        return self.wrapped.draws(x0, generator)
