"""How time grows with the graph, and memory with the weights.

    python benchmarks/scaling.py [--nodes 1000 10000 100000] [--big]

Builds synthetic stacks of blocks (a GELU block with a Reshape, Conv + BatchNormalization between Transposes,
element-wise operators) and optimises each in a process of its own; prints CPU seconds, the nodes and the peak resident
memory. `--big` adds six MatMuls of 10240x10240 with external data (2.5 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, a checkout gets it once

OPTIMISE = """
import sys, infconv, onnx_ir
infconv.save(infconv.optimize(sys.argv[1], level='extended'), sys.argv[2])
"""


class Stack:
    """A graph that blocks are appended to."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        for name, number in (("half", 0.5), ("one", 1.0), ("root", 2**0.5)):
            self.weights.append(numpy_helper.from_array(np.float32(number), name))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.abs(self.random.normal(size=shape)).astype("f4") * 0.1, name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name


def gelu_block(stack: Stack, x: str) -> str:
    y = stack.node("Add", stack.node("MatMul", x, stack.weight(8, 8)), stack.weight(8))
    erf = stack.node("Add", stack.node("Erf", stack.node("Div", y, "root")), "one")
    gelu = stack.node("Mul", stack.node("Mul", y, erf), "half")
    return stack.node("Add", x, stack.node("Reshape", gelu, stack.node("Shape", gelu)))


def conv_block(stack: Stack, x: str) -> str:
    conv = stack.node("Conv", x, stack.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    norm = stack.node("BatchNormalization", conv, *(stack.weight(4) for _ in range(4)))
    there = stack.node("Identity", stack.node("Transpose", stack.node("Relu", norm), perm=[0, 2, 3, 1]))
    return stack.node("Add", x, stack.node("Transpose", there, perm=[0, 3, 1, 2]))


def plain_block(stack: Stack, x: str) -> str:
    return stack.node("Tanh", stack.node("Add", stack.node("Mul", stack.node("Sin", x), "half"), x))


BLOCKS: dict[str, tuple[Callable[[Stack, str], str], list[int | str]]] = {
    "gelu": (gelu_block, ["n", 8]),
    "conv": (conv_block, ["n", 4, 6, 6]),
    "plain": (plain_block, ["n", 8]),
}


def write_stack(kind: str, nodes: int, path: Path) -> None:
    """Write a model of about `nodes` nodes."""
    block, shape = BLOCKS[kind]
    stack, value = Stack(), "x"
    while len(stack.nodes) < nodes:
        value = block(stack, value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    graph = helper.make_graph(stack.nodes, kind, ends[:1], ends[1:], stack.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def write_big(path: Path) -> None:
    """Write six MatMuls of 10240x10240 whose weights lie in a file of 2.5 GB; only one is in memory at a time."""
    side, count = 10240, 6
    nodes, weights = [], []
    with path.with_suffix(".data").open("wb") as stream:
        for index in range(count):
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.stem}.data"), ("offset", stream.tell()), ("length", 4 * side**2)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            stream.write(np.random.default_rng(index).normal(size=(side, side)).astype("f4").data)
            nodes += [helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"m{index}"])]
            nodes += [helper.make_node("Identity", [f"m{index}"], [f"v{index + 1}"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", side]) for name in ("v0", f"v{count}")]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    )


def build(kind: str, nodes: int, path: Path) -> None:
    """Write a model in a process of its own: Linux counts a parent's memory as the peak of the children it forks."""
    code = "import sys, pathlib, scaling; k, n, p = sys.argv[1:]; p = pathlib.Path(p)\n"
    code += "scaling.write_big(p) if k == 'big' else scaling.write_stack(k, int(n), p)"
    subprocess.run([sys.executable, "-c", code, kind, str(nodes), str(path)], cwd=Path(__file__).parent, check=True)


def optimise(source: Path, output: Path) -> tuple[float, float]:
    """Return CPU seconds and peak megabytes of loading, optimising and saving in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", OPTIMISE, str(source), str(output)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{source.name}: exit {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def count_nodes(path: Path) -> int:
    code = "import sys, onnx; print(len(onnx.load(sys.argv[1], load_external_data=False).graph.node))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--kinds", nargs="*", default=list(BLOCKS))
    parser.add_argument("--big", action="store_true", help="also a model of 2.5 GB")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "model.onnx", Path(name) / "out.onnx"
        print(f"{'stack':<8} {'nodes':>8} {'left':>8} {'CPU s':>8} {'peak MB':>8}")
        for kind in [*arguments.kinds, *(["big"] if arguments.big else [])]:
            for nodes in arguments.nodes if kind != "big" else [12]:
                build(kind, nodes, source)
                seconds, peak = optimise(source, output)
                rows.append({"stack": kind, "nodes": count_nodes(source), "left": count_nodes(output)})
                rows[-1] |= {"cpu": seconds, "peak_mb": peak}
                row = rows[-1]
                print(f"{kind:<8} {row['nodes']:>8} {row['left']:>8} {seconds:>8.2f} {peak:>8.0f}", flush=True)
    results = Path(__file__).resolve().parent / "results"
    results.mkdir(exist_ok=True)
    (results / "scaling.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
