"""The published solvers, a family a file: each is a prediction and a stencil, or a rule for one step."""

__all__: list[str] = []
