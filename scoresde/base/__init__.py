"""Helpers that everything stands on: shapes, names, files, identity, traces. They know nothing of SDEs or models."""

__all__: list[str] = []
