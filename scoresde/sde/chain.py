r"""Discrete Markov chains, the forward processes of DDPM and NCSN, and the SDE with the same marginals at their steps.

Step k = 1..n of a chain is :math:`x_k = a_k x_{k-1} + \sqrt{v_k}\, z_k` from clean data :math:`x_0`, so that

.. math:: x_k \mid x_0 \sim N(\alpha_k x_0, \sigma_k^2 I), \qquad \alpha_k = a_k \alpha_{k-1}, \qquad
          \sigma_k^2 = a_k^2 \sigma_{k-1}^2 + v_k.

All tables are float64 tensors on the host, of shape ``(n,)``: entry ``k - 1`` belongs to step k. A step ``k`` is an
integer or a tensor of shape ``(batch,)``.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from scoresde.base.identity import Identified
from scoresde.base.numbers import is_whole, whole
from scoresde.base.shape import as_time, expand
from scoresde.sde.base import Time
from scoresde.sde.gaussian import GaussianSDE, log1mexp
from scoresde.sde.published import EDM, VE, CosineVP

__all__ = ["DDPM", "NCSN", "Chain", "ChainSDE", "GaussianChain"]

Step = Tensor | int


def _table(values: Tensor | Sequence[float], name: str) -> Tensor:
    try:
        table = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"got {name} that are no numbers ({error}); expected a vector, one number per step") from error
    if table.ndim != 1 or len(table) == 0:
        raise ValueError(f"got {name} of shape {tuple(table.shape)}; expected a non-empty vector, one entry per step")
    return table


def _shown(table: Tensor) -> str:
    """Return a short table as a list, and a long one as the number of its values, the first and the last."""
    if len(table) <= 4:
        return f"={table.tolist()}"
    return f": {len(table)} from {table[0]:.6g} to {table[-1]:.6g}"


def _check_falling(lam: Tensor, of: str) -> None:
    falls = lam.diff() < 0
    if not bool(falls.all()):
        k = int(falls.logical_not().nonzero()[0]) + 1
        raise ValueError(
            f"got {of} whose signal-to-noise ratio does not fall from step {k} to step {k + 1} (lam {lam[k - 1]:.6g} and "
            f"{lam[k]:.6g}); expected it to fall at every step"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Identified, ABC):
    """Interface of the chains with Gaussian transitions, given by two tables of log-marginals and two of transitions."""

    @property
    @abstractmethod
    def log_alpha(self) -> Tensor:
        """The log of alpha_k, the factor of the data in the mean of x_k, shape ``(n,)``."""

    @property
    @abstractmethod
    def log_sigma(self) -> Tensor:
        """The log of sigma_k, the standard deviation of x_k given the data, shape ``(n,)``."""

    @property
    @abstractmethod
    def scale(self) -> Tensor:
        """The factor a_k of x_{k-1} in the mean of x_k, shape ``(n,)``."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """The variance v_k of x_k given x_{k-1}, shape ``(n,)``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the name and the tables as plain values, which a checkpoint stores."""

    def __len__(self) -> int:
        return len(self.log_alpha)

    def __repr__(self) -> str:
        tables = (f"{f.name}{_shown(getattr(self, f.name))}" for f in fields(self))
        return f"{type(self).__name__}({', '.join(tables)})"

    def _repr_markdown_(self) -> str:
        ends = (f"{name} from {t[0]:.4g} to {t[-1]:.4g}" for name, t in (("alpha", self.alpha), ("sigma", self.sigma)))
        return f"**{type(self).__name__}**, {len(self)} steps: {', '.join(ends)}"

    @property
    def alpha(self) -> Tensor:
        """The factor alpha_k of the data in the mean of x_k, shape ``(n,)``."""
        return self.log_alpha.exp()

    @property
    def sigma(self) -> Tensor:
        """The standard deviation sigma_k of x_k given the data, shape ``(n,)``."""
        return self.log_sigma.exp()

    @property
    def lam(self) -> Tensor:
        """Half the log signal-to-noise ratio, log(alpha_k / sigma_k), shape ``(n,)``."""
        return self.log_alpha - self.log_sigma

    def _at(self, table: Tensor, k: Step, x: Tensor) -> Tensor:
        if not isinstance(k, Tensor):
            if not is_whole(k) or not 1 <= k <= len(self):
                raise ValueError(f"got step {k!r}; the steps of this chain are the whole numbers 1 to {len(self)}")
            return table[k - 1]
        return expand(table.to(k.device)[k - 1], x).to(x.dtype)

    def transition(self, x: Tensor, k: Step) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of x_k given ``x`` = x_{k-1}."""
        return self._at(self.scale, k, x) * x, self._at(self.variance.sqrt(), k, x)

    def marginal(self, x0: Tensor, k: Step) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of x_k given the data ``x0``."""
        return self._at(self.alpha, k, x0) * x0, self._at(self.sigma, k, x0)

    def perturb(self, x0: Tensor, k: Step, eps: Tensor) -> Tensor:
        """Return x_k = alpha_k x0 + sigma_k eps for standard normal ``eps``."""
        mean, std = self.marginal(x0, k)
        return mean + std * eps

    def posterior_variance(self, choice: str | float = "lower") -> Tensor:
        r"""Return the variance of x_{k-1} given x_k that an ancestral step uses, shape ``(n,)``.

        ``"lower"`` is the variance of the posterior, :math:`\sigma_{k-1}^2 v_k / \sigma_k^2`, which is exact for data at one
        point. ``"upper"`` is :math:`v_k`, which is exact for white data. A number w from 0 (lower) to 1 (upper) interpolates
        the logarithms (Nichol and Dhariwal, 2021, equation (15)). The lower variance is zero at k = 1, where 0 < w < 1
        uses the lower variance of k = 2, as the authors do.

        Raises:
            ValueError: for another ``choice``.
        """
        upper = self.variance
        variance_before = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigma[:-1] ** 2])
        lower = variance_before * upper / self.sigma**2
        if choice == "lower":
            return lower
        if choice == "upper":
            return upper
        if isinstance(choice, str) or not 0 <= choice <= 1:
            raise ValueError(f"got variance {choice!r}; expected 'lower', 'upper' or a number between 0 and 1")
        if 0 < choice < 1 and len(self) > 1:
            lower = torch.cat([lower[1:2], lower[1:]])
        return lower ** (1 - choice) * upper**choice

    def posterior(self, x: Tensor, x0: Tensor, k: Step, variance: str | float = "lower") -> tuple[Tensor, Tensor]:
        r"""Return the mean and the standard deviation of x_{k-1} given ``x`` = x_k and ``x0``.

        .. math:: \mu = \frac{a_k \sigma_{k-1}^2}{\sigma_k^2} x_k + \frac{\alpha_{k-1} v_k}{\sigma_k^2} x_0

        The standard deviation follows from :meth:`posterior_variance`. Source: Ho et al., "Denoising Diffusion
        Probabilistic Models", 2020, equation (7), here for any chain.

        Example:
            >>> chain = DDPM([0.1, 0.2])
            >>> mean, std = chain.posterior(torch.zeros(1, 1), torch.ones(1, 1), 1)
            >>> mean.item(), std.item()  # x_0 itself
            (1.0, 0.0)
        """
        alpha_before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha[:-1]])
        variance_before = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigma[:-1] ** 2])
        of_x = self.scale * variance_before / self.sigma**2
        of_x0 = alpha_before * self.variance / self.sigma**2
        mean = self._at(of_x, k, x) * x + self._at(of_x0, k, x) * x0
        return mean, self._at(self.posterior_variance(variance).sqrt(), k, x)

    def sde(self) -> ChainSDE:
        """Return the SDE whose marginal at time k / n is that of step k, see :class:`ChainSDE`."""
        return ChainSDE(self)

    def index(self, t: Time) -> Tensor:
        """Return the position n t - 1 of the continuous time ``t`` in the tables, the time that a discrete network takes.

        It is a whole number at the times of the chain's own steps, k / n, and a fraction between them.
        """
        index = len(self) * as_time(t) - 1
        nearest = index.round()
        # k / n is rounded once and n t again: off by 2^-53 of n at most each, and a little for a path's own arithmetic.
        close = 16 * len(self) * torch.finfo(index.dtype).eps
        return torch.where((index - nearest).abs() <= close, nearest, index)


@dataclass(frozen=True, eq=False, repr=False)
class DDPM(Chain):
    r"""The variance-preserving chain :math:`x_k = \sqrt{1 - \beta_k}\, x_{k-1} + \sqrt{\beta_k}\, z`.

    Source: Ho et al., 2020, https://arxiv.org/abs/2006.11239, equation (2).

    Args:
        betas: variances between 0 and 1. The last one may be 1 (zero terminal signal-to-noise ratio). The default is the
            schedule of Ho et al.: 1000 steps, linear from 1e-4 to 0.02.

    Raises:
        ValueError: for other betas, and for a beta that is too small to change the marginal.

    Example:
        >>> chain = DDPM()
        >>> len(chain), round(float(chain.alpha[-1] ** 2), 8)
        (1000, 4.036e-05)
        >>> chain
        DDPM(betas: 1000 from 0.0001 to 0.02)
    """

    betas: Tensor

    def __init__(self, betas: Tensor | Sequence[float] | None = None) -> None:
        table = _table(DDPM.linear().betas if betas is None else betas, "betas")
        if not bool(((table > 0) & (table <= 1)).all()) or bool((table[:-1] == 1).any()):
            raise ValueError(
                f"got betas between {table.min().item():.3g} and {table.max().item():.3g}; expected 0 < beta < 1 "
                "(1 for the last alone): where they come from beta(t) / n, take more steps"
            )
        object.__setattr__(self, "betas", table)
        _check_falling(self.lam, "betas")

    @classmethod
    def linear(cls, n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> DDPM:
        """Return the chain with the schedule of Ho et al., linear from ``beta_min`` to ``beta_max``."""
        return cls(torch.linspace(beta_min, beta_max, whole("n", n, 1), dtype=torch.float64))

    @classmethod
    def cosine(cls, n: int = 1000, s: float = 0.008, beta_clip: float = 0.999) -> DDPM:
        """Return the chain with the schedule of Nichol and Dhariwal: :class:`~scoresde.CosineVP` with beta clipped."""
        return cls(betas_of(CosineVP(s=s).log_alpha(step_times(CosineVP(s=s), n))).clamp(max=beta_clip))

    def rescale_zero_terminal_snr(self) -> DDPM:
        r"""Return the chain whose alphas are shifted and scaled so that no signal is left after the last step.

        .. math:: \alpha'_k = \alpha_1 \frac{\alpha_k - \alpha_n}{\alpha_1 - \alpha_n}

        The first step is unchanged, and the last beta is 1. A network on this chain has to predict the data, v or the
        velocity: where alpha = 0 a prediction of the noise does not determine the data.

        Raises:
            ValueError: for a chain of one step.

        Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
        https://arxiv.org/abs/2305.08891, algorithm 1.

        Example:
            >>> chain = DDPM().rescale_zero_terminal_snr()
            >>> float(chain.alpha[-1]), round(float(chain.betas[0]), 12)
            (0.0, 0.0001)
        """
        if len(self) < 2:
            raise ValueError("got a chain of one step; expected at least two, of which the first stays what it is")
        first, last = self.alpha[0], self.alpha[-1]
        return DDPM(betas_of(((self.alpha - last) * (first / (first - last))).log()))

    @functools.cached_property
    def log_alpha(self) -> Tensor:
        return 0.5 * torch.log1p(-self.betas).cumsum(0)

    @functools.cached_property
    def log_sigma(self) -> Tensor:
        return 0.5 * log1mexp(-2 * self.log_alpha)

    @property
    def scale(self) -> Tensor:
        return (1 - self.betas).sqrt()

    @property
    def variance(self) -> Tensor:
        return self.betas

    def config(self) -> dict[str, Any]:
        return {"type": "DDPM", "betas": self.betas.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class NCSN(Chain):
    r"""The variance-exploding chain :math:`x_k = x_{k-1} + \sqrt{\sigma_k^2 - \sigma_{k-1}^2}\, z`, with sigma_0 = 0.

    Source: Song and Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019,
    https://arxiv.org/abs/1907.05600, as a chain in Song et al., 2021, equation (8).

    Args:
        sigmas: increasing positive noise levels.

    Raises:
        ValueError: if ``sigmas`` do not increase from a positive first one, or are not finite.

    Example:
        >>> NCSN.geometric(3, 0.01, 1.0).sigmas
        tensor([0.0100, 0.1000, 1.0000], dtype=torch.float64)
    """

    sigmas: Tensor

    def __init__(self, sigmas: Tensor | Sequence[float]) -> None:
        table = _table(sigmas, "sigmas")
        if not bool(((table > 0) & (table < math.inf)).all()) or not bool((table.diff() > 0).all()):
            raise ValueError(
                "got sigmas that do not increase from a positive first one; expected 0 < sigma_1 < sigma_2 < .., all finite"
            )
        object.__setattr__(self, "sigmas", table)

    @classmethod
    def geometric(cls, n: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> NCSN:
        """Return the chain with the schedule of Song and Ermon, geometric from ``sigma_min`` to ``sigma_max``."""
        return cls(VE(sigma_min, sigma_max).sigma(step_times(VE(sigma_min, sigma_max), n)))

    @property
    def log_alpha(self) -> Tensor:
        return torch.zeros_like(self.sigmas)

    @functools.cached_property
    def log_sigma(self) -> Tensor:
        return self.sigmas.log()

    @property
    def scale(self) -> Tensor:
        return torch.ones_like(self.sigmas)

    @property
    def variance(self) -> Tensor:
        before = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigmas[:-1]])
        return (self.sigmas - before) * (self.sigmas + before)

    def config(self) -> dict[str, Any]:
        return {"type": "NCSN", "sigmas": self.sigmas.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class GaussianChain(Chain):
    """The chain with given marginals: tables ``log_alphas`` and ``log_sigmas`` with falling signal-to-noise ratio.

    Raises:
        ValueError: for tables of different lengths, values that are not finite but for a last log_alpha of -inf, or a
            signal-to-noise ratio that does not fall.

    Example:
        >>> from scoresde import RectifiedFlow, discretize
        >>> chain = discretize(RectifiedFlow(), 4)
        >>> chain.alpha
        tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    log_alphas: Tensor
    log_sigmas: Tensor

    def __init__(self, log_alphas: Tensor | Sequence[float], log_sigmas: Tensor | Sequence[float]) -> None:
        log_alpha, log_sigma = _table(log_alphas, "log_alphas"), _table(log_sigmas, "log_sigmas")
        if log_alpha.shape != log_sigma.shape:
            raise ValueError(f"got {len(log_alpha)} log_alphas and {len(log_sigma)} log_sigmas; expected as many")
        finite = log_alpha.isfinite()
        finite[-1] |= log_alpha[-1] == -math.inf
        if not bool(finite.all()) or not bool(log_sigma.isfinite().all()):
            raise ValueError(
                "got log_alphas or log_sigmas that are not finite; expected finite ones, but that the last log_alpha may be "
                "-inf, where no signal is left"
            )
        _check_falling(log_alpha - log_sigma, "marginals")
        object.__setattr__(self, "log_alphas", log_alpha)
        object.__setattr__(self, "log_sigmas", log_sigma)

    @property
    def log_alpha(self) -> Tensor:
        return self.log_alphas

    @property
    def log_sigma(self) -> Tensor:
        return self.log_sigmas

    @property
    def scale(self) -> Tensor:
        return torch.cat([self.log_alphas[:1], self.log_alphas.diff()]).exp()

    @property
    def variance(self) -> Tensor:
        # sigma_k^2 - a_k^2 sigma_{k-1}^2 = sigma_k^2 (1 - e^{2 (lam_k - lam_{k-1})}), without the cancellation.
        first = (2 * self.log_sigmas[:1]).exp()
        return torch.cat([first, (2 * self.log_sigmas[1:]).exp() * -torch.expm1(2 * self.lam.diff())])

    def config(self) -> dict[str, Any]:
        return {
            "type": "GaussianChain",
            "log_alphas": self.log_alphas.tolist(),
            "log_sigmas": self.log_sigmas.tolist(),
        }


@dataclass(frozen=True, eq=False)
class ChainSDE(GaussianSDE):
    r"""The SDE with the marginals of a chain: time k / n is step k, time 0 the data.

    Between the steps ``log_alpha`` is linear in t, that is, beta(t) is constant on a step. A variance-preserving chain
    keeps :math:`\alpha^2 + \sigma^2 = 1`; for other chains ``log_sigma`` is linear as well. There are two exceptions: in the
    first step, which starts at sigma = 0, the variance of these other chains is linear, and in a last step that ends at
    alpha = 0 the signal is linear. ``t_min`` is 1 / n, the smallest noise on which a network of the chain is trained.

    Example:
        >>> from scoresde import discretize
        >>> chain = DDPM.linear(100)
        >>> bool(torch.allclose(discretize(chain.sde(), 100).variance, chain.variance))
        True
    """

    chain: Chain
    _knots: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        zero = torch.zeros(1, dtype=torch.float64)
        object.__setattr__(
            self,
            "_knots",
            (torch.cat([zero, self.chain.log_alpha]), torch.cat([-math.inf + zero, self.chain.log_sigma])),
        )
        super().__post_init__()

    @property
    def span(self) -> tuple[float, float]:
        return (1 / len(self.chain) if len(self.chain) > 1 else 0.0), 1.0

    def _segment(self, knots: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values at both ends of the segment that contains ``t``, and the position of ``t`` in it, in [0, 1]."""
        position = len(self.chain) * t
        k = position.detach().floor().clamp(0, len(self.chain) - 1).long()
        knots = knots.to(device=t.device, dtype=torch.promote_types(t.dtype, torch.float32))
        # index_select, not indexing, which torch.func.vmap refuses for a scalar time
        start, end = (knots.index_select(0, i.reshape(-1)).reshape(k.shape) for i in (k, k + 1))
        return start, end, position - k

    def log_alpha(self, t: Time) -> Tensor:
        start, end, passed = self._segment(self._knots[0], self.check_time(t))
        finite = torch.where(torch.isinf(end), start, end)
        to_zero = start + torch.log1p(-torch.where(torch.isinf(end), passed, 0.0))
        return torch.where(torch.isinf(end), to_zero, start + passed * (finite - start))

    def log_sigma(self, t: Time) -> Tensor:
        t = self.check_time(t)
        if isinstance(self.chain, DDPM):
            return 0.5 * log1mexp(-2 * self.log_alpha(t))
        start, end, passed = self._segment(self._knots[1], t)
        finite = torch.where(torch.isinf(start), end, start)
        from_zero = end + 0.5 * torch.log(torch.where(torch.isinf(start), passed, 1.0))
        return torch.where(torch.isinf(start), from_zero, finite + passed * (end - finite))

    def time(self, lam: Time) -> Tensor:
        """Return the time at which ``lam(t) = lam``, in closed form on each step; differentiable.

        By bisection in the first and the last step of a chain that is neither DDPM's nor NCSN's.
        """
        lam = as_time(lam)
        of_lam = (self._knots[0] - self._knots[1]).to(lam.device)  # falls from infinity
        k = torch.searchsorted(-of_lam, -lam.detach().double().contiguous(), right=True).sub(1).clamp(0, len(self.chain) - 1)
        start, end = (tuple(knots.to(lam.device)[i] for knots in self._knots) for i in (k, k + 1))
        wide = lam.double()
        if isinstance(self.chain, DDPM):  # alpha^2 = 1 / (1 + e^{-2 lam})
            log_alpha = -0.5 * torch.nn.functional.softplus(-2 * wide)
            to_zero = torch.isinf(end[0])
            linear = (log_alpha - start[0]) / torch.where(to_zero, 1.0, end[0] - start[0])
            passed = torch.where(to_zero, -torch.expm1(log_alpha - start[0]), linear)
        elif isinstance(self.chain, NCSN):  # lam = -log sigma
            from_zero = torch.isinf(start[1])
            linear = (-wide - start[1]) / torch.where(from_zero, 1.0, end[1] - start[1])
            passed = torch.where(from_zero, (2 * (-wide - end[1])).clamp(max=0.0).exp(), linear)
        else:
            first, last = start[0] - start[1], end[0] - end[1]
            inner = torch.isfinite(first) & torch.isfinite(last)
            passed = (wide - torch.where(inner, first, 0.0)) / torch.where(inner, last - first, 1.0)
            if not bool(inner.all()):
                return torch.where(inner, (k + passed) / len(self.chain), super().time(wide)).to(lam.dtype)
        return ((k + passed) / len(self.chain)).clamp(0.0, 1.0).to(lam.dtype)

    def d_log_alpha(self, t: Time) -> Tensor:
        start, end, passed = self._segment(self._knots[0], self.check_time(t))
        to_zero = torch.isinf(end)
        slope = torch.where(to_zero, 0.0, end) - torch.where(to_zero, 0.0, start)
        return len(self.chain) * torch.where(to_zero, -1 / (1 - torch.where(to_zero, passed, 0.0)), slope)

    def d_alpha(self, t: Time) -> Tensor:
        # Where the signal falls linearly to zero, its slope is finite and the slope of its logarithm is not.
        t = self.check_time(t)
        start, end, _ = self._segment(self._knots[0], t)
        return torch.where(torch.isinf(end), -len(self.chain) * start.exp(), self.alpha(t) * self.d_log_alpha(t))

    def d_log_sigma(self, t: Time) -> Tensor:
        t = self.check_time(t)
        if isinstance(self.chain, DDPM):  # sigma^2 = 1 - alpha^2
            return -self.alpha(t) * self.d_alpha(t) * (-2 * self.log_sigma(t)).exp()
        start, end, passed = self._segment(self._knots[1], t)
        from_zero = torch.isinf(start)
        slope = torch.where(from_zero, 0.0, end) - torch.where(from_zero, 0.0, start)
        return len(self.chain) * torch.where(from_zero, 0.5 / torch.where(from_zero, passed, 1.0), slope)

    def diffusion_squared(self, t: Time) -> Tensor:
        return 2 * (2 * self.log_sigma(t)).exp() * (self.d_log_sigma(t) - self.d_log_alpha(t))

    def config(self) -> dict[str, Any]:
        return self.chain.config()


def step_times(sde: GaussianSDE, n: int) -> Tensor:
    """Return the times of the steps 1..n, equidistant up to t_max from t_max / n or, where sigma(0) > 0, from 0."""
    n = whole("n", n, 1)
    if isinstance(sde, EDM):  # Karras et al., 2022, equation (5), with rho = 7
        low, high = sde.sigma_min ** (1 / 7), sde.sigma_max ** (1 / 7)
        return torch.linspace(low, high, n, dtype=torch.float64) ** 7
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    if float(sde.sigma(0.0)) > 0 and n > 1:
        t = (t * n - 1) / (n - 1)
    return t * sde.span[1]


def betas_of(log_alpha: Tensor) -> Tensor:
    steps = torch.cat([log_alpha[:1], log_alpha.diff()])
    return -torch.expm1(2 * steps)
