"""The reference counted: public functions and classes without an example, and those that raise an error and do not say so.

The numbers may only fall. Whoever writes an example lowers its number here.
"""

import ast
import inspect
import pkgutil
import textwrap
from functools import cache
from importlib import import_module
from typing import Any

import scoresde

WITHOUT_EXAMPLE = 1
WITHOUT_RAISES = 0
ERRORS = {"ValueError", "TypeError", "ArithmeticError", "KeyError"}


@cache
def public() -> dict[str, Any]:
    """The public functions and classes of scoresde and of its packages, which are those of the reference, by full names."""
    found: dict[int, tuple[str, Any]] = {}
    for module in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        if ".cli" in module.name or not (module.ispkg or module.name.count(".") == 1):
            continue
        of = import_module(module.name)
        for name in getattr(of, "__all__", ()):
            value = getattr(of, name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("scoresde"):
                found.setdefault(id(value), (f"{value.__module__}.{name}", value))
    return dict(sorted(found.values(), key=lambda item: item[0]))


def can_have_an_example(value: Any) -> bool:
    """Exceptions, interfaces and results, which others make, have none of their own."""
    if not inspect.isclass(value):
        return True
    return not (issubclass(value, BaseException) or inspect.isabstract(value) or getattr(value, "_is_protocol", False))


def raises(value: Any) -> bool:
    """Whether the body of a function, or of a class's construction, has a ``raise`` of an error for its caller."""
    parts = [value] if inspect.isfunction(value) else [vars(value).get(n) for n in ("__init__", "__post_init__")]
    for part in parts:
        part = inspect.unwrap(part) if part is not None else None
        if not inspect.isfunction(part) or part.__module__ is None or not part.__module__.startswith("scoresde"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        except (OSError, SyntaxError):  # methods that a dataclass writes
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ERRORS:
                return True
    return False


def test_public_functions_and_classes_have_examples() -> None:
    without = [name for name, value in public().items() if can_have_an_example(value) and ">>>" not in (value.__doc__ or "")]
    assert len(without) <= WITHOUT_EXAMPLE, f"write an example that runs for what is new here: {without}"
    assert len(without) > WITHOUT_EXAMPLE - 10, f"lower WITHOUT_EXAMPLE to {len(without)}"


def test_errors_are_listed() -> None:
    without = [name for name, value in public().items() if raises(value) and "Raises:" not in (value.__doc__ or "")]
    assert len(without) <= WITHOUT_RAISES, f"list the errors of what is new here: {without}"
    assert len(without) > WITHOUT_RAISES - 10, f"lower WITHOUT_RAISES to {len(without)}"


def test_what_raises_is_found() -> None:
    assert raises(scoresde.metrics.vendi_score) and raises(scoresde.VP) is False
    assert len(public()) > 400
