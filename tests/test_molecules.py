"""Molecules: the table of bonds, valences, encoding, and a system that draws molecules of asked sizes and properties."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from scoresde.systems import molecules as mol
from scoresde.systems.molecules import Molecule
from scoresde.systems.molecules.molecule import VALENCES
from scoresde.training import Method

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "molecules" / "nci_small.npz"
needs_data = pytest.mark.skipif(not DATA.is_file(), reason="the conformers are not beside the checkout")


def chain_of(symbols: str, hydrogens: list[int], lengths: list[float]) -> Molecule:
    """A chain with angles near those of carbon; its atoms two apart are 1.6 bonds apart or more."""
    numbers = {symbol: z for z, symbol in mol.SYMBOLS.items()}
    x, place = [], np.zeros(3)
    for i in range(len(symbols)):
        x.append(place.copy())
        if i < len(lengths):
            place += lengths[i] * np.array([np.cos(0.6), np.sin(0.6) * (-1) ** i, 0])
    return Molecule(torch.tensor([numbers[s] for s in symbols]), torch.tensor(np.stack(x)), torch.tensor(hydrogens))


def benzene(length: float = 1.395) -> Molecule:
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    x = length * torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    return Molecule(torch.full((6,), 6), x, torch.ones(6, dtype=torch.int64))


def ethanol() -> Molecule:
    return chain_of("CCO", [3, 2, 1], [1.52, 1.42])


# Bonds ---------------------------------------------------------------------------------------------------------------


def test_the_table_of_bonds_has_every_pair_with_lengths_that_fall_with_the_order():
    pairs = set(itertools.combinations_with_replacement(sorted(mol.SYMBOLS), 2)) - {(1, 1)}
    assert set(mol.BONDS) - {(1, 1)} == pairs
    for (a, b), spans in mol.BONDS.items():
        assert len(spans) <= min(VALENCES[a], VALENCES[b])
        assert all(low < high for low, high in spans)
        assert all(u[0] > v[0] and u[1] > v[1] for u, v in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("molecule", "orders"),
    [
        (chain_of("CC", [3, 3], [1.53]), [1]),
        (chain_of("CC", [2, 2], [1.33]), [2]),
        (chain_of("CC", [1, 1], [1.20]), [3]),
        (chain_of("CO", [2, 0], [1.21]), [2]),
        (chain_of("CCN", [3, 0, 0], [1.46, 1.16]), [1, 3]),
        (chain_of("CNC", [3, 1, 3], [1.46, 1.46]), [1, 1]),
        (chain_of("CCO", [3, 2, 1], [1.52, 1.42]), [1, 1]),
        (chain_of("HOOH", [0, 0, 0, 0], [0.97, 1.46, 0.97]), [1, 1, 1]),
    ],
)
def test_bonds_are_found_with_their_orders(molecule, orders):
    found = mol.find_bonds(molecule)
    assert found is not None and [bond.order for bond in found] == orders
    assert [bond[:2] for bond in found] == list(itertools.pairwise(range(len(molecule))))


def test_the_orders_of_a_ring_alternate():
    found = mol.find_bonds(benzene())
    assert found is not None and sorted(b.order for b in found) == [1, 1, 1, 2, 2, 2]
    for atom in range(6):
        assert sum(b.order for b in found if atom in b[:2]) == 3


@pytest.mark.parametrize(
    "molecule",
    [
        chain_of("CC", [3, 2], [1.53]),  # a hydrogen is missing
        chain_of("CC", [2, 2], [1.53]),  # too long for a double bond
        chain_of("CC", [3, 3], [1.25]),  # too short for a single one
        chain_of("CC", [3, 3], [2.5]),  # apart
        chain_of("CC", [3, 3], [0.9]),  # closer than any bond
        chain_of("CO", [4, 1], [1.42]),  # more hydrogens than valences
        chain_of("CO", [3, 0], [1.42]),  # a radical
        benzene(1.55),  # too long to be aromatic
    ],
)
def test_wrong_valences_are_seen(molecule):
    assert mol.find_bonds(molecule) is None
    found = mol.quality([molecule, ethanol()], [ethanol()])
    assert (found.right, found.whole, found.novel) == (0.5, 0.5, 0.0)


def test_bonds_do_not_depend_on_the_order_of_atoms_or_on_the_point_of_view():
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for molecule in (benzene(), ethanol(), chain_of("CCN", [3, 0, 0], [1.46, 1.16])):
        order = torch.randperm(len(molecule), generator=torch.Generator().manual_seed(1))
        other = Molecule(molecule.elements[order], (molecule.positions @ q.T + 3.0)[order], molecule.hydrogens[order])
        one, two = mol.find_bonds(molecule), mol.find_bonds(other)
        assert one is not None and two is not None
        assert sorted(b.order for b in one) == sorted(b.order for b in two)
        assert mol.graph_of(molecule, one) == mol.graph_of(other, two)
    ether = chain_of("COC", [3, 0, 3], [1.42, 1.42])  # of the same formula as ethanol
    one, two = (mol.graph_of(m, mol.find_bonds(m) or []) for m in (ethanol(), ether))
    assert one != two


@needs_data
@pytest.mark.parametrize("hydrogens", [False, True])
def test_all_conformers_have_right_valences_and_as_many_graphs_as_there_are_molecules(hydrogens):
    every = mol.read_molecules(DATA, hydrogens=hydrogens)
    chosen = every if hydrogens is False else every[::25]
    bonds = [mol.find_bonds(molecule) for molecule in chosen]
    assert all(found is not None and mol.connected(m, found) for m, found in zip(chosen, bonds, strict=True))
    if not hydrogens:
        with np.load(DATA) as file:
            number = file["molecule"]
        graphs = [mol.graph_of(m, found or []) for m, found in zip(chosen, bonds, strict=True)]
        assert len(set(zip(graphs, number.tolist(), strict=True))) == len(set(graphs)) == len(set(number.tolist())) == 412


@needs_data
def test_rdkit_agrees_on_molecules_and_has_the_smiles_of_the_data():
    chem = pytest.importorskip("rdkit.Chem")
    with np.load(DATA) as file:
        smiles = file["smiles"]
    every = mol.read_molecules(DATA)
    for i in range(0, len(every), 15):
        same = chem.MolToSmiles(chem.MolFromSmiles(str(smiles[i])), isomericSmiles=False)
        assert mol.smiles_of(every[i]) == same
        whole = mol.with_hydrogens(every[i])
        assert whole is not None and whole.formula == every[i].formula and mol.find_bonds(whole) is not None
    assert mol.to_rdkit(chain_of("CC", [3, 2], [1.53])) is None


# Encoding ------------------------------------------------------------------------------------------------------------


def small() -> mol.Molecules:
    others = [chain_of("CCC", [3, 2, 3], [1.53, 1.53]), chain_of("CNCO", [3, 1, 2, 1], [1.46, 1.46, 1.42])]
    return mol.Molecules([ethanol(), *others, chain_of("CC", [3, 3], [1.53])])


def test_encoding_and_decoding_give_the_molecules_back_and_forget_where_they_were():
    data = small()
    x, told = data.batch(range(len(data)))
    assert x[..., :3].sum(1).abs().max() < 1e-5 and bool((x[~told["mask"]] == 0).all())
    back = data.encoding.decode(x, told["mask"])
    for one, two in zip(data.molecules, back, strict=True):
        assert torch.equal(one.elements, two.elements) and torch.equal(one.hydrogens, two.hydrogens)
        torch.testing.assert_close(
            torch.cdist(one.positions, one.positions), torch.cdist(two.positions, two.positions).double(), atol=1e-5, rtol=0
        )
    assert abs(float(told["property"].mean())) < 1e-5 and abs(float(told["property"].std()) - 1) < 1e-5
    assert data.fingerprint() == small().fingerprint() != mol.Molecules(data.molecules[:3]).fingerprint()


def test_hydrogens_are_counted_where_they_are_bonded():
    full = chain_of("HOOH", [0, 0, 0, 0], [0.97, 1.46, 0.97])
    assert mol.united(full).hydrogens.tolist() == [1, 1] and mol.united(full).formula == full.formula == "H2O2"


# The system ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(tmp_path_factory: Any) -> mol.MoleculeDiffusion:
    data = small()
    model = mol.molecule_model(data, width=8, depth=1)
    out = tmp_path_factory.mktemp("molecules") / "model.safetensors"
    return mol.train_molecules(data, model=model, steps=5, out=out, method=Method(batch_size=4), progress=False)


def test_molecules_have_the_sizes_that_are_asked_for(system):
    drawn = system.draw(4, atoms=[2, 4, 3, 2], steps=4)
    assert [len(molecule) for molecule in drawn.molecules] == [2, 4, 3, 2]
    alone = system.draw(4, atoms=[2, 4, 3, 2], steps=4, seed=drawn.samples.seeds)
    assert torch.equal(alone.samples.x, drawn.samples.x)
    assert {len(molecule) for molecule in system.draw(40, steps=2).molecules} == {2, 3, 4}


def test_guidance_extrapolates_from_the_model_without_a_property(system):
    model = copy.deepcopy(system.model)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7, generator=torch.Generator().manual_seed(0))
    shaken = dataclasses.replace(system, model=model)
    asked = {"atoms": 3, "steps": 1, "solver": "euler", "property": 1.5}
    without = shaken.draw(2, **{**asked, "property": None}).samples.x
    one, two = (shaken.draw(2, guidance=g, **asked).samples for g in (1.0, 2.0))
    assert two.evaluations == 2 * one.evaluations and (one.x - without).abs().max() > 1e-3
    torch.testing.assert_close(two.x, 2 * one.x - without, rtol=1e-3, atol=1e-4)  # one step, linear in the prediction


def test_a_training_continues_from_its_file_and_is_the_same(tmp_path):
    def train(steps: int, out: Path) -> mol.MoleculeDiffusion:
        data = small()
        model, method = mol.molecule_model(data, width=8, depth=1), Method(batch_size=4)
        return mol.train_molecules(data, model=model, steps=steps, out=out, method=method, progress=False)

    train(2, tmp_path / "a.safetensors")
    one, two = (train(4, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    weights = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.slow
def test_a_short_training_on_two_molecules_draws_them():
    data = mol.Molecules([ethanol(), chain_of("COC", [3, 0, 3], [1.42, 1.42])])
    model = mol.molecule_model(data, width=32, depth=2)
    method = Method(batch_size=32, lr=3e-3, schedule="cosine-1200")
    system = mol.train_molecules(data, model=model, steps=1200, method=method, progress=False)
    found = mol.quality(system.draw(100).molecules, data.molecules)
    assert found.right > 0.9 and found.novel < 0.5 and max(found.lengths.values()) < 0.05


def test_figures_show_a_molecule_each():
    figure = mol.molecule_figure([ethanol(), benzene(), chain_of("CC", [3, 2], [1.53])], ["a", "b", "c"], columns=2)
    titles = [ax.get_title() for ax in figure.axes]
    lines = [len(ax.lines) for ax in figure.axes]
    assert titles == ["a", "b", "c"] and lines == [2, 9, 0]  # the last one has wrong valences and no bonds
    assert figure.axes[2].spines["left"].get_visible() and not figure.axes[0].spines["left"].get_visible()


# Errors --------------------------------------------------------------------------------------------------------------


def file_of(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "molecules.npz", **arrays)
    return tmp_path / "molecules.npz"


ONE = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, p: Molecule(torch.tensor([6]), ONE), "got a molecule of 1 atom; expected at least two"),
        (lambda s, p: Molecule(torch.tensor([], dtype=torch.int64), torch.zeros(0, 3)), "got a molecule of 0 atoms"),
        (lambda s, p: Molecule(torch.tensor([6, 17]), torch.zeros(2, 3)), "atomic number 17; expected one of 1 .H., 6 .C."),
        (lambda s, p: Molecule(torch.tensor([6, 6]), torch.zeros(2, 2)), "expected .atoms,., .atoms, 3."),
        (lambda s, p: Molecule(torch.tensor([6, 6]), torch.full((2, 3), torch.nan)), "expected finite positions"),
        (lambda s, p: mol.united(Molecule(torch.tensor([6, 1]), torch.zeros(2, 3))), "got a molecule of 1 atom"),
        (lambda s, p: mol.read_molecules(p / "none.npz"), "cannot read molecules"),
        (lambda s, p: mol.read_molecules(file_of(p, x=np.zeros(3))), "expected an .npz file with positions and z"),
        (lambda s, p: mol.read_molecules(file_of(p, positions=np.zeros((2, 3)), z=np.zeros((2, 3)))), "n, atoms, 3"),
        (
            lambda s, p: mol.read_molecules(file_of(p, positions=np.zeros((1, 3, 3)), z=np.zeros((1, 3), int))),
            "got a molecule of 0 atoms",
        ),
        (lambda s, p: mol.Molecules([]), "expected at least one"),
        (lambda s, p: s.data.encoding.encode([benzene()]), "expected at most 4 atoms"),
        (lambda s, p: s.data.encoding.encode([chain_of("CF", [3, 0], [1.36])]), "got an atom F in .*; expected the kinds"),
        (lambda s, p: s.draw(0), "n"),
        (lambda s, p: s.draw(2, atoms=1), "expected from 2 to 4 atoms"),
        (lambda s, p: s.draw(2, atoms=[2, 9]), "expected from 2 to 4 atoms"),
        (lambda s, p: s.draw(2, atoms=[2, 2, 2]), "a whole number, or one for each"),
        (lambda s, p: s.draw(2, property=float("nan")), "expected a finite number"),
        (lambda s, p: s.draw(2, property=[1.0, 2.0, 3.0]), "or one for each"),
        (lambda s, p: s.draw(2, guidance=2.0), "without a property"),
        (lambda s, p: mol.quality([], [ethanol()]), "expected at least one of each"),
        (lambda s, p: mol.molecule_figure([]), "a title for each"),
        (lambda s, p: mol.molecule_figure([ethanol()], ["a", "b"]), "a title for each"),
    ],
)
def test_what_is_no_molecule_is_refused_in_a_sentence(call: Callable[..., Any], message, system, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(system, tmp_path)


def test_without_rdkit_a_sentence_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[molecules\]'"):
        mol.smiles_of(ethanol())
    assert scoresde.systems.molecules.find_bonds(ethanol()) is not None
