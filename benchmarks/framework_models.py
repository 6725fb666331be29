"""Makes full-size models with seeded random weights in every file format: run by a Python that has the framework.

    python framework_models.py tensorflow|paddle FOLDER NAME [FORMAT...]

writes FOLDER/NAME.FORMAT for each format (all of them by default): keras, h5, saved (a SavedModel), pb (frozen) and
tflite of TensorFlow; json and pdmodel (each with .pdiparams, in a folder of its own) of Paddle.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

FORMATS = {"tensorflow": ("keras", "h5", "saved", "pb", "tflite"), "paddle": ("json", "pdmodel")}
SEED = 0


def seeded(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray | None:
    """Return what training would leave in a normalization's statistics: those of 0 and 1 hide mistakes."""
    if name.endswith(("moving_mean", "_mean")):
        return rng.normal(0, 0.1, shape)
    if name.endswith(("moving_variance", "_variance", "gamma")):
        return rng.uniform(0.8, 1.2, shape)
    return None


# --- TensorFlow ----------------------------------------------------------------------------------------------------


def keras_transformer() -> Any:
    from keras import Input, Model, layers

    ids = Input((None,), dtype="int32", name="input_ids")
    mask = Input((None,), dtype="int32", name="attention_mask")
    x = layers.Embedding(5000, 256)(ids)
    keep = layers.Reshape((1, -1))(mask)
    for _ in range(4):
        attended = layers.MultiHeadAttention(4, 64)(x, x, attention_mask=keep)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.add([x, attended]))
        dense = layers.Dense(256)(layers.Dense(1024, activation="gelu")(x))
        x = layers.LayerNormalization(epsilon=1e-6)(layers.add([x, dense]))
    return Model([ids, mask], layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def keras_recurrent(kind: str, batch: int | None = None, length: int | None = None) -> Any:
    from keras import Input, Model, layers

    steps = Input((length, 64), batch, name="steps")
    hidden = layers.Bidirectional(getattr(layers, kind)(128, return_sequences=True))(steps)
    return Model(steps, layers.Dense(10)(getattr(layers, kind)(128)(hidden)))


def make_keras(name: str, kind: str) -> Any:
    import keras

    keras.utils.set_random_seed(SEED)
    if name in ("LSTM", "GRU"):
        # TensorFlow Lite has no lists of tensors: its recurrent networks have fixed sizes.
        model = keras_recurrent(name, *((1, 16) if kind == "tflite" else ()))
    elif name == "transformer":
        model = keras_transformer()
    else:  # logits: the softmax over untrained classes is flat, and hides differences
        model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    rng = np.random.default_rng(SEED)
    for variable in model.weights:
        values = seeded(variable.name, tuple(variable.shape), rng)
        if values is not None:
            variable.assign(values)
    return model


def make_flow() -> Any:
    """Return a tf.Module whose loop and branch depend on the data."""
    import tensorflow as tf

    class Flow(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = tf.Variable(tf.random.stateless_normal((256, 256), (1, 2)) / 16, name="weight")

        @tf.function(input_signature=[tf.TensorSpec((None, 256), tf.float32, name="x")])
        def serve(self, x: Any) -> dict[str, Any]:
            steps = tf.constant(0)
            while tf.reduce_mean(tf.abs(x)) > 0.2 and steps < 20:
                x = tf.tanh(tf.matmul(x, self.weight)) * 0.7
                steps += 1
            return {"y": x * 2.0 if tf.reduce_mean(x) > -1.0 else x - 1.0, "steps": steps}

    return Flow()


def save_keras(model: Any, path: Path, kind: str) -> None:
    import tensorflow as tf

    if kind in ("keras", "h5"):
        model.save(path)
    elif kind == "saved":
        model.export(path, verbose=False)
    elif kind == "pb":
        specs = [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in model.inputs]
        function = tf.function(lambda *x: model(x if len(x) > 1 else x[0], training=False))
        path.write_bytes(frozen(function.get_concrete_function(*specs)))
    else:
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def frozen(concrete: Any) -> bytes:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return (
        convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def().SerializeToString()
    )


def save_flow(model: Any, path: Path, kind: str) -> None:
    import tensorflow as tf

    concrete = model.serve.get_concrete_function()
    if kind == "saved":
        tf.saved_model.save(model, path, {"serving_default": model.serve})
    elif kind == "pb":
        path.write_bytes(frozen(concrete))
    elif kind == "tflite":
        path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert())


def tensorflow(folder: Path, name: str, formats: tuple[str, ...]) -> None:
    for kind in formats:
        path = folder / f"{name}.{kind}"
        if name == "flow":
            save_flow(make_flow(), path, kind)
        else:
            save_keras(make_keras(name, kind), path, kind)


# --- Paddle --------------------------------------------------------------------------------------------------------


def make_paddle(name: str) -> tuple[Any, Any]:
    import paddle
    from paddle import nn
    from paddle.static import InputSpec

    class Recurrent(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(64, 128, 2, direction="bidirect")
            self.head = nn.Linear(256, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.recurrent(x)[0])

    if name == "transformer":
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu")
        return nn.TransformerEncoder(layer, 6), InputSpec([None, None, 256], "float32", "source")
    if name == "lstm":
        return Recurrent(), InputSpec([None, None, 64], "float32", "steps")
    return getattr(paddle.vision.models, name)(), InputSpec([None, 3, 224, 224], "float32", "image")


def use_old_matmul() -> None:
    """Let Paddle 3 save an encoder in Paddle 2's words, as Paddle 2 did: its own matmul only knows the new ones."""
    import paddle
    from paddle.base.layer_helper import LayerHelper

    def matmul(x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, name: str | None = None) -> Any:
        helper = LayerHelper("matmul_v2", name=name)
        out = helper.create_variable_for_type_inference(dtype=x.dtype)
        words = {"trans_x": transpose_x, "trans_y": transpose_y}
        helper.append_op(type="matmul_v2", inputs={"X": x, "Y": y}, outputs={"Out": out}, attrs=words)
        return out

    paddle.matmul = paddle.nn.layer.transformer.tensor.matmul = matmul


def paddle(folder: Path, name: str, formats: tuple[str, ...]) -> None:
    (kind,) = formats  # the flag that chooses the format is read when Paddle is imported
    os.environ["FLAGS_enable_pir_api"] = "1" if kind == "json" else "0"  # noqa: SIM112  (Paddle spells it so)
    import paddle

    if kind == "pdmodel":
        use_old_matmul()
    paddle.seed(SEED)
    layer, spec = make_paddle(name)
    rng = np.random.default_rng(SEED)
    for title, value in [*layer.named_buffers()]:
        values = seeded(title, tuple(value.shape), rng)
        if values is not None:
            value.set_value(values.astype("float32"))
    layer.eval()
    paddle.jit.save(layer, str(folder / f"{name}_{kind}" / name), input_spec=[spec])


if __name__ == "__main__":
    framework, target, title, *wanted = sys.argv[1:]
    {"tensorflow": tensorflow, "paddle": paddle}[framework](Path(target), title, tuple(wanted) or FORMATS[framework])
