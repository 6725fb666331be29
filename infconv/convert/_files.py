"""What is wrong with a model file of any framework before it is opened: it is not there, or not whole."""

from __future__ import annotations

from pathlib import Path

from infconv.errors import SourceError

_LFS = b"version https://git-lfs"
_AGAIN = "Copy or download the file again."


def refuse_pointer(path: Path) -> None:
    """Raise SourceError for an empty file, and for what Git LFS leaves in the place of one."""
    with path.open("rb") as stream:
        head = stream.read(len(_LFS))
    if head == _LFS:
        raise SourceError(f"'{path}' is a Git LFS pointer, not the file itself.", "Fetch it with: git lfs pull")
    if not head:
        raise SourceError(f"'{path}' is empty.", _AGAIN)


def damaged(path: Path, reason: BaseException) -> SourceError:
    """Return the error for a file that cannot be read to its end; `reason` is what the reader raised."""
    said = str(reason).strip().rstrip(".") or type(reason).__name__
    return SourceError(f"'{path}' is damaged or cut short ({said}).", _AGAIN)
