"""From two models that differ to the first node that computes something else, cut out of both."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv import repro
from infconv.align import Layer, align, blamed, first_divergence
from infconv.bisect import Bisection, size
from infconv.bodies import Observed, observe
from infconv.compare import Tolerance, compare_outputs
from infconv.reduce import Cutter
from infconv.reference import Sample
from infconv.run_artifact import Runnable, open_runnable
from infconv.spec import SourceEntry
from infconv.verify import Fault

if TYPE_CHECKING:
    import onnx_ir as ir


def bisect_models(
    a: SourceEntry, b: SourceEntry, *, inputs: str | None, tolerance: Tolerance, seed: int, folder: Path
) -> Bisection:
    """Find where `b` first computes something else than `a`, and write `folder`. An empty Bisection: nowhere.

    Both are run as they are written, without a runtime's optimizations. Raises UnsupportedError for what has no ONNX
    graph, SourceError when one of them cannot be read.
    """
    repro.check_folder(folder)
    with (
        tempfile.TemporaryDirectory(prefix="infconv-") as workdir,
        open_runnable(a, Path(workdir) / "a") as first,
        open_runnable(b, Path(workdir) / "b") as second,
    ):
        mine, theirs = first.graph(), second.graph()
        for sample in first.samples(seed) if inputs is None else first.load_samples(inputs):
            found = _compare(first, mine, theirs, sample, tolerance, folder)
            if found.culprit:
                return found
    return Bisection()


def _compare(
    first: Runnable, a: ir.Model, b: ir.Model, sample: Sample, tolerance: Tolerance, folder: Path
) -> Bisection:
    seen_a, seen_b = observe(a, sample.inputs), observe(b, sample.inputs)
    of_a, of_b = seen_a.values, seen_b.values
    outputs = [v.name or "" for v in a.graph.outputs], [v.name or "" for v in b.graph.outputs]
    errors = compare_outputs({n: of_a[n] for n in outputs[0]}, {n: of_b[n] for n in outputs[1]}, tolerance)
    wrong = next((error for error in errors if not error.ok), None)
    if wrong is None:
        return Bisection()
    fault = Fault("differs", f"output '{wrong.name}' at {sample.label}: {wrong.reason}", sample.label, wrong.name)
    layers = align(seen_a.model, seen_b.model, of_a, of_b, tolerance)
    layer = first_divergence(layers, seen_b.model)
    parts = None if layer is None else _cut(seen_a, seen_b, layers, layer)
    if parts is None:
        parts = a, b, dict(sample.inputs)
    node = "" if layer is None else blamed(layers, layer, seen_b.model)
    return _write(parts, fault, node, size(b), tolerance, folder)


def _cut(
    a: Observed, b: Observed, layers: Sequence[Layer], layer: Layer
) -> tuple[ir.Model, ir.Model, dict[str, Any]] | None:
    """Return the parts of both between the last values that agree and `layer`, with one name for each input and output.

    None where they cannot be cut out, or agree when they are fed the same.
    """
    partner = {v.name or "": v.name or "" for v in b.model.graph.inputs} | {x.b: x.a for x in layers if x.error.ok}
    fed = {**b.values, **{n: a.values[p] for n, p in partner.items() if p in a.values}}
    theirs = _between(Cutter(b.model, fed), layer.b, set(partner))
    mine = _between(Cutter(a.model, a.values), layer.a, set(partner.values()))
    if theirs is None or mine is None:
        return None
    for value in theirs[0].graph.inputs:
        value.name = partner[value.name or ""]
    theirs[0].graph.outputs[0].name = layer.a
    feeds = {**mine[1].inputs, **{partner[name]: array for name, array in theirs[1].inputs.items()}}
    return mine[0], theirs[0], feeds


def _between(cutter: Cutter, name: str, border: set[str]) -> tuple[ir.Model, Sample] | None:
    """Return the nodes that compute the value `name` from values in `border`."""
    return cutter.cut(cutter.behind([name], border))


def _write(
    parts: tuple[ir.Model, ir.Model, dict[str, Any]],
    fault: Fault,
    node: str,
    before: int,
    tolerance: Tolerance,
    folder: Path,
) -> Bisection:
    a, b, feeds = parts
    _declare_missing(a, b, feeds)
    files = Path("reference.onnx"), Path("model.onnx"), Path("inputs.npz")
    command: list[str | Path] = ["infconv", "compare", *files[:2], "--inputs", files[2]]
    command += ["--rtol", f"{tolerance.rtol:g}", "--atol", f"{tolerance.atol:g}"] if not tolerance.scaled else []
    command += [] if tolerance.min_sqnr is None else ["--min-sqnr", f"{tolerance.min_sqnr:g}"]
    repro.write(folder, {"reference.onnx": a, "model.onnx": b}, {"inputs.npz": feeds}, None, command)
    written = repro.attempt(folder, command, repro.Expected((5,), ""))
    return Bisection("the second model", fault, node=node, nodes=size(b), nodes_before=before, repro=written)


def _declare_missing(a: ir.Model, b: ir.Model, feeds: Mapping[str, Any]) -> None:
    """Give the reference every input that is fed: it says what inputs there are."""
    import onnx_ir as ir

    known = {value.name for value in a.graph.inputs}
    for value in b.graph.inputs:
        if value.name not in known and value.name in feeds:
            a.graph.inputs.append(ir.Value(name=value.name, type=value.type, shape=value.shape))
