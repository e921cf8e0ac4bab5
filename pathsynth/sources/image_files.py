"""Images that are decoded from their files in chunks: TIFF, PNG, JPEG, BMP and WebP, by Pillow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import catch_read_errors
from pathsynth.data.images import resize_images

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFile

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Pillow is limited to these, because others, such as EPS, would start a program.
FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "WEBP")
# Modes that Pillow converts to RGB without loss; 16-bit, float and CIELAB images are in none of them.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
# From here on Pillow warns, because a small file may expand to gigabytes.
MAX_PIXELS = 89_478_485
LARGE_REMEDY = f"allowed: {MAX_PIXELS:,}. Cut it into tiles"
# Pillow decodes outside Python's lock. More threads would hold more images in memory.
THREADS = 4


@dataclass(frozen=True)
class ImageFiles:
    """Images that stay in their files until `iter_chunks` decodes them.

    Attributes:
        folder: folder that the names start from.
        names: paths of the files, relative and with slashes.
        size: side in pixels that the images are resized to.
        channels: 3, or 1 for grey images.
        groups: number of patients or slides that the images come from; None if it is not known.
        selected_from: number of available images; None if all are selected.
    """

    folder: Path
    names: Sequence[str]
    size: int
    channels: int
    groups: int | None = None
    selected_from: int | None = None

    @property
    def available(self) -> int:
        """Number of available images, from which these were selected."""
        return len(self) if self.selected_from is None else self.selected_from

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, size, size, 3), or (N, size, size) for grey images."""
        return (len(self.names), self.size, self.size, *((3,) if self.channels == 3 else ()))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the chunks, uint8."""
        return np.dtype(np.uint8)

    @property
    def row_bytes(self) -> int:
        """Size of one image."""
        return math.prod(self.shape[1:])

    def __len__(self) -> int:
        return len(self.names)

    def iter_chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Decodes the images in chunks of at most `rows`.

        Raises:
            DataError: the first file that is not a complete image of 8 bits per channel.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(self), rows):
                yield self._decode(pool, self.names[start : start + rows])

    def _decode(self, pool: ThreadPoolExecutor, names: Sequence[str]) -> np.ndarray:
        chunk = np.empty((len(names), *self.shape[1:]), np.uint8)
        # here and not in the threads, because warning filters belong to the process
        with warnings.catch_warnings():
            # about metadata, which is not used, and about large images, which are refused
            warnings.simplefilter("ignore")
            images = pool.map(lambda name: read_image(self.folder / name, self.size, self.channels), names)
            for index, image in enumerate(images):
                chunk[index] = image
        return chunk


def read_image(path: Path, size: int, channels: int = 3) -> np.ndarray:
    """Reads an image file, crops it to its central square and resizes it.

    EXIF orientation is applied, transparent pixels are laid on white, and colour profiles are ignored.

    Args:
        path: the file.
        size: side in pixels.
        channels: 3 converts to RGB, 1 to grey.

    Returns:
        uint8 (size, size, 3) or (size, size).

    Raises:
        DataError: the file is missing, damaged or truncated, larger than Pillow's limit, has more than 8 bits per channel, or
            holds several pages.
    """
    from PIL import Image, UnidentifiedImageError

    with catch_read_errors(path, "an image"):
        try:
            pixels = _decode_square(path, "RGB" if channels == 3 else "L")
        except Image.DecompressionBombError as error:
            raise DataError(path, f"has more than {2 * MAX_PIXELS:,} pixels; {LARGE_REMEDY}") from error
        except UnidentifiedImageError as error:
            raise DataError(path, f"is damaged, or is not an image in one of the formats {', '.join(FORMATS)}") from error
        except OSError as error:
            # errors of the system have a number, those of decoders do not
            if error.errno is None:
                raise DataError(path, f"is damaged or truncated: {one_line(error)}") from error
            raise
    return resize_images(pixels[None], size)[0]


def _decode_square(path: Path, mode: str) -> np.ndarray:
    """Decodes the central square of an image, uint8 (H, H, 3) or (H, H)."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        _check_image(path, image)
        # in place and only where needed, because an image may have hundreds of megabytes
        ImageOps.exif_transpose(image, in_place=True)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image if image.width == image.height else image.crop((left, top, left + side, top + side))
        return np.asarray(_convert(square, mode))


def _check_image(path: Path, image: PIL.ImageFile.ImageFile) -> None:
    """Raises DataError for a huge image, or one of which Pillow would read only a part: 16 bits per channel, several pages."""
    if (pixels := image.width * image.height) > MAX_PIXELS:
        raise DataError(path, f"has {pixels:,} pixels; {LARGE_REMEDY}")
    # Pillow keeps the high bytes of 16-bit colours; in BMP files, 16 bits are those of a whole pixel
    deep = image.format != "BMP" and any(";16" in str(tile.args) for tile in image.tile)
    if deep or image.mode not in MODES:
        found = f"mode {image.mode}, 16 bits" if deep else f"mode {image.mode}"
        raise DataError(path, f"is not an image of 8 bits per channel ({found}); convert it to 8-bit RGB or grey")
    # the further images of a camera's JPEG are previews of the first
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":
        raise DataError(path, f"holds {pages} pages; save each in a separate file")


def _convert(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # grey and palette images of other modes have no direct conversion to grey
    return image if image.mode == mode else image.convert("RGB").convert(mode)
