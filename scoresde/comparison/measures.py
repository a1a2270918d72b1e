"""The measures of a comparison, in a table that the runner iterates over."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from scoresde import metrics
from scoresde.base.names import Table
from scoresde.metrics import Estimate
from scoresde.problems import GaussianMixture
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE

__all__ = ["MEASURES", "Estimate", "Measure", "Run", "of_samples"]


@dataclass(frozen=True)
class Run:
    """The samples that one solver drew from one start within one budget, and the data to measure them by.

    Attributes:
        problem: the distribution of the data, where it is known.
        model: the score model that was sampled.
        sde: its SDE.
        start, end: the states at both ends of the path, ``(n, *event)``, ``end`` in float64.
        reference: the end of the probability flow from the same start.
        truth: exact samples, ``(m, *event)``, from the distribution that ``end`` should have.
        evaluations: the counted evaluations of the network.
        seconds: the wall time of the solver.
        stochastic: whether the solver draws noise.
        generator: the random generator of measures that draw.
        strong: the end of a run with many more steps of the same SDE on the same Brownian path.
        t: the time of ``end``: 0 for the data, or where the path stops.
        features: a map from ``(n, *event)`` to ``(n, d)``, for distances between features.
        repeats: the seconds of repeated runs, which give the confidence interval of the time.
        memory: the peak memory of the run in bytes, beyond what was in use before.
    """

    problem: Any
    model: ScoreModel
    sde: GaussianSDE
    start: Tensor
    end: Tensor
    evaluations: int
    seconds: float
    stochastic: bool
    generator: torch.Generator
    reference: Tensor | None = None
    truth: Tensor | None = None
    strong: Tensor | None = None
    t: float = 0.0
    features: Callable[[Tensor], Tensor] | None = None
    repeats: tuple[float, ...] = ()
    memory: int | None = None

    @property
    def clean(self) -> bool:
        """Whether the run ends at the data and not at noised data."""
        return self.t == 0

    @functools.cached_property
    def has(self) -> frozenset[str]:
        """The names of the requirements of measures that this run meets.

        ``"reference"``, ``"strong"``, ``"truth"``, ``"memory"`` stand for the attribute of that name. ``"moments"`` stands
        for a problem whose mean and covariance exist, ``"log_prob"`` for one whose density exists where the run ends, and
        ``"modes"`` for a mixture, whose modes have weights. Every run has a time.
        """
        tests = {
            "reference": lambda: self.reference is not None,
            "strong": lambda: self.strong is not None,
            "truth": lambda: self.truth is not None,
            "memory": lambda: self.memory is not None,
            "moments": lambda: _moments(self) is not None,
            "log_prob": lambda: _log_prob(self)(self.end[:1]) is not None,
            "modes": lambda: _modes(self)(self.end[:1]) is not None,
        }
        return frozenset(name for name, test in tests.items() if _exists(test))

    def estimate(self, measure: Measure) -> Estimate:
        """Return the estimate of ``measure`` for this run.

        Raises:
            ValueError: if the run does not meet a requirement of the measure; the message names it.
        """
        if missing := measure.needs - self.has:
            raise ValueError(
                f"measure {measure.name!r} needs {', '.join(sorted(measure.needs))}, and the run has no "
                f"{', '.join(sorted(missing))}; take another measure, or another problem"
            )
        return measure.compute(self)


@dataclass(frozen=True)
class Measure:
    """One column of a comparison.

    Attributes:
        name: the key in :data:`MEASURES`.
        needs: the requirements of the measure, names of :attr:`Run.has`.
        compute: the function that returns the estimate for a run.
        doc: a description of one sentence.
        better: "lower", or "zero" where values below zero are as bad as values above.
        unit: the unit of the value, empty for a pure number.
    """

    name: str
    needs: frozenset[str]
    compute: Callable[[Run], Estimate]
    doc: str
    better: str = "lower"
    unit: str = ""


def _exists(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except ValueError:  # with the reason why there is none
        return False


def _moments(run: Run) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of the distribution that the end should have."""
    if run.problem is None:
        raise ValueError("the distribution of the data is not known")
    mean, covariance = run.problem.mean, run.problem.covariance
    if run.clean:
        return mean, covariance
    alpha, sigma = float(run.sde.alpha(run.t)), float(run.sde.sigma(run.t))
    return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64)


def _log_prob(run: Run) -> Callable[[Tensor], Tensor]:
    """Return the log-density of the distribution that the end should have."""
    if run.problem is None:
        raise ValueError("the distribution of the data is not known")
    if run.clean:
        return cast(Callable[[Tensor], Tensor], run.problem.log_prob)
    return lambda x: cast(Tensor, run.problem.log_prob(x, run.sde, run.t))


def _modes(run: Run) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the probabilities of the modes at samples, ``(n, *event) -> (n, K)``."""
    problem = run.problem
    if not isinstance(problem, GaussianMixture) or len(problem.means) < 2:
        raise ValueError("the distribution of the data is no mixture of several modes")
    covariances = problem.covariances.expand(len(problem.means), *problem.covariances.shape[1:])
    modes = [GaussianMixture(problem.means[[k]], covariances[[k]]) for k in range(len(problem.means))]
    densities = [_log_prob(replace(run, problem=mode)) for mode in modes]
    return lambda x: (torch.stack([f(x) for f in densities], 1) + problem.weights.log().to(x)).softmax(1)


def of_samples(function: Callable[..., float | Tensor | Estimate], name: str = "") -> Measure:
    """Return the measure that a function of the samples, or of the samples and exact ones, computes.

    Args:
        function: ``function(samples)``, or ``function(samples, truth)``, of shapes ``(n, *event)`` and ``(m, *event)`` in
            float64. It returns a number (lower is better), or an :class:`~scoresde.metrics.Estimate` with its interval.
        name: the name of the measure, by default the name of the function.

    Raises:
        TypeError: for something that cannot be called with one tensor or two.
        ValueError: for a function without a name.

    Example:
        >>> def spread(samples):
        ...     return samples.std()
        >>> of_samples(spread).name, sorted(of_samples(spread).needs)
        ('spread', [])
        >>> sorted(of_samples(metrics.energy_distance).needs)
        ['truth']
    """
    called = name or getattr(function, "__name__", "")
    if not callable(function):
        raise TypeError(
            f"got {function!r} for a metric; expected a name, a Measure, or a function of samples or (samples, truth)"
        )
    if not called or called == "<lambda>":
        raise ValueError("got a metric without a name; expected a mapping, such as metrics={'spread': function}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some functions written in C have no signature
        parameters = []
    required = [
        p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    ]
    if len(required) > 2 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise TypeError(
            f"got metric {called!r}, which needs {', '.join(p.name for p in required)}; expected a function of samples, "
            "or of (samples, truth): bind what else it needs with functools.partial, under a name of yours in a mapping"
        )
    paired = len(required) == 2 or any(p.name == "truth" for p in parameters)

    def compute(run: Run) -> Estimate:
        found = function(run.end, run.truth) if paired else function(run.end)
        return found if isinstance(found, Estimate) else Estimate.exact(float(found))

    doc = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".") or f"the function {called}"
    return Measure(called, _needs(*["truth"][: len(required) - 1]), compute, doc)


# The measures --------------------------------------------------------------------------------------------------------


def _rms(run: Run) -> Estimate:
    return metrics.rms_error(run.end, cast(Tensor, run.reference))


def _quantile(run: Run, q: float) -> Estimate:
    return metrics.error_quantile(run.end, cast(Tensor, run.reference), q)


def _strong(run: Run) -> Estimate:
    return metrics.rms_error(run.end, cast(Tensor, run.strong))


def _mean(run: Run) -> Estimate:
    return metrics.mean_error(run.end, *_moments(run))


def _covariance(run: Run) -> Estimate:
    return metrics.covariance_error(run.end, *_moments(run))


def _pair(run: Run) -> tuple[Tensor, Tensor]:
    """Return the samples and the exact ones, or the features of both."""
    pair = run.end, cast(Tensor, run.truth)
    return pair if run.features is None else (run.features(pair[0]), run.features(pair[1]))


def _sliced(run: Run) -> Estimate:
    return metrics.sliced_wasserstein_estimate(*_pair(run), generator=run.generator)


def _wasserstein(run: Run) -> Estimate:
    return metrics.wasserstein_estimate(*_pair(run))


def _energy(run: Run) -> Estimate:
    return metrics.energy_estimate(*_pair(run))


def _mmd(run: Run) -> Estimate:
    return metrics.mmd_estimate(*_pair(run))


def _kid(run: Run) -> Estimate:
    return metrics.mmd_estimate(*_pair(run), kernel="polynomial")


def _frechet(run: Run) -> Estimate:
    return metrics.frechet_estimate(*_pair(run))


def _mode_weights(run: Run) -> Estimate:
    return metrics.mode_weight_error(_modes(run)(run.end), run.problem.weights)


def _nll(run: Run) -> Estimate:
    return metrics.negative_log_likelihood(_log_prob(run), run.end, cast(Tensor, run.truth).to(run.end))


def _time(run: Run) -> Estimate:
    return metrics.seconds_per_evaluation([run.seconds, *run.repeats], run.evaluations)


def _memory(run: Run) -> Estimate:
    return Estimate.exact(cast(int, run.memory) / 2**20)


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


_ALL = (
    Measure("rms", _needs("reference"), _rms, "root mean square distance from the end of the flow from the same start"),
    Measure("median", _needs("reference"), partial(_quantile, q=0.5), "median over samples of that distance"),
    Measure("q95", _needs("reference"), partial(_quantile, q=0.95), "95 % quantile over samples of that distance"),
    Measure("strong", _needs("strong"), _strong, "root mean square distance from a fine run on the same Brownian path"),
    Measure("mean", _needs("moments"), _mean, "distance of the mean from the true one, relative to the deviation"),
    Measure("covariance", _needs("moments"), _covariance, "distance of the second moments from the true ones, relative"),
    Measure("sliced-wasserstein", _needs("truth"), _sliced, "mean over directions of the Wasserstein distance of order 1"),
    Measure("wasserstein", _needs("truth"), _wasserstein, "Wasserstein distance of order 2, by an optimal assignment"),
    Measure("energy", _needs("truth"), _energy, "energy distance, unbiased", "zero"),
    Measure("mmd", _needs("truth"), _mmd, "squared maximum mean discrepancy, Gaussian kernel, unbiased", "zero"),
    Measure("kid", _needs("truth"), _kid, "squared maximum mean discrepancy, cubic kernel, unbiased", "zero"),
    Measure("frechet", _needs("truth"), _frechet, "Frechet distance of the Gaussians with the same moments"),
    Measure("mode-weights", _needs("modes"), _mode_weights, "total variation between the weights of the modes"),
    Measure("nll", _needs("log_prob", "truth"), _nll, "negative log-likelihood, less that of the truth", "zero", "nats/dim"),
    Measure("time", _needs(), _time, "wall time of an evaluation", unit="s"),
    Measure("memory", _needs("memory"), _memory, "most memory held at once", unit="MiB"),
)

MEASURES: Table[Measure] = Table(
    "metric",
    "scoresde.comparison.MEASURES",
    {measure.name: measure for measure in _ALL},
    check=lambda value: isinstance(value, Measure),
    expects="a scoresde.comparison.measures.Measure",
)
"""Every measure by name."""
