"""Figures show themselves in a notebook, without pyplot; progress bars are of one kind."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import scoresde
from scoresde import plots

FIGURES = {
    "panels": lambda: plots.panels({"a": torch.zeros(4, 1, 8, 8)}),
    "strips": lambda: plots.strips({"a": torch.zeros(3, 2, 1, 8, 8)}, [0.0, 0.5, 1.0]),
    "overview": lambda: plots.overview({"a": torch.zeros(3, 2, 1, 8, 8)}, [0.0, 0.5, 1.0], {"b": torch.zeros(4, 1, 8, 8)}),
    "scatter": lambda: plots.scatter({"a": torch.zeros(5, 2)}),
    "losses": lambda: plots.losses([(1, 2.0), (2, 1.0)], torch.tensor([0.1, 0.5, 1.0]), torch.tensor([1.0, 2.0])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_shows_a_figure(name):
    figure = FIGURES[name]()
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    width, height = figure.get_size_inches()
    assert picture.size == pytest.approx((130 * width, 130 * height), abs=1)
    assert pickle.loads(pickle.dumps(figure)).get_size_inches().tolist() == [width, height]


def test_ipython_takes_the_picture_without_pyplot():
    pytest.importorskip("IPython")
    programme = (
        "import sys, torch\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from scoresde import plots\n"
        "shell = InteractiveShell.instance()\n"
        "shell.display_formatter.active_types = shell.display_formatter.format_types\n"
        "found, _ = shell.display_formatter.format(plots.scatter({'a': torch.zeros(5, 2)}))\n"
        "print(sorted(found), 'matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", programme], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["['image/png',", "'text/plain']", "False"]


def test_there_is_one_kind_of_progress_bar():
    for path in Path(scoresde.__file__).parent.rglob("*.py"):
        assert "from tqdm import" not in path.read_text(), path
