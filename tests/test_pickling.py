"""What workers of other processes receive and return can be pickled: solvers, SDEs, problems, models, errors."""

import copy
import pickle

import pytest
import torch

import scoresde
from scoresde import ScoreModel, problems, sample, solvers
from scoresde.base.identity import digest
from scoresde.base.names import UnknownNameError
from scoresde.sampling import NonFiniteError
from scoresde.score import PREDICTIONS
from scoresde.sde import SDES, Chain
from scoresde.solvers import SOLVERS, RowSolver, make_path
from scoresde.training import CheckpointError
from scoresde.weights import WeightsError


def again(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_come_back_as_they_were(name):
    solver = solvers.get(name)
    for back in (again(solver), again(again(solver)), copy.deepcopy(solver)):
        assert back.description == solver.description and type(back) is type(solver)
        if isinstance(solver, RowSolver):
            path = make_path(scoresde.VP(), "lam", 6)
            assert solvers.to_json(back.rows(path)) == solvers.to_json(solver.rows(path))
    model, start = problems.ring().model(scoresde.VP()), {"seed": 3, "steps": 4, "progress": False}
    if not name.startswith(("torchsde", "gotta")):  # they take a second
        assert torch.equal(sample(model, (3, 2), again(solver), **start).x, sample(model, (3, 2), solver, **start).x)


@pytest.mark.parametrize(
    "solver",
    [
        solvers.ddim(eta=0.5),
        solvers.predictor_corrector(solvers.ancestral("upper"), corrections=2),
        solvers.detour(solvers.heun("rho"), solvers.overshoot, solvers.Description("mine", "ancestral", "here", 2)),
        solvers.dpm_adaptive(23, rtol=0.1),
        solvers.edm_stochastic(s_churn=10.0),
    ],
    ids=lambda solver: solver.name,
)
def test_settings_come_back_too(solver):
    again(solver)
    model = problems.ring().model(scoresde.VP())
    one, two = (sample(model, (3, 2), s, steps=4, seed=1, progress=False).x for s in (solver, again(solver)))
    assert torch.equal(one, two)


def test_sdes_and_chains_come_back():
    t = torch.tensor([0.1, 0.5], dtype=torch.float64)
    for name in SDES:
        sde = SDES[name]()
        back = again(sde)
        gaussian, same = (s.sde() if isinstance(s, Chain) else s for s in (sde, back))
        t = gaussian.span[0] + (gaussian.span[1] - gaussian.span[0]) * torch.tensor([0.1, 0.5], dtype=torch.float64)
        assert torch.equal(gaussian.lam(t), same.lam(t)) and repr(back) == repr(sde)


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_problems_and_their_models_come_back(name):
    problem = problems.PROBLEMS[name]()
    x = problem.sample(2, torch.Generator().manual_seed(0))
    model = problem.model(scoresde.VP())
    assert torch.equal(again(model).score(x, 0.4), model.score(x, 0.4))
    assert torch.equal(again(problem).sample(2, torch.Generator().manual_seed(0)), x)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_models_of_networks_come_back(predicts):
    for sde in (scoresde.VP(), scoresde.DDPM()):
        model = ScoreModel(scoresde.models.MLP(2), sde, predicts)
        x, t = torch.ones(2, 2), 0.4 * model.sde.span[1]
        assert torch.equal(again(model).x0(x, t), model.x0(x, t))


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteError("a solver", 3, 0.5, torch.ones(2)),
        UnknownNameError("got 'x'; expected another"),
        CheckpointError("a file"),
        WeightsError("a file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back(error):
    back = again(error)
    assert type(back) is type(error) and str(back) == str(error)
    for name, value in vars(error).items():
        assert torch.equal(vars(back)[name], value) if isinstance(value, torch.Tensor) else vars(back)[name] == value


def test_two_solvers_have_two_digests_and_one_has_one_however_it_was_made():
    digests = {name: digest(solvers.get(name)) for name in SOLVERS}
    assert len(set(digests.values())) == len(digests)
    assert digest(solvers.ddim()) == digest(solvers.ddim(0.0)) == digest(solvers.ddim(eta=0.0)) != digest(solvers.ddim(0.5))
    assert digest(again(solvers.ddim(0.5))) == digest(solvers.ddim(0.5))
    assert digest(solvers.sa_solver(tau=lambda lam: 0.2)) != digest(solvers.sa_solver(tau=lambda lam: 0.3))
