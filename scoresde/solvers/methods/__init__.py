"""The published solvers, one family a file. Each solver is a prediction and a stencil, or a rule for one step."""

__all__: list[str] = []
