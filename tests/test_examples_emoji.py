"""The example of emoji: it runs, continues, and leaves a folder that the command samples."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scoresde.cli import app

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.slow
def test_it_runs_continues_and_is_sampled(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    if not (DATA / "emoji" / "emoji_64.npz").is_file():
        pytest.skip(f"{DATA} is not there")
    places = ["--emoji", DATA / "emoji" / "emoji_64.npz", "--encoder", DATA / "text-encoder-minilm", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["emoji.py", "--quick", *map(str, places)])
    said = []
    for _ in range(2):
        runpy.run_path(str(ROOT / "examples" / "emoji.py"), run_name="__main__")
        said.append(re.sub(r"[\d.]+ minutes", "", capsys.readouterr().out))
    assert said[0] == said[1] and "found among 16" in said[0] and (tmp_path / "emoji.png").is_file()
    run = CliRunner().invoke(
        app,
        ["sample", str(tmp_path), "--prompt", "red apple", "--guidance", "4", "-n", "2", "--steps", "2", "--no-progress"],
    )
    assert run.exit_code == 0 and (tmp_path / "samples.png").is_file(), run.output
