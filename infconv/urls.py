"""Places are paths or URLs that fsspec knows (s3://…); their parts, by the same functions for both."""

from __future__ import annotations

import posixpath
from pathlib import Path


def is_url(place: str | None) -> bool:
    """Whether `place` is a URL: infconv's own paths and `module:function` have no `://`."""
    return place is not None and "://" in place


def split(url: str) -> tuple[str, str, str]:
    """Return (before, path, after) of a URL, of which the path is what `/` separates.

    After is what a chained URL goes through: `zip://m.onnx::s3://b/x.zip` is ("zip://", "m.onnx", "::s3://b/x.zip").
    """
    links = url.split("::")
    number = next(n for n, link in enumerate(links) if "://" in link)
    scheme, _, path = links[number].partition("://")
    path, query, rest = path.partition("?") if scheme in {"http", "https"} else (path, "", "")
    before = "".join(f"{link}::" for link in links[:number]) + scheme + "://"
    return before, path, query + rest + "".join(f"::{link}" for link in links[number + 1 :])


def name_of(place: str) -> str:
    """Return the last part of a path or URL."""
    return posixpath.basename(split(place)[1].rstrip("/")) if is_url(place) else Path(place).name


def join(folder: str, name: str) -> str:
    """Return the place of `name`, which may have slashes, in a folder."""
    if not is_url(folder):
        return str(Path(folder) / name)
    before, path, after = split(folder)
    return before + (f"{path.rstrip('/')}/{name}" if path else name) + after


def parent_of(place: str) -> str:
    """Return the folder that holds a place."""
    if not is_url(place):
        return str(Path(place).parent)
    before, path, after = split(place)
    return before + path.rstrip("/").rpartition("/")[0] + after
