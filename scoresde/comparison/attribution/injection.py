r"""Injection of score errors into an exact model, to test how solvers cope with a network whose error is known.

An error e is added to the noise prediction,

.. math:: \hat\epsilon(x, t) = \epsilon(x, t) + e(x, t), \qquad
          \hat D(x, t) = D(x, t) - \tfrac{\sigma}{\alpha}\, e(x, t).

The kinds of errors are in :mod:`scoresde.comparison.attribution.score_errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import as_time, expand
from scoresde.comparison.attribution.calibration import noised
from scoresde.comparison.attribution.score_errors import EpsError, ScoreError
from scoresde.problems.base import ExactModel, Problem
from scoresde.score import ScoreModel, Wrapper
from scoresde.sde import Time
from scoresde.training.batches import Samplable

__all__ = ["eps_rms", "inject"]


def inject(model: ScoreModel, *errors: ScoreError, data: Tensor | Samplable | None = None) -> ScoreModel:
    """Return ``model`` with errors in its score.

    Errors add up. An error that evaluates the model (:class:`~scoresde.comparison.Rounding`) sees the errors before it.

    Args:
        model: an exact model, or any other score model.
        errors: the errors, one or several.
        data: samples ``(n, *event)``, or anything with ``sample(n, generator)``, by which some errors are scaled or on which
            they are trained; by default the problem that made the model.

    Where alpha = 0, no finite error of the noise prediction is a finite error of the data prediction, so none is added.

    Raises:
        ValueError: if an error needs data and none are given.

    Example:
        >>> from scoresde import VP, problems
        >>> from scoresde.comparison import Bias, White
        >>> problem = problems.ring()
        >>> exact = problem.model(VP())
        >>> wrong = inject(exact, Bias(0.03), White(0.04))
        >>> round(eps_rms(wrong, exact, problem, 0.3), 2)  # independent errors add in squares
        0.05
    """
    for error in errors:
        if not isinstance(error, ScoreError):
            raise TypeError(f"got {type(error).__name__} for an error of the score; expected Bias(0.1), Field(0.1) or alike")
        known = _problem_of(model) if data is None else data
        model = _Erring(model, error.on(model, known))
    return model


def eps_rms(
    model: ScoreModel, truth: ScoreModel, data: Tensor | Samplable, t: Time, *, n: int = 4096, seed: int = 0
) -> float:
    """Return the root mean square distance of two noise predictions under the noised data at time ``t``.

    Example:
        >>> from scoresde import VP, problems
        >>> from scoresde.comparison import Bias
        >>> exact = problems.ring().model(VP())
        >>> round(eps_rms(inject(exact, Bias(0.1)), exact, problems.ring(), 0.3), 6)
        0.1
    """
    x = noised(model.sde, data, n, seed)(as_time(t).to(torch.float64))
    with torch.no_grad():
        return float((model.eps(x, t) - truth.eps(x, t)).square().mean().sqrt())


def _problem_of(model: ScoreModel) -> Problem[Any] | None:
    """Return the distribution of the data of an exact model, with or without injected errors."""
    while isinstance(model, _Erring):
        model = model.model
    return model.problem if isinstance(model, ExactModel) else None


class _Erring(Wrapper):
    """A model with an error e of its noise prediction, added to each kind of prediction directly."""

    def __init__(self, model: ScoreModel, error: EpsError) -> None:
        super().__init__(model)
        self.error = error

    def _added(self, x: Tensor, t: Time, conditions: dict[str, Any], gain: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the error times a gain at (alpha, sigma); zero where alpha = 0."""
        t = self.sde.check_time(t).to(torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        factor = torch.where(alpha > 0, gain(alpha, sigma), 0.0)
        times = t.to(x.device).expand(len(x))
        return expand(factor, x).to(x) * self.error(x, times, conditions)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        return self.model.x0(x, t, **conditions) + self._added(x, t, conditions, lambda a, s: -s / a)

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        return self.model.eps(x, t, **conditions) + self._added(x, t, conditions, lambda a, s: torch.ones_like(a))

    def v(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        # v = alpha eps - sigma x0, and x0 = (x - sigma eps) / alpha.
        return self.model.v(x, t, **conditions) + self._added(x, t, conditions, lambda a, s: a + s**2 / a)
