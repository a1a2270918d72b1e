"""Networks on point sets, such as molecules and particles."""

from scoresde.models.points.egnn import EGNN

__all__ = ["EGNN"]
