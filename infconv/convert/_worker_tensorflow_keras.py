"""Keras files: opened by Keras 3 or, where Keras 2 wrote them, by tf_keras; exported to a SavedModel from there."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tensorflow as tf

from ._worker import Request, WorkerError
from ._worker_tensorflow_freeze import freeze
from ._worker_tensorflow_signature import ports_of, titles
from ._worker_tensorflow_size import bytes_of, refuse_large, refuse_large_file
from ._worker_tensorflow_subject import Graph, Subject

_SIGNATURES = ("serving_default", "serve")


def load_keras(request: Request) -> Subject:
    """Return the subject of a .keras or .h5 file.

    Raises WorkerError: source for weights without a model, usage for code that is not trusted.
    """
    path = request["source"]
    config, version = _read_h5(path) if request["format"] == "keras-h5" else _read_zip(path)
    if not request["trust_pickle"]:
        _refuse_code(path, config)
    refuse_large_file(path)
    old = version.startswith(("1.", "2."))
    named = _named(path, request)
    model = _load_old(named) if old else _load_new(named, request["trust_pickle"])
    refuse_large(bytes_of(model.weights))  # before the copies that the export makes
    subject = _subject(model, str(Path(request["workdir"]) / "saved_model"), old)
    subject.packages.append("tf_keras" if old else "keras")
    if old:
        subject.notes.append(f"Written by Keras {version}; opened with tf_keras.")
    return subject


def _named(path: str, request: Request) -> str:
    """Return `path`, or a link to it that has the ending by which Keras tells its formats."""
    endings = (".h5", ".hdf5") if request["format"] == "keras-h5" else (".keras",)
    if path.endswith(endings):
        return path
    link = Path(request["workdir"]) / f"source{endings[0]}"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return str(link)


def _read_zip(path: str) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as archive:
        config, metadata = (json.loads(archive.read(name)) for name in ("config.json", "metadata.json"))
    return config, str(metadata["keras_version"])


def _read_h5(path: str) -> tuple[Any, str]:
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None:
            what = "only weights" if "layer_names" in file.attrs or "layers" in file else "no Keras model"
            raise WorkerError(
                "source",
                f"'{path}' holds {what}.",
                "Load it into the model in Python, then model.save('model.keras'), and convert that.",
            )
        version = file.attrs.get("keras_version", b"2.0")
    return json.loads(config), version.decode() if isinstance(version, bytes) else str(version)


def _refuse_code(path: str, config: Any) -> None:
    """Raise WorkerError for a layer that holds Python code: tf_keras runs it without asking."""
    for entry in _entries(config):
        kind = entry.get("class_name")
        if kind in ("Lambda", "__lambda__") or entry.get("function_type") == "lambda":
            inner = entry.get("config")
            name = cast("dict[str, Any]", inner).get("name", "") if isinstance(inner, dict) else ""
            raise WorkerError(
                "usage",
                f"'{path}' has a Lambda layer{f' ({name!r})' if name else ''}: it holds Python code, which loading "
                "the file would run.",
                "If you trust it: --trust-pickle. Otherwise write the layer as a class, or with Keras operations.",
            )


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        entry = cast("dict[str, Any]", value)
        yield entry
        for item in entry.values():
            yield from _entries(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _entries(item)


def _load_new(path: str, trust: bool) -> Any:
    import keras  # pyright: ignore[reportMissingImports]

    return keras.models.load_model(path, compile=False, safe_mode=not trust)


def _load_old(path: str) -> Any:
    try:
        import tf_keras  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise WorkerError(
            "dependency",
            f"'{path}' was written by Keras 2, which needs the package 'tf_keras'.",
            "The environment that infconv makes has it: infconv env create tensorflow (or pip install tf_keras).",
        ) from error
    extra = {} if path.endswith(".h5") else {"safe_mode": False}  # _refuse_code has judged it already
    return tf_keras.models.load_model(path, compile=False, **extra)


def _subject(model: Any, folder: str, old: bool) -> Subject:
    """Export `model` to a SavedModel in `folder`, and return the subject that runs `model` itself."""
    with contextlib.redirect_stdout(None):
        if old:
            tf.saved_model.save(model, folder, _old_signature(model))
        else:
            model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)
    function = next(loaded.signatures[name] for name in _SIGNATURES if name in loaded.signatures)
    inputs, outputs = ports_of(function)
    tensors = {each.name: each for each in inputs}
    # Keras's own order; the signature has them sorted.
    keys = [key for key in _input_keys(model) if key in tensors]
    order = keys if len(keys) == len(inputs) else [each.name for each in inputs]
    inputs = [tensors[key] for key in order]
    graph_inputs, graph_outputs = list(inputs), list(outputs)
    output_keys = [each.name for each in outputs]
    run = _runner(model, order, old)
    for port, name in zip(inputs, titles(order), strict=True):
        port.name = name
    for port, name in zip(outputs, _output_names(model, output_keys), strict=True):
        port.name = name

    def call(given: Mapping[str, Any]) -> Mapping[str, Any]:
        values = [tf.constant(given[each.name], each.dtype) for each in inputs]
        found = run(values)
        if not set(output_keys) <= set(found):  # outputs nested deeper than Keras's export names them
            found = function(**dict(zip(order, values, strict=True)))
        return {each.name: found[key] for each, key in zip(outputs, output_keys, strict=True)}

    def make_graph() -> Graph:
        try:
            return freeze(loaded, function, graph_inputs, graph_outputs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return Subject(inputs, outputs, call, make_graph, same_batch=True)


def _old_signature(model: Any) -> Any:
    """Return the inference function of a tf_keras model, with inputs by their names."""
    specs = {t.name.partition(":")[0]: tf.TensorSpec(t.shape, t.dtype, t.name.partition(":")[0]) for t in model.inputs}

    def infer(**given: Any) -> dict[str, Any]:
        values = [given[name] for name in specs]
        return _by_key(model(values if len(values) > 1 else values[0], training=False))

    return {"serving_default": tf.function(infer).get_concrete_function(**specs)}


def _input_keys(model: Any) -> list[str]:
    return [t.name.partition(":")[0] for t in getattr(model, "inputs", None) or []]


def _output_names(model: Any, keys: Sequence[str]) -> list[str]:
    """Return the keys of a dictionary of outputs, otherwise the names of the layers that end the model."""
    names = list(getattr(model, "output_names", None) or [])
    positional = [f"output_{i}" for i in range(len(keys))]
    if sorted(keys) != sorted(positional) or len(names) != len(keys) or len(set(names)) != len(names):
        return list(keys)
    by_key = dict(zip(positional, names, strict=True))
    return [by_key[key] for key in keys]


def _runner(model: Any, order: Sequence[str], old: bool) -> Any:
    """Return a function from the input tensors in `order` to the outputs by their keys in the signature."""
    structure = None if old else getattr(model, "_inputs_struct", None)

    def run(values: list[Any]) -> dict[str, Any]:
        given: Any = values[0] if len(values) == 1 else values
        if structure is not None:
            import keras  # pyright: ignore[reportMissingImports]

            named = dict(zip(order, values, strict=True))
            given = keras.tree.map_structure(lambda tensor: named.get(tensor.name), structure)
        return _by_key(model(given, training=False))

    return run


def _by_key(result: Any) -> dict[str, Any]:
    """Return the outputs as Keras's export names them."""
    if isinstance(result, Mapping):
        return dict(cast("Mapping[str, Any]", result))
    flat = cast("list[Any]", tf.nest.flatten(result))
    return {f"output_{i}": value for i, value in enumerate(flat)}
