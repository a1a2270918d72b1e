"""Train a diffusion model of small molecules on a CPU, draw new ones, and ask for long and for compact ones.

python examples/molecules.py [--quick] [--data FILE] [--out runs/molecules]    (FILE: an .npz with positions and z)

The file has arrays positions (n, atoms, 3), in angstrom, and z (n, atoms), atomic numbers with 0 for padding.
"""

import argparse
from pathlib import Path

import torch

from scoresde import plots
from scoresde.systems import molecules as mol


def chains() -> list[mol.Molecule]:
    """Return zigzag alkanes and alcohols, to run on where there is no file."""
    found = []
    for n in range(2, 8):
        x = torch.tensor([[1.26 * i, 0.85 * (i % 2), 0.0] for i in range(n)])
        hydrogens = torch.tensor([3, *[2] * (n - 2), 3])
        found.append(mol.Molecule(torch.full((n,), 6), x, hydrogens))
        found.append(mol.Molecule(torch.tensor([*[6] * (n - 1), 8]), x, torch.tensor([3, *[2] * (n - 2), 1])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/molecules/nci_small.npz"))
    parser.add_argument("--out", type=Path, default=Path("runs/molecules"))
    arguments = parser.parse_args()

    known = mol.read_molecules(arguments.data) if arguments.data.exists() else chains()
    data = mol.Molecules(known)
    steps, n = (10, 8) if arguments.quick else (10_000, 500)
    system = mol.train_molecules(data, steps=steps, out=arguments.out / "model.safetensors")
    drawn = system.draw(n).molecules
    found = mol.quality(drawn, known)
    print(f"all valences right {found.right:.1%}, and in one piece {found.whole:.1%}")
    print(f"of these different {found.unique:.1%}; of the different ones new {found.novel:.1%}")
    print("Wasserstein distances of bond lengths in angstrom:", {k: round(d, 3) for k, d in found.lengths.items()})

    heavy = data.event[0] - 1
    spread = data.values[data.mask.sum(1) == heavy]
    for asked in spread.quantile(torch.tensor([0.1, 0.9])).tolist():
        of_size = system.draw(n // 2, atoms=heavy, property=asked, seed=1).molecules
        got = torch.tensor([mol.radius_of_gyration(molecule) for molecule in of_size])
        print(f"{heavy} atoms, asked for a radius of gyration of {asked:.2f}: {got.mean():.2f} +- {got.std():.2f} angstrom")

    shown = [m for m in drawn if mol.find_bonds(m) is not None][:12] or drawn[:12]
    figure = mol.molecule_figure(shown, [m.formula for m in shown], columns=6)
    plots.save_figure(figure, arguments.out / "molecules.png")
    print(f"figure: {arguments.out / 'molecules.png'}")


if __name__ == "__main__":
    main()
