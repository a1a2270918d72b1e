"""Forward processes: SDEs with Gaussian marginals, SDEs of any drift and diffusion, and the chains that discretize them."""

from scoresde.sde.base import SDE, HasScore, ReverseSDE, Time
from scoresde.sde.bridge import discretize
from scoresde.sde.chain import DDPM, NCSN, Chain, ChainSDE, GaussianChain
from scoresde.sde.gaussian import FunctionSDE, GaussianSDE
from scoresde.sde.general import GeneralSDE
from scoresde.sde.names import SDES
from scoresde.sde.published import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "SDE",
    "SDES",
    "VE",
    "VP",
    "Chain",
    "ChainSDE",
    "CosineVP",
    "FunctionSDE",
    "GaussianChain",
    "GaussianSDE",
    "GeneralSDE",
    "HasScore",
    "RectifiedFlow",
    "ReverseSDE",
    "SubVP",
    "Time",
    "discretize",
]
