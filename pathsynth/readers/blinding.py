"""The same path from pixels to PNG for every image of a page, so that nothing but the picture tells where it comes from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np

from pathsynth.data.images import resize_images

# Number of values of the noise that hides the two lowest bits.
LEVELS = 4


def blind_image(image: np.ndarray, size: int, channels: int, rng: np.random.Generator) -> bytes:
    """Converts an image to a PNG whose length, chunks and lowest bits are those of every other image of the page.

    Args:
        image: uint8 (H, H, 3).
        size: side in pixels that it is resized to, with the filter that `prepare` uses.
        channels: 3, or 1 for a grey PNG.
        rng: source of the noise.
    """
    from PIL import Image

    pixels = resize_images(image[None], size)[0]
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return encode_png(hide_low_bits(pixels, rng))


def hide_low_bits(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compresses the range of values by 1.2 % and adds noise uniform on 0, 1, 2, 3.

    The sum modulo 4 is uniform and independent of the pixel, so the two lowest bits hold no information. The noise has a
    standard deviation of 1.1 grey levels, which nobody sees. The smaller range avoids clipping, which would favour some values.

    Args:
        pixels: uint8, any shape.
        rng: source of the noise.

    Returns:
        uint8 of the same shape.
    """
    scaled = np.rint(pixels * ((256 - LEVELS) / 255)).astype(np.uint8)
    return scaled + rng.integers(0, LEVELS, pixels.shape, np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (H, W, 3) or (H, W) as a PNG with stored deflate blocks, so that its length depends only on the shape.

    Compressed, a smooth image would be shorter than a detailed one, and generated images are smoother.
    """
    from PIL import Image

    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
        return buffer.getvalue()


def make_ids(count: int) -> list[str]:
    """Numbers trials from 001, with as many digits as the last one needs."""
    digits = max(3, len(str(count)))
    return [f"{number:0{digits}d}" for number in range(1, count + 1)]


def compute_checksum(kind: str, classes: Sequence[str], trials: Sequence[tuple[str, Sequence[bytes]]]) -> str:
    """Computes the checksum of a page, SHA-256 in hexadecimal digits; page, key and answers state it.

    Args:
        kind: "study" or "preference".
        classes: slugs of the data set, in the order of its labels.
        trials: for each trial its id and its encoded images, in the order of the page.
    """
    content = [kind, list(classes), [[name, [hashlib.sha256(png).hexdigest() for png in images]] for name, images in trials]]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def seed_by_content(seed: int, hashes: Sequence[str]) -> np.random.SeedSequence:
    """Mixes a seed with the checksums of the images, so that nobody can replay the order from a guessed seed alone."""
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return np.random.SeedSequence([seed, int(digest, 16)])
