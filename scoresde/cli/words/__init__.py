"""Words on the command line: their files, and what is trained on them and drawn."""

from scoresde.cli.words.alphabet import ALPHABET, has_words, read_words
from scoresde.cli.words.model import draw_words, train_words

__all__ = ["ALPHABET", "draw_words", "has_words", "read_words", "train_words"]
