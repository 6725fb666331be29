"""Operators that an exporter lacks: named with their module, and mapped by the user's own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from infconv.convert._worker import WorkerError, load_handlers

MODEL = """
import torch
from torch import nn

@torch.library.custom_op("infconvtest::swoosh", mutates_args=())
def swoosh(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.sigmoid(x) * x * alpha

@swoosh.register_fake
def _(x, alpha):
    return torch.empty_like(x)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x):
        y = self.linear(x)
        return torch.cond(y.sum() > 0, lambda y: swoosh(y, 2.0), lambda y: swoosh(y, 3.0), (y,))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x):
        return self.block(x)

def net():
    torch.manual_seed(0)
    return Net()
"""

HANDLERS = """
import my_model
from onnxscript import opset18 as op

def right(x, alpha: float):
    return op.Mul(op.Mul(op.Sigmoid(x), x), op.Constant(value_float=alpha))

def forgets_alpha(x, alpha: float):
    return op.Mul(op.Sigmoid(x), x)

handlers = {"infconvtest::swoosh": right}
wrong = {"infconvtest::swoosh": forgets_alpha}
unknown = {"infconvtest::nothing": right}
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_operators.py").write_text(HANDLERS)
    return "my_model:net"


def test_an_operator_without_conversion_is_named_with_its_module(infconv: Any, model: str):
    done = infconv("convert", model, "--input", "x:batch,8", "-o", "net.onnx")
    assert done.code == 4
    assert "operator 'infconvtest::swoosh' (in module block) has no conversion to ONNX" in done.err
    assert "--source-option handlers=MODULE" in done.err


def test_the_users_module_maps_it(infconv: Any, model: str, tmp_path: Path):
    handlers = ("--source-option", "handlers=my_operators")
    done = infconv("convert", model, "--input", "x:batch,8", "-o", "net.onnx", *handlers)
    assert done.code == 0, done.err
    assert {node.domain for node in onnx.load(tmp_path / "net.onnx").graph.node} == {""}


@pytest.mark.parametrize(
    ("handlers", "code", "words"),
    [
        ("my_operators:wrong", 4, "output 'output' is off by"),
        ("my_operators:unknown", 2, "'infconvtest::nothing', which is no operator of PyTorch"),
    ],
)
def test_a_handler_is_verified(infconv: Any, model: str, handlers: str, code: int, words: str):
    done = infconv("convert", model, "--input", "x:batch,8", "--source-option", f"handlers={handlers}")
    assert (done.code, words in done.err) == (code, True), done.err


def test_torchscript_knows_no_handlers(infconv: Any, model: str, tmp_path: Path):
    traced = torch.jit.trace(torch.nn.Linear(8, 8), torch.zeros(1, 8))
    torch.jit.save(traced, tmp_path / "net.pt")
    done = infconv("convert", "net.pt", "--input", "input:batch,8", "--source-option", "handlers=my_operators")
    assert (done.code, "maps operators of torch.export, and this is TorchScript" in done.err) == (2, True), done.err


def test_a_source_option_is_a_key_and_a_value(infconv: Any, model: str):
    done = infconv("convert", model, "--source-option", "handlers")
    assert done.code == 2
    assert "--source-option 'handlers' is not KEY=VALUE" in done.err


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module_here", "No module named 'no_such_module_here'"),
        ("string:no_such_name", "no attribute 'no_such_name'"),
        ("string:digits", "is a str"),
    ],
)
def test_handlers_that_are_none_are_a_mistake_of_usage(reference: str, words: str):
    with pytest.raises(WorkerError, match=words) as caught:
        load_handlers({"handlers": reference})
    assert caught.value.kind == "usage"
    assert caught.value.hint


def test_no_handlers_are_asked_for():
    assert load_handlers({}) == {}
