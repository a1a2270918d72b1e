"""Score models: one interface for networks, exact distributions and score models made of other score models.

A score model implements one method, the data prediction ``x0(x, t, **conditions)``. The noise prediction, the score, v, the
binding to the times of a path, every driver, the likelihood and training follow from it. The output of a network converts
into each of these predictions directly, which is more accurate. For a subclass that overrides ``x0`` they are computed from
its ``x0``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from scoresde.base.shape import check_batch, expand
from scoresde.score.departure import Departure
from scoresde.score.moments import DataMoments
from scoresde.score.output import evaluate, evaluate_bound, halves, unwrapped
from scoresde.score.predictions import PREDICTIONS, Coefficients
from scoresde.sde import SDE, Chain, GaussianSDE, MatrixSDE, Time

__all__ = ["Calls", "Evaluation", "ScoreModel"]

Pair = tuple[Tensor, Tensor]


class Calls(NamedTuple):
    """The cost of one data prediction: the numbers of forward and backward calls of a network.

    Example:
        >>> from scoresde import VP, problems
        >>> problems.ring().model(VP()).calls
        Calls(forward=1, backward=0)
    """

    forward: int = 1
    backward: int = 0


class Evaluation:
    """The data prediction at one time, ``m = of_x x + of_output output(x)``, as a function of ``x`` alone.

    A driver that needs another combination of x and m can compute it from ``output`` directly.

    Example:
        >>> halved = Evaluation(lambda x: x**2, of_x=0.5, of_output=2.0)
        >>> halved(torch.tensor([3.0]))  # 0.5 x + 2 x^2
        tensor([19.5000])
    """

    __slots__ = ("of_output", "of_x", "output")

    def __init__(self, output: Callable[[Tensor], Tensor], of_x: float = 0.0, of_output: float = 1.0) -> None:
        self.output, self.of_x, self.of_output = output, of_x, of_output

    def __call__(self, x: Tensor) -> Tensor:
        output = self.output(x)
        if self.of_x == 0 and self.of_output == 1:
            return output
        return torch.add(self.of_output * output, x, alpha=self.of_x)


class ScoreModel(nn.Module):
    r"""An estimate of the score of the noised data.

    ``ScoreModel(net, sde)`` is the score model of a network. For anything else, write a subclass that overrides :meth:`x0`,
    the data prediction; everything else follows from it. To change another score model, subclass
    :class:`~scoresde.score.Wrapper`. A subclass that calls its network more than once for a prediction overrides
    :attr:`calls`.

    Args:
        net: ``net(x, t, **conditions) -> (batch, *event)``, with ``t`` of shape ``(batch,)`` in float32 at least. It may
            return a tensor, a tuple whose first entry is one, or a mapping or object with ``sample``.
        sde: the forward SDE or chain. The network of a chain gets the index of the step, ``chain.index(t)`` = 0..n-1.
        predicts: the quantity that the network predicts, a name in :data:`~scoresde.score.PREDICTIONS`. The default is
            ``"eps"``, and ``"score"`` on an SDE without Gaussian marginals, where nothing else is defined.
        sigma_data: standard deviation of the data, for ``"edm"``.
        learned_variance: whether the network returns twice the channels (dimension 1 of x). The second half then places the
            logarithm of the reverse variance between its bounds, -1 at the lower and 1 at the upper one. Only the ancestral
            solvers with ``variance="learned"`` and the variational bound use it. Source: Nichol and Dhariwal, "Improved
            Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672.
        time: a function that maps ``t`` to the time input of the network. By default this is ``t`` itself, the index for a
            chain, and :math:`c_{noise} = \tfrac14 \log(\sigma / \alpha)` for ``"edm"`` (at most 10, where alpha = 0).

    Raises:
        TypeError: if ``sde`` is neither an SDE nor a chain, and for a subclass that overrides ``eps``, ``score``, ``v``,
            ``forward`` or ``at`` without :meth:`x0`, from which they must follow.
        ValueError: for an unknown prediction.

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None], VP())  # exact for standard normal data
        >>> x = torch.ones(2, 3)
        >>> bool(torch.allclose(model.score(x, 0.3), -x))
        True
        >>> class Clamped(ScoreModel):
        ...     def x0(self, x, t, **conditions):
        ...         return super().x0(x, t, **conditions).clamp(-0.125, 0.125)
        >>> clamped = Clamped(model.net, model.sde)
        >>> clamped.x0(x, 0.3).max().item(), bool(torch.equal(clamped.score(x, 0.3), model.score(x, 0.3)))
        (0.125, False)
    """

    dropped: Mapping[str, Any] | None
    """The null values of the conditions that training left out at times, by name; ``None`` where no training is known."""

    moments: DataMoments | None = None
    """The mean and covariance of the data that the model describes, where they are known; a training sets them."""

    departure: Departure | None = None
    """How far the model departs from the Gaussian with these moments, by which ``solver="auto"`` spares steps: see
    :func:`scoresde.sampling.measure_departure`; a training sets it."""

    tuned: Any
    """The solver that was tuned for this model and is saved with it, named ``solver="tuned"``; ``None`` if none was."""

    _derived: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._derived = cls.x0 is not ScoreModel.x0
        own = [
            name for name in ("eps", "score", "v", "forward", "at") if getattr(cls, name) is not getattr(ScoreModel, name)
        ]
        if own and not cls._derived:
            raise TypeError(
                f"got a score model {cls.__name__} that overrides {', '.join(own)} and not x0; expected the data prediction "
                "x0(self, x, t, **conditions), from which solvers and all else follow: x0 = (x - sigma eps) / alpha"
            )

    def __init__(
        self,
        net: Callable[..., Any] | None,
        sde: SDE | Chain,
        predicts: str | None = None,
        *,
        sigma_data: float = 0.5,
        learned_variance: bool = False,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sde, SDE | Chain):
            raise TypeError(
                f"got {type(sde).__name__} for the SDE of a score model; expected an SDE or a chain: ScoreModel(net, VP())"
            )
        gaussian = isinstance(sde, GaussianSDE | Chain)
        predicts = predicts or ("eps" if gaussian else "score")
        predicts = PREDICTIONS.name(predicts)
        if not gaussian and (predicts != "score" or learned_variance):
            raise ValueError(
                f"got predicts={predicts!r}, learned_variance={learned_variance} on {type(sde).__name__}, which has no "
                "Gaussian marginals: there is a score, but no alpha and sigma to convert it with; expected predicts='score'"
            )
        if not sigma_data > 0:
            raise ValueError(f"got sigma_data={sigma_data}; expected a positive number")
        if isinstance(sde, MatrixSDE) and not self._derived:
            raise TypeError(
                f"got {type(sde).__name__}, whose coefficients are matrices, for ScoreModel; expected "
                "scoresde.score.MatrixModel(net, sde)"
            )
        if not self._derived and (net is None or isinstance(net, ScoreModel)):
            raise TypeError(
                f"got {type(net).__name__} for the network of a score model; expected a function of (x, t): for a model "
                "made of another one, subclass scoresde.score.Wrapper and override x0"
            )
        self.net: Any = net
        # On an SDE without marginals there is a score alone: what needs more says so.
        self.sde = cast(GaussianSDE, sde.sde() if isinstance(sde, Chain) else sde)
        if isinstance(self.sde, GaussianSDE):
            self.sde.check_schedule()
        self.predicts = predicts
        self.sigma_data = sigma_data
        self.learned_variance = learned_variance
        self.dropped = None
        self.tuned = None
        self._time = time or (sde.index if isinstance(sde, Chain) else self._default_time)

    # What a model implements -----------------------------------------------------------------------------------------

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction E[x_0 | x_t = x], shape of ``x``; a subclass overrides this method."""
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        return _combine(c.x0, x, self._outputs(x, t, c.c_in, conditions)[0])

    @property
    def calls(self) -> Calls:
        """The network calls that one data prediction costs; a subclass that calls its network twice overrides this."""
        return Calls()

    def calls_at(self, t: float) -> Calls:
        """Return the network calls of a prediction at one time ``t``; fewer than :attr:`calls` where a model spares some."""
        return self.calls

    @property
    def calls_with_variance(self) -> Calls:
        """The network calls of a data prediction with the fraction of a learned variance beside it.

        A subclass that overrides :meth:`x0` needs one call more than :attr:`calls`, for the fraction.
        """
        return Calls(self.calls.forward + self._derived, self.calls.backward)

    # What follows from it --------------------------------------------------------------------------------------------

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the noise prediction E[eps | x_t = x] = -sigma score, shape of ``x``.

        On an SDE with matrix coefficients it is the noise of the last variable, :meth:`scoresde.sde.MatrixSDE.eps`.
        """
        if isinstance(self.sde, MatrixSDE):
            return self.sde.eps(x, self.x0(x, t, **conditions), t)
        t = self.sde.check_time(t)
        c = self._coefficients("x0", t) if self._derived else self.coefficients(t)
        return self._convert(c.eps, c, x, t, conditions)

    def score(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the score of the noised data, -eps / sigma, shape of ``x``."""
        if isinstance(self.sde, MatrixSDE):
            return self.sde.score(x, self.x0(x, t, **conditions), t)
        if not isinstance(self.sde, GaussianSDE):
            t = torch.as_tensor(t, dtype=torch.float64) if not isinstance(t, Tensor) else t
            return self._outputs(x, t, None, conditions)[0]
        t = self.sde.check_time(t)
        c = self._coefficients("x0", t) if self._derived else self.coefficients(t)
        sigma = self.sde.sigma(t.to(torch.float64))
        return self._convert((-c.eps[0] / sigma, -c.eps[1] / sigma), c, x, t, conditions)

    def v(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the v-prediction alpha eps - sigma x0, shape of ``x``."""
        t = self.sde.check_time(t)
        c = self._coefficients("x0", t) if self._derived else self.coefficients(t)
        alpha, sigma = self.sde.alpha(t.to(torch.float64)), self.sde.sigma(t.to(torch.float64))
        pair = (alpha * c.eps[0] - sigma * c.x0[0], alpha * c.eps[1] - sigma * c.x0[1])
        return self._convert(pair, c, x, t, conditions)

    def forward(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the quantity named by ``predicts`` at ``x`` and ``t``, the output of the network; shape of ``x``."""
        if not isinstance(self.sde, GaussianSDE):
            return self.score(x, t, **conditions)
        t = self.sde.check_time(t)
        c = self.coefficients(t)
        if not self._derived:
            return self._outputs(x, t, c.c_in, conditions)[0]
        of_x, of_output = c.x0  # x0 = of_x x + of_output n, solved for n
        return _combine((-of_x / of_output, 1 / of_output), x, self.x0(x, t, **conditions))

    def outputs(self, x: Tensor, t: Time, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Return the output of :meth:`forward` and the fraction f of the learned variance, both of the shape of ``x``.

        The reverse variance v lies between its bounds v_lower and v_upper: log v = (1 - f) log v_lower + f log v_upper.

        Raises:
            ValueError: for a model without a learned variance.
        """
        t = self.sde.check_time(t)
        output, fraction = self._outputs(x, t, self.coefficients(t).c_in, conditions)
        return self.forward(x, t, **conditions) if self._derived else output, self._learned(fraction)

    def at(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the data predictions at ``times``, each a function of ``x`` alone; the work on the host is done in advance.

        For a network they are :class:`Evaluation` objects: its times are on ``device`` and its coefficients are Python
        numbers. A call launches the network and one fused update, and does not wait for the device.
        """
        if not self._derived:
            return self._bound(times, device, dtype, conditions)

        def bind(t: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: self.x0(x, t, **conditions)

        return [bind(t) for t in times.to(device="cpu", dtype=torch.float64)]

    @property
    def jumps(self) -> bool:
        """Whether the network takes ``to``, the time at which a jump ends, and says so by an attribute ``jumps``."""
        return bool(getattr(self.net, "jumps", False))

    def at_jumps(
        self, times: Tensor, ends: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the data predictions of the jumps from ``times`` to ``ends``, each a function of ``x`` alone.

        The network gets the time input of the end as the condition ``to``, with an entry for each sample; 0 stands for the
        data. A model whose network takes none predicts the data at ``times``, as by :meth:`at`.
        """
        if not self.jumps:
            return self.at(times, device=device, dtype=dtype, **conditions)

        def bind(t: Tensor, to: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: self.x0(x, t, to=to.expand(x.shape[0]), **conditions)

        inputs = self.time_inputs(ends).to(device=device, dtype=_time_dtype(dtype))
        return [bind(t, to) for t, to in zip(times.to(device="cpu", dtype=torch.float64), inputs, strict=True)]

    def time_inputs(self, t: Tensor) -> Tensor:
        """Return the time inputs of the network at the times ``t``, float64, with finite values at both ends."""
        return torch.nan_to_num(self._time(t.to(torch.float64)), posinf=10.0, neginf=-10.0)

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return functions of ``x`` like those of :meth:`at`, each giving the data prediction and the learned fraction.

        :meth:`outputs` explains the fraction.
        """
        if not self.learned_variance:
            self._learned(None)
        bound = self._bound(times, device, dtype, conditions, doubled=True)
        predicted = self.at(times, device=device, dtype=dtype, **conditions) if self._derived else [None] * len(bound)

        def bind(of: Evaluation, x0: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            def both(x: Tensor) -> tuple[Tensor, Tensor]:
                output, fraction = halves(of.output(x))
                return torch.add(of.of_output * output, x, alpha=of.of_x) if x0 is None else x0(x), fraction

            return both

        return [bind(*each) for each in zip(bound, predicted, strict=True)]

    def coefficients(self, t: Time) -> Coefficients:
        """Return the coefficients that convert the network's output at the times ``t``, float64, shapes of ``t``."""
        return self._coefficients(self.predicts, t)

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse a prediction that does not determine the data where alpha = 0.

        Args:
            t: the time to check; by default the noisy end of the SDE.

        Raises:
            ValueError: if alpha = 0 at this time and the model predicts the noise or the score, which are then functions of
                x alone.
        """
        if not isinstance(self.sde, GaussianSDE):
            return
        t = self.sde.span[1] if t is None else t
        if float(self.sde.alpha(t)) > 1e-300:
            return
        c = self.coefficients(t)
        if not all(bool(torch.isfinite(factor)) for factor in c.x0):
            raise ValueError(
                f"got a model that predicts {self.predicts!r} at t={t:.6g} of {type(self.sde).__name__}, where alpha = 0 "
                "and the state is all noise, which tells nothing of the data; expected predicts='v', 'velocity' or 'x0', or "
                f"a smaller t_max on the SDE, {type(self.sde).__name__}(t_max={0.999 * self.sde.span[1]:.6g})"
            )

    def check_data(self, data: Tensor) -> Tensor:
        """Return data to train on, shape ``(n, *event)``, after a check of their shape and dtype."""
        return check_batch(data)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit the model; called before the first step, with the start and the conditions.

        A subclass overrides this to check what it holds for each sample, such as a guidance scale. The default accepts all.

        Args:
            x: the start, shape ``(batch, *event)``.
            conditions: the values on which the model is conditioned.
        """

    def to_data(self, x: Tensor) -> Tensor:
        """Return the data that states at the end of sampling stand for; the states themselves, unless they are latents."""
        return x

    def project(self, x: Tensor, **conditions: Any) -> Tensor:
        """Return the states without what lies outside of the subspace of the data; by default ``x`` itself."""
        return x

    def outside(self, x: Tensor, **conditions: Any) -> Tensor | None:
        """Return the number of dimensions outside of the subspace for each sample, ``(batch,)``; ``None`` if there are none.

        There the state is noise of variance sigma^2, which is independent of the data.
        """
        return None

    @property
    def network(self) -> Any:
        """The network, which a score model around others looks for inside of them."""
        return self.net

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU if there are no parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter; PyTorch's default dtype if there is none."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    # For networks ----------------------------------------------------------------------------------------------------

    def _default_time(self, t: Tensor) -> Tensor:
        return (-self.sde.lam(t) / 4).clamp(max=10.0) if self.predicts == "edm" else t

    def _coefficients(self, predicts: str, t: Time) -> Coefficients:
        if not isinstance(self.sde, GaussianSDE):
            raise ValueError(
                f"got {type(self.sde).__name__}, which has no Gaussian marginals, so its models have a score but no alpha "
                "and sigma to convert it with; expected a model on a GaussianSDE, such as VP()"
            )
        t = self.sde.check_time(t).to(torch.float64)
        return PREDICTIONS[predicts].coefficients(self.sde.alpha(t), self.sde.sigma(t), self.sigma_data)

    def _convert(self, pair: Pair, c: Coefficients, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """Combine x with the network's output or, where ``x0`` is overridden, with ``x0``, by the factors in ``pair``."""
        known = self.x0(x, t, **conditions) if self._derived else self._outputs(x, t, c.c_in, conditions)[0]
        return _combine(pair, x, known)

    def _outputs(
        self, x: Tensor, t: Tensor, c_in: Tensor | None, conditions: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        check_batch(x)
        expand(t, x)  # a clear error for a wrong shape, before the network sees it
        # Times are float32 at least, whatever the dtype of x: bfloat16 rounds 999 to 1000.
        times = self._time(t.to(torch.float64)).to(device=x.device, dtype=_time_dtype(x.dtype)).expand(x.shape[0])
        scaled = x if c_in is None else expand(c_in, x).to(x) * x
        output = evaluate(self.net, scaled, times, conditions, doubled=self.learned_variance)
        return halves(output) if self.learned_variance else (output, None)

    def _learned(self, fraction: Tensor | None) -> Tensor:
        if fraction is None:
            raise ValueError(
                "got a model without a learned variance; expected ScoreModel(net, sde, learned_variance=True), whose "
                "network returns twice the channels, or a fixed variance: 'lower' or 'upper'"
            )
        return fraction

    def _bound(
        self,
        times: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        conditions: Mapping[str, Any],
        doubled: bool = False,
    ) -> list[Evaluation]:
        """Bind the network to each of ``times``, with the learned variance in its output where ``doubled``."""
        times = times.to(device="cpu", dtype=torch.float64)
        c = self.coefficients(times)
        net_times = self._time(times).to(device=device, dtype=_time_dtype(dtype))
        c_in = [None] * len(times) if c.c_in is None else c.c_in.tolist()
        net, given, learned = self.net, unwrapped(conditions), self.learned_variance
        each: dict[int, tuple[Tensor, ...]] = {}  # by the size of the batch, the times of all its samples

        def bind(i: int, scale: float | None) -> Callable[[Tensor], Tensor]:
            def output(x: Tensor) -> Tensor:
                n = x.shape[0]
                if n not in each:
                    each[n] = net_times[:, None].expand(-1, n).unbind()
                scaled = x if scale is None else scale * x
                found = evaluate_bound(net, scaled, each[n][i], given, learned)
                return halves(found)[0] if learned and not doubled else found

            return output

        factors = zip(c.x0[0].tolist(), c.x0[1].tolist(), strict=True)
        return [Evaluation(bind(i, scale), *pair) for i, (scale, pair) in enumerate(zip(c_in, factors, strict=True))]

    def __repr__(self) -> str:
        if isinstance(self.net, ScoreModel):
            return f"{type(self).__name__}({self.net!r})"
        parameters = sum(p.numel() for p in self.parameters())
        net = type(self.net).__name__ + f" of {parameters:,} parameters" * bool(parameters)
        learned = ", learned_variance=True" * self.learned_variance
        return f"{type(self).__name__}({net}, sde={self.sde!r}, predicts={self.predicts!r}{learned})"

    def _repr_markdown_(self) -> str:
        return f"`{self!r}`"


def _time_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _combine(pair: Pair, x: Tensor, output: Tensor) -> Tensor:
    of_x, of_output = (expand(c, x).to(x) for c in pair)
    return of_x * x + of_output * output
