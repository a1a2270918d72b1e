"""Comparison of solvers: error against evaluations, on problems with known truth or on the flow of a trained network."""

from scoresde.comparison.arguments import DEFAULT_METRICS, DEFAULT_SOLVERS
from scoresde.comparison.attribution.decomposition import Decomposition, decompose
from scoresde.comparison.attribution.gaussian import decompose_gaussian
from scoresde.comparison.attribution.injection import eps_rms, inject
from scoresde.comparison.attribution.local import Attribution, attribute, local_errors
from scoresde.comparison.attribution.score_errors import Bias, Field, Rounding, ScoreError, Trained, White
from scoresde.comparison.cases import Case
from scoresde.comparison.measures import MEASURES
from scoresde.comparison.peers.foreign import Foreign, Levels
from scoresde.comparison.peers.samplers import PEERS
from scoresde.comparison.records import Record, Records, Trace
from scoresde.comparison.report.statistics import Rank, Ratio, best_ratio, evaluations_to_reach, orders, pareto, ranking
from scoresde.comparison.result import Comparison
from scoresde.comparison.runner import BUDGETS, compare
from scoresde.comparison.store import StoreError
from scoresde.comparison.suites import SUITES, Entry, Suite, suite
from scoresde.sampling.reference import Reference, flow_end

__all__ = [
    "BUDGETS",
    "DEFAULT_METRICS",
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
    "Records",
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
