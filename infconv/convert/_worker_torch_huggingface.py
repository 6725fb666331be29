"""The inputs of a Hugging Face model, from its configuration and the signature of its forward."""

from __future__ import annotations

from typing import Any

import torch

from ._worker import WorkerError
from ._worker_torch_inputs import Input, parameters_of

IMAGE_SIZE = 224
"""Where the configuration has none, as for ResNet: what the published checkpoints were trained on."""
CHANNELS = 3
SAMPLES = 16000
"""One second of audio at 16 kHz."""


def default_inputs(module: torch.nn.Module, *, guess: bool) -> list[Input]:
    """Return the inputs that inference needs: dynamic batch, and dynamic sequence for text.

    Raises WorkerError of kind usage for an input that is not known here; without `guess`, returns none then.
    """
    model: Any = module
    parameters = parameters_of(module)
    accepted = [p.name for p in parameters]
    try:
        found = [_main_input(model, accepted)]
    except WorkerError:
        if guess:
            raise
        return []
    names = {found[0].name}
    if "input_ids" in accepted and "pixel_values" in accepted and "input_ids" not in names:
        found.append(_tokens("input_ids", _text(model.config), "seq"))
    if any(each.name == "input_ids" for each in found):
        found += _beside_tokens(model, accepted)
    if "decoder_input_ids" in accepted and getattr(model.config, "is_encoder_decoder", False):
        found.append(_tokens("decoder_input_ids", _text(model.config), "decoder_seq"))
    return sorted(found, key=lambda each: accepted.index(each.name))


def _main_input(model: Any, accepted: list[str]) -> Input:
    config = model.config
    name = getattr(model, "main_input_name", "input_ids")
    if name not in accepted:
        name = next((each for each in ("input_ids", "pixel_values", "input_features") if each in accepted), name)
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    if name == "input_ids":
        return _tokens(name, _text(config), "seq")
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        return Input(name, ("batch", getattr(vision, "num_channels", CHANNELS), *_image_size(vision)), dtype)
    if name == "input_features":
        bins = getattr(config, "num_mel_bins", 80)
        return Input(name, ("batch", bins, 2 * getattr(config, "max_source_positions", 1500)), dtype)
    if name == "input_values":
        return Input(name, ("batch", SAMPLES), dtype)
    raise WorkerError(
        "usage",
        f"The sizes of {type(model).__name__}'s input '{name}' do not follow from its configuration.",
        f"Give them: --input {name}:batch,...  (its forward takes {', '.join(accepted[:6])}, ...)",
    )


def _tokens(name: str, config: Any, length: str) -> Input:
    return Input(name, ("batch", length), torch.int64, high=getattr(config, "vocab_size", 2))


def _beside_tokens(model: Any, accepted: list[str]) -> list[Input]:
    config = _text(model.config)
    found: list[Input] = []
    if "attention_mask" in accepted:
        found.append(Input("attention_mask", ("batch", "seq"), torch.int64, high=2, ones=True))
    types = getattr(config, "type_vocab_size", 0) or 0
    if "token_type_ids" in accepted and types > 1:
        found.append(Input("token_type_ids", ("batch", "seq"), torch.int64, high=types))
    return found


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or IMAGE_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _text(config: Any) -> Any:
    return getattr(config, "text_config", None) or config
