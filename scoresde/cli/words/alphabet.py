"""Words as tokens: text files with a word of one length on each line, and the characters that a run folder knows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["ALPHABET", "has_words", "read_words"]

ALPHABET = "alphabet.txt"
"""The file in a run folder that holds the characters of its words, in the order of their tokens."""


def has_words(run: Path) -> bool:
    """Return whether a run folder holds a model of words."""
    return (run / ALPHABET).is_file()


def read_words(path: Path, limit: int | None = None) -> tuple[Tensor, str]:
    """Return the words of a file as tokens, shape ``(n, length)``, and the characters that stand for them.

    Raises:
        ValueError: for a file without words, and for words of different lengths.
    """
    words = path.read_text(encoding="utf-8").split()[:limit]
    if not words:
        raise ValueError(f"got {str(path)!r}, which holds no words; expected a word of the same length on each line")
    odd = next((i for i, word in enumerate(words) if len(word) != len(words[0])), None)
    if odd is not None:
        raise ValueError(
            f"got words of different lengths in {str(path)!r}: {words[0]!r} and, as number {odd + 1}, {words[odd]!r}; "
            "expected words of one length, or shorter ones filled up with a character such as _"
        )
    alphabet = "".join(sorted(set("".join(words))))
    if len(alphabet) < 2:
        raise ValueError(f"got {str(path)!r} with the single character {alphabet!r}; expected at least two")
    tokens = {letter: i for i, letter in enumerate(alphabet)}
    return torch.tensor([[tokens[letter] for letter in word] for word in words]), alphabet
