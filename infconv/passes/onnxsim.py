"""The onnxsim package, as a step."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.passes._base import Context, Pass
from infconv.passes._foreign import require_package, through_files

_ROUNDS = 4
"""How often onnxsim runs at most: its result is not always one that it would itself leave alone."""


class Onnxsim(Pass):
    """Run the onnxsim package on the model, until it finds nothing more.

    The model travels through a temporary file, and onnxsim runs in a process of its own, as it crashes on some models.
    Names, types and shapes of the model's inputs and outputs stay as they are.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the difference in nodes, at least 1; 0 when onnxsim changed nothing.

        Raises DependencyError without the package, UnsupportedError when it fails, Crashed when it crashes.
        """
        require_package("onnxsim")
        before = sum(1 for _ in model.graph.all_nodes())
        rounds = 0
        while rounds < _ROUNDS and _simplify(model):
            rounds += 1
        if rounds == _ROUNDS:
            context.notes.append(f"onnxsim still changed the model when it ran for the {_ROUNDS}th time.")
        after = sum(1 for _ in model.graph.all_nodes())
        return max(1, abs(after - before)) if rounds else 0


def _simplify(model: ir.Model) -> int:
    """Run onnxsim once and return the number of changes."""
    return through_files(model, _call, "onnxsim")


def _call(source: Path, target: Path) -> None:
    from onnxsim import simplify

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets custom operators
            simplify(str(source), output_path=str(target))
    except Exception as error:  # onnxsim raises what its native part, the checker or ONNX Runtime raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"onnxsim failed: {reason}", "Leave it out with --skip onnxsim.") from error
