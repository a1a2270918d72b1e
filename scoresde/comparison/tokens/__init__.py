"""Comparison of solvers on tokens: denoising models, and score models of embedded tokens, by the laws of their sequences."""

from scoresde.comparison.tokens.measures import TOKEN_MEASURES, TokenRun
from scoresde.comparison.tokens.runner import compare_tokens, on_tokens

__all__ = ["TOKEN_MEASURES", "TokenRun", "compare_tokens", "on_tokens"]
