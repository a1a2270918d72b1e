"""Solvers with adaptive steps: embedded pairs, their step control, the probability flow and the reverse SDE."""

__all__: list[str] = []
