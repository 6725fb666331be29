"""Relative paths in a pipeline: which of its keys are paths, and how they become absolute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

Keys = tuple[str | int, ...]

_PATHS: tuple[tuple[str, ...], ...] = (
    ("source", "path"),
    ("source", "weights"),
    ("source", "python_path", "*"),
    ("sample",),
    ("calibration", "path"),
    ("calibration", "text", "tokenizer"),
    ("targets", "*", "output"),
    ("targets", "*", "precision_plan"),
    ("gates", "baseline"),
    ("reports", "*"),
    ("cache",),
)
"""The keys that hold a path; `*` stands for each item of a list."""


def anchored(data: Mapping[str, Any], folder_of: Callable[[Keys], Path], own: Path) -> dict[str, Any]:
    """Return a pipeline's `data` with absolute paths; unnamed outputs go to the folder `own`.

    `folder_of` tells the folder that the path at some keys is relative to. `module:function` and URLs stay.
    """
    result = cast("dict[str, Any]", _copied(data))

    def absolute(keys: Keys, path: str) -> str:
        slash = "/" if path.endswith("/") else ""  # which tells a folder that does not exist yet
        return path if not path or is_reference(path) else str(folder_of(keys) / path) + slash

    for keys in _PATHS:
        _change(result, keys, (), absolute)
    for target in _items(result, "targets"):
        if isinstance(target, dict):
            cast("dict[str, Any]", target).setdefault("output", str(own))
    _add_own_folder(result, own)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    return [_copied(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value


def without_file_urls(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pipeline's `data` with plain paths in place of file:// URLs; a cache at one has a local one in front."""
    result = cast("dict[str, Any]", _copied(data))
    for keys in _PATHS:
        if keys != ("cache",):
            _change(result, keys, (), lambda _, path: path.removeprefix("file://") if "::" not in path else path)
    return result


def _change(node: Any, keys: tuple[str, ...], path: Keys, change: Callable[[Keys, str], str]) -> None:
    """Change the texts that `keys` lead to from `node`, which is at `path`; what is of another type is left alone."""
    first, *rest = keys
    places: list[Any] = []
    if first == "*" and isinstance(node, list):
        places = list(range(len(cast("list[Any]", node))))
    elif isinstance(node, dict) and first in node:
        places = [first]
    for place in places:
        if rest:
            _change(node[place], tuple(rest), (*path, place), change)
        elif isinstance(node[place], str):
            node[place] = change((*path, place), node[place])


def _add_own_folder(data: dict[str, Any], own: Path) -> None:
    """Look for the modules that the pipeline names in its own folder too, if it names any."""
    source: Any = data.get("source")
    verify: Any = data.get("verify")
    if not isinstance(source, dict):
        return
    names: list[Any] = [source.get("path"), verify.get("metric") if isinstance(verify, dict) else None]
    for item in (*_items(data, "steps"), *_items(data, "add")):
        names += list(cast("dict[Any, Any]", item)) if isinstance(item, dict) else [item]
    folders = source.setdefault("python_path", []) if any(map(_is_module, names)) else None
    if isinstance(folders, list) and str(own) not in folders:
        cast("list[Any]", folders).append(str(own))


def _items(data: Mapping[str, Any], key: str) -> list[Any]:
    items = data.get(key)
    return cast("list[Any]", items) if isinstance(items, list) else []


def _is_module(name: Any) -> bool:
    return isinstance(name, str) and is_reference(name) and "://" not in name


def is_reference(path: str) -> bool:
    """Return whether `path` is `module:function` or a URL, which no folder applies to."""
    head, separator, tail = path.partition(":")
    return bool(separator) and (tail.startswith("//") or head.replace(".", "").isidentifier())
