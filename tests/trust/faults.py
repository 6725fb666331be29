"""Steps that are wrong on purpose. Each says on which model, and what there is to blame."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import onnx_ir as ir

from infconv.passes import Context, Pass, RewritePass
from infconv.passes._rewrite import Rule
from infconv.verify import Kind


@dataclasses.dataclass(frozen=True)
class Planted:
    """A wrong step, and what is expected of bisection."""

    step: type[Pass]
    model: str
    """One of models.TEXTS."""
    at: str
    """In the name of the rewrite, for a table of rules; else in the node that is named."""
    kind: Kind
    edge_cases: tuple[str, ...]
    """Inputs that are off unless asked for, without which the fault does not show."""


FAULTS: dict[str, Planted] = {}
Step = TypeVar("Step", bound=type[Pass])


def planted(model: str, at: str, kind: Kind = "differs", edge_cases: tuple[str, ...] = ()) -> Callable[[Step], Step]:
    """Put a step in FAULTS."""

    def put(step: Step) -> Step:
        FAULTS[step.__name__] = Planted(step, model, at, kind, edge_cases)
        return step

    return put


# --- rewrites -------------------------------------------------------------------------------------------------------


@planted("cnn", "BatchNormalization")
class BatchNormSign(RewritePass):
    """The bias of a BatchNormalization has the wrong sign."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, m, v: op.BatchNormalization(x, s, b, m, v, epsilon=op.attr()),
            build=lambda op, x, s, b, m, v: op.Identity(op.BatchNormalization(x, s, op.Neg(b), m, v)),
            when=lambda match: None if match["b"].producer() is None else "it was negated already",
        ),
    )


@planted("cnn", "Conv")
class DropConvBias(RewritePass):
    """A Conv loses its bias."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, w, b: op.Conv(x, w, b, pads=op.attr()),
            build=lambda op, x, w: op.Conv(x, w, pads=[1, 1, 1, 1]),
        ),
    )


@planted("cnn", "Conv")
class LosePadding(RewritePass):
    """A Conv pads the other side: the shape stays, the values do not."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, w, b: op.Conv(x, w, b, pads=op.attr(test=lambda pads: list(pads) == [1, 1, 1, 1])),
            build=lambda op, x, w, b: op.Conv(x, w, b, pads=[2, 2, 0, 0]),
        ),
    )


@planted("cnn", "Gemm")
class UntransposedGemm(RewritePass):
    """The square weight of a Gemm is no longer transposed."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, w, b: op.Gemm(x, w, b, transB=op.attr(test=lambda on: on == 1)),
            build=lambda op, x, w, b: op.Gemm(x, w, b),
        ),
    )


@planted("text", "ReduceMean")
class SumForMean(RewritePass):
    """A mean becomes a sum."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x, axes: op.ReduceMean(x, axes), build=lambda op, x, axes: op.ReduceSum(x, axes)),
    )


@planted("mlp", "Erf")
class TanhGelu(RewritePass):
    """Erf is replaced by a tanh that is near it, but not near enough."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x: op.Erf(x), build=lambda op, x: op.Tanh(op.Mul(x, 1.2))),
    )


@planted("mlp", "MatMul")
class TransposedWeight(RewritePass):
    """A square weight is transposed."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, w: op.MatMul(x, w),
            build=lambda op, x, w: op.MatMul(x, op.Transpose(w, perm=[1, 0])),
            when=lambda match: None if match["w"].is_initializer() else "it is transposed already",
        ),
    )


@planted("mlp", "Add")
class WrongBroadcast(RewritePass):
    """A bias is added along the rows where it belongs to the columns: only seen by its values."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, w, b: op.Add(op.MatMul(x, w), b),
            build=lambda op, x, w, b: op.MatMul(op.Add(x, b), w),
        ),
    )


@planted("mlp", "Add")
class DropBias(RewritePass):
    """A bias is lost."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x, w, b: op.Add(op.MatMul(x, w), b), build=lambda op, x, w, b: op.MatMul(x, w)),
    )


@planted("mlp", "Softmax")
class WrongSoftmaxAxis(RewritePass):
    """Softmax runs over the batch."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Softmax(x, axis=op.attr(test=lambda axis: axis == -1)),
            build=lambda op, x: op.Softmax(x, axis=0),
        ),
    )


@planted("mlp", "ArgMax")
class ArgMinForArgMax(RewritePass):
    """An integer output is wrong."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.ArgMax(x, axis=op.attr(), keepdims=op.attr()),
            build=lambda op, x: op.ArgMin(x, axis=-1, keepdims=0),
        ),
    )


@planted("text", "Slice")
class OffByOneSlice(RewritePass):
    """A Slice starts one too late, and ends one too late."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, e, a: op.Slice(x, s, e, a),
            build=lambda op, x, s, e, a: op.Slice(x, np.array([1]), np.array([3]), a),
            when=lambda match: None if match["s"].name == "zero" else "not the first half",
        ),
    )


@planted("text", "Concat")
class SwappedConcat(RewritePass):
    """The operands of a Concat change places."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, a, b: op.Concat(a, b, axis=op.attr()),
            build=lambda op, a, b: op.Concat(b, a, axis=2),
            when=lambda match: None if match["a"].name == "b" else "they changed places already",
        ),
    )


@planted("text", "Transpose")
class WrongPermutation(RewritePass):
    """Two Transposes that undo each other are taken for one."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Transpose(op.Abs(x), perm=op.attr()),
            build=lambda op, x: op.Reshape(op.Abs(x), op.Shape(op.Transpose(x, perm=[0, 2, 1]))),
        ),
    )


@planted("text", "Abs")
class AbsIsIdentity(RewritePass):
    """Wrong for negative values only."""

    rules: ClassVar[Sequence[Rule]] = (Rule(match=lambda op, x: op.Abs(x), build=lambda op, x: op.Identity(x)),)


@planted("text", "Gather")
class WrongOutOfBounds(RewritePass):
    """Wrong for one row of a table only: the last."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, table, ids: op.Gather(table, ids),
            build=lambda op, table, ids: op.Gather(table, op.Min(ids, np.array(9))),
            when=lambda match: None if match["ids"].is_graph_input() else "it is limited already",
        ),
    )


@planted("norm", "Sqrt")
class ForgetEpsilon(RewritePass):
    """Right but where everything is zero: found by the row of zeros in a batch."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x, e: op.Sqrt(op.Add(x, e)), build=lambda op, x, e: op.Sqrt(x)),
    )


@planted("soft", "Softplus", edge_cases=("large",))
class UnstableSoftplus(RewritePass):
    """Overflows where the operator does not: found by large inputs."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Softplus(x), build=lambda op, x: op.Log(op.Add(op.Exp(x), np.array(1, np.float32)))
        ),
    )


@planted("three", "Relu")
class FirstRowOnly(RewritePass):
    """Right for a batch of one."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Relu(x),
            build=lambda op, x: op.Expand(
                op.Slice(op.Max(x, 0.0), np.array([0]), np.array([1]), np.array([0])), op.Shape(x)
            ),
        ),
    )


@planted("three", "at r2")
class OneOfMany(RewritePass):
    """A rule that is right at two places and wrong at one."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Relu(x),
            build=lambda op, x, match: op.Max(x, 1.0 if match.root.outputs[0].name == "r2" else 0.0),
        ),
    )


@planted("three", "at r2", "crash")
class CrashesAtOne(RewritePass):
    """A rule whose native code crashes at one place."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Relu(x),
            build=lambda op, x, match: _crash() if match.root.outputs[0].name == "r2" else op.Max(x, 0.0),
        ),
    )


@planted("branch", "Cast")
class TruncatedCast(RewritePass):
    """A double between two floats becomes an integer."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Cast(op.Cast(x, to=op.attr(test=lambda to: to == 6)), to=op.attr()),
            build=lambda op, x: op.Cast(op.Cast(op.Add(x, 1.0), to=ir.DataType.INT64), to=ir.DataType.FLOAT),
        ),
    )


@planted("branch", "Sigmoid")
class OnlyInABranch(RewritePass):
    """Wrong in a subgraph."""

    rules: ClassVar[Sequence[Rule]] = (Rule(match=lambda op, x: op.Sigmoid(x), build=lambda op, x: op.HardSigmoid(x)),)


@planted("cnn", "Relu")
class DropRelu(RewritePass):
    """An activation is lost."""

    rules: ClassVar[Sequence[Rule]] = (Rule(match=lambda op, x: op.Relu(x), build=lambda op, x: x),)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


# --- steps that are no rewrites ---------------------------------------------------------------------------------------


@planted("mlp", "Softmax")
class SwapOutputs(Pass):
    """Two outputs of one shape change places."""

    def run(self, model: ir.Model, context: Context) -> int:
        softmax = next(node for node in model.graph if node.op_type == "Softmax")
        if softmax.inputs[0].name != "l":
            return 0
        softmax.replace_input_with(0, next(n for n in model.graph if n.op_type == "MatMul").outputs[0])
        return 1


@planted("cnn", "Conv 'c'")
class RoundWeights(Pass):
    """Every weight is rounded to one decimal."""

    def run(self, model: ir.Model, context: Context) -> int:
        changed = 0
        for value in model.graph.initializers.values():
            array = value.const_value.numpy()
            rounded = np.round(array, 1)
            if not np.array_equal(array, rounded):
                value.const_value = ir.tensor(rounded, name=value.name)
                changed += 1
        return changed


@planted("mlp", "MatMul 'l'")
class MergeWeights(Pass):
    """Two weights of one shape are taken for equal."""

    def run(self, model: ir.Model, context: Context) -> int:
        u, w = model.graph.initializers.get("u"), model.graph.initializers["w"]
        if u is None:
            return 0
        u.replace_all_uses_with(w)
        del model.graph.initializers["u"]
        return 1


@planted("cnn", "Flatten", "invalid")
class FreezeBatch(Pass):
    """The batch of the sample becomes a constant."""

    def run(self, model: ir.Model, context: Context) -> int:
        flatten = next((node for node in model.graph if node.op_type == "Flatten"), None)
        if flatten is None:
            return 0
        model.graph.initializers["shape"] = ir.Value(
            name="shape", const_value=ir.tensor(np.array([2, 4]), name="shape")
        )
        reshape = ir.Node("", "Reshape", [flatten.inputs[0], model.graph.initializers["shape"]])
        reshape.outputs[0].name = "frozen"
        model.graph.insert_before(flatten, reshape)
        flatten.outputs[0].replace_all_uses_with(reshape.outputs[0])
        model.graph.remove(flatten, safe=True)
        return 1


@planted("mlp", "Erf", "invalid")
class UnknownOperator(Pass):
    """The model is no longer valid."""

    def run(self, model: ir.Model, context: Context) -> int:
        found = [node for node in model.graph if node.op_type == "Erf"]
        for node in found:
            node.op_type = "Frobnicate"
        return len(found)


@planted("mlp", "", "invalid")
class Unsorted(Pass):
    """The nodes are no longer in order."""

    def run(self, model: ir.Model, context: Context) -> int:
        first = model.graph.node(0)
        if first.op_type != "MatMul":
            return 0
        model.graph.remove(first)
        model.graph.append(first)
        return 1


@planted("mlp", "", "contract")
class DropOutput(Pass):
    """An output is gone."""

    def run(self, model: ir.Model, context: Context) -> int:
        if len(model.graph.outputs) == 1:
            return 0
        model.graph.outputs.pop()
        return 1


@planted("three", "", "contract")
class RenameOutput(Pass):
    """An output has another name."""

    def run(self, model: ir.Model, context: Context) -> int:
        if model.graph.outputs[0].name == "renamed":
            return 0
        model.graph.outputs[0].name = "renamed"
        return 1


@planted("three", "", "contract")
class WidenOutput(Pass):
    """An output has another type."""

    def run(self, model: ir.Model, context: Context) -> int:
        old = model.graph.outputs[0]
        if old.dtype == ir.DataType.DOUBLE:
            return 0
        cast = ir.Node("", "Cast", [old], [ir.AttrInt64("to", 11)])
        model.graph.append(cast)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.DOUBLE), old.shape
        cast.outputs[0].name, old.name = old.name, "narrow"
        model.graph.outputs[0] = cast.outputs[0]
        return 1


@planted("three", "", "contract")
class SaysNothing(Pass):
    """It changes something and says that it did not."""

    def run(self, model: ir.Model, context: Context) -> int:
        model.graph.node(0).name = "renamed"
        return 0


@planted("three", "", "contract")
class SaysTooMuch(Pass):
    """It changes nothing and says that it did."""

    def run(self, model: ir.Model, context: Context) -> int:
        return 3


@planted("text", "Sqrt", "error")
class Raises(Pass):
    """It fails at one operator."""

    def run(self, model: ir.Model, context: Context) -> int:
        return 1 // sum(node.op_type != "Sqrt" for node in model.graph if node.op_type == "Sqrt") if _has(model) else 0


@planted("text", "Sqrt", "crash")
class Segfaults(Pass):
    """Its native code crashes at one operator."""

    def run(self, model: ir.Model, context: Context) -> int:
        if _has(model):
            _crash()
        return 0


@planted("norm", "Sqrt", "timeout")
class Hangs(Pass):
    """It never ends at one operator."""

    def run(self, model: ir.Model, context: Context) -> int:
        if _has(model):
            time.sleep(1000)
        return 0


@planted("norm", "Sqrt", "memory")
class EatsMemory(Pass):
    """It takes all memory that it may at one operator."""

    def run(self, model: ir.Model, context: Context) -> int:
        if _has(model):
            np.ones(1 << 40, np.uint8)
        return 0


def _has(model: ir.Model) -> bool:
    return any(node.op_type == "Sqrt" for node in model.graph)
