r"""Score errors of known size, each a model of what goes wrong in a trained network.

The amplitude of an error is its root mean square over samples and coordinates under the noised data :math:`\alpha x_0 +
\sigma \epsilon`, at every time. It is a number, or a function of lam.

=================  ===================================================================================================
error              its origin in a trained network
=================  ===================================================================================================
:class:`Bias`      a biased mean: the same vector everywhere
:class:`Field`     too few data or parameters: a smooth function of the state and of lam
:class:`White`     a network that draws noise or computes coarsely: independent errors in any two calls
:class:`Trained`   the error itself of a network of given size, trained for the purpose
:class:`Rounding`  half precision
=================  ===================================================================================================

To a solver, the first two are another, nearby flow: all solvers tend to the same wrong end. White errors are averaged out
by many steps.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.comparison.attribution.calibration import CALIBRATION, finite, samples, sizes
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.training.batches import Samplable

__all__ = ["Amplitude", "Bias", "EpsError", "Field", "Rounding", "ScoreError", "Trained", "White"]

Amplitude = float | Callable[[Tensor], Tensor]
"""A root mean square, or a function from lam to one."""

EpsError = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""The error of the noise prediction as a function of ``x``, ``t`` and the conditions; it has the shape of ``x``."""


class ScoreError(ABC):
    """Interface of score errors: frozen dataclasses that become a function once the model and its data are known."""

    @abstractmethod
    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function, for ``model`` on ``data``: samples, or anything with ``sample(n, generator)``."""


@dataclass(frozen=True)
class Bias(ScoreError):
    """An error that is the same vector for every state.

    Args:
        amplitude: the root mean square of the error: see the module.
        direction: a vector of shape ``event``, of any length; by default equal in all coordinates.

    Raises:
        ValueError: for a negative amplitude, or a direction of length zero.

    Example:
        >>> from scoresde import VP, problems
        >>> error = Bias(0.1).on(problems.ring().model(VP()), None)
        >>> error(torch.zeros(1, 2), torch.tensor([0.5]), {})
        tensor([[0.1000, 0.1000]])
    """

    amplitude: Amplitude
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude)
        if self.direction is not None and not float(self.direction.norm()) > 0:
            raise ValueError("got a direction of length zero; expected one that points somewhere")

    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function: see :class:`ScoreError`."""
        if self.direction is None:
            return _scaled(self.amplitude, model.sde, lambda x, t: torch.ones_like(x))
        unit = self.direction.double() / self.direction.double().square().mean().sqrt()
        return _scaled(self.amplitude, model.sde, lambda x, t: unit.to(x).expand_as(x))


@dataclass(frozen=True)
class White(ScoreError):
    """An error of independent normal numbers, new for every state that differs in a single bit.

    The numbers are a hash of the state, the time and the seed. The same call gives the same error, in any batch and on any
    machine. With a ``generator``, each call draws new numbers from it instead.

    Source of the hash: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014,
    https://doi.org/10.1145/2660193.2660195.

    Example:
        >>> from scoresde import VP, problems
        >>> error = White(0.1).on(problems.ring().model(VP()), None)
        >>> x, t = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)), torch.full((4096,), 0.5)
        >>> round(error(x, t, {}).square().mean().sqrt().item(), 2)
        0.1
    """

    amplitude: Amplitude
    seed: int = 0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude)

    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function: see :class:`ScoreError`."""
        seed, generator = self.seed, self.generator

        def draw(x: Tensor, t: Tensor) -> Tensor:
            if generator is None:
                return _hashed(x, t, seed)
            return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

        return _scaled(self.amplitude, model.sde, draw)


@dataclass(frozen=True)
class Field(ScoreError):
    r"""An error that is a smooth random function of the state and of lam, the same at every call.

    Each coordinate is a draw of a Gaussian process in :math:`z = x / \sqrt{\alpha^2 + \sigma^2}` and lam with the kernel
    :math:`\exp(-|z - z'|^2 / 2 \ell^2 - (\lambda - \lambda')^2 / 2 \ell_\lambda^2)`, where :math:`|z|^2` is a mean over
    coordinates. It is a sum of random cosines, divided at every lam by its root mean square under the noised data.

    Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", 2007,
    https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines.

    Args:
        amplitude: the root mean square of the error: see the module.
        length: the correlation length in space, where the noised data are about 1 wide.
        lam_length: the correlation length in lam.
        features: the number of cosines; the draw is more Gaussian with more of them.
        seed: the seed of the draw.

    Raises:
        ValueError: for a negative amplitude, or a length or a number of features that is not positive.

    Example:
        >>> from scoresde import VP, problems
        >>> error = Field(0.1, features=8).on(problems.ring().model(VP()), problems.ring())
        >>> x, t = torch.zeros(1, 2), torch.tensor([0.5])
        >>> bool(torch.equal(error(x, t, {}), error(x, t, {})))  # the same at every call
        True
    """

    amplitude: Amplitude
    length: float = 1.0
    lam_length: float = 2.0
    features: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude)
        if not (self.length > 0 and self.lam_length > 0 and self.features > 0):
            raise ValueError(
                f"got length={self.length}, lam_length={self.lam_length} and features={self.features}; expected positive "
                "numbers"
            )

    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function: see :class:`ScoreError`."""
        x0 = samples(data, CALIBRATION, 0)
        raw = self._raw(model.sde, x0[0].shape)
        size = sizes(raw, model.sde, x0, self.lam_length)
        return _scaled(self.amplitude, model.sde, lambda x, t: raw(x, t) / expand(size(model.sde.lam(t)), x).to(x))

    def _raw(self, sde: GaussianSDE, event: torch.Size) -> Callable[[Tensor, Tensor], Tensor]:
        g, d = torch.Generator().manual_seed(self.seed), event.numel()

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        frequencies = normal(d, self.features) / (self.length * math.sqrt(d))
        rates = normal(self.features) / self.lam_length
        phases = 2 * math.pi * torch.rand(self.features, generator=g, dtype=torch.float64)
        weights = normal(self.features, d) * math.sqrt(2 / self.features)

        def value(x: Tensor, t: Tensor) -> Tensor:
            t = t.double()
            scale = torch.hypot(sde.alpha(t), sde.sigma(t))
            lam = finite(sde, sde.lam(t)).reshape(-1, 1)
            z = (x / expand(scale, x).to(x)).flatten(1)
            angle = z @ frequencies.to(x) + (lam * rates.to(lam.device) + phases.to(lam.device)).to(x)
            return (angle.cos() @ weights.to(x)).reshape(x.shape)

        return value


@dataclass(frozen=True)
class Trained(ScoreError):
    """The error of a multilayer perceptron that :func:`scoresde.fit` trains on the data.

    With ``scale`` = 1 the model becomes the perceptron; other values make the same error larger or smaller.

    Args:
        hidden: the widths of the layers.
        steps: the number of training steps.
        scale: the factor by which the error is multiplied.
        seed: the seed of the weights, the data and the noise.

    Example:
        >>> smaller = Trained(hidden=(32,), steps=200, scale=0.5)  # half the error of a small perceptron
        >>> smaller.hidden, smaller.scale
        ((32,), 0.5)
    """

    hidden: Sequence[int] = (64, 64)
    steps: int = 1000
    scale: float = 1.0
    seed: int = 0

    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function: see :class:`ScoreError`."""
        from scoresde.models import MLP
        from scoresde.training import fit

        x0 = samples(data, CALIBRATION, self.seed)
        assert data is not None  # without data there would be no samples
        with torch.random.fork_rng(devices=[]):  # the weights of torch's layers come from its global generator
            torch.manual_seed(self.seed)
            net = MLP(x0[0].numel(), hidden=tuple(self.hidden))
        network = ScoreModel(net, model.sde, "edm", sigma_data=float(x0.std()))
        found = fit(network, data, objective="ddpm", steps=self.steps, seed=self.seed, progress=False, lr=3e-3)
        trained, scale = found.model.double().requires_grad_(False), self.scale

        def error(x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
            return scale * (trained.to(x.device).eps(x.double(), t).to(x) - model.eps(x, t, **conditions))

        return error


@dataclass(frozen=True)
class Rounding(ScoreError):
    """The error of a network whose input, computation and output have half precision.

    Args:
        dtype: the precision, ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        ValueError: if ``dtype`` is neither of the two.

    Example:
        >>> Rounding(torch.float16)
        Rounding(dtype=torch.float16)
    """

    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"got dtype={self.dtype}; expected torch.bfloat16 or torch.float16")

    def on(self, model: ScoreModel, data: Tensor | Samplable | None) -> EpsError:
        """Return the error as a function: see :class:`ScoreError`."""
        half, dtype = copy.deepcopy(model).to(self.dtype), self.dtype

        def error(x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
            coarse = half.to(x.device)(x.to(dtype), t, **conditions).to(x)
            of_output = expand(model.coefficients(t).eps[1], x).to(x)
            return cast(Tensor, of_output * (coarse - model(x, t, **conditions)))

        return error


# Parts ---------------------------------------------------------------------------------------------------------------


def _check_amplitude(amplitude: Amplitude) -> None:
    if not callable(amplitude) and not 0 <= amplitude < math.inf:
        raise ValueError(f"got amplitude={amplitude}; expected a finite number of at least 0, or a function of lam")


def _scaled(amplitude: Amplitude, sde: GaussianSDE, unit: Callable[[Tensor, Tensor], Tensor]) -> EpsError:
    """Return ``unit``, whose root mean square is one, times the amplitude at each time."""

    def error(x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
        level = amplitude(sde.lam(t.double())) if callable(amplitude) else amplitude
        return expand(level, x).to(x) * unit(x, t)

    return error


def _hashed(x: Tensor, t: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers, each a function of all coordinates of its sample, its time and the seed."""
    bits = (x.double().flatten(1) + 0.0).view(torch.int64)  # -0.0 + 0.0 is 0.0
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    key = _mixed(bits + _mixed(place)).sum(1, keepdim=True) + _mixed(t.double().reshape(-1, 1).view(torch.int64) + seed)
    u, v = (((_mixed(_mixed(key) + _GOLDEN * (2 * place + i)) >> 11 & (1 << 53) - 1) + 0.5) * 2.0**-53 for i in (0, 1))
    return (torch.sqrt(-2 * u.log()) * torch.cos(2 * math.pi * v)).reshape(x.shape).to(x)


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def _mixed(z: Tensor) -> Tensor:
    """Map 64-bit words one to one, without visible pattern; multiplication wraps around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * factor
    return z ^ (z >> 31 & (1 << 33) - 1)
