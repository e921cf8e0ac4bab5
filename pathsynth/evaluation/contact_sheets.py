"""Contact sheets: real, raw, accepted and rejected images of each tissue side by side, an overview, and the closest pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unicodedata import bidirectional

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pathsynth.core.io import atomic_write
from pathsynth.core.rows import Rows
from pathsynth.data.generated import GeneratedSets, LabelledImages, select_rejected
from pathsynth.evaluation.copying import Pairs

CELL = 96
GAP = 4
BLOCK_GAP = 32
MARGIN = 36
COLUMNS, ROWS = 3, 6
SHEET_IMAGES = COLUMNS * ROWS
OVERVIEW_IMAGES = 4
DATA_SET, RAW = "data set", "raw (first attempts)"
SPACES = {"pixels": "closest by pixels", "structure": "closest by structure"}
# The text chunk of a PNG with the bounding boxes of its blocks.
BLOCKS = "pathsynth:blocks"

PAPER = "#ffffff"
INK = "#1f2328"
FAINT = "#656d76"
EMPTY = "#f3f4f6"
RULE = "#d8dee4"
WARNING = "#9a3412"

TITLE_SIZE, HEAD_SIZE, NOTE_SIZE, CAPTION_SIZE = 26, 16, 11, 14
NOTE_LINE = 13
PALETTE = 256


@dataclass(frozen=True)
class Block:
    """A titled group of images.

    Attributes:
        title: words above the group.
        images: uint8 (N, H, W, 3), RGB; N may be 0.
        notes: none, or N texts, one under each image.
    """

    title: str
    images: np.ndarray
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.notes and len(self.notes) != len(self.images):
            raise ValueError(f"{self.title}: {len(self.notes)} notes for {len(self.images)} images, expected one for each")

    def first(self, limit: int) -> Block:
        """The block with its first images, at most `limit`."""
        return Block(self.title, self.images[:limit], self.notes[:limit])


@dataclass(frozen=True)
class BoundingBox:
    """Position of a block in its contact sheet, in pixels.

    Attributes:
        title: the block's.
        left, top, width, height: box around its images and notes, or around the field that says "none".
        pitch: from one row of images to the next.
    """

    title: str
    left: int
    top: int
    width: int
    height: int
    pitch: int

    def rows(self, count: int) -> tuple[int, int, int, int]:
        """The box of the first `count` rows: left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + min(self.height, count * self.pitch)


def read_boxes(sheet: Image.Image) -> dict[str, BoundingBox]:
    """Reads the bounding boxes of a contact sheet's blocks by title; empty if its PNG has none or they do not fit the image."""
    try:
        boxes = [BoundingBox(**box) for box in json.loads(sheet.info[BLOCKS])]
        for box in boxes:
            numbers = (box.left, box.top, box.width, box.height, box.pitch)
            left, top, right, bottom = box.rows(ROWS)
            if not all(type(number) is int for number in numbers) or not (
                0 <= left < right <= sheet.width and 0 <= top < bottom <= sheet.height
            ):
                return {}
        return {box.title: box for box in boxes}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def draw_contact_sheets(
    sets: GeneratedSets,
    predicted: np.ndarray,
    real: LabelledImages,
    labels: Sequence[str],
    slugs: Sequence[str],
    caption: str,
) -> dict[str, Image.Image]:
    """Draws a contact sheet per tissue (data set, raw, accepted, rejected) and an overview of all tissues.

    Args:
        sets: the generated images.
        predicted: the gate's label of every raw image, integers (N,).
        real: labelled images of the benchmark's data set, from a split that the generator was not trained on.
        labels: names of the tissues.
        slugs: their slugs in the same order; the keys of the result, besides `overview`.
        caption: one line under every sheet, such as the origin of the images.
    """
    names = dict(zip(slugs, labels, strict=True))
    sheets, rows = {}, []
    rejected = select_rejected(sets.raw, predicted, slugs, SHEET_IMAGES)
    for tissue, (slug, label) in enumerate(names.items()):
        blocks = [
            Block(DATA_SET, real.of(tissue, SHEET_IMAGES)),
            Block(RAW, sets.raw.of(tissue, SHEET_IMAGES)),
            Block("accepted by the gate", sets.accepted.of(tissue, SHEET_IMAGES)),
        ]
        notes = tuple(names[name] for name in rejected[tissue].predicted)
        last = Block("rejected, taken for", rejected[tissue].images, notes)
        sheets[slug] = draw_contact_sheet(label, [*blocks, last], caption)
        rows.append((label, blocks))
    return {**sheets, "overview": draw_overview(rows, caption, OVERVIEW_IMAGES)}


def draw_pairs(pairs: Mapping[str, Pairs], generated: Rows, train: Rows, caption: str) -> Image.Image:
    """Draws the generated images closest to training images beside these, closest first, a row per space.

    Args:
        pairs: by "pixels" and "structure".
        generated, train: uint8 (N, H, W, 3), which the pairs index.
        caption: one line at the foot.
    """
    rows = []
    for space, found in pairs.items():
        blocks = [Block("generated", generated[found.images]), Block("nearest training image", train[found.nearest])]
        rows.append((SPACES[space], blocks))
    return draw_overview(rows, caption, columns=max(2, *(len(found.images) for found in pairs.values())))


def write_contact_sheets(folder: Path, sheets: Mapping[str, Image.Image]) -> None:
    """Writes NAME.png for each sheet; that of a tissue has a text chunk with the boxes of its blocks, see `read_boxes`.

    Raises:
        DataError: a file cannot be written.
    """
    for name, sheet in sheets.items():
        text = PngInfo()
        if BLOCKS in sheet.info:
            text.add_text(BLOCKS, sheet.info[BLOCKS])
        with atomic_write(folder / f"{name}.png") as path:
            sheet.save(path, format="PNG", optimize=True, pnginfo=text)


def draw_contact_sheet(label: str, blocks: Sequence[Block], caption: str) -> Image.Image:
    """Draws the blocks of one tissue side by side, 3 images wide and at most 6 rows high; further images are left out.

    Args:
        label: name of the tissue; the title.
        blocks: groups of images, each shown from its first image on.
        caption: one line at the foot.

    Returns:
        Palette image, about 1350 pixels wide with four blocks; the same input gives the same pixels. Its `info` has the boxes
        of the blocks.
    """
    pitches = [_pitch(block) for block in blocks]
    shown = [block.first(COLUMNS * (ROWS * (CELL + GAP) // pitch)) for block, pitch in zip(blocks, pitches, strict=True)]
    heights = [pitch * max(1, -(-len(block.images) // COLUMNS)) for block, pitch in zip(shown, pitches, strict=True)]
    width, top = _block_width(COLUMNS), MARGIN + 72
    step = width + BLOCK_GAP
    boxes = [
        BoundingBox(block.title, MARGIN + number * step, top, width, height - GAP, pitch)
        for number, (block, height, pitch) in enumerate(zip(shown, heights, pitches, strict=True))
    ]
    canvas = Image.new("RGB", (2 * MARGIN + len(blocks) * step - BLOCK_GAP, top + max(heights) + 58), PAPER)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (MARGIN, MARGIN - 10), label, TITLE_SIZE, INK)
    for block, box in zip(shown, boxes, strict=True):
        _text(draw, (box.left, top - 30), block.title, HEAD_SIZE, FAINT)
        _draw_block(canvas, block, box.left, top, box.pitch, COLUMNS)
    _draw_caption(canvas, caption)
    sheet = _quantize(canvas)
    sheet.info[BLOCKS] = json.dumps([asdict(box) for box in boxes])
    return sheet


def draw_overview(rows: Sequence[tuple[str, Sequence[Block]]], caption: str, columns: int = 4) -> Image.Image:
    """Draws one row per tissue, its blocks side by side.

    Args:
        rows: name and blocks of each tissue; the titles of the first row's blocks head the columns.
        caption: one line at the foot.
        columns: images shown of each block.

    Returns:
        Palette image; the same input gives the same pixels.
    """
    names, pitch, top = 190, CELL + GAP, MARGIN + 30
    step, left = _block_width(columns) + BLOCK_GAP, MARGIN + names
    width = left + len(rows[0][1]) * step - BLOCK_GAP + MARGIN
    sheet = Image.new("RGB", (width, top + len(rows) * pitch + 58), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, block in enumerate(rows[0][1]):
        _text(draw, (left + number * step, MARGIN - 6), block.title, HEAD_SIZE, FAINT)
    for row, (label, blocks) in enumerate(rows):
        y = top + row * pitch
        lines = _lines(label, HEAD_SIZE, names - 16)
        for number, line in enumerate(lines):
            _text(draw, (MARGIN, y + CELL // 2 + (number - len(lines) / 2) * 21), line, HEAD_SIZE, INK)
        for number, block in enumerate(blocks):
            _draw_block(sheet, block.first(columns), left + number * step, y, pitch, columns)
    _draw_caption(sheet, caption)
    return _quantize(sheet)


def _draw_block(sheet: Image.Image, block: Block, left: int, top: int, pitch: int, columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    if len(block.images) == 0:
        draw.rectangle((left, top, left + _block_width(columns) - 1, top + CELL - 1), fill=EMPTY, outline=RULE)
        _text(draw, (left + _block_width(columns) / 2, top + CELL / 2), "none", HEAD_SIZE, FAINT, anchor="mm")
    for index in range(len(block.images)):
        x, y = left + index % columns * (CELL + GAP), top + index // columns * pitch
        sheet.paste(_cell(block.images[index]), (x, y))
        for number, line in enumerate(_lines(block.notes[index]) if block.notes else ()):
            at = (x + CELL / 2, y + CELL + 2 + number * NOTE_LINE)
            _text(draw, at, line, NOTE_SIZE, WARNING, anchor="ma")


def _cell(image: np.ndarray) -> Image.Image:
    """Scales one image to a cell: by nearest neighbour for integer factors, by Lanczos otherwise."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    whole = CELL % picture.width == 0 and picture.width == picture.height
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _draw_caption(sheet: Image.Image, caption: str) -> None:
    draw = ImageDraw.Draw(sheet)
    y = sheet.height - 46
    draw.line((MARGIN, y, sheet.width - MARGIN, y), fill=RULE)
    _text(draw, (MARGIN, y + 12), caption, CAPTION_SIZE, FAINT)


def _pitch(block: Block) -> int:
    """Pixels from one row of the block to the next, with room for its longest note."""
    notes = max((len(_lines(note)) for note in block.notes), default=0)
    return CELL + GAP + (notes * NOTE_LINE + 6 if notes else 0)


def _block_width(columns: int) -> int:
    return columns * (CELL + GAP) - GAP


def _lines(text: str, size: int = NOTE_SIZE, width: int = CELL) -> list[str]:
    """Wraps a text at spaces; a word longer than `width` has its own line."""
    lines: list[str] = []
    text = make_readable(text)
    for word in text.split():
        if lines and _font(text, size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _quantize(sheet: Image.Image) -> Image.Image:
    """Reduces to 256 colours, a third of the bytes: most for the images, some reserved for paper and text."""
    inks = np.array([ImageColor.getrgb(ink) for ink in (INK, FAINT, WARNING)])
    ramps = [255 * (1 - share) + inks * share for share in (0.25, 0.5, 0.75, 1.0)]
    fixed = np.concatenate([[ImageColor.getrgb(colour) for colour in (PAPER, EMPTY, RULE)], *ramps]).astype(np.uint8)
    free = PALETTE - len(fixed)
    adapted = np.reshape(_subsample(sheet).quantize(free, kmeans=1).getpalette() or (), (-1, 3))[:free].astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([fixed, adapted]).tobytes())
    # without dithering, because its patterns could be mistaken for the generator's
    indices = np.array(sheet.quantize(palette=palette, dither=Image.Dither.NONE))
    # Pillow's colour lookup is coarse, and off-white paper would be visible on a white page
    indices[(np.asarray(sheet) == fixed[0]).all(axis=2)] = 0
    result = Image.fromarray(indices, "P")
    result.putpalette(palette.getpalette() or ())
    return result


def _subsample(sheet: Image.Image) -> Image.Image:
    """Every fourth pixel: nearly the same colours, in a fraction of the time for noisy images."""
    return Image.fromarray(np.asarray(sheet)[::2, ::2])


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str, anchor: str | None = None
) -> None:
    text = make_readable(text)
    draw.text(at, text, colour, _font(text, size), anchor=anchor)


def make_readable(text: str) -> str:
    """Transliterates a text to ASCII if DejaVu Sans lacks a letter, or if its script runs right to left."""
    if text.isascii():
        return text
    from anyascii import anyascii
    from matplotlib.ft2font import FT2Font

    letters = FT2Font(_wide_font()).get_charmap()
    drawable = all(ord(letter) in letters and bidirectional(letter) not in ("R", "AL") for letter in text)
    return text if drawable else anyascii(text)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of a package, so that pixels do not depend on installed fonts; Pillow's own has ASCII only."""
    return ImageFont.load_default(size) if text.isascii() else ImageFont.truetype(_wide_font(), size)


def _wide_font() -> str:
    """Path of DejaVu Sans: Latin, Greek, Cyrillic, Armenian and Georgian letters, and mathematical signs."""
    from matplotlib import get_data_path

    return os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
