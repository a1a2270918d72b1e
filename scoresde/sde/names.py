"""SDEs and chains by name, with their settings: ``"vp"``, ``"ve: sigma_min=0.02, sigma_max=100.0"``."""

from __future__ import annotations

from collections.abc import Callable

from scoresde.base.names import check_names, near
from scoresde.base.settings import parse
from scoresde.sde.chain import DDPM, Chain
from scoresde.sde.gaussian import GaussianSDE
from scoresde.sde.published import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP

__all__ = ["SDES", "process", "sde"]

SDES: dict[str, Callable[..., GaussianSDE | Chain]] = {
    "vp": VP,
    "cosine": CosineVP,
    "subvp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": RectifiedFlow,
    "ddpm": DDPM.linear,
}
"""Every SDE and chain by name."""


def process(text: str) -> GaussianSDE | Chain:
    """The SDE or chain that ``text`` names, with its settings: ``"ve: sigma_min=0.02, sigma_max=100.0"``."""
    name, settings = parse(text)
    if name not in SDES:
        raise ValueError(f"got SDE {name!r}; expected one of {', '.join(SDES)}{near(name, SDES)}")
    check_names(f"the SDE {text!r}", settings, SDES[name])
    return SDES[name](**settings)


def sde(text: str) -> GaussianSDE:
    """The same as an SDE: of a chain, the one through its marginals."""
    made = process(text)
    return made.sde() if isinstance(made, Chain) else made
