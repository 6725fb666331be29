"""Read a pipeline file, and tell what is wrong in it with file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from infconv import registry
from infconv.errors import UsageError, did_you_mean
from infconv.explain import Problem

_HINT = "`infconv init SOURCE` writes a pipeline to start from."


def read(path: Path) -> str:
    """Return the text of the file. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read the pipeline '{path}': {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' is not a pipeline: it is no text.", _HINT) from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping in the file's text. Raises UsageError with the line of what is no YAML."""
    try:
        data: Any = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        unquoted = re.search(r"[^'\"$]\$\{", text.splitlines()[line - 1]) if line <= len(text.splitlines()) else None
        hint = "Put a text with ${…} in quotes." if unquoted else _HINT
        raise UsageError(f"{path}:{line}: this is not YAML: {error.problem or error.context}.", hint) from error
    except yaml.YAMLError as error:
        raise UsageError(f"'{path}' is not YAML: {str(error).splitlines()[0]}.", _HINT) from error
    if not isinstance(data, dict):
        raise UsageError(f"'{path}' is not a pipeline: it must be a mapping with `source` and `targets`.", _HINT)
    return cast("dict[str, Any]", data)


def unknown_names(data: Mapping[str, Any], aliases: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with the steps and the targets' names, in a file with other problems too.

    `aliases`: other names of targets.
    """
    return [*_wrong_steps(data), *_wrong_targets(data, aliases)]


def _wrong_steps(data: Mapping[str, Any]) -> Iterator[Problem]:
    from infconv.steps import resolve

    for key in ("steps", "add"):
        for number, item in enumerate(_items(data, key)):
            # module:Class is imported when it is used, with the folders where it may be.
            if isinstance(item, dict) or (isinstance(item, str) and ":" not in item):
                try:
                    resolve([cast("str | dict[str, Any]", item)])
                except UsageError as error:
                    yield Problem((key, number), f"{{key}}: {error.message} {error.hint}".rstrip(". "))


def _wrong_targets(data: Mapping[str, Any], aliases: Mapping[str, str]) -> Iterator[Problem]:
    known = [*registry.names("exporter"), *aliases]
    for number, entry in enumerate(_items(data, "targets")):
        name = cast("dict[Any, Any]", entry).get("target") if isinstance(entry, dict) else None
        if isinstance(name, str) and name not in known:
            yield Problem(("targets", number, "target"), f"{{key}}: unknown '{name}'. {did_you_mean(name, known)}")


def _items(data: Mapping[str, Any], key: str) -> list[Any]:
    items = data.get(key)
    return cast("list[Any]", items) if isinstance(items, list) else []


def line_of(root: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """Return the line, from 1, of the last key of `path` that is in the YAML document."""
    node, line = root, 1
    for part in path:
        following: Any = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    following, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            following = node.value[part]
            line = following.start_mark.line + 1
        if following is None:
            break
        node = following
    return line
