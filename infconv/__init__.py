"""infconv: from a trained model to a verified inference artifact, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infconv.api import compare, convert, load, optimize, run, save
    from infconv.errors import (
        DependencyError,
        GateError,
        InfconvError,
        ResourceError,
        SourceError,
        UnsupportedError,
        UsageError,
        VerificationError,
    )

__all__ = [
    "DependencyError",
    "GateError",
    "InfconvError",
    "ResourceError",
    "SourceError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "compare",
    "convert",
    "load",
    "optimize",
    "run",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import infconv` costs nothing."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'infconv' has no attribute '{name}'")
    return getattr(importlib.import_module("infconv.errors" if name.endswith("Error") else "infconv.api"), name)
