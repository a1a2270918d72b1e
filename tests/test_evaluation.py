"""The quality of samples: scores against closed forms, SciPy, scikit-learn and torchmetrics; statistics that do not depend
on how a set is cut; real digits against other digits, and against clothes."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lenet import LeNet
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

from scoresde import data, evaluation, metrics
from scoresde.data import Arrays
from scoresde.evaluation import FeatureMoments, Features, compare_statistics, evaluate, frechet, precision_recall, summarize
from scoresde.evaluation.summary import Summary

SEEDS = st.integers(0, 2**31)


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rng():
    return torch.Generator().manual_seed(0)


# Moments ---------------------------------------------------------------------------------------------------------------


@given(SEEDS, st.lists(st.integers(1, 7), min_size=2, max_size=6), st.integers(1, 4))
def test_moments_of_parts_make_those_of_the_whole_however_it_is_cut(seed, sizes, d):
    x = draw(seed, sum(sizes), d)
    parts = [FeatureMoments.of(part) for part in torch.split(x, sizes)]
    left = right = parts[0]
    for part in parts[1:]:
        left, right = left + part, part + right
    for found in (left, right, FeatureMoments.of(x)):
        assert found.n == len(x)
        assert torch.allclose(found.mean, x.mean(0), atol=1e-12)
        assert torch.allclose(found.covariance, x.T.cov().reshape(d, d), atol=1e-12)


def test_moments_stay_accurate_far_from_zero():
    x = draw(0, 1000, 2) + 1e8
    found = sum((FeatureMoments.of(part) for part in torch.split(x[10:], 10)), FeatureMoments.of(x[:10]))
    assert torch.allclose(found.covariance, (x - 1e8).T.cov(), rtol=1e-6)  # squares of 1e16 would have no digit left
    with pytest.raises(ValueError, match="got 1 samples; expected at least 2"):
        _ = FeatureMoments.of(x[:1]).covariance


@given(SEEDS, st.integers(1, 6))
def test_the_frechet_distance_is_that_of_scipy_and_of_the_metrics(seed, d):
    x, y = draw(seed, 60, d), 2 * draw(seed + 1, 50, d) + 1
    found = frechet(FeatureMoments.of(x), FeatureMoments.of(y))
    assert found == pytest.approx(float(metrics.frechet_distance(x, y)), rel=1e-9)
    (a, b), (p, q) = (z.mean(0).numpy() for z in (x, y)), (z.T.cov().reshape(d, d).numpy() for z in (x, y))
    root = linalg.sqrtm(p @ q).real
    assert found == pytest.approx(((a - b) ** 2).sum() + np.trace(p + q - 2 * root), rel=1e-6, abs=1e-6)


# Scores of features --------------------------------------------------------------------------------------------------


def naive_mmd(x, y):
    """KID by the formula, a pair at a time."""

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return sum(float(a[i] @ b[j] / a.shape[1] + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_the_kernel_distance_is_its_formula_and_unbiased():
    x, y = draw(0, 7, 3), draw(1, 7, 3) + 1
    value, deviation = evaluation.kernel_inception_distance(x, y, 3, generator=rng())
    assert value == pytest.approx(naive_mmd(x, y), rel=1e-12) and deviation < 1e-12
    z = draw(2, 2000, 3)
    value, deviation = evaluation.kernel_inception_distance(z[:1000], z[1000:], 400, 10, generator=rng())
    assert abs(value) < 4 * deviation / 400**0.5


def test_precision_and_recall_are_those_of_scikit_learn_neighbours():
    x, y = draw(0, 90, 3), 0.5 * draw(1, 70, 3)

    def inside(points, centres, k=3):
        radii = NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
        return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(1).mean()

    expected = inside(x.numpy(), y.numpy()), inside(y.numpy(), x.numpy())
    assert precision_recall(x, y) == pytest.approx(expected)
    assert precision_recall(y, x) == pytest.approx(expected[::-1])
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x + 100, y) == (0, 0)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_inception_score_lies_between_one_and_the_number_of_classes(classes):
    def score(logits, batch_size):
        chosen = Features(lambda x: {"features": x, "logits": logits[x[:, 0].long()]}, "given")
        numbers = Arrays(torch.arange(len(logits)).float()[:, None])
        return summarize(numbers, chosen, batch_size=batch_size).inception_score()

    n = 200 * classes
    for sure in (torch.arange(n) % classes, torch.arange(n) // 200):  # the order of a set says nothing
        value, deviation = score(50.0 * torch.eye(classes)[sure], 7)
        assert 0.85 * classes < value <= classes and deviation < 0.15 * classes
    assert score(torch.zeros(n, classes), 7) == pytest.approx((1, 0), abs=1e-9)
    logits = draw(0, n, classes)
    p = logits.softmax(1)[torch.randperm(n, generator=rng()).argsort()].reshape(10, -1, classes)
    kl = (p * (p.log() - p.mean(1, keepdim=True).log())).sum(-1).mean(1).exp()
    for batch_size in (1, 9, n):
        assert score(logits, batch_size) == pytest.approx((kl.mean().item(), kl.std(correction=0).item()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_distances_are_those_of_torchmetrics_in_the_same_features():
    pytest.importorskip("torchmetrics", reason="the extra eval is not installed")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Extractor(torch.nn.Module):
        num_features = 8

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(draw(5, 48, 8, dtype=torch.float32))

        def forward(self, x):
            return (x.to(self.weight).flatten(1) / 127.5 - 1) @ self.weight

    sets = [torch.randint(0, 256 - 40 * k, (64, 3, 4, 4), generator=rng(), dtype=torch.uint8) for k in range(2)]
    extractor = Extractor().double().requires_grad_(False)
    fid = FrechetInceptionDistance(feature=extractor, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=extractor, subsets=1, subset_size=64)
    for metric in (fid, kid):
        metric.update(sets[0], real=False)
        metric.update(sets[1], real=True)
    own = Features(lambda x: x.flatten(1).double() @ extractor.weight, "own")
    x, y = (summarize(Arrays(z), own, batch_size=10) for z in sets)
    assert compare_statistics(x, y).frechet == pytest.approx(float(fid.compute()), rel=1e-6)
    value, _ = evaluation.kernel_inception_distance(x.rows, y.rows, 1, 64, generator=rng())
    assert value == pytest.approx(float(kid.compute()[0]), rel=1e-5)


# Summaries -----------------------------------------------------------------------------------------------------------


def of_images(x):
    return {"features": x.flatten(1)[:, :5], "spatial": x[:, 0], "logits": x.flatten(1)[:, 3:6]}


IMAGES = Arrays(torch.randint(0, 256, (37, 2, 4, 3), generator=rng(), dtype=torch.uint8))
OTHERS = Arrays(torch.randint(30, 256, (41, 2, 4, 3), generator=rng(), dtype=torch.uint8))
EXTRACTOR = Features(of_images, "of images")


@given(st.integers(1, 50), st.integers(1, 50))
def test_scores_do_not_depend_on_how_a_set_is_read(a, b):
    one, two = (evaluate(IMAGES, OTHERS, EXTRACTOR, keep=20, batch_size=size, projections=4) for size in (a, b))
    for name, value in vars(one).items():
        assert (value is None and name == "floor") or value == pytest.approx(getattr(two, name), rel=1e-9)


def test_scores_are_those_of_the_whole_sets():
    scores = evaluate(IMAGES, OTHERS, EXTRACTOR, projections=16, seed=3, batch_size=8)
    x, y = IMAGES.tensor(), OTHERS.tensor()
    sliced = metrics.sliced_wasserstein(x, y, 16, generator=torch.Generator().manual_seed(3))
    assert scores.sliced_wasserstein == pytest.approx(float(sliced), rel=1e-6)
    for kind, value in (("features", scores.frechet), ("spatial", scores.spatial_frechet)):
        a, b = (of_images(z)[kind].flatten(1) for z in (x, y))
        assert value == pytest.approx(float(metrics.frechet_distance(a, b)), rel=1e-6)
    assert (scores.precision, scores.recall) == precision_recall(x.flatten(1)[:, :5], y.flatten(1)[:, :5])


def test_images_are_scored_as_files_of_them_would_hold_them():
    noise = 0.9 / 127.5 * (torch.rand(IMAGES.x.shape, generator=rng()) - 0.5)  # less than half a level to either side
    assert compare_statistics(
        summarize(Arrays(IMAGES.tensor() + noise), EXTRACTOR), summarize(IMAGES, EXTRACTOR)
    ).frechet == pytest.approx(0, abs=1e-9)
    x = torch.tensor([-7.0, 7.0, 0.0])
    assert evaluation.eight_bits(evaluation.eight_bits(x)).tolist() == evaluation.eight_bits(x).tolist()
    assert evaluation.eight_bits(x)[:2].tolist() == [-1, 1]


def test_vectors_are_their_own_features_and_images_without_an_extractor_have_one_score():
    x, y = Arrays(draw(0, 50, 2)), Arrays(draw(1, 60, 2) + 3)
    scores = evaluate(x, y, floor=x)
    assert scores.frechet == pytest.approx(float(metrics.frechet_distance(x.x, y.x)), rel=1e-6)
    assert scores.floor.frechet == scores.frechet and scores.floor.floor is None
    plain = evaluate(IMAGES, OTHERS)
    assert plain.sliced_wasserstein > 0 and plain.frechet is plain.kernel is plain.inception_score is None
    assert json.loads(scores.to_json())["floor"]["recall"] == scores.floor.recall
    assert "Fréchet" in str(scores) and "Fréchet" not in str(plain)


def test_statistics_are_kept_by_content(tmp_path):
    calls = []

    def counted(x):
        calls.append(len(x))
        return of_images(x)

    features = Features(counted, "counted")
    first = evaluate(IMAGES, OTHERS, features, floor=IMAGES, cache=tmp_path)
    assert sum(calls) == len(IMAGES) + len(OTHERS)  # the floor is the same data as the samples
    again = evaluate(IMAGES, Arrays(OTHERS.x.clone()), features, floor=IMAGES, cache=tmp_path)
    assert sum(calls) == len(IMAGES) + len(OTHERS) and again == first
    changed = Arrays(OTHERS.x.clone())
    changed.x[0, 0, 0, 0] ^= 255
    assert evaluate(IMAGES, changed, features, cache=tmp_path).frechet != first.frechet
    assert evaluate(IMAGES, OTHERS, Features(lambda x: x[:, 0].flatten(1), "b"), cache=tmp_path).frechet != first.frechet


def test_statistics_with_any_byte_changed_are_refused(tmp_path):
    path = tmp_path / "statistics.safetensors"
    summary = summarize(IMAGES, Features(of_images, "a"), keep=5, projections=3)
    summary.save(path)
    again, whole = Summary.load(path), path.read_bytes()
    assert torch.equal(again.rows, summary.rows) and torch.equal(again.projections, summary.projections)
    assert again.n == summary.n and again.moments.keys() == summary.moments.keys()
    random = np.random.default_rng(0)
    places = [*range(120), *random.integers(120, len(whole), 200).tolist()]  # the header, and the tensors
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << random.integers(8))]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"cannot read the statistics in .*; remove the file"):
            Summary.load(path)
    for end in (0, 7, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cannot read the statistics in .*; remove the file"):
            Summary.load(path)


@pytest.mark.parametrize("name", ["n", "rows", "projections", "predictions", "features.mean", "features.products"])
@pytest.mark.parametrize("change", ["dtype", "shape", "missing"])
def test_statistics_of_other_types_and_shapes_are_refused(tmp_path, name, change):
    import safetensors.torch

    from scoresde.base.identity import digest

    path = tmp_path / "statistics.safetensors"
    summarize(IMAGES, Features(of_images, "a"), keep=5, projections=3).save(path)
    tensors = safetensors.torch.load_file(path)
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = (
            tensors[name].half() if change == "dtype" else tensors[name][None].repeat(2, *[1] * tensors[name].ndim)
        )
    safetensors.torch.save_file(tensors, path, metadata={"checksum": digest(sorted(tensors.items()))})
    with pytest.raises(ValueError, match=r"cannot read the statistics in .*; remove the file"):
        Summary.load(path)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: evaluate(IMAGES, Arrays(torch.zeros(5, 2))), r"37 of \(2, 4, 3\), 5 of \(2,\); expected one shape"),
        (lambda: evaluate(Arrays(torch.zeros(1, 2)), Arrays(torch.zeros(5, 2))), "at least two samples of each set"),
        (lambda: summarize(IMAGES, keep=0), "got keep=0"),
        (lambda: Features(lambda x: x), r"without a name; expected name=\.\."),
        (
            lambda: Features(lambda x: {"pool": x}, "a")(torch.zeros(2, 2)),
            "returned pool; expected features",
        ),
        (lambda: Features(lambda x: x[:1], "a")(torch.zeros(2, 2)), r"returned features: \(1, 2\); expected \(2, \.\.\)"),
        (lambda: Features(lambda x: x / 0, "a")(torch.zeros(2, 2)), "that are not all finite"),
        (lambda: precision_recall(torch.zeros(3, 2), torch.zeros(9, 2)), "at least 4 rows each"),
        (lambda: precision_recall(torch.zeros(3, 2), torch.zeros(9, 2), 0), "got neighbours=0"),
        (lambda: evaluation.kernel_inception_distance(torch.zeros(3, 2), torch.zeros(3, 1), generator=rng()), "expected"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# Extractors ----------------------------------------------------------------------------------------------------------


def test_an_extractor_is_found_by_its_name_in_a_file_or_a_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom scoresde.evaluation import Features\n"
        "linear = torch.nn.Linear(3, 2)\ndef make():\n    return Features(lambda x: x + 1, 'plus')\nnumber = 3\n"
    )
    assert evaluation.find_features(f"{file}:make")(torch.zeros(1, 2))["features"].tolist() == [[1, 1]]
    assert evaluation.find_features(f"{file}:linear").name.startswith("Linear ")
    assert evaluation.find_features("torch.nn:Identity").name.startswith("Identity ")
    for where, sentence in (
        (f"{file}:number", "is int; expected a Features, a module, or a function"),
        (f"{file}:absent", "is NoneType"),
        ("absent.py:x", r"found no file 'absent\.py'"),
        ("absent_module:x", "cannot import 'absent_module'"),
        ("x", "package.module:name or file.py:name"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluation.find_features(where)


class PublishedNetwork(torch.nn.Module):
    """What torch-fidelity's network is from outside: bytes of three channels in, and the values of a list out."""

    def __init__(self, name, features_list, weights):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.load_state_dict(torch.load(weights, weights_only=True), strict=False)

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return x.flatten(1).float(), -x.flatten(1)[:, :4].float()


def test_inception_is_given_colours_from_0_to_255_and_weights_that_are_only_tensors(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "weights.pth")
    torch.save({"code": Features}, tmp_path / "code.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"needs torch-fidelity, and .* is missing: pip install torch-fidelity"):
        evaluation.inception(tmp_path / "weights.pth")
    module = types.SimpleNamespace(FeatureExtractorInceptionV3=PublishedNetwork)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    found = evaluation.find_features(f"inception:{tmp_path / 'weights.pth'}")
    values = found(torch.tensor([-1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 2, 2))
    assert values["features"].tolist() == [[0, 128, 255, 255] * 3]
    assert values["logits"].tolist() == [[0, -128, -255, -255]]
    with pytest.raises(ValueError, match=r"code\.pth' does not hold the weights of Inception"):
        evaluation.inception(tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"found no file .*absent\.pth"):
        evaluation.inception(tmp_path / "absent.pth")


def test_modules_are_told_apart_by_their_weights():
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert Features(one).name == Features(one).name != Features(two).name


# Real data -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet(shared_data):
    return LeNet(shared_data / "lenet-mnist" / "lenet_mnist.safetensors")


def some(source, n, split="test"):
    found = data.open(source, split=split)
    return Arrays(found.x[:n], found.labels[:n])


def test_the_network_of_the_tests_reads_digits(shared_data, lenet):
    digits = some(f"mnist:{shared_data / 'mnist'}", 1000)
    assert (lenet(digits.tensor())["logits"].argmax(1) == digits.labels).double().mean() > 0.95


def test_digits_are_near_other_digits_and_far_from_clothes(shared_data, lenet):
    digits, clothes = f"mnist:{shared_data / 'mnist'}", f"fashion-mnist:{shared_data / 'fashion-mnist'}"
    against, other = some(digits, 600), some(digits, 600, "train")
    scores = evaluate(some(clothes, 600), against, lenet, floor=other)
    floor = scores.floor
    assert scores.frechet > 20 * floor.frechet and scores.spatial_frechet > 20 * floor.spatial_frechet
    assert scores.kernel > 20 * abs(floor.kernel) and abs(floor.kernel) < 4 * floor.kernel_deviation
    assert floor.precision > 0.8 > scores.precision and floor.recall > 0.8 > scores.recall
    assert scores.sliced_wasserstein > 5 * floor.sliced_wasserstein
    assert 8 < floor.inception_score < 10 > 2 * scores.inception_score
    # With more noise the distance grows.
    x = other.tensor()
    noisy = [Arrays((x + s * draw(0, *x.shape, dtype=x.dtype)).clamp(-1, 1)) for s in (0.1, 0.3, 0.6)]
    real = summarize(against, Features(lenet)).moments["features"]
    distances = [floor.frechet, *(frechet(summarize(z, Features(lenet)).moments["features"], real) for z in noisy)]
    assert distances == sorted(distances) and math.isfinite(distances[-1])
