"""Run an ONNX file on the CPU as hardware with narrow types does: in float32, rounded after every operator.

ONNX Runtime's CPU provider cannot run bfloat16, and runs float16 more exactly than any hardware (see
`quantize._emulate`, which makes the graph that is run here).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from infconv import isolate
from infconv.errors import InfconvError

ROUNDING = "rounding float32 to"
"""In what names the runner of such a stand-in."""


def run_rounded(
    path: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any]]] | None:
    """Run the model at `path` on each sample, in a child process; return (what ran it, the outputs by name).

    None when the model holds neither float16 nor bfloat16. Raises UnsupportedError when it cannot be run so.
    """
    outcome = isolate.call(lambda: run_rounded_here(path, samples), what=f"Running '{os.fspath(path)}'")
    if outcome is None:
        return None
    for output in outcome[1]:
        if isinstance(output, InfconvError):
            raise output
    return outcome[0], [output for output in outcome[1] if not isinstance(output, InfconvError)]


def run_rounded_here(
    path: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any] | InfconvError]] | None:
    """Do as `run_rounded`, in this process; a sample that the model does not accept has its error in the list."""
    import onnxruntime

    from infconv.convert._onnxruntime import run_or_error
    from infconv.model import load
    from infconv.quantize._emulate import emulated, narrow_types
    from infconv.quantize._sessions import open_session, skeleton

    model = load(path)
    kinds = narrow_types(model)
    if not kinds:
        return None
    for kind in kinds:
        model = emulated(model, kind)
    session = open_session(*skeleton(model, {}))
    by = f"onnxruntime {onnxruntime.__version__}, {ROUNDING} {' and '.join(kind.name.lower() for kind in kinds)}"
    return by, [run_or_error(session, sample) for sample in samples]
