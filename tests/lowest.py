"""Install the lowest versions that pyproject.toml allows in an environment of its own, and run a part of the tests there.

    python tests/lowest.py [--python python3.11] [--keep FOLDER] [tests ..]

``.ci/lowest`` calls it. A lower bound that no version satisfies, or whose version fails, is to be raised. Everything but
the requirements of scoresde itself (and of its extra "test") is what pip chooses beside them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/test_sde.py",
    "tests/test_score.py",
    "tests/test_sampling.py",
    "tests/test_models.py",
    "tests/test_data_sets.py",
    "tests/test_hostile_files.py",
    "tests/test_cli_help.py",
    "tests/test_cli_models.py",
    "tests/test_plots.py",
    "tests/test_evaluation.py",
)
"""What touches each requirement of scoresde."""


def lowest(requirements: list[str]) -> list[str]:
    """The requirements with ``==`` for their lower bounds."""
    found = []
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise SystemExit(f"got the requirement {requirement!r}; expected NAME>=VERSION, a lower bound to be proved")
        # 1.4 stands for 1.4 and 1.4.0 alike; a local build, such as 2.13.0+cpu, is the same version.
        found.append(f"{match[1]}=={match[2]}")
    return found


def main() -> int:
    """Make the environment, say what is in it, run the tests, and return pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter; the lowest is what requires-python says")
    parser.add_argument("--keep", type=Path, help="make the environment in this folder, and leave it there")
    parser.add_argument("tests", nargs="*", default=list(TESTS))
    arguments = parser.parse_args()
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = lowest([*table["dependencies"], *table["optional-dependencies"]["test"]])
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch) / "venv"
        subprocess.run([arguments.python, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        print("\n".join(wanted), flush=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        call = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments.tests]
        return subprocess.run(call, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
