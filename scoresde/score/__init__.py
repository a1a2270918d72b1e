"""Score models: what a network predicts, and the conversions between all that it could have predicted."""

from scoresde.score.model import PREDICTIONS, Coefficients, ScoreModel

__all__ = ["PREDICTIONS", "Coefficients", "ScoreModel"]
