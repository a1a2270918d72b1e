"""Laws of measurement operators and observations: adjoints, inverses, decompositions, and published references."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.signal
import scipy.stats
import torch
from torch import Tensor

from scoresde import problems
from scoresde.base.identity import digest
from scoresde.inverse import (
    Blur,
    Channels,
    Downsample,
    Fourier,
    Function,
    Grayscale,
    Mask,
    Matrix,
    Observation,
    Operator,
    Radon,
    Separable,
    observe,
)
from scoresde.inverse.operators import gaussian_kernel, high_dynamic_range, jpeg, motion_kernel, phase_retrieval
from scoresde.inverse.operators.base import DENSE
from scoresde.inverse.operators.least_squares import least_squares


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


IMAGE = (2, 6, 8)
ODD = (1, 5, 7)
LINEAR = {
    "mask": lambda: Mask(mask(*IMAGE)),
    "mask of pixels": lambda: Mask(mask(6, 8), IMAGE),
    "mask of one": lambda: Mask([False, True, False]),
    "matrix, wide": lambda: Matrix(draw(3, 7)),
    "matrix, tall": lambda: Matrix(draw(9, 6), (2, 3)),
    "matrix of lower rank": lambda: Matrix(draw(5, 2) @ draw(2, 6)),
    "separable": lambda: Separable(draw(3, 6), draw(10, 8), IMAGE),
    "downsample": lambda: Downsample(2, IMAGE),
    "downsample by all": lambda: Downsample(6, (6, 6)),
    "downsample, bicubic": lambda: Downsample(2, IMAGE, "bicubic"),
    "downsample, own taps": lambda: Downsample(2, IMAGE, [0.1, 0.5, 0.3, 0.1]),
    "blur, gaussian": lambda: Blur(gaussian_kernel(0.7), IMAGE),
    "blur, motion": lambda: Blur(motion_kernel(3.0, 30.0), IMAGE),
    "blur, any kernel": lambda: Blur(draw(3, 5), ODD),
    "blur, wraps twice": lambda: Blur(draw(7, 9), (3, 4)),
    "blur, null frequencies": lambda: Blur([[1.0, 0.0, -1.0]], (4, 6)),
    "blur, zero": lambda: Blur(draw(3, 5), ODD, "zero"),
    "blur, zero, separable": lambda: Blur(draw(3, 1) * draw(5), ODD, "zero"),
    "blur, wider than the image": lambda: Blur(draw(3, 5), (1, 2, 2), "zero"),
    "blur, reflect": lambda: Blur(draw(3, 5), ODD, "reflect"),
    "blur, reflect, separable": lambda: Blur([0.2, 0.5, 0.3], IMAGE, "reflect"),
    "channels": lambda: Channels(draw(3, 2), IMAGE),
    "channels of a vector": lambda: Channels(draw(2, 4), (4,)),
    "grayscale": lambda: Grayscale((3, 4, 4)),
    "fourier": lambda: Fourier(mask(6, 8), IMAGE),
    "fourier, odd": lambda: Fourier(mask(5, 7), ODD),
    "fourier, all": lambda: Fourier(torch.ones(4, 6), (4, 6)),
    "radon": lambda: Radon([0.0, 31.0, 90.0], ODD),
    "radon of one pixel": lambda: Radon(2, (1, 1)),
    "radon, evenly": lambda: Radon(5, (6, 4)),
    "composed": lambda: Downsample(2, (1, 6, 8)) @ Grayscale(IMAGE),
    "composed thrice": lambda: Mask(mask(1, 3, 4)) @ Downsample(2, (1, 6, 8)) @ Grayscale(IMAGE),
}
NONLINEAR = {
    "function": lambda: Function(lambda x: torch.sin(x).flatten(1)[:, :3], (2, 3)),
    "phase": lambda: phase_retrieval(IMAGE),
    "range": lambda: high_dynamic_range(IMAGE),
    "jpeg": lambda: jpeg((2, 8, 16)),
    "composed": lambda: high_dynamic_range((1, 6, 8)) @ Grayscale(IMAGE),
}
EVERY = {**LINEAR, **{f"{name}, nonlinear": make for name, make in NONLINEAR.items()}}


@pytest.fixture(params=LINEAR)
def linear(request) -> Operator:
    return LINEAR[request.param]()


@pytest.fixture(params=EVERY)
def operator(request) -> Operator:
    return EVERY[request.param]()


# Laws of all operators ------------------------------------------------------------------------------------------------


def test_the_matrix_is_that_of_forward_and_of_the_adjoint(linear):
    x, y, matrix = draw(3, *linear.event), draw(3, *linear.measured), linear.matrix()
    assert matrix.dtype == torch.float64 and matrix.shape == (linear.measured.numel(), linear.event.numel())
    assert torch.allclose(linear(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-12)
    assert torch.allclose(linear.adjoint(y).flatten(1), y.flatten(1) @ matrix, atol=1e-12)
    assert torch.allclose(linear.gram(y).flatten(1), y.flatten(1) @ matrix @ matrix.T, atol=1e-12)


def test_the_decomposition_is_one(linear):
    of, d = linear.singular(), linear.event.numel()
    expected = torch.zeros(d, dtype=torch.float64)
    found = torch.linalg.svdvals(linear.matrix())[:d]
    expected[: len(found)] = found
    assert of.values.dtype == torch.float64 and of.values.shape == (d,)
    assert torch.allclose(of.values.sort().values, expected.sort().values, atol=1e-12 * float(found.max()) * d)
    x, y, c = draw(3, *linear.event), draw(3, *linear.measured, seed=1), draw(3, d, seed=2)
    assert torch.allclose(of.to_x(of.from_x(x)), x, atol=1e-12)
    assert torch.allclose(of.from_x(of.to_x(c)), c, atol=1e-12)
    assert torch.allclose(of.to_x(c).flatten(1).norm(dim=1), c.norm(dim=1))  # V is orthogonal
    assert torch.allclose(of.to_y(of.values * of.from_x(x)), linear(x), atol=1e-11)
    assert torch.allclose(of.to_x(of.values * of.from_y(y)), linear.adjoint(y), atol=1e-11)
    seen = torch.where(of.values > 0, c, 0.0)
    assert torch.allclose(of.from_y(of.to_y(c)), seen, atol=1e-11)  # U is, where it has columns


def test_the_pseudoinverse_is_that_of_the_matrix(linear):
    y = draw(3, *linear.measured)
    expected = y.flatten(1) @ torch.linalg.pinv(linear.matrix()).T
    assert torch.allclose(linear.pinv(y).flatten(1), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_conjugate_gradients_reach_the_pseudoinverse(linear):
    y, matrix = draw(3, *linear.measured), linear.matrix()
    values = torch.linalg.svdvals(matrix)
    values = values[values > 1e-10 * values[0]]
    expected = y.flatten(1) @ torch.linalg.pinv(matrix).T
    found = least_squares(linear.forward, linear.adjoint, y, 1000)
    # What is left of A^T (y - A x) is 1e-12 of its first size; the error of x is up to the squared condition number more.
    bound = 10 * (1e-12 + 1e-14 * len(values)) * float(values[0] / values[-1]) ** 2
    assert float((found.flatten(1) - expected).norm() / expected.norm()) < max(bound, 1e-9)
    alone = least_squares(linear.forward, linear.adjoint, y[:1], 1000)
    assert torch.allclose(found[:1], alone, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_an_operator_follows_the_dtype_of_the_state(operator):
    x = draw(2, *operator.event)
    exact = operator(x)
    for dtype in (torch.float32, torch.bfloat16):
        found = operator(x.to(dtype))
        assert found.dtype == dtype
        if not isinstance(operator, Function):  # a rounded state may be rounded to another block
            assert torch.allclose(found.double(), exact, atol=20 * torch.finfo(dtype).eps * float(x.norm() + exact.norm()))
    if operator.linear:
        y = draw(2, *operator.measured).float()
        assert operator.adjoint(y).dtype == operator.pinv(y).dtype == torch.float32
        assert torch.allclose(operator.adjoint(y).double(), operator.adjoint(y.double()), atol=1e-5 * float(y.norm()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_derivatives_exist_wherever_they_are_asked_for(operator, mode):
    x, y = draw(2, *operator.event), draw(2, *operator.measured)
    at = x.clone().requires_grad_()
    expected = torch.autograd.grad(operator(at), at, y)[0]
    with mode():
        fresh = EVERY_BY_DIGEST[digest(operator)]()  # one that was built there
        for each in (operator, fresh):
            found = each.vjp(x * 1.0, y * 1.0)
            assert torch.allclose(found, expected, atol=1e-12)
    assert float(expected.norm()) > 0


EVERY_BY_DIGEST = {digest(make()): make for make in EVERY.values()}


def test_the_adjoint_is_differentiable(linear):
    y = draw(2, *linear.measured).requires_grad_()
    x = draw(2, *linear.event)
    found = torch.autograd.grad((linear.adjoint(y) * x).sum(), y)[0]
    assert torch.allclose(found, linear(x), atol=1e-12)


def test_copies_are_the_same(operator):
    operator(draw(1, *operator.event).float())  # fills the cache
    x = draw(2, *operator.event)
    if "lambda" not in repr(vars(operator).get("function")):
        assert torch.equal(pickle.loads(pickle.dumps(operator))(x), operator(x))
    if operator.linear:
        operator.singular()
        assert digest(copy.deepcopy(operator)) == digest(operator)
    assert digest(operator) != digest(Mask([True, True, False]))


def test_other_shapes_are_refused(operator):
    with pytest.raises(ValueError, match="expected"):
        operator(draw(2, *operator.event, 3))
    if operator.linear:
        for method in (operator.adjoint, operator.gram, operator.pinv):
            with pytest.raises(ValueError, match="expected"):
                method(draw(2, *operator.measured, 2))


# References -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("zero", "constant"), ("reflect", "mirror")])
@pytest.mark.parametrize("kernel", [draw(3, 5), draw(5, 1), gaussian_kernel(0.8), motion_kernel(4.0, 77.0)])
def test_a_blur_is_the_convolution_of_scipy(boundary, mode, kernel):
    x = draw(9, 11)
    found = Blur(kernel, (9, 11), boundary)(x[None])[0]
    assert np.allclose(found, scipy.ndimage.convolve(x.numpy(), kernel.numpy(), mode=mode), atol=1e-13)


def test_kernels():
    size = 9
    taps = scipy.stats.norm(scale=1.3).pdf(np.arange(size) - size // 2)
    assert np.allclose(gaussian_kernel(1.3, size), np.outer(taps, taps) / taps.sum() ** 2)
    for length, angle in [(0.3, 10.0), (5.0, 0.0), (4.2, 33.0), (6.0, 90.0), (3.0, 200.0)]:
        kernel = motion_kernel(length, angle)
        at = torch.arange(len(kernel)) - len(kernel) // 2
        assert float(kernel.sum()) == pytest.approx(1) and bool((kernel >= 0).all())
        # The centre of mass is the centre, and the main axis of the masses the direction of the motion.
        mean = (kernel * at).sum(), (kernel * at[:, None]).sum()
        assert max(map(abs, mean)) < 1e-12
        covariance = float((kernel * at * -at[:, None]).sum())
        # A segment has the covariance length^2 sin cos / 12, to which the two independent bilinear weights add nothing.
        assert covariance == pytest.approx(length**2 * math.sin(2 * math.radians(angle)) / 24, abs=1e-3 * length**2)


def test_average_pooling():
    x = draw(2, 3, 8, 12)
    assert torch.allclose(Downsample(4, (3, 8, 12))(x), torch.nn.functional.avg_pool2d(x, 4), atol=1e-14)
    pixels = torch.arange(16.0, dtype=torch.float64)
    ramp = Downsample(2, (16, 16), "bicubic")(pixels.expand(1, 16, 16))[0, 4, 2:-2]
    assert torch.allclose(ramp, 2 * torch.arange(2, 6, dtype=torch.float64) + 0.5)  # Keys' kernel keeps straight lines


@pytest.mark.parametrize("taps", ["bicubic", [0.1, 0.5, 0.3, 0.1], [0.2, 0.1, 0.3, 0.1, 0.2, 0.1]])
def test_super_resolution_filters_and_keeps_every_second_pixel(taps):
    x = draw(8, 10)
    kernel = Downsample(2, (32, 32), taps).rows[8].numpy()  # in the middle, where nothing is reflected
    at = np.flatnonzero(kernel)[0]
    kernel = kernel[at : 34 - at]
    half = len(kernel) // 2
    wide = np.pad(x.numpy(), half, mode="symmetric")
    expected = scipy.signal.correlate2d(wide, np.outer(kernel, kernel), mode="valid")[1:, 1:][::2, ::2]
    assert np.allclose(Downsample(2, (8, 10), taps)(x[None])[0], expected[:4, :5])
    assert taps == "bicubic" or kernel.tolist() == taps


def test_fourier_coefficients_and_their_order():
    x, kept = draw(2, 6, 8), mask(6, 8)
    found = Fourier(kept, (6, 8))(x)
    expected = np.fft.fft2(x.numpy(), norm="ortho")[:, kept.numpy()]
    assert np.allclose(found[..., 0], expected.real) and np.allclose(found[..., 1], expected.imag)


def test_projections_of_a_gaussian_are_gaussian():
    size, std = 65, 5.0
    centre = (4.0, -7.0)  # x to the right, y upwards
    y, x = np.mgrid[size // 2 : -size // 2 : -1, -(size // 2) : size // 2 + 1]
    image = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * std**2)) / (2 * np.pi * std**2)
    angles = [0.0, 20.0, 45.0, 90.0, 135.0, 170.0]
    found = Radon(angles, (size, size))(torch.from_numpy(image)[None])[0]
    detectors = np.arange(found.shape[1]) - found.shape[1] // 2
    for row, angle in zip(found, np.radians(angles), strict=True):
        # Pixels and strips widen the Gaussian by the variances of their boxes, 1/12 each, and by nothing where they align:
        # its peak falls by 1 / (12 std^2) of itself at most.
        expected = scipy.stats.norm(centre[0] * np.cos(angle) + centre[1] * np.sin(angle), std).pdf(detectors)
        assert np.abs(row.numpy() - expected).max() < 1.1 / (12 * std**2) * expected.max()
        assert float(row.sum()) == pytest.approx(float(image.sum()), rel=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 10.0, 45.0, 80.0, 90.0, 123.0, 180.0])
def test_a_pixel_throws_the_shadow_of_a_square(angle):
    image = torch.zeros(1, 5, 4, dtype=torch.float64)
    image[0, 1, 3] = 1  # its centre lies at x = 1.5, y = 1
    found = Radon([angle], (5, 4))(image)[0, 0]
    n = 1000
    inside = (np.arange(n) + 0.5) / n - 0.5
    x, y = np.meshgrid(1.5 + inside, 1 + inside)
    theta = np.radians(angle)
    bins = np.arange(len(found) + 1) - len(found) / 2
    expected = np.histogram(x * np.cos(theta) + y * np.sin(theta), bins)[0] / n**2
    assert np.allclose(found, expected, atol=2 / n)


def test_radon_at_right_angles_sums_rows_and_columns():
    x = draw(1, 5, 5)
    found = Radon([0.0, 90.0, 180.0], (5, 5))(x)[0]
    middle = found[:, found.shape[1] // 2 - 2 : found.shape[1] // 2 + 3]
    assert torch.allclose(middle[0], x[0].sum(0)) and torch.allclose(middle[1], x[0].sum(1).flip(0))
    assert torch.allclose(middle[2], x[0].sum(0).flip(0))


def test_grayscale_is_the_mean_or_the_weights():
    x = draw(2, 3, 4, 4)
    assert torch.allclose(Grayscale((3, 4, 4))(x), x.mean(1, keepdim=True))
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert torch.allclose(Grayscale((3, 4, 4), luma.tolist())(x)[:, 0], torch.einsum("c,bchw->bhw", luma, x))


def test_phase_retrieval_is_the_padded_amplitude():
    x = draw(2, 1, 4, 6)
    expected = np.abs(np.fft.fft2(np.pad(x.numpy(), [(0, 0), (0, 0), (0, 4), (0, 6)]), norm="ortho"))
    assert np.allclose(phase_retrieval((1, 4, 6))(x), expected)
    assert torch.allclose(phase_retrieval((1, 4, 6))(-x), phase_retrieval((1, 4, 6))(x))


@pytest.mark.parametrize("quality", [1, 10, 50, 90, 100])
def test_jpeg_rounds_the_cosine_transform(quality):
    x = 2 * torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    operator = jpeg((16, 24), quality)
    made = operator(x)
    steps = np.array(operator.function.steps)
    assert steps.min() >= 1 and (quality != 50 or steps[0, 0] == 16) and (quality != 100 or (steps == 1).all())
    for i, j in [(0, 0), (1, 2)]:
        block = scipy.fft.dctn(127.5 * x[1, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].numpy(), norm="ortho")
        expected = scipy.fft.idctn(np.round(block / steps) * steps, norm="ortho") / 127.5
        assert np.allclose(made[1, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8], expected)
    assert torch.allclose(operator(made), made, atol=1e-12)  # what is rounded stays
    y = draw(2, 16, 24)
    assert torch.allclose(operator.vjp(x, y), y)  # straight through an orthogonal transform and back


def test_the_jacobian_of_a_function():
    operator, x, y = high_dynamic_range((3,)), torch.tensor([[0.1, 0.6, -0.9]]).double(), torch.ones(1, 3).double()
    assert operator.vjp(x, y).tolist() == [[2.0, 0.0, 0.0]]


# Operators of one's own -----------------------------------------------------------------------------------------------


class Shift(Operator):
    def __init__(self):
        super().__init__((4,), (4,))

    def forward(self, x):
        return x.roll(1, 1)


class WrongAdjoint(Shift):
    def adjoint(self, y):
        return y.roll(1, 1)


class WrongAtTheEdge(Operator):
    """Right but for one of 4,096 pixels."""

    def __init__(self):
        super().__init__((64, 64), (64, 64))

    def forward(self, x):
        return x

    def adjoint(self, y):
        return y.index_fill(1, torch.tensor(0), 0.0) + y[:, :1] * (torch.arange(64) > 0)[None, None] * (
            torch.arange(64) < 64
        ).reshape(1, 64, 1).eq(torch.arange(64).reshape(1, 64, 1) == 0)


class WrongShape(Shift):
    def forward(self, x):
        return x[:, 1:]


class Affine(Shift):
    def forward(self, x):
        return x + 1


class Square(Shift):
    def forward(self, x):
        return x**2


class OfBatch(Shift):
    def forward(self, x):
        return x - x.mean(0)


class WrongShapeBack(Shift):
    def adjoint(self, y):
        return y[:, :3]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (WrongAdjoint, "WrongAdjoint whose adjoint is wrong"),
        (WrongAtTheEdge, "adjoint is wrong"),
        (WrongShape, "expected \\(2, 4\\)"),
        (Affine, "not linear"),
        (Square, "not linear"),
        (OfBatch, "depends on the others"),
        (WrongShapeBack, "whose adjoint maps"),
    ],
)
def test_a_wrong_operator_is_refused(kind, words):
    with pytest.raises(ValueError, match=words):
        kind()


def test_a_new_operator_has_all_that_follows():
    operator, y = Shift(), draw(2, 4)
    assert torch.equal(operator.adjoint(y), y.roll(-1, 1))
    assert torch.allclose(operator.pinv(y), y.roll(-1, 1))
    assert torch.equal(operator.matrix(), torch.eye(4, dtype=torch.float64).roll(1, 0))


def test_a_function_may_be_a_network():
    network = torch.nn.Linear(4, 2)
    operator = Function(network, (4,))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(operator(x), network(x)) and len(list(operator.parameters())) == 2
    with torch.no_grad():
        assert torch.allclose(operator.vjp(x, torch.ones(3, 2)), network.weight.sum(0).expand(3, 4))


def test_large_operators_without_a_closed_form():
    operator = Radon(2, (1, 48, 48))
    with pytest.raises(ValueError, match=f"at most {DENSE:,}, or one of Mask"):
        operator.singular()
    y = operator(draw(1, 1, 48, 48))
    assert torch.allclose(operator(operator.pinv(y)), y, atol=1e-6)  # by conjugate gradients


@pytest.mark.parametrize("wanted", ["adjoint", "pinv", "gram"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_what_only_linear_operators_have(name, wanted):
    operator = NONLINEAR[name]()
    with pytest.raises(ValueError, match="not linear"):
        getattr(operator, wanted)(draw(1, *operator.measured))
    for method in (operator.matrix, operator.singular):
        with pytest.raises(ValueError, match="not linear"):
            method()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mask(torch.zeros(3)), "keeps nothing"),
        (lambda: Mask(torch.ones(3), (2, 4)), "broadcasts"),
        (lambda: Matrix(torch.ones(3)), "expected \\(measurements"),
        (lambda: Matrix(torch.ones(2, 3), (4,)), "4 columns"),
        (lambda: Matrix([[math.nan]]), "finite"),
        (lambda: Separable(torch.ones(2, 3), torch.ones(2, 4), (4, 4)), "4 columns"),
        (lambda: Downsample(3, (4, 6)), "divides both"),
        (lambda: Downsample(2.0, (4, 6)), "whole number"),
        (lambda: Downsample(2, (4, 6), "lanczos"), "'average', 'bicubic'"),
        (lambda: Downsample(2, (4, 6), [1.0, 1.0, 1.0]), "taps"),
        (lambda: Downsample(2, (4,)), "height and the width"),
        (lambda: Blur(torch.ones(2, 2), (4, 4)), "odd"),
        (lambda: Blur(torch.ones(3, 3), (4, 4), "mirror"), "circular, zero, reflect"),
        (lambda: Blur(torch.ones(9, 1), (4, 4), "reflect"), "at most 7 x 7"),
        (lambda: Blur(torch.ones(11, 1), (4, 4)), "at most 9 x 9"),
        (lambda: gaussian_kernel(0.0), "positive"),
        (lambda: gaussian_kernel(1.0, 4), "odd"),
        (lambda: motion_kernel(-1.0, 0.0), "positive length"),
        (lambda: motion_kernel(5.0, 0.0, 3), "at least 7"),
        (lambda: Channels(torch.ones(1, 3), (4, 2, 2)), "a column for each"),
        (lambda: Grayscale((3, 2, 2), [1.0]), "a column for each"),
        (lambda: Fourier(torch.ones(3, 3), (4, 4)), "one entry for each frequency"),
        (lambda: Fourier(torch.zeros(4, 4), (4, 4)), "keeps nothing"),
        (lambda: Radon(0, (4, 4)), "at least 1"),
        (lambda: Radon([], (4, 4)), "finite angles"),
        (lambda: Function(lambda x: x.sum(), (4,)), "expected measurements"),
        (lambda: Function(lambda x: x - x.mean(0), (4,)), "depends on the others"),
        (lambda: phase_retrieval((4, 4), 0.5), "at least 1"),
        (lambda: jpeg((4, 8)), "multiples of 8"),
        (lambda: jpeg((8, 8), 0), "from 1 to 100"),
        (lambda: high_dynamic_range((4,), -1.0), "positive"),
        (lambda: Grayscale((3, 2, 2)) @ Grayscale((3, 2, 2)), "are the states of the outer"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "expected" in str(caught.value)


# Observations ---------------------------------------------------------------------------------------------------------


def test_the_likelihood_of_gaussian_noise():
    operator, x = Matrix(draw(2, 3)), draw(4, 3)
    y = draw(4, 2, seed=3)
    found = Observation(operator, y, 0.3).log_likelihood(x)
    expected = [scipy.stats.multivariate_normal(a, 0.09 * np.eye(2)).logpdf(b) for a, b in zip(operator(x), y, strict=True)]
    assert np.allclose(found, expected)
    one = Observation(operator, y[0], 0.3)
    assert torch.allclose(one.log_likelihood(x)[0], found[0]) and one.for_batch(5).shape == (5, 2)
    assert float(one.variance) == pytest.approx(0.09)


def test_the_likelihood_of_counts():
    operator, x = Matrix(draw(2, 3).abs()), draw(4, 3).abs()
    seen = observe(operator, x, noise="poisson", gain=7.0, background=0.5, seed=2)
    counts = 7 * (seen.y + 0.5)
    assert torch.allclose(counts, counts.round(), atol=1e-9)
    expected = scipy.stats.poisson(7 * (operator(x) + 0.5)).logpmf(counts.round()).sum(1)
    assert np.allclose(seen.log_likelihood(x), expected)
    assert torch.allclose(seen.variance, ((seen.y + 0.5).clamp(min=1 / 7)) / 7)
    assert seen.log_likelihood(x - 10).tolist() == [-math.inf] * 4
    dark = Observation(Mask([True]), torch.zeros(1), 0.0, noise="poisson")
    assert dark.log_likelihood(torch.zeros(1, 1)).tolist() == [0.0]  # no counts at no light are certain
    assert float(dark.variance) == 1


def test_noise_has_its_moments_and_belongs_to_its_state():
    operator, n = Mask([True, False]), 1500
    x = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(n, 2)
    for seen, variance in [
        (observe(operator, x, 0.5, seed=1), 0.25),
        (observe(operator, x, noise="poisson", gain=10.0, background=1.0, seed=1), 0.3),
    ]:
        # Five standard errors of the mean, and of the variance of (nearly) normal numbers.
        assert float(seen.y.mean()) == pytest.approx(2, abs=5 * math.sqrt(variance / n))
        assert float(seen.y.var()) == pytest.approx(variance, rel=5 * math.sqrt(2.2 / n))
    few = observe(operator, x[:3], 0.5, seed=1)
    assert torch.equal(few.y, observe(operator, x, 0.5, seed=1).y[:3])
    assert torch.equal(observe(operator, x[0], 0.5, seed=[7]).y, observe(operator, x[:1], 0.5, seed=[7]).y[0])
    assert observe(operator, x[0]).y.tolist() == [2.0]


def test_a_batch_of_observations():
    seen = observe(Mask([True, True, False]), draw(5, 3), 0.1)
    assert seen.batched and seen.select(slice(0, 2)).y.shape == (2, 2)
    assert torch.equal(seen.for_batch(5, torch.ones(1)), seen.y.float())
    with pytest.raises(ValueError, match="got 5 measurements for 4 samples"):
        seen.for_batch(4)
    one = Observation(Mask([True, True, False]), [1, 2], 0.1)
    assert not one.batched and one.select(slice(0, 2)) is one and one.y.tolist() == [1.0, 2.0]


def test_the_observation_of_a_posterior():
    prior = problems.textures(4)
    seen = observe(Downsample(2, (1, 4, 4)), prior.sample(1, torch.Generator().manual_seed(0))[0], 0.1)
    found = Observation.of(prior.posterior(seen.operator, seen.y, seen.sigma))
    assert found.operator is seen.operator and torch.equal(found.y.float(), seen.y) and found.sigma == 0.1
    with pytest.raises(ValueError, match="no posterior"):
        Observation.of(prior)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3), 0.1), "one measurement for all samples"),
        ((torch.zeros(2, 3), 0.1), "one for each"),
        ((torch.tensor([math.nan, 0.0]), 0.1), "finite measurements"),
        ((torch.zeros(2), -0.1), "at least 0"),
        ((torch.zeros(2), math.nan), "at least 0"),
        ((torch.zeros(2), 0.0, "laplace"), "gaussian, poisson"),
        ((torch.zeros(2), 0.1, "poisson"), "expected sigma=0"),
        ((torch.zeros(2), 0.0, "poisson", 0.0), "positive gain"),
        ((-torch.ones(2), 0.0, "poisson"), "background=1"),
    ],
)
def test_bad_observations_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Observation(Mask([True, True, False]), *arguments)


def test_refusals_of_observations():
    with pytest.raises(TypeError, match="Function\\(f, event\\)"):
        Observation(lambda x: x, torch.zeros(2), 0.1)
    with pytest.raises(TypeError, match="expected an operator"):
        observe(torch.eye(2), torch.zeros(2))
    with pytest.raises(ValueError, match="sigma > 0"):
        Observation(Mask([True]), torch.zeros(1), 0.0).log_likelihood(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="background"):
        observe(Mask([True]), torch.tensor([-2.0]), noise="poisson")
