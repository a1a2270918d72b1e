"""The example of real images on files as they are published: it continues, and measures what it says it measures."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scoresde
from scoresde import data, evaluation
from scoresde.evaluation import Features

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "mnist.py"
EXTRACTOR = """
from scoresde.evaluation import Features

def make():
    return Features(lambda x: {"features": x.flatten(1)[:, ::8], "logits": x.flatten(1)[:, :10]}, "rows")
"""


def write_idx(path, values):
    shape = b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path):
    """The embedded digits in the four files of MNIST."""
    images, labels = data.load_digits()
    ink = ((images[:, 0] + 1) * 127.5).round().numpy()
    for stem, part in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", ink[part])
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", labels[part].numpy())
    (tmp_path / "extractor.py").write_text(EXTRACTOR)
    return tmp_path


def run(monkeypatch, capsys, folder, *options):
    known = ["--data", str(folder), "--features", f"{folder / 'extractor.py'}:make", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["mnist.py", *known, "--samples", "200", *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("sde", ["edm", "vp", "ve"])
@pytest.mark.slow
def test_the_example_stops_and_continues_and_states_the_floor_of_real_data(sde, folder, monkeypatch, capsys):
    options = ["--sde", sde, "--steps", "2", "--out", str(folder / "run")]
    first = run(monkeypatch, capsys, folder, *options)
    second = run(monkeypatch, capsys, folder, *options)
    assert first.startswith("2 steps") and second.startswith("0 steps")
    assert first.partition("\n")[2] == second.partition("\n")[2]  # the same weights draw the same samples

    sets = [data.open(f"mnist:{folder}", split=part) for part in ("train", "test")]
    rows = Features(lambda x: x.flatten(1)[:, ::8], "rows")
    expected = evaluation.evaluate(sets[0], sets[1], rows).frechet
    stated = float(re.search(r"Fréchet distance .* (\S+)$", first, re.MULTILINE)[1])
    assert stated == pytest.approx(expected, rel=1e-3)


def test_a_sample_depends_on_its_number_and_its_label_alone():
    names = runpy.run_path(str(EXAMPLE), run_name="example")
    torch.manual_seed(0)
    network = names["Patches"](10, 8, torch.float32)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the last layer starts at zero, and says nothing
    model = scoresde.ScoreModel(network, scoresde.EDM(), predicts="edm").eval()
    labels = torch.tensor([3, 1, 4, 1, 5])
    drawn = names["draw"](model, (1, 8, 8), labels)
    other = names["draw"](model, (1, 8, 8), torch.tensor([3, 1, 9]))
    assert torch.allclose(drawn[:2], other[:2], atol=1e-4)
    assert not torch.allclose(drawn[2], other[2], atol=1e-2)
    assert not torch.allclose(drawn[1], drawn[3], atol=1e-2)
