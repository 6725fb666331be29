"""What `--verify each` costs beside `--verify end`: CPU time of whole conversions, in turn.

python benchmarks/zoo.py FOLDER bert-base
python benchmarks/trust.py FOLDER/bert-base.raw.onnx [ROUNDS]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile


def seconds(source: str, when: str) -> float:
    """Return the CPU time, in seconds, of a conversion in a process of its own, children included."""
    before = _children()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "infconv.cli", "convert", source, "-o", f"{folder}/o.onnx", "--verify", when]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    source, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    times: dict[str, list[float]] = {"end": [], "each": []}
    for _ in range(rounds):
        for when, values in times.items():
            values.append(seconds(source, when))
    medians = {when: statistics.median(values) for when, values in times.items()}
    for when, values in times.items():
        print(f"--verify {when:4}  {medians[when]:6.2f} CPU s  ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"each / end     {medians['each'] / medians['end']:6.2f}")


if __name__ == "__main__":
    main()
