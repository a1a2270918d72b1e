r"""Spacings: how the times of a path are distributed between its first and its last.

A spacing is a function ``(sde, n, t_max, t_min) -> n times``, falling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.base.numbers import is_whole
from scoresde.sde import ChainSDE, GaussianSDE

__all__ = [
    "PATHS",
    "Arctan",
    "ChainSpacing",
    "PublishedLevels",
    "Shifted",
    "Spacing",
    "flux_shift",
    "karras",
    "quadratic",
    "resolution_shift",
    "straight",
    "uniform_lam",
    "uniform_t",
]

Spacing = Callable[[GaussianSDE, int, float, float], Tensor]
"""A function ``(sde, n, t_max, t_min)`` that returns n falling times, from ``t_max`` to ``t_min``."""


def uniform_t(sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
    """Return ``n`` equidistant times, the spacing of DDPM and of Song et al., 2021."""
    return torch.linspace(t_max, t_min, n, dtype=torch.float64)


def quadratic(sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
    """Return ``n`` times whose square roots are equidistant (Song et al., "Denoising Diffusion Implicit Models", 2020)."""
    return torch.linspace(math.sqrt(t_max), math.sqrt(t_min), n, dtype=torch.float64) ** 2


def _lam_range(sde: GaussianSDE, t_max: float, t_min: float) -> tuple[float, float]:
    low, high = float(sde.lam(t_max)), float(sde.lam(t_min))
    if high == math.inf:
        raise ValueError(f"got t_min={t_min}, where sigma = 0 and lam is infinite; expected a larger t_min, or path='t'")
    # At alpha = 0 lam is infinite: the spacing starts from the mirror image of its end instead.
    return (low if math.isfinite(low) else -abs(high) - 1), high


def uniform_lam(sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
    """Return ``n`` times that are equidistant in lam (Lu et al., "DPM-Solver", 2022)."""
    return sde.time(torch.linspace(*_lam_range(sde, t_max, t_min), n, dtype=torch.float64))


def karras(sde: GaussianSDE, n: int, t_max: float, t_min: float, rho: float = 7.0) -> Tensor:
    """Return ``n`` times that are equidistant in (sigma / alpha)^(1 / rho) (Karras et al., 2022, equation (5))."""
    low, high = _lam_range(sde, t_max, t_min)
    level = torch.linspace(math.exp(-low / rho), math.exp(-high / rho), n, dtype=torch.float64)
    return sde.time(-rho * torch.log(level))


def straight(sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
    r"""Return ``n`` times that are equidistant in :math:`u = \sigma / (\alpha + \sigma)`, the time of rectified flow.

    A path to sigma = 0 with this name is equidistant down to u = 0. Its last move then starts at the n-th part of the start,
    not at ``t_min``, so that each of a few steps is as long as the others.
    """
    high, low = (_share(sde, t) for t in (t_max, t_min))
    return _at_share(sde, torch.linspace(high, low, n, dtype=torch.float64))


def last_start(sde: GaussianSDE, n: int, t_max: float, t_min: float) -> float:
    """Return the time from which the last of ``n`` moves of :func:`straight` goes to sigma = 0, at least ``t_min``."""
    if n == 1 or _share(sde, t_max) / n <= _share(sde, t_min):
        return t_min
    return float(_at_share(sde, torch.tensor(_share(sde, t_max) / n, dtype=torch.float64)))


def _share(sde: GaussianSDE, t: float) -> float:
    return float(torch.sigmoid(-sde.lam(t)))


def _at_share(sde: GaussianSDE, u: Tensor) -> Tensor:
    return sde.time(-torch.logit(u))


PRIOR = -5.0
"""Half the log signal-to-noise ratio below which data of unit scale hardly differ from the prior."""


@dataclass(frozen=True)
class Arctan:
    r"""A spacing of times that are equidistant in :math:`\arctan((\lambda - c) / w)`.

    The density of the points in lam is that of a Cauchy distribution with the location c and the scale w: it is largest at
    c, where data of unit scale take shape, and falls to both sides. A large w is the even spacing in lam. A start before
    lam = -5, or at alpha = 0, is the first point, and the others are placed as for a start at lam = -5.

    Args:
        centre: c, the lam around which the points lie densest.
        width: w, half the width of the density at half its height, in units of lam; positive.

    Raises:
        ValueError: if ``centre`` is not finite, or ``width`` is not positive and finite.

    Example:
        >>> from scoresde import VP
        >>> lam = VP().lam(Arctan()(VP(), 5, 1.0, 0.001))
        >>> [round(step, 2) for step in lam.diff().tolist()]
        [4.09, 1.38, 1.27, 2.81]
    """

    centre: float = 0.6
    width: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centre) and 0 < self.width < math.inf):
            raise ValueError(f"got centre={self.centre} and width={self.width}; expected a finite and a positive number")

    def __call__(self, sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
        low, high = _lam_range(sde, t_max, t_min)
        low = max(low, min(PRIOR, high - 1))
        first, last = (math.atan((lam - self.centre) / self.width) for lam in (low, high))
        return sde.time(self.centre + self.width * torch.tan(torch.linspace(first, last, n, dtype=torch.float64)))


@dataclass(frozen=True)
class Shifted:
    r"""A spacing whose times are moved towards the noise: a translation of lam by :math:`-\log k`.

    In the time of rectified flow it is the resolution-dependent shift :math:`s' = k s / (1 + (k - 1) s)`. A larger image
    shows the same thing in more pixels, so that more noise is needed to hide it. The first and the last time stay where they
    are. Times that are equidistant in lam do not change, since a translation keeps them equidistant.

    Args:
        factor: k, positive; above 1 for more times at high noise. See :func:`resolution_shift` and :func:`flux_shift`.
        spacing: the spacing that is shifted, by default equidistant times.

    Raises:
        ValueError: for a factor that is not a positive number, and for the spacing of a chain, whose steps cannot be moved.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
    https://arxiv.org/abs/2403.03206, section 5.3.2; the same translation of the log signal-to-noise ratio is in Hoogeboom et
    al., "Simple diffusion", 2023, https://arxiv.org/abs/2301.11093.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> Shifted(3.0)(RectifiedFlow(), 3, 1.0, 0.5)  # 1, 0.625 and 0.25 shifted
        tensor([1.0000, 0.8333, 0.5000], dtype=torch.float64)
    """

    factor: float = 3.0
    spacing: Spacing = uniform_t

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"got factor={self.factor}; expected a positive number: above 1 for more times at high noise")
        if isinstance(self.spacing, ChainSpacing) or not callable(self.spacing):
            raise ValueError(
                f"got spacing={self.spacing!r} to be shifted; expected a spacing of any SDE, such as solvers.PATHS['t']"
            )

    def __call__(self, sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
        """Return ``n`` falling times from ``t_max`` to ``t_min``, float64."""
        shift = math.log(self.factor)
        ends = sde.time(sde.lam(torch.tensor([t_max, t_min], dtype=torch.float64)) + shift)
        return sde.time(sde.lam(self.spacing(sde, n, *ends.tolist())) - shift)


def resolution_shift(pixels: int, base: int) -> float:
    r"""Return the factor :math:`\sqrt{m / n}` of :class:`Shifted` for images of m pixels with the spacing made for n.

    Source: Esser et al., 2024, https://arxiv.org/abs/2403.03206, equation (23).

    Raises:
        ValueError: if a number of pixels is below 1.

    Example:
        >>> resolution_shift(1024 * 1024, 256 * 256)
        4.0
    """
    if min(pixels, base) < 1:
        raise ValueError(f"got pixels={pixels}, base={base}; expected two positive numbers of pixels")
    return math.sqrt(pixels / base)


def flux_shift(
    tokens: int, *, base_shift: float = 0.5, max_shift: float = 1.15, base_tokens: int = 256, max_tokens: int = 4096
) -> float:
    r"""Return the factor :math:`e^\mu` of :class:`Shifted` for an image of so many tokens, with mu linear in the number.

    mu is ``base_shift`` at ``base_tokens`` and ``max_shift`` at ``max_tokens``. Source: Black Forest Labs, "FLUX.1", 2024,
    src/flux/sampling.py of https://github.com/black-forest-labs/flux.

    Raises:
        ValueError: if ``tokens`` is below 1, or ``base_tokens`` and ``max_tokens`` are equal.

    Example:
        >>> round(flux_shift(4096), 3), round(flux_shift(256), 3)  # images of 1024 and 256 pixels in a row
        (3.158, 1.649)
    """
    if tokens < 1 or base_tokens == max_tokens:
        raise ValueError(
            f"got tokens={tokens}, base_tokens={base_tokens}, max_tokens={max_tokens}; expected a positive number of tokens "
            "and two numbers that differ"
        )
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))


@dataclass(frozen=True)
class ChainSpacing:
    r"""A spacing at whole steps k of a chain of N steps, k = 1..N, at the times k / N.

    Args:
        kind: the rule for k, with i = 0..n-1. ``"leading"``: :math:`k = 1 + i \lfloor N / n \rfloor`, as in DDIM and DDPM
            with fewer steps, which never visits the noisiest steps. ``"trailing"``: :math:`k = \mathrm{round}(N - i N / n)`,
            from the noisiest step on. ``"linspace"``: n equidistant steps from the noisiest to the first, rounded.
        offset: the number added to k: 1 for the ``steps_offset`` of Stable Diffusion's configurations.

    Where ``t_max`` and ``t_min`` leave out a part of the chain, N is the number of steps between them.

    Raises:
        ValueError: for any other kind, an offset that is not whole or leaves the chain, an SDE that is not the SDE of a
            chain, or more steps than the chain has.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
    https://arxiv.org/abs/2305.08891, table 2; diffusers' ``timestep_spacing``.

    Example:
        >>> from scoresde import DDPM
        >>> sde = DDPM().sde()
        >>> [(1000 * ChainSpacing(kind)(sde, 4, 1.0, 0.001)).round().int().tolist() for kind in ("leading", "trailing")]
        [[751, 501, 251, 1], [1000, 750, 500, 250]]
    """

    kind: str
    offset: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("leading", "trailing", "linspace"):
            raise ValueError(f"got kind={self.kind!r}; expected 'leading', 'trailing' or 'linspace'")
        if not is_whole(self.offset) or self.offset < 0:
            raise ValueError(f"got offset={self.offset!r}; expected a whole number of at least 0")

    def __call__(self, sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
        if not isinstance(sde, ChainSDE):
            raise ValueError(
                f"got path={self.kind!r} on {sde!r}, which has no steps; expected the SDE of a chain (DDPM().sde()), or a "
                "spacing for any SDE: path='t'"
            )
        total = len(sde.chain)
        last, first = round(total * t_max), max(round(total * t_min), 1)
        steps = last - first + 1
        if n > steps:
            raise ValueError(
                f"got {n} times on a chain with {steps} steps between t_max and t_min; expected no more than these"
            )
        i = torch.arange(n, dtype=torch.float64)
        if self.kind == "leading":
            k = first + i.flip(0) * (steps // n)
        elif self.kind == "trailing":
            k = (first - 1) + (steps + i * ((steps - steps / n) - steps)).round()  # as np.arange rounds
        else:
            k = first + (i.flip(0) * ((steps - 1) / max(n - 1, 1))).round()
        k = k + self.offset
        if float(k[0]) > total:
            raise ValueError(
                f"got offset={self.offset}, with which the first of {n} steps is {k[0]:.0f} of {total}; expected less"
            )
        return k / total


@dataclass(frozen=True)
class PublishedLevels:
    r"""A published spacing: levels of noise :math:`\sigma / \alpha`, interpolated in their logarithms.

    For n steps the levels are interpolated at n + 1 even places, of which the last is replaced by sigma = 0. So these are n
    times, the last of which is not the smallest time of the SDE. The first time is ``t_max``, whatever its level.

    Args:
        levels: the published levels, falling, the one that is replaced by sigma = 0 included.

    Raises:
        ValueError: for levels that do not fall, and an SDE that does not reach the second one.

    Source: Sabour et al., "Align Your Steps: Optimizing Sampling Schedules in Diffusion Models", 2024,
    https://arxiv.org/abs/2404.14507, and the authors' page, https://research.nvidia.com/labs/toronto-ai/AlignYourSteps.

    Example:
        >>> from scoresde import EDM
        >>> PublishedLevels((80.0, 4.0, 1.0, 0.25))(EDM(), 3, 80.0, 0.002).tolist()
        [80.0, 4.0, 1.0]
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or any(not a > b > 0 for a, b in itertools.pairwise(self.levels)):
            raise ValueError(f"got levels {self.levels}; expected at least two, positive and falling")

    def __call__(self, sde: GaussianSDE, n: int, t_max: float, t_min: float) -> Tensor:
        places = torch.linspace(0, len(self.levels) - 1, n + 1, dtype=torch.float64)[:-1]
        logs = torch.tensor(self.levels, dtype=torch.float64).log()
        below = places.floor().long()
        lam = -torch.lerp(logs[below], logs[below + 1], places - below)
        first, last = float(sde.lam(t_max)), float(sde.lam(t_min))
        lam[0] = first
        if not (lam[1:] > first).all() or not (lam[1:] < last + 1e-6).all():
            raise ValueError(
                f"got a published path with the levels sigma / alpha from {self.levels[0]:g} to {self.levels[-2]:g}, which "
                f"leaves the span of {sde!r}; expected the SDE of the model that it was published for, or path='karras'"
            )
        times = sde.time(lam.clamp(max=last))
        times[0] = t_max
        return times


AYS_SD15 = PublishedLevels(
    (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    )
)
AYS_SDXL = PublishedLevels(
    (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    )
)
AYS_SVD = PublishedLevels((700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002))

PATHS: Table[Spacing] = Table(
    "path",
    "scoresde.solvers.PATHS",
    {
        "t": uniform_t,
        "quadratic": quadratic,
        "lam": uniform_lam,
        "karras": karras,
        "shifted": Shifted(),
        "straight": straight,
        "arctan": Arctan(),
        "leading": ChainSpacing("leading"),
        "trailing": ChainSpacing("trailing"),
        "linspace": ChainSpacing("linspace"),
        "ays-sd15": AYS_SD15,
        "ays-sdxl": AYS_SDXL,
        "ays-svd": AYS_SVD,
    },
    also="a Path, a spacing function or a list of times",
    check=callable,
    expects="a spacing function: (sde, n, t_max, t_min) -> n times",
)
"""Every spacing by name, ``(sde, n, t_max, t_min) -> n times``; three need a chain's SDE, three a span like theirs."""
