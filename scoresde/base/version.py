"""The version of the package, alone so that files and reports can state it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
"""As in the changelog."""
