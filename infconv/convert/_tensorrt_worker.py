"""The process in which TensorRT parses, builds, and runs engines; run as a script, never imported by infconv.

TensorRT's builder can end its process (opset 23 `Attention` whose query and key are one tensor: a segmentation fault in
1.7.1), writes to stdout from C++, and keeps a copy of all weights. A process of its own turns the first into a
sentence, the second into log records and gives the memory back.

Reads one JSON request from stdin, writes one JSON answer to the path named in it, and prints one JSON array `[severity,
message]` per log record on stderr (severity 0 internal error, 1 error, 2 warning, 3 information, 4 verbose). Depends on
the standard library and TensorRT alone; `onnx` is used to name a refused node that has no name, and NumPy and the
package cuda-bindings to run an engine, and only then.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# A machine without a GPU has these after every real message; they explain nothing.
NO_GPU_NOISE = ("catchCudaError", "Error reading CUDA GPU properties", "Thread context has not been set")
ABSENT_TYPES = {"INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128", "UNDEFINED"}
NO_BINDINGS = (
    "Running an engine needs the package 'cuda-bindings', which is not installed.",
    "Install it with: pip install 'infconv[tensorrt]'",
)
# Cleared or set on every build, so that a library's own default never decides.
FLAG_OPTIONS = {
    "tf32": "TF32",
    "refit": "REFIT",
    "weight_streaming": "WEIGHT_STREAMING",
    "version_compatible": "VERSION_COMPATIBLE",
}


class Refused(Exception):
    """What stops the work: `kind` is source, usage, unsupported, build, disk, memory or dependency."""

    def __init__(self, kind: str, message: str, hint: str = "", refusals: Sequence[Json] = ()) -> None:
        super().__init__(message)
        self.answer: Json = {"kind": kind, "message": message, "hint": hint, "refusals": list(refusals)}


def make_logger(trt: Any, threshold: int) -> Any:
    """Return an ILogger that prints records up to severity `threshold` and keeps the errors in `.errors`."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            level = int(severity)
            if any(noise in msg for noise in NO_GPU_NOISE):
                level = 4
            elif level <= 1:
                self.errors.append(msg)
            if level <= threshold:
                print(json.dumps([level, msg]), file=sys.stderr, flush=True)

    return Log()


def reason(description: str) -> str:
    """Return the part of a parser's or builder's message that a user understands.

    >>> reason('Assertion failed: mode == "none": ScatterND with reduction is not supported.')
    'ScatterND with reduction is not supported.'
    """
    if description.strip() == "false" or "Plugin not found" in description:
        return "TensorRT has no such operator."
    description = re.sub(r"\[\w+\.(?:cpp|h):\d+: \w+\]\s*", "", description)  # places in TensorRT's own source
    # "... Error Code 4: API Usage Error (n0: inputs must have same types. In validateTypes at /_src/x.cpp:40)"
    if match := re.search(r"Error Code \d+: [^(]*\((.*?) In \w+ at /", description, re.DOTALL):
        return match[1].strip()
    if match := re.search(r'&& "([^"]*)"\s*$', description):
        return match[1]
    if match := re.match(r"Assertion failed: .*?: (.+)", description, re.DOTALL):
        return match[1].strip()
    return description.strip().splitlines()[0] if description.strip() else "no reason given"


def refusals(parser: Any, path: str) -> list[Json]:
    """Return {node, op, reason} of each node that the parser refused, in graph order."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    found: list[Json] = []
    for error in errors:
        where = [str(frame) for frame in error.local_function_stack()]
        entry = {
            "node": error.node_name(),
            "op": error.node_operator(),
            "index": error.node(),
            "where": where,
            "reason": reason(error.desc()),
        }
        if entry not in found:
            found.append(entry)
    if any(not entry["node"] and not entry["where"] for entry in found):
        found = list(name_nameless(found, path))
    for entry in found:
        where = " in ".join(reversed(entry.pop("where")))
        entry["node"] = f"{entry['node'] or entry['op']} in {where}" if where else entry["node"]
        del entry["index"]
    return found


def name_nameless(found: Sequence[Json], path: str) -> Iterator[Json]:
    """Name a nameless node by its first output, and an interface of a refused type by its tensor."""
    onnx: Any = importlib.import_module("onnx")
    protobuf: Any = importlib.import_module("google.protobuf.message")
    try:
        graph = onnx.load_model(path, load_external_data=False).graph
    except protobuf.DecodeError as error:
        raise Refused("source", f"{path} is not a valid ONNX model: {error}.") from error
    for entry in found:
        if entry["node"] or entry["where"]:
            yield entry
        elif entry["op"] and 0 <= entry["index"] < len(graph.node):
            yield {**entry, "node": f"-> {graph.node[entry['index']].output[0]}"}
        elif "date type" in entry["reason"]:  # "Failed to convert ONNX date type": the parser's spelling
            yield from refused_types(entry, graph, onnx.TensorProto.DataType.Name) or [entry]
        else:
            yield entry


def refused_types(entry: Json, graph: Any, type_name: Callable[[int], str]) -> list[Json]:
    """Return one entry for each input and output of `graph` whose type TensorRT does not have."""
    found: list[Json] = []
    for value, role in [*((v, "input") for v in graph.input), *((v, "output") for v in graph.output)]:
        dtype = type_name(value.type.tensor_type.elem_type)
        if dtype in ABSENT_TYPES:
            reason = f"TensorRT has no type {dtype.lower()}."
            found.append({**entry, "node": value.name, "op": role, "reason": reason})
    return found


def parse(trt: Any, builder: Any, log: Any, path: str) -> Any:
    """Return the strongly typed network that the ONNX file at `path` describes. Raises Refused."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    # Without a name TensorRT numbers its networks and writes the number into the engine: two builds then differ.
    network.name = "network"
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        found = refusals(parser, path)
        raise Refused("unsupported", f"TensorRT does not accept {path}.", refusals=found)
    if network.num_outputs == 0:  # bytes that are no ONNX model parse "successfully" to an empty network
        raise Refused("source", f"{path} is not a valid ONNX model: TensorRT found no output in it.")
    return network


def tensors(count: int, get: Callable[[int], Any]) -> list[Json]:
    """Describe the inputs or outputs of a network: name, dtype, shape (-1 dynamic), whether its *value* is a shape."""
    return [
        {"name": t.name, "dtype": t.dtype.name, "shape": list(t.shape), "is_shape": bool(t.is_shape_tensor)}
        for t in (get(i) for i in range(count))
    ]


def layers(network: Any) -> list[Json]:
    """Describe each layer: name, kind, metadata (its ONNX node), and the dtypes that it reads and writes."""
    described: list[Json] = []
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        reads, writes = ([t.dtype.name for t in group if t is not None] for group in (inputs, outputs))
        entry = {"name": layer.name, "kind": layer.type.name, "metadata": layer.metadata}
        described.append({**entry, "reads": reads, "writes": writes})
    return described


def check_profile(inputs: Sequence[Json], profile: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise Refused when a dynamic input has no range, or a range does not fit its input."""
    names = {tensor["name"] for tensor in inputs}
    if unknown := [name for name in (*profile, *values) if name not in names]:
        known = ", ".join(sorted(names))
        raise Refused(
            "usage", f"The profile names '{unknown[0]}', which is no input of the network.", f"Inputs: {known}."
        )
    for tensor in inputs:
        name, shape = tensor["name"], tensor["shape"]
        if -1 in shape and name not in profile:
            raise Refused(
                "usage",
                f"Input '{name}' has dynamic dimensions {shape} and no profile.",
                "Give its min, opt and max shape.",
            )
        if tensor["is_shape"] and name not in values:
            raise Refused(
                "usage",
                f"The values of input '{name}' decide shapes inside the network, and no range of values is given.",
                "Give the min, opt and max *values* of this input, or make it a constant of the graph.",
            )
        if name in profile:
            check_range(name, profile[name], shape)
        if name in values:
            check_range(name, values[name], None)


def check_range(name: str, bounds: Sequence[Sequence[int]], shape: Sequence[int] | None) -> None:
    """Raise Refused unless min <= opt <= max in every position and fixed dimensions are kept."""
    low, best, high = bounds
    text = f"min {list(low)}, opt {list(best)}, max {list(high)}"
    rank = len(low) if shape is None else len(shape)
    if not len(low) == len(best) == len(high) == rank:
        raise Refused("usage", f"The profile of input '{name}' ({text}) does not have {rank} dimensions.")
    if any(not a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise Refused("usage", f"The profile of input '{name}' ({text}) does not satisfy min <= opt <= max.")
    for axis, size in enumerate(shape or ()):
        if size != -1 and not low[axis] == high[axis] == size:
            raise Refused(
                "usage", f"The profile of input '{name}' ({text}) changes dimension {axis}, which is fixed at {size}."
            )


def add_profile(builder: Any, config: Any, request: Json) -> None:
    """Give `config` the one optimization profile of the request, if it has any range."""
    if not request["profile"] and not request["values"]:
        return
    profile = builder.create_optimization_profile()
    for name, bounds in request["profile"].items():
        profile.set_shape(name, *bounds)
    for name, bounds in request["values"].items():
        profile.set_shape_input(name, *bounds)
    config.add_optimization_profile(profile)


def configure(trt: Any, builder: Any, options: Json) -> Any:
    """Return the builder configuration that `options` (BuildOptions as JSON) means.

    Raises Refused for what the library lacks.
    """
    config = builder.create_builder_config()
    set_targets(trt, config, options["compute_capabilities"])
    for option, flag in FLAG_OPTIONS.items():
        member = getattr(trt.BuilderFlag, flag, None)
        if member is None and options[option] and option != "tf32":
            raise Refused("unsupported", f"This TensorRT has no option '{option}'.")
        if member is not None:
            (config.set_flag if options[option] else config.clear_flag)(member)
    if options["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_bytes"])
    if options["optimization_level"] is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options["hardware_compatibility"] is not None:
        level = getattr(trt.HardwareCompatibilityLevel, options["hardware_compatibility"])
        config.hardware_compatibility_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what EngineInspector needs to tell precisions
    return config


def set_targets(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Set the compute capabilities; none leaves the library's default."""
    if not names:
        return
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        member = getattr(trt.ComputeCapability, name.upper(), None)
        if member is None or not config.set_compute_capability(member, index):
            raise Refused("unsupported", f"This TensorRT does not build for {name}.")


def load_timing_cache(config: Any, path: str | None) -> None:
    """Use the timing cache at `path`; a missing file is an empty cache."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        content = b""
    config.set_timing_cache(config.create_timing_cache(content), False)


def save_timing_cache(config: Any, path: str | None) -> None:
    """Write the timing cache back, so that the next build on this GPU chooses the same kernels."""
    if path is not None:
        with open(path, "wb") as file:
            file.write(memoryview(config.get_timing_cache().serialize()))


def write_engine(trt: Any, builder: Any, network: Any, config: Any, path: str) -> bool:
    """Build straight into the file at `path`; False when TensorRT could not build. Raises OSError (disk full)."""
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            with open(path, "wb") as file:
                file.write(memoryview(plan))
        return plan is not None

    failure: list[OSError] = []

    class Writer(trt.IStreamWriter):
        def write(self, data: Any) -> int:
            try:
                return file.write(data)
            except OSError as error:  # cannot pass through C++; raised below
                failure.append(error)
                return 0

    with open(path, "wb") as file:
        done = builder.build_serialized_network_to_stream(network, config, Writer())
        if failure:
            raise failure[0]
    return bool(done)


def build(trt: Any, log: Any, request: Json) -> Json:
    """Parse, configure and build. Returns the answer {parse_seconds, build_seconds, inputs, outputs, layers}."""
    builder = trt.Builder(log)
    start = time.perf_counter()
    network = parse(trt, builder, log, request["model"])
    parsed = time.perf_counter()
    inputs = tensors(network.num_inputs, network.get_input)
    answer: Json = {
        "inputs": inputs,
        "outputs": tensors(network.num_outputs, network.get_output),
        "layers": layers(network),
    }
    answer["parse_seconds"] = parsed - start
    if request["output"] is None:
        return answer
    check_profile(inputs, request["profile"], request["values"])
    config = configure(trt, builder, request["options"])
    add_profile(builder, config, request)
    load_timing_cache(config, request["options"]["timing_cache"])
    try:
        done = write_engine(trt, builder, network, config, request["output"])
    except OSError as error:
        raise Refused("disk", f"The engine could not be written to {request['output']}: {error.strerror}.") from error
    if not done:
        raise Refused("build", "TensorRT could not build the engine.", refusals=builder_errors(log))
    save_timing_cache(config, request["options"]["timing_cache"])
    return {**answer, "build_seconds": time.perf_counter() - parsed}


def builder_errors(log: Any) -> list[Json]:
    """Return the last distinct error records of the builder, most recent last."""
    texts = list(dict.fromkeys(reason(message) for message in log.errors))
    return [{"node": "", "op": "", "reason": text} for text in texts[-3:]]


def session_module() -> Any:
    """Return the file beside this one that loads and runs engines; their folder is none to import from by name."""
    spec = importlib.util.spec_from_file_location("tensorrt_session", f"{Path(__file__).parent}/_tensorrt_session.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_engine(trt: Any, log: Any, request: Json) -> Json:
    """Describe the engine that `request` names, or run it on samples. Raises Refused."""
    session = session_module()
    try:
        return (run_engine if request["command"] == "run" else read_engine)(session, trt, log, request)
    except session.NotRun as error:
        found = builder_errors(log) if error.kind == "unsupported" else ()
        raise Refused(error.kind, error.message, error.hint, found) from error


def read_engine(session: Any, trt: Any, log: Any, request: Json) -> Json:
    """Deserialize the engine (needs the GPU that it was built for) and describe it."""
    runtime = trt.Runtime(log)
    engine = session.load(runtime, request["engine"])
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {**session.describe(trt, engine), "inspector": json.loads(information)}


def run_engine(session: Any, trt: Any, log: Any, request: Json) -> Json:
    """Run the engine on each of the pickled samples and pickle the outputs; both files are infconv's own."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise Refused("dependency", *NO_BINDINGS) from error
    opened = session.Session(trt, cuda, log, request["engine"])
    with open(request["samples"], "rb") as file:
        samples = pickle.load(file)
    outputs = [opened.run(sample) for sample in samples]
    with open(request["outputs"], "wb") as file:
        pickle.dump(outputs, file, protocol=5)
    return {}


def main() -> None:
    """Answer the request on stdin."""
    request: Json = json.load(sys.stdin)
    trt: Any = importlib.import_module(request["module"])
    log = make_logger(trt, request["log_threshold"])
    try:
        answer = (build if request["command"] == "build" else with_engine)(trt, log, request)
    except Refused as refused:
        answer = {"error": refused.answer}
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
