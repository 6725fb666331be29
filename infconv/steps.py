"""From step items (`fold-constants`, `{fuse-gelu: {…}}`, `repeat`, names of shipped pipelines) to steps that run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infconv import registry
from infconv.errors import UnsupportedError, UsageError, did_you_mean
from infconv.options import Item

if TYPE_CHECKING:
    from infconv.convert._exporter import Exporter
    from infconv.passes import Pass


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Steps that run again as long as one of them changes something, at most `rounds` times."""

    steps: tuple[Pass | Repeat, ...]
    rounds: int = 10


Step = "Pass | Repeat"


class _Shipped(Mapping[str, list[Item]]):
    """Step lists by name; a file is read when its steps are asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
        self._read: dict[str, list[Item]] = {}

    def __getitem__(self, name: str) -> list[Item]:
        if name not in self._read:
            self._read[name] = _load_yaml(self._files[name])["steps"]
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _load_yaml(path: Path) -> Any:
    import yaml

    # The loader in C takes a tenth of the time, but not every build of PyYAML has it.
    loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader)


@cache
def shipped() -> Mapping[str, list[Item]]:
    """Return the step lists in `infconv/configs/`, by name."""
    return _Shipped(Path(__file__).with_name("configs"))


def resolve(items: Sequence[Item]) -> tuple[Pass | Repeat, ...]:
    """Return the steps that `items` stand for, shipped pipelines expanded. Raises UsageError with a suggestion."""
    return tuple(step for item in items for step in _resolve_item(item))


def _resolve_item(item: Item) -> Iterator[Pass | Repeat]:
    name, options = _name_and_options(item)
    if name == "repeat":
        if not isinstance(options, list):
            raise UsageError("'repeat' takes a list of steps.", "Example: repeat: [fold-constants, remove-unused]")
        yield Repeat(resolve(cast("list[Item]", options)))
    elif name in shipped():
        if options is not None and options != {}:
            raise UsageError(f"The shipped pipeline '{name}' takes no options.")
        yield from resolve(shipped()[name])
    else:
        yield make_pass(name, options)


def _name_and_options(item: Any) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, dict) or len(cast("dict[str, Any]", item)) != 1:
        raise UsageError(f"A step is a name or `name: {{options}}`, not {item}.")
    return next(iter(cast("dict[str, Any]", item).items()))


def make_pass(name: str, options: Any) -> Pass:
    """Return the pass `name` with `options`. Raises UsageError for an unknown name, option or value."""
    if not registry.has("pass", name) and ":" not in name:
        known = [*registry.names("pass"), *shipped(), "repeat"]
        raise UsageError(f"Unknown pass '{name}'.", did_you_mean(name, known))
    kind = registry.get("pass", name)
    from pydantic import ValidationError

    try:
        return kind.by_default() if options is None or options == {} else kind.model_validate(options)
    except ValidationError as error:
        from infconv.explain import explain

        raise UsageError(f"Step '{name}': {explain(error, kind, options)}") from None


def parse_step(text: str) -> Item:
    """Parse the value of `-p`: one YAML item. Raises UsageError."""
    import yaml

    try:
        item = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"-p '{text}' is not one YAML item.", "Example: -p 'fold-constants: {max_bytes: 1024}'"
        ) from error
    if isinstance(item, str) or (isinstance(item, dict) and len(cast("dict[Any, Any]", item)) == 1):
        return cast(Item, item)
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


def as_items(steps: Sequence[Pass | Repeat]) -> list[Item]:
    """Return the items that `resolve` turns into `steps` again."""
    items: list[Item] = []
    for step in steps:
        if isinstance(step, Repeat):
            items.append({"repeat": as_items(step.steps)})
        else:
            options = step.options()
            items.append({step.step_name(): options} if options else step.step_name())
    return items
