"""From step items (`fold-constants`, `{fuse-gelu: {…}}`, `repeat`, names of shipped pipelines) to steps that run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

import yaml
from pydantic import ValidationError

from infconv import registry
from infconv.errors import UnsupportedError, UsageError, did_you_mean
from infconv.explain import explain
from infconv.spec import StepItem

if TYPE_CHECKING:
    from infconv.convert._exporter import Exporter
    from infconv.passes import Pass


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Steps that run again as long as one of them changes something, at most `rounds` times."""

    steps: tuple[Pass | Repeat, ...]
    rounds: int = 10


Step = "Pass | Repeat"
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C takes a tenth of the time, but not every build of PyYAML has it."""


@cache
def shipped() -> dict[str, list[StepItem]]:
    """Return the step lists in `infconv/configs/`, by name."""
    found: dict[str, list[StepItem]] = {}
    for file in resources.files("infconv.configs").iterdir():
        if file.name.endswith(".yaml"):
            data = yaml.load(file.read_text(encoding="utf-8"), _LOADER)
            found[file.name.removesuffix(".yaml")] = data["steps"]
    return found


def resolve(items: Sequence[StepItem]) -> tuple[Pass | Repeat, ...]:
    """Return the steps that `items` stand for, shipped pipelines expanded. Raises UsageError with a suggestion."""
    return tuple(step for item in items for step in _resolve_item(item))


def _resolve_item(item: StepItem) -> Iterator[Pass | Repeat]:
    name, options = _name_and_options(item)
    if name == "repeat":
        if not isinstance(options, list):
            raise UsageError("'repeat' takes a list of steps.", "Example: repeat: [fold-constants, remove-unused]")
        yield Repeat(resolve(cast("list[StepItem]", options)))
    elif name in shipped():
        if options:
            raise UsageError(f"The shipped pipeline '{name}' takes no options.")
        yield from resolve(shipped()[name])
    else:
        yield make_pass(name, options)


def _name_and_options(item: StepItem) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, {}
    if len(item) != 1:
        raise UsageError(f"A step is a name or `name: {{options}}`, not {item}.")
    return next(iter(item.items()))


def make_pass(name: str, options: Any) -> Pass:
    """Return the pass `name` with `options`. Raises UsageError for an unknown name, option or value."""
    if name not in registry.names("pass") and ":" not in name:
        known = [*registry.names("pass"), *shipped(), "repeat"]
        raise UsageError(f"Unknown pass '{name}'.", did_you_mean(name, known))
    kind = registry.get("pass", name)
    try:
        return kind.model_validate(options or {})
    except ValidationError as error:
        raise UsageError(f"Step '{name}': {explain(error, kind, options)}") from None


def parse_step(text: str) -> StepItem:
    """Parse the value of `-p`: one YAML item. Raises UsageError."""
    try:
        item = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"-p '{text}' is not one YAML item.", "Example: -p 'fold-constants: {max_bytes: 1024}'"
        ) from error
    if isinstance(item, str) or (isinstance(item, dict) and len(cast("dict[Any, Any]", item)) == 1):
        return cast(StepItem, item)
    raise UsageError(f"-p '{text}' is not a step.", "Example: -p 'fold-constants: {max_bytes: 1024}'")


def flatten(steps: Sequence[Pass | Repeat]) -> Iterator[Pass]:
    """Yield every pass, those inside repeats included."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from flatten(step.steps)
        else:
            yield step


def without(steps: Sequence[Pass | Repeat], skip: Sequence[str]) -> tuple[Pass | Repeat, ...]:
    """Return `steps` less those named in `skip`. Raises UsageError for a name that is not among them."""
    present = {step.step_name() for step in flatten(steps)}
    for name in skip:
        if name not in present:
            several = f"Repeat it for several: --skip {' --skip '.join(name.split(','))}"
            hint = several if "," in name else did_you_mean(name, present)
            raise UsageError(f"--skip '{name}': no such step in this pipeline.", hint)
    return _without(steps, set(skip))


def _without(steps: Sequence[Pass | Repeat], skip: set[str]) -> tuple[Pass | Repeat, ...]:
    kept: list[Pass | Repeat] = []
    for step in steps:
        if isinstance(step, Repeat):
            kept.append(Repeat(_without(step.steps, skip), step.rounds))
        elif step.step_name() not in skip:
            kept.append(step)
    return tuple(kept)


def check_legal(steps: Sequence[Pass | Repeat], exporter: Exporter) -> None:
    """Raise UnsupportedError when a step emits operators that the target does not accept."""
    for number, step in enumerate(flatten(steps), 1):
        refused = step.emits - exporter.domains
        if refused:
            raise UnsupportedError(
                f"Step {number} ({step.step_name()}) emits {', '.join(sorted(refused))} operators, "
                f"which target {exporter.target} does not accept.",
                f"Leave it out (--skip {step.step_name()}), or convert to onnxruntime.",
            )


def as_items(steps: Sequence[Pass | Repeat]) -> list[StepItem]:
    """Return the items that `resolve` turns into `steps` again."""
    items: list[StepItem] = []
    for step in steps:
        if isinstance(step, Repeat):
            items.append({"repeat": as_items(step.steps)})
        else:
            options = step.options()
            items.append({step.step_name(): options} if options else step.step_name())
    return items
