"""What the parts of a pipeline file have in common."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Entry(BaseModel):
    """Keys that are known, whose values do not change; the string under a key is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what YAML reads as true or false (`yes`, `on`) where a number is wanted: Python takes it as 1 or 0."""
        kinds = set(_kinds(cls.model_fields[info.field_name or ""].annotation))
        if kinds & {int, float} and not kinds & {bool, Any} and _has_truth(value):
            raise ValueError("a number is wanted, not true or false")
        return value


def _has_truth(value: Any) -> bool:
    if isinstance(value, dict):
        return any(isinstance(inner, list) and _has_truth(inner) for inner in cast("dict[Any, Any]", value).values())
    items = cast("list[Any]", value) if isinstance(value, list) else [value]
    return any(isinstance(item, bool) for item in items)


def _kinds(wanted: Any) -> Iterator[Any]:
    """Yield the types that a value, or an item of it, may be of."""
    if get_origin(wanted) is Annotated:
        yield from _kinds(get_args(wanted)[0])
    elif get_origin(wanted) in {Union, types.UnionType, list, tuple, dict}:
        for kind in get_args(wanted):
            yield from _kinds(kind)
    else:
        yield wanted
