"""Train on digits with labels; what does guidance cost in diversity? python examples/guidance.py [--quick] [--out FOLDER]"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import data, guidance, metrics, plots
from scoresde.objectives import LabelDropout
from scoresde.training import networks

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
a = parser.parse_args()

images, labels = data.load_digits()  # (1797, 1, 8, 8) from -1 to 1
learn, test = data.split(len(images), held_out=0.2)
model = networks.build(images, scoresde.VP(), "v", classes=10)
how = {"steps": 20 if a.quick else 4000, "batch_size": 64, "lr": 2e-3, "out": a.out / "model.safetensors"}
dropout = LabelDropout("v", {"label": 10})  # label 10 stands for none
fit = scoresde.fit(model, images[learn], dropout, conditions={"label": labels[learn]}, **how)
judge = metrics.train_classifier(images[learn], labels[learn], epochs=1 if a.quick else 12)
asked, real = torch.arange(100 if a.quick else 1000) % 10, judge.features(images[test])
spread = torch.stack([real[labels[test] == k].var(0).sum() for k in range(10)]).mean()

print("scale  accuracy  energy distance  variance within a class")
drawn, rows = {}, []
for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
    guided = guidance.DynamicThreshold(guidance.ClassifierFree(fit.model, scale, {"label": 10}))
    told = {"conditions": {"label": asked}, "progress": False}
    x = drawn[f"scale {scale:g}"] = scoresde.sample(guided, (len(asked), *images.shape[1:]), "dpmpp-2m", 20, **told).x
    found, right = judge.features(x), float((judge(x).argmax(1) == asked).float().mean())
    within = float(torch.stack([found[asked == k].var(0).sum() for k in range(10)]).mean() / spread)
    rows.append((scale, right, float(metrics.energy_distance(found, real)), within))
    print("{:5g}  {:8.1%}  {:15.3f}  {:23.2f}".format(*rows[-1]))
some = {name: drawn[name][:50] for name in ("scale 0", "scale 1", "scale 3", "scale 8")}
plots.save_figure(plots.panels(some, columns=10, across=2), a.out / "samples.png")
print(f"figure: {a.out / 'samples.png'}")
