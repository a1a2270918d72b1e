"""The networks of the papers: their arguments, their numbers of parameters, and the sources of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from scoresde.base.names import Table
from scoresde.models.ncsnv2 import NCSNv2
from scoresde.models.transformers import DiT, EmbeddingPrior, MMDiT
from scoresde.models.unet import UNet

__all__ = ["NETWORKS", "PublishedNetwork", "build"]


@dataclass(frozen=True)
class PublishedNetwork:
    """A published network.

    Args:
        network: the class of the network.
        parameters: the number of parameters.
        source: the paper or code in which they are given.
        config: the arguments of ``network``.

    Example:
        >>> published = NETWORKS["ddpm-cifar10"]
        >>> published.network.__name__, published.parameters, published.config["multipliers"]
        ('UNet', 35746307, (1, 2, 2, 2))
    """

    network: Callable[..., nn.Module]
    parameters: int
    source: str
    config: Mapping[str, Any] = field(repr=False)

    def build(self, **changes: Any) -> nn.Module:
        """Build the network with ``changes`` to its arguments.

        Example:
            >>> net = NETWORKS["ddpm-cifar10"].build(width=32)
            >>> net.config["width"], net.config["multipliers"]
            (32, [1, 2, 2, 2])
        """
        return self.network(**{**self.config, **changes})


_DDPM = "Ho et al., 2020, https://arxiv.org/abs/2006.11239, appendix B"
_SONG = "Song et al., 2021, https://arxiv.org/abs/2011.13456, appendix H; configs of yang-song/score_sde_pytorch"
_EDM = "Karras et al., 2022, https://arxiv.org/abs/2206.00364, table 7; training/networks.py of NVlabs/edm"
_IDDPM = "Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672; README of openai/improved-diffusion"
_ADM = "Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233, tables 4 and 12; openai/guided-diffusion"
_LDM = "Rombach et al., 2022, https://arxiv.org/abs/2112.10752; configs/stable-diffusion of CompVis/stable-diffusion"
_SDXL = "Podell et al., 2023, https://arxiv.org/abs/2307.01952, table 1; configs/inference of Stability-AI/generative-models"
_IMAGEN = "Saharia et al., 2022, https://arxiv.org/abs/2205.11487, appendices B and F, which state 600 million"
_SD3 = "Esser et al., 2024, https://arxiv.org/abs/2403.03206; the configurations of stabilityai/stable-diffusion-3(.5)"
_FLUX = "Black Forest Labs, 2024; src/flux/util.py of black-forest-labs/flux"
_UNCLIP = "Ramesh et al., 2022, https://arxiv.org/abs/2204.06125; the prior of kakaobrain/karlo, of 1 billion"
_NCSNV2 = "Song and Ermon, 2020, https://arxiv.org/abs/2006.09011; models/ncsnv2.py of ermongroup/ncsnv2"
_DIT = "Peebles and Xie, 2023, https://arxiv.org/abs/2212.09748, table 4; models.py of facebookresearch/DiT"

_RGB: dict[str, Any] = {"channels": 3}
# The arguments that most of them share and that are not the defaults.
_published = _RGB | {
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "attention": (1,),
    "heads": 1,
    "adaptive": False,
    "time": "positional",
}
_ddpm = _published | {"resample": "conv", "asymmetric": True, "endpoint": True, "group_size": 1}
_song = _ddpm | {"last_attention": True}  # the code of score_sde_pytorch; DDPM's own has attention after every block
_large: dict[str, Any] = {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (4,)}
_ddpmpp = _published | {
    "blocks": 4,
    "attention": (1,),
    "last_attention": True,
    "resample": "block",
    "project_skips": True,
    "rescale": True,
    "endpoint": True,
}
_ncsnpp = _ddpmpp | {"fir": True, "input_pyramid": "residual"}
_fourier = _ncsnpp | {"time": "fourier"}
_pyramids = _fourier | {"blocks": 2, "input_pyramid": "skip", "output_pyramid": "skip"}
_256 = _pyramids | {"multipliers": (1, 1, 2, 2, 2, 2, 2), "attention": (4,)}
_1024 = _pyramids | {"width": 16, "blocks": 1, "multipliers": (1, 2, 4, 8, 16, 32, 32, 32), "attention": (6,)}
_edm: dict[str, Any] = {"multipliers": (2, 2, 2), "stem": 128, "augment": 9, "dropout": 0.13}
_edm64 = _edm | {"multipliers": (1, 2, 2, 2), "stem": None, "attention": (2,), "dropout": 0.05}
_labels: dict[str, Any] = {"num_classes": 10, "early_label": True}
_iddpm = _published | {
    "out_channels": 6,
    "resample": "conv",
    "adaptive": True,
    "blocks": 3,
    "heads": 4,
    "multipliers": (1, 2, 3, 4),
    "attention": (2, 3),
    "group_size": 1,
    "eps": 1e-5,
}
_adm = _iddpm | {"resample": "block", "heads": 1, "head_channels": 64, "blocks": 2}
_class: dict[str, Any] = {"num_classes": 1000, "unconditional": False}
_adm64 = _adm | _class | {"width": 192, "blocks": 3, "attention": (1, 2, 3), "dropout": 0.1}
_adm128 = (
    _adm | _class | {"width": 256, "multipliers": (1, 1, 2, 3, 4), "attention": (2, 3, 4), "head_channels": None, "heads": 4}
)
_adm256 = _adm | {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (3, 4, 5)}
_adm512 = _adm | _class | {"width": 256, "multipliers": (0.5, 1, 1, 2, 2, 4, 4), "attention": (4, 5, 6)}


# Stable Diffusion's networks on latents of four channels, and Imagen's on an image beside the smaller one, enlarged.
_stable = _published | {
    "channels": 4,
    "width": 320,
    "multipliers": (1, 2, 4, 4),
    "attention": (0, 1, 2),
    "transformer": 1,
    "context": 768,
    "heads": 8,
    "resample": "conv",
    "group_size": 1,
    "eps": 1e-5,
}
_stable2 = _stable | {"context": 1024, "head_channels": 64}
_stable_xl: dict[str, Any] = {
    "multipliers": (1, 2, 4),
    "attention": (1, 2),
    "transformer": (0, 2, 10),
    "context": 2048,
    "pooled": 2816,
    "head_channels": 64,
}
_efficient = _published | {
    "channels": 6,
    "out_channels": 3,
    "multipliers": (1, 2, 4, 8),
    "blocks": (2, 4, 8, 8),
    "attention": (3,),
    "last_attention": True,
    "heads": 8,
    "context": 4096,
    "pooled": 4096,
    "resample": "outer",
    "scale_skips": True,
    "adaptive": True,
}

_deeper = ((1, 1), (2, 1), (2, 1), (4, 2), (4, 4))
_deepest = ((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4))


def _dit(width: int, depth: int, heads: int) -> dict[str, Any]:
    latent = {"channels": 4, "size": 32, "patch": 2, "out_channels": 8, "num_classes": 1000, "time": "positional"}
    return latent | {"width": width, "depth": depth, "heads": heads}


_mmdit: dict[str, Any] = {"channels": 16, "patch": 2, "context": 4096, "time": "positional", "time_scale": 1 / 1000}
_sd3 = _mmdit | {"width": 1536, "depth": 24, "heads": 24, "pooled": 2048}
_sd35_medium: dict[str, Any] = {"qk_norm": True, "largest": 384, "dual": tuple(range(13))}
_sd35_large: dict[str, Any] = {"qk_norm": True, "width": 2432, "depth": 38, "heads": 38}
_flux = _mmdit | {
    "width": 3072,
    "depth": 19,
    "single": 38,
    "heads": 24,
    "pooled": 768,
    "rotary": (16, 56, 56),
    "qk_norm": True,
}


def _unet(parameters: int, source: str, *configs: dict[str, Any]) -> PublishedNetwork:
    merged = {name: value for config in configs for name, value in config.items()}
    return PublishedNetwork(UNet, parameters, source, MappingProxyType(merged))


NETWORKS: Table[PublishedNetwork] = Table(
    "network",
    "scoresde.models.NETWORKS",
    {
        "ddpm-cifar10": _unet(35_746_307, _DDPM, _ddpm, {"dropout": 0.1}),
        "ddpm-256": _unet(113_673_219, _DDPM, _ddpm, _large),
        "song-ddpm-cifar10": _unet(35_218_947, _SONG, _song, {"dropout": 0.1}),
        "song-ddpm-256": _unet(111_569_923, _SONG, _song, _large),
        "ddpmpp-cifar10": _unet(61_804_419, _SONG, _ddpmpp, {"dropout": 0.1}),
        "ddpmpp-deep-cifar10": _unet(106_632_579, _SONG, _ddpmpp, {"blocks": 8, "dropout": 0.1}),
        "ncsnpp-vp-cifar10": _unet(62_693_251, _SONG, _ncsnpp, {"dropout": 0.1}),
        "ncsnpp-vp-deep-cifar10": _unet(107_521_411, _SONG, _ncsnpp, {"blocks": 8, "dropout": 0.1}),
        "ncsnpp-cifar10": _unet(62_758_787, _SONG, _fourier, {"dropout": 0.1}),
        "ncsnpp-deep-cifar10": _unet(107_586_947, _SONG, _fourier, {"blocks": 8, "dropout": 0.1}),
        "ncsnpp-256": _unet(65_574_421, _SONG, _256),
        "ncsnpp-1024": _unet(105_785_880, _SONG, _1024),
        "edm-ddpmpp-cifar10": _unet(55_733_891, _EDM, _ddpmpp, _edm),
        "edm-ddpmpp-cifar10-cond": _unet(55_735_299, _EDM, _ddpmpp, _edm, _labels),
        "edm-ncsnpp-cifar10": _unet(56_397_827, _EDM, _fourier, _edm),
        "edm-ncsnpp-cifar10-cond": _unet(56_400_643, _EDM, _fourier, _edm, _labels),
        "edm-ddpmpp-64": _unet(61_805_571, _EDM, _ddpmpp, _edm64),
        "edm-ncsnpp-64": _unet(62_761_091, _EDM, _fourier, _edm64),
        "edm-adm-imagenet64": _unet(295_899_267, _EDM, _adm64, {"out_channels": None, "group_size": 4}),
        "iddpm-cifar10": _unet(
            52_546_438, _IDDPM, _iddpm, {"multipliers": (1, 2, 2, 2), "attention": (1, 2), "dropout": 0.3}
        ),
        "iddpm-imagenet64": _unet(121_063_942, _IDDPM, _iddpm),
        "iddpm-imagenet64-cond": _unet(273_049_350, _IDDPM, _iddpm, _class, {"width": 192}),
        "iddpm-lsun256": _unet(113_676_678, _IDDPM, _iddpm, _large, {"blocks": 2, "heads": 1, "adaptive": False}),
        "adm-imagenet64": _unet(295_904_454, _ADM, _adm64),
        "adm-imagenet128": _unet(421_529_606, _ADM, _adm128),
        "adm-imagenet256": _unet(553_838_086, _ADM, _adm256, _class),
        "adm-imagenet256-uncond": _unet(552_814_086, _ADM, _adm256),
        "adm-lsun256": _unet(552_814_086, _ADM, _adm256, {"dropout": 0.1}),
        "adm-imagenet512": _unet(558_997_638, _ADM, _adm512),
        "stable-diffusion-1": _unet(859_520_964, _LDM, _stable),
        "stable-diffusion-2": _unet(865_910_724, _LDM, _stable2),
        "stable-diffusion-xl": _unet(2_567_463_684, _SDXL, _stable, _stable_xl),
        "imagen-64-256": _unet(579_505_283, _IMAGEN, _efficient),
        "ncsnv2-cifar10": PublishedNetwork(NCSNv2, 29_694_083, _NCSNV2, MappingProxyType(_RGB)),
        "ncsnv2-128": PublishedNetwork(NCSNv2, 83_445_379, _NCSNV2, MappingProxyType(_RGB | {"stages": _deeper})),
        "ncsnv2-256": PublishedNetwork(NCSNv2, 94_132_611, _NCSNV2, MappingProxyType(_RGB | {"stages": _deepest})),
        "dit-s-2": PublishedNetwork(DiT, 32_865_056, _DIT, MappingProxyType(_dit(384, 12, 6))),
        "dit-b-2": PublishedNetwork(DiT, 130_315_808, _DIT, MappingProxyType(_dit(768, 12, 12))),
        "dit-l-2": PublishedNetwork(DiT, 457_840_672, _DIT, MappingProxyType(_dit(1024, 24, 16))),
        "dit-xl-2": PublishedNetwork(DiT, 674_834_720, _DIT, MappingProxyType(_dit(1152, 28, 16))),
        "stable-diffusion-3": PublishedNetwork(MMDiT, 2_028_328_000, _SD3, MappingProxyType(_sd3)),
        "stable-diffusion-3.5-medium": PublishedNetwork(MMDiT, 2_243_171_520, _SD3, MappingProxyType(_sd3 | _sd35_medium)),
        "stable-diffusion-3.5-large": PublishedNetwork(MMDiT, 8_056_627_520, _SD3, MappingProxyType(_sd3 | _sd35_large)),
        "unclip-prior": PublishedNetwork(EmbeddingPrior, 1_022_028_544, _UNCLIP, MappingProxyType({"time": "positional"})),
        "flux-schnell": PublishedNetwork(MMDiT, 11_891_178_560, _FLUX, MappingProxyType(_flux)),
        "flux-dev": PublishedNetwork(MMDiT, 11_901_408_320, _FLUX, MappingProxyType(_flux | {"guidance": True})),
    },
    check=lambda value: isinstance(value, PublishedNetwork),
    expects="a scoresde.models.PublishedNetwork",
)
"""The published networks by name."""


def build(name: str, **changes: Any) -> nn.Module:
    """Build the published network ``name`` of :data:`NETWORKS`, with ``changes`` to its arguments.

    Raises:
        ValueError: for an unknown name; the error names the nearest ones.

    Example:
        >>> sum(p.numel() for p in build("ddpm-cifar10").parameters())
        35746307
    """
    return NETWORKS[name].build(**changes)
