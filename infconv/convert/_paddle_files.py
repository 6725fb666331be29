"""Which kind of Paddle model a path is, and where its two files are: read with the standard library alone."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from infconv.convert._files import refuse_pointer
from infconv.convert._worker_protobuf import fields, varint
from infconv.errors import SourceError

PIR = "pir"
PROGRAM = "program"
WEIGHTS = "weights"

_SUFFIXES = {PIR: ".json", PROGRAM: ".pdmodel"}
_PARAMETERS = ".pdiparams"
_PIR_HEAD = re.compile(rb'"magic"\s*:\s*"pir"')
_PIR_PARAMETER = re.compile(rb'"#"\s*:\s*"p"|"builtin\.parameter"')
_HEAD_BYTES = 4096

# framework.proto: ProgramDesc.blocks = 1, BlockDesc.vars = 3, VarDesc.name = 1, VarDesc.persistable = 3
_BLOCKS, _VARS, _NAME, _PERSISTABLE = 1, 3, 1, 3


@dataclasses.dataclass(frozen=True)
class Files:
    """The two files of a saved Paddle model; `parameters` is None for a model without any."""

    program: Path
    parameters: Path | None
    format: str


def find_format(source: str) -> str | None:
    """Return the format of `source` (a file, a prefix, or a folder), None when it is nothing of Paddle's.

    A model whose parameters are missing is recognised, so that `locate` can say what is missing. Raises nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        if Path(source).is_dir() and not _programs(Path(source)):
            return None
        program = _program_of(Path(source))
        if program is not None:
            return _content(program)
        if _is_weights(Path(source)):
            return WEIGHTS
    return None


def locate(source: str) -> Files:
    """Return the files of the model that `source` names: either file, their common prefix, or the folder.

    Raises SourceError: parameters or program missing, a folder with several models, an empty or damaged file.
    """
    path = Path(source)
    if path.is_dir() and len(_programs(path)) > 1:
        names = ", ".join(sorted(p.name for p in _programs(path)))
        raise SourceError(f"'{source}' holds several Paddle models: {names}.", "Name one of the files.")
    program = _program_of(path)
    if program is None:
        raise _no_program(path)
    kind = _content(program)
    if kind is None:
        raise SourceError(f"'{program}' is not a Paddle program.", "Save it again with paddle.jit.save.")
    parameters = program.with_suffix(_PARAMETERS)
    if parameters.is_file():
        refuse_pointer(parameters)
        return Files(program, parameters, kind)
    if _has_parameters(program, kind):
        raise SourceError(
            f"'{program}' needs its parameters, and '{parameters.name}' is not beside it.",
            "Put both files of paddle.jit.save into one folder.",
        )
    return Files(program, None, kind)


def _no_program(path: Path) -> SourceError:
    if path.is_file() and path.stat().st_size == 0:
        return SourceError(f"'{path}' is empty.", "Copy the file again.")
    if path.suffix == _PARAMETERS or _is_weights(path):
        return SourceError(
            f"'{path}' holds only parameters: there is no .json or .pdmodel beside it.",
            "Put both files of paddle.jit.save into one folder.",
        )
    return SourceError(
        f"'{path}' is not a Paddle model.",
        "paddle.jit.save(layer, 'model', input_spec=...) writes model.json (or .pdmodel) and model.pdiparams.",
    )


def _program_of(path: Path) -> Path | None:
    """Return the program file that `path` stands for."""
    if path.is_dir():
        found = _programs(path)
        return found[0] if found else None
    if path.is_file() and path.suffix != _PARAMETERS:
        return path if _content(path) else None
    prefix = path.with_suffix("") if path.suffix == _PARAMETERS else path
    for suffix in _SUFFIXES.values():
        candidate = prefix.with_name(prefix.name + suffix)
        if candidate.is_file() and _content(candidate):
            return candidate
    return None


def _programs(folder: Path) -> list[Path]:
    """Return the programs in `folder`; where one is there in both formats, the newer format counts."""
    found: dict[str, Path] = {}
    for kind in (PROGRAM, PIR):
        for path in sorted(folder.glob(f"*{_SUFFIXES[kind]}")):
            if _content(path) == kind:
                found[path.stem] = path
    return list(found.values())


def _content(path: Path) -> str | None:
    """Return the format of a program file, judged by its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.lstrip().startswith(b"{"):
        return PIR if _PIR_HEAD.search(head) else None
    # ProgramDesc: field 1 (a block, length-delimited), whose first field is its number (1), zero for the main block.
    return PROGRAM if _is_program(head) else None


def _is_program(head: bytes) -> bool:
    try:
        if head[:1] != b"\x0a":
            return False
        _, at = varint(head, 1)
        return head[at : at + 3] == b"\x08\x00\x10"
    except IndexError:
        return False


def _has_parameters(program: Path, kind: str) -> bool:
    if kind == PIR:
        return bool(_PIR_PARAMETER.search(program.read_bytes()))
    try:
        return any(_persistable(program.read_bytes()))
    except IndexError as error:
        raise SourceError(f"'{program}' is cut short.", "Copy the file again.") from error


def _persistable(data: bytes) -> Iterator[bool]:
    """Yield, of each variable of the main block, whether it is a stored parameter."""
    for number, block in fields(data):
        if number != _BLOCKS or isinstance(block, int):
            continue
        for kind, variable in fields(block):
            if kind == _VARS and not isinstance(variable, int):
                described = dict(fields(variable))
                name = described.get(_NAME, b"")
                # feed and fetch are kept as persistable variables that no file stores
                yield bool(described.get(_PERSISTABLE)) and name not in (b"feed", b"fetch")


def _is_weights(path: Path) -> bool:
    return path.is_file() and path.suffix == _PARAMETERS
