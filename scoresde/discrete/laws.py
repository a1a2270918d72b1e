r"""Exact laws of sequences: what a solver samples, without samples, by enumeration of all sequences.

A solver draws the tokens of a stage independently, so that the law of all sequences after the stage is a sum of products of
the laws of tokens over the sequences before it. For a few tokens of a few states this is computed to rounding, and the total
variation between a solver's law and the law of the data is the error of the solver, of its order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.discrete.prediction import Predictor, TokenPrediction
from scoresde.discrete.processes.process import Absorbing, TokenProcess
from scoresde.discrete.solvers import FirstHitting, TokenSolver, token_solver

__all__ = ["all_sequences", "noised_law", "solver_law", "total_variation"]

MOST = 4096
"""The largest number of sequences that are enumerated."""


def all_sequences(states: int, length: int) -> Tensor:
    """Return all sequences of tokens, shape ``(states ** length, length)``, int64, the last token running fastest.

    Raises:
        ValueError: for more than 4096 sequences, and for fewer than one state or token.

    Example:
        >>> all_sequences(2, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if whole("states", states, 1) ** whole("length", length, 1) > MOST:
        raise ValueError(
            f"got {length} tokens of {states} states, {float(states) ** length:.3g} sequences; expected at most {MOST} to "
            "enumerate: fewer tokens"
        )
    return torch.cartesian_prod(*[torch.arange(states)] * length).reshape(-1, length)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return the total variation between two laws on the same set, half of the sum of their differences.

    Example:
        >>> total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        0.25
    """
    return 0.5 * float((p - q).abs().sum())


def noised_law(process: TokenProcess, law: Tensor, t: float) -> Tensor:
    """Return the law of all noised sequences at time ``t``, shape ``(states ** length,)``, float64.

    Args:
        process: the process.
        law: the law of the data, shape ``(vocabulary,) * length``.
        t: the time.

    Example:
        >>> data = torch.tensor([1.0, 0.0])  # one token, always 0
        >>> noised_law(Absorbing(2), data, 0.25).round(decimals=4).tolist()  # a quarter is masked
        [0.75, 0.0, 0.25]
    """
    amount, p = process.amount(t), law.to(torch.float64)
    for axis in range(law.ndim):
        p = process.push(process.padded(p.movedim(axis, -1)), amount).movedim(-1, axis)
    return p.flatten()


def solver_law(
    model: Predictor,
    length: int,
    solver: str | TokenSolver,
    times: Sequence[float],
    start: Tensor | None = None,
    *,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return the exact law of the sequences that a solver samples, shape ``(states ** length,)``, float64.

    Args:
        model: a model on sequences; it is evaluated at all of them.
        length: the number of tokens of a sequence.
        solver: a name in :data:`~scoresde.discrete.TOKEN_SOLVERS` or a solver.
        times: falling times; where the last one is 0 the last step is ancestral, as in sampling.
        start: the law at the first time, by default that of the prior.
        conditions: values on which the model is conditioned, each the same for all sequences.

    Raises:
        ValueError: for more than 4096 sequences, and "first-hitting" on another process than :class:`Absorbing`.

    Example:
        >>> from scoresde.discrete import Absorbing, MarkovChain
        >>> chain = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], length=2)
        >>> process = Absorbing(2)
        >>> found = solver_law(chain.model(process), 2, "ancestral", [1.0, 0.0])  # both tokens at once, each by itself
        >>> round(total_variation(found, noised_law(process, chain.law, 0.0)), 4)
        0.35
    """
    process, method = model.process, token_solver(solver)
    x = all_sequences(process.states, length)
    law = _prior(process, length) if start is None else start.to(torch.float64)
    given = dict(conditions or {})
    with torch.no_grad():
        if isinstance(method, FirstHitting):
            return _first_hitting(model, x, law, times, given)
        for t, s in itertools.pairwise(torch.tensor(list(times), dtype=torch.float64)):
            law = _step(model, method, x, law, t, s, given)
    return law


def _prior(process: TokenProcess, length: int) -> Tensor:
    law = torch.ones(1, dtype=torch.float64)
    for _ in range(length):
        law = (law[:, None] * process.prior).flatten()
    return law


def _step(
    model: Predictor, solver: TokenSolver, x: Tensor, law: Tensor, t: Tensor, s: Tensor, given: Mapping[str, Any]
) -> Tensor:
    first = model.predict(x, t, **given)
    if s == 0:
        return _products(law, first.earlier(s))
    nodes = solver.nodes(t, s)
    if len(nodes) == 1:
        return _products(law, solver.law([first], t, s))
    if len(nodes) > 2:
        raise ValueError(
            f"got solver {solver.name!r} of {len(nodes)} stages; expected at most two, whose pairs are enumerated"
        )
    # The states of both stages in all pairs: those of the first vary along the first dimension.
    possible = law > 0
    weight = law[possible, None] * _products_each(solver.law([first], t, s)[possible])  # (n, m) probabilities of pairs
    second = model.predict(x, nodes[1], **given)
    pair = [_spread(first, possible, 1), _spread(second, torch.ones_like(possible), 0)]
    laws = solver.law(pair, t, s)  # (n, m, length, states)
    return _products(weight.flatten(), laws.expand(*weight.shape, *laws.shape[2:]).flatten(0, 1))


def _spread(of: TokenPrediction, chosen: Tensor, dim: int) -> TokenPrediction:
    """Return a prediction at the ``chosen`` sequences with a further dimension, to be broadcast against another one."""
    x, ratios = of.x[chosen].unsqueeze(dim), of.ratios[chosen].unsqueeze(dim)
    return TokenPrediction(of.process, x, of.t, x0=of.x0[chosen].unsqueeze(dim), ratios=ratios)


def _products_each(laws: Tensor) -> Tensor:
    """Return the laws of all sequences, ``(n, states ** length)``, for laws of tokens of shape ``(n, length, states)``."""
    found = laws[:, 0]
    for i in range(1, laws.shape[1]):
        found = (found[:, :, None] * laws[:, i, None]).flatten(1)
    return found


def _products(weight: Tensor, laws: Tensor) -> Tensor:
    """Return the mean of the laws of all sequences, each a product of the laws of its tokens.

    Args:
        weight: probabilities, shape ``(n,)``.
        laws: laws of tokens, shape ``(n, length, states)``.
    """
    used = weight > 0
    weight, laws = weight[used], laws[used]
    half = laws.shape[1] // 2
    if not half:
        return weight @ laws[:, 0]
    left, right = _products_each(laws[:, :half]), _products_each(laws[:, half:])
    return ((weight[:, None] * left).T @ right).flatten()


def _first_hitting(model: Predictor, x: Tensor, law: Tensor, times: Sequence[float], given: Mapping[str, Any]) -> Tensor:
    """Return the law of the first-hitting sampler, for a model whose predictions do not depend on the time of a mask."""
    process = model.process
    if not isinstance(process, Absorbing):
        raise ValueError(
            f"got solver 'first-hitting' on {type(process).__name__}; expected a model on Absorbing, or another solver"
        )
    predictions = [model.predict(x, t, **given).x0 for t in (0.25, 0.75)]
    if float((predictions[0] - predictions[1]).abs().max()) > 1e-9 or times[-1] > 0:
        raise ValueError(
            "got a model whose predictions depend on time, or a path that stops before t = 0; expected neither, for the "
            "times of the first-hitting sampler are random"
        )
    states, length = process.states, x.shape[1]
    strides = states ** torch.arange(length - 1, -1, -1)
    masked = x == process.mask
    for _ in range(length):
        after = torch.where(masked.any(1), 0.0, law)
        for place in range(length):
            here = masked[:, place] & (law > 0)
            share = law[here] / masked[here].sum(1)
            for token in range(process.vocabulary):
                to = (x[here] @ strides) + (token - process.mask) * strides[place]
                after.index_add_(0, to, share * predictions[0][here, place, token])
        law = after
    assert math.isclose(float(law.sum()), 1.0, rel_tol=1e-9)
    return law
