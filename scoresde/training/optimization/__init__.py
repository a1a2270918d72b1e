"""Optimization: optimizers, schedules of the learning rate, and averages of the weights."""

__all__: list[str] = []
