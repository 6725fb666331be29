"""Graph passes: one pass a file, the file is the registration."""

from __future__ import annotations

from infconv.passes._base import Context, Pass, RewritePass

__all__ = ["Context", "Pass", "RewritePass"]
