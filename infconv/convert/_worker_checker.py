"""Whether the file that an exporter wrote is ONNX."""

from __future__ import annotations

import onnx

from ._worker import WorkerError


def fault(path: str) -> str | None:
    """Return what the checker refuses in the file at `path`, None when it is valid."""
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return None


def check(path: str, exporter: str) -> None:
    """Raise WorkerError (unsupported) when what `exporter` wrote to `path` is no valid model."""
    found = fault(path)
    if found:
        raise WorkerError(
            "unsupported",
            f"{exporter} wrote an invalid model: {found}",
            f"Compute the operator named from others in the model, or try another {exporter} (--python).",
        )
