"""Three small networks trained on scikit-learn's digits (1,200 images; the other 597 are held out), as ONNX files.

    python benchmarks/digits.py FOLDER

Writes resnet.onnx, mobilenet.onnx, vit.onnx and digits.npz (calibration, test, labels). Takes some minutes, once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

TRAINING = 1200


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images (1797, 1, 32, 32) of about zero mean and unit variance, and labels."""
    from sklearn.datasets import load_digits as load

    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order], dtype=torch.float32)[:, None]
    large = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    return ((large - 4.9) / 6.0).numpy(), data.target[order]


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.b(self.a(x)) + self.skip(x))


def resnet() -> nn.Module:
    """A ResNet of 14 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for out, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers.append(Block(width, out, stride))
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, width: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = width * expand
        self.body = nn.Sequential(
            *(nn.Conv2d(width, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU6()),
            *(nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid), nn.ReLU6()),
            *(nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.residual = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> nn.Module:
    """MobileNetV2 with half of its blocks."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    width = 16
    for out, stride, expand in ((16, 1, 2), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6), (64, 1, 6)):
        layers.append(Inverted(width, out, stride, expand))
        width = out
    layers += [nn.Conv2d(width, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class ViT(nn.Module):
    """A vision transformer on 64 patches."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, width * 4, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.body(tokens)).mean(1))


NETS: dict[str, Any] = {"resnet": resnet, "mobilenet": mobilenet, "vit": ViT}
EPOCHS = {"resnet": 14, "mobilenet": 14, "vit": 60}


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """Train with AdamW, random shifts and a one-cycle rate."""
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            loss = F.cross_entropy(net(torch.roll(images[index], shift, (2, 3))), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def make(folder: Path) -> None:
    """Train and export every network that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits()
    test = slice(TRAINING, None)
    np.savez(folder / "digits.npz", train=images[:TRAINING], test=images[test], labels=labels[test])
    for name, build in NETS.items():
        path = folder / f"{name}.onnx"
        if path.exists():
            continue
        torch.manual_seed(0)
        net = train(build(), torch.tensor(images[:TRAINING]), torch.tensor(labels[:TRAINING]), EPOCHS[name])
        with torch.no_grad():
            accuracy = (net(torch.tensor(images[test])).argmax(1).numpy() == labels[test]).mean()
        print(f"{name}: {accuracy:.1%} of {len(images) - TRAINING} held-out images")
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            net, (torch.tensor(images[:2]),), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False,
            input_names=["image"], output_names=["logits"], verbose=False,
        )  # fmt: skip


if __name__ == "__main__":
    make(Path(sys.argv[1]))
