"""The commands that show: inspect, passes, targets, frontends, doctor, compare."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infconv import console, environments, registry
from infconv.errors import UsageError, did_you_mean
from infconv.plain import plain

if TYPE_CHECKING:
    from infconv.bisect import Bisection
    from infconv.comparison import Comparison, LayerCheck
    from infconv.convert._base import DimRange
    from infconv.environments import Environment


def show_targets(json: bool) -> None:
    """List exporters with their precisions, shipped pipelines and whether they work here."""
    from infconv.options import ALIASES
    from infconv.steps import shipped

    rows: list[dict[str, Any]] = []
    for name, kind in registry.classes("exporter"):
        rows.append(
            {
                "target": name,
                "aliases": [alias for alias, full in ALIASES.items() if full == name],
                "summary": kind.summary(),
                "precisions": [p for p in kind.precisions if _pipeline(name, p) in shipped()],
                "pipelines": [p for p in shipped() if p == name or p.startswith(f"{name}-")],
                "options": {field: info.description or "" for field, info in kind.model_fields.items()},
                "available": _available(kind.requires),
            }
        )
    if json:
        console.print_json({"targets": rows})
        return
    table = [
        [r["target"], ", ".join(r["aliases"]), r["summary"], ", ".join(sorted(r["pipelines"])), r["available"] or "yes"]
        for r in rows
    ]
    console.print_table("", ["target", "alias", "makes", "shipped pipelines", "available"], table)


def _pipeline(target: str, precision: str) -> str:
    return target if precision == "fp32" else f"{target}-{precision}"


def _available(requires: dict[str, str]) -> str:
    """Return the command that installs what is missing; empty when nothing is."""
    missing = [extra for package, extra in requires.items() if importlib.util.find_spec(package) is None]
    return f"pip install 'infconv[{','.join(dict.fromkeys(missing))}]'" if missing else ""


def _frontend_state(name: str, requires: dict[str, str]) -> tuple[str, str]:
    """Return the command that installs what the frontend lacks, and the environment that has it; either is empty."""
    own = environments.find(name)
    if requires and own is not None and own.ok:
        return "", name
    missing = _available(requires)
    return (f"infconv env create {name}" if missing and name in environments.shipped() else missing), ""


def show_frontends(json: bool) -> None:
    """List frontends, the formats they read and whether they work here."""
    rows: list[dict[str, Any]] = [
        {
            "frontend": name,
            "summary": kind.summary,
            "formats": dict(kind.formats),
            "available": _frontend_state(name, kind.requires)[0],
        }
        for name, kind in registry.classes("frontend")
    ]
    if json:
        console.print_json({"frontends": rows})
        return
    table = [[r["frontend"], f"{k}: {text}", r["available"] or "yes"] for r in rows for k, text in r["formats"].items()]
    console.print_table("", ["frontend", "reads", "available"], table)


def show_passes(name: str | None, why: str | None, json: bool) -> None:
    """List the passes, show one in full, or tell why one does not apply to a model."""
    if why is not None:
        _show_why(name, why, json)
        return
    names = registry.names("pass")
    if name is not None and name not in names and ":" not in name:
        raise UsageError(f"Unknown pass '{name}'.", did_you_mean(name, names))
    rows = [_describe_pass(n, registry.get("pass", n)) for n in ([name] if name else names)]
    if json:
        console.print_json({"passes": rows})
    elif name is None:
        console.print_table("", ["pass", "does"], [[r["pass"], r["summary"]] for r in rows])
    else:
        console.print_mapping({"pass": rows[0]["pass"], "does": rows[0]["documentation"]})
        for option, described in rows[0]["options"].items():
            console.print_mapping({f"  {option}": f"{described['help']} (default {described['default']})"})


def _describe_pass(name: str, kind: Any) -> dict[str, Any]:
    texts = kind.option_help()
    options = {
        field: {
            "help": texts[field],
            "default": None if info.is_required() else plain(info.get_default(call_default_factory=True)),
        }
        for field, info in kind.model_fields.items()
    }
    return {"pass": name, "summary": kind.summary(), "documentation": (kind.__doc__ or "").strip(), "options": options}


def _show_why(name: str | None, path: str, json: bool) -> None:
    from infconv.convert import require_onnx
    from infconv.model import load
    from infconv.observe import Observers
    from infconv.passes import Context
    from infconv.runner import run_steps
    from infconv.steps import make_pass, resolve

    if name is None:
        raise UsageError("--why needs the pass's name.", "Example: infconv passes fuse-gelu --why model.onnx")
    require_onnx(path, "passes --why")
    model, context = load(path), Context(why=[])
    model, _ = run_steps(resolve(["prepare"]), model, Context(), Observers())
    changes = make_pass(name, {}).run(model, context)
    reasons = [plain(refusal) for refusal in context.why or []]
    if json:
        console.print_json({"pass": name, "model": path, "changes": changes, "refusals": reasons})
        return
    console.print_mapping({"changes": changes, "near misses": len(reasons)})
    console.print_table("", ["rule", "node", "reason"], [[r["rule"], r["node"], r["reason"]] for r in reasons])


def show_model(path: str, called: str, target: str | None, dims: Sequence[str], json: bool) -> None:
    """Show what an ONNX file, `called` so by the user, holds; with a target, what that target does not accept."""
    from infconv.census import compute_types, take_census
    from infconv.convert import require_onnx
    from infconv.footprint import footprint
    from infconv.model import load

    require_onnx(path, "inspect")
    model = load(path)
    census = take_census(model)
    document: dict[str, Any] = {
        "model": called,
        "ir_version": model.ir_version,
        "opsets": dict(model.opset_imports),
        "producer": f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        "inputs": [_describe_value(v) for v in model.graph.inputs if v.name not in model.graph.initializers],
        "outputs": [_describe_value(v) for v in model.graph.outputs],
        "nodes": census.nodes,
        "parameters": census.parameters,
        "weights_bytes": census.weights_bytes,
        "compute": compute_types(model),
        "operators": dict(census.operators),
    }
    if target is not None:
        document["refused"] = _refused(model, target)
    document["footprint"] = plain(footprint(model, _ranges(dims, model)))
    if json:
        console.print_json(document)
        return
    _print_model(document)


def _ranges(dims: Sequence[str], model: Any) -> dict[str, DimRange]:
    from infconv import texts
    from infconv.convert._base import DimRange
    from infconv.convert._inputs import apply_inputs

    ranges = {name: DimRange(**sizes) for name, sizes in texts.dims(dims).items()}
    apply_inputs(model, {}, ranges)
    return ranges


def _describe_value(value: Any) -> dict[str, Any]:
    from infconv.census import numpy_name

    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return {"name": value.name, "dtype": None if value.dtype is None else numpy_name(value.dtype), "shape": shape}


def _refused(model: Any, target: str) -> list[str]:
    """Return what `target` does not accept of the model: operator domains and opsets."""
    from infconv.options import ALIASES

    name = ALIASES.get(target, target)
    if name not in registry.names("exporter"):
        raise UsageError(f"Unknown target '{target}'.", did_you_mean(target, [*registry.names("exporter"), *ALIASES]))
    exporter = registry.get("exporter", name)
    from infconv.census import all_nodes, operator_name

    foreign = {operator_name(n) for n in all_nodes(model) if n.domain not in exporter.domains}
    functions = {f"{f.domain}.{f.name}" for f in model.functions.values()}
    reasons = [f"operator {n}: its domain is not accepted" for n in sorted(foreign - functions)]
    opset = model.opset_imports.get("", 0)
    if opset > exporter.max_opset:
        reasons.append(f"opset {opset}: the highest accepted is {exporter.max_opset} (--opset {exporter.max_opset})")
    return reasons


def _print_model(document: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in document["opsets"].items())
    console.print_mapping(
        {
            "model": document["model"],
            "producer": document["producer"],
            "opset": f"{opsets} (IR {document['ir_version']})",
            "nodes": document["nodes"],
            "parameters": f"{document['parameters']:,}",
            "weights": console.size(document["weights_bytes"]),
            "compute": ", ".join(f"{n} {kind}" for kind, n in document["compute"].items()) or "-",
            **_footprint_lines(document["footprint"]),
        }
    )
    values = [(kind, v) for kind in ("inputs", "outputs") for v in document[kind]]
    rows = [[kind[:-1], v["name"], str(v["dtype"]), str(v["shape"])] for kind, v in values]
    console.print_table("", ["", "name", "type", "shape"], rows)
    operators = [[name, str(count)] for name, count in document["operators"].items()]
    console.print_table("", ["operator", "count"], operators, right=("count",))
    if "refused" in document:
        console.print_table("", ["not accepted by the target"], [[r] for r in document["refused"]] or [["nothing"]])


def _footprint_lines(cost: Mapping[str, Any]) -> dict[str, str]:
    at = ", ".join(f"{name}={size}" for name, size in cost["sizes"].items())
    flops = "not known: a shape is missing" if cost["flops"] is None else f"{cost['flops'] / 1e9:,.3f} G"
    least = f", {cost['unknown']} values of unknown size aside" if cost["unknown"] else ""
    return {
        "FLOPs": flops + (f" at {at}" if at else ""),
        "activations": f"{console.size(cost['peak_bytes'])} at most, at {cost['peak_at']}{least}",
    }


def show_doctor(json: bool) -> None:
    """Show the frontends and targets that work here, the versions found, and what installs the rest."""
    from importlib import metadata

    packages = [
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "numpy",
        "torch",
        "transformers",
        "openvino",
        "tensorrt-rtx",
        "tensorrt",
    ]
    versions = {name: _version(metadata, name) for name in packages}
    parts = [("frontend", name, kind) for name, kind in registry.classes("frontend")]
    parts += [("target", name, kind) for name, kind in registry.classes("exporter")]
    rows: list[dict[str, Any]] = []
    for what, name, kind in parts:
        state = _frontend_state(name, kind.requires) if what == "frontend" else (_available(kind.requires), "")
        rows.append({"kind": what, "name": name, "install": state[0], "environment": state[1]})
    if json:
        made = [each.as_json() for each in environments.every()]
        console.print_json({"packages": versions, "parts": rows, "environments": made})
        return
    console.print_table("", ["package", "version"], [[k, v or "not installed"] for k, v in versions.items()])
    console.print_table("", ["", "name", "works"], [[r["kind"], r["name"], _works(r)] for r in rows])
    for each in environments.every():
        if each.outdated or not each.ok:
            console.print_mapping({f"environment {each.name}": _renewal(each)})


def _works(row: Mapping[str, Any]) -> str:
    found = environments.find(row["environment"]) if row["environment"] else None
    if found is None:
        return row["install"] or "yes"
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"yes, in environment {found.name} (Python {found.python}: {versions})"


def _renewal(found: Environment) -> str:
    return f"{found.problem or 'made from an older lock'}: infconv env create {found.name}"


def _version(metadata: Any, name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def show_comparison(comparison: Comparison, json: bool) -> None:
    """Show how the outputs of two models differ."""
    if json:
        console.print_json(plain(comparison))
        return
    figures = ("max abs", "max rel", "mean abs", "cosine", "SQNR dB")
    rows = [
        [
            *(check.label, o.name, "ok" if o.ok else o.reason),
            *map(_figure, (o.max_abs, o.max_rel, o.mean_abs, o.cosine, o.sqnr_db)),
            "-" if o.first is None else str(list(o.first)),
            "-" if o.agreement is None else f"{o.agreement:.2%}",
        ]
        for check in comparison.samples
        for o in check.outputs
    ]
    columns = ["inputs", "output", "", *figures, "first", "agree"]
    console.print_table("", columns, rows, right=figures)
    if comparison.layers is not None:
        _show_layers(comparison.layers)
    for note in comparison.notes:
        console.print_mapping({"note": note})


_SHOWN_LAYERS = 5


def _show_layers(check: LayerCheck) -> None:
    """Show where inner values first differ, with what comes before and after."""
    agree = sum(layer.error.ok for layer in check.layers)
    summary = f"{len(check.layers)} of {check.values} have a counterpart, {agree} of these agree (at {check.label})"
    console.print_mapping({"inner values": summary})
    if check.first is None:
        console.print_mapping({"first divergence": "none"})
        return
    position = check.layers.index(check.first)
    console.print_mapping({"first divergence": f"{check.first.node}: '{check.first.b}'"})
    if check.unknown:
        names = ", ".join(check.unknown[:_SHOWN_LAYERS]) + (" …" if len(check.unknown) > _SHOWN_LAYERS else "")
        console.print_mapping({"without a counterpart before it": f"{names}: the cause may lie there"})
    near = check.layers[max(0, position - _SHOWN_LAYERS) : position + _SHOWN_LAYERS + 1]
    rows = [[x.node, x.b, x.a, x.how, "ok" if x.error.ok else x.error.reason, _figure(x.error.max_abs)] for x in near]
    console.print_table("", ["node", "value", "stands for", "by", "", "max abs"], rows, right=("max abs",))


def show_bisection(found: Bisection, json: bool) -> None:
    """Show what is to blame, and the folder that shows it."""
    if json:
        console.print_json(plain(found))
        return
    if not found.culprit or found.fault is None:
        console.print_mapping({"culprit": "none: nothing differs beyond tolerance"})
        return
    lines = {"culprit": found.culprit, "why": found.fault.reason}
    if found.rewrite is not None:
        alone = "shows it alone" if found.rewrite.alone else "shows it together with others"
        lines["rewrite"] = f"{found.rewrite.rewrite} (number {found.rewrite.number}; {alone})"
    lines["node"] = found.node or "-"
    if found.repro is not None:
        same = "fails the same way in a fresh process" if found.repro.reproduced else "did NOT fail the same way"
        lines["reproducer"] = f"{found.repro.folder}: {found.nodes} of {found.nodes_before} nodes; {same}"
        lines["command"] = found.repro.command
    console.print_mapping(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
