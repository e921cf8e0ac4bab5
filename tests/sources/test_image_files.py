"""Image files of every usual kind give the pixels that were saved; anything else is one line that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathsynth.core.errors import DataError
from pathsynth.data.archives import iter_chunks
from pathsynth.data.images import resize_images
from pathsynth.sources.image_files import THREADS, ImageFiles, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
RGB, GREY = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0])
FLAT = Image.new("RGB", (16, 16), (200, 100, 50))


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("a.tif", RGB, {}, PIXELS),
        ("a.TIFF", RGB, {"compression": "tiff_lzw"}, PIXELS),
        ("a.tif", RGB.convert("RGBA"), {"compression": "tiff_deflate"}, PIXELS),
        ("a b ä.PNG", RGB, {}, PIXELS),
        ("a.bmp", RGB, {}, PIXELS),
        ("a.webp", RGB, {"lossless": True}, PIXELS),
        ("jpeg inside.png", FLAT, {"format": "JPEG", "quality": 100, "subsampling": 0}, np.array(FLAT)),
        ("a.JPG", FLAT.convert("CMYK"), {"quality": 100}, np.array(FLAT)),
        ("grey.png", GREY, {}, np.stack([PIXELS[..., 0]] * 3, axis=-1)),
        ("bits.tif", Image.fromarray(PIXELS[..., 0] > 99), {}, np.stack([(PIXELS[..., 0] > 99) * 255] * 3, axis=-1)),
        ("palette.png", FLAT.quantize(4), {}, np.array(FLAT)),
        ("clear.png", FLAT.quantize(4), {"transparency": 0}, np.full((16, 16, 3), 255)),
        ("half.png", Image.new("LA", (16, 16), (0, 51)), {}, np.full((16, 16, 3), 204)),
        ("half.png", Image.new("RGBA", (16, 16), (0, 255, 0, 51)), {}, np.full((16, 16, 3), (204, 255, 204))),
        ("camera.jpg", FLAT, {"format": "MPO", "save_all": True, "append_images": [GREY], "quality": 100}, np.array(FLAT)),
    ],
)  # fmt: skip
def test_image_is_read_as_rgb_on_white(name: str, image: Image.Image, options: dict, expected: np.ndarray, tmp_path: Path):
    image.save(tmp_path / name, **options)
    found = read_image(tmp_path / name, 16)
    # JPEG rounds
    np.testing.assert_allclose(found.astype(int), expected, atol=2 if "quality" in options else 0)
    np.testing.assert_array_equal(read_image(tmp_path / name, 16, channels=1), np.array(Image.fromarray(found).convert("L")))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
@pytest.mark.parametrize("size", [16, 12])
def test_image_is_turned_upright_cropped_to_its_centre_and_resized(name: str, size: int, tmp_path: Path):
    wide = np.random.default_rng(1).integers(0, 256, (16, 31, 3), np.uint8)
    exif = Image.Exif()
    # stored as a camera stores a picture that is turned clockwise by 90 degrees to be shown
    exif[0x112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(wide))).save(tmp_path / name, exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / name, size), resize_images(wide[None, :, 7:23], size)[0])


def _png(width: int, depth: int, colour: int, scanlines: bytes) -> bytes:
    """A square PNG of a kind that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, width, depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for key, data in ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + key + data + struct.pack(">I", zlib.crc32(key + data))
    return content


def _encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


BROKEN = {
    "empty.png": (b"", "is damaged, or is not an image in one of the formats TIFF, PNG, JPEG, BMP, WEBP"),
    "text.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image in one of the formats"),
    "gif.png": (_encode(GREY, "GIF"), "is not an image in one of the formats"),
    "cut.jpg": (_encode(RGB, "JPEG")[:-60], "is damaged or truncated: image file is truncated"),
    "cut.tif": (_encode(RGB, "TIFF")[:-9], "is damaged or truncated: image file is truncated"),
    "cut.png": (_encode(RGB, "PNG")[:400], "is damaged or truncated: "),
    "grey16.png": (_png(4, 16, 0, (b"\0" + b"\1\2" * 4) * 4), "is not an image of 8 bits per channel (mode I;16, 16 bits)"),
    "rgb16.png": (_png(4, 16, 2, (b"\0" + b"\1\2" * 12) * 4), "is not an image of 8 bits per channel (mode RGB, 16 bits)"),
    "float.tif": (_encode(GREY.convert("F"), "TIFF"), "is not an image of 8 bits per channel (mode F); convert it to 8-bit"),
    "pages.tif": (_encode(RGB, "TIFF", save_all=True, append_images=[GREY]), "holds 2 pages; save each in a separate file"),
    "bomb.png": (_png(12_000, 1, 0, b""), "has 144,000,000 pixels; allowed: 89,478,485. Cut it into tiles"),
    "larger bomb.png": (_png(60_000, 8, 2, b""), "has more than 178,956,970 pixels; allowed: 89,478,485. Cut it into tiles"),
    "missing.png": (None, "could not be read: No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_one_line_that_names_it(name: str, tmp_path: Path):
    content, problem = BROKEN[name]
    for number in range(2 * THREADS):
        RGB.save(tmp_path / f"{number}.png")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    images = ImageFiles(tmp_path, [*(f"{number}.png" for number in range(THREADS)), name, "5.png", "6.png"], 16, 3)
    with pytest.raises(DataError) as caught:
        list(iter_chunks(images))
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_chunks_have_the_images_in_order(channels: int, tmp_path: Path):
    values = np.random.default_rng(0).permutation(50)
    for value in values:
        side = 8 + int(value)
        Image.new("L", (side, side), int(value)).save(tmp_path / f"{value}.png")
    images = ImageFiles(tmp_path, [f"{value}.png" for value in values], 8, channels)
    chunks = list(images.iter_chunks(7))
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1] and images.shape == np.concatenate(chunks).shape
    np.testing.assert_array_equal(np.concatenate(chunks).reshape(50, -1)[:, 0], values)
