"""Parse what users type: steps, exporter options, a pipeline that flags go on top of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec, StepItem


def steps(texts: Sequence[str]) -> list[StepItem]:
    """Parse the values of `-p`."""
    from infconv.steps import parse_step

    return [parse_step(text) for text in texts]


def exporter_options(texts: Sequence[str], flag: str = "--option") -> dict[str, Any]:
    """Parse `key=value`, the value as YAML; a comma makes a list (`compute_capability=sm89,sm120`)."""
    import yaml

    parsed: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            example = "compute_capability=sm89" if flag == "--option" else "handlers=my_operators"
            raise UsageError(f"{flag} '{text}' is not KEY=VALUE.", f"Example: {flag} {example}")
        parsed[key.replace("-", "_")] = yaml.safe_load(f"[{value}]" if "," in value else value)
    return parsed


def names(text: str | None) -> list[str]:
    """Parse names with commas between; `all` are all edge cases."""
    from infconv.synthetic import EDGE_CASES

    return list(EDGE_CASES) if text == "all" else [name.strip() for name in (text or "").split(",") if name.strip()]


def on_base(
    pipeline: str | None, build: Callable[[list[StepItem] | None], PipelineSpec], *, targets_given: bool
) -> PipelineSpec:
    """Return what the flags mean on top of `--pipeline`: a shipped one's name, or a file whose source they replace.

    The file's targets count unless a flag names a target, an output or a precision (`targets_given`).
    """
    from infconv.run_file import load_spec
    from infconv.steps import shipped

    if pipeline is None:
        return build(None)
    if pipeline in shipped():
        return build([pipeline])
    if not Path(pipeline).is_file():
        raise UsageError(f"--pipeline '{pipeline}' is neither a file nor shipped.", did_you_mean(pipeline, shipped()))
    base = load_spec(pipeline)
    flags = build(base.steps)
    folders = [*flags.source.python_path, *base.source.python_path]
    return flags.model_copy(
        update={
            "source": flags.source.model_copy(update={"python_path": folders}),
            "targets": flags.targets if targets_given else base.targets,
            "add": [*base.add, *flags.add],
            "skip": [*base.skip, *flags.skip],
            "opset": flags.opset or base.opset,
            "sample": flags.sample or base.sample,
            "calibration": flags.calibration or base.calibration,
            "gates": base.gates,
            "reports": [*base.reports, *flags.reports],
            "seed": flags.seed or base.seed,
            "timeout": flags.timeout or base.timeout,
            "memory_limit": flags.memory_limit or base.memory_limit,
            "cache": base.cache if flags.cache is None else flags.cache,
            "jobs": base.jobs if flags.jobs is None else flags.jobs,
            "verify": base.verify if flags.verify.model_dump() == _default_verify() else flags.verify,
        }
    )


def _default_verify() -> dict[str, Any]:
    from infconv.spec import VerifyEntry

    return VerifyEntry.model_validate({}).model_dump()


def cache(use: bool | None, place: str | None) -> bool | str | None:
    """Return what --cache, --no-cache and --cache-dir mean together. Raises UsageError."""
    if use is False and place is not None:
        raise UsageError("--no-cache and --cache-dir exclude each other.", "Give one of them.")
    return use if place is None else place
