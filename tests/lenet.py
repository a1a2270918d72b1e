"""The LeNet-5 whose weights lie beside the checkout: 84 features of digits, in which distances have a meaning."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """``forward`` gives features, features of places, and logits, for images in [-1, 1] of any size."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors = load_file(weights)
        layers = [nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5), nn.Linear(120, 84), nn.Linear(84, 10)]
        for layer, shape in zip(layers, (6, 16, 120, 84, 10), strict=True):
            weight = next(v for v in tensors.values() if v.shape == layer.weight.shape)
            bias = next(v for v in tensors.values() if v.shape == (shape,))
            layer.weight.data, layer.bias.data = weight, bias
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c1, c3, c5, f6, output = self.layers
        x = F.interpolate((x + 1) / 2, (32, 32), mode="bilinear", align_corners=False)
        x = F.max_pool2d(c1(x).tanh(), 2)
        places = F.max_pool2d(c3(x).tanh(), 2)
        features = f6(c5(places).tanh().flatten(1)).tanh()
        return {"features": features, "spatial": places.mean(1), "logits": output(features)}
