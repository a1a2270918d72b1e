r"""Guidance by the gradient of a function: the density of the noised data times a potential."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.guidance.scale import Scale, check_samples, checked_scale, guided_sde, scale_at
from scoresde.score import Calls, ScoreModel, Shared, Wrapper
from scoresde.sde import GaussianSDE, MatrixSDE, Time

__all__ = ["Parts", "Tilted", "gradient"]


class Parts(NamedTuple):
    """The prediction of a tilted model with what it is made of.

    Attributes:
        guided: the guided data prediction, shape of x.
        base: the data prediction of the inner model, shape of x.
        log_potential: the logarithm of the potential, shape ``(batch,)``.
    """

    guided: Tensor
    base: Tensor
    log_potential: Tensor


class Tilted(Wrapper):
    r"""Interface of guidance by a potential :math:`\psi_t(x)`: the score gets :math:`\nabla \log \psi_t(x)` in addition.

    .. math:: D_{guided} = D + \frac{\sigma^2}{\alpha} \nabla_x \log \psi_t(x)

    With matrix coefficients :meth:`scoresde.sde.MatrixSDE.to_data` stands for the factor.

    A subclass gives :math:`\log \psi`, :meth:`potential`.
    The gradient is computed in every mode of autograd, and can be differentiated again where gradients are enabled.

    Args:
        model: any score model.
        scale: the factor of the logarithm, a number, a tensor with one for each sample, or a function of time.
        of: ``"x"`` for a function of the state and the time, ``"x0"`` for one of the data prediction.
        takes: the names of conditions that the function gets and the model does not.
        shares: the names of conditions that both get; the model alone gets all others.

    Raises:
        ValueError: for another ``of``, an SDE without Gaussian marginals, and where alpha = 0, at which the prediction is
            not finite.

    Example:
        >>> import scoresde
        >>> class Rightwards(Tilted):
        ...     def potential(self, at, *t, **conditions):
        ...         return at[:, 0]
        >>> model, x = scoresde.problems.ring().model(scoresde.EDM()), torch.ones(1, 2)
        >>> change = Rightwards(model, 1.0, "x").x0(x, 2.0) - model.x0(x, 2.0)
        >>> change.round(decimals=4).tolist()  # sigma^2 / alpha along the first axis
        [[4.0, 0.0]]
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        of: str,
        takes: Sequence[str] | str = (),
        shares: Sequence[str] | str = (),
    ) -> None:
        guided_sde(model)
        super().__init__(model)
        if of not in ("x", "x0"):
            raise ValueError(
                f"got of={of!r}; expected 'x' for a function of the noised state and the time, or 'x0' for a function of "
                "the predicted data"
            )
        self.scale, self.of = checked_scale(scale), of
        self.takes = (takes,) if isinstance(takes, str) else tuple(takes)
        self.shares = (shares,) if isinstance(shares, str) else tuple(shares)

    @abstractmethod
    def potential(self, at: Tensor, *t: Tensor, **conditions: Any) -> Tensor:
        """Return log psi without the scale, shape ``(batch,)``.

        Args:
            at: the state or, with ``of="x0"``, the data prediction, shape ``(batch, *event)``.
            t: the time, shape ``(batch,)``, with ``of="x"`` only.
            conditions: those that the function gets.
        """

    @property
    def calls(self) -> Calls:
        """The network calls of the score model: with ``of="x0"`` each call forward is followed by one backward."""
        inner = self.model.calls
        return inner if self.of == "x" else Calls(inner.forward, inner.backward + inner.forward)

    def calls_at(self, t: float) -> Calls:
        """Return the network calls of the score model at one time."""
        inner = self.model.calls_at(t)
        return inner if self.of == "x" else Calls(inner.forward, inner.backward + inner.forward)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a scale of another length than the batch, and missing conditions."""
        check_samples(self.scale, len(x))
        self.model.check_start(x, **self._split(conditions)[1])

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse alpha = 0, where the gradient of the potential is 0 and its factor infinite."""
        super().check_convertible(t)
        if not isinstance(self.sde, GaussianSDE):  # which have some signal at all times
            return
        t = self.sde.span[1] if t is None else t
        if not float(self.sde.alpha(t)) > 0:
            raise ValueError(
                f"got guidance by a gradient at t={t:.6g} of {type(self.sde).__name__}, where alpha = 0 and no gradient can "
                f"tell of the data; expected a smaller t_max on the SDE, {type(self.sde).__name__}(t_max="
                f"{0.999 * self.sde.span[1]:.6g})"
            )

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the guided data prediction, shape of ``x``."""
        return self.parts(x, t, **conditions).guided

    def parts(self, x: Tensor, t: Time, **conditions: Any) -> Parts:
        """Return the guided prediction, the inner model's, and the logarithm of the potential."""
        t = self.sde.check_time(t)
        own, rest = self._split(conditions)
        scale = scale_at(self.scale, t, x)
        factor = scale.reshape(-1) if isinstance(scale, Tensor) else scale

        def of_state(y: Tensor) -> tuple[Tensor, Tensor | None]:
            if self.of == "x0":
                m = self.model.x0(y, t, **_plain(rest))
                return factor * self._checked(self.potential(m, **_plain(own)), y), m
            times = t.to(device=y.device, dtype=torch.promote_types(y.dtype, torch.float32)).expand(len(y))
            return factor * self._checked(self.potential(y, times, **_plain(own)), y), None

        slope, log_potential, inner = gradient(of_state, x)
        base = self.model.x0(x, t, **rest) if inner is None else inner
        if isinstance(self.sde, MatrixSDE):
            return Parts(base + self.sde.to_data(t) * slope, base, log_potential)
        of_score = self.sde.sigma(t.to(torch.float64)) ** 2 / self.sde.alpha(t.to(torch.float64))
        return Parts(base + expand(of_score, x).to(x) * slope, base, log_potential)

    def _split(self, conditions: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the conditions of the function and those of the model."""
        names = (*self.takes, *self.shares)
        if missing := [name for name in names if name not in conditions]:
            raise ValueError(
                f"got no condition {missing[0]!r} for guidance; expected a value for it: conditions={{{missing[0]!r}: ..}}"
            )
        given = {name: conditions[name] for name in names}
        own = {name: value.value if isinstance(value, Shared) else value for name, value in given.items()}
        return own, {name: value for name, value in conditions.items() if name not in self.takes}

    def _checked(self, value: Any, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(
                f"the function of {type(self).__name__} guidance returned {found} for {len(x)} samples; expected one number "
                f"for each, shape ({len(x)},): of the logits of a classifier, guidance.ClassLogProb(net) picks the label's"
            )
        return value


def _plain(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return conditions that autograd may save, also where they were made under inference mode."""
    return {
        name: value.clone() if isinstance(value, Tensor) and value.is_inference() else value
        for name, value in conditions.items()
    }


def gradient(function: Callable[[Tensor], tuple[Tensor, Tensor | None]], x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of a function of each sample, its value, and what it returns beside it.

    Gradients are enabled whatever the caller's mode is. Where the caller has them enabled too, the results can be
    differentiated again.

    Args:
        function: maps states, shape ``(batch, *event)``, to values, shape ``(batch,)``, and a tensor or ``None``.
        x: states, shape ``(batch, *event)``.

    Raises:
        ValueError: for a value that carries no gradient with respect to the states.

    Example:
        >>> with torch.inference_mode():
        ...     slope, value, _ = gradient(lambda y: (y.square().sum(1), None), torch.ones(1, 2))
        >>> slope
        tensor([[2., 2.]])
    """
    again = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        y = x if again and x.requires_grad else x.detach().clone().requires_grad_()
        value, beside = function(y)
        slope = None
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), y, create_graph=again, allow_unused=True)
        if slope is None:
            raise ValueError(
                "got a function for guidance whose value carries no gradient with respect to the state; expected a "
                "differentiable one, without no_grad(), detach(), argmax or rounding inside"
            )
    if again:
        return slope, value, beside
    return slope.detach(), value.detach(), None if beside is None else beside.detach()
