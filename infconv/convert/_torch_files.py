"""Which kind of PyTorch source a path or name is, read from its content with the standard library alone."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from infconv.convert import _torch_pickle as pickles
from infconv.convert import _torch_program as programs
from infconv.convert._files import damaged, refuse_pointer
from infconv.errors import InfconvError, SourceError, UsageError

EXPORTED_PROGRAM = "exported-program"
TORCHSCRIPT = "torchscript"
FACTORY = "factory"
HUGGINGFACE = "huggingface"
PICKLED_MODULE = "pickled-module"
WEIGHTS = "weights"

HUGGINGFACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = {".pt2": EXPORTED_PROGRAM, ".pt": TORCHSCRIPT, ".pth": TORCHSCRIPT, ".jit": TORCHSCRIPT}
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ZIP = b"PK\x03\x04"
_TORCH_ZIP_ENTRY = re.compile(rb"data\.pkl|archive_format|constants\.pkl|\.format_version|serialized_exported_program")
_LARGEST_HEADER = 100 << 20
_HINT_WEIGHTS = (
    "Name the code that builds the model and give the file as its weights: "
    "infconv convert my_module:build_model --weights {path} --input ..."
)
_HINT_PICKLE = (
    "Safe ways: save it with torch.export.save(torch.export.export(model, args), 'model.pt2') or torch.jit.save; or "
    "keep only its state_dict() and convert my_module:build_model --weights FILE. If you trust it: --trust-pickle."
)


def find_format(source: str) -> str | None:
    """Return the format of `source`, None when it is nothing of PyTorch's. Raises nothing."""
    path = Path(source)
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            return HUGGINGFACE if _config(path) is not None else None
        if path.is_file():
            return _file_format(path)
    return FACTORY if _FACTORY.fullmatch(source) and not path.exists() else None


def refuse(source: str, source_format: str, trust_pickle: bool) -> None:
    """Raise what is wrong with `source` as far as it can be told without PyTorch.

    SourceError: damaged, incomplete, or weights without a model. UsageError: loading it would run code and
    `trust_pickle` is not given.
    """
    path = Path(source)
    if source_format == FACTORY:
        return
    if not path.exists():
        raise SourceError(f"'{source}' does not exist.", "Check the path.")
    if source_format == HUGGINGFACE:
        _refuse_folder(path)
    elif source_format == WEIGHTS:
        raise SourceError(
            f"'{source}' holds only weights (a state dict), not a model.", _HINT_WEIGHTS.format(path=source)
        )
    else:
        _refuse_file(path, source_format, trust_pickle)


def _file_format(path: Path) -> str | None:
    with path.open("rb") as stream:
        head = stream.read(64 << 10)
        if head.startswith(_ZIP):
            return _zip_format(path, head)
        if head.startswith(pickles.LEGACY_MAGIC):
            stream.seek(0)
            return _pickle_format(stream, legacy=True)
        if _is_safetensors(head, path.stat().st_size):
            return WEIGHTS
        if re.match(rb"\x80[\x02-\x05]", head) and b"torch" in head:
            stream.seek(0)
            return _pickle_format(stream, legacy=False)
    return _SUFFIXES.get(path.suffix)


def _zip_format(path: Path, head: bytes) -> str | None:
    """Return the format; for a damaged archive of PyTorch's the likely one, so that `refuse` can say what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _archive_format(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        ours = path.suffix in _SUFFIXES or _TORCH_ZIP_ENTRY.search(head)
        return _SUFFIXES.get(path.suffix, TORCHSCRIPT) if ours else None


def _archive_format(archive: zipfile.ZipFile) -> str | None:
    _refuse_prefix(archive)
    names = archive.namelist()
    if programs.is_program(names):
        return EXPORTED_PROGRAM
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails or ("model.json" in tails and any(tail.startswith("code/") for tail in tails)):
        return TORCHSCRIPT
    entry = _data_entry(names)
    if entry is None:
        return None
    with archive.open(entry) as stream:
        return _pickle_format(cast(BinaryIO, stream), legacy=False)


def _refuse_prefix(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile when the archive starts later than the file.

    zipfile then reads an archive that is stored inside the one that was cut, or was hidden behind it.
    """
    if min((entry.header_offset for entry in archive.infolist()), default=0) != 0:
        raise zipfile.BadZipFile("its directory is missing")


def _pickle_format(stream: BinaryIO, *, legacy: bool) -> str:
    try:
        names = pickles.harmful_names_legacy(stream) if legacy else pickles.harmful_names(stream)
    except pickles.DamagedPickleError:
        return PICKLED_MODULE
    return PICKLED_MODULE if names else WEIGHTS


def _data_entry(names: list[str]) -> str | None:
    return next((name for name in names if re.fullmatch(r"[^/]+/data\.pkl|data\.pkl", name)), None)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes of header length, then JSON: https://huggingface.co/docs/safetensors."""
    if len(head) < 10:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return head[8:9] == b"{" and length <= min(size - 8, _LARGEST_HEADER)


def _config(folder: Path) -> dict[str, Any] | None:
    """Return config.json when it describes a Hugging Face model."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(config, dict) and ("model_type" in config or "architectures" in config)
    return cast("dict[str, Any]", config) if known else None


def _refuse_folder(folder: Path) -> None:
    present = [name for name in HUGGINGFACE_WEIGHTS if (folder / name).is_file()]
    if not present:
        raise SourceError(
            f"'{folder}' has a config.json but no weights ({' or '.join(HUGGINGFACE_WEIGHTS[::2])}).",
            "Download the whole model, or save it with model.save_pretrained(folder).",
        )
    weights = folder / present[0]
    if weights.suffix != ".json":
        refuse_pointer(weights)
        return
    try:
        shards = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"'{weights}' is no index of weights: {error}.", "Download the file again.") from error
    missing = sorted(shard for shard in shards if not (folder / str(shard)).is_file())
    if missing:
        raise SourceError(
            f"'{folder}' lacks {len(missing)} of its {len(shards)} weight files: {', '.join(missing[:3])}.",
            "Download the whole model.",
        )


def _refuse_file(path: Path, source_format: str, trust_pickle: bool) -> None:
    refuse_pointer(path)
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(_ZIP):
        _refuse_archive(path, source_format, trust_pickle)
    elif source_format == PICKLED_MODULE:
        with path.open("rb") as stream:
            _refuse_pickle(path, stream, trust_pickle, legacy=head.startswith(pickles.LEGACY_MAGIC))
    else:
        raise SourceError(f"'{path}' is not a PyTorch file: {_first_bytes(head)}.", "Check the path, or save it again.")


def _refuse_archive(path: Path, source_format: str, trust_pickle: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_prefix(archive)
            if source_format == EXPORTED_PROGRAM:
                programs.refuse(path, archive, trust_pickle)
            elif (entry := _data_entry(archive.namelist())) is None:
                raise SourceError(f"'{path}' has no data.pkl: not a file of torch.save.", "Save it again.")
            elif source_format == PICKLED_MODULE:
                with archive.open(entry) as stream:
                    _refuse_pickle(path, cast(BinaryIO, stream), trust_pickle, legacy=False)
            else:
                archive.read(entry)  # checks its CRC
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise damaged(path, error) from error


def _refuse_pickle(path: Path, stream: BinaryIO, trust_pickle: bool, *, legacy: bool) -> None:
    try:
        names = pickles.harmful_names_legacy(stream) if legacy else pickles.harmful_names(stream)
    except pickles.DamagedPickleError as error:
        raise damaged(path, error) from error
    if names and not trust_pickle:
        raise pickle_error(path, names)


def pickle_error(path: Path, names: list[str]) -> InfconvError:
    """Return the refusal of a file that imports `names` when it is loaded."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return UsageError(f"'{path}' is a pickled module: loading it runs code (it imports {shown}).", _HINT_PICKLE)


def _first_bytes(head: bytes) -> str:
    return f"it starts with {head[:8]!r}"
