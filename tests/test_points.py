"""Point sets: equivariance of the network, the subspace of zero centre of mass, clusters with known laws."""

import math
from typing import Any

import pytest
import torch
from support import mostly_slow
from torch import Tensor

import scoresde
from scoresde import EDM, VP, RectifiedFlow, ScoreModel, guidance, log_likelihood, problems, sample, solvers
from scoresde.base.shape import centred, present
from scoresde.models import EGNN
from scoresde.problems import double_well, harmonic_cluster, lennard_jones, metropolis
from scoresde.sampling import importance_weighted, variational_bound
from scoresde.score import PointModel
from scoresde.solvers import SOLVERS

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(net: EGNN, std: float = 0.3, seed: int = 0) -> EGNN:
    """The network with every weight drawn anew, so that nothing in it is zero."""
    g = generator(seed)
    for p in net.parameters():
        p.data = std * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return net


def orthogonal(n: int, reflection: bool) -> Tensor:
    q = torch.linalg.qr(torch.randn(n, n, generator=generator(7), dtype=F64)).Q
    return q if (torch.linalg.det(q) < 0) == reflection else torch.cat([-q[:1], q[1:]])


def turned(x: Tensor, q: Tensor) -> Tensor:
    n = len(q)
    return torch.cat([x[..., :n] @ q.to(x).mT, x[..., n:]], dim=2)


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)


def point_sets(dims: int, features: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(3, 5, dims + features, generator=generator(1), dtype=dtype)


# The network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("reflection", [False, True])
@pytest.mark.parametrize(("dims", "features"), [(1, 0), (2, 0), (3, 4)])
def test_the_network_commutes_with_rotations_reflections_translations_and_permutations(dims, features, reflection, dtype):
    net = shaken(EGNN(features, dims=dims, width=16, depth=3, properties=1).to(dtype))
    x, t, q = point_sets(dims, features, dtype), torch.tensor([0.1, 0.5, 2.0], dtype=dtype), orthogonal(dims, reflection)
    told = {"property": torch.tensor([0.3, -1.0, 2.0], dtype=dtype)}
    out = net(x, t, MASK, **told).detach()
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(out.abs().mean()) > 0.05  # of size one, so that the bounds mean something
    assert (net(turned(x, q), t, MASK, **told) - turned(out, q)).abs().max() < bound * out.abs().max()
    moved = torch.cat([x[..., :dims] + 3.0, x[..., dims:]], dim=2)
    assert (net(moved, t, MASK, **told) - out).abs().max() < 4 * bound * out.abs().max()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert (net(x[:, order], t, MASK[:, order], **told) - out[:, order]).abs().max() < bound * out.abs().max()
    assert (out[..., :dims].sum(1)).abs().max() < bound * out.abs().max()


def test_padding_has_no_effect_and_stays_zero():
    net, t = shaken(EGNN(2, width=16, depth=2).double()), torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    x = point_sets(3, 2)
    out, other = net(x, t, MASK), net(torch.where(MASK[:, :, None], x, 9.0), t, MASK)
    assert torch.equal(out, other) and bool((out[~MASK] == 0).all())
    for i in range(3):
        alone = net(x[i : i + 1, MASK[i]], t[i : i + 1])
        torch.testing.assert_close(out[i : i + 1, MASK[i]], alone, rtol=1e-12, atol=1e-12)


def test_properties_count_where_they_are_known_and_not_elsewhere():
    net, x, t = shaken(EGNN(width=16, depth=1, properties=2).double()), point_sets(3, 0), torch.rand(3, dtype=F64)
    p = torch.randn(3, 2, generator=generator(), dtype=F64)
    unknown = net(x, t, property=p, known=torch.tensor([True, False, True]))
    assert torch.equal(unknown[1], net(x, t)[1]) and torch.equal(unknown[0], net(x, t, property=p)[0])
    assert not torch.allclose(unknown[0], net(x, t)[0])


def test_gradients_are_right_where_points_meet():
    net = shaken(EGNN(width=8, depth=2).double())
    x = point_sets(3, 0)[:1, :3].clone()
    x[0, 1] = x[0, 0]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, torch.ones(1, dtype=F64)).square().sum(), x)
    assert bool(torch.isfinite(gradient).all())


# The subspace --------------------------------------------------------------------------------------------------------


def cluster(m: int = 4, dims: int = 2) -> problems.Gaussian:
    k = torch.rand(m, m, generator=generator(3), dtype=F64) + 0.2
    return harmonic_cluster(k + k.mT, dims)


def modes(problem: problems.Gaussian, dims: int) -> tuple[Tensor, Tensor]:
    """The variances and axes of a cluster inside of the subspace."""
    values, vectors = torch.linalg.eigh(problem.covariance)
    return values[dims:], vectors[:, dims:]


def exact(problem: problems.Gaussian, dims: int, x: Tensor, sde: Any, t: float) -> Tensor:
    values, vectors = modes(problem, dims)
    variance = float(sde.alpha(t)) ** 2 * values + float(sde.sigma(t)) ** 2
    u = x.flatten(1) @ vectors
    return -0.5 * (u.square() / variance + (2 * math.pi * variance).log()).sum(1)


def test_a_cluster_is_the_gaussian_of_its_energy():
    k = torch.rand(4, 4, generator=generator(3), dtype=F64)
    k = k + k.mT
    problem, x = harmonic_cluster(k, 3), centred(torch.randn(6, 4, 3, generator=generator(), dtype=F64), 3)
    values, vectors = modes(problem, 3)
    energy = 0.25 * (k * torch.cdist(x, x).square()).sum((1, 2))  # each pair twice
    torch.testing.assert_close(0.5 * ((x.flatten(1) @ vectors).square() / values).sum(1), energy)
    assert values.shape == (9,)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(t_max=0.999)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("dims", [1, 2])
def test_the_likelihood_of_a_cluster_is_that_of_its_subspace(sde, dims):
    problem = cluster(3, dims)
    model, x = PointModel(problem.model(sde), dims), problem.sample(2, generator(), F64)
    found = log_likelihood(model, x, 1e-5)
    error = (found.log_prob - exact(problem, dims, x, sde, sde.span[0])).abs()
    assert bool((error < found.error + 2 * found.mismatch.abs() + 1e-8).all())
    assert error.max() < 3e-4


def test_the_likelihood_of_padded_sets_is_that_of_each_alone():
    problems_ = [cluster(3), cluster(4)]

    class Both(ScoreModel):
        """The exact model of clusters of three and of four particles."""

        def x0(self, x: Tensor, t: Any, mask: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            for i, count in enumerate(mask.sum(1).tolist()):
                own = problems_[count - 3].x0(x[i : i + 1, :count], self.sde, t[i : i + 1] if t.ndim else t)
                out = out.index_add(0, torch.tensor([i]), torch.nn.functional.pad(own, (0, 0, 0, 4 - count)))
            return out

    sde = EDM()
    small, large = (p.sample(1, generator(), F64) for p in problems_)
    x = torch.cat([torch.nn.functional.pad(small, (0, 0, 0, 1)), large])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    model = PointModel(Both(None, sde, "x0"), 2)
    found = log_likelihood(model, x, 1e-4, conditions={"mask": mask}).log_prob
    for i, (problem, own) in enumerate(zip(problems_, (small, large), strict=True)):
        assert abs(float(found[i] - exact(problem, 2, own, sde, sde.span[0])[0])) < 2e-3


def test_the_bounds_of_the_likelihood_are_those_of_the_subspace():
    problem, sde = cluster(3), VP()
    model, x = PointModel(problem.model(sde), 2), problem.sample(2, generator(), F64)
    truth = exact(problem, 2, x, VP(), 0.0)
    bound = variational_bound(model, x, draws=32)
    assert bool(((bound.log_prob - truth).abs() < 5 * bound.error + 0.05).all())
    weighted = importance_weighted(model, x[:1], 8, t=0.01, tolerance=0.03)
    assert (weighted - truth[:1]).abs().max() < 0.3


def test_the_log_density_of_a_network_is_invariant():
    net = shaken(EGNN(width=8, depth=2).double(), 0.2)
    model = PointModel(ScoreModel(net, VP(), "v"))
    x = model.project(torch.randn(1, 3, 3, generator=generator(), dtype=F64))
    q = orthogonal(3, reflection=True)
    every = torch.cat([x, turned(x, q), x[:, [2, 0, 1]], turned(x, q)[:, [1, 2, 0]]])
    found = log_likelihood(model, every, steps=12, trace="exact").log_prob
    assert float(found.max() - found.min()) < 1e-9


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if i % 6 == 0 else pytest.mark.slow) for i, n in enumerate(SOLVERS)]
)
def test_every_solver_runs_in_the_subspace_as_it_is(name):
    """The projection of a run in the whole space is the run in coordinates of the subspace, with the same noise."""
    dims, problem, sde = 2, cluster(3), VP()
    values, vectors = modes(problem, dims)
    inside = problems.Gaussian(torch.zeros(len(values)), values)
    model, start = PointModel(problem.model(sde), dims), torch.randn(3, 3, dims, generator=generator(5), dtype=F64)

    class Coordinates(scoresde.solvers.FreshNoise):
        """The noise of the whole space, in coordinates of the subspace."""

        def normal(self, out: Tensor) -> Tensor:
            space = super().normal(out.new_empty(len(out), 3, dims))
            return out.copy_(space.flatten(1) @ vectors)

    if name.startswith(("torchsde", "gotta")):
        pytest.skip("its noise is drawn by another package, or its steps depend on the norm of the whole state")
    seeds = [3, 4, 5]
    told: dict[str, Any] = {"steps": 4, "progress": False}
    x = sample(model, start, name, noise=scoresde.solvers.FreshNoise(seeds, "cpu"), **told).x
    u = sample(inside.model(sde), start.flatten(1) @ vectors, name, noise=Coordinates(seeds, "cpu"), **told).x
    by_norms = name == "pc" or not isinstance(solvers.get(name), solvers.RowSolver)  # the length of their steps
    assert (x.flatten(1) - u @ vectors.mT).abs().max() < (0.3 if by_norms else 1e-9)
    assert x.sum(1).abs().max() < 1e-9


@pytest.mark.parametrize("end", ["stop", "flow", "denoise"])
def test_samples_and_kept_states_lie_in_the_subspace_however_they_end(end):
    model = PointModel(ScoreModel(shaken(EGNN(1, width=8, depth=1), 0.1), VP(), "v"))
    found = sample(model, (3, 5, 4), "ddpm", 6, end=end, conditions={"mask": MASK}, keep=[1.0], progress=False)
    for x in (found.x, *found.states.values()):
        assert x[..., :3].sum(1).abs().max() < 1e-4 and bool((x[~MASK] == 0).all())


def test_the_law_of_samples_is_the_cluster():
    problem = cluster(3)
    x = sample(PointModel(problem.model(VP()), 2), (4000, 3, 2), "heun", 30, dtype=F64, progress=False).x
    covariance = x.flatten(1).mT @ x.flatten(1) / len(x)
    scale = problem.covariance.diagonal().max()
    assert (covariance - problem.covariance).abs().max() < 5 * scale * (2 / len(x)) ** 0.5


def test_guidance_keeps_the_subspace_and_trains_and_loads(tmp_path):
    x, mask = point_sets(3, 1, torch.float32), MASK
    net = EGNN(1, width=8, depth=1, properties=1)
    model = PointModel(ScoreModel(net, EDM(), "edm", sigma_data=1.0))
    x = model.project(x, mask=mask)
    told = {"mask": mask, "property": torch.tensor([0.0, 1.0, 2.0]), "known": torch.ones(3, dtype=torch.bool)}
    drop = scoresde.objectives.LabelDropout("edm", {"known": False}, 0.5)
    out = tmp_path / "model.safetensors"
    found = scoresde.fit(model, x, drop, steps=3, batch_size=3, conditions=told, out=out, progress=False)
    again = scoresde.load(
        out, model=PointModel(ScoreModel(EGNN(1, width=8, depth=1, properties=1), EDM(), "edm", sigma_data=1.0))
    )
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), again.parameters(), strict=True))
    alone = scoresde.load(out)  # which knows the class, its dimensions and the values that were dropped
    assert type(alone) is PointModel and alone.dims == 3 and alone.dropped == {"known": False}
    torch.testing.assert_close(alone.x0(x, 0.5, **told), again.x0(x, 0.5, **told), rtol=0, atol=0)
    with pytest.raises(scoresde.training.CheckpointError, match="points"):
        scoresde.load(out, model=PointModel(ScoreModel(EGNN(1, width=8, depth=1, properties=1), EDM(), "edm"), 2))
    guided = guidance.ClassifierFree(again, 2.0, {"known": False})
    drawn = sample(guided, (3, 5, 4), steps=3, conditions=told, progress=False)
    assert drawn.x[..., :3].sum(1).abs().max() < 1e-4 and drawn.evaluations == 6


def test_the_mask_is_checked_once_an_evaluation(monkeypatch):
    calls = []

    def counted(x, mask):
        calls.append(mask)
        return present(x, mask)

    monkeypatch.setattr("scoresde.score.points.present", counted)
    model = PointModel(ScoreModel(lambda x, t, mask: torch.tanh(x), VP(), "eps"))
    x = model.project(point_sets(3, 0), mask=MASK)
    calls.clear()
    model.x0(x, 0.5, mask=MASK)
    assert len(calls) == 1


def test_the_loss_does_not_see_noise_outside_of_the_subspace():
    model = PointModel(ScoreModel(lambda x, t, mask: torch.tanh(x), VP(), "eps"))  # a network that would see it
    x, t = model.project(point_sets(3, 0), mask=MASK), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    eps = torch.randn(x.shape, generator=generator(2), dtype=F64)
    beside = torch.randn(x.shape, generator=generator(4), dtype=F64)
    other = eps + beside - model.project(beside, mask=MASK)
    loss = scoresde.objectives.DSM()
    one, two = (loss.at(model, x, t, noise, mask=MASK) for noise in (eps, other))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=0)


# Energies ------------------------------------------------------------------------------------------------------------

ENERGIES = {"DW4": (double_well, 4, 2, 0.004), "LJ13": (lennard_jones, 13, 3, 0.0004)}


def shape_of(name: str) -> Tensor:
    """A square near the wells, or an icosahedron with its centre; chains from elsewhere take very long to arrive."""
    if name == "DW4":
        return 1.75 * torch.tensor([(1, 1), (-1, 1), (-1, -1), (1, -1)], dtype=F64)
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, s, r * golden) for s in (-1, 1) for r in (-1, 1)]
    points = [p[i:] + p[:i] for p in corners for i in range(3)]
    return torch.tensor([(0.0, 0.0, 0.0), *points], dtype=F64) / (1 + golden**2) ** 0.5


def chain(name: str, chains: int, steps: int, thin: int, burn: int, seed: int = 0) -> tuple[Tensor, float]:
    energy, m, n, size = ENERGIES[name]
    start = shape_of(name) + 0.02 * torch.randn(chains, m, n, generator=generator(seed), dtype=F64)
    x, _ = metropolis(energy, start, burn, generator(seed + 1), size=size, thin=burn)
    return metropolis(energy, x, steps, generator(seed + 2), size=size, thin=thin)


@pytest.mark.parametrize("name", mostly_slow(ENERGIES, {"DW4"}))
def test_the_markov_chain_fulfils_the_virial_theorem(name):
    """E[x . grad U] is the dimension of the subspace, for every energy."""
    energy, m, n, *_ = ENERGIES[name]
    x, accepted = chain(name, *((200, 300, 20, 200) if name == "DW4" else (200, 4000, 200, 4000)))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    virial = (x * gradient).sum((1, 2)).detach()
    chains = virial.reshape(-1, 200).mean(0)  # independent of each other
    assert 0.4 < accepted < 0.99
    assert abs(float(chains.mean()) - (m - 1) * n) < 4 * float(chains.std()) / len(chains) ** 0.5


def test_the_markov_chain_draws_a_cluster():
    problem = cluster(3)
    k = torch.rand(3, 3, generator=generator(3), dtype=F64) + 0.2
    k = k + k.mT

    def energy(x: Tensor) -> Tensor:
        away = (x[:, :, None] - x[:, None]).square().sum(3)
        return 0.25 * (k * away).sum((1, 2))

    start = problem.sample(3000, generator(), F64)
    x, accepted = metropolis(energy, start, 40, generator(1), size=0.3, thin=40)
    covariance = x.flatten(1).mT @ x.flatten(1) / len(x)
    scale = float(problem.covariance.diagonal().max())
    assert (covariance - problem.covariance).abs().max() < 5 * scale * (2 / len(x)) ** 0.5
    assert 0.3 < accepted < 0.95  # so that it would not stay where it was


class Sampled(ScoreModel):
    """The exact score of exp(-U) by Monte Carlo: weighted draws about the state, or at high noise the states of a chain."""

    def __init__(self, energy: Any, states: Tensor, draws: int) -> None:
        super().__init__(None, EDM(), "x0")
        self.energy, self.states, self.draws, self.generator = energy, states, draws, generator(9)

    def x0(self, x, t):
        sigma, found = float(t), []
        for y in x.split(50):
            if sigma > 1:
                candidates = self.states.expand(len(y), *self.states.shape)
                weights = -(y[:, None] - candidates).square().sum((2, 3)) / (2 * sigma**2)
            else:
                xi = torch.randn(len(y) * self.draws, *y.shape[1:], generator=self.generator, dtype=F64)
                candidates = y[:, None] + sigma * centred(xi, y.shape[2]).reshape(len(y), self.draws, *y.shape[1:])
                weights = -self.energy(candidates.flatten(0, 1)).reshape(len(y), -1)
            found.append(torch.einsum("bn,bnij->bij", weights.softmax(1), candidates))
        return torch.cat(found)


@pytest.mark.slow
def test_samples_of_the_exact_score_have_the_energies_of_the_chain():
    """In the subspace, from the prior to the smallest noise: what is left of a trained model's error is its network's."""
    x, _ = chain("DW4", 1000, 300, 15, 300)
    angle = 2 * math.pi * torch.rand(len(x), generator=generator(5), dtype=F64)
    turns = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    order = torch.rand(len(x), 4, generator=generator(6)).argsort(1)  # every permutation and rotation is as likely
    states = (x @ turns).gather(1, order[:, :, None].expand(-1, -1, 2))
    states[::2, :, 0] *= -1
    model = PointModel(Sampled(double_well, states, 1500), 2)
    drawn = sample(model, (200, 4, 2), "heun", 20, "karras", dtype=F64, progress=False).x
    expected, found = double_well(x), double_well(drawn)
    error = float(expected.std()) / 200**0.5  # of a mean of independent samples
    assert abs(float(found.mean() - expected.mean())) < 4 * error
    assert abs(float(found.median() - expected.median())) < 5 * error


@pytest.mark.parametrize("energy", [double_well, lennard_jones])
def test_energies_do_not_change_with_the_point_of_view(energy):
    x = 2 * torch.randn(5, 4, 3, generator=generator(), dtype=F64)
    q = orthogonal(3, reflection=True)
    torch.testing.assert_close(energy(turned(x, q) + 5.0)[:], energy(x[:, [2, 3, 1, 0]]), rtol=1e-8, atol=1e-8)


# Errors --------------------------------------------------------------------------------------------------------------

NET = EGNN(1, width=8, depth=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EGNN(-1), "expected positive sizes"),
        (lambda: EGNN(width=0), "expected positive sizes"),
        (lambda: NET(torch.zeros(2, 5, 3), torch.zeros(2)), "exactly 4 columns, of which the first 3 are the position"),
        (lambda: NET(torch.zeros(2, 1, 4), torch.zeros(2)), "with two points or more"),
        (lambda: NET(torch.zeros(2, 20), torch.zeros(2)), r"expected \(batch, points, columns\)"),
        (lambda: NET(torch.zeros(2, 3, 4), torch.zeros(2), torch.ones(2, 3)), "expected booleans of shape"),
        (lambda: NET(torch.zeros(2, 3, 4), torch.zeros(2), torch.ones(2, 4).bool()), "expected booleans of shape"),
        (lambda: NET(torch.zeros(2, 3, 4), torch.zeros(2), torch.zeros(2, 3).bool()), "got a point set of 0 points"),
        (lambda: NET(torch.zeros(2, 3, 4), torch.zeros(2), torch.eye(2, 3).bool()), "got a point set of 1 point;"),
        (lambda: NET(torch.zeros(2, 3, 4), torch.zeros(2), property=torch.zeros(2)), "for a network without"),
        (lambda: PointModel(ScoreModel(NET, VP()), 0), "dims"),
        (lambda: sample(PointModel(ScoreModel(NET, VP())), (2, 1, 4), progress=False), "with two points or more"),
        (
            lambda: sample(
                PointModel(ScoreModel(NET, VP())), (2, 3, 4), conditions={"mask": torch.zeros(2, 3).bool()}, progress=False
            ),
            "got a point set of 0 points",
        ),
        (lambda: log_likelihood(PointModel(ScoreModel(NET, VP())), torch.ones(2, 3, 4)), "outside of the subspace"),
        (lambda: scoresde.fit(PointModel(ScoreModel(NET, VP())), torch.zeros(2, 1, 4), steps=1), "two points or more"),
        (lambda: harmonic_cluster(torch.zeros(3, 3)), "leave some particles free"),
        (lambda: harmonic_cluster(-torch.ones(3, 3)), "none below 0"),
        (lambda: harmonic_cluster(torch.ones(1, 1)), "two particles or more"),
        (lambda: metropolis(double_well, torch.zeros(1, 2, 2), 1, generator(), size=0.0), "a positive number"),
        (lambda: double_well(torch.zeros(1, 1, 2)), "two points or more"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
