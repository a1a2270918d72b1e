"""Score models around another score model, the base of guidance, thresholding and conditioning on measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.score.model import Calls, ScoreModel
from scoresde.sde import GaussianSDE, Time

__all__ = ["Transformed", "Wrapper"]


class Wrapper(ScoreModel):
    """A score model around another one, ``model``; a subclass overrides :meth:`x0`.

    It shares the parameters, device, dtype and mode of the inner model. A prediction costs as many network calls as one of
    the inner model, unless the subclass overrides :attr:`calls`.

    Args:
        model: any score model.

    Raises:
        TypeError: if ``model`` is not a score model.

    Example:
        >>> import scoresde
        >>> class Halved(Wrapper):
        ...     def x0(self, x, t, **conditions):
        ...         return 0.5 * self.model.x0(x, t, **conditions)
        >>> halved = Halved(scoresde.problems.ring().model(scoresde.VP()))
        >>> samples = scoresde.sample(halved, (64, 2), "ddim", steps=20, progress=False)
        >>> samples.x.norm(dim=1).mean().item() < 0.7  # the ring has radius 1.4, and each step shrinks it
        True
    """

    def __init__(self, model: ScoreModel) -> None:
        if not isinstance(model, ScoreModel):
            raise TypeError(f"got {type(model).__name__} for the model to wrap; expected a ScoreModel: ScoreModel(net, sde)")
        super().__init__(
            model, model.sde, "x0" if isinstance(model.sde, GaussianSDE) else "score", sigma_data=model.sigma_data
        )

    @property
    def model(self) -> ScoreModel:
        """The inner score model."""
        inner: ScoreModel = self.net
        return inner

    @property
    def calls(self) -> Calls:
        """The network calls that one prediction costs; by default those of the inner model."""
        return self.model.calls

    def calls_at(self, t: float) -> Calls:
        """Return the network calls of a prediction at one time ``t``."""
        return self.model.calls_at(t) if type(self).calls is Wrapper.calls else self.calls

    @property
    def network(self) -> Any:
        """The network inside the inner model."""
        return self.model.network

    def to_data(self, x: Tensor) -> Tensor:
        """Return the data that states at the end of sampling stand for, by the inner model."""
        return self.model.to_data(x)

    def project(self, x: Tensor, **conditions: Any) -> Tensor:
        """Return the states without what lies outside of the subspace of the inner model's data."""
        return self.model.project(x, **conditions)

    def outside(self, x: Tensor, **conditions: Any) -> Tensor | None:
        """Return the number of dimensions outside of the subspace of the inner model's data, if there are any."""
        return self.model.outside(x, **conditions)

    def time_inputs(self, t: Tensor) -> Tensor:
        """Return the time inputs of the inner model's network at the times ``t``."""
        return self.model.time_inputs(t)

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse a prediction of the inner model that does not determine the data where alpha = 0."""
        super().check_convertible(t)
        self.model.check_convertible(t)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit the inner model."""
        self.model.check_start(x, **conditions)

    @property
    def calls_with_variance(self) -> Calls:
        """The network calls of a data prediction, and of the inner model's with its variance beside it for the fraction."""
        inner = self.model.calls_with_variance
        return Calls(self.calls.forward + inner.forward, self.calls.backward + inner.backward)

    def outputs(self, x: Tensor, t: Time, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Return :meth:`forward`, and the inner model's fraction of the learned variance, both of the shape of ``x``."""
        return self.forward(x, t, **conditions), self.model.outputs(x, t, **conditions)[1]

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return functions like those of :meth:`at`, with the inner model's fraction of the learned variance beside each."""
        inner = self.model.at_with_variance(times, device=device, dtype=dtype, **conditions)
        own = self.at(times, device=device, dtype=dtype, **conditions)

        def bind(x0: Callable[[Tensor], Tensor], both: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Any]:
            return lambda x: (x0(x), both(x)[1])

        return [bind(*each) for each in zip(own, inner, strict=True)]

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction, by default that of the inner model; shape of ``x``."""
        return self.model.x0(x, t, **conditions)


class Transformed(Wrapper):
    """A score model whose data predictions are transformed by a function, for clipping or thresholding.

    Args:
        model: any score model.
        transform: ``transform(m, t)`` returns the new data prediction for the data prediction m and its time. ``t`` is a
            number, or a tensor of shape ``(batch,)`` where samples have different times (adaptive solvers, the parallel
            driver).

    Example:
        >>> import scoresde
        >>> clipped = Transformed(scoresde.problems.ring().model(scoresde.VP()), lambda m, t: m.clamp(-1, 1))
        >>> clipped.x0(3 * torch.ones(1, 2), 0.1).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, model: ScoreModel, transform: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__(model)
        self.transform = transform

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the transformed data prediction, shape of ``x``."""
        m = self.model.x0(x, t, **conditions)
        return self.transform(m, t if isinstance(t, Tensor) and t.ndim else float(torch.as_tensor(t).detach()))

    @property
    def calls_with_variance(self) -> Calls:
        """The network calls of the inner model's prediction with its variance, of which both are made."""
        return self.model.calls_with_variance

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return functions like those of :meth:`at`, with the inner model's fraction of the learned variance beside each."""
        inner = self.model.at_with_variance(times, device=device, dtype=dtype, **conditions)

        def bind(both: Callable[[Tensor], tuple[Tensor, Tensor]], t: float) -> Callable[[Tensor], Any]:
            def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
                m, fraction = both(x)
                return self.transform(m, t), fraction

            return evaluate

        return [bind(*each) for each in zip(inner, times.tolist(), strict=True)]
