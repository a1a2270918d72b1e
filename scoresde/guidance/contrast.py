r"""Guidance by the contrast of two predictions: the one wanted, and one that is worse in the direction to be amplified."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.guidance.scale import Scale, check_samples, checked_scale, guided_sde, scale_at
from scoresde.score import Calls, Conditions, ScoreModel, Wrapper
from scoresde.sde import Time

__all__ = ["Contrast", "Nulled"]

Factor = float | Tensor


class Contrast(Wrapper):
    r"""Interface of guidance by two predictions, :math:`D = D_{weak} + w\, (D_{strong} - D_{weak})`.

    A subclass gives both predictions, :meth:`both`, and may combine them in another way, :meth:`combined`. At w = 1 the
    result is the strong prediction.

    Args:
        model: the model of the strong prediction.
        scale: w, a number, a tensor with one for each sample, or a function of time.
        interval: the times (low, high) between which to guide. At other times the strong prediction is used, and a bound
            model makes no other. By default guidance is never off.

    Raises:
        TypeError: for a scale that is none of these, and a model that is no score model.
        ValueError: for a scale that is not finite, a reversed interval, and an SDE without Gaussian marginals.

    Example:
        >>> import scoresde
        >>> class Sharper(Contrast):
        ...     def both(self, x, t, conditions):
        ...         strong = self.model.x0(x, t, **conditions)
        ...         return strong, torch.zeros_like(strong)
        >>> model, x = scoresde.problems.ring().model(scoresde.VP()), torch.ones(1, 2)
        >>> bool(torch.allclose(Sharper(model, 2.0).x0(x, 0.5), 2 * model.x0(x, 0.5)))
        True
    """

    def __init__(self, model: ScoreModel, scale: Scale, interval: tuple[float, float] | None = None) -> None:
        guided_sde(model)
        super().__init__(model)
        self.scale = checked_scale(scale)
        self.interval = None if interval is None else _checked_interval(interval)

    # What a subclass gives -------------------------------------------------------------------------------------------

    @abstractmethod
    def both(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the strong and the weak data prediction, shapes of ``x``."""

    def strong(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """Return the strong data prediction alone, shape of ``x``."""
        return self.model.x0(x, t, **conditions)

    def combined(self, x: Tensor, t: Tensor, strong: Tensor, weak: Tensor, w: Factor) -> Tensor:
        """Return the guided data prediction, shape of ``x``; by default w times the contrast is added to the weak one."""
        return torch.lerp(weak, strong, w)

    # What follows ----------------------------------------------------------------------------------------------------

    @property
    def calls(self) -> Calls:
        """The network calls of both predictions."""
        return Calls(2 * self.model.calls.forward, 2 * self.model.calls.backward)

    def calls_at(self, t: float) -> Calls:
        """Return the network calls of a prediction at one time; outside the interval those of the strong one."""
        return self.calls if self._guides(t) else self.model.calls_at(t)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a scale of another length than the batch."""
        check_samples(self.scale, len(x))
        super().check_start(x, **conditions)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the guided data prediction, shape of ``x``."""
        t = self.sde.check_time(t)
        if self.interval is not None and t.ndim == 0 and not self._guides(float(t.detach())):
            return self.strong(x, t, conditions)
        strong, weak = self.both(x, t, conditions)
        w = scale_at(self.scale, t, strong)
        if self.interval is not None and t.ndim:
            inside = (t >= self.interval[0]) & (t <= self.interval[1])
            w = torch.where(expand(inside, strong).to(x.device), torch.as_tensor(w).to(x), x.new_ones(()))
        return self.combined(x, t, strong, weak, w)

    def experts(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[list[Tensor], list[Factor]]:
        """Return both data predictions and their weights w and 1 - w in the product of the two noised densities.

        Raises:
            ValueError: where the product changes with time by more than the noise: the scale is a function, or guidance
                is off at some times.
        """
        if (callable(self.scale) and not isinstance(self.scale, Tensor)) or self.interval is not None:
            raise ValueError(
                "got guidance whose scale changes with time, so that there is no density that it tilts; expected a scale "
                "that is a number, and no interval"
            )
        strong, weak = self.both(x, t, conditions)
        w = scale_at(self.scale, t, strong)
        return [strong, weak], [w, 1 - w]

    def _guides(self, t: float) -> bool:
        return self.interval is None or self.interval[0] <= t <= self.interval[1]


def _checked_interval(interval: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise ValueError(f"got interval={interval!r}; expected two times (low, high) between which to guide") from None
    if not 0 <= low < high:
        swapped = f": did you mean ({high:g}, {low:g})?" if 0 <= high < low else ""
        raise ValueError(f"got interval=({low:g}, {high:g}); expected two times with 0 <= low < high{swapped}")
    return low, high


# With and without a condition ----------------------------------------------------------------------------------------


class Nulled(Contrast):
    """Interface of guidance by the predictions of one model with its conditions and without them.

    Args:
        model: a conditional score model that also predicts without a condition.
        scale, interval: see :class:`Contrast`.
        null: the value of each condition that stands for its absence, by name, as in training with
            :class:`~scoresde.objectives.LabelDropout`: a number, or a tensor of the condition's shape without the batch
            dimension.
        batched: whether to make both predictions in one call of the network on twice the batch, where conditions can be
            stacked and the model is a network's own. ``False`` saves memory.

    Raises:
        ValueError: for no null value.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.MLP(2, num_classes=3)
        >>> guided = scoresde.guidance.ClassifierFree(scoresde.ScoreModel(net, scoresde.VP(), "v"), 2.0, {"label": 3})
        >>> isinstance(guided, Nulled), guided.null, guided.calls.forward
        (True, {'label': 3}, 2)
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        null: Mapping[str, Any] | None = None,
        interval: tuple[float, float] | None = None,
        *,
        batched: bool = True,
    ) -> None:
        super().__init__(model, scale, interval)
        if not isinstance(null, Mapping) or not null:
            raise ValueError(
                f"got null={null!r}; expected the value that stands for the absence of a condition, by its name: for a "
                "network of 10 classes null={'label': 10}"
            )
        self.null, self.batched = dict(null), batched
        _warn_if_untrained(model, self.null)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a scale of another length than the batch, and conditions without the one that guidance removes."""
        self._check_named(conditions)
        super().check_start(x, **conditions)

    def both(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the prediction with the conditions and the one without them, in one call where possible."""
        self._check_named(conditions)
        told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype)
        without = {**told.values, **{name: _like(null, told.values[name]) for name, null in self.null.items()}}
        stackable = all(name in told.per_sample and _entries(without[name]) for name in self.null)
        if not (self.batched and stackable) or isinstance(self.model, Wrapper):
            return self.model.x0(x, t, **told.values), self.model.x0(x, t, **without)
        stacked = {**told.repeated(2), **{name: _stacked(told.values[name], without[name]) for name in self.null}}
        strong, weak = self.model.x0(torch.cat([x, x]), t.repeat(2) if t.ndim else t, **stacked).chunk(2)
        return strong, weak

    def _check_named(self, conditions: Mapping[str, Any]) -> None:
        if missing := sorted(self.null.keys() - conditions.keys()):
            name = missing[0]
            raise ValueError(
                f"got no condition {name!r}, whose absence null={self.null!r} stands for; expected a value for it: "
                f"conditions={{{name!r}: ..}}"
            )


def _entries(value: Any) -> bool:
    return isinstance(value, Tensor | list)


def _like(null: Any, given: Any) -> Any:
    """Return the null value in the form of a given condition: for every sample, where that has an entry for each."""
    if isinstance(given, list):
        return [null] * len(given)
    if isinstance(given, Tensor) and given.ndim and null is not None and not isinstance(null, str):
        absent = torch.as_tensor(null, dtype=given.dtype, device=given.device)
        try:
            return absent.expand_as(given)
        except RuntimeError:
            raise ValueError(
                f"got a null value of shape {tuple(absent.shape)} for a condition of shape {tuple(given.shape)}; expected a "
                f"number, or the shape of one entry, {tuple(given.shape[1:])}"
            ) from None
    return null


def _stacked(given: Any, without: Any) -> Any:
    return given + without if isinstance(given, list) else torch.cat([given, without])


def _warn_if_untrained(model: ScoreModel, null: Mapping[str, Any]) -> None:
    """Warn where the model was trained here, and never without the conditions."""
    while isinstance(model, Wrapper) and model.dropped is None:
        model = model.model
    if model.dropped is None:
        return
    never = sorted(null.keys() - model.dropped.keys())
    other = [name for name in null.keys() & model.dropped.keys() if not _same(null[name], model.dropped[name])]
    if never:
        warnings.warn(
            f"the model was trained without label dropout: its prediction at {never[0]}={null[never[0]]!r} was never "
            f"trained, and guidance by it means nothing. Train with objective=LabelDropout('ddpm', {dict(null)!r}), or "
            "guide by a second model, trained without labels: guidance.Auto(model, unconditional, scale)",
            stacklevel=4,
        )
    elif other:
        warnings.warn(
            f"the model was trained with {other[0]}={model.dropped[other[0]]!r} for an absent condition, and is guided with "
            f"{null[other[0]]!r}, which it has not learned as such; take null={dict(model.dropped)!r}",
            stacklevel=4,
        )


def _same(a: Any, b: Any) -> bool:
    try:
        one, other = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return bool(a == b)
    return one.shape == other.shape and torch.allclose(one, other)
