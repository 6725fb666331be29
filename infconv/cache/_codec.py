"""Typed objects as JSON and arrays, and back: what the cache stores. No pickle, which would run what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from infconv import compare, reference, result
from infconv.convert import _base

ARRAYS = "arrays.npz"
_CLASS, _ARRAY, _TEXTS = "$class", "$array", "$texts"


@cache
def _classes() -> dict[str, type[Any]]:
    """Return name -> dataclass of what may be stored."""
    found = [vars(module) for module in (compare, reference, result, _base)]
    return {
        name: kind
        for names in found
        for name, kind in names.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def encode(value: Any, arrays: dict[str, Any]) -> Any:
    """Return `value` as JSON data, which is made of dataclasses, lists, mappings and plain values.

    Numpy arrays go to `arrays`, by a number. Raises TypeError for anything else.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {_CLASS: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): encode(inner, arrays) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [encode(inner, arrays) for inner in cast("list[Any]", value)]
    return _encode_array(value, arrays)


def _encode_array(value: Any, arrays: dict[str, Any]) -> Any:
    import numpy as np

    if isinstance(value, np.generic) and value.dtype.char in "?ld":
        return value.item()
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} cannot be stored")
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = array.ravel().tolist()
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an array of objects cannot be stored")
        return {_TEXTS: texts, "shape": list(array.shape), "dtype": array.dtype.str}
    number, name = str(len(arrays)), array.dtype.name
    # .npz holds numpy's own types only: bfloat16 and its like travel as the bytes that they are.
    arrays[number] = array if array.dtype.isbuiltin == 1 else np.ascontiguousarray(array).view(np.uint8)
    return {_ARRAY: number, "shape": list(array.shape), "dtype": name}


def decode(value: Any, arrays: Mapping[str, Any]) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, list):
        return [decode(inner, arrays) for inner in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    if _CLASS in data:
        fields = {name: decode(inner, arrays) for name, inner in data.items() if name != _CLASS}
        return _classes()[data[_CLASS]](**fields)
    if _ARRAY in data or _TEXTS in data:
        return _decode_array(data, arrays)
    return {name: decode(inner, arrays) for name, inner in data.items()}


def _decode_array(data: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    import ml_dtypes
    import numpy as np

    if _TEXTS in data:
        return np.array(data[_TEXTS], dtype=data["dtype"]).reshape(data["shape"])
    name = data["dtype"]
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    array = arrays[data[_ARRAY]]
    return (array if array.dtype == dtype else array.view(dtype)).reshape(data["shape"])


def save_arrays(arrays: Mapping[str, Any], folder: Path) -> None:
    """Write the arrays that `encode` collected."""
    import numpy as np

    with (folder / ARRAYS).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **dict(arrays))


def load_arrays(folder: Path) -> dict[str, Any]:
    """Return what `save_arrays` wrote."""
    import numpy as np

    with np.load(folder / ARRAYS, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
