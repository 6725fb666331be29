"""What a .pt2 archive (torch.export.save) holds, and whether loading it could run code.

`torch.export.load` unpickles parts of the archive without restriction, evaluates the expressions of symbolic sizes with
`eval`, compiles guards, and resolves operator names by attribute look-up from `torch`. Ordinary files use none of this
to run code, so anything else is refused unless the user trusts the file.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from infconv.convert import _torch_pickle as pickles
from infconv.errors import InfconvError, SourceError, UsageError

_OLD_GRAPH = "serialized_exported_program.json"
_PICKLED_FILES = re.compile(
    r"(.*/)?(serialized_(state_dict|constants|example_inputs)\.pt"
    r"|data/(weights|constants|sample_inputs)/[^/]+\.pt)"
)
_CONFIG_FILES = re.compile(r".*/data/(weights|constants)/[^/]+_config\.json")
_TARGET = re.compile(r"torch\.ops\.[\w.]+|torch\.(sym_\w+|_check\w*|_sym_\w+)|_operator\.\w+|math\.\w+|#?\w+")
_STRING = re.compile(r"'[^']*'|\"[^\"]*\"")
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_WORD = re.compile(r"\b(lambda|import|exec|eval|for|while|yield|await)\b|__|:=|[{}`;]")
_HARMLESS_CALLS = frozenset(
    [
        "size",
        "stride",
        "storage_offset",
        "item",
        "dim",
        "floor",
        "ceiling",
        "ceil",
        "sqrt",
        "exp",
        "log",
        "log2",
        "abs",
        "min",
        "max",
        "int",
        "float",
        "bool",
        "round",
        "and",
        "or",
        "not",
        "if",
        "else",
        "in",
        "is",
        "sym_max",
        "sym_min",
        "sym_not",
        "sym_float",
        "sym_int",
        "sym_sqrt",
        "cast_symbool_to_symint_guardless",
    ]
)


def is_program(names: list[str]) -> bool:
    """Tell whether these are the entries of a .pt2 archive: today's layout, or that of PyTorch 2.2 to 2.6."""
    return _OLD_GRAPH in names or any(name.endswith("/archive_format") for name in names)


def refuse(path: Path, archive: zipfile.ZipFile, trust_pickle: bool) -> None:
    """Raise SourceError when the archive holds no graph, UsageError when loading it could run code."""
    names = archive.namelist()
    graphs = [name for name in names if name == _OLD_GRAPH or re.fullmatch(r".*/models/[^/]+\.json", name)]
    if not graphs:
        raise SourceError(
            f"'{path}' holds no exported program"
            + (", only code compiled by AOTInductor." if any("/aotinductor/" in name for name in names) else "."),
            "Save one with torch.export.save(torch.export.export(model, args), 'model.pt2').",
        )
    for graph in graphs:
        content = _json(path, archive, graph)
        if not trust_pickle:
            _refuse_code(path, content)
    if not trust_pickle:
        _refuse_pickles(path, archive, names)


def _refuse_code(path: Path, graph: Any) -> None:
    for key, text in _strings(graph):
        bad = (key == "target" and not _TARGET.fullmatch(text)) or (
            key in ("expr_str", "guards_code") and not _harmless_expression(text)
        )
        if bad:
            raise UsageError(
                f"'{path}' could run code when loaded: its graph has the {key} {text[:80]!r}.",
                "Export it again from the original model. If you trust the file: --trust-pickle.",
            )


def _harmless_expression(text: str) -> bool:
    """Tell whether evaluating `text` can only compute sizes: sympy classes (capitalised) and a few functions."""
    bare = _STRING.sub("''", text)
    if _WORD.search(text):
        return False
    return all(name in _HARMLESS_CALLS or name[0].isupper() for name in _CALL.findall(bare))


def _refuse_pickles(path: Path, archive: zipfile.ZipFile, names: list[str]) -> None:
    for name in [*filter(_PICKLED_FILES.fullmatch, names), *_pickled_payloads(path, archive, names)]:
        with archive.open(name) as stream:
            found = _harmful(path, cast(BinaryIO, stream))
        if found:
            raise _pickle_error(path, name, found)


def _harmful(path: Path, stream: BinaryIO) -> list[str]:
    """Return the harmful names of a part, which is a file of torch.save or a plain pickle."""
    try:
        if stream.peek(4)[:4] == b"PK\x03\x04":  # type: ignore[attr-defined]
            with zipfile.ZipFile(stream) as inner:
                entries = [name for name in inner.namelist() if name.endswith(".pkl")]
                return sorted({found for entry in entries for found in _harmful_entry(inner, entry)})
        return pickles.harmful_names(stream)
    except (pickles.DamagedPickleError, zipfile.BadZipFile) as error:
        raise SourceError(f"'{path}' is damaged ({error}).", "Copy or download the file again.") from error


def _harmful_entry(archive: zipfile.ZipFile, entry: str) -> list[str]:
    with archive.open(entry) as stream:
        return pickles.harmful_names(cast(BinaryIO, stream))


def _pickled_payloads(path: Path, archive: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    """Yield the entries that the archive's own tables mark as pickled."""
    for table in filter(_CONFIG_FILES.fullmatch, names):
        folder = table.rpartition("/")[0]
        for payload in _json(path, archive, table).get("config", {}).values():
            if payload.get("use_pickle"):
                yield f"{folder}/{payload['path_name']}"


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return json.loads(archive.read(name))
    except ValueError as error:
        raise SourceError(f"'{path}' is damaged: {name} is not JSON.", "Copy or download the file again.") from error


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string below `node` with the key of the object or list that holds it."""
    stack: list[tuple[str, Any]] = [(key, node)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            stack.extend(cast("dict[str, Any]", value).items())
        elif isinstance(value, list):
            stack.extend((name, item) for item in cast("list[Any]", value))


def _pickle_error(path: Path, entry: str, names: list[str]) -> InfconvError:
    return UsageError(
        f"'{path}' runs code when loaded: its part {entry} imports {', '.join(names[:3])}.",
        "Export it again without custom objects. If you trust the file: --trust-pickle.",
    )
