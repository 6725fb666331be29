"""Exporter `onnxruntime` (alias `ort`): ONNX with ONNX Runtime's fused operators."""

from __future__ import annotations

from typing import ClassVar

from infconv.convert.to_onnx import ToONNX


class ToONNXRuntime(ToONNX):
    """ONNX with com.microsoft operators allowed, for ONNX Runtime."""

    target: ClassVar[str] = "onnxruntime"
    domains: ClassVar[frozenset[str]] = frozenset({"", "com.microsoft"})
