"""The precision plan as a file: for each node its type and the reason, to be read, edited and applied again.

    version: 1
    precision: fp16
    nodes:
    - {node: /layer.0/MatMul, op: MatMul, type: float16, reason: computes in FP16, id: 3f02c41b9d7e, form: 81aa…}
    - {node: /layer.0/Softmax, op: Softmax, type: float32, reason: 'range: logits reach 812', id: …, form: …}

An entry finds its node by `id` (see `_identity`), else by name and operator, else by `form`: so a plan that was made
for one target serves the others, and outlives renames, a new export and training. An entry that a user writes needs
no more than `node` and `type`; its `node` may be a pattern (`*/attention/*`) or an operator (`op:Softmax`).

A plan for INT8 with calibration has the scales and zero points as well (`quantization`), and at its end `biases`: so it
can be applied again without the data.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from infconv.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.quantize._identity import Identity

Precision = Literal["fp16", "bf16", "int8", "int4"]
TYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int4", "uint4")
SUFFIX = ".precision.yaml"
"""Follows the artifact's name."""
_VERSION = 1
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
_KEYS = ("version", "precision", "facts", "nodes", "biases")
_TEXTS = ("node", "op", "type", "reason", "id", "form")
_FIELDS = (*_TEXTS, "scale", "quantization")
_SITE = re.compile(r"(input|output) \d+")


@dataclasses.dataclass(frozen=True)
class NodePlan:
    """The type that a node computes in, and why."""

    node: str
    """The node's name, or its first output's; in an entry without `id` also a pattern, or `op:Softmax`."""
    type: str
    """One of `TYPES`."""
    reason: str = "user"
    """`kind: explanation`; the kinds are range, reduction, sensitivity, kernel, casts and user."""
    op: str = ""
    """`Conv`; `com.microsoft.FusedConv` outside the standard domain."""
    id: str = ""
    form: str = ""
    scale: int = 0
    """The node writes 2^scale times what it wrote in FP32, to fit the type: its constants have taken the factor."""
    quantization: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict[str, Mapping[str, Any]])
    """Of an integer type: `input 0`, `input 1` … or `output 0` … -> its parameters: of a tensor e.g. {type: uint8,
    scale: 0.02, zero_point: 3, scheme: mse}, of a weight {axis: 0, largest: 127}. Plain data; a scale for each
    channel is a list."""

    @property
    def is_pattern(self) -> bool:
        """Whether `node` may stand for many nodes."""
        return not self.id and not self.form and (self.node.startswith("op:") or any(c in self.node for c in "*?["))


@dataclasses.dataclass(frozen=True)
class Matched:
    """A plan laid on a model."""

    entries: dict[ir.Node, NodePlan]
    unknown: list[NodePlan]
    """Entries that name no node of the model."""


@dataclasses.dataclass(frozen=True)
class PrecisionPlan:
    """A type and a reason for every node that computes with floats, in the model's order."""

    precision: Precision
    """What the plan was made for: fp16, bf16, int8 or int4."""
    nodes: Sequence[NodePlan] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """Figures for the reader: how many nodes of which type, the error that was measured."""
    biases: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict[str, Sequence[float]])
    """`id` of a quantised layer -> its bias, which makes up for the mean error of the rounded weights (float32)."""

    @property
    def has_scales(self) -> bool:
        """Whether it says how activations are quantised, as calibration found."""
        return any("scale" in parameters for entry in self.nodes for parameters in entry.quantization.values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrecisionPlan:
        """Read a plan, YAML or JSON. Raises UsageError naming the entry that is wrong."""
        import yaml

        try:
            data = yaml.load(Path(path).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except OSError as error:
            raise UsageError(f"Cannot read the precision plan '{path}': {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"The precision plan '{path}' is not YAML: {str(error).splitlines()[0]}.") from error
        return _parse(data, f"The precision plan '{path}'")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as YAML."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """Return the file's text: one line for each node."""
        head = f"version: {_VERSION}\nprecision: {self.precision}\n"
        facts = _dump({"facts": dict(self.facts)}, 120) if self.facts else ""
        nodes = _dump({"nodes": [_as_data(entry) for entry in self.nodes]}, 1 << 20)
        lists = {name: list(values) for name, values in self.biases.items()}
        return head + facts + nodes + (_dump({"biases": lists}, 120) if lists else "")

    def match(self, model: ir.Model) -> Matched:
        """Find the node of each entry: by identity, by name and operator, by form, by pattern.

        A later entry wins over an earlier pattern; what no entry names is in no result.
        """
        return _Matcher(model).match(self.nodes)


def plan_of(
    model: ir.Model, types: Mapping[ir.Node, tuple[str, str]], known: Mapping[ir.Node, Identity] | None = None
) -> dict[ir.Node, NodePlan]:
    """Return an entry for each node in `types`, which has (type, reason), in the model's order.

    `known` has the nodes' identities, for a model that has changed since; nodes that are not in it are left out.
    """
    from infconv.quantize._identity import identities

    found = identities(model) if known is None else known
    return {
        node: NodePlan(node_name(node), *types[node], operator(node), found[node].id, found[node].form)
        for node in model.graph.all_nodes()
        if node in types and node in found
    }


def node_name(node: ir.Node) -> str:
    """Return the node's name; without one, that of its first output."""
    return node.name or next((value.name for value in node.outputs if value.name), "")


def operator(node: ir.Node) -> str:
    """Return `Conv`, or `com.microsoft.FusedConv` outside the standard domain."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


class _Matcher:
    def __init__(self, model: ir.Model) -> None:
        from infconv.quantize._identity import identities

        self._identities = identities(model)
        self._by_id = {identity.id: node for node, identity in self._identities.items()}
        self._by_form = {identity.form: node for node, identity in self._identities.items()}
        self._by_name = _unique((name, node) for node in self._identities for name in _names(node))
        self._found: dict[ir.Node, NodePlan] = {}
        self._matched: set[int] = set()

    def match(self, entries: Sequence[NodePlan]) -> Matched:
        # One way for all entries before the next: an entry's own node must not go to one that merely looks like it.
        for entry in entries:
            self._take(entry, self._by_id.get(entry.id) if entry.id else None)
        for entry in entries:
            node = self._by_name.get(entry.node)  # a name may look like a pattern: `layer[0]/MatMul`
            self._take(entry, node if node and entry.op in {"", operator(node)} else None)
        for entry in entries:
            self._take(entry, self._by_form.get(entry.form) if entry.form else None)
        patterns = [entry for entry in entries if entry.is_pattern]
        for entry in reversed(patterns):
            self._take_all(entry)
        order = {node: self._found[node] for node in self._identities if node in self._found}
        return Matched(order, [entry for entry in entries if id(entry) not in self._matched])

    def _take(self, entry: NodePlan, node: ir.Node | None) -> None:
        if node is None or node in self._found or id(entry) in self._matched:
            return
        self._found[node] = entry
        self._matched.add(id(entry))

    def _take_all(self, entry: NodePlan) -> None:
        for node in self._identities:
            if selects(entry.node, node):
                self._matched.add(id(entry))
                self._found.setdefault(node, entry)


def selects(pattern: str, node: ir.Node) -> bool:
    """Whether `pattern` means `node`: its name, an fnmatch pattern of it, or `op:Softmax`."""
    if pattern.startswith("op:"):
        return fnmatchcase(node.op_type, pattern.removeprefix("op:"))
    return node.name == pattern or fnmatchcase(node.name or "", pattern)


def _names(node: ir.Node) -> list[str]:
    return list(dict.fromkeys(name for name in (node.name, *(v.name for v in node.outputs)) if name))


def _unique(pairs: Iterable[tuple[str, ir.Node]]) -> dict[str, ir.Node]:
    """Return name -> node for the names that mean one node only."""
    found: dict[str, ir.Node | None] = {}
    for name, node in pairs:
        found[name] = node if name not in found else None
    return {name: node for name, node in found.items() if node is not None}


def _dump(data: Any, width: int) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=width)


def _as_data(entry: NodePlan) -> dict[str, Any]:
    data = {name: getattr(entry, name) for name in _FIELDS if getattr(entry, name)}
    if entry.quantization:
        data["quantization"] = {name: dict(parameters) for name, parameters in entry.quantization.items()}
    return data


def _parse(data: Any, where: str) -> PrecisionPlan:
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise UsageError(f"{where} must be a mapping with `version: 1`, `precision` and `nodes`, a list.")
    if data.get("version") != _VERSION:
        raise UsageError(f"{where} has version {data.get('version')}; this infconv reads version {_VERSION}.")
    if data.get("precision") not in get_args(Precision):
        wanted = ", ".join(get_args(Precision))
        raise UsageError(f"{where} must have `precision`: {wanted}.", f"Found: {data.get('precision')}.")
    for key in data:
        if key not in _KEYS:
            raise UsageError(f"{where} has the unknown key '{key}'.", did_you_mean(str(key), _KEYS))
    entries = [_parse_entry(item, f"{where}, entry {number}") for number, item in enumerate(data["nodes"], 1)]
    seen: dict[tuple[str, str], int] = {}
    for number, entry in enumerate(entries, 1):
        first = seen.setdefault((entry.node, entry.op), number) if not (entry.id or entry.form) else number
        if first != number:
            raise UsageError(f"{where}, entry {number}, is for '{entry.node}' like entry {first}.", "Leave one out.")
    facts, biases = data.get("facts") or {}, data.get("biases") or {}
    if not isinstance(facts, dict):
        raise UsageError(f"{where} has `facts` that are no mapping.")
    if not isinstance(biases, dict) or not all(_is_numbers(values) for values in biases.values()):
        raise UsageError(f"{where} must have `biases` that are lists of numbers, by the id of a node.")
    return PrecisionPlan(data["precision"], entries, facts, {str(name): values for name, values in biases.items()})


def _parse_entry(item: Any, where: str) -> NodePlan:
    if not isinstance(item, dict) or not isinstance(item.get("node"), str) or not isinstance(item.get("type"), str):
        raise UsageError(f"{where}, must be a mapping with `node` and `type`.", "Example: {node: fc1, type: float32}")
    for key, value in item.items():
        if key not in _FIELDS:
            raise UsageError(f"{where}, has the unknown key '{key}'.", did_you_mean(str(key), _FIELDS))
        if key in _TEXTS and not isinstance(value, str):
            raise UsageError(f"{where}, has {key}: {value}, which is not text.", f"Quote it: {key}: '{value}'")
    if item["type"] not in TYPES:
        raise UsageError(f"{where}, has the unknown type '{item['type']}'.", did_you_mean(item["type"], TYPES))
    if not _is_integer(item.get("scale", 0)):
        raise UsageError(f"{where}, has scale: {item['scale']}; it is a whole number, the exponent of a power of two.")
    _check_quantization(item.get("quantization", {}), where)
    return NodePlan(**item)


def _check_quantization(sites: Any, where: str) -> None:
    if not isinstance(sites, dict):
        raise UsageError(f"{where}, has a `quantization` that is no mapping.")
    for site, parameters in sites.items():
        if not _SITE.fullmatch(str(site)) or not isinstance(parameters, dict):
            raise UsageError(f"{where}, must have `input 0: {{…}}` or `output 0: {{…}}` as quantization, not '{site}'.")
        scale, kind = parameters.get("scale", 1.0), parameters.get("type", "int8")
        if not all(
            _is_number(each) and 0 < each < math.inf for each in (scale if isinstance(scale, list) else [scale])
        ):
            raise UsageError(f"{where}, has for {site} the scale {scale}; it must be a positive number.")
        if kind not in _LIMITS:
            raise UsageError(f"{where}, has for {site} the type '{kind}'; it must be int8 or uint8.")
        zero, (least, most) = parameters.get("zero_point", 0), _LIMITS[kind]
        if not _is_integer(zero) or not least <= zero <= most:
            raise UsageError(f"{where}, has for {site} the zero_point {zero}; {kind} goes from {least} to {most}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(_is_number(value) for value in values)
