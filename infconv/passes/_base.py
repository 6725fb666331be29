"""What a pass is, and what it is told about the run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from infconv.compare import Tolerance
    from infconv.passes._rewrite import Refusal, Rule
    from infconv.passes._symbolic import Symbolic
    from infconv.quantize._calibration import Calibration

T = TypeVar("T")


@dataclasses.dataclass
class Allowance:
    """Which rewrites a step may make, and which it made: bisection replays a step with fewer and fewer of them."""

    limit: int | None = None
    """How many, in the order in which the engine finds them; None: all."""
    without: frozenset[str] = frozenset()
    """Rewrites (as in `made`) that it may not make."""
    made: list[str] = dataclasses.field(default_factory=list[str])
    """`rule at node` for each."""
    refused: list[str] = dataclasses.field(default_factory=list[str])
    """Those that were not allowed when they were found, in that order."""

    def permits(self, rewrite: str) -> bool:
        """Whether `rewrite` may be tried now."""
        if rewrite in self.without or len(self.made) == self.limit:
            self.refused.append(rewrite)
            return False
        return True


class Workers(Protocol):
    """Processes, here or elsewhere, that take on parts of a step."""

    count: int
    """How many there are."""
    forked: bool
    """Whether they are forked from the process that uses them, which then may be forked itself."""

    def spread(self, work: Callable[[Path, int], T], parts: int, folder: Path) -> list[T]:
        """Return `[work(folder, 0), …, work(folder, parts - 1)]`, each called in a process of its own.

        `work` and what it returns can be pickled; it reads files in `folder`, of which it may be given a copy. Raises
        the first InfconvError that one raises.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Quality:
    """The user's own measure and its budget, for steps that choose between variants of a model."""

    name: str
    measure: Callable[[Callable[[Mapping[str, Any]], dict[str, Any]]], float]
    """Takes a model, which takes inputs and returns outputs by name. Raises UsageError when it fails."""
    before: float
    """Of the source."""
    max_drop: float
    lower_is_better: bool = False

    def drop(self, after: float) -> float:
        """Return by how much a metric is worse than the source's; negative: better."""
        return after - self.before if self.lower_is_better else self.before - after


@dataclasses.dataclass
class Context:
    """What a pass may know about the run that it is part of."""

    target: str = "onnx"
    """The exporter's name. Passes that a target needs or dislikes look at it; most do not."""
    samples: Sequence[Mapping[str, np.ndarray]] = ()
    """Inputs that the source accepted, by input name; empty when nothing is verified."""
    calibration: Calibration | None = None
    """Data to find quantisation scales with, when the user gave any."""
    why: list[Refusal] | None = None
    """When a list: passes append the reason for each near miss."""
    notes: list[str] = dataclasses.field(default_factory=list[str])
    """Sentences for the user: what a pass kept, gave up or found odd."""
    tolerance: Tolerance | None = None
    """By how much the artifact's outputs may differ; None: the precision's own."""
    quality: Quality | None = None
    """The user's measure and its budget, when there is one."""
    progress: Callable[[str], None] | None = None
    """Tells the user what a long step is doing."""
    documents: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Texts to be stored beside the artifact: suffix -> content; `precision.yaml` is `<artifact>.precision.yaml`."""
    allowance: Allowance | None = None
    """When given, what rewrites may be made and which were; None: all may."""
    again: bool = False
    """A pass that changes something is run again: it need not make sure itself that nothing is left to do."""
    workers: Workers | None = None
    """Who takes on parts of a long step; None: nobody."""
    remembered: Remembered | None = None
    """What passes found out about the model as it is; None: nobody takes care that it is forgotten in time."""


@dataclasses.dataclass
class Remembered:
    """What holds until the model changes."""

    shapes: Symbolic | None = None
    rewired: bool = False
    """Steps that only rewire have changed the model since the shapes were worked out."""


class Pass(BaseModel):
    """A step on the graph: frozen, its fields are its options, the string under a field is that option's help."""

    # Validators are built when options are given: building those of all passes takes longer than most models do.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    needs_shapes: ClassVar[bool] = False
    """Works better (or only) after `infer-shapes`."""
    uses_quality: ClassVar[bool] = False
    """Chooses by the user's own measure, where there is one: what comes out then depends on the user's code."""
    keeps_facts: ClassVar[bool] = False
    """Changes nothing but what the model says of its values."""
    rewires: ClassVar[bool] = False
    """Adds and removes nodes, and lets others use other values; attributes and constants that stay are as they were."""
    emits: ClassVar[frozenset[str]] = frozenset()
    """Operator domains beyond the standard one that this pass may add, e.g. {"com.microsoft"}."""

    @classmethod
    def by_default(cls) -> Self:
        """Return the pass with all its defaults. Raises pydantic's ValidationError when an option has none."""
        if any(field.is_required() for field in cls.model_fields.values()):
            return cls.model_validate({})
        return cls.model_construct()

    @classmethod
    def step_name(cls) -> str:
        """Return the name in CLI and YAML: `fuse-gelu`; `module:Class` for a pass that is not registered."""
        from infconv import registry

        name = cls._kebab_name()
        return name if registry.has("pass", name) else f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def _kebab_name(cls) -> str:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    @classmethod
    def summary(cls) -> str:
        """Return the docstring's first line."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def option_help(cls) -> dict[str, str]:
        """Return the help of each option: the string under the field.

        pydantic's `use_attribute_docstrings` would read the source of every pass when it is imported, which takes
        longer than everything else that importing it takes.
        """
        found: dict[str, str] = {}
        for kind in reversed(cls.__mro__[: cls.__mro__.index(Pass)]):
            body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
            for field, text in itertools.pairwise(body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                        found[name] = inspect.cleandoc(words)
                    case _:
                        pass
        return {name: found.get(name, "") for name in cls.model_fields}

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as plain data."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def may_apply(self, operators: Collection[tuple[str, str]]) -> bool:
        """Whether there may be something to do in a model of these operators (domain, type); False: surely not."""
        return True

    @abstractmethod
    def run(self, model: ir.Model, context: Context) -> int:
        """Change `model` in place and return the number of changes (0: the model is as it was)."""
        raise NotImplementedError(type(self).__name__)


class RewritePass(Pass):
    """A pass that is a table of rules."""

    rewires: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = ()

    def may_apply(self, operators: Collection[tuple[str, str]]) -> bool:
        """Whether the operators of at least one rule are there."""
        from infconv.passes._pattern import may_match

        return any(may_match(rule.pattern.roots[0], operators) for rule in self.rules)

    def run(self, model: ir.Model, context: Context) -> int:
        """Apply the rules to a fixpoint and return the number of rewrites."""
        from infconv.passes._rewrite import rewrite

        return rewrite(model, self.rules, context)
