"""Figures show themselves in a notebook, without pyplot; progress bars are of one kind."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import scoresde
from scoresde import plots
from scoresde.plots.fields import arrows

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


# Points, scores, densities --------------------------------------------------------------------------------------------


def test_arrows_point_along_the_score_and_none_is_longer_than_the_rest_allow():
    places, along = arrows(lambda x, t: -x * 10.0 ** (6 * x[:, :1]), 0.5, (0.0, 0.0), 1.0, across=5)
    assert places.shape == along.shape == (25, 2)
    length = (along**2).sum(1) ** 0.5
    assert length.max() <= 1.3 * 0.5  # of the distance between places
    cross = places[:, 0] * along[:, 1] - places[:, 1] * along[:, 0]
    assert abs(cross).max() < 1e-12 and (places * along).sum(1).max() <= 0  # towards the origin, whatever the length
    assert not arrows(lambda x, t: torch.full_like(x, torch.nan), 0.5, (0.0, 0.0), 1.0)[1].any()


def test_a_score_field_draws_the_score_of_each_time():
    sde = scoresde.VP()
    model = scoresde.problems.Gaussian([1.0, -0.5], [[0.3, 0.1], [0.1, 0.2]]).model(sde)
    figure = plots.score_field(model.score, [0.8, 0.1], half=2.0)
    for ax, t in zip(figure.axes, (0.8, 0.1), strict=True):
        quiver = next(c for c in ax.collections if hasattr(c, "U"))
        truth = -torch.linalg.solve(
            sde.alpha(t) ** 2 * torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
            + sde.sigma(t) ** 2 * torch.eye(2, dtype=torch.float64),
            (torch.tensor(quiver.XY) - sde.alpha(t) * torch.tensor([1.0, -0.5], dtype=torch.float64)).T,
        ).T
        drawn = torch.stack([torch.tensor(quiver.U), torch.tensor(quiver.V)], 1)
        cosine = torch.nn.functional.cosine_similarity(drawn, truth)
        assert float(cosine.min()) > 1 - 1e-9


def test_a_ribbon_has_the_density_of_each_time_and_trajectories_from_the_same_starts():
    problem = scoresde.problems.GaussianMixture([[-1.2], [1.5]], [[[0.04]], [[0.09]]])
    sde = scoresde.VP()
    figure = plots.ribbon(problem, sde, n=4, steps=40)
    ode, reverse = figure.axes
    mesh = ode.collections[0]
    shade = mesh.get_array().reshape(400, 240)
    assert shade.max(0).tolist() == pytest.approx([1.0] * 240)  # relative to the largest at each time
    starts = [[line.get_ydata()[0] for line in ax.get_lines()] for ax in (ode, reverse)]
    assert starts[0] == starts[1] and len(starts[0]) == 4
    ends = torch.tensor([line.get_ydata()[-1] for ax in (ode, reverse) for line in ax.get_lines()])
    assert bool(((ends + 1.2).abs() < 1.0).logical_or((ends - 1.5).abs() < 1.5).all())
    rough = [max(abs(torch.tensor(line.get_ydata()).diff(2)).max() for line in ax.get_lines()) for ax in (ode, reverse)]
    assert rough[1] > 5 * rough[0]  # the flow is smooth, the SDE is not


def test_pairs_show_every_coordinate_of_every_cloud_in_one_frame():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, generator=g), 3 + torch.randn(200, 3, generator=g)
    figure = plots.pairs({"exact": x, "samples": y}, ["a", "b", "c"], truth=[0.0, 1.0, 2.0])
    figure.draw_without_rendering()
    assert len(figure.axes) == 6
    assert [t.get_text() for legend in figure.legends for t in legend.get_texts()] == ["exact", "samples"]
    assert [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()] == ["a", "b", "c"]
    below = [ax for ax in figure.axes if len(ax.collections) == 2]
    assert len(below) == 3
    for ax, (i, j) in zip(below, [(1, 0), (2, 0), (2, 1)], strict=True):
        assert torch.tensor(ax.collections[1].get_offsets().data).float() == pytest.approx(y[:, [j, i]], abs=1e-6)
        low, high = ax.get_xlim()
        assert low < float(x[:, j].quantile(0.01)) and high > float(y[:, j].quantile(0.99))


def test_a_posterior_table_has_the_moments_and_marks_an_interval_that_misses():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 2, generator=g, dtype=torch.float64) * torch.tensor([1.0, 10.0]) + torch.tensor([0.0, 100.0])
    table = plots.posterior_table({"m|n": x}, ["a", "b"], [0.5, 130.0], level=0.8)
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert "m\\|n: 80 %" in table and "*" not in rows[0] and rows[1].endswith("* |")
    mean, sd = (float(v) for v in rows[1].split("|")[3].split("±"))
    assert mean == pytest.approx(float(x[:, 1].mean()), abs=0.6) and sd == pytest.approx(float(x[:, 1].std()), abs=0.2)
    low, high = (float(v) for v in rows[0].split("|")[4].split("to"))
    assert (low, high) == pytest.approx((-1.2816, 1.2816), abs=0.1)
    assert "asterisk" not in table and "misses" not in plots.posterior_table({"a": x})


# Animations -----------------------------------------------------------------------------------------------------------

STATES = {
    "points": lambda k: torch.randn(k, 30, 2, generator=torch.Generator().manual_seed(0)),
    "numbers": lambda k: torch.randn(k, 30, 1, generator=torch.Generator().manual_seed(0)),
    "images": lambda k: torch.rand(k, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
}


def film(path: Path) -> list[tuple[int, Image.Image]]:
    """The frames of a GIF with their durations in milliseconds."""
    with Image.open(path) as file:
        return [(frame.info["duration"], frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]


def test_an_animation_has_a_frame_for_each_time_and_stays_on_the_last(tmp_path):
    times, path = [1.0, 0.6, 0.3], tmp_path / "all.gif"
    plots.save_animation({k: make(3) for k, make in STATES.items()}, times, path, fps=4, hold=1.0, dpi=30, title="A title")
    shown = film(path)
    assert len(shown) == 3 and [d for d, _ in shown] == [250, 250, 1250]  # equal frames are one, shown for longer
    assert len({picture.tobytes() for _, picture in shown}) == 3
    assert {picture.getpixel((0, 0)) for _, picture in shown} == {(255, 255, 255)}


def test_an_animation_draws_the_points_at_their_places_in_a_frame_that_stands_still(tmp_path):
    x = torch.zeros(2, 40, 2)
    x[0, :, 0], x[1, :, 0] = -1.0, 1.0  # all points left, then all right
    plots.save_animation({"a": x}, [1.0, 0.0], tmp_path / "a.gif", hold=0, dpi=50, score=lambda y, t: -y)
    centres = []
    for _, picture in film(tmp_path / "a.gif"):
        pixels = torch.from_numpy(np.asarray(picture).astype(int))
        blue = (pixels[..., 2] - pixels[..., 0]) > 60
        centres.append(float(blue.nonzero()[:, 1].double().mean()) / picture.size[0])
    assert centres[0] < 0.2 and centres[1] > 0.8 and centres[0] + centres[1] == pytest.approx(1.0, abs=0.05)


def test_an_animation_as_a_page_needs_no_network_and_says_what_it_shows(tmp_path):
    path = tmp_path / "a.html"
    plots.save_animation({"<b>": STATES["points"](3)}, [1.0, 0.5, 0.0], path, fps=2, hold=1.0, dpi=30)
    text = path.read_text()
    assert "http" not in text and text.count('"iVBOR') == 3 and "[0,1,2,2,2]" in text  # the last is stored once
    assert 'alt="animation: &lt;b&gt; from t = 1 to 0"' in text and "prefers-reduced-motion" in text


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: plots.save_animation({}, [1.0], p / "a.gif"), "for points"),
        (lambda p: plots.save_animation({"a": torch.zeros(2, 5, 2)}, [1.0], p / "a.gif"), "for 1 times"),
        (
            lambda p: plots.save_animation({"a": torch.zeros(1, 5, 3)}, [1.0], p / "a.gif"),
            "for points",
        ),
        (
            lambda p: plots.save_animation({"a": torch.zeros(1, 0, 2)}, [1.0], p / "a.gif"),
            "for points",
        ),
        (lambda p: plots.save_animation({"a": torch.full((1, 5, 2), torch.nan)}, [1.0], p / "a.gif"), "not finite"),
        (lambda p: plots.save_animation({"a": torch.zeros(1, 5, 2)}, [1.0], p / "a.avi", dpi=20), ".gif, .mp4 or .html"),
        (lambda p: plots.save_animation({"a": torch.zeros(1, 5, 2)}, [1.0], p / "a.gif", fps=0, dpi=20), "fps=0"),
        (lambda p: plots.save_animation({"a": torch.zeros(1, 5, 2)}, [1.0], p / "a.gif", hold=-1), "hold=-1"),
        (lambda p: plots.score_field(lambda x, t: x, []), "no times"),
        (lambda p: plots.score_field(lambda x, t: x, [1.0], torch.zeros(2, 5, 2)), r"expected \(1, n, 2\)"),
        (lambda p: plots.ribbon(scoresde.problems.ring(), scoresde.VP()), "a single number"),
        (lambda p: plots.pairs({}), "expected .n, d."),
        (lambda p: plots.pairs({"a": torch.zeros(5, 2), "b": torch.zeros(5, 3)}), "the same d for all"),
        (lambda p: plots.pairs({"a": torch.zeros(5, 9)}), "at most 8"),
        (lambda p: plots.pairs({"a": torch.zeros(5, 2)}, ["x"]), "a name for each"),
        (lambda p: plots.posterior_table({"a": torch.zeros(5, 2)}, truth=[1.0]), "a number for each"),
        (lambda p: plots.posterior_table({"a": torch.zeros(5, 2)}, level=1.0), "level=1.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(tmp_path, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pdf_keeps_its_text_and_is_the_same_for_the_same_figure(tmp_path):
    for name in ("a", "b"):
        plots.save_figure(FIGURES["scatter"](), tmp_path / f"{name}.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()  # outlines in place of letters
