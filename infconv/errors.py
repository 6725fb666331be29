"""Every error that infconv shows to a user: the fact, the remedy and the exit code of its class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class InfconvError(Exception):
    """A failure that the user can understand and act on.

    `message` states the fact, `hint` the remedy (may be empty). `exit_code` is the class of failure.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "bug"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[InfconvError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class UsageError(InfconvError):
    """Wrong usage or configuration."""

    exit_code = 2
    code = "usage"


class SourceError(InfconvError):
    """The source cannot be read or is not a valid model."""

    exit_code = 3
    code = "source"


class UnsupportedError(InfconvError):
    """An operator, type or feature that the frontend or target does not have."""

    exit_code = 4
    code = "unsupported"


class VerificationError(InfconvError):
    """Outputs differ beyond tolerance, or the accuracy fell below its budget."""

    exit_code = 5
    code = "verification"


class GateError(InfconvError):
    """A gate failed: latency, size, node count or regression against the baseline."""

    exit_code = 6
    code = "gate"


class ResourceError(InfconvError):
    """A resource ran out: memory limit, timeout, disk."""

    exit_code = 7
    code = "resource"


class DependencyError(InfconvError):
    """A dependency is missing; the hint has the command that installs it."""

    exit_code = 8
    code = "dependency"


class Interrupted(InfconvError):
    """The user, or the system, ended the run."""

    exit_code = 130
    code = "interrupted"


def missing_extra(package: str, extra: str, purpose: str) -> DependencyError:
    """Return the error for an optional `package` that `purpose` needs and the `extra` brings."""
    return DependencyError(
        f"{purpose} needs the package '{package}', which is not installed.",
        f"Install it with: pip install 'infconv[{extra}]'",
    )


MOST_NAMES = 30
"""How many known names a hint lists."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of `known`, or all of them when none is close."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    more = f", … ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return f"Known: {', '.join(names[:MOST_NAMES])}{more}."
