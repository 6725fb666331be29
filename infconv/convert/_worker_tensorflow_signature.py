"""A concrete function as a subject: its inputs and outputs by name, and a run of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ._worker_tensorflow_freeze import freeze
from ._worker_tensorflow_subject import Port, Subject, shape_of

_UNTITLED = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?|args_\d+|inputs")
"""What Keras calls an input that its author gave no name."""


def subject_of(owner: Any, function: Any) -> Subject:
    """Return the subject of a concrete `function` whose variables `owner` holds."""
    inputs, outputs = ports_of(function)
    keys = [each.name for each in inputs]
    for port, name in zip(inputs, titles(keys), strict=True):
        port.name = name

    def call(given: Mapping[str, Any]) -> Mapping[str, Any]:
        return function(**{key: tf.constant(given[p.name], p.dtype) for key, p in zip(keys, inputs, strict=True)})

    return Subject(inputs, outputs, call, lambda: freeze(owner, function, inputs, outputs))


def ports_of(function: Any) -> tuple[list[Port], list[Port]]:
    """Return the inputs and outputs of a signature's function, by the names of the signature."""
    captured = {t.name for t in function.graph.function_captures.by_val_internal.values()}
    feeds = [t for t in function.inputs if t.dtype != tf.resource and t.name not in captured]
    names = list(function._arg_keywords)
    inputs = [Port(name, t.name, t.dtype, shape_of(t)) for name, t in zip(names, feeds, strict=True)]
    # structured_outputs flattens in the order of sorted keys, as function.outputs does.
    keys = sorted(function.structured_outputs)
    results = [t for t in function.outputs if t.dtype != tf.resource]
    outputs = [Port(name, t.name, t.dtype, shape_of(t)) for name, t in zip(keys, results, strict=True)]
    return inputs, sorted(outputs, key=lambda port: _natural(port.name))


def titles(keys: Sequence[str]) -> list[str]:
    """Return the authors' names of inputs; where Keras made one up, `input` or `input_0` ..."""
    plain = ["input"] if len(keys) == 1 else [f"input_{i}" for i in range(len(keys))]
    chosen = [name if _UNTITLED.fullmatch(key) else key for key, name in zip(keys, plain, strict=True)]
    return chosen if len(set(chosen)) == len(chosen) else list(keys)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts output_2 before output_10: a signature has no order but that of its names."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
