"""Whether the finished artifact computes in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infconv.convert._exporter import Delivered
from infconv.errors import VerificationError

ASKED = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "int4": "int4"}
"""Precision -> the type that has to be found in the artifact."""
_SLACK = 0.02
"""A compiler may run this share of the multiplications in a wider type than the graph says."""


def check_delivered(delivered: Delivered, precision: str, target: str, notes: Sequence[str]) -> None:
    """Raise VerificationError when the type that was asked for is nowhere in the artifact, or got lost on the way.

    `notes` are what the steps said: why operators stayed float32.
    """
    asked = ASKED.get(precision)
    if asked is None or not delivered.compute:
        return
    if delivered.share(asked) == 0:
        raise VerificationError(
            f"{precision} was asked for, but no compute operator of the {target} artifact runs in {asked} "
            f"({_counts(delivered.compute)}; {delivered.evidence}).",
            " ".join(notes[:3]) or "The model may compute in another type already: see infconv inspect.",
        )
    promised, found = delivered.promised.get(asked, 0.0), delivered.shares.get(asked, 0.0)
    if delivered.shares and promised - found > _SLACK:
        raise VerificationError(
            f"The {target} artifact fell back: the graph has {promised:.0%} of its multiplications in {asked}, the "
            f"artifact {found:.0%} ({_counts(delivered.compute)}; {delivered.evidence}).",
            "The target has no kernel for some operators in that type: see the artifact's layers in the manifest.",
        )


def _counts(compute: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {kind}" for kind, count in compute.items())
