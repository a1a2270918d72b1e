"""Compositions of score models: products of their densities with any exponents, and mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.base.shape import expand
from scoresde.guidance.scale import checked_scale, guided_sde
from scoresde.score import Calls, Conditions, ScoreModel, Wrapper
from scoresde.sde import MatrixSDE, Time

__all__ = ["Compose", "Given", "Mixture"]


class Given(Wrapper):
    """A score model with some conditions fixed or removed, for compositions of one network under several conditions.

    Args:
        model: any score model.
        conditions: the values of conditions, by name, which win over those given when sampling. They are read as
            :func:`scoresde.sample` reads its own: a number, an entry for each sample, or :class:`scoresde.Shared`.
        without: the names of conditions that the model does not get.

    Example:
        >>> import torch, scoresde
        >>> model = scoresde.ScoreModel(scoresde.models.MLP(2, num_classes=3), scoresde.VP(), "v")
        >>> x = torch.ones(2, 2)
        >>> bool(torch.equal(Given(model, {"label": 1}).x0(x, 0.5), model.x0(x, 0.5, label=1)))
        True
    """

    def __init__(
        self, model: ScoreModel, conditions: Mapping[str, Any] | None = None, *, without: Sequence[str] = ()
    ) -> None:
        super().__init__(model)
        self.conditions = dict(conditions or {})
        self.without = frozenset([without] if isinstance(without, str) else without)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction under the fixed conditions, shape of ``x``."""
        t = self.sde.check_time(t)
        lengths = {len(value) for value in self.conditions.values() if _has_entries(value)}
        batch = max(lengths, default=len(x))
        if t.ndim == 0 or not batch or len(x) % batch:  # else copies of the batch, as a driver stacks them
            batch = len(x)
        return self.model.x0(x, t, **self._told(x, batch, conditions))

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse conditions of another length than the batch, and a batch that does not fit the inner model."""
        self.model.check_start(x, **self._told(x, len(x), conditions))

    def _told(self, x: Tensor, batch: int, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model is told: the fixed conditions for ``batch`` samples, repeated, and the others."""
        fixed = Conditions.of(self.conditions, batch, device=x.device, dtype=x.dtype).repeated(len(x) // batch)
        return {name: value for name, value in {**conditions, **fixed}.items() if name not in self.without}


def _has_entries(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) or (isinstance(value, Tensor) and value.ndim > 0)


class _Several(Wrapper):
    """What compositions of several models share: they are on one SDE, get the same conditions, and all are called."""

    def __init__(self, weights: Mapping[ScoreModel, float]) -> None:
        if not isinstance(weights, Mapping) or not weights:
            raise TypeError(
                f"got {type(weights).__name__} for the models to compose; expected a mapping from models to weights: "
                "{model: 1.0, other: 0.5}"
            )
        models = list(weights)
        for other in models:
            if guided_sde(other) != models[0].sde:
                raise ValueError(f"got models on {models[0].sde!r} and on {other.sde!r}; expected all on the same SDE")
        super().__init__(models[0])
        self.others = nn.ModuleList(models[1:])
        numbers = [checked_scale(weight) for weight in weights.values()]
        if not all(isinstance(number, float) for number in numbers):
            raise TypeError(f"got weights {list(weights.values())}; expected a number for each model")
        self.weights: list[float] = [number for number in numbers if isinstance(number, float)]

    @property
    def models(self) -> list[ScoreModel]:
        """The composed models, in the order of their weights."""
        return [self.model, *self.others]

    @property
    def calls(self) -> Calls:
        """The network calls of all models together."""
        return Calls(*(sum(part) for part in zip(*(model.calls for model in self.models), strict=True)))

    def calls_at(self, t: float) -> Calls:
        """Return the network calls of all models together at one time."""
        return Calls(*(sum(part) for part in zip(*(model.calls_at(t) for model in self.models), strict=True)))

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit one of the models."""
        for model in self.models:
            model.check_start(x, **conditions)

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse a prediction that does not determine the data where alpha = 0."""
        for model in self.models:
            model.check_convertible(t)


class Compose(_Several):
    r"""The product of densities with exponents: a product of experts, a negation where a weight is negative.

    .. math:: \hat\epsilon = \sum_i w_i\, \epsilon_i, \qquad
              D = \sum_i w_i D_i + \Big(1 - \sum_i w_i\Big) \frac{x}{\alpha}

    This is the score of :math:`\prod_i p_{i,t}(x)^{w_i}` at every time. As with classifier-free guidance these densities are
    not the noised versions of :math:`\prod_i p_i^{w_i}`, which :func:`~scoresde.guidance.feynman_kac` samples. Weights that
    sum to 1 keep the prior: add the unconditional model with the weight that is missing, as in
    ``{unconditional: 1 - a - b, first: a, second: b}``. With another sum W the noisy end is :math:`N(0, \sigma^2 / W)`,
    which a start drawn by :func:`scoresde.sample` does not follow, and alpha must not be zero.

    Args:
        weights: the weight of each model; :class:`Given` makes several models of one network.

    Raises:
        TypeError: for anything but a mapping from score models to numbers.
        ValueError: for models on different SDEs, and at alpha = 0 for weights that do not sum to 1.

    Sources: Du et al., "Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC", 2023,
    https://arxiv.org/abs/2302.11552; Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022,
    https://arxiv.org/abs/2206.01714.

    Example:
        >>> import scoresde
        >>> from scoresde import problems
        >>> sde = scoresde.VP()
        >>> narrow, wide = problems.Gaussian([1.0], 0.5).model(sde), problems.Gaussian([0.0], 2.0).model(sde)
        >>> composed = Compose({narrow: 2.0, wide: -1.0})
        >>> scoresde.sample(composed, (4, 1), "ddim", 10, progress=False).evaluations
        20
    """

    def __init__(self, weights: Mapping[ScoreModel, float]) -> None:
        super().__init__(weights)
        self.rest = 1 - sum(self.weights)
        if abs(self.rest) < 1e-9:
            self.rest = 0.0
        if self.rest and isinstance(self.sde, MatrixSDE):
            raise ValueError(
                f"got weights that sum to {1 - self.rest:g} on {type(self.sde).__name__}, whose coefficients are matrices, "
                "where the product has no data prediction; expected a sum of 1: add the unconditional model with the weight "
                "that is missing"
            )

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse alpha = 0 where the weights do not sum to 1."""
        super().check_convertible(t)
        t = self.sde.span[1] if t is None else t
        if self.rest and not float(self.sde.alpha(t)) > 0:
            raise ValueError(
                f"got weights that sum to {1 - self.rest:g} at t={t:.6g} of {type(self.sde).__name__}, where alpha = 0; "
                "expected a sum of 1, or a smaller t_max on the SDE, "
                f"{type(self.sde).__name__}(t_max={0.999 * self.sde.span[1]:.6g})"
            )

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the product, shape of ``x``."""
        t = self.sde.check_time(t)
        total = sum(w * m for w, m in zip(self.weights, self._predictions(x, t, conditions), strict=True))
        assert isinstance(total, Tensor)
        if not self.rest:
            return total
        return total + expand(self.rest / self.sde.alpha(t.to(torch.float64)), x).to(x) * x

    def experts(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[list[Tensor], list[float | Tensor]]:
        """Return the data predictions of the models and their weights."""
        return self._predictions(x, t, conditions), [*self.weights]

    def _predictions(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> list[Tensor]:
        return [model.x0(x, t, **conditions) for model in self.models]


class Mixture(_Several):
    r"""The mixture of the models' densities, whose score needs the densities as well.

    .. math:: D = \sum_i r_i(x) D_i, \qquad r_i(x) = \frac{w_i\, p_{i,t}(x)}{\sum_j w_j\, p_{j,t}(x)}

    It is exact: the noised mixture is the mixture of the noised densities. A network gives no density. To sample a mixture
    of networks, draw the component of each sample and sample from it alone.

    Args:
        weights: the positive weight of each model, scaled to sum to 1.
        log_probs: for each model, the log-density of its noised data, ``log_prob(x, t) -> (batch,)``. For a model of
            :mod:`scoresde.problems` it is ``lambda x, t: problem.log_prob(x, sde, t)``.

    Raises:
        TypeError: for anything but a mapping from score models to numbers.
        ValueError: for weights that are not positive, another number of densities, and a density of a wrong shape.

    Example:
        >>> import torch, scoresde
        >>> from scoresde import problems
        >>> sde, x = scoresde.VP(), torch.ones(1, 1, dtype=torch.float64)
        >>> left, right = problems.Gaussian([-1.0], 0.1), problems.Gaussian([1.0], 0.1)
        >>> log_probs = [lambda x, t, p=p: p.log_prob(x, sde, t) for p in (left, right)]
        >>> mixed = Mixture({left.model(sde): 0.5, right.model(sde): 0.5}, log_probs)
        >>> exact = problems.GaussianMixture([[-1.0], [1.0]], 0.1).model(sde)
        >>> bool(torch.allclose(mixed.x0(x, 0.5), exact.x0(x, 0.5)))
        True
    """

    def __init__(self, weights: Mapping[ScoreModel, float], log_probs: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__(weights)
        if min(self.weights) <= 0:
            raise ValueError(f"got weights {self.weights} of a mixture; expected positive numbers")
        if len(log_probs) != len(self.weights):
            raise ValueError(f"got {len(log_probs)} densities for {len(self.weights)} models; expected one for each")
        self.log_probs = list(log_probs)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the mixture, shape of ``x``."""
        t = self.sde.check_time(t)
        joint = [math.log(w) + self._log_prob(i, x, t) for i, w in enumerate(self.weights)]
        share = torch.stack(joint).softmax(0)
        predicted = [model.x0(x, t, **conditions) for model in self.models]
        return torch.stack([expand(r, m).to(m) * m for r, m in zip(share, predicted, strict=True)]).sum(0)

    def _log_prob(self, i: int, x: Tensor, t: Tensor) -> Tensor:
        found = self.log_probs[i](x, t)
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"got a log-density of shape {shape} for {len(x)} samples; expected ({len(x)},)")
        return found
