"""Graph passes: one pass a file, the file is the registration."""

from __future__ import annotations

import infconv._onnx_ir  # pyright: ignore[reportUnusedImport]  (before the first import of onnx_ir)
from infconv.passes._base import Allowance, Context, Pass, Quality, Remembered, RewritePass, Workers

__all__ = ["Allowance", "Context", "Pass", "Quality", "Remembered", "RewritePass", "Workers"]
