"""Solvers of SDEs with matrix coefficients: paths, predictions, rows and the table of their names."""

from scoresde.solvers.matrix.methods import em, exponential, gddim, sscs
from scoresde.solvers.matrix.path import MatrixPath, MatrixPoint, make_matrix_path
from scoresde.solvers.matrix.prediction import MatrixData, MatrixNoise, MatrixPrediction
from scoresde.solvers.matrix.rows import MatrixRow, MatrixSolver, matrix_rows
from scoresde.solvers.matrix.table import MATRIX_SOLVERS

__all__ = [
    "MATRIX_SOLVERS",
    "MatrixData",
    "MatrixNoise",
    "MatrixPath",
    "MatrixPoint",
    "MatrixPrediction",
    "MatrixRow",
    "MatrixSolver",
    "em",
    "exponential",
    "gddim",
    "make_matrix_path",
    "matrix_rows",
    "sscs",
]
