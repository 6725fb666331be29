"""Real architectures with seeded random weights, exported to ONNX: the files that the benchmarks run on.

python benchmarks/zoo.py FOLDER [NAME ...]      # writes NAME.raw.onnx (optimize=False) and NAME.default.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGE = "pixel_values"


def _torch() -> Any:
    import torch

    torch.manual_seed(0)
    return torch


def _text(model_class: str, config: Any) -> tuple[Any, tuple[Any, ...]]:
    import transformers

    torch = _torch()
    ids = torch.arange(2 * 64).reshape(2, 64) % 100
    return Output(getattr(transformers, model_class)(config).eval()), (ids, torch.ones_like(ids))


def _image(model_class: str, config: Any, size: int = 224) -> tuple[Any, tuple[Any, ...]]:
    import transformers

    torch = _torch()
    model = getattr(transformers, model_class)(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return Output(model), (torch.randn(1, 3, size, size),)


def Output(model: Any) -> Any:
    """Return `model` with its first output as the only one."""
    torch = _torch()

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            names = ("input_ids", "attention_mask") if len(inputs) == 2 else None
            result = self.model(**dict(zip(names, inputs, strict=True))) if names else self.model(*inputs)
            return result if isinstance(result, torch.Tensor) else result[0]

    return First().eval()


def _build() -> dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]]:
    import transformers as t

    return {
        "bert-base": lambda: _text("BertModel", t.BertConfig()),
        "distilbert": lambda: _text("DistilBertModel", t.DistilBertConfig()),
        "vit-b": lambda: _image("ViTModel", t.ViTConfig()),
        "resnet50": lambda: _image("ResNetModel", t.ResNetConfig()),
        "mobilenetv2": lambda: _image("MobileNetV2Model", t.MobileNetV2Config()),
        "convnext-t": lambda: _image("ConvNextModel", t.ConvNextConfig()),
        "segformer-b0": lambda: _image("SegformerModel", t.SegformerConfig()),
        "efficientnet-b0": lambda: _image(
            "EfficientNetModel",
            t.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280),
        ),
        "whisper-tiny-encoder": _whisper,
        "llama-small": _llama,
        "swin-t": lambda: _image("SwinModel", t.SwinConfig()),
        "t5-encoder": lambda: _text("T5EncoderModel", t.T5Config(num_layers=6)),
        "lstm": _lstm,
    }


def _whisper() -> tuple[Any, tuple[Any, ...]]:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch = _torch()
    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    return Output(WhisperEncoder(config).eval()), (torch.randn(1, 80, 3000),)


def _llama() -> tuple[Any, tuple[Any, ...]]:
    import transformers as t

    config = t.LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=8000,
        use_cache=False,
    )
    return _text("LlamaModel", config)


def _lstm() -> tuple[Any, tuple[Any, ...]]:
    torch = _torch()
    return Output(torch.nn.LSTM(256, 512, num_layers=2, batch_first=True).eval()), (torch.randn(2, 50, 256),)


NAMES = (
    *("bert-base", "distilbert", "vit-b", "resnet50", "mobilenetv2", "convnext-t", "segformer-b0", "efficientnet-b0"),
    *("whisper-tiny-encoder", "llama-small", "swin-t", "t5-encoder", "lstm"),
)


def export(name: str, folder: Path) -> list[Path]:
    """Write both exports of one architecture; where neither works, that of the older TorchScript exporter."""
    torch = _torch()
    module, inputs = _build()[name]()
    written: list[Path] = []
    for kind, optimize in (("raw", False), ("default", True)):
        path = folder / f"{name}.{kind}.onnx"
        try:
            program = torch.onnx.export(module, inputs, dynamo=True, optimize=optimize, verbose=False)
            program.save(path)
        except Exception as error:
            print(f"{path.name}: torch.onnx.export failed: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        written.append(path)
    if not written:
        path = folder / f"{name}.torchscript.onnx"
        torch.onnx.export(module, inputs, path, dynamo=False, opset_version=17, verbose=False)
        written.append(path)
    return written


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or NAMES:
        for path in export(name, folder):
            print(path)


if __name__ == "__main__":
    main()
