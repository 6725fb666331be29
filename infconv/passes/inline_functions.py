"""Model-local functions, which few runtimes and no pattern look into, become part of the graph."""

from __future__ import annotations

import graphlib
from collections import deque

import onnx_ir as ir

from infconv.errors import SourceError, UnsupportedError
from infconv.passes._base import Context, Pass
from infconv.passes._build import Names
from infconv.passes._functions import inline, reachable
from infconv.passes._graphs import DEFAULT_DOMAINS, nested_nodes, scopes, standard_opset
from infconv.passes._opset import CannotConvert, convert_scopes


class InlineFunctions(Pass):
    """Replace every call of a function that the model defines by the function's body, and remove the functions.

    Functions within functions, overloads, attribute parameters with their defaults and subgraphs are handled. Where
    opsets differ, the model and its functions are first raised to the highest of them. Operators of ONNX that are
    defined as functions in the standard (Gelu, CastLike) are no functions of the model and stay.

    With `twice (a) => (b) { b = Add(a, a) }`, `y = twice(x)` becomes `y = Add(x, x)`.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many calls were inlined and functions removed.

        Raises UnsupportedError when the opset of a function cannot be brought in line, SourceError for functions that
        call themselves and calls that do not fit.
        """
        if not model.functions:
            return 0
        _refuse_recursion(model)
        removed = len(model.functions)
        used = reachable(model)
        for name in model.functions.keys() - used:
            del model.functions[name]
        _unify_opsets(model, context)
        calls = _inline_all(model)
        model.functions.clear()
        return calls + removed


def _refuse_recursion(model: ir.Model) -> None:
    calls = {
        name: {node.op_identifier() for node in function.all_nodes()} & model.functions.keys()
        for name, function in model.functions.items()
    }
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(name for _, name, _ in error.args[1])
        raise SourceError(f"The functions of the model call each other in a circle: {cycle}.") from error


def _unify_opsets(model: ir.Model, context: Context) -> None:
    """Bring the model and its functions to one version of each operator set."""
    versions = [standard_opset(scope.opset_imports) for scope in scopes(model)]
    known = {version for version in versions if version is not None}
    if len(known) > 1:
        try:
            convert_scopes(model, max(known))
        except CannotConvert as reason:
            raise UnsupportedError(
                f"The model's functions are written for other opsets than the model, and {reason}.",
                "Export the model with one opset for all of it.",
            ) from reason
        context.notes.append(f"The opset was raised to {max(known)}, that of the model's functions.")
    for function in model.functions.values():
        _merge_imports(model.graph.opset_imports, function)


def _merge_imports(imports: dict[str, int], function: ir.Function) -> None:
    used = {node.domain for node in function.all_nodes()}
    for domain, version in function.opset_imports.items():
        if domain in DEFAULT_DOMAINS and standard_opset(imports) is not None:
            continue
        if domain in imports and imports[domain] != version and domain in used:
            raise UnsupportedError(
                f"The function '{function.name}' uses version {version} of the operators of '{domain}', "
                f"the model uses version {imports[domain]}.",
                "Export the model with one version of them.",
            )
        if domain in used:
            imports.setdefault(domain, version)


def _inline_all(model: ir.Model) -> int:
    functions, names = model.functions, Names(model)
    queue = deque(node for node in model.graph.all_nodes() if node.op_identifier() in functions)
    calls = 0
    while queue:
        call = queue.popleft()
        try:
            made = inline(call, functions[call.op_identifier()], names)
        except ValueError as error:
            raise SourceError(f"The model is not valid ONNX: {error}.") from error
        calls += 1
        everything = (inner for node in made for inner in (node, *nested_nodes(node)))
        queue.extend(node for node in everything if node.op_identifier() in functions)
    return calls
