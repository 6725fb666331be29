"""Frontends (`from_*`) and exporters (`to_*`): one file each, the file is the registration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infconv import registry
from infconv.convert._files import refuse_pointer
from infconv.environments import choose_interpreter
from infconv.errors import SourceError, UsageError, did_you_mean

if TYPE_CHECKING:
    from infconv.convert._base import Frontend, Source, SourceRequest
    from infconv.spec import PipelineSpec

__all__ = ["open_source", "recognise"]


def recognise(source: str, frontend: str | None = None) -> tuple[str, str]:
    """Return (frontend, format) of `source`, judged by its content.

    Raises SourceError when it is missing or no frontend reads it, UsageError for an unknown `frontend`.
    """
    if "://" in source:
        raise SourceError(f"'{source}' is a URL, which is not fetched here.", "Download the model first.")
    names = registry.names("frontend")
    if frontend is not None and frontend not in names:
        raise UsageError(f"Unknown frontend '{frontend}'.", did_you_mean(frontend, names))
    for name in [frontend] if frontend else names:
        format = registry.get("frontend", name).recognise(source)
        if format is not None:
            return name, format
    raise _not_recognised(source, frontend)


def _not_recognised(source: str, frontend: str | None) -> SourceError:
    path = Path(source)
    if not path.exists() and ":" not in source:
        return SourceError(f"'{source}' does not exist.", "Check the path.")
    if path.is_dir() and not any(path.iterdir()):
        return SourceError(f"'{source}' is an empty folder: there is no model in it.")
    if path.suffix == ".py":
        return SourceError(
            f"'{source}' is Python code, not a model.",
            f"Name the function in it that builds the model: infconv convert {path.stem}:FUNCTION --input NAME:DIMS",
        )
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return SourceError(f"'{source}' is YAML, not a model.", f"A pipeline is run with: infconv run {source}")
    if path.is_file():
        refuse_pointer(path)
    module, _, function = source.partition(":")
    if function.isidentifier() and "/" in module:
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        return SourceError(f"'{source}' is no module:function.", f"Write the module with dots: {dotted}:{function}")
    reader = f"frontend {frontend} does not read" if frontend else "no frontend reads"
    kind = "folder" if path.is_dir() else "file"
    usual = "without --frontend the format is recognised" if frontend else "--frontend NAME overrides the recognition"
    return SourceError(
        f"'{source}' is not a model: {reader} this {kind}.", f"`infconv frontends` lists what can be read; {usual}."
    )


def require_onnx(path: str, command: str) -> None:
    """Raise UsageError when `path` is a model of another format, which `command` cannot take as it is."""
    file = Path(path)
    if file.suffix in _ARTIFACTS and file.is_file():
        raise UsageError(
            f"'{path}' is {_ARTIFACTS[file.suffix]}; infconv {command} takes ONNX files.",
            "Name the ONNX file that it was made from.",
        )
    if file.suffix == ".onnx":
        return
    try:
        name, format = recognise(path)
    except SourceError as error:
        raise SourceError(error.message, f"infconv {command} takes ONNX files. {error.hint}") from None
    if name != "onnx":
        described = registry.get("frontend", name).formats[format].partition(":")[0]
        raise UsageError(
            f"'{path}' is not ONNX but of format {format} ({described}); infconv {command} takes ONNX files.",
            f"Convert it first: infconv convert {path} -o model.onnx",
        )


_ARTIFACTS = {
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".xml": "an OpenVINO IR",
    ".bin": "the weights of an OpenVINO IR",
}


def open_source(spec: PipelineSpec, workdir: Path) -> Source:
    """Recognise the source and open it with its frontend. The caller closes it."""
    name, format = recognise(spec.source.path, spec.source.frontend)
    frontend = registry.get("frontend", name)
    _refuse_useless(spec, frontend, format)
    python = choose_interpreter(name, frontend.requires, spec.source.python, spec.source.env)
    source = frontend().open(_request(spec, format, python), workdir)
    if spec.source.layout == "keep":
        return source
    from infconv.convert._layout import InLayout

    try:
        return InLayout(source, spec.source.layout, spec, workdir)
    except BaseException:
        source.close()
        raise


def _refuse_useless(spec: PipelineSpec, frontend: type[Frontend], format: str) -> None:
    """Raise UsageError for an option that means nothing to the frontend: ignoring it would hide a mistake."""
    entry = spec.source
    given = {
        "--weights": entry.weights is not None,
        "--python": entry.python is not None,
        "--trust-pickle": entry.trust_pickle,
        "source options": bool(entry.options),
    }
    useless = [option for option, is_given in given.items() if is_given and option not in frontend.takes]
    if entry.env is not None and "--python" not in frontend.takes:
        useless.append("--env")
    if useless:
        raise UsageError(
            f"{' and '.join(useless)} {'do' if len(useless) > 1 else 'does'} not go with '{entry.path}': "
            f"it is a model of format {format}.",
            f"Leave {'them' if len(useless) > 1 else 'it'} out, or name another source.",
        )


def _request(spec: PipelineSpec, format: str, python: str | None) -> SourceRequest:
    from infconv.convert._base import SourceRequest

    entry = spec.source
    return SourceRequest(
        source=entry.path,
        format=format,
        inputs=entry.input_specs(),
        dims=entry.dim_ranges(),
        weights=entry.weights,
        sample=spec.sample,
        trust_pickle=entry.trust_pickle,
        python=python,
        options=entry.options,
        python_path=entry.python_path,
        memory_limit=spec.memory_limit,
        seed=spec.seed,
    )
