"""What a run tells of local files that stand in for URLs: the URLs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from infconv.errors import InfconvError
from infconv.urls import join

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec

T = TypeVar("T")


def as_given(value: T, spec: PipelineSpec) -> T:
    """Return `value` (texts, lists, mappings, dataclasses) with URLs where it names local files of `spec`."""
    return told(value, spec.stands_for)


def told(value: T, urls: Mapping[str, str]) -> T:
    """Do as `as_given`; `urls` is local file or folder -> URL."""
    return _told(value, urls) if urls else value


def _told(value: Any, urls: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for local in sorted(urls, key=len, reverse=True):
            if local in value:
                value = re.sub(re.escape(local) + r"(?:/([\w.+@=/-]*))?", _naming(urls[local]), value)
        return value
    if isinstance(value, Mapping):
        return {key: _told(inner, urls) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [_told(inner, urls) for inner in cast("list[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, InfconvError):
        value.message, value.hint = _told(value.message, urls), _told(value.hint, urls)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _told(inner, urls) for name, inner in fields.items()})
    return value


def _naming(url: str) -> Callable[[re.Match[str]], str]:
    """Return what a local path in a text becomes; a full stop at its end is the sentence's."""

    def name(match: re.Match[str]) -> str:
        inner = (match[1] or "").rstrip(".")
        return (join(url, inner) if inner else url) + "." * (match[1] or "").endswith(".")

    return name
