"""Sample eight-letter English words by masked diffusion: how many are real, and how many of these were never seen?

python examples/words.py [--quick] [--words WORDS.txt] [--out runs/words]

WORDS.txt has a word of eight lower-case letters on each line, such as those of /usr/share/dict/words.
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import discrete, models
from scoresde.training import Method

WORDS = Path(__file__).resolve().parents[2] / "shared" / "data" / "words" / "web2_8.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--words", type=Path, default=WORDS)
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    arguments = parser.parse_args()

    words = arguments.words.read_text().split() if arguments.words.exists() else ["deadbeef", "feedface", "cafebabe"] * 2000
    x = torch.tensor([[ord(letter) - ord("a") for letter in word] for word in words])
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, train = x[shuffled[:3000]], x[shuffled[3000:]]

    torch.manual_seed(0)  # of the initial weights
    net = models.TokenTransformer(27, 8, outputs=26, width=128, depth=3)  # the mask is the 27th state
    model = discrete.DenoisingModel(net, discrete.Absorbing(26))
    steps = 10 if arguments.quick else 3000
    method = Method(batch_size=256, lr=2e-3, warmup=min(100, steps), schedule=f"cosine-{steps}")
    checkpoint = arguments.out / "model.safetensors"  # run again, and a finished training is loaded from there
    model = scoresde.fit(model, train, "mdlm", steps=steps, method=method, out=checkpoint).model
    bound = discrete.MaskedBound().bound(model, held, torch.Generator().manual_seed(0)).mean() / 8
    print(f"bound on words that training never saw: {float(bound):.3f} nats a letter")

    n, listed, seen = 100 if arguments.quick else 2000, set(words), set(text(train))
    for solver, k in (("ancestral", 4), ("ancestral", 16), ("theta-trapezoidal", 8), ("first-hitting", 8)):
        drawn = scoresde.sample(model, (n, 8), solver, k, progress=False)
        found = text(drawn.x)
        real, new = sum(word in listed for word in found), sum(word in listed - seen for word in found)
        print(
            f"{solver:>17} {drawn.evaluations:3} evaluations: {real / n:6.1%} in the list, {new / n:6.2%} never seen;",
            *found[:5],
        )

    given = torch.tensor([False, False, True, True, True, True, True, True])
    filled = discrete.Infilled(model, torch.tensor([ord(letter) - ord("a") for letter in "aafusion"]), given)
    print("__fusion:", *sorted(set(text(scoresde.sample(filled, (20, 8), "first-hitting", progress=False).x))))


def text(tokens: torch.Tensor) -> list[str]:
    return ["".join(chr(ord("a") + letter) for letter in row) for row in tokens.tolist()]


if __name__ == "__main__":
    main()
