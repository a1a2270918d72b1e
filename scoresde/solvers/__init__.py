"""Solvers: numerics only. No network, no data, no I/O.

A solver is a prediction and a stencil on a path; it turns the path into rows, and drivers run rows.
"""

from scoresde.solvers.coefficients import lagrange_integrals, moments
from scoresde.solvers.drivers import Denoiser, State, fast, readable
from scoresde.solvers.exponential import ddim, dpm_solver, dpmpp_2m
from scoresde.solvers.langevin import annealed_langevin, predictor_corrector
from scoresde.solvers.noise import FreshNoise, NoiseSource, sample_seeds
from scoresde.solvers.outside import rk45, torchsde_solver
from scoresde.solvers.path import PATHS, Path, Point, make_path, points
from scoresde.solvers.prediction import Data, Noise, Prediction, Rho, Time, Velocity
from scoresde.solvers.rows import Langevin, Row, each_step, from_json, one_step, stencil_rows, to_json
from scoresde.solvers.runge_kutta import euler, heun, rk4
from scoresde.solvers.solver import Description, Dynamics, RowSolver, Solver, compose
from scoresde.solvers.stencil import Stage, midpoint, multistep, radau, trapezoid
from scoresde.solvers.stochastic import ancestral, ddpm, euler_maruyama, ncsn, reverse_diffusion
from scoresde.solvers.table import SOLVERS, get

__all__ = [
    "PATHS",
    "SOLVERS",
    "Data",
    "Denoiser",
    "Description",
    "Dynamics",
    "FreshNoise",
    "Langevin",
    "Noise",
    "NoiseSource",
    "Path",
    "Point",
    "Prediction",
    "Rho",
    "Row",
    "RowSolver",
    "Solver",
    "Stage",
    "State",
    "Time",
    "Velocity",
    "ancestral",
    "annealed_langevin",
    "compose",
    "ddim",
    "ddpm",
    "dpm_solver",
    "dpmpp_2m",
    "each_step",
    "euler",
    "euler_maruyama",
    "fast",
    "from_json",
    "get",
    "heun",
    "lagrange_integrals",
    "make_path",
    "midpoint",
    "moments",
    "multistep",
    "ncsn",
    "one_step",
    "points",
    "predictor_corrector",
    "radau",
    "readable",
    "reverse_diffusion",
    "rk4",
    "rk45",
    "sample_seeds",
    "stencil_rows",
    "to_json",
    "torchsde_solver",
    "trapezoid",
]
