"""INT4 weights of a Llama-style decoder beside ONNX Runtime's own quantizers: size, error, loss, latency, time, memory.

    python benchmarks/int4.py [--models FOLDER] [--tools NAME ...] [--block 32] [--samples 64] [--results FOLDER]

Trains the decoder (on the bytes of Python's standard library, some minutes, once) when FOLDER has none. Tools calibrate
on text that it was trained with and are judged on text that it never saw: signal-to-noise ratio of the logits against
the float model, and cross-entropy in nats for each byte. Each tool is a process of its own with one thread; memory is
its peak resident set. All files run in ONNX Runtime, activations in float. Writes FOLDER/int4.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WIDTH, HIDDEN, HEADS, SHARED, DEPTH, LENGTH = 256, 704, 8, 4, 4, 64
STEPS, BATCH, RATE, HELD_OUT = 250, 8, 3e-3, 64

PRELUDE = """
import sys, numpy as np
source, output, data, count, block = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
def batches():
    rows = np.load(data)['ids'][:count]
    for start in range(0, len(rows), 8):
        yield {'ids': rows[start:start + 8]}
"""
OURS = """
import infconv
def run(calibrated, before=(), **options):
    steps = ['onnxruntime', {'convert-opset': {'min': 21, 'required': False}}, *before,
             {'quantize-weights': {'bits': 4, 'block': block, **options}}, 'fuse-matmul-nbits', 'remove-unused']
    calibration = {'path': data, 'samples': count} if calibrated else None
    infconv.convert(source, target='ort', int4=True, steps=steps, calibration=calibration, output=output, verify='off')
"""
PEERS = """
import onnx
from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer as nbits
class Reader(CalibrationDataReader):
    def __init__(self): self.left = list(batches())
    def get_next(self): return self.left.pop(0) if self.left else None
def run(**options):
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), block_size=block, **options)
    quantizer.process()
    quantizer.model.save_model_to_file(output)
"""
TOOLS = {
    "infconv-nearest": OURS + "run(False)",
    "infconv-awq": OURS + "run(True, ['scale-salient-weights'], method='nearest')",
    "infconv-gptq": OURS + "run(True)",
    "infconv-awq+gptq": OURS + "run(True, ['scale-salient-weights'])",
    "ort-rtn": PEERS + "run()",
    "ort-rtn-symmetric": PEERS + "run(is_symmetric=True)",
    "ort-kquant": PEERS + "run(algo_config=nbits.KQuantWeightOnlyQuantConfig())",
    "ort-hqq": PEERS + "run(algo_config=nbits.HQQWeightOnlyQuantConfig(block_size=block))",
    "ort-gptq": PEERS + "run(algo_config=nbits.GPTQWeightOnlyQuantConfig(Reader()))",
    "ort-gptq-mse-order": PEERS + "run(algo_config=nbits.GPTQWeightOnlyQuantConfig(Reader(), mse=True, actorder=True))",
}


# --- the decoder -----------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Train and export the decoder, with calibration (ids) and held-out (test) text."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(path.read_bytes() for path in sources), np.uint8)
    rows = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int64)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    test, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    torch.manual_seed(0)
    net = _train(_decoder(), torch.from_numpy(rows))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=4096)
    torch.onnx.export(
        net, (torch.from_numpy(rows[:2]),), folder / "decoder.onnx", dynamo=True,
        dynamic_shapes=({0: batch, 1: length},), external_data=False, input_names=["ids"], output_names=["logits"],
        verbose=False,
    )  # fmt: skip
    np.savez(folder / "text.npz", ids=rows[: 8 * HELD_OUT], test=test)


def _decoder() -> Any:
    """Return a Llama: RMSNorm, rotary positions, grouped queries, SwiGLU."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    size = WIDTH // HEADS

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight

    def rotate(x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2])[:, None] * 1e4 ** (-torch.arange(0, size, 2) / size)
        cos, sin = angles.cos(), angles.sin()
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = Norm(), Norm()
            self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
            self.k, self.v = (nn.Linear(WIDTH, SHARED * size, bias=False) for _ in range(2))
            self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
            self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normal = self.before(x)
            q, k, v = (f(normal).unflatten(-1, (-1, size)).transpose(1, 2) for f in (self.q, self.k, self.v))
            k, v = (t.repeat_interleave(HEADS // SHARED, 1) for t in (rotate(k), v))
            mixed = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
            x = x + self.o(mixed.transpose(1, 2).flatten(2))
            normal = self.between(x)
            return x + self.down(F.silu(self.gate(normal)) * self.up(normal))

    return nn.Sequential(
        nn.Embedding(256, WIDTH), *(Layer() for _ in range(DEPTH)), Norm(), nn.Linear(WIDTH, 256, bias=False)
    )


def _train(net: Any, rows: Any) -> Any:
    import torch
    from torch.nn import functional as F

    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for index in torch.randint(len(rows), (STEPS, BATCH)):
        ids = rows[index]
        loss = F.cross_entropy(net(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"decoder: {loss.item():.2f} nats for each byte of the last training batch")
    return net.eval()


# --- tools -----------------------------------------------------------------------------------------------------------


def run_tool(tool: str, files: tuple[Path, Path, Path], samples: int, block: int) -> dict[str, Any]:
    """Run one tool in a process; return CPU and wall seconds and peak MB, or the error."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + TOOLS[tool], *map(str, files[:3]), str(samples), str(block)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    words = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not files[1].exists():
        return {"error": (words.strip().splitlines() or [f"exit {process.returncode}"])[-1][:160]}
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "mb": usage.ru_maxrss / 1024}


def judge(files: dict[str, str], data: str) -> dict[str, dict[str, float]]:
    """Return tool -> SQNR (dB), loss (nats), kB and milliseconds for a batch of 8, `float` itself among the tools."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with np.load(data) as arrays:
        ids = arrays["test"]
    sessions = {n: ort.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for n, p in files.items()}
    logits = {name: _logits(session, ids) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(20):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"ids": ids[:1]})
            times[name].append(1e3 * (time.perf_counter() - start))
    signal = float((logits["float"] ** 2).sum())
    return {
        name: {
            "sqnr": 10 * np.log10(signal / max(float(((found - logits["float"]) ** 2).sum()), 1e-30)),
            "loss": _loss(found, ids),
            "kb": Path(files[name]).stat().st_size / 1000,
            "ms": float(np.percentile(times[name], 20)),
        }
        for name, found in logits.items()
    }


def _logits(session: Any, ids: np.ndarray) -> np.ndarray:
    parts = [session.run(None, {"ids": ids[i : i + 8]})[0] for i in range(0, len(ids), 8)]
    return np.concatenate(parts).astype(np.float64)


def _loss(logits: np.ndarray, ids: np.ndarray) -> float:
    shifted = logits - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(-np.take_along_axis(shifted[:, :-1], ids[:, 1:, None], -1).mean())


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| tool | SQNR dB | loss | size | ms | s (CPU) | peak MB |", "|---|---|---|---|---|---|---|"]
    whole = rows["float"]["kb"]
    for tool, row in rows.items():
        if "error" in row:
            lines.append(f"| {tool} | {row['error']} |")
            continue
        cost = f"{row['wall']:.1f} ({row['cpu']:.1f}) | {row['mb']:.0f}" if "wall" in row else "- | -"
        sqnr = "-" if tool == "float" else f"{row['sqnr']:.2f}"
        lines.append(f"| {tool} | {sqnr} | {row['loss']:.4f} | {row['kb'] / whole:.3f}x | {row['ms']:.2f} | {cost} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=HERE / "models" / "decoder")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge:
        print(json.dumps(judge(json.loads(given.judge[0]), given.judge[1])))
        return
    source, data = given.models / "decoder.onnx", given.models / "text.npz"
    if not (source.exists() and data.exists()):
        make(given.models)
    rows: dict[str, dict[str, Any]] = {"float": {}}
    files = {"float": source}
    with tempfile.TemporaryDirectory(prefix="int4-bench-") as folder:
        calibration = Path(folder) / "calibration.npz"
        with np.load(data) as arrays:
            np.savez(calibration, ids=arrays["ids"])
        for tool in given.tools:
            files[tool] = Path(folder) / f"{tool}.onnx"
            rows[tool] = run_tool(tool, (source, files[tool], calibration), given.samples, given.block)
        files = {tool: path for tool, path in files.items() if "error" not in rows[tool]}
        command = [sys.executable, __file__, "--judge", json.dumps({k: str(v) for k, v in files.items()}), str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, found in json.loads(done.stdout).items():
        rows[name].update(found)
    print(table(rows))
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "int4.json").write_text(json.dumps({"block": given.block, "tools": rows}, indent=1))
    (given.results / "int4.md").write_text(f"# Blocks of {given.block}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
