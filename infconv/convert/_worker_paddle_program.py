"""A Paddle 3 program as its JSON file has it: what goes in and out, where an operator comes from, and rewrites.

The layout is that of Paddle's PIR serializer. An operator is {"#": dialect.name, "A": attributes, "I": operands,
"O": results, "regions": ...}; an operand {"%": id}, with id 0 for an optional one that is left out; a result
{"%": id, "TT": type}. Parameters are compact: {"#": "p", "A": [.., .., .., name], "O": result, "OA": [stored, ..]}.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._worker import WorkerError

Op = dict[str, Any]

PARAMETER = "p"
INPUTS = ("1.data", "1.feed")
FETCH = "1.fetch"
STRUCTURE = ("0.", "2.")
"""Dialects of the program's own structure: builtin and control flow."""
REDUCTIONS = ("1.mean", "1.max", "1.min", "1.prod", "1.amax", "1.amin", "1.logsumexp", "1.all", "1.any", "1.sum")

TYPES = {
    "t_f32": "float32",
    "t_f64": "float64",
    "t_f16": "float16",
    "t_bf16": "bfloat16",
    "t_i64": "int64",
    "t_i32": "int32",
    "t_i16": "int16",
    "t_i8": "int8",
    "t_ui8": "uint8",
    "t_bool": "bool",
    "t_c64": "complex64",
    "t_c128": "complex128",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Name, numpy type name ("?" where it is none) and sizes, -1 for a dynamic one."""

    name: str
    dtype: str
    dims: tuple[int, ...]


class Program:
    """The main program of a model; `write` gives the file that the exporter reads."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.ops: list[Op] = document["program"]["regions"][0]["blocks"][0]["ops"]
        self._types = {result["%"]: result for op in self.all_ops() for result in (*results(op), *_arguments(op))}
        """The value of each id, with its type; those of a loop's arguments are negative."""
        self._ids = itertools.count(1 + max(self._types, default=0))

    @classmethod
    def read(cls, path: str) -> Program:
        """Read a file. Raises WorkerError (source) when it is cut short or of another layout."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WorkerError(
                "source", f"'{path}' is not a complete Paddle program: {error}.", "Save it again with paddle.jit.save."
            ) from error

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self._document, separators=(",", ":")), encoding="utf-8")

    def all_ops(self) -> Iterator[Op]:
        """Yield every operator, those of a branch or a loop after the operator that has it."""
        yield from _walk(self.ops)

    def inputs(self) -> list[Tensor]:
        """Return the inputs, in order."""
        return [_tensor(attribute(op, "name"), results(op)[0]) for op in self.ops if op["#"] in INPUTS]

    def outputs(self) -> list[Tensor]:
        """Return the outputs, in order."""
        return [_tensor(attribute(op, "name"), results(op)[0]) for op in self._fetches()]

    def parameters(self) -> list[Tensor]:
        """Return the parameters that the .pdiparams file holds, in its order: sorted by name."""
        stored = [op for op in self.ops if op["#"] == PARAMETER and op["OA"][0]]
        return sorted((_tensor(op["A"][3], results(op)[0]) for op in stored), key=lambda tensor: tensor.name)

    def layer_of(self, op: Op) -> str:
        """Return where `op` is in the user's model, as far as the file tells: its layer, or what comes before it."""
        own = attribute(op, "struct_name")
        if own:
            return f"in layer {own}"
        makers = {result["%"]: maker for maker in self.all_ops() for result in results(maker)}
        todo, seen = [op], set[int]()
        while todo:
            current = todo.pop(0)
            for operand in operands(current):
                maker = makers.get(operand)
                if maker is None or operand in seen:
                    continue
                seen.add(operand)
                layer = attribute(maker, "struct_name")
                if layer:
                    return f"after layer {layer}"
                if maker["#"] == PARAMETER:
                    return f"after the layer of parameter {maker['A'][3]}"
                todo.append(maker)
        return ""

    def refuse_aliases(self) -> None:
        """Raise WorkerError (source) for an output that is an input, which Paddle itself does not run."""
        given = {results(op)[0]["%"]: attribute(op, "name") for op in self.ops if op["#"] in INPUTS}
        for number, fetch in enumerate(self._fetches()):
            name = given.get(operands(fetch)[0])
            if name is not None and attribute(fetch, "name") == name:
                raise WorkerError(
                    "source",
                    f"Output {number} of this file is its input '{name}', and Paddle itself does not run it: "
                    "paddle.jit.save writes so where an input, or an input plus a constant, is returned.",
                    "Return paddle.assign(...) of that value from the model, and save it again.",
                )

    # --- rewrites: the same program in words that Paddle 3.2 and paddle2onnx read --------------------------------

    def narrow_scales(self) -> bool:
        """Store the `scale` of interpolations in float32 as Paddle <= 3.2 does, and tell whether that changed any.

        Paddle 3.3 writes float64, which Paddle 3.2 refuses and paddle2onnx reads as nothing.
        """
        entries = [e for op in self.all_ops() if op["#"].endswith("_interp") for e in op["A"] if e["N"] == "scale"]
        wide = [value for entry in entries for value in entry["AT"]["D"] if value["#"] == "0.a_f64"]
        for value in wide:
            value["#"] = "0.a_f32"
        return bool(wide)

    def name_outputs(self, names: list[str]) -> None:
        """Name the outputs."""
        for fetch, name in zip(self._fetches(), names, strict=True):
            _set(fetch, "name", name)

    def prepare(self) -> None:
        """Rewrite what paddle2onnx 2.1 reads wrongly or aborts on."""
        self.narrow_scales()
        empty = {results(op)[0]["%"]: op for op in self.all_ops() if _is_empty_list(op)}
        self._name_axes(self.ops, empty)
        self._separate_outputs()

    def _name_axes(self, ops: list[Op], empty: dict[int, Op]) -> None:
        """Write out the axes of reductions over all of them: paddle2onnx aborts on an empty list."""
        for op in list(ops):
            if op["#"] in REDUCTIONS and len(operands(op)) == 2 and operands(op)[1] in empty:
                rank = len(_tensor("", self._types[operands(op)[0]]).dims)
                axes: Op = json.loads(json.dumps(empty[operands(op)[1]]))
                _set(axes, "value", [{"#": "0.a_i64", "D": axis} for axis in range(rank)])
                axes["O"][0]["TT"]["D"][1] = [rank]
                self._give_id(axes["O"][0])
                op["I"][1] = {"%": axes["O"][0]["%"]}
                ops.insert(_index(ops, op), axes)
            for block in _blocks(op):
                self._name_axes(block["ops"], empty)

    def _separate_outputs(self) -> None:
        """Give each output a value of its own: paddle2onnx renames the value, which an input or a twin is too."""
        taken = {result["%"] for op in self.ops if op["#"] in (*INPUTS, PARAMETER) for result in results(op)}
        for fetch in self._fetches():
            value = operands(fetch)[0]
            if value in taken:
                copy = self._copy_for(fetch, value)
                self.ops.insert(_index(self.ops, fetch), copy)
            taken.add(value)

    def _copy_for(self, reader: Op, value: int) -> Op:
        """Return an operator that copies `value`, and have `reader`, a fetch, read the copy."""
        copied = self._give_id(json.loads(json.dumps(results(reader)[0])))
        reader["I"] = [{"%": copied["%"]}]
        return {"#": "1.assign", "A": [], "I": [{"%": value}], "O": [copied], "OA": [_stop_gradient()]}

    def _give_id(self, result: dict[str, Any]) -> dict[str, Any]:
        result["%"] = next(self._ids)
        self._types[result["%"]] = result
        return result

    def cut_out(self, op: Op, index: int) -> tuple[list[str], list[Tensor]]:
        """Take `op` out of the main block: its operands become outputs of the program, and its results inputs.

        Returns the names of those outputs ("" for an operand that is left out), and those inputs.
        """
        at = _index(self.ops, op)
        made: list[Tensor] = []
        for number, result in enumerate(results(op)):
            tensor = _tensor(f"infconv.custom.{index}.out.{number}", result)
            made.append(tensor)
            self.ops.insert(at + number, _input_op(tensor, result))
        del self.ops[_index(self.ops, op)]
        given: list[str] = []
        for number, operand in enumerate(operands(op)):
            given.append(f"infconv.custom.{index}.in.{number}" if operand else "")
            if operand:
                fetch = _fetch_op(given[-1], operand, self._types[operand], next(self._ids))
                self.ops += [self._copy_for(fetch, operand), fetch]
        return given, made

    def alone(self, op: Op) -> Program | None:
        """Return a program of inputs and this operator: to ask whether it is known. None where that cannot be made."""
        feeds: list[Op] = []
        for number, operand in enumerate(sorted({operand for operand in operands(op) if operand})):
            result = self._types[operand]
            tensor = _tensor(f"in{number}", result)
            if tensor.dtype == "?":
                return None
            feeds.append(_input_op(tensor, result))
        blocks = [{"#": "block_0", "args": [], "ops": [*feeds, op]}]
        return Program({**self._document, "program": {"regions": [{"#": "region_0", "blocks": blocks}]}})

    def _fetches(self) -> list[Op]:
        return sorted((op for op in self.ops if op["#"] == FETCH), key=lambda op: attribute(op, "col"))


def _walk(ops: list[Op]) -> Iterator[Op]:
    for op in ops:
        yield op
        for block in _blocks(op):
            yield from _walk(block["ops"])


def _blocks(op: Op) -> list[dict[str, Any]]:
    return [block for region in op.get("regions", []) for block in region["blocks"]]


def _arguments(op: Op) -> Iterator[dict[str, Any]]:
    for block in _blocks(op):
        for argument in block["args"]:
            yield {**argument, "%": argument["#"]}


def _index(ops: list[Op], op: Op) -> int:
    return next(i for i, each in enumerate(ops) if each is op)


def _is_empty_list(op: Op) -> bool:
    return op["#"] == "1.full_int_array" and attribute(op, "value") == []


def results(op: Op) -> list[dict[str, Any]]:
    """Return the results of `op`."""
    found = op.get("O", [])
    return found if isinstance(found, list) else [found]


def operands(op: Op) -> list[int]:
    """Return the ids that `op` reads; 0 stands for an optional operand that is left out."""
    return [operand["%"] for operand in op.get("I", [])]


def attribute(op: Op, name: str) -> Any:
    """Return the value of an attribute, None where there is none."""
    if op.get("#") == PARAMETER:
        return None
    return next((entry["AT"].get("D") for entry in op.get("A", []) if entry["N"] == name), None)


def attributes(op: Op) -> dict[str, Any]:
    """Return the attributes of `op` as plain values; lists are lists of those."""
    return {entry["N"]: _plain(entry["AT"].get("D")) for entry in op.get("A", []) if entry["N"] != "struct_name"}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return _plain(value.get("D")) if isinstance(value, dict) else value


def op_name(op: Op) -> str:
    """Return the name that Paddle's documentation has, without its dialect: `svd`."""
    return op["#"].partition(".")[2]


def _set(op: Op, name: str, value: Any) -> None:
    next(entry for entry in op["A"] if entry["N"] == name)["AT"]["D"] = value


def _tensor(name: str, result: dict[str, Any]) -> Tensor:
    described = result["TT"]
    if "D" not in described or not isinstance(described["D"][0], dict) or len(described["D"]) < 2:
        return Tensor(name, "?", ())
    kind, dims = described["D"][:2]
    return Tensor(name, TYPES.get(kind["#"].partition(".")[2], "?"), tuple(dims) if isinstance(dims, list) else ())


def _input_op(tensor: Tensor, result: dict[str, Any]) -> Op:
    return {
        "#": "1.data",
        "A": [
            _attribute("name", "0.a_str", tensor.name),
            _attribute("shape", "1.a_intarray", list(tensor.dims)),
            _attribute("dtype", "1.a_dtype", tensor.dtype),
            _attribute("place", "1.a_place", [0, 0, ""]),
        ],
        "I": [],
        "O": [result],
        "OA": [_stop_gradient()],
    }


def _fetch_op(name: str, value: int, result: dict[str, Any], new_id: int) -> Op:
    return {
        "#": FETCH,
        "A": [_attribute("name", "0.a_str", name), _attribute("col", "0.a_i32", 1 << 20)],
        "I": [{"%": value}],
        "O": [json.loads(json.dumps(result)) | {"%": new_id}],
        "OA": [_attribute("persistable", "0.a_array", [{"#": "0.a_bool", "D": True}]), _stop_gradient()],
    }


def _attribute(name: str, kind: str, value: Any) -> dict[str, Any]:
    return {"AT": {"#": kind, "D": value}, "N": name}


def _stop_gradient() -> dict[str, Any]:
    return _attribute("stop_gradient", "0.a_array", [{"#": "0.a_bool", "D": True}])
