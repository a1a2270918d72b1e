"""Classifier guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.guidance.scale import Scale
from scoresde.guidance.tilted import Tilted
from scoresde.models.labels import label_tensor
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE

__all__ = ["ClassLogProb", "Classifier"]


class Classifier(Tilted):
    r"""Classifier guidance: the gradient of :math:`s \log p(y \mid x)` is added to the score.

    With ``of="x"`` the classifier knows the noise: ``log_prob(x, t)`` is the log-probability of the class given the noised
    state. With the exact one and s = 1 the model is the conditional one (ADM-G).
    :class:`~scoresde.objectives.Classification` trains such a classifier.

    With ``of="x0"`` it is a classifier of clean data, ``log_prob(x0)``, applied to the data prediction, and its gradient
    passes through the score model. It needs no training on noised data, and is biased: it takes
    :math:`\log p(y \mid E[x_0 \mid x])` for :math:`\log E[p(y \mid x_0) \mid x]`. The two agree where little noise is left.

    For s other than 1 the density :math:`p(x)\, p(y \mid x)^s` is not sampled exactly; see
    :func:`~scoresde.guidance.feynman_kac`.

    Args:
        model: any score model, conditional or not.
        log_prob: the log-probability of what is wanted, shape ``(batch,)``: ``log_prob(x, t, **conditions)`` with t of shape
            ``(batch,)``, or ``log_prob(x0, **conditions)``. A module moves with the model.
        scale: s, a number, a tensor with one for each sample, or a function of time.
        of: ``"x"`` or ``"x0"``, see above.
        takes: the names of conditions that ``log_prob`` gets and the model does not, such as ``"label"`` for an
            unconditional model.
        shares: the names of conditions that both get.

    Raises:
        TypeError: for a ``log_prob`` that cannot be called with these arguments.
        ValueError: when sampling starts, for a noise-aware classifier that ignores the time; for a value of a wrong shape or
            without a gradient; and where alpha = 0.

    Sources: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233;
    for ``of="x0"`` Bansal et al., "Universal Guidance for Diffusion Models", 2023, https://arxiv.org/abs/2302.07121.

    Example:
        >>> import scoresde
        >>> from scoresde import problems
        >>> sde, both = scoresde.VP(), problems.GaussianMixture([[-1.0], [1.0]], 0.1)
        >>> right = problems.Gaussian([1.0], 0.1)
        >>> def log_prob(x, t):  # of the right component, by Bayes' theorem
        ...     return right.log_prob(x, sde, t) - both.log_prob(x, sde, t) + torch.tensor(0.5).log()
        >>> guided, x = Classifier(both.model(sde), log_prob, 1.0), torch.ones(1, 1, dtype=torch.float64)
        >>> bool(torch.allclose(guided.x0(x, 0.5), right.model(sde).x0(x, 0.5)))
        True
    """

    def __init__(
        self,
        model: ScoreModel,
        log_prob: Callable[..., Tensor],
        scale: Scale = 1.0,
        *,
        of: str = "x",
        takes: Sequence[str] | str = (),
        shares: Sequence[str] | str = (),
    ) -> None:
        super().__init__(model, scale, of, takes, shares)
        check_callable(log_prob, "log_prob", of, (*self.takes, *self.shares))
        self.log_prob: Any = log_prob

    def potential(self, at: Tensor, *t: Tensor, **conditions: Any) -> Tensor:
        """Return the log-probability, shape ``(batch,)``."""
        found: Tensor = self.log_prob(at, *t, **conditions)
        return found

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit, and a noise-aware classifier whose value is the same at two different times."""
        super().check_start(x, **conditions)
        if self.of == "x0":
            return
        own = self._split(conditions)[0]
        low, high = self.sde.span
        scale = 1.0
        if isinstance(self.sde, GaussianSDE):
            scale = float(torch.hypot(self.sde.alpha(high), self.sde.sigma(high)))  # of the start: the probe is of unit size
        probes = []
        with torch.no_grad():
            for t in (low + 0.1 * (high - low), low + 0.6 * (high - low)):
                times = torch.full((len(x),), t, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
                probes.append(self._checked(self.potential(x.detach() / scale, times, **own), x))
        if torch.equal(*probes):
            raise ValueError(
                "got a classifier for noised data that ignores the time: its log-probabilities are the same at two "
                "different times; expected one trained on noised data (objectives.Classification), or of='x0' to apply a "
                "classifier of clean data to the predicted data"
            )


def check_callable(function: Any, name: str, of: str, conditions: Sequence[str]) -> None:
    """Refuse a function that cannot be called with a state, with ``of="x"`` a time, and conditions.

    Raises:
        TypeError: saying how it will be called.
    """
    call = f"{name}({', '.join(['x, t' if of == 'x' else 'x0', *(f'{c}=..' for c in conditions)])})"
    if not callable(function):
        raise TypeError(f"got {type(function).__name__} for {name}; expected a function that is called as {call}")
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # a builtin, whose arguments cannot be known
        return
    try:
        signature.bind(*([None] * (1 + (of == "x"))), **dict.fromkeys(conditions))
    except TypeError as error:
        other = "; a function of clean data alone goes with of='x0'" if of == "x" else ""
        raise TypeError(f"got a {name} that cannot be called as {call} ({error}); expected one that can{other}") from None


class ClassLogProb(nn.Module):
    """The log-probability of a label by a classifier that returns logits, as guidance takes it.

    Args:
        net: ``net(x, t)`` for noised data or ``net(x0)`` for clean ones, returning logits of shape ``(batch, classes)``.

    Raises:
        ValueError: when called, for logits of another shape, and labels out of range.

    Example:
        >>> log_prob = ClassLogProb(lambda x, t: torch.stack([x[:, 0], -x[:, 0]], 1))
        >>> log_prob(torch.zeros(2, 3), torch.ones(2), label=[0, 1]).exp()
        tensor([0.5000, 0.5000])
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, x: Tensor, *t: Tensor, label: Any) -> Tensor:
        """Return the log-probability of each sample's label, shape ``(batch,)``."""
        logits = self.net(x, *t)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the classifier returned {found} for {len(x)} samples; expected logits, ({len(x)}, classes)")
        chosen, classes = label_tensor(label, len(x)), logits.shape[1]
        if chosen.device.type == "cpu" and bool(((chosen < 0) | (chosen >= classes)).any()):
            bad = int(chosen[(chosen < 0) | (chosen >= classes)][0])
            raise ValueError(
                f"got label {bad} for a classifier of {classes} classes; expected labels from 0 to {classes - 1}"
            )
        return F.log_softmax(logits, 1).gather(1, chosen.to(logits.device)[:, None])[:, 0].to(x.dtype)
