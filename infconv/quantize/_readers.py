"""Calibration data: .npz, folders of arrays or images, `module:function`, JSONL text, read batch by batch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from infconv.errors import UsageError, missing_extra
from infconv.quantize._calibration_options import ImageOptions, TextOptions

Array = np.ndarray[Any, np.dtype[Any]]
Batch = Mapping[str, Array]

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_USUAL_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Input:
    """A model input that calibration must feed."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    """Names for dynamic dims."""


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
            size = batch_size(batch)
            if self.fixed is not None and size < self.fixed:
                continue
            yield {name: array[:left] for name, array in batch.items()} if size > left and not self.fixed else batch
            left -= size
            if left <= 0:
                return


def batch_size(batch: Batch) -> int:
    """Return the size of the first dimension, 1 for scalars."""
    first = next(iter(batch.values()), None)
    return first.shape[0] if first is not None and first.ndim else 1


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
        if kinds & IMAGES:
            return lambda: joined(_images(place, _only(inputs, "A folder of images"), image), size)
        raise UsageError(f"--calibration '{path}' holds no .npz, .npy or image files.", "Check the folder.")
    if place.is_file():
        if place.suffix == ".npz":
            return lambda: _npz(place, inputs, size)
        if place.suffix in {".jsonl", ".json"}:
            return lambda: joined(_texts(place, inputs, text), size)
    elif ":" in path:
        return lambda: _from_function(path, inputs)
    raise UsageError(
        f"--calibration '{path}' is not a .npz, .jsonl, folder of arrays or images, or module:function.",
        "Check the path." if not place.exists() else "Write the inputs with numpy.savez(path, name=array).",
    )


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """Return the batch size of a model where it is not dynamic."""
    return next((info.dims[0] for info in inputs if info.dims and isinstance(info.dims[0], int)), None)


def _only(inputs: Sequence[Input], what: str) -> Input:
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs)
        raise UsageError(f"{what} feeds one input; the model has {len(inputs)}: {names}.", "Use .npz files.")
    return inputs[0]


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
            for rows in zip(*readers.values(), strict=True):
                yield dict(zip(readers, rows, strict=True))
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UsageError(f"--calibration '{path}' is not a .npz file of plain arrays: {error}.") from error
    except ValueError as error:
        raise UsageError(
            f"--calibration '{path}': {error}.", "Every array needs the same first dimension: the number of samples."
        ) from error


def _rows(stream: IO[bytes], size: int) -> Iterator[Array]:
    """Yield `size` rows at a time of a .npy stream."""
    major, _ = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    dims, fortran, dtype = header(stream)
    shape: tuple[int, ...] = tuple(dims)
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
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                yield {name: _with_batch(archive[name], name, inputs) for name in archive.files}
        elif file.suffix == ".npy":
            info = _only(inputs, "A folder of .npy files")
            yield {info.name: _with_batch(np.load(file, allow_pickle=False), info.name, inputs)}


def _with_batch(array: Array, name: str, inputs: Sequence[Input]) -> Array:
    """Return `array` with a batch dimension in front where it is one sample without it."""
    rank = next((len(info.dims) for info in inputs if info.name == name), array.ndim)
    return array[None] if array.ndim == rank - 1 else array


def _from_function(path: str, inputs: Sequence[Input]) -> Iterator[Batch]:
    """Yield what the user's generator yields: dicts of arrays, or arrays for the only input."""
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--calibration '{path}' cannot be imported: {error}.", "Check the path.") from error
    for item in function():
        given = item if isinstance(item, Mapping) else {_only(inputs, f"'{path}'").name: item}
        yield {key: np.asarray(value) for key, value in given.items()}


# --- images and text ---------------------------------------------------------------------------------------------


def _images(folder: Path, info: Input, options: ImageOptions) -> Iterator[Batch]:
    try:
        from PIL import Image  # pyright: ignore[reportMissingImports]  (an optional dependency)
    except ImportError:
        raise missing_extra("pillow", "images", "--calibration with a folder of images") from None
    channels_last, channels, size = _image_geometry(info, options)
    for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGES):
        with Image.open(file) as opened:
            picture = _fitted(opened.convert("L" if channels == 1 else "RGB"), size, options)
        array = np.asarray(picture, np.float32).reshape(*picture.size[::-1], channels)
        if info.dtype.kind == "f":
            mean, std = np.array(options.mean[:channels], "f4"), np.array(options.std[:channels], "f4")
            array = (array * np.float32(options.scale) - mean) / std
        yield {info.name: (array if channels_last else array.transpose(2, 0, 1))[None].astype(info.dtype)}


def _image_geometry(info: Input, options: ImageOptions) -> tuple[bool, int, tuple[int, int] | None]:
    """Return (channels last?, channels, (height, width) of the model where fixed). Raises UsageError."""
    if len(info.dims) != 4:
        raise UsageError(f"Input '{info.name}' has {len(info.dims)} dimensions: it takes no images.", "Use .npz files.")
    last = options.layout == "NHWC" or (
        options.layout == "auto" and info.dims[3] in (1, 3) and info.dims[1] not in (1, 3)
    )
    channels = info.dims[3] if last else info.dims[1]
    if channels not in (1, 3):
        raise UsageError(f"Input '{info.name}' has {channels} channels; images have 1 or 3.", "Use .npz files.")
    height, width = info.dims[1:3] if last else info.dims[2:4]
    fixed = isinstance(height, int) and isinstance(width, int)
    return last, int(channels), (int(height), int(width)) if fixed else None


def _fitted(picture: Any, size: tuple[int, int] | None, options: ImageOptions) -> Any:
    """Return the picture resized, then its centre, of the model's size where that is fixed."""
    crop = _pair(options.crop) or size
    resize = options.resize if options.resize is not None else size
    if isinstance(resize, int):
        ratio = resize / min(picture.size)
        picture = picture.resize((round(picture.width * ratio), round(picture.height * ratio)))
    elif resize is not None:
        picture = picture.resize((resize[1], resize[0]))
    if crop is not None:
        top, left = (picture.height - crop[0]) // 2, (picture.width - crop[1]) // 2
        picture = picture.crop((left, top, left + crop[1], top + crop[0]))
    return picture


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _texts(path: Path, inputs: Sequence[Input], options: TextOptions) -> Iterator[Batch]:
    """Yield token ids of each line's text, or the arrays that a line holds already."""
    encode = _encoder(options) if options.tokenizer else None
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                arrays = entry if encode is None else encode(entry[options.field], inputs)
                yield {info.name: np.asarray(arrays[info.name], info.dtype)[None] for info in inputs}
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"--calibration '{path}', line {number}: {type(error).__name__}: {error}.",
                    'Each line is JSON: {"text": "…"} with a tokenizer, or an array for each input.',
                ) from error


def _encoder(options: TextOptions) -> Callable[[str, Sequence[Input]], dict[str, list[int]]]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise missing_extra("tokenizers", "text", "--calibration with text") from None
    tokenizer = Tokenizer.from_file(options.tokenizer)

    def encode(text: str, inputs: Sequence[Input]) -> dict[str, list[int]]:
        fixed = [info.dims[1] for info in inputs if len(info.dims) > 1 and isinstance(info.dims[1], int)]
        length = int(fixed[0]) if fixed else options.length
        ids = tokenizer.encode(text).ids[:length]
        padding = [0] * (length - len(ids)) if fixed else []
        roles = {"attention_mask": [1] * len(ids) + padding, "token_type_ids": [0] * (len(ids) + len(padding))}
        return {info.name: roles.get(info.name, ids + padding) for info in inputs}

    return encode
