"""The command line: ``scoresde demo``, ``solvers``, ``train``, ``sample``, ``evaluate``, ``compare``, ``presets`` and
``reproduce``, a module each.

What the library refuses is one line on standard error and exit status 2; Ctrl-C is 130, after saving.
"""

from scoresde.cli.application import app, main

__all__ = ["app", "main"]
