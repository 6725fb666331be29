"""Opening TensorFlow sources: what each format needs to become a function with a signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ._worker import Request, WorkerError, first_line, ran_out_of_memory
from ._worker_tensorflow_graph import load_frozen
from ._worker_tensorflow_keras import load_keras
from ._worker_tensorflow_lite import load_lite
from ._worker_tensorflow_signature import subject_of
from ._worker_tensorflow_size import refuse_large_checkpoint

DEFAULT_SIGNATURE = "serving_default"


def load(request: Request) -> Any:
    """Return the Subject of `request["source"]`.

    Raises WorkerError of kind source (unreadable), usage (no such signature, code that is not trusted) or unsupported.
    """
    source_format = request["format"]
    foreign = {"signature": "saved-model", "tags": "saved-model", "outputs": "frozen-graph"}
    for option, owner in foreign.items():
        if option in request["options"] and owner != source_format:
            raise WorkerError("usage", f"Source option '{option}' goes with a {owner}, this is a {source_format}.")
    loaders = {"saved-model": _load_saved_model, "frozen-graph": load_frozen, "tflite": load_lite}
    if source_format in loaders:
        return _readable(loaders[source_format], request)
    return _readable(load_keras, request)


def _readable(loader: Any, request: Request) -> Any:
    try:
        return loader(request)
    except WorkerError:
        raise
    except Exception as error:  # TensorFlow, Keras and the model's own code raise whatever they meet
        if ran_out_of_memory(error) or isinstance(error, ImportError):
            raise
        raise WorkerError(
            "source",
            f"'{request['source']}' cannot be read as a {request['format']}: {type(error).__name__}: "
            f"{first_line(error)}",
            f"It may be damaged, need custom code (source option handlers=MODULE), or be from a newer version than "
            f"TensorFlow {tf.__version__}.",
        ) from error


def _load_saved_model(request: Request) -> Any:
    options = request["options"]
    tags = options.get("tags")
    tags = [tags] if isinstance(tags, str) else tags
    path = request["source"]
    _check_tags(path, tags)
    refuse_large_checkpoint(path)
    with tf.device("/cpu:0"):
        loaded = tf.saved_model.load(path, tags=tags)
    name = _signature(path, loaded.signatures, options.get("signature"))
    notes = [] if len(loaded.signatures) == 1 or options.get("signature") else [_others(loaded.signatures, name)]
    subject = subject_of(loaded, loaded.signatures[name])
    subject.notes += [note for note in notes if note]
    return subject


def _check_tags(path: str, tags: list[str] | None) -> None:
    """Raise WorkerError when no graph of the SavedModel has these tags; TensorFlow's own message lists none."""
    from tensorflow.python.saved_model.loader_impl import parse_saved_model  # pyright: ignore[reportMissingImports]

    found = [sorted(graph.meta_info_def.tags) for graph in parse_saved_model(path).meta_graphs]
    if not found:
        raise WorkerError("source", f"'{path}' holds no graph: its saved_model.pb is empty.", "Save the model again.")
    shown = "; ".join(",".join(each) or "(none)" for each in found)
    if tags is not None and sorted(tags) not in found:
        raise WorkerError("usage", f"'{path}' has no graph tagged {','.join(tags)}.", f"Its graphs: {shown}.")
    if tags is None and len(found) > 1:
        raise WorkerError(
            "usage", f"'{path}' has {len(found)} graphs: {shown}.", "Choose one with the source option tags."
        )


def _signature(path: str, signatures: Mapping[str, Any], wanted: str | None) -> str:
    names = [name for name in signatures if not name.startswith("__")]
    if not names:
        raise WorkerError(
            "source",
            f"'{path}' has no signature, so nothing says what goes in and comes out.",
            "Save it with one: tf.saved_model.save(model, folder, signatures=function.get_concrete_function(...)).",
        )
    if wanted is not None and wanted not in names:
        raise WorkerError("usage", f"'{path}' has no signature '{wanted}'.", f"It has: {', '.join(names)}.")
    if wanted is not None:
        return wanted
    if DEFAULT_SIGNATURE in names or len(names) == 1:
        return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in names else names[0]
    raise WorkerError(
        "usage",
        f"'{path}' has {len(names)} signatures and no '{DEFAULT_SIGNATURE}': {', '.join(names)}.",
        "Choose one with the source option signature.",
    )


def _others(signatures: Mapping[str, Any], chosen: str) -> str:
    """Return a note about the signatures left out; Keras writes the same one under two names."""
    others = [name for name in signatures if name not in (chosen, "serve") and not name.startswith("__")]
    return f"Converted signature '{chosen}'; the source option signature takes {', '.join(others)}." if others else ""
