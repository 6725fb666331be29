"""Frontend `sklearn`: estimators and pipelines that joblib or pickle wrote."""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from infconv.convert._base import Frontend, Source, SourceRequest
from infconv.errors import SourceError, UnsupportedError, UsageError, missing_extra

HEAD_BYTES = 64 << 10
OPSET = 18
METHODS = ("predict", "predict_proba", "transform", "decision_function")
"""What computes the outputs of the export, in its order, as far as the estimator has them."""


class FromSklearn(Frontend):
    """Exports with skl2onnx in this process: nothing of it is heavy or native enough to need a worker."""

    summary: ClassVar[str] = "scikit-learn estimators and pipelines"
    formats: ClassVar[Mapping[str, str]] = {"pickle": ".joblib or .pkl of an estimator: only with --trust-pickle"}
    requires: ClassVar[Mapping[str, str]] = {"sklearn": "sklearn", "skl2onnx": "sklearn"}
    takes: ClassVar[frozenset[str]] = frozenset({"--trust-pickle"})

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return "pickle" for a pickle whose first global is a class of scikit-learn; nothing is loaded."""
        path = Path(source)
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        return "pickle" if head[:1] == b"\x80" and _first_module(head).startswith("sklearn.") else None

    def open(self, request: SourceRequest, workdir: Path) -> SklearnSource:
        """Export to `workdir`. Raises SourceError, UsageError (not trusted), UnsupportedError, DependencyError."""
        if not request.trust_pickle:
            raise UsageError(
                f"'{request.source}' is a pickle: loading it runs code.", "If you trust it: --trust-pickle."
            )
        estimator = _load(request.source)
        path = workdir / "model.onnx"
        path.write_bytes(_export(estimator, request))
        return SklearnSource(estimator, path)


class SklearnSource(Source):
    """An exported estimator, and the estimator itself."""

    def __init__(self, estimator: Any, path: Path) -> None:
        import onnx
        import skl2onnx
        import sklearn

        self.model_path = path
        self.producer = f"scikit-learn {sklearn.__version__}"
        self.versions = {"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__}
        self._estimator = estimator
        self._outputs = [output.name for output in onnx.load(path, load_external_data=False).graph.output]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return labels and probabilities of a classifier, values of a regressor, or what a transformer gives."""
        (given,) = inputs.values()
        methods = [name for name in METHODS if hasattr(self._estimator, name)]
        if len(methods) < len(self._outputs):
            raise UnsupportedError(f"The export has outputs {self._outputs}, the estimator only {methods}.")
        return {
            output: _as_onnx(getattr(self._estimator, method)(given), len(given))
            for output, method in zip(self._outputs, methods, strict=False)
        }

    def close(self) -> None:
        """Nothing is held open."""


def _as_onnx(found: Any, rows: int) -> Any:
    """Return a method's result in the types of skl2onnx: float32 in columns, labels in a vector."""
    import numpy as np

    values = np.asarray(found)
    if values.dtype.kind == "f":
        return values.astype(np.float32).reshape(rows, -1)
    return values.astype(np.int64) if values.dtype.kind in "iu" else values


def _first_module(head: bytes) -> str:
    """Return the module of the first class that a pickle names, "" where none is found before the head ends."""
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                return str(argument).partition(" ")[0]
            if opcode.name == "STACK_GLOBAL":
                return texts[-2] if len(texts) > 1 else ""
            if isinstance(argument, str):
                texts.append(argument)
    except ValueError:  # the head ends in the middle, or it is no pickle
        pass
    return ""


def _load(path: str) -> Any:
    try:
        import joblib
        import sklearn.base
    except ImportError as error:
        raise missing_extra("scikit-learn", "sklearn", "The sklearn frontend") from error
    try:
        estimator = joblib.load(path)
    except Exception as error:  # unpickling raises whatever the classes raise
        raise SourceError(f"'{path}' cannot be loaded: {type(error).__name__}: {error}.") from error
    if not isinstance(estimator, sklearn.base.BaseEstimator):
        raise SourceError(f"'{path}' holds a {type(estimator).__name__}, not an estimator.")
    return estimator


def _export(estimator: Any, request: SourceRequest) -> bytes:
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
        from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    except ImportError as error:
        raise missing_extra("skl2onnx", "sklearn", "The sklearn frontend") from error
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise SourceError(f"The {type(estimator).__name__} was not fitted: it does not know its features.")
    name, dims = next(((n, s.dims) for n, s in request.inputs.items()), ("X", ("batch", features)))
    if len(dims) != 2 or dims[1] != features:
        raise UsageError(f"--input {name}: the estimator takes [rows, {features}], not {list(dims)}.")
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    try:
        model = skl2onnx.to_onnx(
            estimator,
            initial_types=[(name, FloatTensorType([None, features]))],
            options=options,
            target_opset={"": min(request.opset or OPSET, OPSET), "ai.onnx.ml": 3},
        )
    except (MissingConverter, MissingShapeCalculator) as error:
        fact = str(error).strip().splitlines()[0]
        raise UnsupportedError(f"skl2onnx cannot convert this estimator: {fact}") from error
    rows = model.graph.input[0].type.tensor_type.shape.dim[0]
    rows.Clear()
    if isinstance(dims[0], int):
        rows.dim_value = dims[0]
    else:
        rows.dim_param = dims[0]
    return model.SerializeToString()
