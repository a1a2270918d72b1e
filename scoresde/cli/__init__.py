"""The command line: ``scoresde demo``, ``doctor``, ``solvers``, ``train``, ``sample``, ``evaluate``, ``score``,
``compare``, ``tune``, ``presets`` and ``reproduce``.

An error of the library is one line on standard error with exit status 2; Ctrl-C saves and exits with status 130.
"""

from scoresde.cli.application import app, main

__all__ = ["app", "main"]
