"""Makes Paddle models: run by a Python that has Paddle, not imported by tests.

    python paddle_models.py FOLDER NAME...

writes FOLDER/NAME.json and .pdiparams; with FLAGS_enable_pir_api=0 in the environment, .pdmodel and .pdiparams.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

MAKERS: dict[str, Callable[[], tuple[Any, list[Any]]]] = {}
"""Name -> the layer and its inputs."""


def maker(make: Callable[[], tuple[Any, list[Any]]]) -> Callable[[], tuple[Any, list[Any]]]:
    MAKERS[make.__name__] = make
    return make


def floats(*dims: int | None, name: str = "x") -> Any:
    return InputSpec(list(dims), "float32", name)


@maker
def resnet():
    return paddle.vision.models.resnet18(num_classes=10), [floats(None, 3, 32, 32, name="image")]


@maker
def mobilenet():
    return paddle.vision.models.mobilenet_v3_small(num_classes=10), [floats(None, 3, 32, 32, name="image")]


@maker
def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu")
    return nn.TransformerEncoder(layer, 2), [floats(None, None, 16, name="source")]


class Recurrent(nn.Layer):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.recurrent = kind(4, 8, direction="bidirect")
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


@maker
def lstm():
    return Recurrent(nn.LSTM), [floats(None, None, 4)]


@maker
def gru():
    return Recurrent(nn.GRU), [floats(None, None, 4)]


class Several(nn.Layer):
    """Two inputs that must have one batch, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids, mask):
        hidden = self.table(ids) * mask.unsqueeze(-1)
        return {"tokens": self.head(hidden), "sum": hidden.sum(1)}, (hidden.sum(1) > 0).astype("int64")


@maker
def several():
    return Several(), [InputSpec([None, 6], "int64", "ids"), floats(None, 6, name="mask")]


class Apart(nn.Layer):
    """Two inputs that have nothing to do with each other."""

    def forward(self, x, y):
        return x.tanh(), y.exp()


@maker
def apart():
    return Apart(), [floats(None, 4), floats(None, 3, name="y")]


class Loop(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, x):
        i = paddle.zeros([1], "int64")
        while i < 3:
            x = self.step(x).tanh()
            i = i + 1
        return x


class Alias(nn.Layer):
    """paddle.jit.save writes the input itself for the second output, and Paddle cannot run what it wrote."""

    def forward(self, x, y):
        return x.tanh(), y + 1


@maker
def alias():
    return Alias(), [floats(None, 4), floats(None, 4, name="y")]


@maker
def loop():
    return Loop(), [floats(None, 4)]


class Branch(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.yes = nn.Linear(4, 4)
        self.no = nn.Linear(4, 4)

    def forward(self, x):
        if paddle.mean(x) > 0:  # noqa: SIM108  (Paddle translates statements)
            y = self.yes(x) + paddle.mean(x)
        else:
            y = self.no(x)
        return y


@maker
def branch():
    return Branch(), [floats(None, 4)]


class Scalars(nn.Layer):
    """Reductions over all axes: scalars, as outputs and inside."""

    def forward(self, x):
        return paddle.mean(x), x.sum() * 2 + x.max(), paddle.stack([x.min(), x.mean()]), x / x.abs().max()


@maker
def scalars():
    return Scalars(), [floats(None, 4)]


class Resize(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear")


@maker
def resize():
    return Resize(), [floats(None, 3, 8, 8)]


class Singular(nn.Layer):
    """An operator that paddle2onnx lacks, after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 4)

    def forward(self, x):
        return paddle.lgamma(self.project(x).abs() + 1)


@maker
def singular():
    return Singular(), [floats(None, 8)]


class SingularBranch(nn.Layer):
    def forward(self, x):
        if x.sum() > 0:  # noqa: SIM108  (Paddle translates statements)
            y = paddle.lgamma(x)
        else:
            y = x
        return y


@maker
def singular_branch():
    return SingularBranch(), [floats(None, 8)]


class Norm(nn.Layer):
    """paddle2onnx computes another norm than Paddle here."""

    def forward(self, x):
        return paddle.norm(x)


@maker
def norm():
    return Norm(), [floats(None, 4)]


def shuffle_statistics(layer: Any) -> None:
    """Give the moving averages seeded values, as training would: those of 0 and 1 hide mistakes."""
    rng = np.random.default_rng(0)
    for name, value in layer.named_buffers():
        if name.endswith(("_mean", "_variance")):
            value.set_value(rng.uniform(0.5, 1.5, value.shape).astype("float32"))


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for name in names:
        paddle.seed(0)
        layer, inputs = MAKERS[name]()
        shuffle_statistics(layer)
        layer.eval()
        paddle.jit.save(layer, f"{folder}/{name}", input_spec=inputs)
