"""Parse what users type: dims, sizes, durations, exporter options."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec, StepItem

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}


def memory(text: str | None) -> int | None:
    """Parse `8GiB`, `500MB` to bytes. Raises UsageError."""
    return None if text is None else int(_quantity(text, _UNITS, "--memory-limit", "8GiB"))


def duration(text: str | None, option: str = "--timeout") -> float | None:
    """Parse `30m`, `90s`, `1.5h` to seconds. Raises UsageError naming the `option`."""
    return None if text is None else _quantity(text, _SECONDS, option, "30m")


def _quantity(text: str, units: dict[str, Any], option: str, example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = match[2].lower() if match else None
    if match is None or unit not in units:
        raise UsageError(f"{option} '{text}' is not a number with a unit.", f"Example: {option} {example}")
    return float(match[1]) * units[unit]


def inputs(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `NAME:DIMS[:DTYPE]` options to input entries."""
    from infconv.convert._base import parse_input

    parsed = dict(parse_input(text) for text in texts)
    return {name: {"dims": list(spec.dims), "dtype": spec.dtype} for name, spec in parsed.items()}


def dims(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `batch=1..32`, `batch=1,8,32` (min, opt, max), `batch=8` (fixed). Raises UsageError."""
    return dict(_dim(text) for text in texts)


def _dim(text: str) -> tuple[str, dict[str, int]]:
    name, _, value = text.partition("=")
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+)|,(\d+),(\d+))?", value.replace(" ", ""))
    if not name or match is None:
        raise UsageError(
            f"--dim '{text}' is not NAME=SIZES.", "Example: --dim batch=1..32, or batch=1,8,32 (min,opt,max)."
        )
    least = int(match[1])
    if match[2]:
        return name, {"min": least, "max": int(match[2])}
    if match[3]:
        return name, {"min": least, "opt": int(match[3]), "max": int(match[4])}
    return name, {"min": least, "opt": least, "max": least}


def steps(texts: Sequence[str]) -> list[StepItem]:
    """Parse the values of `-p`."""
    from infconv.steps import parse_step

    return [parse_step(text) for text in texts]


def exporter_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value`, the value as YAML; a comma makes a list (`compute_capability=sm89,sm120`)."""
    import yaml

    parsed: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"--option '{text}' is not KEY=VALUE.", "Example: --option compute_capability=sm89")
        parsed[key.replace("-", "_")] = yaml.safe_load(f"[{value}]" if "," in value else value)
    return parsed


def on_base(
    pipeline: str | None, build: Callable[[list[StepItem] | None], PipelineSpec], *, targets_given: bool
) -> PipelineSpec:
    """Return what the flags mean on top of `--pipeline`: a shipped one's name, or a file whose source they replace.

    The file's targets count unless a flag names a target, an output or a precision (`targets_given`).
    """
    from infconv.spec import load_spec
    from infconv.steps import shipped

    if pipeline is None:
        return build(None)
    if pipeline in shipped():
        return build([pipeline])
    if not Path(pipeline).is_file():
        raise UsageError(f"--pipeline '{pipeline}' is neither a file nor shipped.", did_you_mean(pipeline, shipped()))
    base = load_spec(pipeline)
    flags = build(base.steps)
    return flags.model_copy(
        update={
            "targets": flags.targets if targets_given else base.targets,
            "add": [*base.add, *flags.add],
            "skip": [*base.skip, *flags.skip],
            "opset": flags.opset or base.opset,
            "sample": flags.sample or base.sample,
            "verify": base.verify if flags.verify.model_dump() == _default_verify() else flags.verify,
        }
    )


def _default_verify() -> dict[str, Any]:
    from infconv.spec import VerifyEntry

    return VerifyEntry.model_validate({}).model_dump()
