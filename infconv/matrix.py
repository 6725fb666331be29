"""From a pipeline file's data to one pipeline for each source: `sources`, `matrix`, and names in outputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from infconv.anchor import Keys
from infconv.errors import did_you_mean
from infconv.explain import Problem
from infconv.pipeline_layers import references, substituted, unescaped

_FILE_KEYS = ("matrix", "sources")
_LIFTED = ("sample", "calibration")
"""What an item of `sources` may say in the pipeline's place."""
_IN_OUTPUT = ("source", "target", "precision")

Combination = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Expanded:
    """The data of a pipeline with one source, and where its parts stand in the file."""

    data: dict[str, Any]
    source: int | None
    """Its number in `sources`."""
    targets: Sequence[int]
    """For each target, its number in the file."""
    combinations: Sequence[Combination]
    """For each target, the matrix values that made it."""

    def origin(self, keys: Keys) -> Keys:
        """Return where the file says what is at `keys` here."""
        if keys and keys[0] == "targets" and len(keys) > 1 and isinstance(keys[1], int):
            return ("targets", self.targets[keys[1]], *keys[2:])
        if keys and self.source is not None and keys[0] == "source":
            return ("sources", self.source, *keys[1:])
        if keys and self.source is not None and keys[0] in _LIFTED:
            return ("sources", self.source, *keys)
        return keys


class Matrix:
    """The axes of `matrix:`, each a list of values, and the combinations that `exclude` leaves out."""

    def __init__(self, data: Any, problems: list[Problem]) -> None:
        self.axes: dict[str, list[Any]] = {}
        self._exclude: list[dict[str, Any]] = []
        self._excluding: set[int] = set()
        self._seen: set[str] = set()
        self._problems = problems
        if data is None:
            return
        if not isinstance(data, dict):
            problems.append(Problem(("matrix",), "{key} takes a mapping of names to lists"))
            return
        for name, values in cast("dict[Any, Any]", data).items():
            self._take(name, values)
        self._check_exclude()

    def _take(self, name: Any, values: Any) -> None:
        if not isinstance(values, list) or not values:
            self._problems.append(Problem(("matrix", name), "{key} takes a list with at least one value"))
        elif name == "exclude":
            self._exclude = [
                cast("dict[str, Any]", each) for each in cast("list[Any]", values) if isinstance(each, dict)
            ]
            if len(self._exclude) < len(cast("list[Any]", values)):
                self._problems.append(Problem(("matrix", name), "{key} takes a list of mappings of names to values"))
        else:
            self.axes[str(name)] = cast("list[Any]", values)

    def _check_exclude(self) -> None:
        for number, each in enumerate(self._exclude):
            for name, value in each.items():
                place: Keys = ("matrix", "exclude", number, name)
                if name not in self.axes:
                    self._problems.append(Problem(place, f"{{key}}: no axis. {did_you_mean(name, self.axes)}"))
                elif value not in self.axes[name]:
                    self._problems.append(Problem(place, f"{{key}}: {value!r} is not among the values of '{name}'"))

    def used_in(self, value: Any) -> list[str]:
        """Return the axes that `value` refers to."""
        named = axes_in(value)
        self._seen |= named
        return [name for name in self.axes if name in named]

    def combinations(self, names: Sequence[str], fixed: Combination) -> Iterator[Combination]:
        """Yield `fixed` with each value of the axes `names`, less what is excluded."""
        free = [name for name in names if name not in fixed]
        for values in itertools.product(*(self.axes[name] for name in free)):
            combination = {**fixed, **dict(zip(free, values, strict=True))}
            excluding = [n for n, each in enumerate(self._exclude) if each.items() and _fits(each, combination)]
            self._excluding.update(excluding)
            if not excluding:
                yield combination

    def fill(self, value: Any, combination: Combination, keys: Keys) -> Any:
        """Return `value`, which is at `keys`, with the references to the matrix replaced."""

        def look_up(reference: str, place: Keys) -> Any:
            if not reference.startswith("matrix:"):
                return NotImplemented
            name, *path = reference.removeprefix("matrix:").split(".")
            if name not in combination:
                self._problems.append(
                    Problem(place, f"{{key}}: the matrix has no '{name}'. {did_you_mean(name, self.axes)}")
                )
                return ""
            return self._inside(combination[name], path, reference, place)

        return substituted(value, look_up, keys)

    def _inside(self, value: Any, path: Sequence[str], reference: str, place: Keys) -> Any:
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                self._problems.append(Problem(place, f"{{key}}: '${{{reference}}}' leads to nothing in {value!r}"))
                return ""
            value = cast("Mapping[str, Any]", value)[key]
        return value

    def check_used(self) -> None:
        """Report axes and exclusions without effect."""
        for name in self.axes:
            if name not in self._seen:
                words = f"{{key}} is used nowhere: write ${{matrix:{name}}} where its values go"
                self._problems.append(Problem(("matrix", name), words))
        unused = set(range(len(self._exclude))) - self._excluding if not self._problems else set[int]()
        for number in unused:
            words = "{key} excludes nothing: no artifact has these values together"
            self._problems.append(Problem(("matrix", "exclude", number), words))


def axes_in(value: Any) -> set[str]:
    """Return the names that `value` refers to as `${matrix:NAME}`."""
    found = (reference.removeprefix("matrix:") for reference in references(value) if reference.startswith("matrix:"))
    return {reference.split(".")[0] for reference in found}


def _fits(pattern: Mapping[str, Any], combination: Combination) -> bool:
    return all(name in combination and combination[name] == value for name, value in pattern.items())


def expand(data: Mapping[str, Any]) -> tuple[list[Expanded], list[Problem]]:
    """Return a pipeline for each source and for each combination of the axes that anything but a target refers to.

    Within a pipeline, a target that refers to axes becomes one for each combination of them.
    """
    problems: list[Problem] = []
    matrix = Matrix(data.get("matrix"), problems)
    reports = data.get("reports")
    if matrix.used_in(reports):
        problems.append(Problem(("reports",), "{key} are of the whole run: they cannot refer to the matrix"))
    pipelines: list[Expanded] = []
    for number, alone in _each_source(data, problems):
        rest = {key: value for key, value in alone.items() if key != "targets"}
        for combination in matrix.combinations(matrix.used_in(rest), {}):
            filled = _fill_rest(rest, matrix, combination, number)
            pipelines.append(_with_targets(filled, alone.get("targets"), matrix, combination, number))
    matrix.check_used()
    kept = [each for each in pipelines if each.data.get("targets") != [] or not data.get("targets")]
    if pipelines and not kept and not problems:
        problems.append(Problem(("matrix", "exclude"), "{key} leaves nothing to do"))
    return kept, problems


def _each_source(data: Mapping[str, Any], problems: list[Problem]) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Yield the data with each item of `sources` as its `source`."""
    shared = {key: value for key, value in data.items() if key not in _FILE_KEYS}
    if "sources" not in data:
        yield None, shared
        return
    if "source" in data:
        problems.append(Problem(("sources",), "{key} and 'source' exclude each other"))
    sources = data["sources"]
    if not isinstance(sources, list) or not sources:
        problems.append(Problem(("sources",), "{key} takes a list of sources"))
        return
    for number, source in enumerate(cast("list[Any]", sources)):
        if not isinstance(source, dict):
            problems.append(Problem(("sources", number), "{key} takes a mapping: write {path: …}"))
            continue
        own = cast("dict[str, Any]", source)
        lifted = {key: own[key] for key in _LIFTED if key in own}
        yield number, {**shared, **lifted, "source": {k: v for k, v in own.items() if k not in _LIFTED}}


def _fill_rest(rest: Mapping[str, Any], matrix: Matrix, combination: Combination, number: int | None) -> dict[str, Any]:
    where = Expanded({}, number, (), ())
    return {key: unescaped(matrix.fill(value, combination, where.origin((key,)))) for key, value in rest.items()}


def _with_targets(
    rest: dict[str, Any], targets: Any, matrix: Matrix, combination: Combination, source: int | None
) -> Expanded:
    if not isinstance(targets, list):
        data = rest if targets is None else {**rest, "targets": targets}
        return Expanded(data, source, (), ())
    entries: list[Any] = []
    numbers: list[int] = []
    combinations: list[Combination] = []
    for number, target in enumerate(cast("list[Any]", targets)):
        for each in matrix.combinations(matrix.used_in(target), combination):
            entries.append(_fill_target(target, matrix, each, number, rest))
            numbers.append(number)
            combinations.append(each)
    return Expanded({**rest, "targets": entries}, source, numbers, combinations)


def _fill_target(target: Any, matrix: Matrix, combination: Combination, number: int, rest: Mapping[str, Any]) -> Any:
    filled = matrix.fill(target, combination, ("targets", number))
    if isinstance(filled, dict) and isinstance(filled.get("output"), str):
        entry = cast("dict[str, Any]", filled)
        names = {"target": entry.get("target"), "precision": entry.get("precision", "fp32"), "source": _label(rest)}
        filled = {**entry, "output": substituted(entry["output"], lambda name, _: names.get(name, NotImplemented))}
    return unescaped(filled)


def _label(rest: Mapping[str, Any]) -> str:
    """Return what the source is called, as far as it is one."""
    from infconv.spec import SourceEntry

    source = rest.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("path"), str):
        return "model"
    name = source.get("name")
    return SourceEntry(path=source["path"], name=name if isinstance(name, str) else None).label()


def unknown_references(data: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each `${…}` that is none of the known kinds. `data` is the file's, before expansion."""
    found: list[Problem] = []

    def look_up(reference: str, keys: Keys) -> Any:
        is_output = keys[:1] == ("targets",) and keys[-1] == "output" and reference in _IN_OUTPUT
        if not reference.startswith("matrix:") and not is_output:
            names = ", ".join(f"${{{name}}}" for name in _IN_OUTPUT)
            words = f"{{key}}: '${{{reference}}}' is not ${{env:NAME}} or ${{matrix:NAME}}"
            found.append(Problem(keys, f"{words}, nor, in a target's output, {names}; $${{ stands for ${{ itself"))
        return NotImplemented

    substituted(data, look_up)
    return found


def told(combination: Combination) -> str:
    """Return the values of a combination for people: `target=ort, precision=fp16`."""
    return ", ".join(f"{name}={value}" for name, value in combination.items())
