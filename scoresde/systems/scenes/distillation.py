r"""Gradients on images by a score model: score distillation, variational score distillation and delta denoising.

Let :math:`x = g(\theta)` be an image rendered from parameters, and :math:`x_t = \alpha x + \sigma \epsilon`. A distillation
moves the parameters against

.. math:: E_{t, \epsilon}\; w(t)\, \big( \hat\epsilon(x_t, t) - b \big)\, \frac{\partial x}{\partial \theta},

where the Jacobian of the network is left out on purpose. The methods differ by the baseline b:

==================================  ======================================================================================
method                              baseline b
==================================  ======================================================================================
:class:`ScoreDistillation`          the noise :math:`\epsilon` itself
:class:`VariationalDistillation`    the noise prediction of a second model, trained on the rendered images
:class:`DeltaDenoising`             the noise prediction at a reference image under its own conditions
==================================  ======================================================================================

For data :math:`N(\mu, S)` the mean of the first is :math:`w \alpha \sigma (\alpha^2 S + \sigma^2)^{-1} (x - \mu)`. So
:math:`\mu` is the fixed point of score distillation, which seeks a mode and does not sample. The variational gradient
vanishes where the images have the distribution of the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch, expand
from scoresde.objectives import TIMES, Objective, Times, noised, quantiles
from scoresde.objectives import objective as named
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import VP, GaussianSDE
from scoresde.training.optimization.optimizers import MakeOptimizer, build

__all__ = [
    "DeltaDenoising",
    "Distillation",
    "NoiseLevels",
    "ScoreDistillation",
    "Trained",
    "VariationalDistillation",
    "noise_share",
]

Learn = Callable[[Tensor, torch.Generator, Mapping[str, Any]], None]
"""A function of rendered images, a generator and conditions, which trains what a distillation trains beside the scene."""


def noise_share(alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""Return the weight :math:`w = \sigma^2 / (\alpha^2 + \sigma^2)`, which is :math:`\sigma^2` on VP.

    Args:
        alpha, sigma: the marginal, float64, of one shape.

    Source: Poole et al., "DreamFusion: Text-to-3D using 2D Diffusion", 2022, https://arxiv.org/abs/2209.14988, on VP.

    Example:
        >>> noise_share(torch.tensor(3.0), torch.tensor(4.0))
        tensor(0.6400)
    """
    return sigma**2 / (alpha**2 + sigma**2)


@dataclass(frozen=True)
class NoiseLevels(Times):
    """Times with the signal-to-noise ratios that ``VP()`` has at times uniform between ``low`` and ``high``.

    On ``VP()`` they are these times themselves. On any other SDE they are the times of the same noise levels, within its
    span, so that a method has one meaning on all of them.

    Args:
        low, high: times of ``VP()``, between 0 and 1.

    Raises:
        ValueError: for other times, and if ``low`` is above ``high``.

    Example:
        >>> from scoresde import EDM
        >>> u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> NoiseLevels().at(u, VP())[0]
        tensor([0.0200, 0.9800], dtype=torch.float64)
        >>> NoiseLevels(0.1, 0.5).at(u, EDM())[0]
        tensor([0.3402, 3.4129], dtype=torch.float64)
    """

    low: float = 0.02
    high: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(
                f"got noise levels from t={self.low} to {self.high}; expected two times of VP() with 0 < low <= high <= 1, "
                "such as NoiseLevels(0.02, 0.98)"
            )

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        t = torch.lerp(torch.full_like(u, self.low), torch.full_like(u, self.high), u)
        t = sde.time(VP().lam(t))
        return t.clamp(*sde.span), torch.ones_like(u)


@dataclass(frozen=True)
class Distillation(ABC):
    """Interface of the methods: a gradient on images from a score model.

    Args:
        times: the distribution of times, a name in :data:`~scoresde.objectives.TIMES` or any
            :class:`~scoresde.objectives.Times`. The default has the noise levels of ``VP()`` at t in [0.02, 0.98].
        weight: w, a function of alpha and sigma.
        antithetic: whether to take the mean of the gradients at eps and -eps. It costs twice the evaluations. Where the
            noise prediction is affine in the image, no variance of eps is left.

    Raises:
        TypeError: for a weight that is not a function.
        ValueError: for an unknown distribution of times.
    """

    times: str | Times = field(default=NoiseLevels(), kw_only=True)
    weight: Callable[[Tensor, Tensor], Tensor] = field(default=noise_share, kw_only=True)
    antithetic: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))
        elif not isinstance(self.times, Times):
            raise TypeError(
                f"got times of type {type(self.times).__name__}; expected a name such as 'uniform', or a distribution such "
                "as NoiseLevels(0.02, 0.5)"
            )
        if not callable(self.weight):
            raise TypeError(
                f"got weight={self.weight!r}; expected a function of alpha and sigma: lambda alpha, sigma: sigma**2"
            )

    @abstractmethod
    def difference(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the predicted noise minus the baseline, without gradients, shape of ``x``.

        Args:
            model: the score model.
            x, eps: images and standard normal noise, shape ``(batch, *event)``.
            t: times, shape ``(batch,)``, float64.
            conditions: the conditions of the model.
        """

    def start(self, model: ScoreModel) -> Learn:
        """Return the function that is called with the rendered images before each gradient; most methods train nothing.

        Args:
            model: the score model, which is checked.

        Raises:
            ValueError: for a model that the method cannot take, such as one on an SDE without Gaussian marginals.
        """
        if not isinstance(model.sde, GaussianSDE):
            raise ValueError(
                f"got a model on {type(model.sde).__name__}, which has no Gaussian marginals; expected a model on a "
                "GaussianSDE, such as VP()"
            )
        return lambda x, generator, conditions: None

    @torch.no_grad()
    def at(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the weighted gradient at given times and noise, shape of ``x``.

        Args:
            model, x, t, eps, conditions: as in :meth:`difference`.
        """
        sde = model.sde
        x, t = x.detach(), t.to(torch.float64)
        found = self.difference(model, x, t, eps, **conditions)
        if self.antithetic:
            found = 0.5 * (found + self.difference(model, x, t, -eps, **conditions))
        return expand(self.weight(sde.alpha(t), sde.sigma(t)), x).to(x) * found

    def gradient(self, model: ScoreModel, x: Tensor, generator: torch.Generator, **conditions: Any) -> Tensor:
        """Return the gradient at random times and noise, shape of ``x``.

        The times of a batch are stratified; see :func:`~scoresde.objectives.quantiles`.

        Args:
            model, x, conditions: as in :meth:`difference`.
            generator: the source of all random numbers.
        """
        times = TIMES[self.times] if isinstance(self.times, str) else self.times
        t, importance = times.at(quantiles(len(x), generator), model.sde)
        eps = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
        return expand(importance, x).to(x) * self.at(model, x, t.to(x.device), eps, **conditions)


@dataclass(frozen=True)
class ScoreDistillation(Distillation):
    r"""Score distillation: the gradient :math:`w(t) (\hat\epsilon(x_t, t) - \epsilon)`.

    It needs guidance for sharp images, ``ClassifierFree(model, 7.5, null)``. Guidance moves the fixed point: for
    unconditional data :math:`N(\mu_0, S)` and conditional data :math:`N(\mu_1, S)` it is :math:`\mu_0 + s (\mu_1 - \mu_0)`
    with the scale s.

    Source: Poole et al., "DreamFusion: Text-to-3D using 2D Diffusion", 2022, https://arxiv.org/abs/2209.14988, equation 3.

    Example:
        >>> from scoresde import problems
        >>> model = problems.Gaussian([1.0, 0.0], 1.0).model(VP())
        >>> x, t, eps = torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([[0.3, -0.2]])
        >>> ScoreDistillation(antithetic=True).at(model, x, t, eps)  # towards the mean: against the gradient
        tensor([[-0.2485,  0.0000]])
    """

    def difference(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        return model.eps(noised(model.sde, x, t, eps), t, **conditions) - eps


@dataclass(frozen=True, eq=False)
class Trained:
    """What trains a companion on rendered images, with the optimizer that it keeps between the steps.

    Args:
        companion: the score model that is trained in place.
        objective: its objective.
        optimizer: the optimizer of its parameters.
        updates: the number of its steps at each call.

    Example:
        >>> import scoresde
        >>> companion = scoresde.ScoreModel(scoresde.models.MLP(2, hidden=(4,)), VP(), "v")
        >>> learn = VariationalDistillation(companion, "v").start(scoresde.problems.ring().model(VP()))
        >>> isinstance(learn, Trained), learn.updates
        (True, 1)
    """

    companion: ScoreModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    updates: int

    def __call__(self, x: Tensor, generator: torch.Generator, conditions: Mapping[str, Any]) -> None:
        """Take the steps of the companion on the images ``x``."""
        for _ in range(self.updates):
            with torch.inference_mode(False), torch.enable_grad():
                self.optimizer.zero_grad()
                loss, _ = self.objective(self.companion, x.detach(), generator, **conditions)
                torch.autograd.backward([loss.mean()])
            self.optimizer.step()


@dataclass(frozen=True)
class VariationalDistillation(Distillation):
    r"""Variational score distillation: the noise prediction of a companion, trained on the rendered images, is the baseline.

    The companion is the score model of the images that the scene renders, so the gradient vanishes where these have the
    distribution of the data. With several scenes (particles) their spread becomes that of the data, which score distillation
    loses. The companion is trained in place before each gradient, with the conditions of the model.

    Args:
        companion: a score model with parameters, on the SDE of the model: ``copy.deepcopy(model)``, or a smaller network.
        objective: the loss of its training, a name in :data:`~scoresde.objectives.OBJECTIVES` or an objective.
        optimizer: a name of :data:`~scoresde.training.optimization.optimizers.OPTIMIZERS` with settings, or a function of
            the parameters.
        lr: the learning rate of the companion.
        updates: the number of steps of the companion before each gradient.
        times, weight, antithetic: as in :class:`Distillation`.

    Raises:
        TypeError: for a companion that is not a score model.
        ValueError: for a companion without parameters to train or on another SDE than the model's.

    Source: Wang et al., "ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score
    Distillation", 2023, https://arxiv.org/abs/2305.16213, algorithm 1.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(VP())
        >>> companion = scoresde.ScoreModel(scoresde.models.MLP(2), VP(), "v")
        >>> method = VariationalDistillation(companion, "v")
        >>> x, generator = torch.zeros(8, 2), torch.Generator().manual_seed(0)
        >>> method.start(model)(x, generator, {})  # one step of the companion
        >>> method.gradient(model, x, generator).shape
        torch.Size([8, 2])
    """

    companion: ScoreModel
    objective: str | Objective = "ddpm"
    optimizer: str | MakeOptimizer = "adam"
    lr: float = 1e-3
    updates: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.companion, ScoreModel):
            raise TypeError(
                f"got a {type(self.companion).__name__} for the companion; expected a score model to train beside the "
                "scene: copy.deepcopy(model), or ScoreModel(net, model.sde)"
            )
        if not self._parameters():
            raise ValueError(
                "got a companion without parameters that require gradients, which cannot be trained on the rendered images; "
                "expected ScoreModel(net, model.sde) with a network of torch.nn"
            )
        if not self.lr > 0:
            raise ValueError(f"got lr={self.lr} for the companion; expected a positive number")
        object.__setattr__(self, "objective", named(self.objective))
        object.__setattr__(self, "updates", whole("updates", self.updates, 1))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.companion.parameters() if p.requires_grad]

    def start(self, model: ScoreModel) -> Learn:
        """Return the function that takes ``updates`` steps of the companion on the images it is given.

        Args:
            model: the score model, whose SDE must be that of the companion.
        """
        super().start(model)
        if self.companion.sde != model.sde:
            raise ValueError(
                f"got a companion on {self.companion.sde!r} for a model on {model.sde!r}; expected the same SDE: "
                "ScoreModel(net, model.sde)"
            )
        optimizer = build(self.optimizer, self._parameters(), self.lr)
        return Trained(self.companion, cast(Objective, self.objective), optimizer, self.updates)

    def difference(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        noisy = noised(model.sde, x, t, eps)
        return model.eps(noisy, t, **conditions) - self.companion.eps(noisy, t, **conditions)


@dataclass(frozen=True, eq=False)
class DeltaDenoising(Distillation):
    r"""Delta denoising, for edits: the noise prediction at a reference under its own conditions is the baseline.

    .. math:: w(t)\, \big( \hat\epsilon(\alpha x + \sigma\epsilon, t \mid c) -
              \hat\epsilon(\alpha x_{ref} + \sigma\epsilon, t \mid c_{ref}) \big)

    Both predictions see the same noise, so that the noise and the errors they share cancel, and what the conditions do not
    concern stays. Start from the reference. For data :math:`N(\mu_c, S)` the edit is
    :math:`x_{ref} + \mu_c - \mu_{c_{ref}}`.

    Args:
        reference: the images before the edit, of the shape that is rendered, ``(batch, *event)``.
        conditions: the conditions that describe them, as for :func:`scoresde.sample`.
        times, weight, antithetic: as in :class:`Distillation`.

    Raises:
        ValueError: for a reference that is no batch of images, for conditions with another number of entries, and, in use,
            for rendered images of another shape.

    Source: Hertz, Aberman and Cohen-Or, "Delta Denoising Score", 2023, https://arxiv.org/abs/2304.07090, equation 4.

    Example:
        >>> from scoresde import problems
        >>> model = problems.Gaussian([1.0, 0.0], 1.0).model(VP())
        >>> x = torch.ones(3, 2)
        >>> DeltaDenoising(x).gradient(model, x, torch.Generator().manual_seed(0)).abs().max()  # nothing to edit
        tensor(0.)
    """

    reference: Tensor
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        reference = check_batch(self.reference).detach()
        told = Conditions.of(self.conditions, len(reference), device=reference.device, dtype=reference.dtype)
        object.__setattr__(self, "reference", reference)
        object.__setattr__(self, "conditions", told.values)

    def difference(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        if x.shape != self.reference.shape:
            raise ValueError(
                f"got rendered images of shape {tuple(x.shape)} for a reference of shape {tuple(self.reference.shape)}; "
                "expected one reference for each rendered image"
            )
        own, before = (noised(model.sde, images, t, eps) for images in (x, self.reference.to(x)))
        return model.eps(own, t, **conditions) - model.eps(before, t, **self.conditions)
