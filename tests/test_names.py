"""The laws of tables: how names are found, refused, added, and brought by installed packages."""

import importlib.metadata
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoresde.base.names import MOST_LISTED, Table, UnknownNameError
from scoresde.base.settings import parse

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)


def table(*names: str, **more: Any) -> Table[Any]:
    return Table(
        "colour", "palette.COLOURS", {name: name.upper() for name in names or ("red", "dark-red", "dpmpp-2m")}, **more
    )


# One table -----------------------------------------------------------------------------------------------------------


@given(st.lists(WORDS, min_size=1, max_size=30, unique=True))
def test_a_table_is_a_mapping_of_its_entries(names: list[str]) -> None:
    made = table(*names)
    assert dict(made) == {name: name.upper() for name in names} and len(made) == len(names)
    assert "?" not in made and 3 not in made and made.get("?") is None and made.get("?", 5) == 5


@pytest.mark.parametrize("spelling", ["dpmpp-2m", "DPMpp-2M", "dpm++-2m", "DPM++_2M", " dpmpp-2m ", "DPM++ 2M"])
def test_a_name_is_found_however_it_is_spelled(spelling: str) -> None:
    made = table()
    assert made[spelling] == "DPMPP-2M" and made.name(spelling) == "dpmpp-2m" and spelling in made


def test_a_name_keeps_the_spelling_of_the_table() -> None:
    made = table("swiss_roll", "flow")
    assert made.name("Swiss-Roll") == "swiss_roll" and made["swiss roll"] == "SWISS_ROLL" and "swiss_roll" in list(made)
    with pytest.raises(UnknownNameError, match="did you mean 'swiss_roll'"):
        made["swis_roll"]


@pytest.mark.parametrize("name", ["rd", 3, None, "", ("red",), ["red"]])
def test_an_unknown_name_is_a_key_error_and_a_value_error_with_one_sentence(name: Any) -> None:
    for error in (KeyError, ValueError, UnknownNameError):
        with pytest.raises(error) as caught:
            table(also="a triple")[name]
    sentence = f"got colour {name!r}; expected one of red, dark-red, dpmpp-2m, or a triple"
    assert str(caught.value).startswith(sentence)
    assert str(caught.value)[len(sentence) :] in ("", "; did you mean 'red'?", "; did you mean 'red' or 'dark-red'?")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_long_table_says_where_its_names_are_instead_of_all_of_them() -> None:
    names = [f"colour-{i}" for i in range(MOST_LISTED + 1)]
    assert ", ".join(names[:-1]) in str(table(*names[:-1]).unknown("clour-1"))
    assert str(table(*names).unknown("clour-1")) == (
        f"got colour 'clour-1'; expected one of the {len(names)} names in list(palette.COLOURS); "
        "did you mean 'colour-1' or 'colour-19' or 'colour-18'?"
    )


def test_entries_come_by_registration_alone_and_go_again() -> None:
    made = table("red")
    for change in ("made['green'] = 1", "del made['red']", "made.clear()", "made.update(green=1)", "made.pop('red')"):
        with pytest.raises((TypeError, AttributeError)):
            exec(change)
    assert made.register("green", 1) == 1 and made["GREEN"] == 1 and list(made) == ["red", "green"]

    @made.register("blue")
    def blue() -> None: ...

    assert made["blue"] is blue and made.unregister("Blue") is blue and list(made) == ["red", "green"]
    with pytest.raises(UnknownNameError):
        made.unregister("blue")
    made.register("blue", None)  # a value like any other
    assert "blue" in made and made["blue"] is None


@pytest.mark.parametrize("name", ["red", "Red", "dark_red", "DPM++-2M"])
def test_a_taken_name_is_refused_however_it_is_spelled(name: str) -> None:
    made = table()
    with pytest.raises(ValueError, match=rf"got a second colour '{made.name(name)}'; expected a name that is not taken"):
        made.register(name, 1)
    assert dict(made) == dict(table())


@pytest.mark.parametrize("name", ["", " red", "red: 3", 3, None])
def test_a_name_that_no_text_could_say_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a word without a colon"):
        table().register(name, 1)


def test_a_value_of_another_kind_is_refused() -> None:
    made = table(check=callable, expects="a function")
    with pytest.raises(ValueError, match="got 3 for the colour 'green'; expected a function"):
        made.register("green", 3)
    assert "green" not in made and made.register("green", len) is len


def test_iteration_sees_one_state_of_the_table() -> None:
    made = table("a", "b")
    assert [made.register(name + name, 1) for name in made] == [1, 1] and len(made) == 4


# Settings ------------------------------------------------------------------------------------------------------------


def makers() -> Table[Callable[..., Any]]:
    def needs(size: int, power: float = 1.0) -> float:
        return size**power

    return Table("shape", "palette.SHAPES", {"needs": needs, "any": lambda **settings: settings, "plain": lambda: 7})


def test_settings_follow_the_name() -> None:
    assert makers().make("Needs: size=3, power=2") == 9 and makers().make("plain") == makers().make("plain:") == 7
    assert makers().make("any: a=[1, 2], b='c'") == {"a": [1, 2], "b": "c"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("neds: size=3", "got shape 'neds'; expected one of needs, any, plain; did you mean 'needs'"),
        ("needs: sise=3", "got 'sise' for shape 'needs'; expected its arguments: size, power; did you mean 'size'"),
        ("plain: size=3", "got 'size' for shape 'plain'; expected no settings, for it takes none"),
        ("needs", "got shape 'needs': missing a required argument: 'size'; expected 'needs: NAME=VALUE"),
        ("needs: size='a', power=2", "got shape .*; expected settings of the types"),
        ("needs: size", "expected a name and settings as in TOML"),
        ("needs: size=1}\nmore = {", "expected a name and settings as in TOML"),
        ("needs: size=" + "[" * 5000, "expected a name and settings as in TOML"),
        (3, "got shape 3; expected one of needs"),
    ],
)
def test_settings_that_cannot_be_are_refused(text: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        makers().make(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (parse, makers().make, table().name):
        try:
            read(text)
        except ValueError:
            continue


# Installed packages --------------------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Make ``install(group, name=value)`` list values as entry points; it returns the groups that were asked for."""

    def install(group: str, **values: Any) -> list[str]:
        module, asked = types.ModuleType("installed"), []
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, "installed", module)
        entries = [importlib.metadata.EntryPoint(name, f"installed:{name}", group) for name in values]

        def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
            asked.append(group)
            return [entry for entry in entries if entry.group == group]

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        return asked

    yield install


def test_installed_packages_are_asked_once_and_only_for_what_is_missing(install: Callable[..., list[str]]) -> None:
    asked, made = install("scoresde.colours", green="G", blue="B"), table()
    assert made["red"] == "RED" and "dark-red" in made and asked == []
    assert made["Green"] == "G" and "blue" in made and "mauve" not in made and asked == ["scoresde.colours"]
    assert made.load() == ("green", "blue") and asked == ["scoresde.colours"]
    assert table().load() == ("green", "blue")  # of a listing, which has nothing to miss


def test_a_module_of_an_installed_package_registers_its_values(install: Callable[..., list[str]]) -> None:
    made = table()
    install("scoresde.colours", green=types.ModuleType("green"))
    made.register("green", "G")  # as it would have when it was imported
    assert made.load() == ("green",) and made["green"] == "G"


def test_an_installed_package_that_is_broken_leaves_the_other_names(install: Callable[..., list[str]]) -> None:
    install("scoresde.colours", red="R", green="G")
    made = table()
    with pytest.warns(UserWarning, match=r"the colour 'red' of an installed package.* was left out: ValueError: got a"):
        assert made["green"] == "G"
    assert made["red"] == "RED"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnknownNameError):
            made["mauve"]
