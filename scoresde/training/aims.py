"""The objective of a training: named, given or the default of the kind of model."""

from __future__ import annotations

from typing import Any

from scoresde.discrete import DenoisingModel
from scoresde.discrete.objectives import token_objective
from scoresde.objectives import Objective
from scoresde.objectives import objective as named

__all__ = ["objective_of"]


def objective_of(model: Any, given: str | Objective | None) -> Objective:
    """Return the objective called ``given`` for this kind of model, or ``given`` itself where it is an objective.

    The default, for ``None``, is "ddpm" for a score model and "sedd" for a model on tokens.

    Example:
        >>> from scoresde import ScoreModel, VP
        >>> objective_of(ScoreModel(lambda x, t: x, VP()), None)
        DSM(weighting='ddpm', times='auto', stratified=True, noise='fresh')
    """
    if isinstance(model, DenoisingModel):
        return token_objective(given)
    return named("ddpm" if given is None else given)
