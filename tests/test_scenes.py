"""Distillation of scenes: mean gradients and fixed points on Gaussian data, tomography, edits, and the laws of rendering."""

import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde import VE, VP, ScoreModel, inverse, objectives, problems
from scoresde.guidance import ClassifierFree
from scoresde.systems.scenes import (
    Cameras,
    DeltaDenoising,
    NoiseLevels,
    Pixels,
    ScoreDistillation,
    Splats,
    VariationalDistillation,
    Volume,
    composite,
    distill,
    line_integrals,
    noise_share,
    samples_along,
)
from scoresde.systems.scenes.splats import rotations
from tests.support import SDES

F64 = torch.float64
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
ROOT = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.3]], dtype=F64)
COVARIANCE = ROOT @ ROOT.T
QUIET = {"progress": False}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(sde=None) -> ScoreModel:
    return problems.Gaussian(MEAN, COVARIANCE).model(sde or VP())


class Gaussians(ScoreModel):
    """Exact models of the Gaussians ``N(means[label], covariances[label])``."""

    def __init__(self, means: Tensor, covariances: Tensor, sde=None) -> None:
        super().__init__(None, sde or VP())
        self.means, self.covariances = means, covariances

    def x0(self, x, t, label):
        flat, mean, covariance = x.flatten(1), self.means[label], self.covariances[label]
        alpha, sigma = (torch.as_tensor(c).reshape(-1, 1) for c in (self.sde.alpha(t), self.sde.sigma(t)))
        noisy = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(flat.shape[1], dtype=F64)
        back = torch.linalg.solve(noisy, (flat - alpha * mean)[..., None])
        return (mean + (alpha[..., None] * covariance @ back)[..., 0]).reshape(x.shape)


def mean_matrix(covariance: Tensor, method=None, sde=None, nodes: int = 2000) -> Tensor:
    """E over the times of a method of w alpha sigma (alpha^2 S + sigma^2)^-1, by the midpoint rule."""
    method, sde = method or ScoreDistillation(), sde or VP()
    t, _ = method.times.at((torch.arange(nodes, dtype=F64) + 0.5) / nodes, sde)
    alpha, sigma = (c.reshape(-1, 1, 1) for c in (sde.alpha(t), sde.sigma(t)))
    eye = torch.eye(len(covariance), dtype=F64)
    return (method.weight(alpha, sigma) * alpha * sigma * torch.linalg.inv(alpha**2 * covariance + sigma**2 * eye)).mean(0)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
def test_the_mean_gradient_of_score_distillation_on_gaussian_data_is_the_closed_form(name):
    sde, method = SDES[name], ScoreDistillation(antithetic=True)
    t = method.times.at(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64), sde)[0]
    x, eps = torch.randn(5, 3, generator=generator(), dtype=F64), torch.randn(5, 3, generator=generator(1), dtype=F64)
    alpha, sigma = (c.reshape(-1, 1, 1) for c in (sde.alpha(t), sde.sigma(t)))
    weight = sigma**2 / (alpha**2 + sigma**2)
    matrix = weight * alpha * sigma * torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=F64))
    wanted = (matrix @ (x - MEAN)[..., None])[..., 0]
    found = method.at(gaussian(sde), x, t, eps)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    # At one eps there is noise beside it, of which the mean over eps is free.
    single = ScoreDistillation().at(gaussian(sde), x, t, eps)
    torch.testing.assert_close(0.5 * (single + ScoreDistillation().at(gaussian(sde), x, t, -eps)), found)


@pytest.mark.parametrize("name", SDES)
def test_noise_levels_are_those_of_vp_on_every_sde(name):
    u = torch.linspace(0, 1, 7, dtype=F64)
    t, weight = NoiseLevels().at(u, SDES[name])
    ends = SDES[name].lam(torch.tensor(SDES[name].span, dtype=F64))
    wanted = VP().lam(0.02 + 0.96 * u).clamp(ends[1], ends[0])
    torch.testing.assert_close(SDES[name].lam(t), wanted, rtol=1e-9, atol=1e-9)
    assert bool((weight == 1).all())
    if name == "VP":
        torch.testing.assert_close(t, 0.02 + 0.96 * u, rtol=1e-12, atol=0)


def test_the_jacobian_of_the_network_is_left_out_and_that_of_the_renderer_is_not():
    net = scoresde.models.MLP(4, hidden=(16,)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(3), dtype=F64))
    model, theta = ScoreModel(net, VP(), "v"), torch.randn(5, generator=generator(), dtype=F64)
    mixing = torch.randn(2, 4, 5, generator=generator(1), dtype=F64)

    def image(theta):
        return torch.tanh(mixing @ theta)

    jacobian = torch.autograd.functional.jacobian(image, theta)  # (2, 4, 5)
    gradient = ScoreDistillation().gradient(model, image(theta), generator(7))
    wanted = theta - 0.3 * torch.einsum("nik,ni->k", jacobian, gradient) / 2
    fitted = theta.clone().requires_grad_()
    distill(model, lambda g: image(fitted), [fitted], steps=1, lr=0.3, optimizer="sgd", seed=7, **QUIET)
    torch.testing.assert_close(fitted.detach(), wanted, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_lost_where_autograd_is_off(mode):
    results = []
    for context in (torch.enable_grad, mode):
        pixels = Pixels(torch.zeros(2, 3, dtype=F64))
        companion = ScoreModel(scoresde.models.MLP(3, hidden=(8,)).double(), VP(), "v")
        with torch.no_grad():
            for p in companion.parameters():
                p.fill_(0.1)
        with context():
            found = distill(gaussian(), pixels, method=VariationalDistillation(companion, "v"), steps=3, **QUIET)
        results.append((found.images, found.history, companion.net(torch.ones(1, 3, dtype=F64), torch.ones(1))))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])


# Fixed points --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), VE(), SDES["RectifiedFlow"]], ids=lambda sde: type(sde).__name__)
def test_score_distillation_ends_at_the_mean(sde):
    pixels, method = Pixels(torch.zeros(4, 3, dtype=F64)), ScoreDistillation(antithetic=True)
    found = distill(gaussian(sde), pixels, method=method, steps=250, optimizer="sgd", lr=8.0, **QUIET)
    torch.testing.assert_close(found.images, MEAN.expand(4, 3), rtol=0, atol=1e-5)
    assert found.history[-1][1] < 1e-4 * found.history[0][1]


def test_guidance_moves_the_fixed_point_by_its_scale():
    means = torch.stack([MEAN, MEAN + 0.3, torch.zeros(3, dtype=F64)])  # the last: of no label
    model = Gaussians(means, COVARIANCE.expand(3, 3, 3))
    guided = ClassifierFree(model, 3.0, {"label": 2})
    pixels = Pixels(torch.zeros(2, 3, dtype=F64))
    told = {"conditions": {"label": [0, 1]}, "method": ScoreDistillation(antithetic=True)}
    found = distill(guided, pixels, steps=250, optimizer="sgd", lr=4.0, **told, **QUIET)
    torch.testing.assert_close(found.images, 3.0 * means[:2], rtol=0, atol=1e-4)


def test_delta_denoising_moves_an_image_by_the_difference_of_the_means_and_has_no_noise():
    means = torch.stack([MEAN, -MEAN])
    model = Gaussians(means, COVARIANCE.expand(2, 3, 3))
    reference = torch.randn(4, 3, generator=generator(), dtype=F64)
    method, pixels = DeltaDenoising(reference, {"label": 0}), Pixels(reference)
    found = distill(model, pixels, method=method, conditions={"label": 1}, steps=250, optimizer="sgd", lr=8.0, **QUIET)
    torch.testing.assert_close(found.images, reference - 2 * MEAN, rtol=0, atol=1e-5)
    t = torch.full((4,), 0.3, dtype=F64)
    one, two = (method.at(model, pixels.x, t, torch.randn(4, 3, generator=generator(s), dtype=F64), label=1) for s in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


class Moments(VariationalDistillation):
    """The variational form with the best Gaussian companion of the images in place of a trained one."""

    def start(self, model):
        def learn(x, generator, conditions):
            mean, covariance = x.detach().mean(0), torch.cov(x.detach().T, correction=0)
            self.companion.means, self.companion.covariances = mean[None], covariance[None]

        return learn

    def difference(self, model, x, t, eps, **conditions):
        noisy = objectives.matching.noised(model.sde, x, t, eps)
        return model.eps(noisy, t) - self.companion.eps(noisy, t, label=torch.zeros(len(x), dtype=torch.int64))


def test_the_variational_form_recovers_the_covariance_where_score_distillation_loses_it():
    start = 0.1 * torch.randn(8, 2, generator=generator(), dtype=F64)
    mean, covariance = MEAN[:2], COVARIANCE[:2, :2]
    model, companion = problems.Gaussian(mean, covariance).model(VP()), Gaussians(mean[None], covariance[None])
    companion.some = torch.nn.Parameter(torch.zeros(1))  # a companion has something to train
    how = {"steps": 200, "optimizer": "sgd", "lr": 8 * 8.0}
    found = distill(model, Pixels(start), method=Moments(companion, antithetic=True), **how, **QUIET).images
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(found.T, correction=0), covariance, rtol=0, atol=1e-6)
    lost = distill(model, Pixels(start), method=ScoreDistillation(antithetic=True), **how, **QUIET).images
    assert float(lost.var(0).max()) < 1e-4


class Learned(ScoreModel):
    """A Gaussian companion whose mean and root of the covariance are trained."""

    def __init__(self, d: int) -> None:
        super().__init__(None, VP())
        self.mean, self.root = torch.nn.Parameter(torch.zeros(d, dtype=F64)), torch.nn.Parameter(torch.eye(d, dtype=F64))

    def x0(self, x, t):
        covariance = self.root @ self.root.T
        return Gaussians(self.mean[None], covariance[None]).x0(x, t, torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.slow
def test_the_variational_form_recovers_the_covariance_with_a_trained_companion():
    pixels, learned = Pixels(torch.randn(256, 3, generator=generator(), dtype=F64)), Learned(3)
    for steps, lr in ((1500, 0.05), (1000, 0.005)):
        method = VariationalDistillation(learned, "edm", lr=lr, updates=4, antithetic=True)
        distill(gaussian(), pixels, method=method, steps=steps, lr=lr, lr_schedule=f"linear-{steps}", **QUIET)
    x = pixels.x.detach()
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.02)
    assert float((torch.cov(x.T) - COVARIANCE).norm() / COVARIANCE.norm()) < 0.05


@pytest.mark.parametrize("variational", [False, True])
def test_a_distillation_continues_from_its_file_bit_for_bit(tmp_path, variational):
    def run(steps, name, lr=0.01):
        torch.manual_seed(0)
        companion = ScoreModel(scoresde.models.MLP(3, hidden=(4,)).double(), VP(), "v")
        method = VariationalDistillation(companion, "v") if variational else None
        pixels = Pixels(torch.randn(4, 3, generator=generator(), dtype=F64))
        out = None if name is None else tmp_path / name
        return distill(gaussian(), pixels, method=method, steps=steps, lr=lr, out=out, save_every=1, **QUIET)

    whole, _, again = run(4, None), run(2, "a.safetensors"), run(4, "a.safetensors")
    assert torch.equal(whole.images, again.images) and whole.history == again.history
    done = run(4, "a.safetensors")
    assert torch.equal(done.images, again.images) and done.history == again.history
    with pytest.raises(scoresde.training.CheckpointError, match=r"lr=0.01 \(here 0.02\)"):
        run(6, "a.safetensors", lr=0.02)
    with pytest.raises(ValueError, match="the name of a pickle"):
        run(4, "a.pt")


# Splats --------------------------------------------------------------------------------------------------------------


def splats(count: int, seed: int = 0, **options: Any) -> Splats:
    """A scene with every parameter drawn."""
    scene, g = Splats(count, 2, **options).double(), generator(seed)
    for p in scene.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=g, dtype=F64)
    scene.log_scales.data -= 1.2
    return scene


@pytest.mark.parametrize("angles", [(0.0, 0.0), (40.0, 25.0)])
def test_a_splat_is_the_integral_of_a_gaussian_along_parallel_rays(angles):
    scene, cameras = splats(1, blur=0.0), Cameras([angles[0]], angles[1])
    image = scene(cameras, 9)
    root = rotations(scene.quaternions)[0] * scene.log_scales[0].exp()
    points, along = cameras.rays(9)
    s = torch.linspace(-6, 6, 4001, dtype=F64)
    z = torch.linalg.solve(root, (points[0, :, None] + s[:, None] * along[0, :, None] - scene.centres[0]).mT)
    depth = torch.exp(-0.5 * z.square().sum(1)).sum(1) * float(s[1] - s[0])
    # Through the centre the integral is the largest; alpha is relative to it.
    most = torch.exp(-0.5 * torch.linalg.solve(root, along[0, :1].mT * s).square().sum(0)).sum() * float(s[1] - s[0])
    seen = torch.sigmoid(scene.opacities) * (depth / most).reshape(9, 9)
    expected = seen * scene.colours[0].tanh()[:, None, None] + (1 - seen) * scene.background
    torch.testing.assert_close(image[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("distance", [None, 3.0])
def test_splats_are_seen_where_the_rays_pass(distance):
    cameras = Cameras([30.0, 200.0], [10.0, -40.0], distance)
    points, along = cameras.rays(7)
    for camera, ray in itertools.product(range(2), (0, 10, 33)):
        scene = Splats(1, blur=0.0, scale=1e-3, opacity=0.9).double()
        scene.centres.data[0], scene.colours.data[0] = points[camera, ray] - 0.4 * along[camera, ray], 20.0
        image = scene(cameras, 7)[camera].flatten()
        torch.testing.assert_close(image[ray], torch.tensor(0.9 - 0.1, dtype=F64), rtol=0, atol=1e-6)
        assert int(image.argmax()) == ray


def test_the_nearest_splat_is_in_front_and_far_cameras_have_parallel_rays():
    scene = Splats(2, blur=0.0, scale=0.3, opacity=0.999).double()
    scene.centres.data = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], dtype=F64)
    scene.colours.data = torch.tensor([[9.0], [-9.0]], dtype=F64)
    front, back = scene(Cameras([0.0, 180.0]), 1).detach().flatten()
    assert float(front) > 0.99 > -0.99 > float(back)
    scene = splats(5)
    torch.testing.assert_close(scene(Cameras([20.0], 10.0, 1e6), 6), scene(Cameras([20.0], 10.0), 6), rtol=0, atol=1e-5)
    # A turn of the scene about the z axis is one of the camera.
    turn = torch.tensor([math.cos(0.3), 0.0, 0.0, math.sin(0.3)], dtype=F64)  # half of the angle
    before = scene(Cameras([20.0], 10.0, 3.0), 6)
    w, x, y, z = scene.quaternions.detach().unbind(1)
    a, b = turn[0], turn[3]
    scene.quaternions.data = torch.stack([a * w - b * z, a * x - b * y, a * y + b * x, a * z + b * w], 1)
    scene.centres.data = scene.centres.data @ rotations(turn[None])[0].mT
    torch.testing.assert_close(scene(Cameras([20.0 + math.degrees(0.6)], 10.0, 3.0), 6), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", [None, 3.0])
def test_gradients_of_splats_are_those_of_differences(distance):
    scene, cameras = splats(3), Cameras([20.0, 110.0], [10.0, 30.0], distance)
    names = [name for name, _ in scene.named_parameters()]

    def render(*values: Tensor) -> Tensor:
        return torch.func.functional_call(scene, dict(zip(names, values, strict=True)), (cameras, 3))

    assert torch.autograd.gradcheck(render, tuple(p.detach().requires_grad_() for p in scene.parameters()))


# Tomography: linear renderers ----------------------------------------------------------------------------------------


def test_tomography_of_an_image_is_solved_within_a_percent():
    operator, truth = inverse.Radon(12, (1, 4, 4)), torch.rand(16, generator=generator(), dtype=F64)
    matrices = operator.matrix().double().reshape(12, -1, 16)  # one for each angle
    covariance = 0.04 * torch.eye(matrices.shape[1], dtype=F64) + 0.02
    model = Gaussians(matrices @ truth, covariance.expand(12, *covariance.shape))
    theta = torch.zeros(16, dtype=F64).requires_grad_()
    told = {"conditions": {"label": range(12)}, "method": ScoreDistillation(antithetic=True)}
    distill(model, lambda g: matrices @ theta, [theta], steps=300, lr=1.0, optimizer="sgd: momentum=0.95", **told, **QUIET)
    assert float((theta.detach() - truth).norm() / truth.norm()) < 0.01


def test_views_that_contradict_each_other_give_the_weighted_least_squares_estimate():
    matrices = torch.randn(4, 3, 5, generator=generator(), dtype=F64)
    means = torch.randn(4, 3, generator=generator(1), dtype=F64)
    roots = 0.5 * torch.randn(4, 3, 3, generator=generator(2), dtype=F64) + 0.4 * torch.eye(3, dtype=F64)
    covariances = roots @ roots.mT
    weights = torch.stack([mean_matrix(c) for c in covariances])
    normal = (matrices.mT @ weights @ matrices).sum(0)
    wanted = torch.linalg.solve(normal, (matrices.mT @ weights @ means[..., None]).sum(0))[:, 0]
    plain = torch.linalg.lstsq(matrices.reshape(-1, 5), means.reshape(-1, 1)).solution[:, 0]
    assert float((wanted - plain).norm() / wanted.norm()) > 0.1  # the weights matter
    theta, copies = torch.zeros(5, dtype=F64).requires_grad_(), 8  # of each view, at stratified times
    labels = torch.arange(4).repeat(copies)
    told = {"conditions": {"label": labels}, "method": ScoreDistillation(antithetic=True)}
    model = Gaussians(means, covariances)
    for steps in (150, 350):
        distill(
            model,
            lambda g: (matrices @ theta)[labels],
            [theta],
            steps=steps,
            optimizer="sgd",
            lr=1.0,
            lr_schedule=f"linear-{steps}",
            **told,
            **QUIET,
        )
    assert float((theta.detach() - wanted).norm() / wanted.norm()) < 0.01


def test_tomography_of_a_volume_is_solved_within_a_percent():
    truth = torch.rand(1, 3, 3, 3, generator=generator(), dtype=F64)
    cameras = Cameras([0, 45, 90, 135, 0, 0, 90, 90], [0, 0, 0, 0, 45, -45, 45, -45])
    means = line_integrals(truth, cameras, 4).flatten(1)
    model = Gaussians(means, (0.04 * torch.eye(16, dtype=F64)).expand(8, 16, 16))
    theta = torch.zeros(1, 3, 3, 3, dtype=F64).requires_grad_()
    told = {
        "conditions": {"label": range(8)},
        "method": ScoreDistillation(antithetic=True),
        "optimizer": "sgd: momentum=0.9",
    }
    distill(model, lambda g: line_integrals(theta, cameras, 4), [theta], steps=200, lr=3.0, **told, **QUIET)
    assert float((theta.detach() - truth).norm() / truth.norm()) < 1e-3


# Rendering -----------------------------------------------------------------------------------------------------------

ANGLES = [(0, 0), (90, 0), (0, 90), (30, 20), (200, -65), (-45, 45)]


@pytest.mark.parametrize("angles", ANGLES)
def test_cameras_are_right_handed_frames_with_z_upwards(angles):
    azimuth, elevation = angles
    cameras = Cameras([azimuth], elevation)
    frame = torch.stack([cameras.right, cameras.up, cameras.directions], 1)[0]
    torch.testing.assert_close(frame @ frame.T, torch.eye(3, dtype=F64), rtol=0, atol=1e-14)
    assert float(torch.linalg.det(frame)) == pytest.approx(1)
    h = 1e-4
    higher, lower = (Cameras([azimuth], elevation + s * h).directions for s in (1, -1))
    torch.testing.assert_close((higher - lower) / (2 * math.radians(h)), cameras.up, rtol=0, atol=1e-8)
    assert float(cameras.right[0, 2]) == pytest.approx(0, abs=1e-15)  # the horizon is level


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_seen_along_an_axis_a_grid_is_summed_exactly(n):
    values = torch.rand(2, n, n, n, generator=generator(), dtype=F64)
    x, y, z = line_integrals(values, Cameras([0, 90, 0], [0, 0, 90]), n) * n / 2
    # From the x axis y points to the right and z upwards; from the y axis -x and z; from the z axis y and -x.
    torch.testing.assert_close(x, values.sum(1).mT.flip(-2))
    torch.testing.assert_close(y, values.sum(2).mT.flip(-1, -2))
    torch.testing.assert_close(z, values.sum(3))


@pytest.mark.parametrize(("angles", "distance"), [*itertools.product(ANGLES, [None, 2.5])])
def test_a_point_is_seen_where_the_camera_projects_it(angles, distance):
    n, size = 24, 48
    point = torch.tensor([0.3, -0.2, 0.4], dtype=F64)
    centre = (torch.arange(n, dtype=F64) + 0.5) * 2 / n - 1
    grid = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"))
    blob = torch.exp(-(grid - point[:, None, None, None]).square().sum(0) / (2 * 0.12**2))[None]
    cameras = Cameras([angles[0]], angles[1], distance)
    image = line_integrals(blob, cameras, size)[0, 0]
    x, y, depth = (float(axis[0] @ point) for axis in (cameras.right, cameras.up, cameras.directions))
    scale = 1.0 if distance is None else distance / (distance - depth)
    pixel = (torch.arange(size, dtype=F64) + 0.5) * 2 / size - 1
    column, row = (float((image.sum(d) * pixel).sum() / image.sum()) for d in (0, 1))
    assert (column, -row) == pytest.approx((scale * x, scale * y), abs=0.02)


@pytest.mark.parametrize("angles", ANGLES)
def test_the_mass_of_a_smooth_volume_is_seen_from_every_side(angles):
    centre = (torch.arange(20, dtype=F64) + 0.5) / 10 - 1
    one = torch.exp(-(centre**2) / (2 * 0.2**2))
    blob = torch.einsum("i,j,k->ijk", one, one, one)[None]
    image = line_integrals(blob, Cameras([angles[0]], angles[1]), 20)
    assert float(image.sum()) * 0.1**2 == pytest.approx((0.2 * math.sqrt(2 * math.pi)) ** 3, rel=1e-3)


def test_emission_and_absorption_of_layers_is_the_closed_form():
    density, colour = torch.tensor([0.0, 2.0, 0.5], dtype=F64), torch.tensor([0.3, 0.7, -0.4], dtype=F64)
    h, b = 0.25, -1.0
    passed = [math.exp(-d * h) for d in density.tolist()]
    wanted = 0.7 * (1 - passed[1]) - 0.4 * passed[1] * (1 - passed[2]) + b * passed[1] * passed[2]
    assert float(composite(density, colour, b, h)) == pytest.approx(wanted, abs=1e-15)
    one, same = composite(density, 1.0, b, h), composite(density, torch.ones(3, dtype=F64), b, h)
    assert float(one) == pytest.approx(float(same), abs=1e-15)
    # Thin layers are the integral: constant density and a colour that falls linearly with depth, over the length 1.
    fine = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    found = composite(torch.full((4000,), 3.0, dtype=F64), 1 - fine, 0.0, 1 / 4000)
    assert float(found) == pytest.approx(1 - (1 - math.exp(-3.0)) / 3, abs=1e-6)


def test_volumes_render_density_and_colour_and_pass_gradients():
    cameras = Cameras.random(3, generator(), distance=3.0, width=8.0)
    for volume in (Volume(6), Volume(6, 3, coloured=True, background=0.5)):
        image = volume.double()(cameras, 10)
        assert image.shape == (3, volume.channels, 10, 10)
        assert all(torch.autograd.grad(image.sum(), p, retain_graph=True)[0].abs().sum() > 0 for p in volume.parameters())
        torch.testing.assert_close(image[:, :, 0, 0], torch.full_like(image[:, :, 0, 0], volume.background))
    # A start of density 0.5 over the length 2 of the cube.
    seen = Volume(5, start=0.5)(Cameras([0.0]), 5)
    torch.testing.assert_close(seen, torch.full_like(seen, 1 - 2 * math.exp(-1.0)))
    both = Volume(5, 1, coloured=True)
    both.colour.data.fill_(20.0)  # the colour 1
    torch.testing.assert_close(both(cameras, 7), Volume(5)(cameras, 7))


def test_a_volume_is_fitted_to_three_views():
    images = -torch.ones(3, 1, 8, 8)
    images[0, 0, 2:6, 2:6], images[1, 0, 2:6, 3:5], images[2, 0, 3:5, 2:6] = 0.9, 0.9, 0.9
    means = images.double().flatten(1)
    model, volume = Gaussians(means, (0.01 * torch.eye(64, dtype=F64)).expand(3, 64, 64)), Volume(8).double()
    cameras = Cameras([0, 90, 0], [0, 0, 90])
    told = {"conditions": {"label": [0, 1, 2]}, "penalty": lambda: 1e-6 * volume.density.square().sum()}
    found = distill(model, lambda g: volume(cameras, 8), volume.parameters(), steps=150, lr=0.1, **told, **QUIET)
    assert float((found.images - images).square().mean()) < 0.01


# Use -----------------------------------------------------------------------------------------------------------------


def test_a_renderer_gives_conditions_draws_cameras_by_the_seed_and_is_watched():
    seen, volume = [], Volume(4)

    def render(g):
        images = volume(Cameras.random(2, g), 4)
        return images, {"label": [1, 0]}

    class Spy(Gaussians):
        def x0(self, x, t, label):
            seen.append(label)
            return super().x0(x.double(), t, label).to(x)

    model = Spy(torch.zeros(2, 16, dtype=F64), torch.eye(16, dtype=F64).expand(2, 16, 16))
    watched = []
    found = [
        distill(model, render, volume.parameters(), steps=2, monitor=lambda k, x: watched.append(k), seed=s, **QUIET)
        for s in (0,)
    ]
    assert watched == [1, 2] and all(torch.equal(label, torch.tensor([1, 0])) for label in seen)
    runs = []
    for seed in (0, 0, 1):
        volume = Volume(4)
        runs.append(distill(model, render, volume.parameters(), steps=3, seed=seed, **QUIET).images)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2]) and len(found[0].history) == 2


def test_methods_are_values():
    for method in (ScoreDistillation(times="uniform"), DeltaDenoising(torch.ones(2, 3))):
        back = pickle.loads(pickle.dumps(method))
        assert back.times == method.times and back.weight is noise_share
    assert ScoreDistillation() == ScoreDistillation()


def test_a_gradient_that_is_not_finite_names_its_step_and_keeps_the_parameters():
    calls, pixels = [], Pixels(torch.zeros(1, 3))

    class Broken(ScoreModel):
        def x0(self, x, t, **conditions):
            calls.append(t)
            return x * (math.nan if len(calls) == 3 else 0.5)

    with pytest.raises(FloatingPointError, match="step 3"):
        distill(Broken(None, VP()), pixels, steps=5, **QUIET)
    assert bool(torch.isfinite(pixels.x).all())


def test_bad_input_gets_a_sentence():
    model, pixels, theta = gaussian(), Pixels(torch.zeros(2, 3)), torch.zeros(2, 3).requires_grad_()
    net = ScoreModel(scoresde.models.MLP(3), VP())
    with torch.inference_mode():
        inferred = torch.nn.Parameter(torch.zeros(2, 3))
    general = ScoreModel(lambda x, t: -x, scoresde.sde.GeneralSDE(lambda x, t: -x, 1.0))
    cases = [
        (TypeError, "expected a ScoreModel", lambda: distill(pixels, pixels, steps=1)),
        (TypeError, "expected ScoreDistillation", lambda: distill(model, pixels, method="sds", steps=1)),
        (ValueError, "steps=0", lambda: distill(model, pixels, steps=0)),
        (ValueError, "lr=-1", lambda: distill(model, pixels, steps=1, lr=-1)),
        (ValueError, "schedule", lambda: distill(model, pixels, steps=1, lr_schedule="steep")),
        (ValueError, "tensors to fit", lambda: distill(model, lambda g: theta, steps=1)),
        (TypeError, "renderer of type int", lambda: distill(model, 3, [theta], steps=1)),
        (TypeError, "type str", lambda: distill(model, lambda g: theta, ["theta"], steps=1)),
        (ValueError, "no parameters", lambda: distill(model, lambda g: theta, [], steps=1)),
        (ValueError, "require gradients", lambda: distill(model, lambda g: theta, [torch.zeros(3)], steps=1)),
        (ValueError, "require gradients", lambda: distill(model, lambda g: theta, [2 * theta], steps=1)),
        (ValueError, "inference mode", lambda: distill(model, lambda g: inferred, [inferred], steps=1)),
        (TypeError, "from the renderer", lambda: distill(model, lambda g: [theta], [theta], steps=1)),
        (ValueError, "do not depend", lambda: distill(model, lambda g: theta.detach(), [theta], steps=1)),
        (ValueError, "at least one event", lambda: distill(model, lambda g: theta[0], [theta], steps=1)),
        (ValueError, "2 samples", lambda: distill(model, pixels, conditions={"label": [1, 2, 3]}, steps=1)),
        (ValueError, "no Gaussian marginals", lambda: distill(general, pixels, steps=1)),
        (ValueError, "event dimension", lambda: Pixels(torch.zeros(3))),
        (ValueError, "0 < low", lambda: NoiseLevels(0.5, 0.2)),
        (ValueError, "0 < low", lambda: NoiseLevels(0.0, 0.2)),
        (ValueError, "0 < low", lambda: NoiseLevels(0.1, math.nan)),
        (ValueError, "unknown distribution|times", lambda: ScoreDistillation(times="unifrom")),
        (TypeError, "NoiseLevels", lambda: ScoreDistillation(times=(0.02, 0.98))),
        (TypeError, "function of alpha", lambda: ScoreDistillation(weight=1.0)),
        (TypeError, "companion", lambda: VariationalDistillation(torch.nn.Linear(1, 1))),
        (ValueError, "without parameters", lambda: VariationalDistillation(model)),
        (ValueError, "lr=0", lambda: VariationalDistillation(net, lr=0)),
        (ValueError, "updates=0", lambda: VariationalDistillation(net, updates=0)),
        (ValueError, "same SDE", lambda: distill(gaussian(VE()), pixels, method=VariationalDistillation(net), steps=1)),
        (ValueError, "one reference", lambda: distill(model, pixels, method=DeltaDenoising(torch.zeros(1, 3)), steps=1)),
        (ValueError, "2 samples", lambda: DeltaDenoising(torch.zeros(2, 3), {"label": [1]})),
        (ValueError, "azimuth=", lambda: Cameras([])),
        (ValueError, "elevation=", lambda: Cameras([0.0], math.inf)),
        (ValueError, "2 azimuths and 3 elevations", lambda: Cameras([0, 1], [0, 1, 2])),
        (ValueError, "width=0", lambda: Cameras([0.0], width=0)),
        (ValueError, "distance=1.5", lambda: Cameras([0.0], distance=1.5)),
        (ValueError, "n=0", lambda: Cameras.random(0, generator())),
        (ValueError, "size=0", lambda: Volume(0)),
        (ValueError, "size=0", lambda: Volume(2)(Cameras([0.0]), 0)),
        (ValueError, "start=0", lambda: Volume(2, start=0)),
        (ValueError, "count=0", lambda: Splats(0)),
        (ValueError, "opacity=1.0", lambda: Splats(1, opacity=1.0)),
        (ValueError, "scale=-1", lambda: Splats(1, scale=-1)),
        (ValueError, "background=nan", lambda: Volume(2, background=math.nan)),
        (ValueError, "grid on a cube", lambda: samples_along(torch.zeros(1, 2, 3, 3), Cameras([0.0]), 2)),
        (ValueError, "'border'", lambda: samples_along(torch.zeros(1, 2, 2, 2), Cameras([0.0]), 2, outside="edge")),
        (ValueError, "grid on a cube", lambda: line_integrals(torch.zeros(3, 3, 3), Cameras([0.0]), 2)),
    ]
    for error, says, call in cases:
        with pytest.raises(error, match=says):
            call()
