"""Files of a training: checkpoints and their retention, logs, locks, run folders."""

__all__: list[str] = []
