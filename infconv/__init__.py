"""infconv: from a trained model to a verified inference artifact, offline."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infconv.api import bisect, compare, convert, run
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
    from infconv.graphs import load, optimize, save

__all__ = [
    "DependencyError",
    "GateError",
    "InfconvError",
    "ResourceError",
    "SourceError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "bisect",
    "compare",
    "convert",
    "load",
    "optimize",
    "run",
    "save",
]


_OF_GRAPHS = ("load", "optimize", "save")


class _Package(ModuleType):
    """This package: `infconv.convert` stays the function when the import system binds the subpackage of that name."""

    def __getattr__(self, name: str) -> Any:
        """Import on first use: `import infconv` costs nothing."""
        if name not in __all__:
            raise AttributeError(f"module 'infconv' has no attribute '{name}'")
        home = "errors" if name.endswith("Error") else "graphs" if name in _OF_GRAPHS else "api"
        return getattr(importlib.import_module(f"infconv.{home}"), name)

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
