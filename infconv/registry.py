"""Find steps, frontends and exporters by name: the files of a package, then entry points. There is no central list."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from infconv.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_KINDS = {
    "pass": (("infconv.passes", ""), ("infconv.quantize", "")),
    "frontend": (("infconv.convert", "from_"),),
    "exporter": (("infconv.convert", "to_"),),
}
_GROUPS = {"pass": "infconv.passes", "frontend": "infconv.frontends", "exporter": "infconv.exporters"}


def class_name(kind: str, name: str) -> str:
    """Return the class that a step name stands for: `fuse-gelu` -> `FuseGelu`, frontend `torch` -> `FromTorch`."""
    acronyms = {"onnx": "ONNX", "onnxruntime": "ONNXRuntime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
    prefix = {"pass": "", "frontend": "From", "exporter": "To"}[kind]
    if kind == "exporter" and name in acronyms:
        return prefix + acronyms[name]
    return prefix + "".join(part[:1].upper() + part[1:] for part in name.split("-"))


@cache
def _modules(kind: str) -> dict[str, str]:
    """Return name -> module of what ships with infconv. Only file names are read; nothing is imported."""
    found: dict[str, str] = {}
    for package, prefix in _KINDS[kind]:
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path):
            if not module.name.startswith("_") and module.name.startswith(prefix):
                found[module.name.removeprefix(prefix).replace("_", "-")] = f"{package}.{module.name}"
    return found


@cache
def _plugins(kind: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=_GROUPS[kind])}


def names(kind: str) -> list[str]:
    """Return every name of `kind` ("pass", "frontend", "exporter"), sorted."""
    return sorted({*_modules(kind), *_plugins(kind)})


def has(kind: str, name: str) -> bool:
    """Return whether `name` is registered; plugins are looked for only when nothing that ships has the name."""
    return name in _modules(kind) or name in _plugins(kind)


@cache
def get(kind: str, name: str) -> Any:
    """Return the class that is registered under `name`. Raises UsageError with a suggestion."""
    if name in _modules(kind):
        return getattr(importlib.import_module(_modules(kind)[name]), class_name(kind, name))
    if name in _plugins(kind):
        return _plugins(kind)[name].load()
    if kind == "pass" and ":" in name:
        return _from_module(name)
    raise UsageError(f"Unknown {kind} '{name}'.", did_you_mean(name, names(kind)))


def look_in(folders: Sequence[str]) -> None:
    """Let `module:name` be found in `folders` too, after the places where Python looks anyway."""
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def _from_module(reference: str) -> Any:
    """Return the class named `module:Class`, which the user asked for by name."""
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"Cannot import '{module_name}' for the pass '{reference}': {error}.",
            "It is looked for in the current folder, beside the pipeline file and in the installed packages.",
        ) from error
    except Exception as error:  # the user's module runs, and raises whatever it does
        raise UsageError(
            f"Importing '{module_name}' for the pass '{reference}' raised {type(error).__name__}: {error}.",
            "Correct the module.",
        ) from error
    if not hasattr(module, attribute):
        raise UsageError(
            f"Module '{module_name}' has no '{attribute}'.",
            did_you_mean(attribute, [n for n in dir(module) if n[0] != "_"]),
        )
    found = getattr(module, attribute)
    if not (isinstance(found, type) and hasattr(found, "step_name")):
        raise UsageError(f"'{reference}' is not a pass.", "A pass is a subclass of infconv.passes.Pass.")
    return found


def classes(kind: str) -> Iterator[tuple[str, Any]]:
    """Yield every (name, class) of `kind`, importing each."""
    for name in names(kind):
        yield name, get(kind, name)
