"""Encodes images for a page that must stay small: losslessly if they fit, else as WebP of falling quality and size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.report.pages import Picture, embed_image

if TYPE_CHECKING:
    from PIL.Image import Image

# Images by which the size of all is estimated, and the margin for what they do not show.
SAMPLE, MARGIN = 48, 1.08


@dataclass(frozen=True)
class Encoding:
    """A way to encode images.

    Attributes:
        quality: of WebP, 1 to 100; None for PNG, which is lossless.
        max_size: larger images are reduced to this side in pixels; None keeps their size.
    """

    quality: int | None = None
    max_size: int | None = None

    def describe(self, size: int) -> str:
        """Describes what the encoding does to images of `size` pixels, as a sentence."""
        if self.quality is None:
            return f"All images are shown losslessly, {size} px wide."
        reduced = f" and reduced from {size} to {self.max_size} px" if self.max_size and self.max_size < size else ""
        return f"All images are compressed (WebP, quality {self.quality}){reduced}, which loses fine detail."


# From the best to the smallest.
ENCODINGS = (
    Encoding(), Encoding(90), Encoding(80), Encoding(70), Encoding(60), Encoding(60, 160), Encoding(60, 112), Encoding(50, 64)
)  # fmt: skip


def choose_encoding(images: Sequence[np.ndarray], budget: int) -> Encoding:
    """Chooses the best encoding in which the images fit, or the smallest one if none does.

    Args:
        images: uint8 (H, W, 3) each.
        budget: bytes of all images as `data:` URLs.
    """
    step = max(1, len(images) // SAMPLE)
    sample = images[::step]
    for encoding in ENCODINGS[:-1]:
        length = sum(len(encode(image, encoding).source) for image in sample)
        if length * len(images) / max(1, len(sample)) * MARGIN <= budget:
            return encoding
    return ENCODINGS[-1]


def encode(image: np.ndarray, encoding: Encoding) -> Picture:
    """Encodes one image, uint8 (H, W, 3), as a `data:` URL; grey images with one channel."""
    from PIL import Image

    grey = (image == image[..., :1]).all()
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    if encoding.max_size and encoding.max_size < picture.width:
        picture = picture.resize((encoding.max_size, encoding.max_size), Image.Resampling.LANCZOS)
    return embed_image(picture) if encoding.quality is None else _embed_webp(picture, encoding.quality)


def _embed_webp(picture: Image, quality: int) -> Picture:
    with io.BytesIO() as buffer:
        picture.convert("RGB").save(buffer, format="WEBP", quality=quality, method=4)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/webp;base64,{data}", *picture.size)
