"""What people type for sizes, durations, dimensions and inputs, on the command line, in YAML and in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from infconv.convert._base import parse_dims, parse_input
from infconv.errors import UsageError, did_you_mean
from infconv.urls import is_url, name_of, split

_UNITS = {"": 1, "b": 1}
_UNITS.update({unit: 1000**power for power, letter in enumerate("kmgt", 1) for unit in (letter, f"{letter}b")})
_UNITS.update({f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)})
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DIM_HINT = "Example: --dim batch=1..32, batch=1,8,32 (min,opt,max) or batch=8 (fixed)."


def memory(text: str, what: str = "--memory-limit") -> int:
    """Parse `8GiB`, `500MB` to bytes. Raises UsageError that names it `what`."""
    return int(_quantity(text, _UNITS, what, "8GiB"))


def duration(text: str, what: str = "--timeout") -> float:
    """Parse `30m`, `90s`, `1.5h` to seconds. Raises UsageError that names it `what`."""
    return _quantity(text, _SECONDS, what, "30m")


REPORTS = (".html", ".json", ".md", ".xml", ".sarif")
"""The kinds of report, by the suffix of the file."""


def names_file(output: str) -> bool:
    """Whether an output is a file: it has a suffix, and neither a slash at its end nor a folder in its place."""
    if is_url(output):
        path = split(output)[1]
        return not path.endswith("/") and bool(Path(path).suffix)
    return not output.endswith("/") and bool(Path(output).suffix) and not Path(output).is_dir()


def report(path: str, what: str = "--report") -> str:
    """Return `path`, a report's. Raises UsageError that names it `what` when no kind of report has its suffix."""
    if report_kind(path) not in REPORTS:
        raise UsageError(f"{what} '{path}' has no known suffix.", did_you_mean(report_kind(path), REPORTS))
    return path


def report_kind(path: str) -> str:
    """Return the suffix of a report's path or URL, empty without one."""
    name = name_of(path)
    return name[name.rfind(".") :] if "." in name else ""


def _quantity(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = match[2].lower() if match else ""
    if match is None or unit not in units:
        raise UsageError(f"{what} '{text}' is not a number with a unit.", f"Example: {example}")
    if float(match[1]) == 0:
        raise UsageError(f"{what} '{text}' is nothing: it must be more than 0.", f"Example: {example}")
    return float(match[1]) * units[unit]


def inputs(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return name -> input entry from `NAME:DIMS[:DTYPE]` texts, or a mapping of names to DIMS[:DTYPE] or lists.

    Raises UsageError.
    """
    if not isinstance(given, Mapping):
        pairs = [parse_input(text) for text in _texts(given)]
        twice = _twice([name for name, _ in pairs])
        if twice:
            raise UsageError(f"--input '{twice}' is given twice.", "Give each input once.")
        return {name: {"dims": list(spec.dims), "dtype": spec.dtype} for name, spec in pairs}
    return {name: _input(name, value) for name, value in given.items()}


def _input(name: str, value: Any) -> Any:
    if isinstance(value, str):
        dims, dtype = parse_dims(value, f"input '{name}'")
        return {"dims": list(dims), "dtype": dtype}
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def dims(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return name -> dim entry from `batch=1..32` texts, or a mapping of names to sizes. Raises UsageError."""
    if not isinstance(given, Mapping):
        pairs = [_named_dim(text) for text in _texts(given)]
        twice = _twice([name for name, _ in pairs])
        if twice:
            raise UsageError(f"--dim '{twice}' is given twice.", "Give each dimension once.")
        return dict(pairs)
    return {name: _dim(f"dim '{name}'", value) for name, value in given.items()}


def _named_dim(text: str) -> tuple[str, dict[str, int]]:
    name, _, sizes = text.partition("=")
    if not name or not sizes:
        raise UsageError(f"--dim '{text}' is not NAME=SIZES.", _DIM_HINT)
    return name.strip(), _dim(f"--dim '{text}'", sizes)


def _dim(what: str, value: Any) -> Any:
    """Return a dim entry: `8` is fixed, `(1, 8, 32)` is min, opt, max, `1..32` a text, a mapping is taken as it is."""
    if isinstance(value, Mapping):
        return cast(Any, value)
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+)|,(\d+),(\d+))?", value.replace(" ", ""))
        if match is None:
            raise UsageError(f"{what} is not NAME=SIZES: '{value}' are no sizes.", _DIM_HINT)
        sizes = [int(size) for size in match.groups() if size is not None]
    else:
        sizes = [value] if isinstance(value, int) else list(cast("Sequence[int]", value))
    names = {1: ("min",), 2: ("min", "max"), 3: ("min", "opt", "max")}.get(len(sizes))
    if names is None:
        raise UsageError(f"{what} is a size, (min, max) or (min, opt, max), not {value}.", _DIM_HINT)
    if sizes != sorted(sizes) or sizes[0] < 1:
        raise UsageError(f"{what}: 1 <= min <= opt <= max is needed, not {', '.join(map(str, sizes))}.", _DIM_HINT)
    return dict.fromkeys(("min", "opt", "max"), sizes[0]) if len(sizes) == 1 else dict(zip(names, sizes, strict=True))


def _texts(given: Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _twice(names: Sequence[str]) -> str:
    return next((name for name in names if names.count(name) > 1), "")
