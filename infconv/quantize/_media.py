"""Calibration data that is no array yet: image files, and lines of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infconv.errors import UsageError, missing_extra
from infconv.quantize._calibration_options import ImageOptions, TextOptions
from infconv.quantize._inputs import Array, Batch, Input

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
"""Tokens that fill a text up to a fixed length, the first that a tokenizer knows."""

# --- images ------------------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    """Return the images in `folder`, or, when there are none, in the folders below it, from each of them in turn.

    A folder for each class is usual; the first samples then are of many classes.
    """
    found = sorted(f for f in folder.iterdir() if _is_image(f))
    if found:
        return found
    below: dict[Path, list[Path]] = {}
    for file in sorted(f for f in folder.rglob("*") if _is_image(f)):
        below.setdefault(file.parent, []).append(file)
    return [file for turn in itertools.zip_longest(*below.values()) for file in turn if file is not None]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _IMAGES and not file.name.startswith(".") and file.is_file()


def images(files: Sequence[Path], info: Input, options: ImageOptions) -> Iterator[Batch]:
    """Yield each image as a batch of one. Raises UsageError for what is no image, or does not fit the options."""
    try:
        from PIL import Image  # pyright: ignore[reportMissingImports]  (an optional dependency)
    except ImportError:
        raise missing_extra("pillow", "images", "--calibration with a folder of images") from None
    channels_last, channels, size = _image_geometry(info, options)
    mean, std = (_for_channels(name, getattr(options, name), channels) for name in ("mean", "std"))
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = _fitted(_eight_bits(opened).convert("L" if channels == 1 else "RGB"), size, options)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UsageError(f"--calibration: '{file}' cannot be read: {error}.", "Remove it, or repair it.") from error
        array = np.asarray(picture, np.float32).reshape(*picture.size[::-1], channels)
        if info.dtype.kind == "f":
            array = (array * np.float32(options.scale) - mean) / std
        yield {info.name: (array if channels_last else array.transpose(2, 0, 1))[None].astype(info.dtype)}


def _for_channels(name: str, values: Sequence[float], channels: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if channels == 1 or len(values) == 1:
        values = values[:1]
    elif len(values) != channels:
        raise UsageError(
            f"calibration.image.{name} has {len(values)} values; the model's input has {channels} channels.",
            "Give one value, or one for each channel.",
        )
    if name == "std" and not all(values):
        raise UsageError("calibration.image.std has a 0, by which a channel would be divided.")
    return np.array(values, np.float32)


def _image_geometry(info: Input, options: ImageOptions) -> tuple[bool, int, tuple[int, int] | None]:
    """Return (channels last?, channels, (height, width) of the model where fixed). Raises UsageError."""
    if len(info.dims) != 4:
        raise UsageError(f"Input '{info.name}' has {len(info.dims)} dimensions: it takes no images.", "Use .npz files.")
    last = options.layout == "NHWC" or (
        options.layout == "auto" and info.dims[3] in (1, 3) and info.dims[1] not in (1, 3)
    )
    channels = info.dims[3] if last else info.dims[1]
    if channels not in (1, 3):
        raise UsageError(f"Input '{info.name}' has {channels} channels; images have 1 or 3.", "Use .npz files.")
    height, width = info.dims[1:3] if last else info.dims[2:4]
    fixed = isinstance(height, int) and isinstance(width, int)
    return last, int(channels), (int(height), int(width)) if fixed else None


def _fitted(picture: Any, size: tuple[int, int] | None, options: ImageOptions) -> Any:
    """Return the picture resized, then its centre, of the model's size where that is fixed."""
    crop = _pair(options.crop) or size
    resize = options.resize if options.resize is not None else size
    if isinstance(resize, int):
        ratio = resize / min(picture.size)
        picture = picture.resize((round(picture.width * ratio), round(picture.height * ratio)))
    elif resize is not None:
        picture = picture.resize((resize[1], resize[0]))
    if crop is not None:
        if crop[0] > picture.height or crop[1] > picture.width:
            raise UsageError(
                f"calibration.image.crop {list(crop)} is larger than the image of {picture.height} x {picture.width} "
                "that it is cut from.",
                "Set calibration.image.resize to at least that size.",
            )
        top, left = (picture.height - crop[0]) // 2, (picture.width - crop[1]) // 2
        picture = picture.crop((left, top, left + crop[1], top + crop[0]))
    return picture


def _eight_bits(picture: Any) -> Any:
    """Return a picture of 16 bits for each pixel with its upper 8: converted as it is, it would be white."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


# --- text --------------------------------------------------------------------------------------------------------


def texts(path: Path, inputs: Sequence[Input], options: TextOptions) -> Iterator[Batch]:
    """Yield token ids of each line's text, or the arrays that a line holds already."""
    encode = _encoder(options, inputs) if options.tokenizer else None
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            arrays = entry if encode is None else encode(entry[options.field])
            yield {info.name: _array(arrays[info.name], info)[None] for info in inputs}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"--calibration '{path}', line {number}: {type(error).__name__}: {error}.",
                'Each line is JSON: {"text": "…"} with a tokenizer, or an array for each input.',
            ) from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise UsageError(f"--calibration '{path}' is not UTF-8: {error}.", "Save it as UTF-8.") from error


def _array(value: Any, info: Input) -> Array:
    """Return what a line holds for an input; whole numbers may stand for real ones, but not the other way round."""
    array = np.asarray(value)
    return array.astype(info.dtype) if info.dtype.kind == "f" and array.dtype.kind in "iu" else array


def _encoder(options: TextOptions, inputs: Sequence[Input]) -> Callable[[str], dict[str, list[int]]]:
    """Return what turns a text into a list for each input. Raises UsageError."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise missing_extra("tokenizers", "text", "--calibration with text") from None
    try:
        tokenizer = Tokenizer.from_file(options.tokenizer)
    except Exception as error:  # the library raises nothing more special
        raise UsageError(
            f"calibration.text.tokenizer '{options.tokenizer}' cannot be read: {error}.", "Name a tokenizer.json."
        ) from error
    fixed = [info.dims[1] for info in inputs if len(info.dims) > 1 and isinstance(info.dims[1], int)]
    length = int(fixed[0]) if fixed else options.length
    padding = next((i for i in map(tokenizer.token_to_id, _PADDING) if i is not None), 0)
    tokenizer.enable_truncation(length)  # as it does it, so that the last token stays the one that ends a text
    own = tokenizer.padding or {}
    if fixed:
        tokenizer.enable_padding(
            length=length, pad_id=own.get("pad_id", padding), direction=own.get("direction", "right")
        )
    else:
        tokenizer.no_padding()
    return lambda text: _roles(tokenizer.encode(text), inputs)


def _roles(encoded: Any, inputs: Sequence[Input]) -> dict[str, list[int]]:
    known = {
        "attention_mask": encoded.attention_mask,
        "token_type_ids": encoded.type_ids,
        "position_ids": list(range(len(encoded.ids))),
    }
    unclear = [info for info in inputs if info.name not in known]
    if len(unclear) > 1:
        unclear = [info for info in unclear if not info.name.endswith("input_ids")]
        for info in unclear:
            raise UsageError(
                f"--calibration with text: nothing is known for input '{info.name}'.",
                "Write the arrays themselves: a line of JSON with one for each input.",
            )
    return {info.name: known.get(info.name, encoded.ids) for info in inputs}
