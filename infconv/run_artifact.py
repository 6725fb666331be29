"""Run finished artifacts of any format, for `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infconv.errors import SourceError, UnsupportedError
from infconv.reference import Sample, describe_inputs, load_sample, make_inputs, read_npz, size_plans


def run_artifact(path: str, inputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the outputs of the ONNX file or OpenVINO IR at `path` on each of `inputs`."""
    _check_readable(path)
    if path.endswith(".xml"):
        from infconv.convert._exporter import Exported
        from infconv.convert.to_openvino import ToOpenVINO

        return list(ToOpenVINO().execute(Exported([Path(path)]), inputs).outputs)
    from infconv.convert._onnxruntime import run_samples

    return list(run_samples(path, inputs, optimize=True)[1])


def _check_readable(path: str) -> None:
    if not Path(path).is_file():
        raise SourceError(f"'{path}' does not exist.", "Check the path.")
    if path.endswith(".engine"):
        raise UnsupportedError(
            "A TensorRT engine cannot be run here.", "Compare the ONNX that went into it, or run it on its GPU."
        )


def artifact_inputs(path: str, given: str | None, seed: int) -> list[Sample]:
    """Return inputs for the ONNX file at `path`: the user's .npz, or seeded ones at several sizes."""
    from infconv.model import load

    _check_readable(path)
    if path.endswith(".xml"):
        if given is None:
            raise UnsupportedError(
                "Inputs cannot be made from an OpenVINO IR.", "Give --inputs, or name the ONNX file first."
            )
        return [Sample(Path(given).name, dict(read_npz(given, "--inputs")))]
    infos = describe_inputs(load(path))
    if given is not None:
        return [Sample(Path(given).name, load_sample(given, infos))]
    return [Sample(label, make_inputs(infos, sizes, seed)) for label, sizes in size_plans(infos, {})]
