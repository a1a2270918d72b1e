"""Draw emoji from names that training never saw, and count how often the name is found again among 100.

python examples/emoji.py [--quick] [--effort 1.0] [--device cuda] [--emoji FILE] [--encoder FOLDER] [--out runs/emoji]

Trains an autoencoder, 64 x 64 to 16 x 16 x 4, a text-conditional score model of its latents, a contrastive model of images
and names, and a cascade of pixels, 16 to 32 to 64. A run that was interrupted continues by the same command. The run folder
is one of scoresde: scoresde sample runs/emoji --prompt "red apple" --guidance 4

Without the pictures it draws coloured shapes with names of their own, and without the folder of a text encoder it makes a
small one with random weights, which tells words apart and knows nothing of their meaning.

The pictures are Twemoji, copyright Twitter, Inc. and other contributors, CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/
"""

import argparse
import itertools
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import scoresde
from scoresde import data, models, plots
from scoresde.objectives import ContrastiveLearning, NoisedLow, downsampled
from scoresde.systems import Cascade, CascadeStage, train_latent, train_stage, with_dropout
from scoresde.training import Method

CREDIT = (
    "Emoji of training: Twemoji, copyright Twitter, Inc. and other contributors, CC-BY 4.0; drawn ones derive from them."
)
SIZES = {  # widths, and the steps of the autoencoder, the latents, the contrastive model, and each stage of the cascade
    "quick": {"coder": 8, "latent": 16, "contrast": 8, "pixels": 8, "steps": (3, 3, 3, 3, 2, 2)},
    "cpu": {"coder": 16, "latent": 48, "contrast": 16, "pixels": 16, "steps": (1500, 3000, 1500, 1500, 600, 400)},
    "cuda": {
        "coder": 64,
        "latent": 128,
        "contrast": 64,
        "pixels": 64,
        "steps": (20_000, 60_000, 5000, 20_000, 20_000, 20_000),
    },
}


def open_emoji(file: Path) -> tuple[Tensor, list[str]]:
    """The pictures on white, in [-1, 1], and their names."""
    with np.load(file) as held:
        x, names = torch.from_numpy(held["x"]).float().permute(0, 3, 1, 2) / 255, held["name"].tolist()
    rgb, opaque = x[:, :3], x[:, 3:]
    return 2 * (rgb * opaque + 1 - opaque) - 1, names


def draw_shapes() -> tuple[Tensor, list[str]]:
    """Shapes in 11 colours, 6 sizes and 3 widths of outline, 64 x 64, in [-1, 1], and their names; for want of emoji."""
    from PIL import Image, ImageDraw

    colours = ["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray", "black"]
    sizes = {"tiny": 10, "small": 14, "medium": 18, "large": 22, "huge": 26, "giant": 30}
    outlines = {"full": 0, "thick": 6, "thin": 2}
    pictures, names = [], []
    for colour, (size, r), (outline, width), shape in itertools.product(
        colours, sizes.items(), outlines.items(), ("circle", "square", "triangle", "hexagon", "diamond")
    ):
        picture = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(picture)
        ink = {"outline": colour, "width": width} if width else {"fill": colour}
        if shape == "circle":
            pen.ellipse((32 - r, 32 - r, 32 + r, 32 + r), **ink)
        else:
            corners, turn = {"square": (4, 0), "triangle": (3, 0), "hexagon": (6, 0), "diamond": (4, 45)}[shape]
            pen.regular_polygon((32, 32, r), corners, turn, **ink)
        pictures.append(np.asarray(picture))
        names.append(f"{size} {outline} {colour} {shape}")
    return 2 * torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2) / 255 - 1, names


def make_encoder(folder: Path, names: list[str]) -> Path:
    """Write a small BERT with random weights and the words of the names to a folder, once; for want of a trained one."""
    import transformers

    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for name in names for word in name.split()})]
        (folder / "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        config = transformers.BertConfig(
            vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=16,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def method(steps: int, batch: int, lr: float = 1e-3, **settings: object) -> Method:
    """A warm-up, a linear decay to 0, and a power average of the weights."""
    how = {"warmup": min(50, steps), "schedule": f"linear-{steps}", "ema": "power-0.1", "optimizer": "adamw"}
    return Method(batch_size=batch, lr=lr, **{**how, **settings})


def interval(hits: Tensor) -> str:
    """The share of hits with its 95 % interval (Clopper and Pearson)."""
    from scipy.stats import binomtest

    k, n = int(hits.sum()), len(hits)
    low, high = binomtest(k, n).proportion_ci(method="exact")
    return f"{k / n:.0%} [{low:.0%}, {high:.0%}]"


def figure_of(rows: dict[str, Tensor], names: list[str], credit: str) -> object:
    """Rows of pictures under their names, with a credit below."""
    n = len(names)
    figure = plots.new_figure(0.78 * n + 0.6, 0.78 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for row, (title, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(row, pictures, strict=True):
            ax.imshow(((picture.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, fontsize=7)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(textwrap.shorten(name, 36, placeholder=" ..").replace(" ", "\n", 3), fontsize=6)
    figure.supxlabel(credit, fontsize=6)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of all numbers of steps")
    parser.add_argument("--device", default="cpu", help="cuda takes larger networks and more steps")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="fp32 for a CPU without bfloat16")
    parser.add_argument("--emoji", type=Path, default=Path("../shared/data/emoji/emoji_64.npz"))
    parser.add_argument("--encoder", type=Path, default=Path("../shared/data/text-encoder-minilm"))
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    a = parser.parse_args()
    size = SIZES["quick" if a.quick else "cuda" if a.device.startswith("cuda") else "cpu"]
    steps = [max(1, round(a.effort * n)) for n in size["steps"]]
    began = time.process_time()

    (x, names), credit = (open_emoji(a.emoji), CREDIT) if a.emoji.exists() else (draw_shapes(), "")
    if a.quick:
        x, names = x[::16], names[::16]
    unseen, points = (16, 2) if a.quick else (100, 20)  # names that no model sees, and steps of the samplers
    folder = a.encoder if a.encoder.exists() else make_encoder(a.out / "encoder", names)
    encoder = models.TextEncoder(folder, length=16, cache=a.out / "embeddings")
    kept, held = data.split(len(x), held_out=unseen / len(x))
    train, test = [names[i] for i in kept], [names[i] for i in held]
    pooled, asked = encoder(train).pooled, encoder(test).pooled
    torch.manual_seed(0)  # of the initial weights
    sde, features = scoresde.CosineVP(), encoder.features

    coder = models.KLAutoencoder(3, 4, size["coder"], (1, 2, 4), blocks=1, groups=8, middle_attention=False)
    net = models.UNet(4, size["latent"], (1, 2), lean=True, context=features, pooled=features)
    system = train_latent(
        x[kept],
        a.out,
        coder,
        net,
        steps=(steps[0], steps[1]),
        texts=train,
        encoder=encoder,
        sde=sde,
        methods=(method(steps[0], 16, 2e-3, precision=a.precision), method(steps[1], 32)),
        device=a.device,
    )
    print(f"latent model: {(time.process_time() - began) / 60:.1f} minutes of processor time so far")

    # Both sides of each emoji: few are symmetric, and a name knows neither left nor right.
    small, both = downsampled(x[kept], 2), torch.cat([pooled, pooled])
    judge = models.ContrastiveImages(3, features, 128, size["contrast"], (1, 2, 4, 4), dropout=0.2)
    contrast = scoresde.fit(
        scoresde.ScoreModel(judge, scoresde.VP()),
        torch.cat([small, small.flip(3)]),
        ContrastiveLearning(),
        steps=steps[2],
        conditions={"pooled": both},
        method=method(steps[2], 64, optimizer="adamw: weight_decay=0.05"),
        out=a.out / "contrastive.safetensors",
        device=a.device,
    ).model.net.cpu()

    wide, lean = size["pixels"], {"lean": True, "attention": (), "blocks": 1}
    first = scoresde.ScoreModel(models.UNet(3, 3 * wide, (1, 2), lean=True, pooled=features), sde, "v")
    above = [
        scoresde.ScoreModel(models.SuperResolution(3, {"width": w, "multipliers": m, **lean}), sde, "v")
        for w, m in ((2 * wide, (1, 2)), (wide, (1, 2, 4)))
    ]
    noise, shared = NoisedLow(0.5, sde), {"device": a.device}
    drop = with_dropout("v", first.network)
    told = {"conditions": {"pooled": pooled}}
    base = train_stage(first, x[kept], 4, objective=drop, out=a.out / "base.safetensors", steps=steps[3],
                       method=method(steps[3], 32), **told, **shared)  # fmt: skip
    larger = [
        train_stage(model, x[kept], 2 - i, 2, noise, out=a.out / f"enlarge{i}.safetensors", steps=n,
                    method=method(n, 16), **shared)
        for i, (model, n) in enumerate(zip(above, steps[4:], strict=True))
    ]  # fmt: skip
    cascade = Cascade(
        [
            CascadeStage(base.model, (3, 16, 16), steps=points, guidance=a.guidance),
            *(
                CascadeStage(found.model, (3, s, s), noise, steps=points // 2)
                for found, s in zip(larger, (32, 64), strict=True)
            ),
        ]
    )
    print(f"all models: {(time.process_time() - began) / 60:.1f} minutes of processor time so far")

    drawn = system.draw(test, guidance=a.guidance, steps=points, device=a.device).x.cpu()
    of_cascade = [run.x.cpu() for run in cascade.draw(len(test), levels=0.1, own=[{"pooled": asked}], device=a.device)]
    rebuilt = system.model.decode(system.model.encode(x[held].to(a.device))).cpu()
    error = float((rebuilt - x[held]).square().mean())
    print(f"autoencoder: {-10 * np.log10(error / 4):.1f} dB on pictures that training never saw")
    looked = {"true": x[held], "autoencoder": rebuilt, "latent": drawn, "cascade": of_cascade[-1]}
    print(f"the name is found among {len(test)}; by chance {1 / len(test):.0%}:")
    for title, pictures in looked.items():
        ranks = contrast.ranks(downsampled(pictures, 2).clamp(-1, 1), asked)
        print(f"{title:>12}: first {interval(ranks == 0)}, among the first five {interval(ranks < 5)}")

    some = range(0, len(test), max(1, len(test) // 12))
    rows = {title: pictures[some] for title, pictures in looked.items() if title != "cascade"}
    rows |= {f"cascade {len(c[0, 0])}": c[some] for c in of_cascade}
    plots.save_figure(figure_of(rows, [test[i] for i in some], credit), a.out / "emoji.png")
    wanted = ["red apple", "green apple", "smiling cat", "blue heart", "flag of france", "yellow car", "a house", "sun"]
    free = {
        f"guidance {g:g}": system.draw(wanted, guidance=g, steps=points, device=a.device).x.cpu()
        for g in (1.0, 2.0, 4.0, 8.0)
    }
    plots.save_figure(figure_of(free, wanted, credit), a.out / "prompts.png")
    print(f"figures: {a.out / 'emoji.png'}, {a.out / 'prompts.png'}")


if __name__ == "__main__":
    main()
