"""Sample eight-letter English words by masked diffusion: how many are real, and how many of these were never seen?

python examples/words.py [--quick] [--words FILE] [--out runs/words]    (FILE: a word of eight letters on each line)
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import discrete, models, plots
from scoresde.training import Method


def text(tokens: torch.Tensor) -> list[str]:
    return ["".join(chr(ord("a") + letter) if letter < 26 else "." for letter in row) for row in tokens.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--words", type=Path, default=Path("../shared/data/words/web2_8.txt"))
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    arguments = parser.parse_args()

    words = arguments.words.read_text().split() if arguments.words.exists() else ["deadbeef", "feedface", "cafebabe"] * 2000
    x = torch.tensor([[ord(letter) - ord("a") for letter in word] for word in words])
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, train = x[shuffled[:3000]], x[shuffled[3000:]]
    torch.manual_seed(0)  # of the initial weights
    net = models.TokenTransformer(27, 8, outputs=26, width=128, depth=3)  # the mask is the 27th state
    steps, n = (10, 100) if arguments.quick else (12_000, 2000)
    method = Method(batch_size=64, lr=1e-3, warmup=min(100, steps), schedule=f"cosine-{steps}")
    model = discrete.DenoisingModel(net, discrete.Absorbing(26))
    model = scoresde.fit(model, train, "mdlm", steps=steps, method=method, out=arguments.out / "model.safetensors").model
    bound = discrete.MaskedBound().bound(model, held, torch.Generator().manual_seed(0)).mean() / 8
    print(f"bound on words that training never saw: {float(bound):.3f} nats a letter")
    listed, seen = set(words), set(text(train))
    for solver, k in (("ancestral", 4), ("ancestral", 16), ("theta-trapezoidal", 8), ("first-hitting", 8)):
        drawn = scoresde.sample(model, (n, 8), solver, k, progress=False)
        real, new = ([w for w in text(drawn.x) if w in known] for known in (listed, listed - seen))
        print(
            f"{solver:>17} {drawn.evaluations:3} evaluations: {len(real) / n:6.1%} real, {len(new) / n:6.2%} never seen",
            *new[:4],
        )
    known = torch.tensor([[ord(letter) - ord("a") for letter in "aafusion"]] * 20)
    filled = scoresde.sample(discrete.Infilled(model, known, torch.arange(8) > 1), (20, 8), "first-hitting", progress=False)
    print("__fusion:", *sorted(set(text(filled.x))))

    on_the_way = scoresde.sample(model, (9, 8), "ancestral", 32, keep=[1, 0.75, 0.5, 0.25, 0], progress=False).states
    figure = plots.new_figure(8, 2.1)
    for column, t in enumerate(on_the_way):
        rows = "\n".join([f"t = {t:g}", "", *text(on_the_way[t])])
        figure.text(0.1 + 0.2 * column, 0.95, rows, ha="center", va="top", family="monospace")
    plots.save_figure(figure, arguments.out / "words.png")
    print(f"figure: {arguments.out / 'words.png'}")


if __name__ == "__main__":
    main()
