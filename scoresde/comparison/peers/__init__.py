"""Samplers of other packages as solvers, to be compared on the same models from the same starts."""

__all__: list[str] = []
