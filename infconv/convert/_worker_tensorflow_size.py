"""How large a model is, read from where it is stored: what no ONNX graph can hold is refused before it is loaded."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from ._worker import WorkerError

LARGEST_BYTES = int(1.9 * 2**30)
"""Protocol buffers end at 2 GiB, and the ONNX model is one until its weights are written beside it."""

_WEIGHTS = "model.weights.h5"
_OF_OPTIMIZERS = re.compile(r"optimizer|/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl)(_\d+)?$", re.IGNORECASE)
"""Variables that training keeps beside the weights."""
_TWICE = "_all_variables/"
"""Where Keras's export stores each variable once more."""


def refuse_large(size: int) -> None:
    """Raise WorkerError of kind unsupported when `size` bytes of constants do not fit a graph."""
    if size > LARGEST_BYTES:
        raise WorkerError(
            "unsupported",
            f"The model has {size / 1e9:.1f} GB of weights; the conversion from TensorFlow ends at 2 GB.",
            "Convert it in parts (an encoder and a decoder, say), with its weights in float16, or from PyTorch if it "
            "has a PyTorch form.",
        )


def bytes_of(variables: Iterable[Any]) -> int:
    """Return the size of variables, each counted once."""
    distinct = {id(each): each for each in variables}.values()
    return sum(math.prod(each.shape) * tf.as_dtype(each.dtype).size for each in distinct)


def refuse_large_checkpoint(folder: str) -> None:
    """Do so for the variables of the SavedModel in `folder`."""
    files = sum(path.stat().st_size for path in Path(folder, "variables").glob("variables.data-*"))
    if files > LARGEST_BYTES:
        reader = tf.train.load_checkpoint(str(Path(folder, "variables", "variables")))
        types, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
        kept = [name for name in shapes if not _OF_OPTIMIZERS.search(name)]
        kept = [name for name in kept if not name.startswith(_TWICE)] or kept
        refuse_large(sum(math.prod(shapes[name]) * types[name].size for name in kept))


def refuse_large_file(path: str) -> None:
    """Do so for the weights of a .keras or .h5 file."""
    import h5py  # pyright: ignore[reportMissingImports]

    if Path(path).stat().st_size <= LARGEST_BYTES:  # neither format makes weights smaller than they are
        return
    with open(path, "rb") as stream:
        inner = _part(path) if zipfile.is_zipfile(path) else (0, Path(path).stat().st_size)
        if inner is not None:
            with h5py.File(_Part(stream, *inner), "r") as file:
                refuse_large(_stored(file))


def _stored(file: Any) -> int:
    sizes: list[int] = []

    def add(name: str, item: Any) -> None:
        if hasattr(item, "nbytes") and not _OF_OPTIMIZERS.search(name):
            sizes.append(item.nbytes)

    file.visititems(add)
    return sum(sizes)


def _part(path: str) -> tuple[int, int] | None:
    """Return where the weights are in an archive, and how many bytes; None when they are compressed or elsewhere."""
    with zipfile.ZipFile(path) as archive:
        entry = next((each for each in archive.infolist() if each.filename == _WEIGHTS), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(entry):
            assert archive.fp is not None
            return archive.fp.tell(), entry.file_size


class _Part(io.RawIOBase):
    """A part of a file as a file: zipfile's own rereads what lies before at each step back."""

    def __init__(self, stream: Any, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._at)
        found = self._stream.read(min(len(buffer), self._size - self._at))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)
