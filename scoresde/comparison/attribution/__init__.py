"""Where an error comes from: which steps of a path, which parts of the method, and errors of a score of known size."""

__all__: list[str] = []
