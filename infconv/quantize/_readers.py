"""Calibration data: .npz, .npy, folders of arrays or images, `module:function`, JSONL text, read batch by batch."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from infconv.errors import UsageError
from infconv.quantize._calibration_options import ImageOptions, TextOptions
from infconv.quantize._inputs import Array, Batch, Input, batch_size, cut, only_input
from infconv.quantize._media import image_files, images, texts

__all__ = ["Batch", "Data", "Input", "batch_size", "open_data"]

_USUAL_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Data:
    """Calibration data that can be read any number of times."""

    path: str
    read: Callable[[], Iterator[Batch]]
    samples: int = 0
    """How many samples were asked for; 0: all."""
    fixed: int | None = None
    """The model's batch size, where it is not dynamic: a last batch that is smaller is left out."""

    def batches(self) -> Iterator[Batch]:
        """Yield batches until `samples` are reached; the last one may be cut."""
        left = self.samples or sys.maxsize
        for batch in self.read():
            for part in self._parts(batch):
                size = batch_size(part)
                yield {n: a[:left] for n, a in part.items()} if size > left and self.fixed is None else part
                left -= size
                if left <= 0:
                    return

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield `batch`, in parts of the model's batch size where that is fixed."""
        if self.fixed is None:
            yield batch
            return
        yield from (part for part in cut(batch, self.fixed) if batch_size(part) == self.fixed)


def open_data(
    path: str,
    inputs: Sequence[Input],
    *,
    samples: int = 0,
    image: ImageOptions | None = None,
    text: TextOptions | None = None,
    most: int = _USUAL_BATCH,
) -> Data:
    """Return the data at `path`, whose kind is recognised. `most` is the largest batch for a dynamic batch dimension.

    Raises UsageError when `path` is none of .npz, folder, .jsonl or module:function.
    """
    fixed = _fixed_batch(inputs)
    reader = _reader(path, inputs, fixed or most, image or ImageOptions(), text or TextOptions())
    return Data(path, reader, samples, fixed)


def _reader(
    path: str, inputs: Sequence[Input], size: int, image: ImageOptions, text: TextOptions
) -> Callable[[], Iterator[Batch]]:
    place = Path(path)
    if place.is_dir():
        kinds = {file.suffix.lower() for file in place.iterdir() if file.is_file()}
        if ".npz" in kinds or ".npy" in kinds:
            return lambda: _array_files(place, inputs)
        if files := image_files(place):
            info = only_input(inputs, "A folder of images")
            return lambda: joined(images(files, info, image), size)
        raise UsageError(f"--calibration '{path}' holds no .npz, .npy or image files.", "Check the folder.")
    if place.is_file():
        if place.suffix == ".npz":
            return lambda: _npz(place, inputs, size)
        if place.suffix == ".npy":
            info = only_input(inputs, "A .npy file")
            return lambda: _npy(place, info, size)
        if place.suffix in {".jsonl", ".json"}:
            return lambda: joined(texts(place, inputs, text), size)
    elif ":" in path:
        return _Function(path, inputs)
    raise UsageError(
        f"--calibration '{path}' is not a .npz, .npy, .jsonl, folder of arrays or images, or module:function.",
        "Check the path." if not place.exists() else "Write the inputs with numpy.savez(path, name=array).",
    )


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """Return the batch size of a model where it is not dynamic; the first of fixed ones, others may differ."""
    first = [info.dims[0] for info in inputs if info.dims]
    if any(isinstance(dim, str) for dim in first):
        return None
    return next((dim for dim in first if isinstance(dim, int)), None)


def joined(samples: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Put samples (with a batch dimension of 1) together to batches of `size`; a change of shape starts a new one."""
    waiting: list[Batch] = []
    for sample in samples:
        if waiting and (len(waiting) == size or _shapes(sample) != _shapes(waiting[0])):
            yield _stack(waiting)
            waiting = []
        waiting.append(sample)
    if waiting:
        yield _stack(waiting)


def _shapes(sample: Batch) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.items()}


def _stack(samples: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}


# --- arrays ------------------------------------------------------------------------------------------------------


def _npz(path: Path, inputs: Sequence[Input], size: int) -> Iterator[Batch]:
    """Yield `size` rows at a time of arrays whose first dimension counts samples; the file is never read whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = [name for name in names if name in {info.name for info in inputs}] or names
            if len(inputs) == 1 and wanted == names and len(names) == 1:
                label = {names[0]: inputs[0].name}  # one array for one input: its name does not matter
            else:
                label = {name: name for name in wanted}
            readers = {label[name]: _rows(archive.open(f"{name}.npy"), size) for name in wanted}
            for rows in zip_longest(*readers.values(), fillvalue=np.empty(0)):
                if len({len(array) for array in rows}) > 1:
                    raise ValueError("the arrays have different numbers of samples")
                yield dict(zip(readers, rows, strict=True))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UsageError(f"--calibration '{path}' is not a .npz file of plain arrays: {error}.") from error
    except ValueError as error:
        raise UsageError(
            f"--calibration '{path}': {error}.",
            "Every array needs the same first dimension, the number of samples. An input without one can be given in a "
            "folder of .npz files, a batch in each.",
        ) from error


def _npy(path: Path, info: Input, size: int) -> Iterator[Batch]:
    """Yield `size` rows at a time of the array for the only input."""
    try:
        with path.open("rb") as stream:
            for rows in _rows(stream, size):
                yield {info.name: rows}
    except (EOFError, ValueError) as error:
        raise UsageError(f"--calibration '{path}' is not a .npy file of a plain array: {error}.") from error


def _rows(stream: IO[bytes], size: int) -> Iterator[Array]:
    """Yield `size` rows at a time of a .npy stream."""
    major, _ = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    dims, fortran, dtype = header(stream)
    shape = [int(size) for size in dims]
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not read")
    if not shape:
        raise ValueError("an array without dimensions has no samples")
    row = int(np.prod(shape[1:])) * dtype.itemsize
    if fortran and len(shape) > 1:
        whole = np.frombuffer(stream.read(), dtype).reshape(shape[::-1]).transpose()
        yield from (whole[start : start + size] for start in range(0, shape[0], size))
        return
    for start in range(0, shape[0], size):
        count = min(size, shape[0] - start)
        data = stream.read(count * row)
        if len(data) < count * row:
            raise EOFError("the file is too short")
        yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _array_files(folder: Path, inputs: Sequence[Input]) -> Iterator[Batch]:
    """Yield the arrays of each file: all inputs of a .npz, the only input of a .npy."""
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix not in {".npz", ".npy"}:
            continue
        try:
            loaded: Any = np.load(file, allow_pickle=False)
            arrays = loaded if file.suffix == ".npz" else {only_input(inputs, "A folder of .npy files").name: loaded}
            yield {name: _with_batch(arrays[name], name, inputs) for name in arrays}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(f"--calibration: '{file}' is no file of plain arrays: {error}.") from error


def _with_batch(array: Array, name: str, inputs: Sequence[Input]) -> Array:
    """Return `array` with a batch dimension in front where it is one sample without it."""
    rank = next((len(info.dims) for info in inputs if info.name == name), array.ndim)
    return array[None] if array.ndim == rank - 1 else array


class _Function:
    """Reads what the user's generator yields: dicts of arrays, or arrays for the only input."""

    def __init__(self, path: str, inputs: Sequence[Input]) -> None:
        self._path, self._inputs = path, inputs
        self._gave = False
        """Whether there were samples at an earlier reading."""

    def __call__(self) -> Iterator[Batch]:
        """Yield the batches. Raises UsageError when the user's code fails."""
        function, empty = self._find(), True
        items = self._iterate(function)
        for item in items:
            given = item if isinstance(item, Mapping) else {only_input(self._inputs, f"'{self._path}'").name: item}
            yield {key: self._array(value) for key, value in given.items()}
            empty, self._gave = False, True
        if empty and self._gave:
            raise UsageError(
                f"--calibration '{self._path}' gives its samples only once.",
                "Data is read several times: return a new generator at each call.",
            )

    def _find(self) -> Callable[[], Iterable[Any]]:
        module, _, name = self._path.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            function: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"--calibration '{self._path}' cannot be imported: {error}.", "Check the path.") from error
        if not callable(function):
            raise UsageError(f"--calibration '{self._path}' is no function.", "It must return a generator of samples.")
        return cast("Callable[[], Iterable[Any]]", function)

    def _iterate(self, function: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        try:
            yield from function()
        except Exception as error:  # the user's code raises whatever it does
            raise UsageError(
                f"--calibration '{self._path}' failed: {type(error).__name__}: {error}.",
                "It must yield dicts of arrays by input name.",
            ) from error

    def _array(self, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors that need gradients
            array, reason = np.asarray(None), f": {error}"
        else:
            reason = ""
        if array.dtype.hasobject:
            raise UsageError(
                f"--calibration '{self._path}' yields a {type(value).__name__}, which is no array{reason}.",
                "It must yield dicts of arrays by input name.",
            )
        return array
