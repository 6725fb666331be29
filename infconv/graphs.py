"""The part of the Python interface that works on graphs: load, optimise, save. It needs nothing of pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infconv.errors import UsageError, did_you_mean
from infconv.garbage import rare_collections
from infconv.options import ALIASES, Item, PathLike

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def optimize(
    model: PathLike | onnx.ModelProto | ir.Model,
    *,
    target: str = "onnx",
    level: Literal["basic", "extended", "all"] = "all",
) -> ir.Model:
    """Return an optimised copy of `model`; nothing is written and nothing verified.

    `level`: `basic` keeps the operators, `extended` is the target's default, `all` adds what is not always faster.
    """
    with rare_collections():  # the imports below make many objects that stay
        from infconv.model import to_ir
        from infconv.observe import Observers
        from infconv.passes import Context
        from infconv.runner import run_steps
        from infconv.steps import resolve

        target = ALIASES.get(target, target)
        steps = resolve(level_steps(target, level))
        graph, _ = run_steps(steps, to_ir(model), Context(target=target), Observers())
        return graph


def level_steps(target: str, level: str) -> Sequence[Item]:
    """Return the shipped pipelines that make up a level: `basic` is the same for all targets."""
    levels = {"basic": ["basic"], "extended": [target], "all": [target, "all"]}
    if level not in levels:
        raise UsageError(f"Unknown level '{level}'.", did_you_mean(level, levels))
    return levels[level]


def load(path: PathLike) -> ir.Model:
    """Load an ONNX file with its weights mapped, not read. Raises SourceError."""
    from infconv.model import load as load_model

    return load_model(path)


def save(model: ir.Model, path: PathLike, *, external: bool | None = None) -> list[Path]:
    """Write `model` atomically to `path` (weights over 1.5 GB to `<path>.data`); return the files."""
    from infconv.model import save as save_model
    from infconv.publish import publish, staging

    with staging(Path(path)) as stage:
        return publish(save_model(model, stage / Path(path).name, external=external), Path(path).parent)
