r"""The departure of a model from the Gaussian with the moments of its data, level of noise by level.

At high noise the data look like the Gaussian with their mean and covariance, whose probability flow is known in closed
form, :meth:`scoresde.score.DataMoments.flow`. The departure at a level :math:`\rho = \sigma / \alpha` is

.. math:: d(\rho) = \big( E \| m(x) - m_G(x) \|^2 \big)^{1/2},

the length of the difference of the data predictions of the model and of the Gaussian. The flow in :math:`x / \alpha` has the
slope :math:`(x / \alpha - m) / \rho`. A state that follows the Gaussian down to :math:`\rho` is therefore off by about
:math:`\int_\rho^\infty d(r)\, dr / r`, at most :math:`d(\rho) / 2` where d falls like :math:`r^{-2}` or faster. The noise
there has the standard deviation :math:`\rho` in every direction. So the share of the samples that end at another mode, since
they are carried over the border between two, is about :math:`d(\rho) / \rho`, and the others are off by no more than that,
relative to the scale of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Departure", "fingerprint"]

SAME = 1e-3
"""The relative difference of two fingerprints from which on the weights are others; rounding to bfloat16 makes less."""


@dataclass(frozen=True)
class Departure:
    """The departure of a model from the Gaussian of its data, measured by :func:`scoresde.sampling.measure_departure`.

    Attributes:
        lam: the levels, as half the log signal-to-noise ratio, rising.
        errors: d / rho at these levels, which estimates the error of the data.
        weights: the :func:`fingerprint` of the model on which they were measured.

    Raises:
        ValueError: for no levels, levels that do not rise, and errors that are negative or not finite.

    Example:
        >>> found = Departure((-5.0, -4.0, -3.0), (1e-5, 1e-4, 1e-3))
        >>> round(found.level(1e-4), 6), found.level(1e-6), found.level(1.0)
        (-4.0, None, -3.0)
    """

    lam: tuple[float, ...]
    errors: tuple[float, ...]
    weights: float = 0.0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.lam, self.lam[1:], strict=False))
        fits = len(self.lam) == len(self.errors) > 0 and rising
        if not fits or not all(map(math.isfinite, (*self.lam, *self.errors, self.weights))) or min(self.errors) < 0:
            raise ValueError(
                f"got the levels {self.lam} and the errors {self.errors}; expected as many of each, at least one, all "
                "finite, the levels rising and no error below 0"
            )

    def level(self, tolerance: float) -> float | None:
        """Return the last lam before the error first exceeds ``tolerance``; ``None`` if it does at once.

        The logarithm of the error is linear between two levels.
        """
        past = next((i for i, error in enumerate(self.errors) if error > tolerance), len(self.errors))
        if past == 0:
            return None
        if past == len(self.errors):
            return self.lam[-1]
        below, above = self.errors[past - 1], self.errors[past]
        share = math.log(tolerance / below) / math.log(above / below) if below > 0 else 0.0
        return self.lam[past - 1] + share * (self.lam[past] - self.lam[past - 1])

    def fits(self, model: nn.Module) -> bool:
        """Tell whether the weights of ``model`` are those on which the departure was measured."""
        return abs(fingerprint(model) - self.weights) <= SAME * abs(self.weights)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the departure as tensors by name, for a file."""
        columns = {"lam": self.lam, "errors": self.errors, "weights": (self.weights,)}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Departure:
        """Return the departure from the tensors made by :meth:`to_tensors`.

        Raises:
            ValueError: for other tensors.

        Example:
            >>> found = Departure((-5.0, -4.0), (1e-5, 1e-4), 2.5)
            >>> Departure.from_tensors(found.to_tensors()) == found
            True
        """
        if tensors.keys() != {"lam", "errors", "weights"} or tensors["weights"].numel() != 1:
            raise ValueError(f"got tensors {', '.join(sorted(tensors))} for a departure; expected lam, errors and weights")
        lam, errors = (tuple(tensors[name].double().flatten().tolist()) for name in ("lam", "errors"))
        return cls(lam, errors, float(tensors["weights"]))


def fingerprint(model: nn.Module) -> float:
    """Return the sum of the sizes of a model's first and last weights, which every step of a training changes.

    It tells models apart at little cost; :func:`scoresde.base.identity.digest` does so for certain. A model without weights
    has the fingerprint 0.

    Example:
        >>> fingerprint(nn.Linear(2, 2)) == fingerprint(nn.Identity())
        False
    """
    weights = [p.detach() for p in model.parameters() if p.is_floating_point()]
    return float(sum(p.double().abs().sum() for p in {id(p): p for p in (*weights[:1], *weights[-1:])}.values()))
