"""Decide the type of every node, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from infconv.errors import InfconvError
from infconv.passes import Context
from infconv.quantize import _calm, _constants, _masks, _ranges, _rules
from infconv.quantize._identity import Identity
from infconv.quantize._min_cut import INFINITE, Network
from infconv.quantize._origins import Origin, Origins
from infconv.quantize._plan_file import NodePlan, PrecisionPlan, node_name, plan_of, selects
from infconv.quantize._ranges import MASKED, Query
from infconv.quantize._schemas import FLOAT
from infconv.quantize._wires import Side, Wire, Wiring, is_constant

_CAST = 100
_OWN_CAST = 99
"""A cast that the model has is kept rather than swapped for a new one, so that a second run changes nothing."""
_ELEMENTWISE = 60
"""Up to three elementwise nodes stay FP32 rather than between two casts."""
_MOVEMENT = 1

_TOLERATED_LOSS_BF16 = 3e-2
_BEARABLE_LOSS = 0.1
"""Up to this share, and in linear operators, a trial says whether it matters; an epsilon of zero matters to others."""
_LINEAR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Mul"})
_LOGITS = 128.0
"""Logits from here on are rounded by up to 1/32 and more in FP16, which is an error of 3 % in a probability."""
_HEADROOM = 0.5
"""Samples do not show everything: values may reach this share of the format's range."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The float type that a node computes in, and why."""

    dtype: ir.DataType
    reason: str
    kind: str = ""
    """range, reduction, sensitivity, kernel, casts or user; empty for a lowered node, and where `reason` begins so."""

    def sentence(self) -> str:
        """Return `range: 'h' reaches 8e4 on the samples …`, as the plan file has it."""
        return f"{self.kind}: {self.reason}" if self.kind else self.reason


@dataclasses.dataclass
class Plan:
    """A decision for every node that touches FP32 values, and the masks to be limited."""

    decisions: dict[ir.Node, Decision]
    clamps: dict[ir.Value, ir.TensorProtocol] = dataclasses.field(default_factory=dict[ir.Value, ir.TensorProtocol])
    """Constant (or output of ConstantOfShape) -> what replaces it."""

    def type_of(self, side: Side) -> ir.DataType:
        """Return the float type of what a node or the border decides."""
        if isinstance(side, ir.DataType):
            return side
        return self.decisions[side].dtype if side in self.decisions else FLOAT

    def lowered(self) -> list[ir.Node]:
        """Return the nodes that are given the narrow type."""
        return [node for node, decision in self.decisions.items() if decision.dtype != FLOAT]

    def entries(
        self, model: ir.Model, known: Mapping[ir.Node, Identity], scales: Mapping[ir.Node, int]
    ) -> list[NodePlan]:
        """Return the plan as it is written to a file, with the nodes' identities and the scales of their outputs."""
        names = {FLOAT: "float32"}
        types = {
            node: (names.get(decision.dtype, decision.dtype.name.lower()), decision.sentence())
            for node, decision in self.decisions.items()
        }
        return [
            dataclasses.replace(entry, scale=scales.get(node, 0))
            for node, entry in plan_of(model, types, known).items()
        ]


class Planner:
    """Makes the plan for one model: rules first, then what the samples show, then the fewest casts."""

    def __init__(self, wiring: Wiring, context: Context, scales: Mapping[ir.Node, int] | None = None) -> None:
        """Plan for the model of `wiring`. `scales`: the powers of two that `rescale` has put on nodes' outputs."""
        self.maxima: dict[ir.Value, float] = {}
        """The largest magnitude of each value of the main graph on the samples."""
        self.out_of_range = False
        """Whether a constant or an activation does not fit the narrow format."""
        self.notes: list[str] = []
        """What this planner told the user."""
        self._scales = scales or {}
        self._usual = f"computes in {wiring.narrow.label}"
        self.wiring = wiring
        self._narrow = wiring.narrow
        self._context = context
        self._origins = Origins(wiring)
        self._kept: dict[ir.Node, Decision] = {}
        self._forced: dict[ir.Node, str] = {}
        """Nodes that a given plan lowers -> its reason."""
        self._soft: dict[ir.Node, None] = {}
        """Nodes kept by a rule that does not know the values."""
        self._told: dict[str, tuple[ir.Node, str]] = {}
        """Note that a node stays FP32 -> the node, and the same without saying so."""
        self._lossy: dict[ir.Node, None] = {}
        """Nodes kept because a constant or an activation is so small that it loses bits."""
        self._clamps: dict[ir.Value, ir.TensorProtocol] = {}

    def plan(self, patterns: Sequence[str], given: PrecisionPlan | None = None) -> Plan:
        """Return the plan. `patterns` name nodes that stay FP32: node names, fnmatch patterns, `op:Softmax`.

        What `given` lists has its type from there, as far as the operators and the target allow.
        """
        self._keep_fixed()
        self._keep_named(patterns)
        if given is not None:
            self._follow(given)
        for node in self._free():
            self._keep_softly(node, *_rules.sensitive_reason(self.wiring, node, self._context.target))
        self._keep_positions()
        self._keep_constants()
        if self._context.samples and self._narrow.name == "float16":
            self._keep_ranges()
        return self._solved()

    def replan(self, kept: Mapping[ir.Node, str]) -> Plan:
        """Return the plan that `plan` made with these nodes kept in FP32 as well; node -> what was measured."""
        before = dict(self._kept)
        for node, reason in kept.items():
            self._keep([node], reason, "sensitivity")
        solved = self._solved()
        self._kept = before
        return solved

    def relaxed(self) -> Iterator[Plan]:
        """Yield the plan without those rules that the samples show to be over-cautious; the boldest first."""
        if not self.maxima:
            return
        harmless = _calm.calm(self.wiring, self._soft, self.maxima)
        bearable = [node for node in self._lossy if _calm.is_in_range(self.wiring, node, self.maxima, 1 / _HEADROOM)]
        for nodes in dict.fromkeys(map(tuple, ([*harmless, *bearable], harmless, bearable))):
            if nodes:
                yield self._without(nodes)

    def _without(self, nodes: Sequence[ir.Node]) -> Plan:
        """Return the plan in which nothing but casts keeps `nodes` in FP32."""
        before = dict(self._kept)
        for node in nodes:
            self._kept.pop(node, None)
        solved = self._solved()
        self._kept = before
        reason = f"{self._usual}; on the samples that does no harm"
        for node in nodes:
            if solved.decisions[node].dtype != FLOAT and node not in self._forced:
                solved.decisions[node] = Decision(self._narrow.dtype, reason)
        return solved

    def settle(self, plan: Plan) -> None:
        """Correct what was told of nodes that `plan`, one of those `relaxed`, lowers all the same."""
        for position, note in enumerate(self._context.notes):
            node, finding = self._told.get(note, (None, ""))
            if node is not None and plan.decisions[node].dtype != FLOAT:
                self._context.notes[position] = f"{finding}; on the samples that does no harm."

    def may_keep(self, node: ir.Node) -> bool:
        """Whether nobody has decided that `node` is lowered."""
        return node not in self._forced

    def _solved(self) -> Plan:
        lowered = self._cheapest()
        decisions = {node: self._decision(node, lowered) for node in self.wiring.nodes if self._touches(node)}
        return Plan(decisions, dict(self._clamps))

    def _touches(self, node: ir.Node) -> bool:
        return not is_constant(node) and any(
            value in self.wiring.wires for value in (*node.inputs, *node.outputs) if value is not None
        )

    def _decision(self, node: ir.Node, lowered: set[ir.Node]) -> Decision:
        if node in lowered:
            return Decision(self._narrow.dtype, self._forced.get(node, self._usual))
        by_default = Decision(FLOAT, "its neighbours are FP32, and staying so costs fewer casts", "casts")
        return self._kept.get(node, by_default)

    def _free(self) -> list[ir.Node]:
        return [node for node in self.wiring.nodes if node not in self._kept]

    def _keep(self, nodes: Iterable[ir.Node], reason: str | None, kind: str) -> None:
        if reason is not None:
            for node in nodes:
                if node not in self._forced:
                    self._kept.setdefault(node, Decision(FLOAT, reason, kind))

    def _keep_softly(self, node: ir.Node, reason: str | None, kind: str) -> None:
        if reason is not None and node not in self._forced and node not in self._kept:
            self._keep([node], reason, kind)
            self._soft[node] = None

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._context.notes.append(text)

    def _keep_fixed(self) -> None:
        told: set[str] = set()
        for node in self.wiring.nodes:
            reason = _rules.fixed_reason(self.wiring, node, self._context.target)
            self._keep([node], reason, "kernel")
            if reason and node.op_type in _rules.COMPUTE and node.op_type not in told and self._touches(node):
                told.add(node.op_type)
                self._note(f"lower-precision: {node.op_type} '{node_name(node)}' stays FP32: {reason}.")

    def _keep_named(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            found = [node for node in self.wiring.nodes if selects(pattern, node)]
            self._keep(found, f"named by the user ({pattern})", "user")
            if not found:
                self._note(f"lower-precision: keep '{pattern}' names no node of the model.")

    def _follow(self, given: PrecisionPlan) -> None:
        """Take over the float types of a plan; integer ones are for the quantizing steps."""
        matched = given.match(self.wiring.model)
        refused: list[NodePlan] = []
        rest = [e for e in matched.entries.values() if "int" in e.type] if given.precision in {"fp16", "bf16"} else []
        unscaled = [e for n, e in matched.entries.items() if e.scale and e.scale != self._scales.get(n, 0)]
        for node, entry in matched.entries.items():
            if entry.type == "float32":
                self._kept.setdefault(node, Decision(FLOAT, self._float_reason(entry.reason)))
            elif entry.type in {"float16", "bfloat16"} and entry.scale == self._scales.get(node, 0):
                if node in self._kept and self._touches(node):
                    refused.append(entry)
                elif node not in self._kept:
                    self._forced[node] = entry.reason if entry.reason == "user" else self._usual
        self._tell_entries("names no node of the model", "name no node of the model", matched.unknown)
        self._tell_entries("stays FP32 all the same", "stay FP32 all the same", refused)
        self._tell_entries("has an integer type, for --int8", "have integer types, for --int8", rest)
        self._tell_entries("has another scale than is needed", "have other scales than are needed", unscaled)

    def _tell_entries(self, one: str, many: str, entries: Sequence[NodePlan]) -> None:
        if entries:
            some = ", ".join(f"{entry.op} '{entry.node}'".lstrip() for entry in entries[:3])
            more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
            what = f"1 entry of the precision plan {one}" if len(entries) == 1 else f"{len(entries)} entries {many}"
            self._note(f"lower-precision: {what}: {some}{more}.")

    def _keep_positions(self) -> None:
        reason = (
            f"it computes with positions, and {self._narrow.label} is exact only up to {self._narrow.exact_integers}"
        )
        for node in self._free():
            floats = [value for value in node.outputs if value in self.wiring.wires]
            if floats and node.op_type not in _rules.MOVEMENT and self._origins[floats[0]] == Origin.POSITION:
                self._keep([node], reason, "sensitivity")

    def _keep_constants(self) -> None:
        limit = _calm.TOLERATED_LOSS if self._narrow.name == "float16" else _TOLERATED_LOSS_BF16
        for wire, tensor in self._literals():
            if not any(isinstance(use.side, ir.Node) and use.side not in self._kept for use in wire.uses):
                continue
            loss = _constants.examine(tensor, self._narrow)
            self.out_of_range |= loss.overflows(self._narrow) or loss.relative > limit
            if loss.overflows(self._narrow):
                self._handle_overflow(wire.value, tensor, loss)
            if loss.relative > limit:
                lost = f"{loss.relative:.1%} of its norm"
                reason = f"its constant '{wire.value.name}' is too small for {self._narrow.label}, which loses {lost}"
                linear = all(isinstance(use.side, ir.Node) and use.side.op_type in _LINEAR for use in wire.uses)
                may_bear = linear or loss.relative <= _BEARABLE_LOSS
                self._keep_noted((use.side for use in wire.uses), reason, may_bear=may_bear)

    def _literals(self) -> list[tuple[Wire, ir.TensorProtocol]]:
        """Return the constants, and the tensors that ConstantOfShape repeats."""
        found = list(self.wiring.constants())
        for node in self.wiring.nodes:
            wire = self.wiring.wires.get(node.outputs[0]) if node.outputs else None
            if node.op_type == "ConstantOfShape" and node.domain == "" and wire and "value" in node.attributes:
                found.append((wire, node.attributes["value"].as_tensor()))
        return found

    def _handle_overflow(self, value: ir.Value, tensor: ir.TensorProtocol, loss: _constants.Loss) -> None:
        flow = _masks.trace(value, self.wiring, self._origins)
        if flow.nodes and flow.is_mask:
            self._clamps[value] = _constants.clamped(tensor, self._narrow)
            return
        reason = f"'{value.name}' has values up to {loss.largest:.3g}, beyond the range of {self._narrow.label}"
        producer = value.producer()
        self._keep_noted([*flow.nodes, *([producer] if producer and flow.nodes else [])], reason)

    def _keep_noted(self, sides: Iterable[Side], reason: str, *, may_bear: bool = False) -> None:
        taken = self._kept.keys() | self._forced.keys()
        nodes = [side for side in sides if isinstance(side, ir.Node) and side not in taken]
        if nodes:
            self._lossy |= dict.fromkeys(nodes if may_bear else ())
            self._keep(nodes, reason, "range")
            begin = f"lower-precision: {nodes[0].op_type} '{node_name(nodes[0])}'"
            note = f"{begin} stays FP32: {reason}."
            self._told[note] = nodes[0], f"{begin}: {reason}"
            self._note(note)

    def _keep_ranges(self) -> None:
        softmax = {node.inputs[0]: node for node in self._free() if node.op_type == "Softmax" and node.inputs[0]}
        measured = [
            wire.value for wire in self.wiring.wires.values() if wire.source is not None and self._is_top(wire.value)
        ]
        queries = [Query(value.name) for value in measured if value.name]
        queries += [Query(value.name, MASKED) for value in softmax if value in measured and value.name]
        clamps = {value.name: tensor for value, tensor in self._clamps.items() if value.name}
        try:
            maxima = _ranges.measure(self.wiring.model, queries, self._context.samples, clamps)
        except InfconvError as error:
            self._note(f"lower-precision: no activation ranges: {error.message}")
            return
        self.maxima = {value: maxima[Query(value.name or "")] for value in measured}
        for value, largest in self.maxima.items():
            self._keep_range(self.wiring.wires[value], largest)
        for value, node in softmax.items():
            largest = maxima.get(Query(value.name or "", MASKED), 0.0)
            if largest > _LOGITS:
                self._keep(
                    self._logits(node),
                    f"logits of '{node.name}' reach {largest:.3g}: rounding them changes probabilities",
                    "range",
                )

    def _is_top(self, value: ir.Value) -> bool:
        return value.graph is self.wiring.model.graph

    def _keep_range(self, wire: Wire, largest: float) -> None:
        label = self._narrow.label
        reason = None
        if largest > _HEADROOM * self._narrow.largest:
            reason = f"'{wire.value.name}' reaches {largest:.3g} on the samples, too close to the limit of {label}"
        elif 0.0 < largest < self._narrow.smallest_normal:
            reason = f"'{wire.value.name}' stays below {largest:.1g} on the samples, where {label} loses bits"
        self.out_of_range |= reason is not None
        if reason and self.wiring.narrow.dtype in {wire.source, *(use.side for use in wire.uses)}:
            self._note(f"lower-precision: {reason}, and the model's border is {label} there.")
        nodes = [side for side in [wire.source, *(u.side for u in wire.uses)] if isinstance(side, ir.Node)]
        if reason and largest < 1.0:
            self._lossy |= dict.fromkeys(node for node in nodes if node not in self._kept)
        self._keep(nodes, reason, "range")

    def _logits(self, softmax: ir.Node) -> list[ir.Node]:
        """Return `softmax` and what lies between it and the products that make its logits, these included."""
        found, queue = {softmax: None}, [softmax]
        while queue:
            node = queue.pop()
            for value in node.inputs if node.op_type not in _rules.COMPUTE else ():
                producer = None if value is None or value not in self.wiring.wires else value.producer()
                if producer is not None and producer not in found and self._makes_logits(producer):
                    found[producer] = None
                    queue.append(producer)
        return list(found)

    def _float_reason(self, reason: str) -> str:
        """Return the reason of an entry that asks for FP32; `user` where it still has the one for the narrow type."""
        return "user" if reason.startswith(self._usual) else reason

    @staticmethod
    def _makes_logits(node: ir.Node) -> bool:
        return node.op_type in _rules.COMPUTE | _rules.MOVEMENT | {"Add", "Sub", "Mul", "Div"}

    def _cheapest(self) -> set[ir.Node]:
        """Return the nodes to lower: of all ways that respect what is kept, the one with the fewest casts."""
        network = Network()
        vertices = {node: self._vertex(node, network) for node in self.wiring.nodes}
        sides = {FLOAT: Network.SINK, self._narrow.dtype: Network.SOURCE}

        def vertex(side: Side) -> int:
            return vertices[side] if isinstance(side, ir.Node) else sides[side]

        for wire in self.wiring.wires.values():
            if wire.source is None:
                continue
            uses = [vertex(use.side) for use in wire.uses]
            network.differ([vertex(wire.source), *uses], _CAST)
            if self._origins[wire.value] == Origin.POSITION:
                for use in uses:  # positions that an FP32 node reads must not pass through the narrow type
                    network.edge(vertex(wire.source), use, INFINITE)
        chosen = network.source_side()
        return {node for node in self._free() if vertices[node] in chosen}

    def _vertex(self, node: ir.Node, network: Network) -> int:
        if node in self._kept:
            return Network.SINK
        if node in self._forced or node.op_type in _rules.COMPUTE:
            return Network.SOURCE
        vertex = network.vertex()
        cost = _MOVEMENT if node.op_type in _rules.MOVEMENT else _ELEMENTWISE
        if node.op_type == "Cast" and self._narrow.dtype in {
            self.wiring.types.get(v) for v in (*node.inputs, *node.outputs) if v
        }:
            cost = _OWN_CAST
        network.edge(Network.SOURCE, vertex, cost)
        return vertex
