"""Denoising models: estimates of the data tokens from noised ones, the score models of integer states.

A denoising model implements one method, :meth:`DenoisingModel.x0`, the laws of the data tokens given the noised ones. Ratios
of probabilities, reverse rates and the laws of earlier states follow from it by the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.discrete.drawing import draw
from scoresde.discrete.prediction import TokenPrediction
from scoresde.discrete.processes.process import TokenProcess, check_tokens, of_laws
from scoresde.sampling.samples import OwnProcess, Samples
from scoresde.score import Calls, Shared

__all__ = ["DenoisingModel", "RatioModel", "TokenWrapper"]


class DenoisingModel(nn.Module, OwnProcess):
    r"""An estimate of the laws of data tokens, given noised ones.

    ``DenoisingModel(net, process)`` is the model of a network. For anything else, write a subclass that overrides
    :meth:`x0`. :func:`scoresde.sample`, :func:`scoresde.fit` and :func:`scoresde.compare` take it like a score model.

    Args:
        net: ``net(x, t, **conditions)`` returns logits, shape ``(batch, *event, vocabulary)``, for tokens ``x``, int64, and
            times ``t`` of shape ``(batch,)``. Logits of tokens from which x cannot come are ignored, so that in the
            absorbing process a token that is not masked stays.
        process: the process that noises tokens.

    Raises:
        TypeError: if ``process`` is not a process on tokens, or ``net`` is a model already.

    Example:
        >>> from scoresde.discrete import Absorbing
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 4), Absorbing(4))
        >>> even.x0(torch.tensor([[2, 4]]), 0.5).tolist()  # 4 is the mask
        [[[0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25]]]
    """

    dropped: Mapping[str, Any] | None
    """The null values of the conditions that training left out at times, by name; ``None`` where no training is known."""

    def __init__(self, net: Callable[..., Any] | None, process: TokenProcess) -> None:
        super().__init__()
        if not isinstance(process, TokenProcess):
            raise TypeError(
                f"got {type(process).__name__} for the process of a denoising model; expected a process on tokens: "
                "DenoisingModel(net, Absorbing(26))"
            )
        if isinstance(net, DenoisingModel) and not isinstance(self, TokenWrapper):
            raise TypeError(
                "got a denoising model for the network of another one; expected a function of (x, t): for a model made of "
                "another one, subclass scoresde.discrete.TokenWrapper and override x0"
            )
        self.net: Any = net
        self.process = process
        self.dropped = None

    # What a model implements -----------------------------------------------------------------------------------------

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens given x, float64, ``(batch, *event, vocabulary)``; a subclass overrides this.

        Args:
            x: noised tokens, shape ``(batch, *event)``, int64.
            t: time, shape ``()`` or ``(batch,)``.
            conditions: passed to the network.
        """
        p = self._logits(x, t, conditions, self.process.vocabulary).softmax(-1)
        return self.process.constrained(x, p, self.process.amount(t))

    @property
    def calls(self) -> Calls:
        """The network calls that one prediction costs; a subclass that calls its network twice overrides this."""
        return Calls()

    # What follows from it --------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, t: Tensor | float, **conditions: Any) -> TokenPrediction:
        """Return the prediction at ``x`` and ``t`` in every form, from one evaluation."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return TokenPrediction(self.process, x, t, x0=self.x0(x, t, **conditions).to(torch.float64))

    def forward(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens, as :meth:`x0` does."""
        return self.x0(x, t, **conditions)

    @property
    def sde(self) -> TokenProcess:
        """The noising process, under the name by which training asks a score model for it."""
        return self.process

    @property
    def network(self) -> Any:
        """The network, which a model around others looks for inside of them."""
        return self.net

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU if there are no parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def check_convertible(self, t: float | None = None) -> None:
        """Accept every time: the law of the data tokens exists at all of them."""

    def check_data(self, data: Tensor) -> Tensor:
        """Return data to train on, after a check that they are tokens of the vocabulary."""
        return check_tokens(data, self.process.vocabulary, "data")

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit the model; called before the first step. The default accepts all."""

    def draw(self, shape_or_start: Tensor | Sequence[int], solver: Any, steps: int, **options: Any) -> Samples:
        """Draw samples; :func:`scoresde.sample` calls this, and explains the arguments."""
        return draw(self, shape_or_start, solver, steps, **options)

    # For networks ----------------------------------------------------------------------------------------------------

    def _logits(self, x: Tensor, t: Tensor | float, conditions: Mapping[str, Any], entries: int) -> Tensor:
        """Return the output of the network, float64, shape ``(batch, *event, entries)``."""
        time = torch.as_tensor(t).to(device=x.device, dtype=torch.float32).expand(x.shape[0])
        given = {name: value.value if isinstance(value, Shared) else value for name, value in conditions.items()}
        found = self.net(x, time, **given)
        shape = (*x.shape, entries)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape or not found.is_floating_point():
            got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the network returned {got} for tokens of shape {tuple(x.shape)}; expected logits of shape {shape}, one "
                f"for each of {entries} tokens"
            )
        return found.to(torch.float64)

    def __repr__(self) -> str:
        if isinstance(self.net, DenoisingModel):
            return f"{type(self).__name__}({self.net!r})"
        parameters = sum(p.numel() for p in self.parameters())
        net = type(self.net).__name__ + f" of {parameters:,} parameters" * bool(parameters)
        return f"{type(self).__name__}({net}, {self.process!r})"


class RatioModel(DenoisingModel):
    r"""A denoising model whose network estimates the logarithms of the ratios :math:`p_t(x^{i \to y}) / p_t(x)`.

    It is trained by :class:`~scoresde.discrete.ScoreEntropy`. Its predictions of the data follow by Tweedie's formula, and
    need not be normalised otherwise. In the absorbing process the factor :math:`\alpha / (1 - \alpha)`, which all ratios
    have in common, is left to the process, as published.

    Source: Lou et al., "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", 2024,
    https://arxiv.org/abs/2310.16834.

    Args:
        net: ``net(x, t, **conditions)`` returns logarithms of ratios, shape ``(batch, *event, states)``; the entry of x
        itself
            is ignored.
        process: the process that noises tokens.

    Example:
        >>> from scoresde.discrete import Uniform
        >>> flat = RatioModel(lambda x, t: torch.zeros(*x.shape, 3), Uniform(3))
        >>> flat.predict(torch.tensor([[1]]), 0.5).ratios.tolist()
        [[[1.0, 1.0, 1.0]]]
    """

    def predict(self, x: Tensor, t: Tensor | float, **conditions: Any) -> TokenPrediction:
        """Return the prediction at ``x`` and ``t``, whose ratios are those of the network."""
        t = torch.as_tensor(t, dtype=torch.float64)
        logs = self._logits(x, t, conditions, self.process.states)
        mask = getattr(self.process, "mask", None)
        if mask is not None:
            logs = logs - of_laws(torch.log(torch.expm1(self.process.amount(t))), logs)
        ratios = torch.exp(logs)
        own = torch.nn.functional.one_hot(x, self.process.states) > 0
        if mask is not None:  # a token that is not masked cannot be another one
            ratios = torch.where((x == mask)[..., None], ratios, 0.0)
        return TokenPrediction(self.process, x, t, ratios=torch.where(own, 1.0, ratios))

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens that the ratios imply, float64, ``(batch, *event, vocabulary)``."""
        return self.predict(x, t, **conditions).x0


class TokenWrapper(DenoisingModel):
    """A denoising model around another one, ``model``; a subclass overrides :meth:`x0`.

    Args:
        model: any denoising model, whose parameters, device and mode it shares.

    Raises:
        TypeError: for anything but a denoising model.

    Example:
        >>> from scoresde.discrete import MarkovChain, Uniform
        >>> inner = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length=2).model(Uniform(2))
        >>> TokenWrapper(inner).x0(torch.tensor([[0, 0]]), 1.0).shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, model: DenoisingModel) -> None:
        if not isinstance(model, DenoisingModel):
            raise TypeError(
                f"got {type(model).__name__} for the model to wrap; expected a DenoisingModel: DenoisingModel(net, process)"
            )
        super().__init__(model, model.process)
        self.dropped = model.dropped

    @property
    def model(self) -> DenoisingModel:
        """The inner model."""
        inner: DenoisingModel = self.net
        return inner

    @property
    def network(self) -> Any:
        """The network of the inner model."""
        return self.model.network

    @property
    def calls(self) -> Calls:
        """The network calls that one prediction costs; by default those of the inner model."""
        return self.model.calls

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens, by default those of the inner model."""
        return self.model.x0(x, t, **conditions)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit the inner model."""
        self.model.check_start(x, **conditions)
