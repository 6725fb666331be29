"""Which operators should work on transposed tensors, so that the fewest Transposes are left.

An operator can work in one of two layouts: its current one, and another in which its operands and results are
permuted. All tensors that Transposes and such operators connect have two layouts, called colours 0 and 1. A tensor
needs a Transpose when an operator wants it in the other colour than it is computed in. Choosing a colour for each
operator at the least cost is a minimum cut; operators that know one layout only, inputs and outputs of the graph are
its fixed ends. (The same idea as for graph cuts in vision: Greig, Porteous, Seheult, J. R. Stat. Soc. B 51, 1989.)
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator
from functools import cached_property

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._min_cut import INFINITE, Network
from infconv.passes._moves import permutation
from infconv.passes._pattern import Refuse
from infconv.passes._permute import Perm, Plan, inverse, is_identity, plan, then

_TRANSPOSE, _ELEMENT = 1 << 72, 1 << 22
"""What a Transpose costs, and each element that it moves: a smaller number of Transposes always wins."""
_UNKNOWN_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Use:
    """Where a tensor goes to, directly or through Transposes."""

    node: ir.Node | None
    """None for an output of the graph."""
    index: int
    """The position among the inputs of the node, or among the outputs of the graph."""
    perm: Perm | None
    """What the Transposes on the way do; None when there are none."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What is known of a value that no Transpose computes, and that has two layouts."""

    perm: Perm
    """From the current layout to the other."""
    colour: int
    """Of the current layout."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A node that can work in two layouts."""

    plan: Plan
    colour: int
    """Of the current layout."""
    region: int


def transpose_of(node: ir.Node | None) -> Perm | None:
    """Return what `node` does when it is a Transpose, else None."""
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    try:
        return permutation(node)
    except Refuse:
        return None


class Layouts:
    """The operators of one graph and their layouts."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.operators: dict[ir.Node, Operator] = {}
        self.tensors: dict[ir.Value, Tensor] = {}
        self._rejected: set[tuple[ir.Node, Perm]] = set()
        self._uses: dict[ir.Value, list[Use]] = {}
        self._costs: dict[ir.Value, int] = {}
        self.regions = 0
        for node in graph:
            perm = transpose_of(node)
            source = node.inputs[0] if perm is not None else None
            if perm is None or source is None or is_identity(perm):
                continue
            root, before = self.root(source)
            if root not in self.tensors:
                self._grow(root, perm if before is None else then(before, perm))

    # --- values ----------------------------------------------------------------------------------------------------

    @cached_property
    def _outputs(self) -> dict[ir.Value, list[int]]:
        found: dict[ir.Value, list[int]] = {}
        for position, value in enumerate(self.graph.outputs):
            found.setdefault(value, []).append(position)
        return found

    def root(self, value: ir.Value) -> tuple[ir.Value, Perm | None]:
        """Return the value before any Transposes that `value` comes from, and what they do."""
        perms: list[Perm] = []
        node = value.producer()
        while (perm := transpose_of(node)) is not None and node is not None and node.graph is self.graph:
            source = node.inputs[0]
            if source is None:
                break
            perms.append(perm)
            value, node = source, source.producer()
        total: Perm | None = None
        for perm in reversed(perms):
            total = perm if total is None else then(total, perm)
        return value, total

    def uses(self, value: ir.Value) -> list[Use]:
        """Return where a root value goes to, in a fixed order."""
        if value not in self._uses:
            self._uses[value] = list(self._find_uses(value, None))
        return self._uses[value]

    def _find_uses(self, value: ir.Value, perm: Perm | None) -> Iterator[Use]:
        for position in self._outputs.get(value, ()):
            yield Use(None, position, perm)
        for node, index in value.uses():
            own = transpose_of(node) if node.graph is self.graph else None
            if own is None:
                yield Use(node, index, perm)
            else:
                yield from self._find_uses(node.outputs[0], own if perm is None else then(perm, own))

    # --- growing regions -------------------------------------------------------------------------------------------

    def _grow(self, root: ir.Value, perm: Perm) -> None:
        """Find everything that is connected to `root`, which is used in its current layout and in `perm` of it."""
        self.tensors[root] = Tensor(perm, 0)
        queue = deque([root])
        while queue:
            value = queue.popleft()
            tensor = self.tensors[value]
            producer = value.producer()
            if producer is not None and producer.graph is self.graph:
                queue += self._accept(producer, value.index() or 0, tensor.perm, tensor.colour, of_output=True)
            for use in self.uses(value):
                if use.node is None or use.node.graph is not self.graph:
                    continue
                if use.perm is None or is_identity(use.perm):
                    queue += self._accept(use.node, use.index, tensor.perm, tensor.colour)
                elif use.perm == tensor.perm:
                    queue += self._accept(use.node, use.index, inverse(use.perm), 1 - tensor.colour)
        self.regions += 1

    def _accept(self, node: ir.Node, index: int, perm: Perm, colour: int, *, of_output: bool = False) -> list[ir.Value]:
        """Take in an operator if it can work with this input (or output) transposed; return the values new with it."""
        if node in self.operators or (node, perm) in self._rejected or transpose_of(node) is not None:
            return []
        found = plan(node, perm, of_output=of_output, opset=self.opset)
        if found is not None and (found.outputs if of_output else found.inputs)[index] != perm:
            return []  # not this operand: the indices of a Gather, the limits of a Clip
        touched = None if found is None else self._touched(node, found, colour)
        if found is None or touched is None:
            self._rejected.add((node, perm))
            return []
        self.operators[node] = Operator(found, colour, self.regions)
        new = [value for value in touched if value not in self.tensors]
        self.tensors.update(touched)
        return new

    def _touched(self, node: ir.Node, found: Plan, colour: int) -> dict[ir.Value, Tensor] | None:
        """Return the values that a planned operator joins; None when one of them has other layouts."""
        touched: dict[ir.Value, Tensor] = {}
        for value, perm in zip(node.outputs, found.outputs, strict=True):
            if perm is not None and not self._join(touched, value, Tensor(perm, colour)):
                return None
        for value, perm in zip(node.inputs, found.inputs, strict=True):
            if value is None or perm is None:
                continue
            root, before = self.root(value)
            if before is None or is_identity(before):
                fits = self._join(touched, root, Tensor(perm, colour))
            else:
                # the other layout of the operand is the current one of the root, or a third
                fits = not is_identity(then(before, perm)) or self._join(touched, root, Tensor(before, 1 - colour))
            if not fits:
                return None
        return touched

    def _join(self, touched: dict[ir.Value, Tensor], value: ir.Value, tensor: Tensor) -> bool:
        """Note a value and its layouts; return whether they are what was known of it."""
        if is_identity(tensor.perm):
            return True
        known = self.tensors.get(value) or touched.setdefault(value, tensor)
        return known == tensor

    # --- choosing --------------------------------------------------------------------------------------------------

    def choose(self) -> set[ir.Node]:
        """Return the operators that should work in their other layout."""
        network = Network()
        vertices = {node: network.vertex() for node in self.operators}
        for node, operator in self.operators.items():
            network.connect(*((0, vertices[node]) if operator.colour == 0 else (vertices[node], 1)), 1)
        for value, tensor in self.tensors.items():
            self._connect(network, vertices, value, tensor)
        zeros = network.source_side()
        flipped = {node for node, o in self.operators.items() if (vertices[node] not in zeros) != bool(o.colour)}
        return self._worthwhile(flipped)

    def _connect(self, network: Network, vertices: dict[ir.Node, int], value: ir.Value, tensor: Tensor) -> None:
        """Add the cost of a value that is wanted in the colour in which it is not computed."""
        own = self._computed(value, tensor, vertices)
        found = {self._wanted(use, tensor, vertices) for use in self.uses(value)}
        wanted = sorted(user for user in found if user is not None and user != own)
        cost = self._price(value)
        if len(wanted) == 1:
            network.connect(own, wanted[0], cost, cost)
        elif wanted:
            one, zero = network.vertex(), network.vertex()
            network.connect(own, one, cost)
            network.connect(zero, own, cost)
            for user in wanted:
                network.connect(one, user, INFINITE)
                network.connect(user, zero, INFINITE)

    def _computed(self, value: ir.Value, tensor: Tensor, vertices: dict[ir.Node, int]) -> int:
        """Return the vertex of the colour in which a value is computed."""
        producer = value.producer()
        operator = self.operators.get(producer) if producer is not None else None
        if producer is None or operator is None or operator.colour != tensor.colour:
            return tensor.colour
        return vertices[producer] if operator.plan.outputs[value.index() or 0] == tensor.perm else tensor.colour

    def _wanted(self, use: Use, tensor: Tensor, vertices: dict[ir.Node, int]) -> int | None:
        """Return the vertex of the colour that a use wants; None for one that is in neither colour."""
        direct = use.perm is None or is_identity(use.perm)
        if not direct and use.perm != tensor.perm:
            return None
        current = tensor.colour if direct else 1 - tensor.colour
        operator = self.operators.get(use.node) if use.node is not None else None
        wanted = None if operator is None else operator.plan.inputs[use.index]
        if use.node is None or operator is None or wanted is None:
            return current
        return vertices[use.node] if operator.colour == current else None

    def _worthwhile(self, flipped: set[ir.Node]) -> set[ir.Node]:
        """Return the part of `flipped` in regions where the true cost gets less; the cut leaves third layouts out."""
        before: dict[int, int] = {}
        after: dict[int, int] = {}
        for value in self._involved(flipped):
            region = self._region(value, flipped)
            before[region] = before.get(region, 0) + self.cost(value, set())
            after[region] = after.get(region, 0) + self.cost(value, flipped)
        good = {region for region, cost in after.items() if cost < before[region]}
        chosen = {node for node in flipped if self.operators[node].region in good}
        values = self._involved(chosen)
        total = sum(self.cost(value, chosen) for value in values), sum(self.cost(value, set()) for value in values)
        return chosen if total[0] < total[1] else set()

    def _involved(self, flipped: set[ir.Node]) -> list[ir.Value]:
        """Return the root values that flipped operators read or write."""
        found: dict[ir.Value, None] = {}
        for node in self.operators:
            if node in flipped:
                found.update(dict.fromkeys(self.moved(node)))
        return list(found)

    def moved(self, node: ir.Node) -> list[ir.Value]:
        """Return the root values that an operator would read or write in another layout."""
        found = self.operators[node].plan
        read = [v for v, perm in zip(node.inputs, found.inputs, strict=True) if v is not None and perm is not None]
        written = [value for value, perm in zip(node.outputs, found.outputs, strict=True) if perm is not None]
        return [*(self.root(value)[0] for value in read), *written]

    def _region(self, value: ir.Value, flipped: set[ir.Node]) -> int:
        nodes: list[ir.Node | None] = [value.producer(), *(use.node for use in self.uses(value))]
        return next(self.operators[node].region for node in nodes if node is not None and node in flipped)

    # --- what a choice means ---------------------------------------------------------------------------------------

    def provided(self, value: ir.Value, flipped: set[ir.Node]) -> Perm | None:
        """Return how a root value is transposed after the choice; None for not at all."""
        producer = value.producer()
        if producer is None or producer not in flipped:
            return None
        return self.operators[producer].plan.outputs[value.index() or 0]

    def required(self, use: Use, flipped: set[ir.Node]) -> Perm | None:
        """Return how a use wants a root value, as it is now, transposed; None for not at all."""
        wanted = (
            self.operators[use.node].plan.inputs[use.index] if use.node is not None and use.node in flipped else None
        )
        total = use.perm if wanted is None else wanted if use.perm is None else then(use.perm, wanted)
        return None if total is None or is_identity(total) else total

    def cost(self, value: ir.Value, flipped: set[ir.Node]) -> int:
        """Return what the Transposes of a root value cost."""
        wanted = {self.required(use, flipped) for use in self.uses(value)} - {self.provided(value, flipped)}
        return len(wanted) * self._price(value)

    def _price(self, value: ir.Value) -> int:
        """Return what one Transpose of a value costs."""
        if value not in self._costs:
            shape = _values.known_shape(value)
            self._costs[value] = _TRANSPOSE + _ELEMENT * (_UNKNOWN_SIZE if shape is None else math.prod(shape))
        return self._costs[value]
