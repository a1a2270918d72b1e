"""The demonstration end to end on a twentieth of the work, its table, and the figures' own laws."""

import itertools
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import VP, demo, plots
from scoresde.base.files import replacing
from scoresde.demo import BUDGETS, Entry, _forward
from scoresde.solvers import SOLVERS
from scoresde.training import CheckpointError

PROMISED = {
    "model.safetensors",
    "loss.png",
    "forward.png",
    "reverse.png",
    "samples.png",
    "overview.png",
    "table.md",
}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, list[Entry], list[str]]:
    out, lines = tmp_path_factory.mktemp("demo"), []
    return out, demo.run(out, quick=True, progress=False, echo=lines.append), lines


def test_the_demo_writes_every_promised_file_and_nothing_else(first):
    out, _, lines = first
    assert {p.name for p in out.iterdir()} == PROMISED
    for picture in out.glob("*.png"):
        content = picture.read_bytes()
        assert content[:4] == b"\x89PNG" and content[-8:-4] == b"IEND"
    assert all(any(str(out / name) in line for line in lines[-8:]) for name in PROMISED if name.endswith((".png", ".md")))


def test_the_table_has_the_floor_and_every_solver(first):
    out, entries, _ = first
    rows = [line.split("|")[1:-1] for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    header, body = [c.strip() for c in rows[0]], [[c.strip() for c in row] for row in rows[2:]]
    assert header == ["solver", "family", "steps", "evaluations", "seconds", "energy distance", "Fréchet distance"]
    assert body[0][:2] == ["real digits", "floor"]
    assert sorted(row[0] for row in body[1:]) == sorted(BUDGETS)
    for row, entry in zip(body[1:], entries[1:], strict=True):
        assert row[3] == str(entry.evaluations) and float(row[6]) == pytest.approx(entry.frechet, abs=0.01)
    assert [e.family for e in entries[1:]] == sorted(e.family for e in entries[1:])


def test_the_floor_is_below_every_solver_of_a_hardly_trained_model(first):
    floor, *solved = first[1]
    assert floor.frechet < min(e.frechet for e in solved)
    assert floor.energy < min(e.energy for e in solved)


@pytest.mark.slow
def test_a_finished_training_is_used_again_and_gives_the_same_samples(first):
    out, entries, _ = first
    before, lines = (out / "model.safetensors").read_bytes(), []
    again = demo.run(out, quick=True, progress=False, echo=lines.append)
    assert any(line.startswith("[2/5] training: skipped") and "120 steps" in line for line in lines)
    assert (out / "model.safetensors").read_bytes() == before
    for a, b in zip(entries, again, strict=True):
        assert a.solver == b.solver and a.evaluations == b.evaluations
        assert torch.equal(a.x, b.x)


def test_a_foreign_checkpoint_in_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        demo.run(tmp_path, quick=True, progress=False, echo=lambda line: None)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_the_budgets_are_for_solvers_of_the_table():
    assert set(BUDGETS) <= set(SOLVERS)


def test_the_forward_trajectories_have_the_marginals_of_the_sde(rng):
    sde, x0 = VP(), torch.full((20000, 1), 0.7, dtype=torch.float64)
    times = (0.0, 0.1, 0.3, 0.6, 1.0)
    states = _forward(sde, x0, times, rng)
    for t, x in zip(times, states, strict=True):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        assert abs(float(x.mean()) - 0.7 * alpha) < 5 * sigma / 20000**0.5 + 1e-12
        assert abs(float(x.std()) - sigma) < 5 * sigma / 40000**0.5 + 1e-12
    for (i, u), (j, v) in itertools.combinations(enumerate(times[1:], start=1), 2):
        expected = float(sde.alpha(v) / sde.alpha(u)) * float(sde.sigma(u)) ** 2  # a Markov process: not fresh noise
        got = float(((states[i] - states[i].mean()) * (states[j] - states[j].mean())).mean())
        assert abs(got - expected) < 5 * float(sde.sigma(u) * sde.sigma(v)) / 20000**0.5 * 2**0.5


# Examples ------------------------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_examples_run_and_write_their_figures_where_they_are_told(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example.name, "--quick", "--out", "figures"])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    pictures = list((tmp_path / "figures").glob("*.png"))
    assert pictures and all(f"figures/{picture.name}" in said for picture in pictures)
    assert [p.name for p in tmp_path.iterdir()] == ["figures"]
    if "measured order" in said:
        measured = float(said.split("measured order ")[1].split(",")[0])
        assert abs(measured - 3) < 0.3


# Figures and files ---------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 12),
    columns=st.integers(1, 6),
    border=st.integers(0, 2),
    c=st.sampled_from([1, 3]),
    h=st.integers(1, 4),
)
def test_every_image_lies_in_its_place_on_the_page(n, columns, border, c, h):
    images = torch.arange(n * c * h * (h + 1), dtype=torch.float32).reshape(n, c, h, h + 1)
    page = plots.tile(images, columns, border)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = row * (h + border), column * (h + 1 + border)
        assert torch.equal(page[:, top : top + h, left : left + h + 1], image)
    assert int((~page.isnan()).sum()) == images.numel()


def test_figures_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match=r"expected \(n, 1, h, w\) or \(n, 3, h, w\)"):
        plots.tile(torch.zeros(4, 2, 8, 8), 2)
    with pytest.raises(ValueError, match="expected columns >= 1"):
        plots.tile(torch.zeros(4, 1, 8, 8), 0)
    with pytest.raises(ValueError, match=r"expected \(times, n, c, h, w\)"):
        plots.strips({"x": torch.zeros(3, 2, 1, 8, 8)}, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"got points of shape \(4, 3\); expected \(n, 2\)"):
        plots.scatter({"x": torch.zeros(4, 3)})


def test_a_file_that_fails_half_way_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("aft")
        raise RuntimeError("half way")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]
