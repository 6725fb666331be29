"""What a pickle would import when loaded, read from its opcodes: nothing is unpickled here."""

from __future__ import annotations

import pickletools
import re
from typing import BinaryIO

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first of the five pickles in a file written by torch.save before the zip format."""

_LEGACY_PICKLES_BEFORE_OBJECT = 3

_HARMLESS = re.compile(
    r"torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|torch(\.storage|\.cuda)?\.\w*Storage"
    r"|torch\.(Tensor|Size|device|dtype|strided|bool|int\d+|uint\d+|float\w+|bfloat16|half|double|long|q\w+|complex\d+)"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.serialization\._get_layout|torch\.torch_version\.TorchVersion"
    r"|collections\.(OrderedDict|defaultdict|Counter)"
    r"|(builtins|__builtin__)\.(set|frozenset|dict|list|tuple|complex|int|float|str|bool|bytearray|slice)"
    r"|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|\w+\d+)|numpy\.(core|_core)\.(multiarray|numeric)\.(_reconstruct|scalar|_frombuffer)"
)
_STRING_OPCODES = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)


class DamagedPickleError(Exception):
    """The stream ends early or is no pickle."""


def harmful_names(stream: BinaryIO) -> list[str]:
    """Return the dotted names that loading the pickle at `stream` imports, beyond tensors and plain containers.

    A name that is built by code of the pickle itself is returned as `?`. The stream is left after the pickle's end.
    Raises DamagedPickleError.
    """
    return sorted(name for name in _names(stream) if not _HARMLESS.fullmatch(name))


def harmful_names_legacy(stream: BinaryIO) -> list[str]:
    """Return `harmful_names` of the objects in a legacy torch.save file, which is a sequence of pickles."""
    found: set[str] = set()
    for _ in range(_LEGACY_PICKLES_BEFORE_OBJECT + 1):
        found.update(harmful_names(stream))
    return sorted(found)


def _names(stream: BinaryIO) -> set[str]:
    """Follow GLOBAL, INST, EXT and STACK_GLOBAL; the latter takes the last two strings pushed (or recalled)."""
    names: set[str] = set()
    strings: list[str] = []
    memo: dict[int, str] = {}
    last: str | None = None
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in _STRING_OPCODES:
                last = str(argument)
                strings.append(last)
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                _memoize(memo, argument, last)
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                strings.append(memo.get(int(str(argument)), "?"))
            elif name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
                last = None
            elif name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]) if len(strings) >= 2 else "?")
                last = None
            elif name.startswith("EXT"):
                names.add("?")
            else:
                last = None
    except (ValueError, IndexError, EOFError, UnicodeDecodeError, OverflowError) as error:
        raise DamagedPickleError(str(error)) from error
    return names


def _memoize(memo: dict[int, str], argument: object, last: str | None) -> None:
    """Note what was stored: a string, or `?` for anything else, so that a recalled name is never a guess."""
    slot = len(memo) if argument is None else int(str(argument))
    memo[slot] = "?" if last is None else last
