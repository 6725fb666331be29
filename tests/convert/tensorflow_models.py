"""Makes TensorFlow models of every kind and file format: run by a Python that has TensorFlow, not imported by tests.

python tensorflow_models.py FOLDER NAME...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

MAKERS: dict[str, Callable[[Path], None]] = {}


def maker(make: Callable[[Path], None]) -> Callable[[Path], None]:
    MAKERS[make.__name__] = make
    return make


def shuffle_statistics(model: Any) -> Any:
    """Give every variable seeded values, as training would: moving averages of 0 and 1 hide mistakes."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        shape = tuple(variable.shape)
        values = rng.uniform(0.5, 1.5, shape) if "variance" in variable.path else rng.normal(0, 0.1, shape)
        if "gamma" in variable.path:
            values += 1
        if variable.dtype.startswith("float") and "normalization_layer" not in variable.path:
            variable.assign(values.astype(variable.dtype) + 0 * variable.numpy())
    return model


def freeze(model: Any, path: Path, *, lower: bool = False) -> None:
    """Write the GraphDef of a Keras model with its variables as constants, as TF 1 and many scripts did."""
    specs = [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in model.inputs]
    concrete = tf.function(lambda *x: model(x if len(x) > 1 else x[0], training=False)).get_concrete_function(*specs)
    freeze_function(concrete, path, lower=lower)


def freeze_function(concrete: Any, path: Path, *, lower: bool = False) -> None:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=lower)
    path.write_bytes(frozen.graph.as_graph_def().SerializeToString())


def small_cnn() -> Any:
    keras.utils.set_random_seed(0)
    image = layers.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    skip = x
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Activation("relu6")(layers.BatchNormalization()(x))
    x = layers.add([x, skip])
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    outputs = [layers.Dense(5, activation="softmax", name="classes")(x), layers.Dense(2, name="box")(x)]
    return shuffle_statistics(keras.Model(image, outputs))


@maker
def cnn(folder: Path) -> None:
    model = small_cnn()
    model.save(folder / "cnn.keras")
    model.save(folder / "cnn.h5")
    model.export(folder / "cnn", verbose=False)
    freeze(model, folder / "cnn.pb")
    rng = np.random.default_rng(0)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    (folder / "cnn.tflite").write_bytes(converter.convert())
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([rng.normal(size=(1, 32, 32, 3)).astype("f4")] for _ in range(20))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "cnn_int8.tflite").write_bytes(converter.convert())


@maker
def sequential(folder: Path) -> None:
    """No name is given anywhere, and the first layer holds constants."""
    keras.utils.set_random_seed(0)
    scale = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25])
    model = keras.Sequential([layers.Input((3,)), scale, layers.Dense(4, activation="gelu"), layers.Dense(2)])
    model.save(folder / "sequential.keras")
    model.export(folder / "sequential", verbose=False)


def small_transformer(length: int | None, batch: int | None, width: int = 16) -> Any:
    keras.utils.set_random_seed(0)
    ids = layers.Input((length,), batch, dtype="int32", name="input_ids")
    mask = layers.Input((length,), batch, dtype="int32", name="attention_mask")
    x = layers.Embedding(50, width)(ids)
    keep = layers.Reshape((1, -1))(mask)
    for _ in range(2):
        attended = layers.MultiHeadAttention(2, width // 2)(x, x, attention_mask=keep)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.add([x, attended]))
        dense = layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(x))
        x = layers.LayerNormalization(epsilon=1e-6)(layers.add([x, dense]))
    pooled = layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
    return shuffle_statistics(keras.Model([ids, mask], {"hidden": x, "pooled": pooled}))


@maker
def transformer(folder: Path) -> None:
    """A sequence of any length, a padding mask, attention, GELU."""
    model = small_transformer(None, None)
    model.save(folder / "transformer.keras")
    model.save(folder / "transformer.h5")
    model.export(folder / "transformer", verbose=False)
    freeze(model, folder / "transformer.pb")
    converter = tf.lite.TFLiteConverter.from_keras_model(small_transformer(12, 1))
    (folder / "transformer.tflite").write_bytes(converter.convert())


@maker
def wide(folder: Path) -> None:
    """Weights that are large enough to travel beside the graph."""
    small_transformer(None, None, width=192).save(folder / "wide_transformer.keras")
    keras.utils.set_random_seed(0)
    x = layers.Input((None, 32), name="steps")
    hidden = layers.Bidirectional(layers.LSTM(96, return_sequences=True))(x)
    keras.Model(x, layers.Dense(64)(layers.GRU(96)(hidden))).save(folder / "wide_recurrent.keras")


def small_recurrent(kind: str, length: int | None, batch: int | None) -> Any:
    keras.utils.set_random_seed(0)
    x = layers.Input((length, 4), batch, name="steps")
    hidden = getattr(layers, kind)(8, return_sequences=True)(x)
    return keras.Model(x, layers.Dense(2)(layers.Bidirectional(getattr(layers, kind)(6))(hidden)))


@maker
def recurrent(folder: Path) -> None:
    for kind in ("LSTM", "GRU"):
        model, name = small_recurrent(kind, None, None), kind.lower()
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        model.export(folder / name, verbose=False)
        freeze(model, folder / f"{name}.pb")
        # TensorFlow Lite has no lists of tensors: its recurrent networks have fixed sizes.
        converter = tf.lite.TFLiteConverter.from_keras_model(small_recurrent(kind, 6, 1))
        (folder / f"{name}.tflite").write_bytes(converter.convert())
    freeze(model, folder / "gru_lowered.pb", lower=True)


class Flow(tf.Module):
    """Control flow that depends on the data, two signatures, a table and a shape of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.random.stateless_normal((4, 4), (1, 2)), name="weight")

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        steps = tf.constant(0)
        while tf.reduce_sum(tf.abs(x)) > 4.0 and steps < 20:
            x = tf.tanh(tf.matmul(x, self.weight)) * 0.9
            steps += 1
        # The sum is far from 1 whatever rounds where: a tie would let rounding choose the branch.
        y = x * 2.0 if tf.reduce_sum(x) > 1.0 else x - 1.0
        return {"y": y, "steps": steps}

    @tf.function(
        input_signature=[tf.TensorSpec((None, 4), tf.float32, name="a"), tf.TensorSpec((None, 4), tf.float32, name="b")]
    )
    def outer(self, a: Any, b: Any) -> dict[str, Any]:
        return {"product": tf.matmul(a, b, transpose_b=True)}


@maker
def flow(folder: Path) -> None:
    module = Flow()
    tf.saved_model.save(module, folder / "flow", {"serving_default": module.serve, "outer": module.outer})
    freeze_function(module.serve.get_concrete_function(), folder / "flow.pb")


@maker
def version1(folder: Path) -> None:
    """A SavedModel of TF 1: a session's graph with variables, a loop and a condition of its kind."""
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        w = v1.get_variable("w", initializer=np.random.default_rng(0).normal(size=(4, 4)).astype("f4"))
        _, y = v1.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, tf.tanh(tf.matmul(y, w))), (tf.constant(0), x))
        y = v1.cond(tf.reduce_sum(y) > 0, lambda: y * 2.0, lambda: y - 1.0)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder / "version1"), {"features": x}, {"scores": y})
    v1.enable_control_flow_v2()


@maker
def unsupported(folder: Path) -> None:
    x = layers.Input((4, 4), name="x")

    class Odd(layers.Layer):
        def call(self, value: Any) -> Any:
            return tf.math.multiply_no_nan(value, value + 3.0) + 1.0

    keras.Model(x, Odd(name="odd_layer")(x)).export(folder / "unsupported", verbose=False)

    class Branch(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
        def serve(self, x: Any) -> Any:
            return tf.math.multiply_no_nan(x, x + 3.0) if tf.reduce_sum(x) > 1.0 else x - 1.0

    module = Branch()
    tf.saved_model.save(module, folder / "unsupported_branch", module.serve)


@maker
def no_rank(folder: Path) -> None:
    """A frozen graph of TF 1 whose input has no shape, with a side branch that ends nowhere."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, None, name="picture")
        features = tf.nn.relu(tf.nn.conv2d(x, np.ones((3, 3, 3, 2), "f4") / 27, 1, "SAME"), name="features")
        tf.reduce_mean(features, (1, 2), name="scores")
        tf.constant(1.0, name="unused")
    (folder / "no_rank.pb").write_bytes(graph.as_graph_def().SerializeToString())


@maker
def keras2(folder: Path) -> None:
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((8, 8, 3), name="image")
    h = tf_keras.layers.Conv2D(4, 3, activation="gelu", name="conv")(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="scores")(tf_keras.layers.Flatten()(h)))
    model.save(folder / "keras2.keras")
    model.save(folder / "keras2.h5")
    model.save(folder / "keras2", save_format="tf")
    x = tf_keras.Input((4,), name="x")
    tf_keras.Model(x, tf_keras.layers.Lambda(lambda value: value * 2)(x)).save(folder / "lambda2.h5")


@maker
def lambda3(folder: Path) -> None:
    x = layers.Input((4,), name="x")
    model = keras.Model(x, layers.Lambda(lambda value: value * 2, output_shape=(4,))(x))
    model.save(folder / "lambda3.keras")
    model.save(folder / "lambda3.h5")
    model.save_weights(folder / "only.weights.h5")
    (folder / "only.weights.h5").rename(folder / "weights_alone.h5")
    tf.train.Checkpoint(step=tf.Variable(1)).save(str(folder / "checkpoint" / "ckpt"))


@maker
def huge(folder: Path) -> None:
    """A file of 2.5 GB, of which the disk holds only the first bytes."""
    import h5py

    keras.Sequential([layers.Input((4,)), layers.Dense(2)]).save(folder / "huge.h5")
    with h5py.File(folder / "huge.h5", "r+") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((625_000_000,))
        h5py.h5d.create(file["model_weights"].id, b"kernel", h5py.h5t.IEEE_F32LE, space, creation)


def application(name: str, size: int, folder: Path) -> None:
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    model.save(folder / f"{name}.keras")


@maker
def mobilenet(folder: Path) -> None:
    application("MobileNetV2", 64, folder)


@maker
def efficientnet(folder: Path) -> None:
    application("EfficientNetB0", 64, folder)


@maker
def resnet(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    keras.applications.ResNet50(weights=None).save(folder / "ResNet50.keras")


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        MAKERS[wanted](Path(sys.argv[1]))
