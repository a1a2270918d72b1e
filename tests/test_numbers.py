"""Whole numbers are whole numbers whoever made them, and nothing else is."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.base.numbers import is_whole, whole

KINDS = [int, *(getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)), torch.tensor, np.array]


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(0, 127))
def test_every_kind_of_integer_becomes_pythons(kind: Any, n: int) -> None:
    got = whole("n", kind(n), 0)
    assert type(got) is int and got == n and is_whole(kind(n))


@given(n=st.integers(), least=st.none() | st.integers(), most=st.none() | st.integers())
def test_the_bounds_are_allowed_themselves_and_nothing_beyond(n: int, least: int | None, most: int | None) -> None:
    inside = (least is None or operator.ge(n, least)) and (most is None or operator.le(n, most))
    if inside:
        assert whole("n", n, least, most) == n
    else:
        with pytest.raises(ValueError, match=f"^got n={n}; expected a whole number (of at (least|most)|from) "):
            whole("n", n, least, most)
    for bound in (least, most):
        if bound is not None:
            assert whole("n", bound, bound, bound) == bound


NO_INTEGERS = [3.0, math.nan, "3", None, True, np.True_, torch.tensor(True), np.float64(3), torch.tensor(3.0)]
NO_INTEGERS += [torch.tensor([3]), np.array([3]), [3], 3 + 0j]


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_no_whole_number_is_refused_in_a_sentence(value: Any) -> None:
    assert not is_whole(value)
    with pytest.raises(ValueError, match=r"^got steps=.*; expected a whole number of at least 1$"):
        whole("steps", value, 1)


@pytest.mark.parametrize(
    ("least", "most", "sentence"),
    [
        (None, None, r"got n=2.5; expected a whole number$"),
        (1, None, r"got n=2.5; expected a whole number of at least 1$"),
        (None, 4, r"got n=2.5; expected a whole number of at most 4$"),
        (1, 4, r"got n=2.5; expected a whole number from 1 to 4$"),
    ],
)
def test_the_sentence_names_the_bounds(least: int | None, most: int | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        whole("n", 2.5, least, most)
