"""References against closed forms and each other; the cache; where on a path solvers lose accuracy."""

import functools
import math
import subprocess
import sys
from pathlib import Path as PathOfFile

import pytest
import torch
from support import SDES, amid_the_modes, covering, mixture, model_on, mostly_slow, rms, slopes
from torch import nn

from scoresde import EDM, VP, ScoreModel, models, sample, solvers
from scoresde.base.identity import digest
from scoresde.comparison.attribution.local import attribute, local_errors
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import reference
from scoresde.sampling.reference import flow_end, follow
from scoresde.solvers import Path, make_path

MEAN, STD = 0.7, 0.6
HERE = PathOfFile(__file__).parent


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gaussian_flow(sde, x, u, v):
    """The flow of N(MEAN, STD^2): every point keeps its distance from the mean in standard deviations."""
    alpha, sigma = (f(torch.tensor([u, v], dtype=torch.float64)) for f in (sde.alpha, sde.sigma))
    std = torch.sqrt(alpha**2 * STD**2 + sigma**2)
    return alpha[1] * MEAN + std[1] / std[0] * (x - alpha[0] * MEAN)


# The end of the flow --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_references_are_closed_forms_to_1e_10_and_their_errors_are_not_smaller_than_they_say(sde):
    model, (t_min, t_max) = Gaussian([MEAN] * 2, STD**2).model(sde), sde.span
    start = sde.prior_std * draw(0, 20, 2)
    at_t_min = gaussian_flow(sde, start, t_max, t_min)
    clean = model.x0(at_t_min, t_min)
    expected = {
        "stop": at_t_min,
        "denoise": clean,
        "flow": 0.5 * (at_t_min / sde.alpha(t_min) + clean),
    }
    # What the moves to sigma = 0 add is the same for all, and its cost a solve for each.
    for end in expected if isinstance(sde, VP) else ("stop",):
        truth = expected[end]
        found = flow_end(model, start, make_path(sde, "lam", 7, end=end))
        true_error = (found.x - truth).square().mean(1).sqrt()
        assert found.error.max() < 1e-10
        assert (true_error < 2 * found.error + 1e-12).all()
    to_data = flow_end(model, start, make_path(sde, "lam", 7), to="data", tolerance=1e-9).x
    whole = MEAN + STD * (at_t_min - sde.alpha(t_min) * MEAN) / torch.sqrt(
        sde.alpha(t_min) ** 2 * STD**2 + sde.sigma(t_min) ** 2
    )
    torch.testing.assert_close(to_data, whole, rtol=0, atol=1e-9)


def test_a_flow_to_data_on_points_ends_on_a_point():
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    model = GaussianMixture(points, 0.0).model(VP())
    found = flow_end(model, draw(1, 8, 2), make_path(VP(), "lam", 5), to="data", tolerance=1e-8)
    assert torch.cdist(found.x, points).min(1).values.max() < 1e-8


@pytest.mark.parametrize("end", ["stop", "denoise", "flow"])
def test_solvers_tend_to_the_reference_of_their_path_whatever_its_end(end):
    sde = VP()
    model, (start, t) = model_on(sde), amid_the_modes(sde)
    truth = flow_end(model, start, make_path(sde, "lam", 9, t_max=t, end=end)).x
    errors = [rms(sample(model, start, "dpm-3", n, t_max=t, end=end, progress=False).x - truth) for n in (40, 80, 160)]
    assert min(slopes(errors)) > 2.7


def test_a_single_move_to_the_data_is_compared_with_the_flow_and_not_with_itself():
    sde, start = VP(), draw(2, 5, 2)
    one, many = (flow_end(model_on(sde), start, make_path(sde, "lam", n)).x for n in (1, 10))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-10)
    assert rms(sample(model_on(sde), start, "ddim", 1, progress=False).x - one) > 0.1


def test_a_reference_depends_on_the_ends_of_a_path_alone():
    sde, start = EDM(), 80 * draw(3, 5, 2)
    a, b = (flow_end(model_on(sde), start, make_path(sde, p, n)) for p, n in (("karras", 5), ("t", 9)))
    assert torch.equal(a.x, b.x)


def network(seed=0):
    """A network that bends: random weights in every layer."""
    model = ScoreModel(models.MLP(2, hidden=(16, 16)), VP(), "v")
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.05 * torch.randn(p.shape, generator=g))
    return model


def test_a_network_of_any_precision_is_followed_in_float64_and_left_as_it_is():
    model, start = network(), draw(4, 6, 2)
    model.train()
    path = make_path(VP(), "lam", 20, end="stop")
    found = flow_end(model, start.float(), path, tolerance=1e-9)
    assert found.x.dtype == torch.float64 and found.error.max() < 1e-9
    assert model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    errors = [
        rms(sample(model.double(), start.float().double(), "rk4", n, end="stop", progress=False).x - found.x)
        for n in (100, 200)
    ]
    assert found.error.max() < 0.1 * errors[1] < errors[0] / 80 < 1e-5


def test_what_cannot_be_a_reference_is_refused():
    start, path = draw(0, 2, 2), make_path(VP(), "lam", 5)
    with pytest.raises(ValueError, match="got tolerance=0; expected a positive number"):
        flow_end(model_on(VP()), start, path, tolerance=0)
    with pytest.raises(ValueError, match="got to='end'; expected 'path' or 'data'"):
        flow_end(model_on(VP()), start, path, to="end")
    with pytest.raises(ValueError, match=r"goes back towards the noise.* without its detours"):
        flow_end(model_on(VP()), start, [1.0, 0.5, 0.7, 0.1])
    single = ScoreModel(lambda x, t: x.float(), VP(), "v")
    with pytest.raises(ValueError, match="got a network that computes in float32 or less for states in float64"):
        flow_end(single, start, path)
    rounded = ScoreModel(lambda x, t: x.to(torch.bfloat16).double() / 3, VP(), "v")
    with pytest.raises(ArithmeticError, match=r"took more than 2000 evaluations .* larger tolerance or limit"):
        flow_end(rounded, start, path, limit=2000)
    broken = ScoreModel(lambda x, t: x * math.nan, VP(), "v")
    with pytest.raises(ArithmeticError, match="the network is not finite at t="):
        flow_end(broken, start, path)


# The cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def solves(monkeypatch):
    """How many solves there were."""
    made = []
    follow_one = reference.follow
    monkeypatch.setattr(reference, "follow", lambda *a: made.append(1) or follow_one(*a))
    return made


def test_a_reference_is_computed_once_for_all_numbers_of_steps(tmp_path, solves):
    model, start = network(), draw(5, 4, 2)
    first = flow_end(model, start, make_path(VP(), "lam", 5), cache=tmp_path, tolerance=1e-4)
    count = len(solves)
    again = flow_end(network(), start.clone(), make_path(VP(), "lam", 50), cache=tmp_path, tolerance=1e-4)
    assert len(solves) == count and len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first.x, again.x) and torch.equal(first.error, again.error)


def test_another_network_start_path_or_tolerance_is_another_reference(tmp_path):
    model, start, path = model_on(VP()), draw(5, 4, 2), make_path(VP(), "lam", 5)
    calls = [
        dict(model=model),
        dict(model=mixture().model(EDM()), path=make_path(EDM(), "lam", 5)),
        dict(model=Gaussian([0.0, 0.0], 1.0).model(VP())),
        dict(start=start + 1),
        dict(path=make_path(VP(), "lam", 5, end="flow")),
        dict(path=make_path(VP(), "lam", 5, t_min=1e-2)),
        dict(tolerance=1e-5),
        dict(to="data"),
    ]
    for i, call in enumerate(calls):
        flow_end(**{"model": model, "start": start, "path": path, "cache": tmp_path, "tolerance": 1e-4, **call})
        assert len(list(tmp_path.iterdir())) == i + 1


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another"])
def test_a_damaged_file_is_computed_again(tmp_path, solves, damage):
    model, start, path = model_on(VP()), draw(5, 4, 2), make_path(VP(), "lam", 5)
    first = flow_end(model, start, path, cache=tmp_path, tolerance=1e-4)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    spoilt = {
        "cut": whole[:-9],
        "empty": b"",
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "another": b"x" * 99,
    }
    file.write_bytes(spoilt[damage])
    count = len(solves)
    again = flow_end(model, start, path, cache=tmp_path, tolerance=1e-4)
    assert len(solves) == 2 * count and torch.equal(first.x, again.x)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_a_warning_and_loses_nothing(tmp_path):
    (tmp_path / "file").write_text("no folder")
    model, start, path = model_on(VP()), draw(5, 4, 2), make_path(VP(), "lam", 5)
    with pytest.warns(UserWarning, match="cannot keep the reference in .* give another folder"):
        found = flow_end(model, start, path, cache=tmp_path / "file" / "folder", tolerance=1e-4)
    assert torch.equal(found.x, flow_end(model, start, path, tolerance=1e-4).x)


# Content --------------------------------------------------------------------------------------------------------------


class Half(nn.Module):
    def forward(self, x, t):
        return 0.5 * x


class Third(nn.Module):
    def forward(self, x, t):
        return x / 3


def test_content_is_code_and_values_and_no_more():
    Third.__qualname__ = "Half"  # edited, so to say
    scale = 2.0
    distinct = [
        Half(),
        Third(),
        network(0),
        network(1),
        torch.zeros(2),
        torch.zeros(2, 1),
        torch.zeros(2).double(),
        lambda x: x * 2,
        lambda x: x * 3,
        lambda x: x * scale,
        functools.partial(torch.add, alpha=2),
        functools.partial(torch.add, alpha=3),
        VP(),
        VP(beta_max=19.0),
        nn.ReLU(),
        nn.LeakyReLU(0.1),
        nn.LeakyReLU(0.2),
        {"a": 1},
        {"a": 2},
        ["a", 1],
        {1, 2},
        {1, 3},
    ]
    assert len({digest(value) for value in distinct}) == len(distinct)
    for value in (lambda: network(0), mixture, lambda: {3, 1, 2}, lambda: make_path(VP(), "lam", 3)):
        assert digest(value()) == digest(value())
    assert digest(network().train()) == digest(network().eval())
    used = mixture()
    used.score(torch.zeros(1, 2), VP(), 0.5)  # fills a cache
    assert digest(used) == digest(mixture())
    loop = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)


def test_content_is_the_same_in_every_process():
    programme = "from test_reference import network, mixture, digest\nprint(digest(network(), mixture(), {'a', 'b'}))"
    run = subprocess.run([sys.executable, "-c", programme], capture_output=True, text=True, check=True, cwd=HERE)
    assert run.stdout.strip() == digest(network(), mixture(), {"a", "b"})


def test_content_that_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match=r"cannot tell what a generator holds .* or give no cache"):
        digest(network(), (i for i in ()))


# Local errors ---------------------------------------------------------------------------------------------------------

# Each step of these is of one order more than the method claims, and starts from its own state alone.
ONE_STEP = ("euler", "heun", "midpoint", "rk3", "rk4", "ddim", "dpm-2", "dpm-3", "dpmpp-2s")
# These look back; the ones of order 3 and 4 claim 2 for the sake of their first steps.
MULTISTEP = {
    "dpmpp-2m": 2,
    "dpm-2m": 2,
    "deis-3": 3,
    "tab-3": 3,
    "rhoab-3": 3,
    "velocity-2": 2,
    "velocity-3": 3,
    "unipc-2": 3,
}


def path_amid(n, end="stop"):
    return make_path(VP(), "lam", n, t_max=amid_the_modes(VP())[1], end=end)


@pytest.mark.parametrize(
    ("solver", "end"), covering(["ddim", "dpmpp-2m", "unipc-2", "dpm-fast", "rk45", "dopri5"], ["stop", "denoise"])
)
def test_what_the_steps_add_is_the_error_at_the_end(solver, end):
    model, (start, _) = model_on(VP()), amid_the_modes(VP())
    path = path_amid(12, end)
    found = attribute(model, solver, path, start)
    error = sample(model, start, solver, path=path, progress=False).x - flow_end(model, start, path).x
    torch.testing.assert_close(found.end, error, rtol=0, atol=1e-9)
    assert found.shares.sum().item() == pytest.approx(1)
    assert found.times[-1] == path.times[-1] and list(found.lams) == sorted(found.lams)
    if end == "denoise":
        assert found.carried[-1].abs().max() < 1e-9  # the last move is made alike by all


@pytest.mark.parametrize("solver", mostly_slow([*ONE_STEP, *MULTISTEP], {"heun", "dpm-2", "dpmpp-2m", "tab-3"}))
def test_local_errors_are_of_one_order_more_than_the_method(solver):
    model, (start, _) = model_on(VP()), amid_the_modes(VP())
    order = MULTISTEP.get(solver) or solvers.get(solver).description.order
    # The step that starts half way, in a path of each length.
    errors = [rms(local_errors(model, solver, path_amid(n), start, tolerance=1e-12)[n // 2]) for n in (30, 60)]
    assert slopes(errors)[0] == pytest.approx(order + 1, abs=0.45)


@pytest.mark.parametrize("solver", mostly_slow(["heun", "ddim", "dpmpp-2m", "deis-3"], {"heun", "dpmpp-2m"}))
def test_local_errors_carried_to_the_end_are_what_the_steps_add(solver):
    model, (start, _) = model_on(VP()), amid_the_modes(VP())
    path = path_amid(16)
    local, added = local_errors(model, solver, path, start), attribute(model, solver, path, start).carried
    exact, carried = start, []
    for i, error in enumerate(local):
        exact = follow(model, exact, Path(VP(), path.points[i : i + 2], "stop"), 1e-11)
        later = Path(VP(), (path.points[i + 1], path.points[-1]), "stop") if i + 1 < len(local) else None
        both = (exact, exact + error) if later is None else (follow(model, x, later, 1e-11) for x in (exact, exact + error))
        carried.append(-torch.sub(*both))
    assert rms(torch.stack(carried) - added) < 0.15 * rms(added)


def test_a_solver_that_is_exact_has_no_local_error():
    sde = VP()
    model = Gaussian([0.0, 0.0], 1.0).model(sde)  # x_0 = alpha x: DDIM is not exact on it, standing still is
    start = draw(0, 3, 2)
    assert local_errors(model, "ddim", make_path(sde, "lam", 5), start)[-1].abs().max() < 1e-9
    single = GaussianMixture([[1.0, -1.0]], 0.0).model(sde)  # a point is its own constant prediction
    assert local_errors(single, "ddim", make_path(sde, "lam", 5), start).abs().max() < 1e-9


def test_solvers_and_paths_that_follow_no_flow_are_refused():
    model, start = model_on(VP()), draw(0, 2, 2)
    for function in (attribute, local_errors):
        with pytest.raises(ValueError, match="got solver 'ddpm', which draws noise and follows no flow"):
            function(model, "ddpm", "lam", start)
        with pytest.raises(ValueError, match="goes back towards the noise"):
            function(model, "ddim", [1.0, 0.5, 0.7, 0.1], start)
    with pytest.raises(ValueError, match="got solver 'rk45', which makes no rows; expected one with fixed steps"):
        local_errors(model, "rk45", "lam", start)
