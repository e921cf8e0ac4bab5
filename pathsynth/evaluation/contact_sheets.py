"""Plates: contact sheets of one tissue, the data set beside generated images, to be looked at beside the scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pathsynth.core.io import atomic_write
from pathsynth.data.generated import GeneratedSets, LabelledImages, refused

CELL = 96
GAP = 4
BLOCK_GAP = 32
MARGIN = 36
COLUMNS, ROWS = 3, 6
PLATE_IMAGES = COLUMNS * ROWS
OVERVIEW_IMAGES = 4
DATA_SET, RAW = "data set", "raw (first attempts)"
# The text chunk of a plate's PNG that says where its blocks lie.
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

    def first(self, most: int) -> Block:
        """The same block with at most `most` images."""
        return Block(self.title, self.images[:most], self.notes[:most])


@dataclass(frozen=True)
class BoundingBox:
    """Where a block lies in its plate, in pixels.

    Attributes:
        title: the block's.
        left, top, width, height: its images with their notes; of an empty block the field that says so.
        pitch: from one row of images to the next.
    """

    title: str
    left: int
    top: int
    width: int
    height: int
    pitch: int

    def rows(self, most: int) -> tuple[int, int, int, int]:
        """The box of the first `most` rows: left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + min(self.height, most * self.pitch)


def places(plate: Image.Image) -> dict[str, BoundingBox]:
    """Where the blocks of a plate lie, by their titles; nothing for a picture that does not say so."""
    try:
        found = [BoundingBox(**place) for place in json.loads(plate.info[BLOCKS])]
        for place in found:
            numbers = (place.left, place.top, place.width, place.height, place.pitch)
            left, top, right, bottom = place.rows(ROWS)
            if not all(type(number) is int for number in numbers) or not (
                0 <= left < right <= plate.width and 0 <= top < bottom <= plate.height
            ):
                return {}
        return {place.title: place for place in found}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def draw_plates(
    sets: GeneratedSets,
    seen: np.ndarray,
    real: LabelledImages,
    labels: Sequence[str],
    slugs: Sequence[str],
    caption: str,
) -> dict[str, Image.Image]:
    """Draws a plate per tissue (data set, raw, accepted, rejected) and one overview of all tissues.

    Args:
        sets: the generated images.
        seen: the gate's label of every raw image, integers (N,).
        real: labelled images of the benchmark's data set, best of a split that the generator did not learn from.
        labels: the tissues in words.
        slugs: the tissues' slugs, in the same order; the keys of the result, besides `overview`.
        caption: one line under every plate, such as what the data stand for.
    """
    words = dict(zip(slugs, labels, strict=True))
    plates, rows = {}, []
    wrong = refused(sets.raw, seen, slugs, PLATE_IMAGES)
    for tissue, (slug, label) in enumerate(words.items()):
        blocks = [
            Block(DATA_SET, real.of(tissue, PLATE_IMAGES)),
            Block(RAW, sets.raw.of(tissue, PLATE_IMAGES)),
            Block("accepted by the gate", sets.accepted.of(tissue, PLATE_IMAGES)),
        ]
        notes = tuple(words[name] for name in wrong[tissue].seen)
        plates[slug] = draw_plate(label, [*blocks, Block("rejected, taken for", wrong[tissue].images, notes)], caption)
        rows.append((label, blocks))
    return {**plates, "overview": draw_overview(rows, caption, OVERVIEW_IMAGES)}


def write_plates(folder: Path, plates: Mapping[str, Image.Image]) -> None:
    """Writes NAME.png for each plate; that of a tissue says in a text chunk where its blocks lie, for `places`.

    Raises:
        DataError: when a file cannot be written.
    """
    for name, plate in plates.items():
        said = PngInfo()
        if BLOCKS in plate.info:
            said.add_text(BLOCKS, plate.info[BLOCKS])
        with atomic_write(folder / f"{name}.png") as path:
            plate.save(path, format="PNG", optimize=True, pnginfo=said)


def draw_plate(label: str, blocks: Sequence[Block], caption: str) -> Image.Image:
    """Draws the blocks of one tissue side by side, 3 images wide; what does not fit in 6 images' height is not shown.

    Args:
        label: the tissue in words; the title.
        blocks: groups of images, each shown from its first on.
        caption: one line at the foot.

    Returns:
        Palette image, four blocks are about 1350 pixels wide; the same input gives the same pixels. Its `info` has where the
        blocks lie.
    """
    pitches = [_pitch(block) for block in blocks]
    shown = [block.first(COLUMNS * (ROWS * (CELL + GAP) // pitch)) for block, pitch in zip(blocks, pitches, strict=True)]
    heights = [pitch * max(1, -(-len(block.images) // COLUMNS)) for block, pitch in zip(shown, pitches, strict=True)]
    width, height, top = _block_width(COLUMNS), max(heights), MARGIN + 72
    step = width + BLOCK_GAP
    sheet = Image.new("RGB", (2 * MARGIN + len(blocks) * step - BLOCK_GAP, top + height + 58), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN - 10), label, TITLE_SIZE, INK)
    for number, (block, pitch) in enumerate(zip(shown, pitches, strict=True)):
        left = MARGIN + number * step
        _text(draw, (left, top - 30), block.title, HEAD_SIZE, FAINT)
        _draw_block(sheet, block, left, top, pitch, COLUMNS)
    _draw_caption(sheet, caption)
    plate = _with_palette(sheet)
    lie = [
        BoundingBox(block.title, MARGIN + number * step, top, width, tall - GAP, pitch)
        for number, (block, tall, pitch) in enumerate(zip(shown, heights, pitches, strict=True))
    ]
    plate.info[BLOCKS] = json.dumps([asdict(place) for place in lie])
    return plate


def draw_overview(rows: Sequence[tuple[str, Sequence[Block]]], caption: str, columns: int = 4) -> Image.Image:
    """Draws one row per tissue, its blocks side by side.

    Args:
        rows: for each tissue its words and its blocks; the titles of the first tissue's blocks head the columns.
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
    return _with_palette(sheet)


def _draw_block(sheet: Image.Image, block: Block, left: int, top: int, pitch: int, columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    if len(block.images) == 0:
        draw.rectangle((left, top, left + _block_width(columns) - 1, top + CELL - 1), fill=EMPTY, outline=RULE)
        draw.text((left + _block_width(columns) / 2, top + CELL / 2), "none", FAINT, _font(HEAD_SIZE), anchor="mm")
    for index in range(len(block.images)):
        x, y = left + index % columns * (CELL + GAP), top + index // columns * pitch
        sheet.paste(_cell(block.images[index]), (x, y))
        for number, line in enumerate(_lines(block.notes[index]) if block.notes else ()):
            at = (x + CELL / 2, y + CELL + 2 + number * NOTE_LINE)
            draw.text(at, line, WARNING, _font(NOTE_SIZE), anchor="ma")


def _cell(image: np.ndarray) -> Image.Image:
    """Scales one image to a cell: whole factors keep the pixels as they are, other factors are resampled by Lanczos."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    whole = CELL % picture.width == 0 and picture.width == picture.height
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _draw_caption(sheet: Image.Image, caption: str) -> None:
    draw = ImageDraw.Draw(sheet)
    y = sheet.height - 46
    draw.line((MARGIN, y, sheet.width - MARGIN, y), fill=RULE)
    _text(draw, (MARGIN, y + 12), caption, CAPTION_SIZE, FAINT)


def _pitch(block: Block) -> int:
    """Pixels from one row of the block to the next: room for its longest note."""
    notes = max((len(_lines(note)) for note in block.notes), default=0)
    return CELL + GAP + (notes * NOTE_LINE + 6 if notes else 0)


def _block_width(columns: int) -> int:
    return columns * (CELL + GAP) - GAP


def _lines(text: str, size: int = NOTE_SIZE, width: int = CELL) -> list[str]:
    """Breaks a text between words so that every line fits; a word longer than a line keeps a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _with_palette(sheet: Image.Image) -> Image.Image:
    """Keeps 256 colours, a third of the bytes: most for the images, some so that paper and text stay clean."""
    inks = np.array([ImageColor.getrgb(ink) for ink in (INK, FAINT, WARNING)])
    ramps = [255 * (1 - share) + inks * share for share in (0.25, 0.5, 0.75, 1.0)]
    fixed = np.concatenate([[ImageColor.getrgb(colour) for colour in (PAPER, EMPTY, RULE)], *ramps]).astype(np.uint8)
    free = PALETTE - len(fixed)
    adapted = np.reshape(_sampled(sheet).quantize(free, kmeans=1).getpalette() or (), (-1, 3))[:free].astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([fixed, adapted]).tobytes())
    # Without dithering: its hatching would be taken for the generator's.
    indices = np.array(sheet.quantize(palette=palette, dither=Image.Dither.NONE))
    # Pillow looks colours up coarsely, and a paper that is nearly white shows beside a page that is.
    indices[(np.asarray(sheet) == fixed[0]).all(axis=2)] = 0
    result = Image.fromarray(indices, "P")
    result.putpalette(palette.getpalette() or ())
    return result


def _sampled(sheet: Image.Image) -> Image.Image:
    """Every fourth pixel of a large sheet: its colours, in a fraction of the time where there are very many, as in noise."""
    return Image.fromarray(np.asarray(sheet)[::2, ::2])


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str) -> None:
    draw.text(at, text, colour, _font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font, so that the pixels do not depend on what is installed.
    return ImageFont.load_default(size)
