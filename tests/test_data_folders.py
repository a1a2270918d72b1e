"""Folders as people have them: linked, in parts, with classes that are numbers, videos, and names that are no text."""

import os
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scoresde import data
from scoresde.data.classes import natural, numbered
from scoresde.data.parts import is_part

RNG = np.random.default_rng(0)


def image(path, size=(4, 4)):
    """One image of noise at ``path``, and its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


def files(found):
    return [name.removeprefix(f"{found.where}/") for name in map(found.sources.name, found._numbers)]


# Classes -------------------------------------------------------------------------------------------------------------


def test_classes_are_counted_as_people_count(tmp_path):
    for name in ("10", "2", "0", "1", "11"):
        image(tmp_path / name / "a.png")
    found = data.open(tmp_path)
    assert found.classes == ("0", "1", "2", "10", "11") and found.num_classes == 5
    assert {name.split("/")[0]: int(k) for name, k in zip(files(found), found.labels, strict=True)} == {
        name: k for k, name in enumerate(found.classes)
    }
    assert data.open(tmp_path, flips=True).classes == found.classes
    assert data.open(tmp_path / "0").classes is None and data.open(tmp_path / "0").num_classes == 0


@given(st.lists(st.integers(0, 10**30), min_size=1, unique=True))
def test_natural_order_is_that_of_numbers(numbers):
    assert sorted(map(str, numbers), key=natural) == [str(n) for n in sorted(numbers)]
    assert sorted((f"run{n:03}x" for n in numbers), key=natural) == [f"run{n:03}x" for n in sorted(numbers)]


@given(st.lists(st.text(), min_size=1, max_size=6), st.lists(st.text(), max_size=3))
def test_natural_order_is_an_order_of_all_names(values, among):
    labels, classes = numbered(values, among)
    assert [classes[k] for k in labels] == values and len(set(classes)) == len(classes) and set(among) <= set(classes)
    assert list(classes) == sorted(reversed(classes), key=natural)


@pytest.mark.parametrize(
    ("labels", "classes", "sentence"),
    [
        ([0, 3], ("a", "b"), "label 3 and 2 names of classes"),
        ([0, -1], None, "label -1; expected whole numbers from 0"),
        ([0.0, 1.0], None, "labels of dtype torch.float32"),
        ([True, False], None, "labels of dtype torch.bool"),
        ([0], None, r"labels of shape \(1,\) for 2 samples"),
        (["a", "b"], ("a", "b"), "not an array of whole numbers"),
    ],
)
def test_labels_that_are_none_are_refused(labels, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.Arrays(torch.zeros(2, 3), labels, classes)


@pytest.mark.parametrize(
    "labels", [[1, 0], (1, 0), np.array([1, 0], np.uint8), np.array([1, 0], np.uint64), torch.tensor([1, 0]).int()]
)
def test_labels_of_any_integer_type_are_kept_as_int64(labels):
    found = data.Arrays(torch.zeros(2, 3), labels)
    assert found.labels.dtype == torch.int64 and found.labels.tolist() == [1, 0] and found.num_classes == 2


# Parts ---------------------------------------------------------------------------------------------------------------


def test_train_and_val_are_parts_and_not_classes(tmp_path):
    for name in ("train/owl/a.png", "train/cat/a.png", "train/dog/a.png", "val/owl/a.png", "val/cat/a.png"):
        image(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"has the parts train, val; expected the name of one: pass split='train', or .*:train"
    ):
        data.open(tmp_path)
    for train in (data.open(tmp_path, split="train"), data.open(f"{tmp_path}:train"), data.open(tmp_path, split="TRAIN")):
        assert train.classes == ("cat", "dog", "owl") and files(train) == [f"train/{c}/a.png" for c in train.classes]
        assert train.labels.tolist() == [0, 1, 2]
    val = data.open(f"{tmp_path}:val")
    assert val.classes == train.classes and val.labels.tolist() == [0, 2]  # a class that it lacks shifts no number
    with pytest.raises(ValueError, match=r"got split='test' for .*, whose parts are train, val"):
        data.open(tmp_path, split="test")


def test_a_single_part_is_opened_and_its_sub_folders_are_the_classes(tmp_path):
    image(tmp_path / "train" / "cat" / "a.png")
    image(tmp_path / "train" / "dog" / "a.png")
    assert data.open(tmp_path).classes == ("cat", "dog")


def test_parts_without_classes(tmp_path):
    image(tmp_path / "Train" / "a.png")
    image(tmp_path / "Validation" / "a.png")
    image(tmp_path / "Validation" / "b.png")
    assert len(data.open(tmp_path, split="train")) == 1 and len(data.open(f"{tmp_path}:validation")) == 2
    assert data.open(tmp_path, split="train").labels is None


def test_a_class_called_train_beside_others_is_a_class(tmp_path):
    image(tmp_path / "train" / "a.png")
    image(tmp_path / "bus" / "a.png")
    assert data.open(tmp_path).classes == ("bus", "train")
    with pytest.raises(ValueError, match=r"got split='train' for .*, which has no parts"):
        data.open(tmp_path, split="train")


def test_tables_have_parts_by_their_names_and_folders(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    for layout in ("flat", "data"):
        folder = tmp_path / layout / ("data" if layout == "data" else "")
        folder.mkdir(parents=True)
        for k, name in enumerate(names):
            pq.write_table(pa.table({"a": [float(k)] * (k + 1)}), folder / f"{name}.parquet")
        with pytest.raises(ValueError, match="has the parts test, train"):
            data.open(tmp_path / layout)
        assert data.load_tensor(f"{tmp_path / layout}:test").flatten().tolist() == [2, 2, 2]
        assert data.open(tmp_path / layout, split="train").tensor().flatten().tolist() == [0, 1, 1]


def test_published_sets_and_files_take_a_part_after_a_colon(tmp_path):
    with pytest.raises(ValueError, match="found no t10k-images"):
        data.open(f"mnist:{tmp_path}:test")
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"got split='train' for .*a.npy', which has no parts"):
        data.open(f"{tmp_path / 'a.npy'}:train")
    assert is_part("val") and not is_part("values")


# Links ---------------------------------------------------------------------------------------------------------------


def test_linked_files_and_folders_are_followed(tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    kept = [image(elsewhere / "cats" / f"{k}.png") for k in range(3)]
    image(here / "dogs" / "0.png")
    (here / "cats").symlink_to(elsewhere / "cats")
    (here / "dogs" / "1.png").symlink_to(elsewhere / "cats" / "0.png")
    found = data.open(here)
    assert files(found) == ["cats/0.png", "cats/1.png", "cats/2.png", "dogs/0.png", "dogs/1.png"]
    assert found.classes == ("cats", "dogs")
    pixels = ((found.tensor() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels[:3], kept) and np.array_equal(pixels[4], kept[0])


@pytest.mark.parametrize("target", ["..", "."])
def test_links_that_go_round_are_refused(tmp_path, target):
    image(tmp_path / "cats" / "0.png")
    (tmp_path / "cats" / "again").symlink_to(target)
    with pytest.raises(ValueError, match=r"the link .*again.* leads back to a folder that it lies in.*remove the link"):
        data.open(tmp_path)


def test_links_that_multiply_are_refused(tmp_path):
    image(tmp_path / "f0" / "0.png")
    for k in range(1, 40):  # 2^39 ways to one image
        (tmp_path / f"f{k}").mkdir()
        for way in "ab":
            (tmp_path / f"f{k}" / way).symlink_to(tmp_path / f"f{k - 1}")
    with pytest.raises(ValueError, match="more than 8 links lead to"):
        data.open(tmp_path / "f39")


def test_a_broken_link_and_a_link_to_itself_are_named(tmp_path):
    image(tmp_path / "0.png")
    for name, target in (("1.png", "nowhere.png"), ("2.png", "2.png")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            data.open(tmp_path)
        with pytest.warns(UserWarning, match="left out 1 files"):
            assert len(data.open(tmp_path, unreadable="skip")) == 1
        (tmp_path / name).unlink()


# What is no image ----------------------------------------------------------------------------------------------------


def test_a_folder_called_like_an_image_is_a_folder(tmp_path):
    image(tmp_path / "c.png" / "a.png")
    image(tmp_path / "d.png" / "a.png")
    assert data.open(tmp_path).classes == ("c.png", "d.png")


@pytest.mark.parametrize("name", ["a.mp4", "a.MOV", "a.mpg", "a.webm"])
def test_videos_are_named_and_not_left_out_in_silence(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(ValueError, match=f"cannot read .*{name}.*it is a video; save its frames"):
        data.open(tmp_path)
    with pytest.raises(ValueError, match=r"is a video|of an unknown kind|cannot read"):
        data.open(tmp_path / name)
    image(tmp_path / "b.png")
    with pytest.raises(ValueError, match=f"{name}.*it is a video"):
        data.open(tmp_path)
    with pytest.warns(UserWarning, match="left out 1 files"):
        assert len(data.open(tmp_path, unreadable="skip")) == 1


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tiff", ".webp"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"cannot read .*a\..*several images, such as the frames of an animation"):
        data.open(tmp_path)


def test_names_that_are_no_text_are_told_by_their_bytes(tmp_path):
    image(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("a file system whose names are text")
    with pytest.raises(ValueError, match=r"not text in UTF-8: b'\\xff.png'; rename it") as error:
        data.open(tmp_path)
    str(error.value).encode()


def refused(call):
    """What a process of its own says of ``call``, which must not wait."""
    programme = f"from scoresde import data\ntry:\n    data.{call}\nexcept ValueError as error:\n    print(error)"
    return subprocess.run([sys.executable, "-c", programme], capture_output=True, text=True, timeout=60, check=True).stdout


def test_pipes_sockets_and_devices_are_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "a.png' is a pipe; expected a file" in refused(f"open({str(tmp_path)!r})")
    assert "a.png' is a pipe; expected a file" in refused(f"open({str(tmp_path / 'a.png')!r})")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image(tmp_path / "b.png")
        assert len(data.open(tmp_path, unreadable="skip")) == 1
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t.parquet' is a pipe"):
        data.open(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="'/dev/zero' is a device; expected a file"):
        data.open("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.npy"))
        with pytest.raises(ValueError, match=r"s.npy' is a socket"):
            data.open(tmp_path / "s.npy")


# Paths in tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["absolute", "up", "linked"])
def test_a_path_in_a_cell_stays_inside_the_folder(tmp_path, way):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "set"
    image(folder / "inside" / "a.png")
    image(tmp_path / "secret.png")
    (folder / "link").symlink_to(tmp_path)
    path = {"absolute": str(tmp_path / "secret.png"), "up": "inside/../../secret.png", "linked": "link/secret.png"}[way]
    (folder / "tables").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, place in (("good", "inside/a.png"), ("bad", path)):
        table = pa.table({"image": pa.array([{"bytes": None, "path": place}], kind)})
        pq.write_table(table, folder / "tables" / f"{name}.parquet")
    (folder / "tables" / "good.parquet").rename(folder / "good.parquet")
    assert data.open(folder / "good.parquet").event == (3, 4, 4)
    (folder / "tables" / "bad.parquet").rename(folder / "bad.parquet")
    with pytest.raises(ValueError, match="leads out of the folder"):
        data.open(folder / "bad.parquet")


# Limits --------------------------------------------------------------------------------------------------------------


def test_an_image_that_unpacks_to_too_much_is_refused_until_it_is_allowed(tmp_path):
    most = Image.MAX_IMAGE_PIXELS
    for side in (17_000, 20_000):  # below and above what Pillow takes for an attack
        size = side**2
        Image.new("L", (side, side)).save(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size < 10**6
        with pytest.raises(ValueError, match=rf"(a.png.* {size} bytes .* limit=\d+ \(--limit|{size} pixels.*--limit)"):
            data.open(tmp_path)
        assert data.open(tmp_path, limit=size).event == (1, side, side)
        assert most == Image.MAX_IMAGE_PIXELS
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1600 bytes when decoded"):
        data.open(tmp_path, limit=1599)
    assert data.open(tmp_path, limit=1600).event == (1, 40, 40)


@pytest.mark.parametrize("kind", ["npz", "gz", "parquet"])
def test_an_archive_that_unpacks_to_too_much_is_refused_until_it_is_allowed(tmp_path, kind):
    x = np.zeros((1000, 100), np.float32)
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, x=x)
    elif kind == "gz":
        import gzip

        with gzip.open(path, "wb") as file:
            np.save(file, x)
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), path)
    size = 2 * 1000 * 4 if kind == "parquet" else x.nbytes + 128
    assert path.stat().st_size < 5000
    with pytest.raises(ValueError, match=f"unpacks to more than {size - 1} bytes.*limit="):
        data.open(path, limit=size - 1)
    assert len(data.open(path, limit=size + 500)) == 1000  # Arrow notes what is missing beside the values
