"""What networks are told beside the sample: labels in any form that holds whole numbers, and times without rounding."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.base.shape import check_batch
from scoresde.models import MLP, DiT, NCSNv2, UNet
from scoresde.models.embedding import TIME_FEATURES
from scoresde.models.labels import LabelTable

CLASSES = 5
NETWORKS = {
    "MLP": (partial(MLP, 64, hidden=(16,), num_classes=CLASSES), (64,)),
    "UNet": (partial(UNet, 1, 8, (1, 2), blocks=1, num_classes=CLASSES), (1, 8, 8)),
    "lean UNet": (partial(UNet, 1, 8, (1, 2), blocks=1, lean=True, num_classes=CLASSES), (1, 8, 8)),
    "early label": (partial(UNet, 1, 8, (1, 2), blocks=1, num_classes=CLASSES, early_label=True), (1, 8, 8)),
    "DiT": (partial(DiT, 1, 8, width=16, depth=1, heads=2, num_classes=CLASSES), (1, 8, 8)),
}
INTEGERS = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")


def built(name, **changes):
    """A network whose silent layers speak, and samples and times for three of its samples."""
    make, event = NETWORKS[name]
    net = make(**changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(3, *event, generator=torch.Generator().manual_seed(2))
    return net, x, torch.tensor([0.1, 0.5, 0.9])


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_the_same_in_every_form_that_holds_whole_numbers(name):
    net, x, t = built(name)
    labels = [4, 0, 2]
    expected = net(x, t, label=torch.tensor(labels))
    assert not torch.equal(expected, net(x, t, label=torch.tensor([4, 0, 1])))
    forms = [labels, tuple(labels), np.array(labels), [np.int64(n) for n in labels], [torch.tensor(n) for n in labels]]
    forms += [np.array(labels, dtype) for dtype in INTEGERS]
    forms += [torch.tensor(labels).to(getattr(torch, dtype)) for dtype in INTEGERS]
    for label in forms:
        assert torch.equal(net(x, t, label=label), expected), label
    for one in (3, np.int16(3), np.array(3), torch.tensor(3)):
        assert torch.equal(net(x, t, label=one), net(x, t, label=[3, 3, 3]))


WRONG = {
    "past the last": (torch.tensor([0, 6, 1]), "label 6 .* 5 classes; expected labels from 0 to 4, or 5 for no label"),
    "negative": ([0, -1, 1], "label -1 "),
    "huge": ([0, 2**70, 1], "label=.*expected label"),
    "huge, unsigned": (np.array([0, 2**64 - 1, 0], dtype=np.uint64), "label -1 "),
    "too few": ([0, 1], r"labels of shape \(2,\).*expected integers of shape \(3,\)"),
    "too many": (torch.zeros(4, dtype=torch.int32), r"labels of shape \(4,\)"),
    "of one column": (np.zeros((3, 1), dtype=np.int64), r"labels of shape \(3, 1\)"),
    "fractions": ([0.0, 1.0, 2.0], "labels of dtype torch.float32; expected integers"),
    "truths": (torch.tensor([True, False, True]), "labels of dtype torch.bool"),
    "names": (["cat", "dog", "cat"], "label=.*expected label=.. to be 3 integers"),
    "ragged": ([[1], [1, 2], [0]], "expected label=.. to be 3 integers"),
    "an object": (object(), "expected label=.. to be 3 integers"),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_label_is_a_sentence_that_names_it(name, wrong):
    net, x, t = built(name)
    label, sentence = WRONG[wrong]
    with pytest.raises(ValueError, match=sentence):
        net(x, t, label=label)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_label_is_refused_or_stands_for_no_label(name):
    net, x, t = built(name)
    assert torch.equal(net(x, t), net(x, t, label=CLASSES))
    net, x, t = built(name, unconditional=False)
    with pytest.raises(ValueError, match=r"got no label for a network that needs one; pass label=.., integers from 0 to 4"):
        net(x, t)
    with pytest.raises(ValueError, match=r"label 5 for a network of 5 classes; expected labels from 0 to 4$"):
        net(x, t, label=5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "early label"])
def test_a_label_for_a_network_without_classes_is_refused(name):
    net, x, t = built(name, num_classes=None)
    with pytest.raises(ValueError, match="without classes"):
        net(x, t, label=0)


def test_ncsnv2_has_no_labels():
    net = NCSNv2(1, 8, ((1, 1), (2, 1)))
    with pytest.raises(ValueError, match="without classes"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2), label=1)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.booleans())
def test_labels_are_looked_up_or_named(labels, unconditional):
    table = LabelTable(3, 2, unconditional=unconditional)
    bad = [n for n in labels if not 0 <= n < len(table.weight)]
    if bad:
        with pytest.raises(ValueError, match=f"got label {bad[0]} for"):
            table(labels, torch.zeros(len(labels)))
    else:
        assert torch.equal(table(labels, torch.zeros(len(labels))), table.weight[torch.tensor(labels)])


def test_labels_compile_without_a_break():
    table = LabelTable(3, 2)
    compiled = torch.compile(table, backend="eager", fullgraph=True)
    label, t = torch.tensor([2, 0]), torch.zeros(2)
    assert torch.equal(compiled(label, t), table(label, t))


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("time", TIME_FEATURES)
@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_half_networks_see_the_times_of_whole_ones(name, time, dtype):
    # 999 and 777 are 1000 and 776 in bfloat16; a frequency rounded to it turns by radians at such times.
    net, x, _ = built(name, time=time)
    t = torch.tensor([999.0, 998.0, 777.0])
    exact = net.embedding.features(t)
    half = net.to(dtype)
    found = half.embedding.features(t)
    assert found.dtype == torch.float32 and torch.equal(found, exact)
    assert half(x.to(dtype), t).dtype == dtype
    assert not torch.equal(half.embedding(t)[0], half.embedding(t)[1])  # 999 and 998


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_networks_are_whole_ones_to_their_rounding(name, dtype):
    net, x, t = built(name, time_scale=1 / 999)
    label = torch.tensor([1, 4, 0])
    with torch.no_grad():
        exact = net(x, t, label=label)
        found = net.to(dtype)(x.to(dtype), t, label=label).float()
        early = net(x.to(dtype), t.to(dtype), label=label).float()
    scale, eps = exact.std(), torch.finfo(dtype).eps
    assert (found - exact).abs().max() < 30 * eps * scale
    assert dtype == torch.float16 or (early - exact).abs().max() > 2 * (found - exact).abs().max()


@pytest.mark.parametrize("time", TIME_FEATURES)
def test_frequencies_survive_every_move_of_a_network(time):
    net, x, t = built("UNet", time=time)
    first = net.embedding.features.frequencies.clone()
    for move in (torch.nn.Module.half, torch.nn.Module.float, torch.nn.Module.bfloat16, torch.nn.Module.double):
        move(net)
        assert torch.equal(net.embedding.features.frequencies.float(), first)
    assert net(x.double(), t.double()).dtype == net(x.double(), t).dtype == torch.float64
    assert net.to("meta").embedding.features.frequencies.is_meta


# Samples of bytes ----------------------------------------------------------------------------------------------------


def test_bytes_are_told_how_to_become_images():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    with pytest.raises(ValueError, match="uint8") as error:
        check_batch(x)
    remedy = str(error.value).rpartition("use ")[2]
    assert remedy == "x / 127.5 - 1"
    images = eval(remedy, {"x": x})
    assert images.min() == -1 and images.max() == 1
    with pytest.raises(ValueError, match=r"use x\.float\(\)"):
        check_batch(torch.zeros(1, 2, dtype=torch.int64))
