"""The laws of tables: how names are found, refused, added and brought by installed packages; and every table there is."""

import importlib
import importlib.metadata
import pickle
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scoresde
from scoresde import comparison, data, discrete, evaluation, inverse, models, objectives, presets, solvers, weights
from scoresde.base.names import MOST_LISTED, Table, UnknownNameError
from scoresde.base.settings import parse
from scoresde.comparison.peers.modules import missing
from scoresde.sde.names import process
from scoresde.training import Method
from scoresde.training.networks import choice, network

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
        ("needs: size='a', power=2", "got size='a' for shape 'needs': Expected `int`, got `str`"),
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


# The tables of the library -------------------------------------------------------------------------------------------


def modules() -> Iterator[types.ModuleType]:
    for module in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        if not module.name.endswith("__main__"):
            yield importlib.import_module(module.name)


TABLES = {found.kind: found for module in modules() for found in vars(module).values() if isinstance(found, Table)}
each_table = pytest.mark.parametrize("kind", TABLES)


def sample(**options: Any) -> object:
    model = scoresde.problems.ring().model(scoresde.VP())
    return scoresde.sample(model, (2, 2), **{"solver": "ddim", "steps": 2, "progress": False, **options})


def sample_matrix(**options: Any) -> object:
    model = scoresde.problems.ring().model(scoresde.sde.CLD())
    return scoresde.sample(model, (2, 2), **{"steps": 2, "progress": False, **options})


def likelihood(**options: Any) -> object:
    model = scoresde.problems.ring().model(scoresde.VP())
    return scoresde.log_likelihood(model, torch.ones(2, 2), **{"steps": 2, **options})


def compare(problem: str = "ring", solvers: Any = ("ddim",), **options: Any) -> object:
    return scoresde.compare(problem, solvers, [2], **{"metrics": ["energy"], "n": 8, "progress": False, **options})


def fit(**options: Any) -> object:
    model = scoresde.ScoreModel(models.MLP(2, hidden=(4,)), scoresde.VP())
    return scoresde.fit(
        model,
        torch.randn(8, 2),
        steps=1,
        **{"progress": False, **({} if "method" in options else {"batch_size": 4}), **options},
    )


SEEN = inverse.Observation(inverse.Mask([True, False]), torch.tensor([1.0]), 0.1)

ABSORBING = discrete.Absorbing(2)
TOKENS = discrete.MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length=2)

DOORS: dict[str, list[Callable[[str], object]]] = {
    "solver": [
        lambda name: sample(solver=name),
        lambda name: compare(solvers=[name]),
        lambda name: compare(solvers=name),
        lambda name: compare(solvers={"label": name}),
        solvers.get,
    ],
    "matrix solver": [lambda name: sample_matrix(solver=name), lambda name: solvers.MATRIX_SOLVERS.make(name)],
    "prediction": [
        lambda name: scoresde.ScoreModel(models.MLP(2, hidden=(4,)), scoresde.VP(), name),
        lambda name: scoresde.score.target(name, torch.ones(1, 1), torch.ones(1, 1), *torch.tensor([[0.8], [0.6]]), 0.5),
    ],
    "path": [lambda name: sample(path=name), lambda name: compare(paths=[name])],
    "driver": [lambda name: sample(driver=name)],
    "trace": [lambda name: likelihood(trace=name)],
    "SDE": [process, choice],
    "objective": [
        lambda name: fit(objective=name),
        lambda name: objectives.LabelDropout(name, {"label": 3}),
        objectives.objective,
    ],
    "weighting": [lambda name: fit(objective=objectives.DSM(name))],
    "distribution of times": [
        lambda name: fit(objective=objectives.DSM(times=name)),
        objectives.AdaptiveTimes,
        lambda name: objectives.VariationalBound(times=name),
    ],
    "problem": [compare, lambda name: compare([name])],
    "metric": [lambda name: compare(metrics=[name]), lambda name: compare(metrics=name)],
    "peer": [lambda name: compare(solvers=[name])],
    "suite": [comparison.suite],
    "data": [data.load_tensor, data.open],
    "collection of data": [lambda name: data.load_tensor(f"{name}:nowhere")],
    "network": [
        lambda name: models.build(name, width=8),
        lambda name: network(f"{name}: width=8", (3, 32, 32), scoresde.VP(), "eps"),
    ],
    "autoencoder": [lambda name: models.AUTOENCODERS[name].build(width=32)],
    "embedding of time": [lambda name: models.UNet(1, 8, (1,), time=name)],
    "optimizer": [lambda name: fit(method=Method(optimizer=name, batch_size=4))],
    "schedule": [lambda name: fit(method=Method(schedule=name, batch_size=4))],
    "average": [
        lambda name: fit(ema=f"{name}-0.9"),
        lambda name: fit(method=Method(averages=(f"{name}-0.9",), ema=0.5, batch_size=4)),
    ],
    "precision": [lambda name: fit(method=Method(precision=name, batch_size=4))],
    "preset": [presets.find_preset],
    "config": [lambda name: weights.load_published("file.pt", name)],
    "extractor": [lambda name: evaluation.find_features(name)],
    "method": [lambda name: inverse.METHODS[name](scoresde.problems.ring().model(scoresde.VP()), SEEN)],
    "sampler": [lambda name: inverse.SAMPLERS[name](SEEN)],
    "noise schedule": [
        lambda name: discrete.Absorbing(3, name),
        lambda name: discrete.Uniform(3, f"{name}:"),
    ],
    "token solver": [
        lambda name: scoresde.sample(TOKENS.model(discrete.Absorbing(2)), (2, 2), name, 2, progress=False),
        lambda name: scoresde.compare(TOKENS, [name], [2], metrics=["bigrams"], n=4, progress=False),
        lambda name: scoresde.compare(TOKENS, {"label": name}, [2], metrics=["bigrams"], n=4, progress=False),
    ],
    "token objective": [
        lambda name: scoresde.fit(
            discrete.DenoisingModel(models.TokenTransformer(3, 2, outputs=2, width=4, depth=1, heads=1), ABSORBING),
            TOKENS,
            name,
            steps=1,
            batch_size=4,
            progress=False,
        ),
    ],
    "token metric": [
        lambda name: scoresde.compare(TOKENS, ["ancestral"], [2], metrics=[name], n=4, progress=False),
    ],
    "anomaly score": [
        lambda name: evaluation.Detector(scoresde.problems.ring().model(scoresde.VP()), name, torch.randn(4, 2)),
    ],
}
"""What takes the names of each table from a user."""

UNUSABLE = {
    "collection of data": "its files are not here",
    "config": "its files are not here",
    "extractor": "its files are not here",
    **({"peer": "the package is not installed"} if "k-diffusion" in missing() else {}),
}
"""Kinds whose values cannot be made here, and why."""


def misspelled(name: str) -> str:
    return name[:-1] + "qq" if len(name) > 1 else f"{name}-qq"


@pytest.fixture
def mine(kind: str) -> Iterator[Any]:
    """A table with one more name, "mine", for what it has first; a peer's has a package before it."""
    found = TABLES[kind]
    name = "k-diffusion/mine" if kind == "peer" else "mine"
    found.register(name, next(iter(found.values())))
    yield found, name
    if name in found:
        found.unregister(name)


def test_each_table_has_a_kind_a_place_and_a_group_of_its_own() -> None:
    assert set(TABLES) == set(DOORS)
    found = {id(table) for module in modules() for table in vars(module).values() if isinstance(table, Table)}
    assert len(found) == len(TABLES) == len({table.group for table in TABLES.values()})


@each_table
def test_a_table_stands_where_it_says(kind: str) -> None:
    module, _, name = TABLES[kind].place.rpartition(".")
    assert getattr(importlib.import_module(module), name) is TABLES[kind]
    assert name in importlib.import_module(module).__all__


@each_table
def test_a_table_takes_its_own_values_and_refuses_taken_names_and_other_kinds(kind: str, mine: Any) -> None:
    found, name = mine
    assert found[name.upper()] is next(iter(found.values())) and list(found)[-1] == name
    for value in found.values():
        assert found._check is None or found._check(value)
    with pytest.raises(ValueError, match=f"got a second {kind} {name!r}; expected a name that is not taken"):
        found.register(name.title(), found[name])
    with pytest.raises(ValueError, match=f"got <object .* for the {kind} 'another'; expected a"):
        found.register("another", object())
    found.unregister(name)
    assert name not in found and "another" not in found


@each_table
def test_every_unknown_name_is_refused_with_the_same_sentence_wherever_it_is_given(kind: str) -> None:
    found = TABLES[kind]
    name = misspelled(next(iter(found)))
    listed = f"one of {', '.join(found)}" if len(found) <= MOST_LISTED else f"the {len(found)} names in list({found.place})"
    assert "did you mean" in str(found.unknown(name)) or len(name) < 6
    for door in DOORS[kind]:
        with pytest.raises(UnknownNameError) as caught:
            door(name)
        assert str(caught.value).startswith(f"got {kind} '{name}") and listed in str(caught.value)
        hint = str(found.unknown(name)).partition("did you mean")[2]
        assert hint in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind not in UNUSABLE])
def test_a_name_of_the_readers_own_works_wherever_names_are_taken(kind: str, mine: Any) -> None:
    _, name = mine
    for door in DOORS[kind]:
        assert door(name) is not None and door(name.upper()) is not None


def test_no_public_mapping_of_names_is_anything_but_a_table() -> None:
    constants = {
        f"{module.__name__}.{name}"
        for module in modules()
        for name in module.__all__
        if name.isupper() and isinstance(value := getattr(module, name), Mapping) and not isinstance(value, Table)
        if all(isinstance(key, str) for key in value)
    }
    # Code bases, which are told apart by the names of their tensors, and the demonstration's rows: no user names them.
    assert constants - {"scoresde.weights.families.FAMILIES", "scoresde.demo.BUDGETS"} == set()
