"""Comparing solvers: error against evaluations, on problems whose truth is known or on a network's own flow."""

from scoresde.compare.analysis import Rank, Ratio, best_ratio, evaluations_to_reach, orders, pareto, ranking
from scoresde.compare.arguments import DEFAULT_SOLVERS
from scoresde.compare.cases import Case
from scoresde.compare.decompose import Decomposition, decompose
from scoresde.compare.decompose_gaussian import decompose_gaussian
from scoresde.compare.foreign import Foreign, Levels
from scoresde.compare.inject import eps_rms, inject
from scoresde.compare.local import Attribution, attribute, local_errors
from scoresde.compare.measures import MEASURES
from scoresde.compare.peers import PEERS
from scoresde.compare.records import Comparison, Record, Trace
from scoresde.compare.reference import Reference, flow_end
from scoresde.compare.runner import BUDGETS, compare
from scoresde.compare.score_errors import Bias, Field, Rounding, ScoreError, Trained, White
from scoresde.compare.store import StoreError
from scoresde.compare.suites import SUITES, Entry, Suite, suite

__all__ = [
    "BUDGETS",
    "DEFAULT_SOLVERS",
    "MEASURES",
    "PEERS",
    "SUITES",
    "Attribution",
    "Bias",
    "Case",
    "Comparison",
    "Decomposition",
    "Entry",
    "Field",
    "Foreign",
    "Levels",
    "Rank",
    "Ratio",
    "Record",
    "Reference",
    "Rounding",
    "ScoreError",
    "StoreError",
    "Suite",
    "Trace",
    "Trained",
    "White",
    "attribute",
    "best_ratio",
    "compare",
    "decompose",
    "decompose_gaussian",
    "eps_rms",
    "evaluations_to_reach",
    "flow_end",
    "inject",
    "local_errors",
    "orders",
    "pareto",
    "ranking",
    "suite",
]
