"""What a pipeline file says together with the files that it extends and with `--set`, and who said what."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from infconv import pipeline_file
from infconv.anchor import Keys
from infconv.errors import UsageError, did_you_mean
from infconv.explain import Problem, dotted, ended

_REFERENCE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_HINT_KEYS = "`infconv schema` describes every key."


@dataclasses.dataclass(frozen=True)
class Layer:
    """A file's own words."""

    path: Path
    text: str
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layers:
    """A pipeline file, the files that it extends, and the options `--set`."""

    files: Sequence[Layer]
    """The file itself, then those that it extends: who comes first decides."""
    overrides: Sequence[tuple[Keys, str]]
    """Keys and the text of each `--set`."""
    data: dict[str, Any]
    """What they say together."""
    missing: Sequence[Problem] = ()
    """Environment variables that are referred to and not set."""

    def folder_of(self, keys: Keys) -> Path:
        """Return the folder that a relative path at `keys` is relative to: that of the file that says it."""
        return (self.files[0] if self._override(keys) else self._author(keys)).path.parent

    def place(self, keys: Keys) -> tuple[int, int, str]:
        """Return where `keys` are: an order for sorting, and `file:line` or `--set KEY=VALUE`."""
        override = self._override(keys)
        if override is not None:
            return len(self.files), override, f"--set {self.overrides[override][1]}"
        author = self._author(keys)
        line = pipeline_file.line_of(yaml.compose(author.text), keys)
        return self.files.index(author), line, f"{author.path}:{line}"

    def _override(self, keys: Keys) -> int | None:
        """Return the number of the `--set` that says what is at `keys`, or the only one that says something below."""
        above = [n for n, (own, _) in enumerate(self.overrides) if keys[: len(own)] == own]
        below = [n for n, (own, _) in enumerate(self.overrides) if keys and own[: len(keys)] == keys]
        in_file = any(_depth(layer.data, keys) == len(keys) for layer in self.files)
        return above[-1] if above else below[-1] if below and not in_file else None

    def _author(self, keys: Keys) -> Layer:
        """Return the first file that has all of `keys`, else the one that has most of them."""
        return max(self.files, key=lambda layer: _depth(layer.data, keys))

    def refuse(self, found: Sequence[Problem]) -> None:
        """Raise UsageError that lists the problems, in the order of the files, unless there are none."""
        unset = {problem.path for problem in self.missing}
        sound = [problem for problem in found if problem.path not in unset]
        placed = sorted({(*self.place(each.path), ended(each.sentence())) for each in (*self.missing, *sound)})
        told = [f"{where}: {sentence}" for _, _, where, sentence in placed]
        if len(told) == 1:
            raise UsageError(told[0], _HINT_KEYS)
        if told:
            raise UsageError(f"'{self.files[0].path}' has {len(told)} problems:\n" + "\n".join(told), _HINT_KEYS)


def _depth(data: Any, keys: Keys) -> int:
    """Return how many of `keys` lead somewhere in `data`."""
    for depth, key in enumerate(keys):
        if isinstance(data, Mapping) and key in data:
            data = cast("Mapping[Any, Any]", data)[key]
        elif isinstance(data, list) and isinstance(key, int) and key < len(cast("list[Any]", data)):
            data = data[key]
        else:
            return depth
    return len(keys)


def read_layers(path: Path, overrides: Sequence[str] = ()) -> Layers:
    """Read a pipeline file and what it extends, and apply `overrides` (`KEY=VALUE`).

    Raises UsageError when a file cannot be read, when files extend each other in a circle, and for an override whose
    key leads nowhere.
    """
    files = list(_chain(path, ()))
    data: dict[str, Any] = {}
    for layer in reversed(files):
        data = merged(data, layer.data)
    data.pop("extends", None)
    parsed = [_parse_override(text) for text in overrides]
    said = [(_set(data, keys, value, text), text) for keys, value, text in parsed]
    missing: list[Problem] = []
    filled = substituted(data, lambda reference, keys: _environment(reference, keys, missing))
    return Layers(files, said, filled, missing)


def _chain(path: Path, children: tuple[Path, ...]) -> Iterator[Layer]:
    """Yield the file and what it extends; a later one of several comes before an earlier one."""
    text = pipeline_file.read(path)
    layer = Layer(path, text, pipeline_file.parse(text, path))
    yield layer
    line = f"{path}:{pipeline_file.line_of(yaml.compose(text), ('extends',))}"
    for base in reversed(_bases(layer, line)):
        if isinstance(base, Layer):
            yield base
        elif base.resolve() in {child.resolve() for child in (*children, path)}:
            raise UsageError(f"{line}: '{base}' extends this file in turn.", "Leave one `extends` out.")
        elif not base.is_file():
            from infconv.steps import shipped

            raise UsageError(
                f"{line}: 'extends': '{base.name}' is neither a file in '{base.parent}' nor a shipped pipeline.",
                did_you_mean(base.name, shipped()),
            )
        else:
            yield from _chain(base, (*children, path))


def _bases(layer: Layer, line: str) -> list[Path | Layer]:
    """Return what the file extends: other files, and shipped step lists as if they were files."""
    from infconv.steps import shipped

    said = layer.data.get("extends")
    names = [said] if isinstance(said, str) else [] if said is None else said
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[Any]", names)):
        raise UsageError(f"{line}: 'extends' takes a file, a shipped pipeline's name, or a list of them.", _HINT_KEYS)
    missing: list[Problem] = []
    found: list[Path | Layer] = []
    for said_name in cast("list[str]", names):
        name = substituted(said_name, lambda reference, _: _environment(reference, ("extends",), missing))
        file = layer.path.parent / name
        if name in shipped() and not file.is_file():
            found.append(Layer(Path(name), "", {"steps": [name]}))
        else:
            found.append(file)
    if missing:
        raise UsageError(f"{line}: {ended(missing[0].sentence())}", "Set it, or write the value.")
    return found


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return `low` with what `high` says in its place: mappings key by key, lists as a whole; null removes a key."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            result[key] = merged(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
        elif value is None and key in result:
            del result[key]
        else:
            result[key] = value
    return result


# --- --set -----------------------------------------------------------------------------------------------------------


def _parse_override(text: str) -> tuple[Keys, Any, str]:
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise UsageError(f"--set '{text}' is not KEY=VALUE.", "Example: --set targets.0.precision=fp16")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set '{text}': the value is not YAML.", "Example: --set skip=[fold-shapes]") from error
    return tuple(int(part) if part.isdecimal() else part for part in key.split(".")), parsed, text


def _set(data: dict[str, Any], keys: Keys, value: Any, text: str) -> Keys:
    """Put `value` where `keys` lead in `data`, making mappings on the way; null removes the key. Return the keys."""
    node: Any = data
    walked: Keys = ()
    for part in keys[:-1]:
        key = _own_key(node, part, walked, text)
        walked = (*walked, key)
        inner = node.get(key) if isinstance(node, dict) else node[key]
        node[key] = {} if inner is None else _own(inner)
        node = node[key]
    last = _own_key(node, keys[-1], walked, text)
    if value is None and isinstance(node, dict):
        cast("dict[Any, Any]", node).pop(last, None)
    else:
        node[last] = value
    return (*walked, last)


def _own_key(node: Any, key: str | int, walked: Keys, text: str) -> str | int:
    """Return `key` as `node` takes it. Raises UsageError when it takes none, or not this one."""
    if isinstance(node, dict):
        return str(key)
    if not isinstance(node, list):
        raise UsageError(f"--set {text}: '{dotted(walked)}' is {node!r}, which has no keys.", _HINT_KEYS)
    count = len(cast("list[Any]", node))
    if not isinstance(key, int) or key >= count:
        raise UsageError(
            f"--set {text}: '{dotted(walked)}' is a list of {count}; it has no '{key}'.",
            f"Its items are numbered from 0 to {count - 1}.",
        )
    return key


def _own(node: Any) -> Any:
    """Return a copy of a list or mapping, so that what is put into it does not change the file's own words."""
    if isinstance(node, list):
        return list(cast("list[Any]", node))
    return dict(cast("dict[Any, Any]", node)) if isinstance(node, dict) else node


# --- references ------------------------------------------------------------------------------------------------------


def references(value: Any) -> Iterator[str]:
    """Yield what stands between the braces of each `${…}` in the texts of `value`."""
    if isinstance(value, str):
        yield from (match[2] for match in _REFERENCE.finditer(value) if not match[1])
    elif isinstance(value, list | Mapping):
        inner = cast("Mapping[Any, Any]", value).values() if isinstance(value, Mapping) else cast("list[Any]", value)
        for each in inner:
            yield from references(each)


def substituted(value: Any, look_up: Callable[[str, Keys], Any], keys: Keys = ()) -> Any:
    """Return `value` with the references in its texts replaced by what `look_up` returns for them and their keys.

    A text that is nothing but a reference becomes what was looked up, of whatever type. Where that is NotImplemented,
    the reference stays.
    """
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return {key: substituted(inner, look_up, (*keys, key)) for key, inner in pairs}
    if isinstance(value, list):
        return [substituted(inner, look_up, (*keys, n)) for n, inner in enumerate(cast("list[Any]", value))]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and not whole[1]:
        found = look_up(whole[2], keys)
        return value if found is NotImplemented else found

    def replaced(match: re.Match[str]) -> str:
        found = NotImplemented if match[1] else look_up(match[2], keys)
        return match[0] if found is NotImplemented else str(found)

    return _REFERENCE.sub(replaced, value)


def unescaped(value: Any) -> Any:
    """Return `value` with `$${` in its texts as `${`."""
    if isinstance(value, Mapping):
        return {key: unescaped(inner) for key, inner in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list):
        return [unescaped(inner) for inner in cast("list[Any]", value)]
    return value.replace("$${", "${") if isinstance(value, str) else value


def _environment(reference: str, keys: Keys, missing: list[Problem]) -> Any:
    kind, separator, name = reference.partition(":")
    if not separator or kind != "env":
        return NotImplemented
    if name not in os.environ:
        missing.append(Problem(keys, f"{{key}}: the environment variable '{name}' is not set"))
        return ""
    return os.environ[name]
