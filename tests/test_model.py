"""Loading and saving: weights stay mapped, nothing is lost, nothing outside the folder is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infconv import model as models
from infconv.errors import SourceError, UnsupportedError


def big_model(path: Path) -> Path:
    """Write a model with an embedded weight large enough to be mapped, and a small one."""
    weights = np.arange(64 * 64, dtype="f4").reshape(64, 64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.ones(64, "f4"), "b")],
    )
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_large_weight_is_a_view_of_the_file(tmp_path: Path) -> None:
    model = models.load(big_model(tmp_path / "m.onnx"))
    array = model.graph.initializers["w"].const_value.numpy()
    assert not array.flags.owndata
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, np.arange(64 * 64, dtype="f4").reshape(64, 64))


@pytest.mark.parametrize("external", [False, True])
def test_saving_gives_the_same_model(tmp_path: Path, external: bool) -> None:
    source = big_model(tmp_path / "m.onnx")
    files = models.save(models.load(source), tmp_path / "out.onnx", external=external)
    assert [f.name for f in files] == (["out.onnx", "out.onnx.data"] if external else ["out.onnx"])
    onnx.checker.check_model(files[0], full_check=True)
    before, after = onnx.load(source), onnx.load(files[0])
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))
    assert [n.SerializeToString() for n in before.graph.node] == [n.SerializeToString() for n in after.graph.node]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = big_model(tmp_path / "m.onnx")
    for name in ("a.onnx", "b.onnx"):
        models.save(models.load(source), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_weight_in_packed_float_data_is_read(tmp_path: Path) -> None:
    proto = onnx.load(big_model(tmp_path / "m.onnx"))
    tensor = proto.graph.initializer[0]
    values = numpy_helper.to_array(tensor)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values.ravel().tolist())
    onnx.save(proto, tmp_path / "f.onnx")
    model = models.load(tmp_path / "f.onnx")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), values)
    models.save(model, tmp_path / "g.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(tmp_path / "g.onnx").graph.initializer[0]), values)


def test_a_weight_in_a_constant_node_is_mapped_and_saved(tmp_path: Path) -> None:
    values = np.arange(4096, dtype="f4")
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values))
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])],
    )
    path = tmp_path / "c.onnx"
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), path)
    model = models.load(path)
    assert not model.graph[0].attributes["value"].as_tensor().numpy().flags.owndata
    models.save(model, tmp_path / "d.onnx")
    saved = onnx.load(tmp_path / "d.onnx").graph.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(saved), values)


def test_a_sparse_initializer_becomes_dense(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([3.0, 4.0], "f4"), "s")
    indices = numpy_helper.from_array(np.array([1, 5], "i8"), "i")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "s.onnx")
    dense = models.load(tmp_path / "s.onnx").graph.initializers["s"].const_value.numpy()
    np.testing.assert_array_equal(dense, [[0, 3, 0], [0, 0, 4]])


def test_map_types_survive(tmp_path: Path) -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(map_type))
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])], [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "z.onnx")
    models.save(models.load(tmp_path / "z.onnx"), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.output[0].type == output.type


def test_training_information_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(big_model(tmp_path / "m.onnx"))
    proto.training_info.add()
    onnx.save(proto, tmp_path / "t.onnx")
    with pytest.raises(UnsupportedError, match="training information"):
        models.load(tmp_path / "t.onnx")


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    whole = big_model(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:size])
    with pytest.raises(SourceError, match=r"cut\.onnx"):
        models.load(tmp_path / "cut.onnx")


def test_text_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_text("this is not a model at all, just words\n" * 100)
    with pytest.raises(SourceError, match="not an ONNX model"):
        models.load(tmp_path / "t.onnx")


def external_model(folder: Path, location: str, length: int | None = None) -> Path:
    """Write a model whose weight is said to be in the file `location`."""
    proto = onnx.load(big_model(folder / "inner.onnx"))
    tensor = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    size = length if length is not None else len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "external.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_mapped(tmp_path: Path) -> None:
    model = models.load(external_model(tmp_path, "weights.bin"))
    assert model.graph.initializers["w"].const_value.numpy()[0, 5] == 5


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    with pytest.raises(SourceError, match="outside its folder"):
        models.load(external_model(folder, location))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, link) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    link(tmp_path / "secret.bin", folder / "data.bin")
    with pytest.raises(SourceError, match="link"):
        models.load(external_model(folder, "data.bin"))


def test_missing_and_short_external_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'gone\.bin'.*missing"):
        models.load(external_model(tmp_path, "gone.bin"))
    path = external_model(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(SourceError, match="has only 5"):
        models.load(path)


def test_checking_does_not_need_the_weights(tmp_path: Path) -> None:
    model = models.load(big_model(tmp_path / "m.onnx"))
    models.check(model)
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(SourceError, match="NoSuchOperator"):
        models.check(model)


def test_checking_steps_over_weights_in_nodes_and_branches(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.arange(4096, dtype="f4"), "c")
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, [4096])
    branches = {}
    for name in ("then_branch", "else_branch"):
        branches[name] = helper.make_graph([helper.make_node("Identity", ["c"], ["o"])], name, [], [info], [values])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=values),
        helper.make_node("If", ["p"], ["i"], **branches),
        helper.make_node("Add", ["k", "i"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("p", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "b.onnx")
    proto, _ = models.read_proto(tmp_path / "b.onnx")
    models.check_proto(proto)
    model = models.load(tmp_path / "b.onnx")
    models.check(model)
    models.save(model, tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


def test_pages_of_a_mapped_weight_are_read_again_after_they_were_released(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(5 << 10, 1 << 10)).astype("f4")  # 20 MB: more than one piece
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5 << 10])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1 << 10])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [result], [numpy_helper.from_array(weight, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    model = models.load(tmp_path / "m.onnx")
    for external in (True, False):
        models.save(model, tmp_path / f"{external}.onnx", external=external)
        found = onnx.load(tmp_path / f"{external}.onnx").graph.initializer[0]
        assert np.array_equal(numpy_helper.to_array(found), weight)
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weight)
