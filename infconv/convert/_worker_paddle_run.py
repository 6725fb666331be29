"""Run the original model with Paddle's inference engine, its graph optimizations off."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle.inference  # pyright: ignore[reportMissingImports]

from ._worker import WorkerError, first_line, ran_out_of_memory
from ._worker_paddle_program import Tensor


class Original:
    """The model as it was saved."""

    def __init__(self, program: str, parameters: str | None) -> None:
        config = paddle.inference.Config(program, parameters or "")
        config.disable_gpu()
        config.disable_glog_info()
        config.switch_ir_optim(False)
        if hasattr(config, "disable_mkldnn"):
            config.disable_mkldnn()
        try:
            self._predictor = paddle.inference.create_predictor(config)
        except Exception as error:  # Paddle raises whatever it meets
            if ran_out_of_memory(error):
                raise
            raise WorkerError(
                "source",
                f"Paddle {paddle.__version__} cannot load '{program}': {paddle_words(error)}",
                "It may be damaged, or of a newer Paddle: give that one's interpreter with --python.",
            ) from error

    @property
    def input_names(self) -> list[str]:
        """The inputs, in the order of the model's own signature."""
        return list(self._predictor.get_input_names())

    @property
    def output_names(self) -> list[str]:
        """The outputs, in order."""
        return list(self._predictor.get_output_names())

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs, in order. Raises WorkerError (usage) when the model does not take `arrays`."""
        predictor = self._predictor
        try:
            for name in predictor.get_input_names():
                predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(arrays[name]))
            predictor.run()
            return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
        except Exception as error:  # Paddle raises whatever it meets
            if ran_out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise WorkerError("usage", f"The Paddle model does not run on {shapes}: {paddle_words(error)}") from error


def share_a_batch(original: Original, inputs: list[Tensor]) -> bool:
    """Tell whether the first dimensions of `inputs` are one: the model runs when they agree, and only then."""
    equal = {tensor.name: _example(tensor, 2) for tensor in inputs}
    other = {tensor.name: _example(tensor, 2 + i) for i, tensor in enumerate(inputs)}
    return _runs(original, equal) and not _runs(original, other)


def _runs(original: Original, arrays: Mapping[str, np.ndarray]) -> bool:
    try:
        original.run(arrays)
    except WorkerError:
        return False
    return True


def _example(tensor: Tensor, first: int) -> np.ndarray:
    sizes = [8 if size < 0 else size for size in tensor.dims]
    if tensor.dims and tensor.dims[0] < 0:
        sizes[0] = first
    return np.zeros(sizes, tensor.dtype)


def paddle_words(error: BaseException) -> str:
    """Return the sentence that matters of Paddle's error message, which comes with a C++ trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if line.startswith("Error Message Summary")), None)
    if at is not None:
        rest = [line for line in lines[at + 1 :] if set(line) != {"-"}]
        if rest:
            return rest[0]
    return first_line(error)
