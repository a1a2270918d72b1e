"""The published checkpoints: network, noise schedule, prediction and layout of the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scoresde.base.names import Table
from scoresde.models import NETWORKS, UNet
from scoresde.sde import EDM, VE, VP, GaussianSDE, SubVP
from scoresde.sde.chain import DDPM, NCSN, Chain
from scoresde.weights.keys import Dialect

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Args:
        preset: the network, a key of :data:`~scoresde.models.NETWORKS`.
        process: a function without arguments that returns the SDE or chain, for data in [-1, 1].
        dialect: the layout of the tensors.
        predicts: the prediction of the network, a key of :data:`~scoresde.score.PREDICTIONS`.
        config: changes to the arguments of the preset, such as the unit of time and the dropout.
        learned_variance: the network also predicts the variance of the reverse process, see :class:`~scoresde.ScoreModel`.

    Example:
        >>> PUBLISHED["256x256_diffusion"].preset, PUBLISHED["256x256_diffusion"].learned_variance
        ('adm-imagenet256', True)
    """

    preset: str
    process: Callable[[], GaussianSDE | Chain]
    dialect: Dialect
    predicts: str = "eps"
    config: Mapping[str, Any] = field(default_factory=dict)
    learned_variance: bool = False

    def same(self, other: Published) -> bool:
        """Return whether two checkpoints are equal except for their weights and their dropout in training."""
        configs = ({**NETWORKS[p.preset].config, **p.config, "dropout": 0.0} for p in (self, other))
        a, b = ((p.dialect, p.predicts, p.learned_variance, p.process().config()) for p in (self, other))
        return next(configs) == next(configs) and a == b

    def net(self) -> UNet:
        """Build the network with random initial weights."""
        net = NETWORKS[self.preset].build(**self.config)
        assert isinstance(net, UNet)
        return net


# The time of a VP network is 999 t. The time of a VE network is log(sigma) for data in [0, 1]. On [-1, 1] sigma is twice as
# large, so the time is log(sigma / 2), which is affine in t. The output of a VE network is sigma times the score, which is
# the negative of the noise.
_VP_TIME = {"time_scale": 1 / 999}


def _ve(sigma_max: float) -> dict[str, Any]:
    """Return the SDE of a VE network on [-1, 1] and its unit of time; ``sigma_max`` is for data in [0, 1]."""
    rate = math.log(sigma_max / 0.01)
    return {
        "process": lambda: VE(0.02, 2 * sigma_max),
        "config": {"time_scale": 1 / rate, "time_shift": -math.log(0.01) / rate},
    }


def _song(preset: str, kind: str, *, sigma_max: float = 50.0, family: str = "song") -> Published:
    dialect = Dialect(family, sine_first=True, negated=kind in ("ve", "ve-steps"))
    process: dict[str, dict[str, Any]] = {
        "vp": {"process": VP, "config": _VP_TIME},
        "subvp": {"process": SubVP, "config": _VP_TIME},
        "vp-steps": {"process": DDPM.linear},
        "ve": _ve(sigma_max),
        # The time of these networks counts the steps from the largest noise on.
        "ve-steps": {
            "process": lambda: NCSN.geometric(1000, 0.02, 2 * sigma_max),
            "config": {"time_scale": -1.0, "time_shift": 999.0},
        },
    }
    return Published(preset, dialect=dialect, **process[kind])


def _edm(preset: str, **config: Any) -> Published:
    return Published(preset, EDM, Dialect("edm", sine_first="adm" not in preset), "edm", config)


def _openai(preset: str, process: Callable[[], Chain], unit: float = 1.0, joined: bool = False) -> Published:
    dialect = Dialect("openai", joined=joined)
    return Published(preset, process, dialect, config={"time_scale": unit}, learned_variance=True)


def _cosine4000() -> DDPM:
    return DDPM.cosine(4000)


_SONG = {
    "vp/cifar10_ddpmpp": _song("ddpmpp-cifar10", "vp-steps"),
    "vp/cifar10_ddpmpp_continuous": _song("ddpmpp-cifar10", "vp"),
    "vp/cifar10_ddpmpp_deep_continuous": _song("ddpmpp-deep-cifar10", "vp"),
    "vp/cifar10_ncsnpp": _song("ncsnpp-vp-cifar10", "vp-steps"),
    "vp/cifar10_ncsnpp_continuous": _song("ncsnpp-vp-cifar10", "vp"),
    "vp/cifar10_ncsnpp_deep_continuous": _song("ncsnpp-vp-deep-cifar10", "vp"),
    "subvp/cifar10_ddpmpp_continuous": _song("ddpmpp-cifar10", "subvp"),
    "subvp/cifar10_ddpmpp_deep_continuous": _song("ddpmpp-deep-cifar10", "subvp"),
    "subvp/cifar10_ncsnpp_continuous": _song("ncsnpp-vp-cifar10", "subvp"),
    "subvp/cifar10_ncsnpp_deep_continuous": _song("ncsnpp-vp-deep-cifar10", "subvp"),
    "ve/cifar10_ncsnpp": _song("ncsnpp-vp-cifar10", "ve-steps"),
    "ve/cifar10_ncsnpp_continuous": _song("ncsnpp-cifar10", "ve"),
    "ve/cifar10_ncsnpp_deep_continuous": _song("ncsnpp-deep-cifar10", "ve"),
    "ve/bedroom_ncsnpp_continuous": _song("ncsnpp-256", "ve", sigma_max=378.0),
    "ve/church_ncsnpp_continuous": _song("ncsnpp-256", "ve", sigma_max=380.0),
    "ve/ffhq_256_ncsnpp_continuous": _song("ncsnpp-256", "ve", sigma_max=348.0),
    "ve/celebahq_256_ncsnpp_continuous": _song("ncsnpp-256", "ve", sigma_max=348.0),
    "ve/ffhq_ncsnpp_continuous": _song("ncsnpp-1024", "ve", sigma_max=1348.0),
    "ve/celebahq_ncsnpp_continuous": _song("ncsnpp-1024", "ve", sigma_max=1348.0),
    "ve/cifar10_ddpm": _song("song-ddpm-cifar10", "ve-steps", family="song-ddpm"),
    "vp/ddpm/cifar10": _song("song-ddpm-cifar10", "vp-steps", family="song-ddpm"),
    "vp/ddpm/cifar10_continuous": _song("song-ddpm-cifar10", "vp", family="song-ddpm"),
    "vp/ddpm/bedroom": _song("song-ddpm-256", "vp-steps", family="song-ddpm"),
    "vp/ddpm/church": _song("song-ddpm-256", "vp-steps", family="song-ddpm"),
    "vp/ddpm/celebahq": _song("song-ddpm-256", "vp-steps", family="song-ddpm"),
    "subvp/cifar10_ddpm_continuous": _song("song-ddpm-cifar10", "subvp", family="song-ddpm"),
}
_EDM = {
    "edm-cifar10-32x32-uncond-vp": _edm("edm-ddpmpp-cifar10"),
    "edm-cifar10-32x32-cond-vp": _edm("edm-ddpmpp-cifar10-cond"),
    "edm-cifar10-32x32-uncond-ve": _edm("edm-ncsnpp-cifar10"),
    "edm-cifar10-32x32-cond-ve": _edm("edm-ncsnpp-cifar10-cond"),
    "edm-ffhq-64x64-uncond-vp": _edm("edm-ddpmpp-64"),
    "edm-ffhq-64x64-uncond-ve": _edm("edm-ncsnpp-64"),
    "edm-afhqv2-64x64-uncond-vp": _edm("edm-ddpmpp-64", dropout=0.25),
    "edm-afhqv2-64x64-uncond-ve": _edm("edm-ncsnpp-64", dropout=0.25),
    "edm-imagenet-64x64-cond-adm": _edm("edm-adm-imagenet64"),
    "baseline-cifar10-32x32-uncond-vp": Published("ddpmpp-cifar10", VP, Dialect("edm", sine_first=True), config=_VP_TIME),
    "baseline-cifar10-32x32-uncond-ve": Published(
        "ncsnpp-cifar10", dialect=Dialect("edm", sine_first=True, negated=True), **_ve(50.0)
    ),
}
_OPENAI = {
    # The time of these networks is the step divided by 4, which runs to 1000.
    "cifar10_uncond_50M_500K": _openai("iddpm-cifar10", _cosine4000, unit=4.0),
    "cifar10_uncond_vlb_50M_500K": _openai("iddpm-cifar10", _cosine4000, unit=4.0),
    "imagenet64_uncond_100M_1500K": _openai("iddpm-imagenet64", _cosine4000, unit=4.0),
    "imagenet64_uncond_vlb_100M_1500K": _openai("iddpm-imagenet64", _cosine4000, unit=4.0),
    "imagenet64_cond_270M_250K": _openai("iddpm-imagenet64-cond", _cosine4000),
    "lsun_uncond_100M_1200K_bs128": _openai("iddpm-lsun256", DDPM.linear),
    "lsun_uncond_100M_2400K_bs64": _openai("iddpm-lsun256", DDPM.linear),
    "64x64_diffusion": _openai("adm-imagenet64", DDPM.cosine, joined=True),
    "128x128_diffusion": _openai("adm-imagenet128", DDPM.linear),
    "256x256_diffusion": _openai("adm-imagenet256", DDPM.linear),
    "256x256_diffusion_uncond": _openai("adm-imagenet256-uncond", DDPM.linear),
    "512x512_diffusion": _openai("adm-imagenet512", DDPM.linear),
    "lsun_bedroom": _openai("adm-lsun256", DDPM.linear),
    "lsun_cat": _openai("adm-lsun256", DDPM.linear),
    "lsun_horse": _openai("adm-lsun256", DDPM.linear),
    "lsun_horse_nodropout": _openai("adm-imagenet256-uncond", DDPM.linear),
}

PUBLISHED: Table[Published] = Table(
    "config",
    "scoresde.weights.PUBLISHED",
    {**_SONG, **_EDM, **_OPENAI},
    check=lambda value: isinstance(value, Published),
    expects="a scoresde.weights.Published",
)
"""The published checkpoints by the name of their file or, for score_sde_pytorch, of their configuration file."""
