"""Multiply weights by powers of two so that what leaves the narrow format's range fits into it, exactly.

Values that only linear, positively homogeneous operators connect (a residual stream: Add, Relu, Reshape …) can all be
scaled by one factor s without any change of what is computed: the operators that write them take s into their weights
and biases, those that read them take 1/s into theirs, and a LayerNormalization does not see a scale at all once its
epsilon is multiplied by s squared. With s a power of two every product is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from infconv.quantize._constants import examine, reading
from infconv.quantize._names import unique
from infconv.quantize._schemas import FLOAT, names
from infconv.quantize._wires import Wiring, constant_tensor

_ALONG = names(
    "Relu LeakyRelu PRelu Abs Neg Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Expand Tile Gather",
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMax ReduceMin ReduceMean ReduceSum DepthToSpace",
    "SpaceToDepth",
)
"""f(s x) = s f(x) for s > 0, in their first input."""
_TOGETHER = names("Add Sub Sum Concat Max Min")
"""The same, in all inputs at once."""
_LINEAR = names("MatMul Gemm Conv ConvTranspose")
_NORMS = names("LayerNormalization RMSNormalization GroupNormalization InstanceNormalization")
_LARGEST = 2.0**13
"""Where the largest magnitude of a scaled value comes to lie: an eighth of the range for what samples do not show."""
_TOLERATED_LOSS = 1e-3
_LAZY_BYTES = 1 << 20


@dataclasses.dataclass
class _Group:
    """Values with one scale, and what lies at their border."""

    values: list[ir.Value] = dataclasses.field(default_factory=list[ir.Value])
    largest: float = 0.0
    exponent: int = 0


def rescale(wiring: Wiring, maxima: Mapping[ir.Value, float]) -> dict[ir.Node, int]:
    """Scale what `maxima` (largest magnitudes on samples) and the weights say does not fit.

    Return node -> e for every node whose output is now 2^e times what it was. Only groups whose border takes the scale
    into constants are scaled; up to one Mul for each four values is accepted at a model's inputs and outputs and at
    operators that are not linear. Changes the model; `wiring` is of no use then.
    """
    return _Rescaling(wiring, maxima).run()


class _Rescaling:
    def __init__(self, wiring: Wiring, maxima: Mapping[ir.Value, float]) -> None:
        self._wiring = wiring
        self._narrow = wiring.narrow
        self._graph = wiring.model.graph
        self._maxima = maxima
        self._groups: dict[ir.Value, _Group] = {}
        self._names = {v.name for v in wiring.types}

    def run(self) -> dict[ir.Node, int]:
        self._join()
        groups = list({id(group): group for group in self._groups.values()}.values())
        for group in groups:
            self._settle(group)
        scaled = [group for group in groups if group.exponent]
        borders = [(group, self._unabsorbed(group)) for group in scaled]
        exponents = {node: e for node in self._graph if node.outputs and (e := self._exponent(node.outputs[0]))}
        # All of it is decided before anything changes: a constant that has taken a scale is not one of the wiring's.
        absorbed = [(node, self._absorbed(node), self._squared(node)) for node in self._graph] if scaled else []
        for node, constants, squared in absorbed:
            self._apply(node, constants, squared)
        for group, border in borders:
            self._convert_border(group, border)
        return exponents

    def _squared(self, node: ir.Node) -> int:
        """Return the exponent of the input of a norm, whose epsilon is added to squares."""
        return self._exponent(node.inputs[0]) if node.op_type in _NORMS and node.domain == "" else 0

    # --- which values have one scale ---------------------------------------------------------------------------------

    def _join(self) -> None:
        for value in self._graph.inputs:
            self._group(value)
        for node in self._graph:
            for value in node.outputs:
                self._group(value)
            members = self._members(node)
            for other in members[1:]:
                self._unite(members[0], other)

    def _group(self, value: ir.Value) -> None:
        if self._is_data(value) and value not in self._groups:
            self._groups[value] = _Group([value], self._maxima.get(value, 0.0))

    def _is_data(self, value: ir.Value | None) -> bool:
        wire = self._wiring.wires.get(value) if value is not None else None
        return wire is not None and wire.source is not None and wire.value.graph is self._graph

    def _members(self, node: ir.Node) -> list[ir.Value]:
        """Return the values that must have one scale around a homogeneous node."""
        if not self._is_homogeneous(node):
            return []
        inputs = node.inputs if node.op_type in _TOGETHER else node.inputs[:1]
        return [v for v in (*inputs, *node.outputs) if v is not None and v in self._groups]

    def _is_homogeneous(self, node: ir.Node) -> bool:
        return node.domain == "" and node.op_type in _ALONG | _TOGETHER

    def _unite(self, first: ir.Value, second: ir.Value) -> None:
        keep, drop = self._groups[first], self._groups[second]
        if keep is drop:
            return
        if len(keep.values) < len(drop.values):
            keep, drop = drop, keep
        keep.values += drop.values
        keep.largest = max(keep.largest, drop.largest)
        self._groups.update(dict.fromkeys(drop.values, keep))

    # --- by how much -------------------------------------------------------------------------------------------------

    def _settle(self, group: _Group) -> None:
        """Give the group the exponent of its scale: the one that fits best of those that every constant bears."""
        too_large = group.largest > self._narrow.largest / 2
        too_small = 0.0 < group.largest < self._narrow.smallest_normal
        if not group.largest or not (too_large or too_small or any(map(self._misfits, self._constants_into(group)))):
            return
        if len(self._unabsorbed(group)) * 4 > len(group.values):
            return
        best = math.floor(math.log2(_LARGEST / group.largest))
        for exponent in sorted(range(min(best, 0), max(best, 0) + 1), key=lambda e: abs(e - best)):
            if exponent and group.largest * 2.0**exponent <= self._narrow.largest / 2:
                group.exponent = exponent
                if all(self._fits(node) for node in self._neighbours(group)):
                    return
        group.exponent = 0

    def _misfits(self, tensor: ir.TensorProtocol) -> bool:
        loss = examine(tensor, self._narrow)
        return loss.overflows(self._narrow) or loss.relative > _TOLERATED_LOSS

    def _neighbours(self, group: _Group) -> list[ir.Node]:
        nodes: dict[ir.Node, None] = {}
        for value in group.values:
            producer = value.producer()
            for node in (producer, *(user for user, _ in value.uses())):
                if node is not None and node.graph is self._graph:
                    nodes[node] = None
        return list(nodes)

    def _fits(self, node: ir.Node) -> bool:
        """Whether the constants of `node` fit the narrow format once they have taken the scales."""
        for index, exponent in self._absorbed(node).items():
            value = node.inputs[index]
            if value is None or not exponent:
                continue
            with reading(constant_tensor(value)) as array:
                largest = float(np.max(np.abs(array), initial=0.0)) * 2.0**exponent
                nonzero = (
                    np.abs(array[array != 0]) if array.size <= 1 << 16 else np.abs(array.ravel()[:: array.size >> 16])
                )
                typical = float(np.median(nonzero)) * 2.0**exponent if nonzero.size else 1.0
            if largest > self._narrow.largest or (largest and typical < self._narrow.smallest_normal):
                return False
        return True

    def _constants_into(self, group: _Group) -> Iterable[ir.TensorProtocol]:
        """Yield the constants of the nodes that write the group, biases aside."""
        for value in group.values:
            node = value.producer()
            if node is not None and not self._is_homogeneous(node):
                for index in self._absorbed(node):
                    constant = node.inputs[index]
                    if constant is not None and index < 2:
                        yield constant_tensor(constant)

    # --- what takes a scale into its constants -----------------------------------------------------------------------

    def _exponent(self, value: ir.Value | None) -> int:
        return self._groups[value].exponent if value is not None and value in self._groups else 0

    def _absorbed(self, node: ir.Node) -> dict[int, int]:
        """Return constant input -> the exponent that it takes; empty for a node that cannot take a scale."""
        if node.domain != "" or not node.outputs:
            return {}
        constant = [self._is_constant(value) for value in node.inputs]
        out = self._exponent(node.outputs[0])
        kind = node.op_type
        if kind in _LINEAR:
            return self._absorbed_linear(node, constant, out)
        if kind in {"Mul", "Div"} and constant[1] and not constant[0]:
            gain = out - self._exponent(node.inputs[0])
            return {1: gain if kind == "Mul" else -gain}
        if kind == "Mul" and constant[0] and not constant[1]:
            return {0: out - self._exponent(node.inputs[1])}
        if kind in _NORMS and all(constant[1:]) and self._is_plain_norm(node):
            return {index: out for index in range(1, len(node.inputs)) if node.inputs[index] is not None}
        if kind in _TOGETHER:
            return {index: out for index, is_constant in enumerate(constant) if is_constant}
        if kind == "Gather" and constant[0]:
            return {0: out}
        return {}

    @staticmethod
    def _is_plain_norm(node: ir.Node) -> bool:
        """Whether only the normalised values are read, not the mean and the deviation, which have a scale."""
        further = any(value.name and (value.uses() or value.is_graph_output()) for value in node.outputs[1:])
        return not further and node.attributes.get_int("stash_type", 1) == 1

    def _absorbed_linear(self, node: ir.Node, constant: list[bool], out: int) -> dict[int, int]:
        if constant[0] == constant[1] or not all(constant[2:]):
            return {}
        weight = 1 if constant[1] else 0
        found = {weight: out - self._exponent(node.inputs[1 - weight])}
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            found[2] = out
        return found

    def _is_constant(self, value: ir.Value | None) -> bool:
        if value is None:
            return True
        wire = self._wiring.wires.get(value)
        return wire is not None and wire.source is None

    def _unabsorbed(self, group: _Group) -> list[tuple[ir.Value, ir.Node | None, int]]:
        """Return where a Mul has to stand: (value, its reader or None for the whole value, input or output index)."""
        found: list[tuple[ir.Value, ir.Node | None, int]] = []
        for value in group.values:
            node = value.producer()
            if node is None or not (self._absorbed(node) or self._is_passed(node, value)):
                found.append((value, None, 0))
            for user, index in value.uses():
                if user.graph is not self._graph or not self._reads_any_scale(user, index):
                    found.append((value, user, index))
            found += [(value, None, i + 1) for i, output in enumerate(self._graph.outputs) if output is value]
        return found

    def _is_passed(self, node: ir.Node, value: ir.Value) -> bool:
        return self._is_homogeneous(node) and bool(node.inputs) and self._is_data(node.inputs[0])

    def _reads_any_scale(self, node: ir.Node, index: int) -> bool:
        if self._is_homogeneous(node):
            return node.op_type in _TOGETHER or index == 0
        if node.op_type in _NORMS:
            return index == 0 and bool(self._absorbed(node))
        return bool(self._absorbed(node))

    # --- carrying it out ---------------------------------------------------------------------------------------------

    def _apply(self, node: ir.Node, constants: Mapping[int, int], squared: int) -> None:
        for index, exponent in constants.items():
            value = node.inputs[index]
            if value is not None and exponent:
                node.replace_input_with(index, self._scaled(value, exponent))
                if value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del self._graph.initializers[value.name or ""]
        if squared:
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            node.attributes.add(ir.AttrFloat32("epsilon", epsilon * 4.0**squared))

    def _scaled(self, value: ir.Value, exponent: int) -> ir.Value:
        """Return a constant of `value` times two to the `exponent`; a large one is computed when it is read."""
        tensor = constant_tensor(value)
        name = unique(f"{value.name}_times_2_{exponent}".replace("-", "minus_"), self._names)

        def compute() -> ir.Tensor[np.ndarray]:
            with reading(tensor) as array:
                return ir.Tensor(np.ldexp(array, exponent).astype(np.float32), name=name)

        shape = ir.Shape(tensor.shape.numpy())
        lazy = tensor.nbytes > _LAZY_BYTES
        content = ir.LazyTensor(compute, FLOAT, shape, name=name) if lazy else compute()
        result = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=shape, const_value=content)
        self._graph.register_initializer(result)
        return result

    def _convert_border(self, group: _Group, border: list[tuple[ir.Value, ir.Node | None, int]]) -> None:
        """Multiply where nothing takes the scale."""
        scaled: dict[ir.Value, ir.Value] = {}
        for value, user, index in border:
            if user is None and index == 0:
                scaled[value] = self._multiply_all(value, group.exponent)
        for value, user, index in border:
            current = scaled.get(value, value)
            if user is not None:
                user.replace_input_with(index, self._multiplied(current, -group.exponent))
            elif index:
                self._multiply_output(current, index - 1, -group.exponent)

    def _multiply_all(self, value: ir.Value, exponent: int) -> ir.Value:
        """Insert a Mul between `value` and all who read it; return its output."""
        uses = list(value.uses())
        outputs = [index for index, output in enumerate(self._graph.outputs) if output is value]
        scaled = self._multiplied(value, exponent)
        for user, index in uses:
            user.replace_input_with(index, scaled)
        for index in outputs:
            self._graph.outputs[index] = scaled
        return scaled

    def _multiply_output(self, value: ir.Value, index: int, exponent: int) -> None:
        result, name = self._multiplied(value, exponent), self._graph.outputs[index].name
        self._graph.outputs[index] = result
        if name == value.name:
            value.name = unique(f"{name}_before", self._names)
        result.name = name

    def _multiplied(self, value: ir.Value, exponent: int) -> ir.Value:
        name = unique(f"{value.name}_scaled", self._names)
        factor = ir.Value(
            name=unique(f"{name}_factor", self._names),
            type=ir.TensorType(FLOAT),
            shape=ir.Shape([]),
            const_value=ir.tensor(2.0**exponent, dtype=FLOAT),
        )
        self._graph.register_initializer(factor)
        result = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=value.shape)
        node = ir.Node("", "Mul", [value, factor], outputs=[result], name=name)
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return result
