"""What a user may say about calibration data: the `calibration:` key of a pipeline file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infconv.entries import Entry


class ImageOptions(Entry):
    """How an image file becomes an array, as the model was trained with."""

    resize: int | tuple[int, int] | None = None
    """The shorter side, or [height, width], before cropping; by default the model's own size."""
    crop: int | tuple[int, int] | None = None
    """The size of the centre that is kept; by default the model's own."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of values in 0..1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Each channel is divided by it."""
    scale: float = 1 / 255
    """Multiplies the bytes 0..255 first."""
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    """auto: by where the model's input has 1 or 3 channels."""


class TextOptions(Entry):
    """How a line of text becomes token ids."""

    tokenizer: str = ""
    """A tokenizer.json; without one each line holds the arrays themselves."""
    length: int = Field(default=128, ge=1)
    """Longer texts are cut; a fixed length in the model decides instead."""
    field: str = "text"
    """The key of the text in each JSON line."""


class CalibrationEntry(Entry):
    """Data that quantisation scales are found with."""

    path: str
    """.npz, folder of .npz or .npy, folder of images, .jsonl, or `module:function`."""
    samples: int = Field(default=0, ge=0)
    """How many to use; 0: all."""
    image: ImageOptions = Field(default_factory=ImageOptions)
    text: TextOptions = Field(default_factory=TextOptions)
