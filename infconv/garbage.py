"""How often Python looks for garbage: a graph is millions of objects, of which nearly all stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def rare_collections() -> Generator[None, None, None]:
    """Look for garbage less often than Python does."""
    young, middle, old = gc.get_threshold()
    if young:
        gc.set_threshold(max(young, 500_000), max(middle, 20), max(old, 20))
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)


def none_at_exit() -> None:
    """Let this process end without looking for garbage among all that it has: its memory goes anyway.

    Only for a process of infconv's own: what others left in a cycle of references is not finalised any more.
    """
    import atexit

    atexit.register(gc.freeze)
