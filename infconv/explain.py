"""From pydantic's errors to sentences: each cause once, with its key, its value and the likely spelling."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]

_KINDS = (
    ("string", "text"),
    ("int", "a whole number"),
    ("float", "a number"),
    ("bool", "true or false"),
    ("list", "a list"),
    ("tuple", "a list"),
    ("dict", "a mapping"),
    ("mapping", "a mapping"),
    ("model", "a mapping"),
)
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_MISSING = "{key} is missing"
_LONGEST_VALUE = 60
_A_SLIP = 0.85
"""Words this much alike are surely the same word, misspelt."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong in a file or in options."""

    path: Path
    """The keys that lead to it from the root."""
    fact: str
    """What is wrong, a sentence without its full stop; `{key}` stands for the place."""

    def sentence(self, key: str | None = None) -> str:
        """Return the fact, with the place called `key` or by its dotted path."""
        own = f"'{dotted(self.path)}'" if self.path else "it"
        return self.fact.replace("{key}", own if key is None else key)


@dataclasses.dataclass(frozen=True)
class _Found:
    """An error of pydantic's; `unions` are the places where it had tried several types, and which one this is."""

    problem: Problem
    kind: str
    value: Any
    unions: tuple[tuple[Path, str], ...]


def dotted(path: Path) -> str:
    """Return `targets.0.precision`."""
    return ".".join(str(part) for part in path)


def problems(error: ValidationError, root: type[BaseModel], data: Any) -> list[Problem]:
    """Return a problem for each cause of `error`, which validating `data` as `root` raised."""
    found = list(_settled([_found(each, root, data) for each in error.errors()], 0))
    return [problem for problem in found if not _is_misspelt(problem, found)]


def _is_misspelt(missing: Problem, found: Sequence[Problem]) -> bool:
    """Whether `missing` is a key that is there, in a spelling that another problem is about already."""
    rivals = [p for p in found if p.path[:-1] == missing.path[:-1] and p.fact.startswith("unknown key")]
    suggestion = f"did you mean '{missing.path[-1] if missing.path else ''}'"
    return missing.fact == _MISSING and any(suggestion in rival.fact for rival in rivals)


def explain(error: ValidationError, root: type[BaseModel], data: Any) -> str:
    """Return one sentence about each cause of `error`, which validating `data` as `root` raised."""
    return ended("; ".join(problem.sentence() for problem in problems(error, root, data)))


def ended(sentence: str) -> str:
    """Return `sentence` with a full stop, unless it ends with another sign."""
    return sentence if sentence[-1:] in ".?" else f"{sentence}."


def unknown(word: str, known: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown `word`: the closest of `known`, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean '{close[0]}'?" if close else f" (known: {', '.join(known)})"


def _settled(found: Sequence[_Found], level: int) -> Iterator[Problem]:
    """Yield the problems; of the types that a union tried, the one that the value was meant to be."""
    done: set[Path] = set()
    for each in found:
        if len(each.unions) <= level:
            yield each.problem
            continue
        place = each.unions[level][0]
        if place in done:
            continue
        done.add(place)
        rivals = [f for f in found if len(f.unions) > level and f.unions[level][0] == place]
        meant = _meant(rivals, level)
        if meant:
            yield from _settled(meant, level + 1)
        else:
            kinds = " or ".join(dict.fromkeys(_wanted(f.kind) for f in rivals))
            yield Problem(place, f"{{key}} takes {kinds}, not {_shown(each.value)}")


def _meant(rivals: Sequence[_Found], level: int) -> list[_Found]:
    """Return the errors of the one type that the value itself fits, though something inside it does not."""
    tags = {f.unions[level][1] for f in rivals}
    place = rivals[0].unions[level][0]
    fitting = {t for t in tags if all(len(f.problem.path) > len(place) for f in rivals if f.unions[level][1] == t)}
    return [f for f in rivals if f.unions[level][1] in fitting] if len(fitting) == 1 else []


def _found(error: Mapping[str, Any], root: type[BaseModel], data: Any) -> _Found:
    path, unions = _place(error, data)
    fact = _fact(error, path, root)
    return _Found(Problem(path, fact), error["type"], error["input"], unions)


def _place(error: Mapping[str, Any], data: Any) -> tuple[Path, tuple[tuple[Path, str], ...]]:
    """Tell the keys of `error`'s location, which lead through `data`, from the names of types among them."""
    path: Path = ()
    unions: list[tuple[Path, str]] = []
    current, location = data, error["loc"]
    for number, part in enumerate(location, 1):
        is_key = error["type"] in ("missing", "extra_forbidden") and number == len(location)
        if isinstance(current, Mapping) and part in current:
            path, current = (*path, part), cast("Mapping[Any, Any]", current)[part]
        elif isinstance(current, list) and isinstance(part, int) and part < len(cast("list[Any]", current)):
            path, current = (*path, part), current[part]
        elif is_key:
            path = (*path, part)
        elif part != "[key]":
            unions.append((path, str(part)))
    return path, tuple(unions)


def _fact(error: Mapping[str, Any], path: Path, root: type[BaseModel]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if error["loc"] and error["loc"][-1] == "[key]":
        return f"the key {value!r} at {{key}} must be text: put it in quotes"
    if kind == "extra_forbidden":
        return "unknown key {key}" + _likely(root, path)
    if kind == "missing":
        return _MISSING
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        likely = unknown(value, known) if isinstance(value, str) and known else ""
        return f"{{key}} is {_shown(value)}" + (likely or f"; it takes {context['expected']}")
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{{key}} is {_shown(value)}; it must be {words} {context[name]:g}"
    if kind == "too_short":
        return f"{{key}} is empty; it needs at least {context['min_length']}"
    if kind == "value_error":
        return "{key}: " + str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    remedy = ""
    if isinstance(value, str | bool) and kind in ("list_type", "model_type", "model_attributes_type"):
        model = _model_at(root, path)
        item = _plain(value) if model is root else f"{{{next(iter(model.model_fields))}: {_plain(value)}}}"
        remedy = f": write {f'[{item}]' if kind == 'list_type' else item}"
    return f"{{key}} takes {_wanted(kind)}, not {_shown(value)}{remedy}"


def _plain(value: str | bool) -> str:
    """Return `value` as it stands in YAML; what is false there was most likely `off`."""
    return value if isinstance(value, str) else "on" if value else "off"


def _wanted(kind: str) -> str:
    return next((words for start, words in _KINDS if kind.startswith(start)), kind.replace("_", " "))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


# --- known keys ----------------------------------------------------------------------------------------------------


def _likely(root: type[BaseModel], path: Path) -> str:
    """Return where the unknown last key of `path` belongs, or its likely spelling."""
    key, here = str(path[-1]), _model_at(root, path[:-1])
    places = [place for place, model in _models(root, ()) if key in model.model_fields]
    elsewhere = min(places, key=len, default=None)
    if elsewhere is not None and not difflib.get_close_matches(key, here.model_fields, cutoff=_A_SLIP):
        return f": it belongs under '{dotted(elsewhere)}'" if elsewhere else ": it belongs at the top"
    return unknown(key, sorted(here.model_fields))


def _models(model: type[BaseModel], place: Path) -> Iterator[tuple[Path, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        if nested is not None:
            yield from _models(nested, (*place, name))


def _model_at(root: type[BaseModel], path: Path) -> type[BaseModel]:
    """Return the model that is expected at `path`, walking the models' annotations."""
    model = root
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
