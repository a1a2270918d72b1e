r"""Solvers of reversed Markov chains: how tokens go from a time t to an earlier time s.

A solver says by which law each token is drawn, given the tokens and predictions of the stages before it in the step. Within
a stage all tokens are drawn independently. This is the error of every solver that takes fewer steps than there are tokens:
the true chain changes one token at a time. The same laws draw samples (:mod:`scoresde.discrete.drawing`) and propagate exact
probabilities of all sequences (:mod:`scoresde.discrete.laws`), by which orders are measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.discrete.prediction import TokenPrediction
from scoresde.discrete.processes.process import of_laws
from scoresde.solvers import Description

__all__ = [
    "TOKEN_SOLVERS",
    "Analytic",
    "Ancestral",
    "EulerTokens",
    "FirstHitting",
    "TauLeaping",
    "ThetaTrapezoidal",
    "TokenSolver",
    "token_solver",
]


@dataclass(frozen=True)
class TokenSolver(ABC):
    """Interface of the solvers on tokens; a subclass overrides :meth:`law` and :attr:`description`.

    Times may be one number for all samples, shape ``()``, or one for each sample, shape ``(batch,)``.
    """

    @property
    @abstractmethod
    def description(self) -> Description:
        """The claims of the solver; ``weak_order`` is the order in total variation between laws of sequences."""

    @property
    def name(self) -> str:
        """The name in the table of solvers."""
        return self.description.name

    def nodes(self, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """Return the times of the evaluations in a step from t to s, one for each stage; by default t alone."""
        return (t,)

    @abstractmethod
    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        """Return the law by which each token is drawn at the end of a stage, float64, shape ``(batch, *event, states)``.

        Args:
            seen: the predictions of this step so far, the last one at the present tokens.
            t, s: the times at which the step starts and ends.
        """


def jumped(prediction: TokenPrediction, rates: Tensor, h: Tensor) -> Tensor:
    r"""Return the law after the time h of a token that jumps at fixed rates, at most once: the first jump counts.

    With the total rate :math:`\Lambda`, the token becomes y with the probability
    :math:`(1 - e^{-\Lambda h})\, r_y / \Lambda`.

    Args:
        prediction: the prediction at the present tokens.
        rates: the rates of jumps to each token, 0 to the present one.
        h: the length of time.
    """
    h = of_laws(h, rates)
    total = rates.sum(-1, keepdim=True)
    some = torch.where(total > 0, -torch.expm1(-total * h) / torch.where(total > 0, total, 1.0), h)
    return _kept(prediction, some * rates, torch.exp(-total * h))


def _kept(prediction: TokenPrediction, jumps: Tensor, stay: Tensor) -> Tensor:
    """Return the law with the probabilities ``jumps`` of other tokens, and ``stay`` of the present one."""
    own = torch.nn.functional.one_hot(prediction.x, jumps.shape[-1]) > 0
    return torch.where(own, stay, jumps)


@dataclass(frozen=True)
class Ancestral(TokenSolver):
    r"""Ancestral sampling: each token from its law at s, given the token at t and the predicted data.

    .. math:: x_s^i \sim \sum_{x_0} p(x_0^i \mid x_t)\, p(x_s^i \mid x_t^i, x_0^i) .

    In the absorbing process a mask is lifted with the probability :math:`(\alpha_s - \alpha_t) / (1 - \alpha_t)`. The law of
    every single token is exact for an exact model.

    Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
    https://arxiv.org/abs/2107.03006.

    Example:
        >>> from scoresde.discrete import Absorbing, DenoisingModel
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 2), Absorbing(2))
        >>> here = even.predict(torch.tensor([[2]]), 0.5)  # of one mask
        >>> Ancestral().law([here], here.t, here.t / 2).round(decimals=4).tolist()  # it stays with the probability 1/2
        [[[0.25, 0.25, 0.5]]]
    """

    @property
    def description(self) -> Description:
        """First order; one evaluation a step."""
        paper = "Austin et al., 2021, https://arxiv.org/abs/2107.03006"
        return Description("ancestral", "ancestral", paper, weak_order=1, stochastic=True)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        return seen[-1].earlier(s)


@dataclass(frozen=True)
class Analytic(TokenSolver):
    r"""The analytic sampler: each token from its law at s by Tweedie's formula from the ratios at t.

    It uses the ratios as they are, and so differs from :class:`Ancestral` where a network's ratios are not those of
    predictions of the data. For a model that predicts the data the two are the same.

    Source: Lou et al., "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", 2024,
    https://arxiv.org/abs/2310.16834, section 4.

    Example:
        >>> from scoresde.discrete import RatioModel, Uniform
        >>> flat = RatioModel(lambda x, t: torch.zeros(*x.shape, 2), Uniform(2))
        >>> here = flat.predict(torch.tensor([[1]]), 0.5)
        >>> Analytic().law([here], here.t, here.t / 2).round(decimals=4).tolist()
        [[[0.4323, 0.5677]]]
    """

    @property
    def description(self) -> Description:
        """First order; one evaluation a step."""
        paper = "Lou et al., 2024, https://arxiv.org/abs/2310.16834"
        return Description("analytic", "ancestral", paper, weak_order=1, stochastic=True)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        return seen[-1].tweedie(s)


@dataclass(frozen=True)
class EulerTokens(TokenSolver):
    r"""Euler's method: a jump to y has the probability :math:`(t - s)\, r_y`, with the reverse rates r at t.

    Where a step is so long that these exceed one, they are scaled to one.

    Source: Campbell et al., "A Continuous Time Framework for Discrete Denoising Models", 2022,
    https://arxiv.org/abs/2205.14987.

    Example:
        >>> from scoresde.discrete import DenoisingModel, Uniform
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 2), Uniform(2, "constant: rate=1.0"))
        >>> here = even.predict(torch.tensor([[1]]), 0.5)
        >>> jump = EulerTokens().law([here], here.t, here.t - 0.01)[0, 0, 0]
        >>> torch.allclose(jump, 0.01 * here.rates[0, 0, 0])
        True
    """

    @property
    def description(self) -> Description:
        """First order; one evaluation a step."""
        paper = "Campbell et al., 2022, https://arxiv.org/abs/2205.14987"
        return Description("euler", "tau-leaping", paper, weak_order=1, stochastic=True)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        here = seen[-1]
        jumps = of_laws(t - s, here.rates) * here.rates
        total = jumps.sum(-1, keepdim=True)
        return _kept(here, jumps / total.clamp(min=1.0), (1 - total).clamp(min=0.0))


@dataclass(frozen=True)
class TauLeaping(TokenSolver):
    r"""Tau-leaping: jumps arrive at the reverse rates of time t, which are kept during the step.

    The number of jumps of a token is a Poisson variable. Of several jumps of one token the first counts: tokens have no
    order in which jumps could be added up.

    Source: Gillespie, "Approximate accelerated stochastic simulation of chemically reacting systems", 2001; for denoising
    models Campbell et al., 2022, https://arxiv.org/abs/2205.14987, section 4.3, who reject a token's change where several
    jumps meet, or add jumps of ordered levels up. The differences are of second order in the step.

    Example:
        >>> from scoresde.discrete import DenoisingModel, Uniform
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 2), Uniform(2, "constant: rate=1.0"))
        >>> here = even.predict(torch.tensor([[1]]), 0.5)
        >>> jump = TauLeaping().law([here], here.t, here.t - 0.01)[0, 0, 0]
        >>> torch.allclose(jump, -torch.expm1(-0.01 * here.rates[0, 0, 0]))
        True
    """

    @property
    def description(self) -> Description:
        """First order; one evaluation a step."""
        paper = "Gillespie, 2001; Campbell et al., 2022, https://arxiv.org/abs/2205.14987"
        return Description("tau-leaping", "tau-leaping", paper, weak_order=1, stochastic=True)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        return jumped(seen[-1], seen[-1].rates, t - s)


@dataclass(frozen=True)
class ThetaTrapezoidal(TokenSolver):
    r"""The theta-trapezoidal method of second order: tau-leaping to an inner time, and on with extrapolated rates.

    From t with the rates r of the tokens there to :math:`\rho = t - \theta (t - s)`, and from the tokens reached there with
    their rates r*, for the rest of the step, with

    .. math:: \big( \alpha_1 r^* - \alpha_2 r \big)_+ , \qquad \alpha_1 = \frac{1}{2 \theta (1 - \theta)}, \qquad
              \alpha_2 = \alpha_1 - 1 .

    A token that has jumped in the first stage goes on with the rates :math:`\alpha_1 r^*`. The subtracted term has no effect
    there in the mean: it would be a jump between two of the tokens to which it could have jumped, at rates that are the same
    in both directions. Without it no rate of such a token is negative. Elsewhere the order is two as far as the extrapolated
    rates are positive. Where a jump of one token lowers the rate of another to less than half, they are not. No method that
    draws the tokens of a stage independently, with a fixed number of stages, has order two there: two tokens that exclude
    each other jump in the same stage with a probability of second order in the step, and should never do so.

    Source: Ren et al., "Fast Solvers for Discrete Diffusion Models: Theory and Applications of High-Order Algorithms", 2025,
    https://arxiv.org/abs/2502.00234, after Anderson and Mattingly, "A weak trapezoidal method for a class of stochastic
    differential equations", 2011.

    Args:
        theta: the part of the step before the inner time, between 0 and 1.

    Raises:
        ValueError: for a ``theta`` out of this range.

    Example:
        >>> half = ThetaTrapezoidal(theta=0.4)
        >>> [round(float(t), 2) for t in half.nodes(torch.tensor(1.0), torch.tensor(0.5))], half.description.weak_order
        ([1.0, 0.8], 2)
    """

    theta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.theta < 1:
            raise ValueError(f"got theta={self.theta}; expected a number between 0 and 1, such as 0.5")

    @property
    def description(self) -> Description:
        """Second order; two evaluations a step."""
        paper = "Ren et al., 2025, https://arxiv.org/abs/2502.00234"
        return Description("theta-trapezoidal", "tau-leaping", paper, weak_order=2, evaluations=2, stochastic=True)

    def nodes(self, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """Return t and the inner time."""
        return t, t - self.theta * (t - s)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        first = seen[0]
        if len(seen) == 1:
            return jumped(first, first.rates, self.theta * (t - s))
        inner = seen[1]
        of_inner = 1 / (2 * self.theta * (1 - self.theta))
        unmoved = (inner.x == first.x)[..., None]
        rates = of_inner * inner.rates - torch.where(unmoved, (of_inner - 1) * first.rates, 0.0)
        return jumped(inner, rates.clamp(min=0.0), (1 - self.theta) * (t - s))


@dataclass(frozen=True)
class FirstHitting(TokenSolver):
    r"""The first-hitting sampler of the absorbing process, without an error of time: one mask is lifted at a time.

    Of n masks at time t the next one is lifted where :math:`1 - \alpha(\tau) = (1 - \alpha(t))\, u^{1 / n}` with a uniform
    number u. It is any of them with equal probability, and its token has the predicted law at :math:`\tau`. The samples of
    an exact model are exact, at one evaluation for each token; the number of steps has no influence.

    Source: Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate
    Categorical Sampling", 2024, https://arxiv.org/abs/2409.02908.

    Example:
        >>> import scoresde
        >>> from scoresde.discrete import Absorbing, MarkovChain
        >>> model = MarkovChain([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], length=4).model(Absorbing(2))
        >>> scoresde.sample(model, (1, 4), FirstHitting(), 1, progress=False).x.tolist()  # tokens alternate for certain
        [[0, 1, 0, 1]]
    """

    @property
    def description(self) -> Description:
        """No error of time, so no order; one evaluation for each token."""
        paper = "Zheng et al., 2024, https://arxiv.org/abs/2409.02908"
        return Description("first-hitting", "ancestral", paper, evaluations=None, stochastic=True)

    def law(self, seen: Sequence[TokenPrediction], t: Tensor, s: Tensor) -> Tensor:
        """Return the predicted law of each token, by which a mask is replaced once it is lifted."""
        return seen[-1].process.padded(seen[-1].x0)


TOKEN_SOLVERS: Table[Callable[..., TokenSolver]] = Table(
    "token solver",
    "scoresde.discrete.TOKEN_SOLVERS",
    {
        "ancestral": Ancestral,
        "analytic": Analytic,
        "euler": EulerTokens,
        "tau-leaping": TauLeaping,
        "theta-trapezoidal": ThetaTrapezoidal,
        "first-hitting": FirstHitting,
    },
    also="an object of a subclass of TokenSolver",
    check=callable,
    expects="a function that returns a TokenSolver",
)
"""The solvers on tokens by name; settings may follow the name: ``"theta-trapezoidal: theta=0.4"``."""


def token_solver(given: str | TokenSolver | None) -> TokenSolver:
    """Return the solver of a name with settings, or the object itself; ancestral sampling for ``None``.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else.

    Example:
        >>> token_solver("theta-trapezoidal: theta=0.4")
        ThetaTrapezoidal(theta=0.4)
    """
    if given is None:
        return Ancestral()
    made = TOKEN_SOLVERS.make(given) if isinstance(given, str) else given
    if not isinstance(made, TokenSolver):
        raise TypeError(
            f"got solver {given!r:.80} for a model on tokens; expected a name ({', '.join(TOKEN_SOLVERS)}) or a TokenSolver"
        )
    return made
