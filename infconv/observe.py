"""Watch a pipeline run. Passes know nothing of who watches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from infconv.result import StepResult


class Observer(Protocol):
    """Is told what happens. Every method returns at once."""

    def stage(self, name: str) -> None:
        """Work other than a step begins, such as exporting or verifying."""
        ...

    def before(self, step: str) -> None:
        """A step begins."""
        ...

    def after(self, result: StepResult) -> None:
        """A step ended, or was dropped."""
        ...


class Observers:
    """Tells each of several observers."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    @property
    def each(self) -> Sequence[Observer]:
        """Return the observers."""
        return self._observers

    @contextlib.contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Announce a stage."""
        for observer in self._observers:
            observer.stage(name)
        yield

    def tell(self, text: str) -> None:
        """Tell what a long step, or stage, is doing now."""
        for observer in self._observers:
            observer.stage(text)

    def before(self, step: str) -> None:
        """Announce a step."""
        for observer in self._observers:
            observer.before(step)

    def after(self, result: StepResult) -> None:
        """Announce a step's end."""
        for observer in self._observers:
            observer.after(result)
