"""Methods that sample the data given an observation, a file for each."""

__all__: list[str] = []
