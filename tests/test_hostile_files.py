"""Files made to break their readers: each is refused by the documented error or read for what it is, soon, in little memory.

Every reader of data, samples, statistics and weights meets damaged files (bytes flipped, cut, doubled, exchanged) and files
that are whole and say what cannot be. A reader may accept a damaged file where nothing tells it from a sound one, such as
one with another pixel; never where a checksum, a length or a schema does.
"""

import gzip
import io
import json
import os
import pickle
import resource
import signal
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from test_cli_models import folder_of_diffusers

from scoresde import VP, ScoreModel, data, weights
from scoresde.data import Arrays
from scoresde.evaluation import Summary, generate, summarize
from scoresde.models import MLP
from scoresde.weights import WeightsError

RNG = np.random.default_rng(0)
SECONDS = 20  # for one file, on a busy machine
BYTES = 3 * 2**30  # of address space beyond what is taken


# Sound files -------------------------------------------------------------------------------------------------------


def npy(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def npz(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def idx(x):
    return struct.pack(f">HBB{x.ndim}I", 0, 8, x.ndim, *x.shape) + x.tobytes()


def picture(form):
    out = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(out, form)
    return out.getvalue()


def parquet(metadata=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [picture("PNG")] * 3, "label": [0, 1, 0]})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata or json.dumps({"info": {"features": {}}})}), out)
    return out.getvalue()


def saved(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def ncsnv2():
    from scoresde.models import NCSNv2
    from scoresde.weights.ncsnv2 import names

    net = NCSNv2(1, 4)
    tensors = {theirs: net.state_dict()[ours] for ours, theirs in names(net).items()}
    return tensors | {"sigmas": torch.linspace(1, 0.01, 5)}


def dit():
    from scoresde.models import DiT
    from scoresde.weights.dit import names

    net = DiT(1, 4, width=64, depth=1, heads=1, out_channels=2, num_classes=2, time="positional")
    return {theirs: net.state_dict()[ours] for ours, theirs in names(net).items()} | {"pos_embed": net.positions[None]}


PIXELS = RNG.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
LABELS = np.arange(5)
PICTURES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
DATA = {
    "a.npy": lambda: npy(PIXELS),
    "float.npy": lambda: npy(RNG.normal(size=(5, 3))),
    "a.npz": lambda: npz(x=PIXELS, labels=LABELS),
    "a.npy.gz": lambda: gzip.compress(npy(PIXELS)),
    "a-idx3-ubyte": lambda: idx(PIXELS[..., 0]),
    "a.parquet": parquet,
    **{
        f"image.{form}": lambda form=form: picture(form)
        for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
    },
}
WEIGHTS = {
    "dit.safetensors": lambda: safetensors.torch.save({k: v.contiguous() for k, v in dit().items()}),
    "ncsnv2.pt": lambda: saved(ncsnv2()),
    "list.pt": lambda: saved([{f"module.{k}": v for k, v in ncsnv2().items()}, 0, 0, 0, ncsnv2()]),
}


# How they are damaged ----------------------------------------------------------------------------------------------


def damaged(content, seed):
    """``content`` with something done to it that the seed chooses."""
    rng = np.random.default_rng(seed)
    n, start = len(content), rng.random() < 0.6  # headers say the most, and stand at either end
    place = int(rng.integers(min(n, 200)) if start else n - 1 - rng.integers(min(n, 300)))
    kind = seed % 7
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + rng.bytes(int(rng.integers(1, 9))) + content[place + 8 :]
    if kind == 3:
        return content[:place] + b"\xff" * 4 + content[place + 4 :]
    if kind == 4:
        return content[:place] + content[max(0, place - 40) :]  # a piece twice
    if kind == 5:
        return content + rng.bytes(int(rng.integers(1, 50)))
    return content[:place] + b"\0" * int(rng.integers(1, 64)) + content[place + 8 :]


class Hang(BaseException):
    """A reader that did not come back."""


def soon_and_in_little_memory(call):
    """What ``call`` returns, in bounded time and memory."""

    def hang(*_):
        raise Hang(f"no end after {SECONDS} s of work, or {30 * SECONDS} s of waiting")

    old = [signal.signal(which, hang) for which in (signal.SIGPROF, signal.SIGALRM)]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time: the machine may be busy
    signal.alarm(30 * SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for which, handler in zip((signal.SIGPROF, signal.SIGALRM), old, strict=True):
            signal.signal(which, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def judged(call, error=ValueError):
    """``call()``, or ``None`` where it is refused: by ``error``, in a sentence that can be printed."""
    try:
        return soon_and_in_little_memory(call)
    except error as refusal:
        assert str(refusal).encode() and "Traceback" not in str(refusal)
        cause = refusal.__cause__
        assert not isinstance(cause, MemoryError | RecursionError | AttributeError | NameError), repr(cause)
        return None


def opened(path):
    """Everything that is read of data."""
    found = data.open(path)
    x = found.tensor()
    assert x.dtype == torch.float32 and bool(torch.isfinite(x).all()) and x.shape == (len(found), *found.event)
    return found


# Damaged files -----------------------------------------------------------------------------------------------------


def damage_data(name, tmp_path, seeds):
    whole = DATA[name]()
    for seed in seeds:
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        (folder / name).write_bytes(damaged(whole, seed))
        judged(lambda folder=folder: opened(folder if name.startswith("image") else folder / name))


@pytest.mark.parametrize("name", DATA)
def test_damaged_data(name, tmp_path):
    damage_data(name, tmp_path, range(21))


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_damaged_data_at_length(name, tmp_path):
    damage_data(name, tmp_path, range(21, 1000))


def damage_weights(name, tmp_path, seeds):
    whole = WEIGHTS[name]()
    for seed in seeds:
        path = tmp_path / f"{seed}{Path(name).suffix}"
        path.write_bytes(damaged(whole, seed))
        found = judged(lambda path=path: weights.load_published(path), WeightsError)
        judged(lambda path=path: weights.recognizes(path))
        if found is not None:
            assert all(bool(torch.isfinite(p).all()) for p in found.parameters())
        path.unlink()


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(name, tmp_path):
    (tmp_path / name).write_bytes(WEIGHTS[name]())
    assert isinstance(weights.load_published(tmp_path / name), ScoreModel)
    damage_weights(name, tmp_path, range(14))


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_at_length(name, tmp_path):
    damage_weights(name, tmp_path, range(21, 1000))


def damage_folder(tmp_path, seeds):
    folder = folder_of_diffusers(tmp_path / "sound")
    for file in ("config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"):
        whole = (folder / file).read_bytes()
        for seed in seeds:
            (folder / file).write_bytes(damaged(whole, seed))
            judged(lambda: weights.load_published(folder), WeightsError)
            judged(lambda: weights.event(folder), WeightsError)
        (folder / file).write_bytes(whole)
    assert isinstance(weights.load_published(folder), ScoreModel)


def test_a_damaged_folder_of_diffusers(tmp_path):
    damage_folder(tmp_path, range(14))


@pytest.mark.slow
def test_a_damaged_folder_of_diffusers_at_length(tmp_path):
    damage_folder(tmp_path, range(14, 500))


@pytest.mark.parametrize("kind", ["statistics", "shard"])
def test_damaged_statistics_and_samples(kind, tmp_path):
    if kind == "statistics":
        path = tmp_path / "a.safetensors"
        summarize(Arrays(torch.randn(20, 2))).save(path)
        read = lambda: Summary.load(path)  # noqa: E731
    else:
        drawn = generate(ScoreModel(MLP(2, hidden=(4,)), VP(), "v"), (2,), tmp_path, 8, steps=2, shard=8)
        path, read = drawn.file(0), drawn.tensor
    whole = path.read_bytes()
    header = 128 if kind == "shard" else 0
    for seed in range(70):
        content = damaged(whole, seed)
        path.write_bytes(content)
        accepted = judged(read) is not None
        told = content[:header] != whole[:header] or len(content) != len(whole)
        assert not accepted or (kind == "shard" and not told) or content == whole, seed


# Files that are whole and say what cannot be -----------------------------------------------------------------------


def header(text, version=1):
    text = text.encode("latin-1", "replace")
    size = struct.pack("<H", len(text)) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10000000000000000000000)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(1," * 60 + "}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 200 + ")}",
    "{'descr': '<f4', 'fortran_order': 7, 'shape': (2, 3)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': 5, 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': '<f4', 'shape': (2, 3)}",
    "__import__('os').system('true')",
    "(" * 9000,
    "[" * 9000 + "]" * 900,
    "-" * 9900,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 6000 + ",)}",
    "'\\x00",
    "",
]


@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_headers_that_lie(version, tmp_path):
    for k, text in enumerate(HEADERS):
        content = header(text, version) + b"\0" * 24
        for name, file in (("a.npy", content), ("a.gz", gzip.compress(content)), ("a.npz", zipped({"x.npy": content}))):
            (tmp_path / name).write_bytes(file)
            assert judged(lambda name=name: opened(tmp_path / name)) is None, (k, name)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\0\xff\xff\xff\xff")
    assert judged(lambda: opened(tmp_path / "a.npy")) is None


def zipped(members, kind=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


DTYPES = [
    "?",
    "i1",
    "i4",
    "i8",
    "u2",
    "u4",
    "u8",
    "c8",
    "c16",
    "M8[s]",
    "m8[s]",
    "S3",
    "U2",
    "V4",
    "f2",
    "f4",
    "f8",
    ">f4",
    "g",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_types_of_numbers(dtype, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), dtype))
    found = judged(lambda: opened(tmp_path / "a.npy"))
    assert (found is not None) == (np.dtype(dtype).kind == "f")
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)), labels=np.zeros(3, dtype))
    found = judged(lambda: opened(tmp_path / "b.npz"))
    assert found is None or (found.labels is not None) == (np.dtype(dtype).kind in "ui")


ARCHIVES = {
    "no member": {},
    "a text": {"x.npy": b"hello"},
    "a folder": {"x/": b""},
    "a bomb": {"x.npy": header("{'descr': '|u1', 'fortran_order': False, 'shape': (2147483648, 1)}") + bytes(2**21)},
    "another zip": {"x.npy": zipped({"x.npy": npy(PIXELS)})},
    "many": {f"{k}.npy": npy(PIXELS) for k in range(300)},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_none(name, tmp_path):
    (tmp_path / "a.npz").write_bytes(zipped(ARCHIVES[name]))
    assert judged(lambda: opened(tmp_path / "a.npz")) is None
    assert judged(lambda: weights.load_published(tmp_path / "a.npz"), WeightsError) is None


@pytest.mark.slow
def test_bombs_are_stopped_at_the_limit(tmp_path):
    zeros = header("{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824, 1)}") + bytes(2**30)
    for name, bomb in (("a.npz", zipped({"x.npy": zeros})), ("a.gz", gzip.compress(zeros, 1))):
        assert len(bomb) < 2**23
        (tmp_path / name).write_bytes(bomb)
        assert judged(lambda name=name: opened(tmp_path / name)) is None
        with pytest.raises(ValueError, match="unpacks to more than 1073741824 bytes"):
            data.open(tmp_path / name)


def deep(n):
    return b"[" * n + b"]" * n


JSON = [
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"in_channels": "3"}',
    b'{"in_channels": 1e400}',
    b'{"in_channels": NaN}',
    b'{"in_channels": -1}',
    b'{"in_channels": 0}',
    b'{"in_channels": 1000000000000000000}',
    b'{"block_out_channels": []}',
    b'{"block_out_channels": [1000000, 1000000]}',
    b'{"block_out_channels": 32}',
    b'{"layers_per_block": 100000000}',
    b'{"down_block_types": []}',
    b'{"down_block_types": {}, "up_block_types": null}',
    b'{"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}',
    b'{"norm_num_groups": 0}',
    b'{"norm_eps": "a"}',
    b'{"mid_block_scale_factor": null}',
    b'{"attention_head_dim": 3}',
    b'{"downsample_type": "x", "upsample_type": "x"}',
    b'{"dropout": 7}',
    b'{"num_class_embeds": 1000000}',
    b'{"sample_size": [1, 2, 3]}',
    b'{"_class_name": []}',
    b'{"num_train_timesteps": 1000000000000, "beta_schedule": "linear"}',
    b'{"num_train_timesteps": -5, "beta_schedule": "linear"}',
    b'{"num_train_timesteps": 0, "beta_schedule": "squaredcos_cap_v2"}',
    b'{"beta_start": -1, "beta_schedule": "scaled_linear"}',
    b'{"beta_end": 2, "beta_schedule": "linear"}',
    b'{"trained_betas": [0.5, 2.0]}',
    b'{"trained_betas": ["a"]}',
    b'{"trained_betas": 3}',
    b'{"trained_betas": [[0.1]]}',
    b'{"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0}',
    b'{"_class_name": "ScoreSdeVeScheduler", "sigma_min": 5, "sigma_max": 5}',
    b'{"_class_name": "ScoreSdeVeScheduler", "sigma_min": "a"}',
    b'{"prediction_type": []}',
    deep(100),
    deep(100_000),
    b'{"x": ' + deep(100_000) + b"}",
    b'{"x": ' * 50_000,
]


@pytest.mark.parametrize("file", ["config.json", "scheduler_config.json"])
def test_configurations_that_cannot_be(file, tmp_path):
    folder = folder_of_diffusers(tmp_path / "sound")
    whole = json.loads((folder / file).read_text())
    for content in JSON:
        (folder / file).write_bytes(content)
        assert judged(lambda: weights.load_published(folder), WeightsError) is None, content[:60]
        judged(lambda: weights.event(folder), WeightsError)
        try:
            changed = {**whole, **json.loads(content)}
        except (ValueError, TypeError, RecursionError):
            continue
        (folder / file).write_text(json.dumps(changed))
        judged(lambda: weights.load_published(folder), WeightsError)


def test_notes_in_tables_that_cannot_be(tmp_path):
    for metadata in [*JSON, b'{"info": 3}', b'{"info": {"features": {"label": {"names": "ab"}}}}']:
        (tmp_path / "a.parquet").write_bytes(parquet(metadata))
        judged(lambda: opened(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").write_bytes(parquet(b'{"info": {"features": {"label": {"names": ["a"]}}}}'))
    with pytest.raises(ValueError, match="label 1 and 1 names"):
        data.open(tmp_path / "a.parquet")


def test_cells_that_are_no_images(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [
        pa.array([b"", b"x"]),
        pa.array([None, None], pa.binary()),
        pa.array([None, {"bytes": b"x", "path": None}], struct_type),
        pa.array([{"bytes": None, "path": None}] * 2, struct_type),
        pa.array([{"bytes": None, "path": "/dev/zero"}] * 2, struct_type),
        pa.array([{"bytes": None, "path": "a\0b"}] * 2, struct_type),
        pa.array([{"bytes": 3, "path": "x"}] * 2),
        pa.array([{"bytes": "text", "path": "x"}] * 2),
        pa.array([[1.0], [1.0, 2.0]]),
        pa.array([[1.0], None]),
        pa.array([[[1.0]], [[2.0]]]),
        pa.array([2**63 - 1, None]),
        pa.array(["a", "b"]),
        pa.array([True, False]),
        pa.array([], pa.float64()),
    ]
    for k, column in enumerate(columns):
        pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
        assert judged(lambda: opened(tmp_path / "a.parquet")) is None, k


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def tensors_that_cannot_be(tmp_path):
    sound, name = ncsnv2(), "begin_conv.weight"
    one = torch.ones(1)
    yield {}
    yield {"a": 3}
    yield [1, 2]
    yield []
    yield 5
    yield {name: one}
    yield {3: one, name: one}
    yield {**sound, name: one.expand(10**6, 10**6, 3, 3)}  # four bytes that stand for terabytes
    yield {**sound, name: torch.full_like(sound[name], torch.nan)}
    yield {**sound, name: sound[name].to(torch.complex64)}
    yield {**sound, name: sound[name].bool()}
    yield {**sound, name: torch.ones(2, 2).to_sparse()}
    yield {**sound, name: torch.ones(3, 3, device="meta")}
    yield {**sound, "sigmas": torch.zeros(5)}
    yield {**sound, "sigmas": torch.ones(2, 5)}
    yield {**sound, "sigmas": -sound["sigmas"]}
    yield {"model": sound, "ema": 3}
    yield {"model": sound, "ema": {"shadow_params": [one]}}
    yield {"model": sound, "ema": {"shadow_params": list(range(len(sound) - 1))}}
    yield {"model": {3: one}, "ema": {"shadow_params": [one]}}
    yield {"model": sound, "ema": {"begin_conv.weight": "x"}}
    yield [sound, 0, 0, 0, {"begin_conv.weight": one}]
    yield [3, 0, 0, 0, sound]
    whole = dit()
    for key in whole:
        yield {**whole, key: one}
        yield {**whole, key: whole[key][..., :0]}
    yield {**whole, "x_embedder.proj.weight": torch.ones(64, 1, 0, 0)}
    yield {**whole, "x_embedder.proj.weight": torch.ones(0, 1, 2, 2)}
    yield {**whole, "blocks.9999999.attn.qkv.weight": one}
    yield {**whole, "pos_embed": torch.zeros(1, 0, 64)}
    yield {name.signature + "weight": one for name in weights.families.FAMILIES.values()}
    yield {"all_modules.0.weight": one, "all_modules.x.weight": one}
    yield {"input_blocks.0.0.weight": one, "input_blocks.-1.0.weight": one}
    yield Payload(str(tmp_path / "executed"))
    yield {**sound, "more": Payload(str(tmp_path / "executed"))}


def test_tensors_that_cannot_be(tmp_path):
    for k, value in enumerate(tensors_that_cannot_be(tmp_path)):
        path = tmp_path / "a.pt"
        torch.save(value, path)
        assert judged(lambda path=path: weights.load_published(path), WeightsError) is None, (k, value)
        judged(lambda path=path: weights.recognizes(path))
    for config in list(weights.PUBLISHED)[::25]:
        assert judged(lambda config=config: weights.load_published(path, config), WeightsError) is None
    path.write_bytes(pickle.dumps({"a": Payload(str(tmp_path / "executed"))}))
    assert judged(lambda: weights.load_published(path), WeightsError) is None
    path.write_bytes(zipped({"archive/data.pkl": pickle.dumps({}), "archive/data/0": bytes(10**6)}))
    assert judged(lambda: weights.load_published(path), WeightsError) is None
    for size in (0, 2**31, 2**62, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", size) + b"{" + b" " * 100)
        assert judged(lambda: weights.load_published(path), WeightsError) is None
    path.write_bytes(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995)
    assert judged(lambda: weights.load_published(path), WeightsError) is None
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "nothing", "a link to itself", "a name of NUL"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "a.npy"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a link to itself":
        path.symlink_to(path)
    elif kind == "a name of NUL":
        path = Path("a\0b")
    assert judged(lambda: opened(path)) is None
    assert judged(lambda: weights.load_published(path), WeightsError) is None
    assert judged(lambda: weights.recognizes(path)) in (False, None)
    assert judged(lambda: Summary.load(path)) is None
    folder = folder_of_diffusers(tmp_path / "diffusers")
    if kind == "a pipe":
        for name in ("scheduler_config.json", "diffusion_pytorch_model.safetensors", "config.json"):
            (folder / name).unlink()
            os.mkfifo(folder / name)
            assert judged(lambda: weights.load_published(folder), WeightsError) is None
