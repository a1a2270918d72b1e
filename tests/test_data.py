"""Reading data: what is written comes back, scaled and in the right order; what cannot be read is refused."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scoresde.data import load_digits, load_tensor, split

IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz(compress=False, **entries):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **entries)
    return buffer.getvalue()


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, IDX_TYPES[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")

    def write(content):
        path = folder / "file"
        path.write_bytes(content)
        return path

    return write


BYTES = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
CONTAINERS = {
    "npy": npy,
    "npz": lambda a: npz(x=a, labels=np.arange(len(a))),
    "npz of one": lambda a: npz(compress=True, images=a),
    "idx": idx,
    "gz": lambda a: gzip.compress(idx(a), mtime=0),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_bytes_come_back_as_images_between_minus_one_and_one(container, write):
    x = load_tensor(write(container(BYTES)))
    assert x.shape == (3, 1, 5, 4) and x.dtype == torch.float32
    assert np.array_equal(np.rint((x[:, 0].numpy() + 1) * 127.5), BYTES)
    ends = load_tensor(write(container(np.array([[[0, 255]]], dtype=np.uint8))))
    assert ends.flatten().tolist() == [-1, 1]


@given(st.data(), st.sampled_from(["u1", "f4", "f8"]), arrays.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5))
def test_all_formats_agree(write, data, dtype, shape):
    values = {"min_value": -1, "max_value": 1} if dtype != "u1" else {}
    array = data.draw(arrays.arrays(np.dtype(dtype), shape, elements=values or None))
    expected = load_tensor(write(npy(array)))
    assert len(expected) == len(array) and expected.numel() == array.size
    for container in CONTAINERS.values():
        assert torch.equal(load_tensor(write(container(array))), expected)


def test_vectors_of_floats_are_taken_as_they_are(write):
    array = 100 * np.random.default_rng(0).standard_normal((6, 3))
    for stored in (array, np.asfortranarray(array), array.astype(">f8")):
        assert torch.equal(load_tensor(write(npy(stored))), torch.from_numpy(array).float())


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((2, 8, 8, 3), True),
        ((2, 8, 9, 1), True),
        ((2, 8, 8, 4), True),
        ((2, 3, 8, 8), False),
        ((2, 1, 3, 3), False),
        ((2, 16, 8, 8), False),
    ],
)
def test_channels_that_stand_last_are_moved_forward(write, shape, moved):
    array = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    expected = np.moveaxis(array, 3, 1) if moved else array
    assert np.array_equal(load_tensor(write(npy(array))).numpy(), expected)


def test_digits():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert labels.unique().tolist() == list(range(10))
    assert torch.equal(load_tensor("digits"), images)
    # Right way up: the first is a zero, dark in its middle and bright around it.
    assert images[0, 0, 3:5, 3:5].mean() < -0.9 < images[0, 0, 3:5, 2].mean()


def test_real_files_of_mnist(shared_data):
    x = load_tensor(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert x.shape == (10_000, 1, 28, 28)
    assert (x.min(), x.max()) == (-1, 1)
    assert (x == -1).float().mean() > 0.75  # paper is most of a page


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_split_is_a_partition_that_depends_on_its_arguments_alone(n, held_out, seed):
    training, rest = split(n, held_out, seed)
    assert sorted(training.tolist() + rest.tolist()) == list(range(n))
    assert 1 <= len(rest) < n
    assert abs(len(rest) - held_out * n) <= 1
    torch.rand(1)  # whatever the global generator does
    again = split(n, held_out, seed)
    assert torch.equal(training, again[0]) and torch.equal(rest, again[1])


def test_splits_of_other_seeds_differ():
    assert len({tuple(split(100, seed=seed)[1].tolist()) for seed in range(5)}) == 5
    assert not torch.equal(split(100)[1], torch.arange(80, 100))


@pytest.mark.parametrize("arguments", [(1,), (10, 0.0), (10, 1.0), (2.5,)])
def test_split_refuses_what_it_cannot_split(arguments):
    with pytest.raises(ValueError, match="expected at least 2 samples and a fraction between 0 and 1"):
        split(*arguments)


class Trap:
    """Fails the test where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


OBJECTS = np.empty(2, dtype=object)
OBJECTS[:] = [Trap(), Trap()]
FLOATS = np.zeros((4, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (npy(FLOATS)[:-1], "cannot read .*, which may be truncated"),
        (npy(FLOATS)[:20], "cannot read .*, which may be truncated"),
        (npz(x=FLOATS)[:-30], "cannot read .*, which may be truncated"),
        (idx(BYTES)[:-1], "got 75 bytes; the IDX header announces 76"),
        (idx(BYTES) + b"\0", "got 77 bytes; the IDX header announces 76"),
        (idx(BYTES)[:9], "announces 3 dimensions and ends before their sizes"),
        (b"\0\0\x07\x01\0\0\0\x01\0", "it does not start with the header of an IDX file"),
        (gzip.compress(idx(BYTES), mtime=0)[:-9], "cannot read .*, which may be truncated"),
        (gzip.compress(idx(BYTES), mtime=0)[:12] + b"\xff" * 20, "cannot read .*, which may be truncated"),
        (npy(OBJECTS, allow_pickle=True), "holds Python objects, which are never unpickled"),
        (npz(x=OBJECTS), "holds Python objects, which are never unpickled"),
        (pickle.dumps(FLOATS), "is of an unknown kind"),
        (b"", "is of an unknown kind"),
        (b"\x89PNG\r\n", "is of an unknown kind"),
        (npz(a=FLOATS, b=FLOATS), "got the arrays 'a', 'b'; expected samples called 'x' and"),
        (npz(), "is of an unknown kind|got the arrays none"),
        (npy(np.where(np.eye(4, 3) > 0, np.nan, FLOATS)), "has 3 of 12 values that are not finite"),
        (npy(np.full((2, 2), 1e300)), "has 4 of 4 values that are not finite in float32"),
        (npy(np.zeros((4, 3), dtype=np.int64)), "has an array of int64; expected bytes"),
        (npy(np.zeros((4, 3), dtype=complex)), "has an array of complex128; expected bytes"),
        (npy(np.full((2, 8, 8), 255.0)), r"has images with values from 255 to 255; expected floats in \[-1, 1\]"),
        (npy(np.zeros(5)), r"has an array of shape \(5,\); expected vectors"),
        (npy(np.zeros((0, 5))), "at least one"),
        (npy(np.zeros((2, 3, 4, 5, 6))), r"has an array of shape \(2, 3, 4, 5, 6\); expected vectors"),
    ],
)
def test_what_cannot_be_read_is_refused(write, content, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_tensor(write(content))
    assert "file" in str(caught.value)  # the message names the file


def test_unknown_names_list_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"got data 'digit'; expected one of digits, or a file.* did you mean 'digits'"):
        load_tensor("digit")
    with pytest.raises(ValueError, match=r"got data '.*absent.npy'; .* a folder that exists, or with a colon mnist:F"):
        load_tensor(tmp_path / "absent.npy")
    with pytest.raises(ValueError, match=r"found no images in the folder .* it is empty"):
        load_tensor(tmp_path)
