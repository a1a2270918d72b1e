"""Solvers: numerics only. No network, no data, no I/O.

A solver is a prediction and a stencil on a path; it turns the path into rows, and drivers run rows.
"""

from scoresde.solvers.adaptive.control import Controller
from scoresde.solvers.adaptive.flow import Adaptive, bogacki_shampine, dormand_prince, dpm_adaptive
from scoresde.solvers.adaptive.reverse_sde import AdaptiveSDE, gotta_go_fast
from scoresde.solvers.coefficients import exponential_moments, lagrange_integrals
from scoresde.solvers.drivers import (
    DRIVERS,
    CapturedSampler,
    Compiled,
    CudaGraph,
    Custom,
    Denoiser,
    Differentiable,
    Driver,
    Fast,
    Parallel,
    Project,
    Readable,
    State,
    compiled,
    cuda_graph,
    differentiable,
    fast,
    parallel,
    readable,
)
from scoresde.solvers.history import Finish, finishing
from scoresde.solvers.methods.ancestral import (
    analytic_dpm,
    ancestral,
    ddpm,
    euler_maruyama,
    ncsn,
    reverse_diffusion,
    sde_heun,
)
from scoresde.solvers.methods.er import er_sde_solver
from scoresde.solvers.methods.exponential import ddim, dpm_multistep, dpmpp_2m, dpmpp_3m
from scoresde.solvers.methods.exponential_sde import sde_dpm_solver, sde_dpmpp, seeds
from scoresde.solvers.methods.langevin import (
    annealed_langevin,
    langevin,
    predictor_corrector,
    sgld,
    underdamped_corrector,
)
from scoresde.solvers.methods.multistep import deis, gradient_estimation, ipndm, ipndm_v, lms, plms, pndm, velocity
from scoresde.solvers.methods.renoising import (
    churn,
    detour,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    edm_stochastic,
    euler_ancestral,
    overshoot,
    restart,
    restart_heun,
)
from scoresde.solvers.methods.runge_kutta import euler, explicit_midpoint, heun, rk3, rk4
from scoresde.solvers.methods.sa import sa_solver
from scoresde.solvers.methods.singlestep import dpm_fast, dpm_solver, dpmpp_2s, dpmpp_3s
from scoresde.solvers.methods.third_party import rk45, torchsde_solver
from scoresde.solvers.methods.unipc import exp_adams_moulton, unipc
from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise, NoiseSource, sample_seeds
from scoresde.solvers.path import Path, Point, make_path, points
from scoresde.solvers.prediction import Data, Drift, Noise, Prediction, Rho, Velocity
from scoresde.solvers.rows import each_step, one_step, stencil_rows
from scoresde.solvers.solver import Description, Dynamics, RowSolver, Solver, compose
from scoresde.solvers.spacings import PATHS, ChainSpacing, PublishedLevels, Shifted, flux_shift, resolution_shift
from scoresde.solvers.stencil import Stage, midpoint, multistep, radau, trapezoid
from scoresde.solvers.table import SOLVERS, get
from scoresde.solvers.tuned import Tuned, TunedSteps
from scoresde.solvers.updates import Langevin, LearnedNoise, Row, Update, evaluations, from_json, to_json

__all__ = [
    "DRIVERS",
    "PATHS",
    "SOLVERS",
    "Adaptive",
    "AdaptiveSDE",
    "BrownianNoise",
    "CapturedSampler",
    "ChainSpacing",
    "Compiled",
    "Controller",
    "CudaGraph",
    "Custom",
    "Data",
    "Denoiser",
    "Description",
    "Differentiable",
    "Drift",
    "Driver",
    "Dynamics",
    "Fast",
    "Finish",
    "FreshNoise",
    "Langevin",
    "LearnedNoise",
    "Noise",
    "NoiseSource",
    "Parallel",
    "Path",
    "Point",
    "Prediction",
    "Project",
    "PublishedLevels",
    "Readable",
    "Rho",
    "Row",
    "RowSolver",
    "Shifted",
    "Solver",
    "Stage",
    "State",
    "Tuned",
    "TunedSteps",
    "Update",
    "Velocity",
    "analytic_dpm",
    "ancestral",
    "annealed_langevin",
    "bogacki_shampine",
    "churn",
    "compiled",
    "compose",
    "cuda_graph",
    "ddim",
    "ddpm",
    "deis",
    "detour",
    "differentiable",
    "dormand_prince",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpm_multistep",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3s",
    "each_step",
    "edm_stochastic",
    "er_sde_solver",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "evaluations",
    "exp_adams_moulton",
    "explicit_midpoint",
    "exponential_moments",
    "fast",
    "finishing",
    "flux_shift",
    "from_json",
    "get",
    "gotta_go_fast",
    "gradient_estimation",
    "heun",
    "ipndm",
    "ipndm_v",
    "lagrange_integrals",
    "langevin",
    "lms",
    "make_path",
    "midpoint",
    "multistep",
    "ncsn",
    "one_step",
    "overshoot",
    "parallel",
    "plms",
    "pndm",
    "points",
    "predictor_corrector",
    "radau",
    "readable",
    "resolution_shift",
    "restart",
    "restart_heun",
    "reverse_diffusion",
    "rk3",
    "rk4",
    "rk45",
    "sa_solver",
    "sample_seeds",
    "sde_dpm_solver",
    "sde_dpmpp",
    "sde_heun",
    "seeds",
    "sgld",
    "stencil_rows",
    "to_json",
    "torchsde_solver",
    "trapezoid",
    "underdamped_corrector",
    "unipc",
    "velocity",
]
