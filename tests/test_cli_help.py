"""The help of the commands: examples that can be typed, and completion in shells."""

import os
import shlex
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from scoresde.cli import app
from scoresde.cli.application import EXAMPLES

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_in_examples_as_they_are_typed(name):
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    (lines,) = [lines for command, lines in EXAMPLES.items() if command.__name__ == name]
    shown = done.output.partition("Examples:")[2].splitlines()
    assert [line.strip() for line in shown if line.strip()] == list(lines)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_understood(line):
    _, name, *arguments = shlex.split(line.partition(" > ")[0])
    with COMMANDS[name].make_context(name, arguments) as context:
        assert context.command.name == name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.slow
def test_shells_complete_commands(shell):
    words = {
        "COMP_WORDS": "scoresde sa",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "scoresde sa",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_SCORESDE_COMPLETE": f"complete_{shell}",
    }
    programme = "import sys; sys.argv = ['scoresde']; from scoresde.cli import app; app(prog_name='scoresde')"
    run = subprocess.run(
        [sys.executable, "-c", programme],
        capture_output=True,
        text=True,
        env={**os.environ, **words},
    )
    assert "sample" in run.stdout and "evaluate" not in run.stdout, run.stderr
