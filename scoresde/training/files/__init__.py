"""What a training keeps on the disk: checkpoints, which of them to retain, logs and records."""

__all__: list[str] = []
