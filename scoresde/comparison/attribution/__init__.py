"""Attribution of errors to the steps of a path and to the parts of the method, and score errors of known size."""

__all__: list[str] = []
