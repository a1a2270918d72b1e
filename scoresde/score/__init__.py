"""Score models: the interface between everything that estimates a score and everything that uses one."""

from scoresde.score.conditions import Conditions, Shared
from scoresde.score.departure import Departure
from scoresde.score.latent import Coder, LatentModel
from scoresde.score.matrix import MatrixModel
from scoresde.score.model import Calls, Evaluation, ScoreModel
from scoresde.score.moment_sums import MomentSums
from scoresde.score.moments import DataMoments
from scoresde.score.points import PointModel
from scoresde.score.predictions import PREDICTIONS, Coefficients, Parametrization, target
from scoresde.score.wrapper import Transformed, Wrapper

__all__ = [
    "PREDICTIONS",
    "Calls",
    "Coder",
    "Coefficients",
    "Conditions",
    "DataMoments",
    "Departure",
    "Evaluation",
    "LatentModel",
    "MatrixModel",
    "MomentSums",
    "Parametrization",
    "PointModel",
    "ScoreModel",
    "Shared",
    "Transformed",
    "Wrapper",
    "target",
]
