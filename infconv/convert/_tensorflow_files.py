"""Which kind of TensorFlow source a path is, read from its content with the standard library alone."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

from infconv.convert._files import damaged, refuse_pointer
from infconv.errors import SourceError

SAVED_MODEL = "saved-model"
KERAS = "keras"
KERAS_H5 = "keras-h5"
FROZEN = "frozen-graph"
TFLITE = "tflite"
WEIGHTS = "weights"

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_TFLITE = b"TFL3"
"""FlatBuffers' file identifier, at bytes 4 to 8."""
_GRAPH_NODE = 0x0A
"""Protobuf's tag of field 1, length-delimited: a GraphDef's `node`, and a NodeDef's `name`."""


def find_format(source: str) -> str | None:
    """Return the format of `source`, None when it is nothing of TensorFlow's. Raises nothing."""
    path = Path(source)
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if path.is_dir():
            return _folder_format(path)
        if path.is_file():
            return _file_format(path)
    return None


def refuse(source: str, source_format: str) -> None:
    """Raise SourceError for what holds no model, as far as that can be told without TensorFlow."""
    path = Path(source)
    if not path.exists():
        raise SourceError(f"'{source}' does not exist.", "Check the path.")
    if source_format == WEIGHTS:
        raise SourceError(
            f"'{source}' holds only weights (a checkpoint), not a model.",
            "Load it into the model in Python, then model.export('folder') or model.save('model.keras'), "
            "and convert that.",
        )
    if path.is_file():
        refuse_pointer(path)
    if source_format == KERAS:
        try:
            _is_keras(path)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise damaged(path, error) from error


def _folder_format(path: Path) -> str | None:
    if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
        return SAVED_MODEL
    checkpoint = path / "checkpoint"
    if checkpoint.is_file() and b"model_checkpoint_path" in checkpoint.read_bytes()[:4096]:
        return WEIGHTS
    return None


def _file_format(path: Path) -> str | None:
    with path.open("rb") as stream:
        head = stream.read(64)
    if path.name == "saved_model.pb":
        return SAVED_MODEL
    if head.startswith(_HDF5):
        return WEIGHTS if path.name.endswith(".weights.h5") else KERAS_H5
    if head.startswith(_ZIP):
        return _zip_format(path)
    if head[4:8] == _TFLITE:
        return TFLITE
    if path.name.endswith(".index") and Path(f"{path.with_suffix('')}.data-00000-of-00001").is_file():
        return WEIGHTS
    return FROZEN if _is_graph(head) else None


def _zip_format(path: Path) -> str | None:
    """Return the format; for a damaged archive the one of its name, so that `refuse` can say what is wrong."""
    try:
        return KERAS if _is_keras(path) else None
    except (zipfile.BadZipFile, EOFError, ValueError):
        return KERAS if path.suffix == ".keras" else None


def _is_keras(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if not {"config.json", "metadata.json"} <= names:
            return False
        return "keras_version" in json.loads(archive.read("metadata.json"))


def _is_graph(head: bytes) -> bool:
    """Tell whether `head` starts as a GraphDef: a node that starts with a name and then has an operator's name."""
    if len(head) < 6 or head[0] != _GRAPH_NODE:
        return False
    at = 1
    while at < len(head) and head[at] & 0x80:
        at += 1
    at += 1  # past the node's length
    if at + 2 >= len(head) or head[at] != _GRAPH_NODE:
        return False
    length = head[at + 1]
    name = head[at + 2 : at + 2 + length]
    after = at + 2 + length
    plain = bool(name) and all(0x20 < byte < 0x7F for byte in name)
    return plain and (after >= len(head) or head[after] == 0x12)
