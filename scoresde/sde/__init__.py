"""Forward processes: SDEs with Gaussian marginals, SDEs of any drift and diffusion, and the chains that discretize them.

SDEs with matrix coefficients (:class:`MatrixSDE`) have states with several variables, or a schedule for each mode of a
basis.
"""

from scoresde.sde.base import SDE, HasScore, ReverseSDE, Time
from scoresde.sde.bridge import discretize
from scoresde.sde.chain import DDPM, NCSN, Chain, ChainSDE, GaussianChain
from scoresde.sde.gaussian import FunctionSDE, GaussianSDE
from scoresde.sde.general import GeneralSDE
from scoresde.sde.linear import CLD, ConstantMatrices, LinearSDE, ThirdOrderLangevin
from scoresde.sde.matrix import Factors, MatrixSDE
from scoresde.sde.modal import Anisotropic, Blurring, Subspace
from scoresde.sde.modes import Basis, Cosines, ModalMap, Pixels, Vectors
from scoresde.sde.names import SDES
from scoresde.sde.published import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP

__all__ = [
    "CLD",
    "DDPM",
    "EDM",
    "NCSN",
    "SDE",
    "SDES",
    "VE",
    "VP",
    "Anisotropic",
    "Basis",
    "Blurring",
    "Chain",
    "ChainSDE",
    "ConstantMatrices",
    "CosineVP",
    "Cosines",
    "Factors",
    "FunctionSDE",
    "GaussianChain",
    "GaussianSDE",
    "GeneralSDE",
    "HasScore",
    "LinearSDE",
    "MatrixSDE",
    "ModalMap",
    "Pixels",
    "RectifiedFlow",
    "ReverseSDE",
    "SubVP",
    "Subspace",
    "ThirdOrderLangevin",
    "Time",
    "Vectors",
    "discretize",
]
