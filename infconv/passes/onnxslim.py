"""The OnnxSlim package, as a step."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.passes._base import Context, Pass
from infconv.passes._foreign import require_package, through_files


class Onnxslim(Pass):
    """Run the OnnxSlim package on the model.

    The model travels through a temporary file, and OnnxSlim runs in a process of its own. Names, types and shapes of
    the model's inputs and outputs stay as they are.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the difference in nodes, at least 1; 0 when OnnxSlim changed nothing.

        Raises DependencyError without the package, UnsupportedError when it fails, Crashed when it crashes.
        """
        require_package("onnxslim")
        return through_files(model, _call, "onnxslim")


def _call(source: Path, target: Path) -> None:
    import onnxslim

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            onnxslim.slim(str(source), str(target))
    except (Exception, SystemExit) as error:  # it raises what the checker or ONNX Runtime raise, and exits on others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"OnnxSlim failed: {reason}", "Leave it out with --skip onnxslim.") from error
