"""Names for values and nodes that a quantising pass adds."""

from __future__ import annotations


def unique(name: str, taken: set[str] | set[str | None]) -> str:
    """Return `name`, or `name_1`, `name_2` … when it is taken; what is returned is taken from now on."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
