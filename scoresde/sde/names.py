"""SDEs and chains by name, with their settings: ``"vp"``, ``"ve: sigma_min=0.02, sigma_max=100.0"``."""

from __future__ import annotations

from collections.abc import Callable

from scoresde.base.names import Table
from scoresde.sde.chain import DDPM, Chain
from scoresde.sde.gaussian import GaussianSDE
from scoresde.sde.published import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP

__all__ = ["SDES", "process", "sde"]

SDES: Table[Callable[..., GaussianSDE | Chain]] = Table(
    "SDE",
    "scoresde.sde.SDES",
    {
        "vp": VP,
        "cosine": CosineVP,
        "subvp": SubVP,
        "ve": VE,
        "edm": EDM,
        "flow": RectifiedFlow,
        "ddpm": DDPM.linear,
    },
    check=callable,
    expects="a class or a function that returns an SDE or a chain",
)
"""The SDEs and chains by name; the settings in a name are the arguments of the class."""


def process(text: str) -> GaussianSDE | Chain:
    """Return the SDE or chain that ``text`` names, with its settings: ``"ve: sigma_min=0.02, sigma_max=100.0"``."""
    return SDES.make(text)


def sde(text: str) -> GaussianSDE:
    """Return the SDE that ``text`` names; for a chain, the :class:`~scoresde.sde.ChainSDE` with its marginals."""
    made = process(text)
    return made.sde() if isinstance(made, Chain) else made
