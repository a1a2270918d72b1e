"""Numerical analysis of solvers: order of convergence, linear map, exact law of samples and linear stability."""

from scoresde.analysis.convergence import Convergence, Measurement, convergence
from scoresde.analysis.error_constants import ErrorConstant, error_constants
from scoresde.analysis.fingerprint import Call, Difference, Fingerprint, Form, fingerprint, to_rows
from scoresde.analysis.law import law
from scoresde.analysis.moments import Moments, moments
from scoresde.analysis.stability import growth, stability

__all__ = [
    "Call",
    "Convergence",
    "Difference",
    "ErrorConstant",
    "Fingerprint",
    "Form",
    "Measurement",
    "Moments",
    "convergence",
    "error_constants",
    "fingerprint",
    "growth",
    "law",
    "moments",
    "stability",
    "to_rows",
]
