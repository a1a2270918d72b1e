"""The report of a comparison: tables, figures, statistics and one page to explore them in."""

__all__: list[str] = []
