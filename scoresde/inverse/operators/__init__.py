"""Measurement operators with adjoints, inverses and singular value decompositions, tested when they are built.

========================  ====================================================  ============================================
operator                  measures                                              singular value decomposition
========================  ====================================================  ============================================
:class:`Mask`             some numbers of a state (inpainting)                  closed form
:class:`Matrix`           any matrix times the state                            of the matrix, at most 2,048 numbers
:class:`Downsample`       an image of lower resolution (super-resolution)       of two small matrices
:class:`Blur`             a convolution (deblurring)                            circular or separable; else as for a matrix
:class:`Separable`        a matrix for the rows and one for the columns         of the two matrices
:class:`Grayscale`        one weighted sum of the channels (colorization)       of a small matrix
:class:`Channels`         any matrix times the channels of every pixel          of a small matrix
:class:`Fourier`          some Fourier coefficients                             closed form
:class:`Radon`            projections along few directions (tomography)         of the matrix, at most 2,048 numbers
:class:`Function`         any differentiable function of the state              none
========================  ====================================================  ============================================
"""

from scoresde.inverse.operators.base import Composed, Operator, Singular
from scoresde.inverse.operators.blur import Blur
from scoresde.inverse.operators.channels import Channels, Grayscale
from scoresde.inverse.operators.downsample import Downsample
from scoresde.inverse.operators.fourier import Fourier
from scoresde.inverse.operators.function import Function
from scoresde.inverse.operators.kernels import gaussian_kernel, motion_kernel
from scoresde.inverse.operators.mask import Mask
from scoresde.inverse.operators.matrix import Matrix
from scoresde.inverse.operators.nonlinear import high_dynamic_range, jpeg, phase_retrieval
from scoresde.inverse.operators.radon import Radon
from scoresde.inverse.operators.separable import Separable

__all__ = [
    "Blur",
    "Channels",
    "Composed",
    "Downsample",
    "Fourier",
    "Function",
    "Grayscale",
    "Mask",
    "Matrix",
    "Operator",
    "Radon",
    "Separable",
    "Singular",
    "gaussian_kernel",
    "high_dynamic_range",
    "jpeg",
    "motion_kernel",
    "phase_retrieval",
]
