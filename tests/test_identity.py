"""Identity: what computes the same is the same, in every process, and nothing else is."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scoresde import DDPM, VP, FunctionSDE
from scoresde.base.identity import Identified, digest, tell
from scoresde.sde import GaussianSDE, GeneralSDE

RATE = 2.0
ROOT = Path(__file__).resolve().parents[1]


def module(text: str, name: str = "mine") -> Any:
    """A module of the user's with this text."""
    made = types.ModuleType(name)
    exec(text, vars(made))
    return made


# Code ----------------------------------------------------------------------------------------------------------------

PAIRS = {
    "constant": ("f = lambda t: 2 * t", "f = lambda t: 3 * t"),
    "type of a constant": ("f = lambda t: t // 2", "f = lambda t: t // 2.0"),
    "operator": ("f = lambda t: 2 * t", "f = lambda t: 2 + t"),
    "name called": ("f = lambda t: t.sin()", "f = lambda t: t.cos()"),
    "default": ("f = lambda t, a=1.0: a * t", "f = lambda t, a=2.0: a * t"),
    "default by keyword": ("f = lambda t, *, a=1.0: a * t", "f = lambda t, *, a=2.0: a * t"),
    "closure": ("f = (lambda a: lambda t: a * t)(1.0)", "f = (lambda a: lambda t: a * t)(2.0)"),
    "closure that is a function": (
        "f = (lambda g: lambda t: g(t))(lambda t: 1)",
        "f = (lambda g: lambda t: g(t))(lambda t: 2)",
    ),
    "nested function": ("def f(t):\n return (lambda u: 2 * u)(t)", "def f(t):\n return (lambda u: 3 * u)(t)"),
    "global function": ("def g(t): return 2 * t\ndef f(t): return g(t)", "def g(t): return 3 * t\ndef f(t): return g(t)"),
    "global function of a nested one": (
        "def g(t): return 2 * t\ndef f(t): return [g(u) for u in t]",
        "def g(t): return 3 * t\ndef f(t): return [g(u) for u in t]",
    ),
    "global function of a global function": (
        "def h(t): return 2\ndef g(t): return h(t)\ndef f(t): return g(t)",
        "def h(t): return 3\ndef g(t): return h(t)\ndef f(t): return g(t)",
    ),
    "global number": ("A = 2.0\ndef f(t): return A * t", "A = 3.0\ndef f(t): return A * t"),
    "global tensor": (
        "import torch\nA = torch.ones(2)\ndef f(t): return A * t",
        "import torch\nA = torch.zeros(2)\ndef f(t): return A * t",
    ),
    "global object": (
        "class C:\n  def __init__(self, a): self.a = a\nc = C(1)\ndef f(t): return c.a * t",
        "class C:\n  def __init__(self, a): self.a = a\nc = C(2)\ndef f(t): return c.a * t",
    ),
    "function of a module of the user's": (
        "import types\nm = types.ModuleType('helpers')\nexec('def g(t): return 2 * t', vars(m))\ndef f(t): return m.g(t)",
        "import types\nm = types.ModuleType('helpers')\nexec('def g(t): return 3 * t', vars(m))\ndef f(t): return m.g(t)",
    ),
    "partial": (
        "import functools\nf = functools.partial(lambda t, a: a * t, a=2)",
        "import functools\nf = functools.partial(lambda t, a: a * t, a=3)",
    ),
    "cached function": (
        "import functools\n@functools.lru_cache\ndef f(t): return 2 * t",
        "import functools\n@functools.lru_cache\ndef f(t): return 3 * t",
    ),
    "recursion": (
        "def f(t): return g(t - 1)\ndef g(t): return f(t) if t else 2",
        "def f(t): return g(t - 1)\ndef g(t): return f(t) if t else 3",
    ),
    "method": ("class f:\n  def g(self): return 2", "class f:\n  def g(self): return 3"),
    "property": (
        "class f:\n  @property\n  def g(self): return 2",
        "class f:\n  @property\n  def g(self): return 3",
    ),
    "static method": (
        "class f:\n  @staticmethod\n  def g(): return 2",
        "class f:\n  @staticmethod\n  def g(): return 3",
    ),
    "attribute of a class": ("class f:\n  a = 2", "class f:\n  a = 3"),
    "inherited attribute": (
        "class b:\n  a = 2\nclass f(b):\n  def g(self): return super().g()",
        "class b:\n  a = 3\nclass f(b):\n  def g(self): return super().g()",
    ),
    "bound method": (
        "class C:\n  def __init__(self, a): self.a = a\n  def g(self): return self.a\nf = C(1).g",
        "class C:\n  def __init__(self, a): self.a = a\n  def g(self): return self.a\nf = C(2).g",
    ),
    "slots": (
        "class C:\n  __slots__ = ('a',)\nf = C()\nf.a = 1",
        "class C:\n  __slots__ = ('a',)\nf = C()\nf.a = 2",
    ),
    "attribute of a function": ("def f(t): return f.a\nf.a = 1", "def f(t): return f.a\nf.a = 2"),
    "name of an argument": ("f = lambda a, b: a - b", "f = lambda b, a: b - a"),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_other_code_is_another_thing_and_the_same_code_the_same(one: str, other: str) -> None:
    assert digest(module(one).f) == digest(module(one).f)
    assert digest(module(one).f) != digest(module(other).f)
    assert digest(module(one).f, libraries=False) != digest(module(other).f, libraries=False)


def test_what_is_the_same_is_so_in_another_process() -> None:
    programme = (
        "import types\nfrom scoresde.base.identity import digest\nfiller = [object() for _ in range(1000)]\n"
        f"for text in {[one for one, _ in PAIRS.values()]!r}:\n"
        " m = types.ModuleType('elsewhere')\n exec(text, vars(m))\n print(digest(m.f))"
    )
    run = subprocess.run([sys.executable, "-c", programme], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == [digest(module(one).f) for one, _ in PAIRS.values()]


def test_what_changes_nothing_does_not_count() -> None:
    written = module('def f(t):\n    """Twice."""\n    u = 2 * t  # a comment\n    return u').f
    again = module('\n\ndef f(t):\n    """Two times."""\n    v = 2 * t\n    return v').f
    assert digest(written) == digest(again)

    class Cached:
        @functools.cached_property
        def value(self) -> float:
            return 1.0

    used = Cached()
    assert used.value == 1.0 and digest(used) == digest(Cached())


def test_what_cannot_be_read_counts_by_its_class_where_code_only_mentions_it() -> None:
    text = "import threading, logging\nlock = threading.Lock()\nlog = logging.getLogger('x')\ndef f(t):\n with lock: log(t)"
    assert digest(module(text).f) == digest(module(text).f)
    with pytest.raises(ValueError, match="cannot tell what a lock holds"):
        digest(threading.Lock())


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.tuples(x))
)
def test_plain_values_are_the_same_where_they_are_equal(value: Any) -> None:
    import copy

    assert digest(value) == digest(copy.deepcopy(value))
    assert digest([value]) != digest([value, value]) and digest(value) != digest([value])


@given(a=st.floats(allow_nan=False), b=st.floats(allow_nan=False))
def test_numbers_are_the_same_where_python_says_so(a: float, b: float) -> None:
    assert (digest(a) == digest(b)) == (a == b)
    assert digest(np.float64(a)) == digest(a)
    assert digest(1) == digest(1.0) == digest(np.int64(1)) != digest(True)


def test_arrays_tensors_and_modules_are_what_they_hold() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    distinct = [x, x.T, x.double(), x.numpy(), x.reshape(3, 2), x + 1, x.bool(), x.bfloat16(), {"x": x}, [x], np.array("a")]
    assert len({digest(v) for v in distinct}) == len(distinct)
    assert digest([x, x]) == digest([x, x.clone()]) and digest(x.T) == digest(x.T.contiguous())
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert digest(one) != digest(two) and digest(one, weights=False) == digest(two, weights=False)
    assert digest(nn.Linear(2, 3), weights=False) != digest(one, weights=False)
    assert digest(nn.Dropout(0.1), weights=False) != digest(nn.Dropout(0.2), weights=False)


def test_a_description_has_no_address_and_tells_apart_what_looks_alike() -> None:
    class Mine:
        def __init__(self, a: float) -> None:
            self.a = a

    assert tell(Mine(1.0)) == tell(Mine(1.0)) != tell(Mine(2.0))
    assert " at 0x" not in tell(Mine(1.0)) and "0x" not in tell(FunctionSDE(lambda t: -t, torch.log))


def test_sharing_does_not_make_reading_long() -> None:
    value: list[Any] = [1.0]
    for _ in range(200):
        value = [value, value]
    assert digest(value) == digest(value)


# SDEs ----------------------------------------------------------------------------------------------------------------


class Hidden(GaussianSDE):
    """A user's SDE whose number is no field of a dataclass."""

    def __init__(self, rate: float) -> None:
        object.__setattr__(self, "rate", rate)

    @property
    def span(self) -> tuple[float, float]:
        return 1e-3, 1.0

    def log_alpha(self, t: Any) -> Tensor:
        return -self.rate * torch.as_tensor(t)

    def log_sigma(self, t: Any) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(-2 * self.rate * torch.as_tensor(t)))


@dataclass(frozen=True)
class Decorated(Hidden):
    """The same as a dataclass, whose own comparison would see no field at all."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)


def functions(a: float) -> FunctionSDE:
    return FunctionSDE(lambda t: -a * t, lambda t: torch.log(t))


def general(a: float) -> GeneralSDE:
    return GeneralSDE(lambda x, t: -a * x, lambda x, t: torch.ones_like(x))


def of_a_class(a: float) -> GaussianSDE:
    made: GaussianSDE = type("Hidden", (Hidden,), {"log_alpha": lambda self, t: -a * torch.as_tensor(t)})(1.0)
    return made


@pytest.mark.parametrize("make", [Hidden, Decorated, functions, general, of_a_class, lambda a: VP(beta_max=10 + a)])
def test_sdes_are_equal_where_they_compute_the_same(make: Any) -> None:
    assert make(1.0) == make(1.0) and hash(make(1.0)) == hash(make(1.0))
    assert make(1.0) != make(2.0) and len({make(1.0), make(2.0), make(1.0)}) == 2
    assert digest(make(1.0)) != digest(make(2.0))


def test_equality_is_that_of_numbers_and_of_kinds() -> None:
    assert VP(beta_max=20) == VP() and hash(VP(beta_max=20)) == hash(VP())
    assert VP() != "VP" and VP() != Hidden(1.0)
    used, new = DDPM.linear(10), DDPM.linear(10)
    assert used.log_alpha is not None and used == new and hash(used) == hash(new)
    assert used.sde() == new.sde() != DDPM.linear(11).sde()


def test_a_class_that_compares_by_itself_does_so() -> None:
    class Own(Identified):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

    assert Own() == 3
