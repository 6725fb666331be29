"""Other optimisers, used as steps under `--verify each` on folders of models: on which of them the step is caught.

python benchmarks/peers.py onnxslim,onnxsim FOLDER_OR_MODEL... [--skip MODELS] [--most MODELS]

A model that infconv cannot read or run at all is not judged. Each conversion is a process of its own.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from infconv import api, isolate
from infconv.errors import InfconvError

SECONDS = 60.0
"""For a step, and three times as long for a conversion."""
LARGEST = 64 << 20
"""Bytes of a model."""


def judged(model: Path, step: str) -> tuple[str, str]:
    """Return `unchanged`, `applied`, `dropped` or `not judged`, and the reason."""

    def inside() -> tuple[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            result = api.convert(
                model, steps=[step], output=f"{folder}/o.onnx", verify="each", step_timeout=SECONDS, cache=False
            )
            (done,) = result.steps
            return done.status, done.reason

    try:
        return isolate.call(inside, what="The conversion", timeout=3 * SECONDS)
    except InfconvError as error:
        return "not judged", error.message


def models(folders: Sequence[str]) -> Iterator[Path]:
    """Yield the ONNX files, or those in the folders, that are not too large, in order."""
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.onnx")) if folder.is_dir() else [folder]:
            if path.is_file() and path.stat().st_size <= LARGEST:
                yield path


def main() -> None:
    for library in ("onnx", "onnx_ir", "onnxruntime", "onnxslim", "onnxsim"):
        importlib.import_module(library)  # once here, instead of in each child
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", help="onnxslim, onnxsim, or several with commas")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--most", type=int, default=None)
    given = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    chosen = list(models(given.folders))[given.skip :][: given.most]
    for path in chosen:
        for step in given.steps.split(","):
            status, reason = judged(path, step)
            counts[step, status] += 1
            print(f"{step}\t{status}\t{path}\t{reason}", flush=True)
    for (step, status), count in sorted(counts.items()):
        print(f"{step}: {status}: {count} of {len(chosen)}")


if __name__ == "__main__":
    main()
