r"""Objectives: a loss at given data, time and noise, averaged over a distribution of times.

Denoising score matching is, with :math:`x_t = \alpha x_0 + \sigma \epsilon`,

.. math:: L = E_{t \sim p}\, E\; w(t)\, \tfrac1d \lVert \hat\epsilon(x_t, t) - \epsilon \rVert^2,

and the published objectives differ by w and p. The error is computed on the network's output. eps and x_0 are linear in the
output n, so an error of eps is :math:`D (n - n^*)`, where n* is the output that gives the true eps, and the loss is
:math:`(w D^2)(n - n^*)^2`. No large terms are subtracted, whatever the network predicts.

Source: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.names import Table
from scoresde.base.shape import expand
from scoresde.objectives.times import TIMES, Times, quantiles
from scoresde.objectives.weightings import WEIGHTINGS, Weighting
from scoresde.score import ScoreModel, target
from scoresde.sde import GaussianSDE, MatrixSDE

__all__ = ["DSM", "HSM", "NOISES", "OBJECTIVES", "Around", "Objective", "Weighted", "noised", "objective"]


def noised(sde: GaussianSDE | MatrixSDE, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return the noised data x_t = alpha x0 + sigma eps, with float64 coefficients, in the dtype of ``x0``.

    With matrix coefficients it is the state psi x0 + L eps.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> t = torch.tensor([0.25])
        >>> noised(RectifiedFlow(), torch.full((1, 2), 4.0), t, torch.zeros(1, 2))  # alpha = 3/4
        tensor([[3., 3.]])
    """
    if isinstance(sde, MatrixSDE):
        return sde.perturb(x0, t, eps)
    t = t.to(torch.float64)
    return expand(sde.alpha(t), x0).to(x0) * x0 + expand(sde.sigma(t), x0).to(x0) * eps


@dataclass(frozen=True)
class Objective(ABC):
    """Interface of an objective: the loss that training minimises."""

    @property
    @abstractmethod
    def weight(self) -> Weighting:
        """The weighting of the squared error of the score."""

    @property
    @abstractmethod
    def distribution(self) -> Times:
        """The distribution of times."""

    @property
    def spread(self) -> bool:
        """Whether the times of a batch are stratified; see :func:`quantiles`."""
        return True

    @property
    def dropped(self) -> Mapping[str, Any]:
        """The null values of the conditions that are left out of some samples, by name; mostly there are none."""
        return {}

    @property
    def companion(self) -> nn.Module:
        """A module that is trained together with the network; for most objectives one without parameters."""
        return nn.Module()

    @abstractmethod
    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the loss at given times and noise, averaged over the event, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and standard normal noise, shape ``(batch, *event)``; the noise has the shape of a state, which
                may have more variables.
            t: times of shape ``(batch,)``.
            conditions: passed to the network.
        """

    def draw_noise(self, model: ScoreModel, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the noise of :meth:`at` for data like ``x0``: standard normal numbers, on the device of ``generator``."""
        shape = model.sde.state_shape(x0.shape)
        return torch.randn(shape, generator=generator, device=generator.device, dtype=x0.dtype)

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random arguments of :meth:`at` other than times and noise, by name."""
        return {}

    def compared(
        self, model: ScoreModel, truth: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the excess of the loss over that of the exact model, and mean squares of the error of eps and of eps.

        The excess is the mean square of the difference to the exact model at the same noised data. All have the shape
        ``(batch,)``; the errors are ``None`` where an objective knows no noise prediction.

        Args:
            model, truth: the score model, and the exact one.
            x0, eps: data and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            conditions: passed to the networks.
        """
        x = noised(model.sde, x0, t, eps)
        weight = self.weight.function(model.sde, t, model.sigma_data)
        of_truth, of_model = truth.eps(x, t, **conditions), model.eps(x, t, **conditions)
        excess = of_model - of_truth
        if self.weight.on != "eps":
            excess = model.x0(x, t, **conditions) - truth.x0(x, t, **conditions)
        return weight * _square(excess), _square(of_model - of_truth), _square(of_truth)

    def __call__(
        self, model: ScoreModel, x0: Tensor, generator: torch.Generator, **conditions: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample at a random time and noise, and the times, both of shape ``(batch,)``.

        Args:
            model: the score model.
            x0: data of shape ``(batch, *event)``.
            generator: the source of all random numbers.
            conditions: passed to the network.
        """
        model.check_data(x0)
        u = quantiles(len(x0), generator, self.spread)
        t, importance = self.distribution.at(u, model.sde)
        eps = self.draw_noise(model, x0, generator).to(x0.device)
        loss = self.at(model, x0, t.to(x0.device), eps, **self.draws(x0, generator), **conditions)
        self.distribution.observe(u, loss)
        return importance.to(loss) * loss, t.to(x0.device)


def _square(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).mean(1)


def times_of(times: str | Times) -> Times:
    """Return the distribution of times called ``times``, or ``times`` itself where it is an object."""
    return TIMES[times] if isinstance(times, str) else times


NOISES = ("fresh", "antithetic", "control")
"""The ways in which denoising score matching uses its noise; :class:`DSM` explains them."""


@dataclass(frozen=True)
class Weighted(Objective):
    """Interface of the objectives that consist of a weighting and a distribution of times."""

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
        """The weighting, as an object."""
        return WEIGHTINGS[self.weighting] if isinstance(self.weighting, str) else self.weighting

    @property
    def distribution(self) -> Times:
        """The distribution of times, as an object."""
        return times_of(self.times)

    @property
    def spread(self) -> bool:
        return self.stratified


@dataclass(frozen=True)
class HSM(Weighted):
    r"""Hybrid score matching, for SDEs with matrix coefficients.

    The state is noised given the data alone, with the initial velocities integrated out: :math:`z = \psi x_0 + L \epsilon`.
    The noise enters the last variable, whose score is :math:`-\epsilon_b / L_{bb}`, and the loss is

    .. math:: E_{t \sim p}\, E\; w(t)\, \tfrac1d \lVert \hat\epsilon_b(z_t, t) - \epsilon_b \rVert^2 .

    On an SDE with scalar coefficients this is :class:`DSM`.

    Source: Dockhorn, Vahdat and Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", 2022,
    https://arxiv.org/abs/2112.07068, section 3.2.

    Args:
        weighting: a weighting of the error of eps that is a function of time alone, such as ``"ddpm"``, which is 1.
        times: a name in :data:`TIMES` or any :class:`Times`.
        stratified: spread the times of a batch evenly; see :func:`quantiles`.

    Raises:
        ValueError: for a weighting of the error of the data.

    Example:
        >>> from scoresde import problems
        >>> from scoresde.sde import CLD
        >>> ring = problems.ring()
        >>> loss, t = HSM()(ring.model(CLD()), ring.sample(64, torch.Generator().manual_seed(0)), torch.Generator())
        >>> loss.shape
        torch.Size([64])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight.on != "eps":
            raise ValueError(f"got weighting={self.weighting!r} for HSM; expected one of the error of eps, such as 'ddpm'")

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        if isinstance(model.sde, GaussianSDE):
            return DSM(self.weighting, self.times, self.stratified).at(model, x0, t, eps, **conditions)
        t = t.to(torch.float64)
        sde: Any = model.sde
        error = model.eps(noised(sde, x0, t, eps), t, **conditions) - sde.driven(eps)
        mean: Tensor = error.square().flatten(1).mean(1)
        return self.weight.function(sde, t, model.sigma_data).to(error) * mean


@dataclass(frozen=True)
class DSM(Weighted):
    r"""Denoising score matching with a weighting and a distribution of times.

    Args:
        weighting: a name in :data:`WEIGHTINGS` or any :class:`Weighting`.
        times: a name in :data:`TIMES` or any :class:`Times`.
        stratified: spread the times of a batch evenly; see :func:`quantiles`.
        noise: how eps is used. ``"fresh"`` draws it once. ``"antithetic"`` takes the mean of the losses at eps and -eps.
            ``"control"`` subtracts a control variate, the term linear in eps at the mean of x_t: with the output n and its
            target :math:`n^* = a x_0 + b\, \epsilon` it adds to the loss

            .. math:: 2 b\, \frac{\alpha^2}{\alpha^2 + \sigma^2}\, \epsilon \cdot (n(\alpha x_0, t) - a x_0),

            whose mean is zero and which cancels most of the gradient's variance where sigma is small. ``"antithetic"`` and
            ``"control"`` cost two evaluations of the network.

    Source of the control variate: Wang et al., "A Wasserstein Minimum Velocity Approach to Learning Unnormalized Models",
    2020, https://arxiv.org/abs/2002.07501. The factor that fades it out at high noise is ours.

    Raises:
        ValueError: if ``noise`` is unknown; in a call, for a model on an SDE without Gaussian marginals.

    Example:
        >>> from scoresde import VP, ScoreModel
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP())  # exact for standard normal data
        >>> generator = torch.Generator().manual_seed(0)
        >>> x0 = torch.randn(4096, 2, generator=generator)
        >>> loss, t = DSM("ddpm", "uniform")(model, x0, generator)
        >>> floor = (VP().alpha(t) ** 2).mean()  # the smallest loss that any model can reach
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
        if not isinstance(model.sde, GaussianSDE):
            raise ValueError(
                f"got a model on {type(model.sde).__name__}, which has no alpha and sigma, for {self!r}; expected "
                "objective='hsm' with matrix coefficients, or 'implicit' score matching without marginals"
            )
        x = noised(model.sde, x0, t, eps)
        loss = self.of_output(model, model(x, t, **conditions), x0, t, eps)
        if self.noise == "antithetic":
            other = model(noised(model.sde, x0, t, -eps), t, **conditions)
            return 0.5 * (loss + self.of_output(model, other, x0, t, -eps))
        if self.noise == "control":
            return loss + self._control(model, x0, t, eps, conditions)
        return loss

    def of_output(self, model: ScoreModel, output: Tensor, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the loss for a given ``output`` of the network, whatever it predicts; shape ``(batch,)``."""
        t = t.to(torch.float64)
        error = output - target(model.predicts, x0, eps, model.sde.alpha(t), model.sde.sigma(t), model.sigma_data)
        mean: Tensor = (error**2).flatten(1).mean(1)
        return self._scale(model, t).to(error) * mean

    def _scale(self, model: ScoreModel, t: Tensor) -> Tensor:
        """Return the weight of a squared error of the network's output, float64."""
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
        "hsm": HSM(),
    },
    also="an Objective",
    check=lambda value: isinstance(value, Objective),
    expects="an Objective",
)
"""The published objectives by name: NCSN and DDPM (the same in terms of eps), maximum likelihood, EDM, v-prediction,
rectified flow with uniform and with logit-normal times, min-SNR-gamma, P2, the sigmoid weighting of the likelihood, and
hybrid score matching for matrix coefficients."""


def objective(name: str | Objective) -> Objective:
    """Return the objective called ``name``, or ``name`` itself where it is an objective.

    Example:
        >>> objective("edm")
        DSM(weighting='edm', times='lognormal', stratified=True, noise='fresh')
    """
    return OBJECTIVES[name] if isinstance(name, str) else name


@dataclass(frozen=True)
class Around(Objective):
    """Interface of the objectives that wrap another objective, ``inner``, which may be given by name."""

    inner: str | Objective

    def __post_init__(self) -> None:
        objective(self.inner)  # refuses an unknown name

    @property
    def wrapped(self) -> Objective:
        """The inner objective, as an object."""
        return objective(self.inner)

    @property
    def weight(self) -> Weighting:
        """The weighting of the inner objective."""
        return self.wrapped.weight

    @property
    def distribution(self) -> Times:
        """The distribution of times of the inner objective."""
        return self.wrapped.distribution

    @property
    def spread(self) -> bool:
        return self.wrapped.spread

    @property
    def dropped(self) -> Mapping[str, Any]:
        """The null values of the conditions that the inner objective leaves out of some samples."""
        return self.wrapped.dropped

    @property
    def companion(self) -> nn.Module:
        """The module that the inner objective trains together with the network."""
        return self.wrapped.companion

    def draw_noise(self, model: ScoreModel, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the noise of the inner objective."""
        return self.wrapped.draw_noise(model, x0, generator)

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random arguments of the inner objective."""
        return self.wrapped.draws(x0, generator)

    def compared(
        self, model: ScoreModel, truth: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the excess and the errors of the inner objective."""
        return self.wrapped.compared(model, truth, x0, t, eps, **conditions)
