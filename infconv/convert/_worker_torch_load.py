"""Opening PyTorch sources: what each format needs to become a module or an exported program."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ._worker import Request, WorkerError, first_line, ran_out_of_memory

NESTED_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "ema_state_dict")
"""Where training scripts put the state dict in a checkpoint, by custom."""


@dataclasses.dataclass
class Loaded:
    """An opened source: a module or an exported program."""

    module: torch.nn.Module | None = None
    program: torch.export.ExportedProgram | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    packages: list[str] = dataclasses.field(default_factory=list)
    """Packages beside torch that the model came through."""
    huggingface: bool = False


def load(request: Request) -> Loaded:
    """Open `request["source"]`. Raises WorkerError of kind source, usage or dependency."""
    source, weights = request["source"], request["weights"]
    source_format = request["format"]
    if weights and source_format != "factory":
        raise WorkerError(
            "usage",
            f"--weights goes with module:factory; '{source}' has its own weights.",
            "Leave --weights out.",
        )
    if source_format == "factory":
        return _load_factory(source, weights)
    if source_format == "exported-program":
        return _load_program(source)
    if source_format == "torchscript":
        return _load_script(source)
    if source_format == "huggingface":
        return _load_huggingface(source, request["options"].get("dtype", "float32"), request["trust_pickle"])
    return _load_pickled(source)


def _load_program(path: str) -> Loaded:
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _unreadable(path, error, "a .pt2 file of torch.export.save") from error
    loaded = Loaded(program=program)
    stored: list[Any] = [*program.state_dict.values(), *program.constants.values()]
    devices = {str(each.device) for each in stored if _is_tensor(each)}
    if devices - {"cpu"}:
        from torch.export.passes import move_to_device_pass

        loaded.program = move_to_device_pass(program, "cpu")
        loaded.notes.append(f"The program was exported for {', '.join(sorted(devices))}; it was moved to the CPU.")
    return loaded


def _load_script(path: str) -> Loaded:
    try:
        module = torch.jit.load(path, map_location="cpu")
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _unreadable(path, error, "a TorchScript file") from error
    if not hasattr(module, "forward"):
        methods = ", ".join(sorted(name for name in module._c._method_names())) or "none"
        raise WorkerError(
            "source",
            f"'{path}' has no forward method (its methods: {methods}).",
            "Save a module whose forward is the inference.",
        )
    return Loaded(module=module.eval())


def _load_factory(source: str, weights: str | None) -> Loaded:
    module_name, _, attribute = source.partition(":")
    factory = _import_object(module_name, attribute)
    if not callable(factory):
        raise WorkerError("usage", f"'{source}' is a {type(factory).__name__}, not a callable that returns a model.")
    if isinstance(factory, torch.nn.Module):
        model: Any = factory
    else:
        model = _call(source, factory)
    if not isinstance(model, torch.nn.Module):
        raise WorkerError("usage", f"'{source}' returned a {type(model).__name__}, not a torch.nn.Module.")
    loaded = Loaded(module=model)
    if weights:
        _apply_weights(loaded, model, weights)
    model.to("cpu").eval()
    return loaded


def _import_object(module_name: str, attribute: str) -> Any:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise WorkerError(
                "usage", f"There is no Python module '{module_name}' here.", f"Looked in {Path.cwd()} and sys.path."
            ) from error
        raise WorkerError(
            "dependency", f"'{module_name}' needs the package '{error.name}'.", f"Install it: pip install {error.name}"
        ) from error
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _own_code_failed(f"Importing '{module_name}'", error) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"Did you mean '{close[0]}'?" if close else ""
            raise WorkerError("usage", f"'{module_name}' has no '{attribute}'.", hint)
        found = getattr(found, name)
    return found


def _call(source: str, factory: Any) -> Any:
    try:
        return factory()
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _own_code_failed(f"Calling '{source}'", error) from error


def _own_code_failed(what: str, error: Exception) -> WorkerError:
    if ran_out_of_memory(error):
        return WorkerError("resource", f"{what} ran out of memory: {first_line(error)}", "Raise --memory-limit.")
    return WorkerError("source", f"{what} raised {type(error).__name__}: {first_line(error)}")


def _apply_weights(loaded: Loaded, model: torch.nn.Module, path: str) -> None:
    state = _read_weights(path)
    key = next((k for k in NESTED_STATE_KEYS if isinstance(state.get(k), Mapping)), None)
    if key is not None and not any(_is_tensor(value) for value in state.values()):
        loaded.notes.append(f"The weights were taken from '{key}' in {path}.")
        state = state[key]
    tensors = {name: value for name, value in state.items() if _is_tensor(value)}
    if tensors and all(name.startswith("module.") for name in tensors):  # nn.DataParallel's prefix
        tensors = {name[len("module.") :]: value for name, value in tensors.items()}
    _check_weights(path, model.state_dict(), tensors)
    model.load_state_dict(tensors, strict=False)


def _check_weights(path: str, own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    # Tied parameters are one tensor with two names; safetensors and others store it once.
    covered = {own[name].data_ptr() for name in own if name in tensors}
    missing = [name for name in own if name not in tensors and own[name].data_ptr() not in covered]
    extra = sorted(tensors.keys() - own.keys())
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        facts = [_some("missing", missing), _some("not the model's", extra), _some("of another shape", wrong)]
        raise WorkerError("source", f"'{path}' does not fit the model: {'; '.join(f for f in facts if f)}.")


def _read_weights(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise WorkerError("source", f"The weights '{path}' do not exist.", "Check --weights.")
    try:
        with Path(path).open("rb") as stream:
            is_safetensors = stream.read(10)[8:9] == b"{"
        if is_safetensors:
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except pickle.UnpicklingError as error:
        raise WorkerError(
            "usage",
            f"'{path}' holds more than weights: loading it would run code.",
            "Save the state dict alone: torch.save(model.state_dict(), FILE), or use safetensors.",
        ) from error
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _unreadable(path, error, "a state dict") from error
    if isinstance(state, Mapping):
        return dict(cast("Mapping[str, Any]", state))
    raise WorkerError("source", f"'{path}' holds a {type(state).__name__}, not a state dict.")


def _load_pickled(path: str) -> Loaded:
    """Unpickle a whole module: only reached when the user trusts the file."""
    try:
        found = _unpickle(path)
    except ModuleNotFoundError as error:
        raise WorkerError(
            "source",
            f"'{path}' needs the Python module '{error.name}' that defined the model.",
            "Run from the folder that has it, or install it.",
        ) from error
    except AttributeError as error:
        raise WorkerError(
            "source",
            f"'{path}' needs a class that is not where the file says it was: "
            f"{first_line(error).partition(' on <')[0]}.",
            "A class that a script defines itself is called __main__.NAME, which no other program has. Move it to a "
            "module, import it from there and save again; or save only state_dict() and convert module:factory "
            "--weights FILE.",
        ) from error
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _unreadable(path, error, "a module of torch.save") from error
    if isinstance(found, Mapping):  # training checkpoints: {"model": module, "epoch": ...}
        modules = [v for v in cast("Mapping[str, Any]", found).values() if isinstance(v, torch.nn.Module)]
        found = modules[0] if len(modules) == 1 else found
    module: Any = found
    if not isinstance(module, torch.nn.Module):
        raise WorkerError("source", f"'{path}' holds a {type(module).__name__}, not a torch.nn.Module.")
    return Loaded(module=module.to("cpu").eval())


def _unpickle(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except RuntimeError as error:
        if "Invalid magic number" not in str(error):
            raise
    with Path(path).open("rb") as stream:
        return pickle.load(stream)


def _load_huggingface(folder: str, dtype: str, trust_code: bool) -> Loaded:
    import transformers

    written: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    model_class = _model_class(transformers, folder, written, trust_code)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_code, "dtype": dtype}
    try:
        model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # torch and the model's own code raise whatever they meet
        raise _unreadable(folder, error, "a Hugging Face model") from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise WorkerError(
            "source",
            f"'{folder}' lacks weights of {type(model).__name__}: {_some('missing', missing)}.",
            "The weights belong to another class: check 'architectures' in config.json.",
        )
    model.eval()
    model.config.return_dict = True  # its keys name the outputs
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False
    loaded = Loaded(module=model, packages=["transformers", "safetensors"], huggingface=True)
    stored = written.get("dtype") or written.get("torch_dtype")
    if stored and dtype not in (stored, "auto"):
        loaded.notes.append(f"The weights are stored as {stored} and were loaded as {dtype} (option dtype).")
    return loaded


def _model_class(transformers: Any, folder: str, config: dict[str, Any], trust_code: bool) -> Any:
    names: list[str] = config.get("architectures") or []
    if names and hasattr(transformers, names[0]):
        return getattr(transformers, names[0])
    if config.get("auto_map") and not trust_code:
        raise WorkerError(
            "usage",
            f"'{folder}' brings its own model code ({names[0] if names else 'auto_map'}), which loading would run.",
            "If you trust it: --trust-pickle.",
        )
    if names and not config.get("auto_map"):
        raise WorkerError(
            "source",
            f"transformers {transformers.__version__} has no class {names[0]} ('architectures' in config.json).",
            "Install the version that has it, or convert my_module:build_model.",
        )
    return transformers.AutoModel


def _unreadable(path: str, error: Exception, what: str) -> WorkerError:
    if ran_out_of_memory(error):
        return WorkerError("resource", f"Memory ran out while loading '{path}'.", "Raise --memory-limit.")
    return WorkerError(
        "source",
        f"'{path}' cannot be read as {what}: {type(error).__name__}: {first_line(error)}",
        f"It may be damaged, or from a newer version than torch {torch.__version__}.",
    )


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _some(label: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {label} ({shown})" if names else ""
