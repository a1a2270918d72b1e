"""The parts of an error: closed forms, where they vanish, and what they add up to."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, finite_start, generator, mixture, slopes

from scoresde import EDM, VP, RectifiedFlow, models, problems, sample, solvers
from scoresde.analysis.moments import Moments
from scoresde.comparison import Bias, Field, decompose, decompose_gaussian, inject
from scoresde.comparison.attribution.decomposition import PARTS, figure, table
from scoresde.comparison.attribution.gaussian import _wasserstein
from scoresde.metrics import gaussian_frechet_distance
from scoresde.problems import Gaussian
from scoresde.score import ScoreModel

DATA = Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
BELIEVED = Gaussian([0.9, -0.5], [[0.9, 0.1], [0.1, 0.6]])


def sizes(found):
    return {name: part.value for name, part in found.parts.items()}


# Closed forms ---------------------------------------------------------------------------------------------------------

MEAN, VARIANCE = 0.7, 0.36


def marginal(sde, t):
    """The mean and the deviation of the noised data N(MEAN, VARIANCE), and the deviation of the noise."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    return alpha * MEAN, math.sqrt(alpha**2 * VARIANCE + sigma**2), sigma


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_prior_of_a_gaussian_costs_what_its_formula_says(sde):
    t = finite_start(sde)
    mean, std, sigma = marginal(sde, t)
    scale = math.sqrt(VARIANCE)
    law = decompose_gaussian(Gaussian([MEAN], VARIANCE), "ddim", sde=sde, t_max=t)["ddim"]
    expected = math.hypot(scale * mean / std, scale * (1 - sigma / std))
    assert law.prior.value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # From noise xi the exact flow goes to MEAN + scale xi, from the prior to MEAN + scale (sigma xi - mean) / std.
    found = decompose(Gaussian([MEAN], VARIANCE), "ddim", sde=sde, t_max=t, n=6, tolerance=1e-7)["ddim"]
    path = solvers.make_path(sde, t_max=t)
    xi = sample_noise(6)
    moved = scale * xi - scale * (sigma * xi - mean) / std
    assert path.points[0].t == pytest.approx(t)
    assert found.prior.value == pytest.approx(float(moved.square().mean().sqrt()), abs=3e-7)


def sample_noise(n):
    """What a run of seed 0 starts from, in units of sigma."""
    starts = []
    sde = RectifiedFlow()  # whose prior has the deviation one
    sample(
        Gaussian([0.0], 1.0).model(sde),
        (n, 1),
        solver_that_keeps_its_start(starts),
        1,
        end="stop",
        dtype=torch.float64,
        progress=False,
    )
    return starts[0]


def solver_that_keeps_its_start(starts):
    class Keeps(type(solvers.get("rk45"))):
        def states(self, path, model, x, noise):
            starts.append(x.clone())
            yield from super().states(path, model, x, noise)

    return Keeps(solvers.get("rk45").description)


@pytest.mark.parametrize("eta", [0, 1])
def test_from_infinite_noise_the_score_costs_the_distance_of_the_two_laws(eta):
    solver = ["dpmpp-2m", "sde-dpmpp-2m"][eta]
    found = decompose_gaussian(DATA, solver, believed=BELIEVED, sde=RectifiedFlow(t_min=1e-4), end="flow")[solver]
    laws = (DATA.mean, DATA.covariance, BELIEVED.mean, BELIEVED.covariance)
    assert found.prior.value < 1e-12 and found.stopping.value < 1e-9
    assert found.score.value == pytest.approx(math.sqrt(float(gaussian_frechet_distance(*laws)) / 2), rel=1e-6)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_samples_and_laws_tell_the_same(sde):
    t, n = finite_start(sde), 200
    model = BELIEVED.model(sde)
    (of_samples,) = decompose(DATA, "dpmpp-2m", 12, model=model, t_max=t, n=n, tolerance=1e-8).values()
    (of_laws,) = decompose_gaussian(DATA, "dpmpp-2m", 12, believed=BELIEVED, sde=sde, t_max=t).values()
    assert of_samples.evaluations == of_laws.evaluations
    # Both move a Gaussian by an affine map; where it is symmetric it is the shortest way between the laws.
    for name, law in (*of_laws.parts.items(), ("total", of_laws.total)):
        assert getattr(of_samples, name).value == pytest.approx(law.value, rel=0.25, abs=1e-7)


GAUSSIANS = st.builds(
    lambda mean, a, b, c: Gaussian(mean, [[a * a, a * b], [a * b, b * b + c * c]]),
    st.lists(st.floats(-2, 2), min_size=2, max_size=2),
    st.floats(0.1, 2),
    st.floats(-1, 1),
    st.floats(0.1, 2),
)


@given(a=GAUSSIANS, b=GAUSSIANS)
def test_the_distance_of_laws_is_that_of_wasserstein(a, b):
    laws = (a.mean, a.covariance, b.mean, b.covariance)
    found = _wasserstein(Moments(*laws[:2]), Moments(*laws[2:]))
    assert 2 * found**2 == pytest.approx(float(gaussian_frechet_distance(*laws)), rel=1e-6, abs=1e-10)


def test_small_distances_keep_their_digits():
    law = Moments(DATA.mean, DATA.covariance)
    assert _wasserstein(law, Moments(DATA.mean, (1 + 1e-11) ** 2 * DATA.covariance)) == pytest.approx(
        1e-11 * math.sqrt(0.75), rel=1e-3
    )


# Where parts vanish ---------------------------------------------------------------------------------------------------

# Langevin dynamics, and processes other than the reverse SDE: where they end is not where it does, at any number of steps.
OTHERS = ("annealed-langevin", "langevin", "sgld", "restart", "er-sde-1", "er-sde-2", "er-sde-3")
LAWFUL = [
    name for name in solvers.SOLVERS if name not in (*OTHERS, "pc") and isinstance(solvers.get(name), solvers.RowSolver)
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", LAWFUL)
def test_with_steps_the_discretization_goes_and_nothing_else_does(name):
    few, many = (decompose_gaussian(DATA, name, n, believed=BELIEVED, t_max=0.8)[name] for n in (60, 240))
    # Some of higher order are far better at first than their order says, and fall by little more than 4.
    assert many.discretization.value < few.discretization.value / 3 < 0.15 * many.score.value
    for part in ("prior", "stopping", "score"):
        assert getattr(few, part) == getattr(many, part)


def test_on_samples_as_well():
    names = ["ddim", "dpm-2", "deis-3"]
    runs = [decompose(mixture(), names, n, n=16, tolerance=1e-8, end="stop") for n in (40, 80)]
    for name in names:
        few, many = (run[name] for run in runs)
        assert many.discretization.value < few.discretization.value / 1.7
        assert few.score.value == 0 and (few.prior, few.stopping) == (many.prior, many.stopping)
        assert many.prior == runs[1]["ddim"].prior
    assert runs[1]["dpm-2"].total.value < 2 * (runs[1]["dpm-2"].prior.value + runs[1]["dpm-2"].stopping.value)


@pytest.mark.parametrize(("end", "power"), [("stop", 2), ("denoise", 2), ("flow", 4)])
def test_stopping_costs_a_power_of_the_noise_that_is_left(end, power):
    sigmas = (0.2, 0.1, 0.05)
    laws = [decompose_gaussian(DATA, "ddim", sde=EDM(sigma_min=s), end=end)["ddim"] for s in sigmas]
    assert slopes([law.stopping.value for law in laws])[-1] == pytest.approx(power, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "power"), [("stop", 2), ("denoise", 2), ("flow", 4)])
def test_stopping_costs_the_same_power_on_samples(end, power):
    found = [decompose(mixture(), "ddim", sde=EDM(sigma_min=s), end=end, n=8)["ddim"] for s in (0.02, 0.01)]
    assert slopes([d.stopping.value for d in found])[0] == pytest.approx(power, abs=0.2)


def test_the_prior_costs_the_less_the_noisier_it_is_and_nothing_without_signal():
    centred = Gaussian([0.0, 0.0], DATA.covariance)
    for problem, power in ((DATA, 1), (centred, 2)):  # of 1 / sigma: the mean, and without one the width
        laws = [decompose_gaussian(problem, "ddim", sde=EDM(sigma_max=s))["ddim"] for s in (20.0, 40.0, 80.0)]
        assert slopes([law.prior.value for law in laws])[-1] == pytest.approx(power, abs=0.05)
    assert decompose(mixture(), "ddim", 5, sde=RectifiedFlow(), n=4)["ddim"].prior.value == 0
    assert decompose_gaussian(DATA, "ddim", sde=RectifiedFlow())["ddim"].prior.value < 1e-12


def test_without_an_error_of_the_score_its_part_is_zero():
    assert decompose(mixture(), "ddim", 5, n=4)["ddim"].score.value == 0
    assert decompose_gaussian(DATA, "ddpm", 5)["ddpm"].score.value < 1e-15
    same = decompose(mixture(), "ddim", 5, n=4, model=inject(mixture().model(VP()), Bias(0.0)))["ddim"]
    assert same.score.value < 1e-9


# What they add up to --------------------------------------------------------------------------------------------------


@given(
    data=GAUSSIANS,
    believed=GAUSSIANS,
    solver=st.sampled_from(["ddim", "dpmpp-2m", "ddpm", "sde-dpmpp-2m", "restart", "heun"]),
    steps=st.integers(2, 12),
    sde=st.sampled_from([VP(), EDM(), SDES["SubVP"]]),
    end=st.sampled_from(["stop", "denoise", "flow"]),
)
def test_what_the_parts_add_is_the_total_and_their_sum_is_no_less(data, believed, solver, steps, sde, end):
    (found,) = decompose_gaussian(data, solver, steps, believed=believed, sde=sde, end=end).values()
    assert sum(found.added) == pytest.approx(found.total.value, rel=1e-12, abs=1e-12)
    assert found.total.value <= sum(sizes(found).values()) * (1 + 1e-9)
    for part, added in zip(sizes(found).values(), found.added, strict=True):
        assert abs(added) <= part * (1 + 1e-9) + 1e-12


@pytest.mark.slow
def test_the_total_on_samples_is_their_distance_from_the_exact_ends():
    problem = mixture()
    model = inject(problem.model(VP()), Field(0.1, length=1.5))
    names = ["ddim", "dpm-2"]
    found = decompose(problem, names, 20, model=model, n=256, tolerance=1e-7)
    for d in found.values():
        assert sum(d.added) == pytest.approx(d.total.value)
        assert d.total.value <= sum(sizes(d).values())
        assert d.score.value > 0.05 and d.score == found["ddim"].score
        assert all(part.low <= part.value <= part.high for part in (*d.parts.values(), d.total))
    assert found["ddim"].discretization.value > 3 * found["dpm-2"].discretization.value


def test_a_network_in_single_precision_is_decomposed_in_double():
    with torch.random.fork_rng():
        torch.manual_seed(1)  # of the initial weights
        model = ScoreModel(models.MLP(2, hidden=(8,)), VP(), "v")  # predicts v = 0 before it is trained
    with torch.no_grad():
        model.net.output.weight.copy_(0.1 * torch.randn(2, 8, generator=generator()))
    found = decompose(mixture(), "dpm-2", 40, model=model, n=4, tolerance=1e-8)["dpm-2"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found.discretization.value < 0.02 * found.score.value


def test_references_are_kept(tmp_path):
    first = decompose(mixture(), "ddim", 5, n=4, cache=tmp_path, tolerance=1e-7)["ddim"]
    kept = len(list(tmp_path.iterdir()))
    again = decompose(mixture(), "ddim", 9, n=4, cache=tmp_path, tolerance=1e-7)["ddim"]
    assert kept == len(list(tmp_path.iterdir())) == 4
    assert (first.prior, first.stopping) == (again.prior, again.stopping)


# How it is shown ------------------------------------------------------------------------------------------------------


def test_the_table_is_sorted_and_the_figure_has_the_parts_and_the_total():
    found = decompose_gaussian(DATA, ["ddim", "dpm-2", "ddpm"], believed=BELIEVED)
    rows = table(found).splitlines()[2:]
    totals = [float(row.split("|")[-2]) for row in rows]
    assert len(rows) == 3 and totals == sorted(totals)
    (ax,) = figure(found).axes
    for container, part in zip(ax.containers, PARTS, strict=True):
        assert [bar.get_width() for bar in container] == pytest.approx([sizes(d)[part] for d in found.values()], abs=1e-12)
    assert [line.get_xdata()[0] for line in ax.lines] == [d.total.value for d in found.values()]


def test_what_cannot_be_decomposed_is_refused():
    with pytest.raises(ValueError, match=r"got solver 'ddpm', which draws noise and follows no flow.* decompose_gaussian"):
        decompose(mixture(), ["ddim", "ddpm"])
    with pytest.raises(ValueError, match=r"got solvers .*; expected at least one, each name once"):
        decompose(mixture(), [])
    with pytest.raises(ValueError, match=r"got solvers .*'ddim', 'ddim'.* each name once"):
        decompose_gaussian(DATA, ["ddim", "ddim"])
    with pytest.raises(ValueError, match=r"got sde=EDM.* and a model on VP.*; expected the same, or no sde"):
        decompose(mixture(), "ddim", sde=EDM(), model=mixture().model(VP()))
    with pytest.raises(TypeError, match="got a GaussianMixture; expected a Gaussian: decompose serves"):
        decompose_gaussian(problems.ring(), "ddim")
    with pytest.raises(ValueError, match=r"got believed data of shape \(1,\) for data of shape \(2,\)"):
        decompose_gaussian(DATA, "ddim", believed=Gaussian([0.0], 1.0))
    with pytest.raises(ValueError, match="which makes no rows"):
        decompose_gaussian(DATA, "rk45")
    both = {**decompose_gaussian(DATA, "ddim"), **decompose(DATA, "dpm-2", n=2, tolerance=1e-5)}
    for wrong in ({}, both):
        with pytest.raises(ValueError, match="expected at least one, all by one distance"):
            figure(wrong)
