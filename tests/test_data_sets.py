"""Sets of data: samples by their number from folders, tables and published files; what is unusable is named and refused."""

import gzip
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scoresde import data
from scoresde.training.batches import Batches

RNG = np.random.default_rng(0)


def pixels(n, height=6, width=5, channels=3):
    return RNG.integers(0, 256, (n, height, width, channels), dtype=np.uint8).squeeze(-1 if channels == 1 else ())


def save_all(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}{suffix}")
    return folder


def as_bytes(x):
    """Samples in [-1, 1] as the bytes (n, h, w, c) they came from."""
    return np.rint((x.numpy() + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


IMAGES = pixels(7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images of two classes: cats 0..3 and dogs 4..6."""
    root = tmp_path_factory.mktemp("animals")
    save_all(root / "cats", IMAGES[:4])
    save_all(root / "dogs", IMAGES[4:])
    return root


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_in_the_order_of_their_names_with_sub_folders_for_classes(folder):
    (folder / "notes.txt").write_text("not an image")
    (folder / "cats" / ".hidden.png").write_text("not an image")
    found = data.open(folder)
    assert (len(found), found.event, found.classes) == (7, (3, 6, 5), ("cats", "dogs"))
    assert found.labels.tolist() == [0] * 4 + [1] * 3
    assert np.array_equal(as_bytes(found.tensor()), IMAGES)
    assert torch.equal(data.load_tensor(folder), found.tensor())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.sampled_from([0, 100, 2**28]))
def test_samples_are_those_of_the_numbers_whatever_is_cached(folder, indices, cache):
    found = data.open(folder, cache=cache)
    for _ in range(2):
        x, conditions = found.batch(indices)
        assert np.array_equal(as_bytes(x), IMAGES[indices])
        assert torch.equal(conditions["label"], found.labels[indices])
    assert sum(x.numel() for x in found._kept.values()) <= cache


def test_images_at_the_top_of_a_folder_have_no_labels(tmp_path):
    save_all(tmp_path, IMAGES[:2])
    save_all(tmp_path / "more", IMAGES[2:4])
    assert data.open(tmp_path).labels is None
    assert data.open(tmp_path).batch([0])[1] == {}


def test_grey_stays_grey_and_mixed_sets_are_coloured(tmp_path):
    grey = pixels(2, channels=1)
    save_all(tmp_path, grey)
    assert np.array_equal(as_bytes(data.load_tensor(tmp_path))[..., 0], grey)
    Image.fromarray(IMAGES[0]).save(tmp_path / "z.png")
    mixed = as_bytes(data.load_tensor(tmp_path))
    assert np.array_equal(mixed[:2], np.repeat(grey[..., None], 3, 3)) and np.array_equal(mixed[2], IMAGES[0])


def test_transparent_pixels_are_white(tmp_path):
    image = np.concatenate([IMAGES[0], np.full((6, 5, 1), 255, np.uint8)], -1)
    image[:3, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    found = as_bytes(data.load_tensor(tmp_path))[0]
    assert (found[:3] == 255).all() and np.array_equal(found[3:], IMAGES[0][3:])


def test_photographs_on_their_side_are_turned(tmp_path):
    left = np.zeros((16, 32, 3), np.uint8)
    left[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn to the right
    Image.fromarray(left).save(tmp_path / "a.jpg", exif=exif, quality=100)
    x = data.load_tensor(tmp_path)[0]
    assert x.shape == (3, 32, 16) and x[:, :15].min() > 0.9 and x[:, 17:].max() < -0.9


def test_crop_takes_the_middle_and_stretch_takes_all(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8, 0], wide[:, 8:16, 1], wide[:, 16:, 2] = 255, 255, 255  # red, green, blue
    save_all(tmp_path, [wide])
    cropped = data.open(tmp_path, size=8).samples([0])[0]
    assert cropped.shape == (3, 8, 8) and cropped[1].min() > 0.99 and cropped[[0, 2]].max() < -0.99
    stretched = data.open(tmp_path, size=(6, 6), fit="stretch").samples([0])[0]
    assert (stretched.argmax(0) == torch.tensor([0, 0, 1, 1, 2, 2])).all()


def test_flips_append_the_mirror_images(folder):
    plain, found = data.open(folder), data.open(folder, flips=True)
    x = found.samples([0, 7, 3, 10])
    assert len(found) == 14 and torch.equal(x[0::2].flip(-1), x[1::2]) and not torch.equal(x[0], x[1])
    assert torch.equal(found.labels, torch.cat([plain.labels] * 2))
    assert found.fingerprint() != plain.fingerprint()
    with pytest.raises(ValueError, match=r"got samples of shape \(2,\) to flip; expected images"):
        data.Flipped(data.Arrays(torch.zeros(3, 2)))


def test_a_fingerprint_tells_sets_apart_and_a_digest_tells_contents_apart(tmp_path, folder):
    assert data.open(folder).fingerprint() == data.open(folder).fingerprint()
    assert data.open(folder).fingerprint() != data.open(folder, size=4).fingerprint()
    again = data.Arrays(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    assert again.digest() == data.open(folder).digest()
    changed = data.Arrays(again.x.clone())
    changed.x[3, 0, 0, 0] ^= 1
    assert changed.digest() != again.digest() and changed.fingerprint() != again.fingerprint()


# What is unusable ----------------------------------------------------------------------------------------------------


def test_unreadable_files_are_named_and_fatal_or_left_out_by_choice(tmp_path):
    for name, images in {"a": IMAGES[:3], "b": IMAGES[3:]}.items():
        save_all(tmp_path / name, images)
    whole = (tmp_path / "a" / "001.png").read_bytes()
    (tmp_path / "a" / "001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "000.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read .*b/000\.png': it is not an image, .*unreadable='skip'"):
        data.open(tmp_path)
    with pytest.warns(UserWarning, match=r"left out 2 files that cannot be read: .*a/001\.png', .*b/000\.png'"):
        found = data.open(tmp_path, unreadable="skip")
    assert [name[-9:] for name in found.skipped] == ["a/001.png", "b/000.png"]
    assert np.array_equal(as_bytes(found.tensor()), IMAGES[[0, 2, 4, 5, 6]])
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    (tmp_path / "b" / "000.png").unlink()
    truncated = data.open(tmp_path)  # the header is whole
    for read in (truncated.tensor, lambda: list(data.batches(truncated, [[0], [1]], workers=1))):
        with pytest.raises(ValueError, match=r"^cannot read .*a/001\.png'"):
            read()


def refused(folder, sentence, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what was left out, before nothing was left
        with pytest.raises(ValueError, match=sentence):
            data.open(folder, **options)


def test_folders_that_cannot_be_trained_on_are_refused_with_the_remedy(tmp_path):
    refused(save_all(tmp_path / "empty", []), "found no images .* it is empty; expected .png")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    refused(tmp_path / "text", r"it holds 'a\.txt'")
    mixed = save_all(tmp_path / "mixed", [*IMAGES[:3], pixels(1, 9, 8)[0]])
    refused(mixed, r"3 of 6x5, such as .*000\.png'; 1 of 9x8, such as .*003\.png'; .* pass size=5 \(--size 5\)")
    assert data.open(mixed, size=5).tensor().shape == (4, 3, 5, 5)
    refused(mixed, r"3 images are smaller than 8x8: .*000\.png'.* pass size=5", size=8)
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(RNG.integers(0, 65535, (4, 4), dtype=np.uint16)).save(deep / "a.png")
    refused(deep, r"a\.png' have pixels of more than 8 bits")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    refused(broken, "found no readable image", unreadable="skip")
    refused(mixed, "expected 'crop' or 'stretch', and 'raise' or 'skip'", fit="pad")
    refused(mixed, "expected a positive whole number", size=0)
    refused(mixed, "which has no parts", split="test")


def test_arrays_are_not_scaled(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    assert data.open(tmp_path / "a.npy", size=(6, 5)).event == (3, 6, 5)
    refused(tmp_path / "a.npy", r"got size=4 for samples of shape \(3, 6, 5\)", size=4)


def test_labels_of_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.arange(7, dtype=np.uint8))
    assert data.open(tmp_path / "a.npz").batch([6, 2])[1]["label"].tolist() == [6, 2]
    np.savez(tmp_path / "b.npz", x=IMAGES, labels=np.arange(6))
    refused(tmp_path / "b.npz", r"labels of shape \(6,\) for 7 samples")
    np.savez(tmp_path / "c.npz", x=IMAGES, labels=np.arange(7) - 1)
    refused(tmp_path / "c.npz", "whole numbers from 0")
    with pytest.raises(ValueError, match=r"got labels of shape \(2,\) for 3 samples"):
        data.Arrays(torch.zeros(3, 1), torch.zeros(2))


# Order and workers ---------------------------------------------------------------------------------------------------


def test_worker_processes_change_nothing(folder):
    found, order = data.open(folder), [[0, 3], [6], [2, 2, 5], [1, 4]]
    state = torch.random.get_rng_state()
    read = data.batches(found, order, workers=2), data.batches(found, order)
    for (x, labels), (y, expected), indices in zip(*read, order, strict=True):
        assert torch.equal(x, y) and torch.equal(labels["label"], expected["label"])
        assert torch.equal(y, found.samples(indices))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    with pytest.raises(ValueError, match="got workers=-1"):
        next(data.batches(found, order, workers=-1))


def test_the_order_of_a_training_serves_sets_that_are_not_in_memory(folder):
    found = data.open(folder)
    numbers = Batches(torch.arange(7.0)[:, None], batch_size=3, seed=0)
    chosen = [numbers.at(step)[0].flatten().long() for step in range(7)]
    seen = torch.cat([x for x, _ in data.batches(found, chosen)])
    order = torch.cat(chosen)
    assert np.array_equal(as_bytes(seen), IMAGES[order.numpy()])
    assert [sorted(order[7 * e : 7 * e + 7].tolist()) for e in range(3)] == [list(range(7))] * 3


# Published sets ------------------------------------------------------------------------------------------------------


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_and_its_kin_come_from_files_of_the_published_names(tmp_path, name, compress):
    grey, labels = pixels(4, channels=1), np.array([3, 9, 0, 1], dtype=np.uint8)
    for stem, part in (("train", slice(0, 3)), ("t10k", slice(3, 4))):
        for kind, array in (("images-idx3", grey[part]), ("labels-idx1", labels[part])):
            content = idx(array)
            path = tmp_path / f"{stem}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    found = data.open(f"{name}:{tmp_path}")
    assert np.array_equal(as_bytes(found.tensor())[..., 0], grey[:3]) and found.labels.tolist() == [3, 9, 0]
    assert len(found.classes) == 10
    test = data.open(f"{name}:{tmp_path}", split="test")
    assert test.labels.tolist() == [1] and np.array_equal(as_bytes(test.tensor())[..., 0], grey[3:])
    refused(f"{name}:{tmp_path}", "got split='validation'; expected 'train' or 'test'", split="validation")
    refused(f"{name}:{tmp_path / 'absent'}", "is not a folder")
    refused(tmp_path, "name the kind: mnist:FOLDER")


def test_cifar10_comes_from_its_binary_version_and_is_never_unpickled(tmp_path):
    images, labels = pixels(6, 32, 32), np.arange(6, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(6, -1)], 1)
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    for k in range(5):
        (inside / f"data_batch_{k + 1}.bin").write_bytes(records[k : k + 1].tobytes())
    for where in (tmp_path, inside):
        found = data.open(f"cifar10:{where}")
        assert np.array_equal(as_bytes(found.tensor()), images[:5]) and found.labels.tolist() == [0, 1, 2, 3, 4]
    refused(f"cifar10:{tmp_path}", r"found no test_batch\.bin .* the binary version of CIFAR-10", split="test")
    (inside / "test_batch.bin").write_bytes(records[5].tobytes()[:-1])
    refused(f"cifar10:{tmp_path}", "has 3072 bytes; expected a multiple of 3073", split="test")
    pickled = tmp_path / "python"
    pickled.mkdir()
    (pickled / "data_batch_1").write_bytes(b"\x80\x02}q\x00.")
    refused(f"cifar10:{pickled}", "which is pickled and could run any code; expected the binary version")


def test_real_files_of_fashion_mnist(shared_data):
    found = data.open(f"fashion-mnist:{shared_data / 'fashion-mnist'}", split="test")
    assert len(found) == 10_000 and torch.bincount(found.labels).tolist() == [1000] * 10
    # The mean bag covers more of its image than the mean sandal, and the classes are named in that order.
    ink = [found.samples(torch.nonzero(found.labels == k).flatten()[:200]).mean() for k in range(10)]
    assert ink[found.classes.index("Bag")] > ink[found.classes.index("Sandal")]


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face():
    return pytest.importorskip("datasets", reason="the extra train is not installed")


@pytest.fixture(scope="module")
def table(hugging_face):
    kinds = {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
    rows = {"image": [Image.fromarray(image) for image in IMAGES], "label": [0, 0, 0, 0, 1, 1, 1]}
    return hugging_face.Dataset.from_dict(rows, features=hugging_face.Features(kinds))


def test_parquet_and_sets_on_disk_are_the_images_that_were_written(tmp_path, hugging_face, table):
    hugging_face.disable_progress_bars()
    table.to_parquet(str(tmp_path / "parts" / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    parts = hugging_face.DatasetDict({"train": table, "test": table.select([5, 1])})
    parts.save_to_disk(str(tmp_path / "both"))
    for source in (
        tmp_path / "parts" / "a.parquet",
        tmp_path / "parts",
        f"hf:{tmp_path / 'saved'}",
        f"hf:{tmp_path / 'both'}",
    ):
        found = data.open(source)
        assert np.array_equal(as_bytes(found.tensor()), IMAGES) and found.classes == ("cat", "dog")
        assert found.labels.tolist() == table["label"]
    test = data.open(f"hf:{tmp_path / 'both'}", split="test")
    assert np.array_equal(as_bytes(test.tensor()), IMAGES[[5, 1]]) and test.labels.tolist() == [1, 0]
    refused(f"hf:{tmp_path / 'both'}", "cannot open part 'dev' .* its parts are train, test", split="dev")


def test_columns_of_numbers_are_vectors_and_text_names_classes(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra train is not installed")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    columns = {"a": [1.5, 2.0, -3.0], "n": [1, 2, 3], "v": [[0.5, 1], [2, 3], [4, 5]], "class": ["x", "w", "x"]}
    pq.write_table(pa.table(columns), path)
    found = data.open(path)
    assert found.tensor().tolist() == [[1.5, 1, 0.5, 1], [2, 2, 2, 3], [-3, 3, 4, 5]]
    assert found.labels.tolist() == [1, 0, 1] and found.classes == ("w", "x")
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "cannot read .*a.parquet', which may be truncated")
    pq.write_table(pa.table({"a": [1.0, None]}), path)
    refused(path, "has 1 of 2 values that are not finite")
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    refused(path, r"has the columns text \(string\); expected a column of images")
    pq.write_table(pa.table({"a": pa.array([], pa.float64())}), path)
    refused(path, "has no rows")
    pq.write_table(pa.table({"v": [[1.0], [1.0, 2.0]]}), path)
    refused(path, "lists of different lengths")
    pq.write_table(pa.table({"image": [b"no image"]}), path)
    refused(path, r"cannot read '.*a.parquet, column image, row 0'")
