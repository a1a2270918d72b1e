"""What turns gradients into weights: optimizers, schedules of the learning rate, and averages of weights."""

__all__: list[str] = []
