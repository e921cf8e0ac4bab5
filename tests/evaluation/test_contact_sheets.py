"""Contact sheets: contents, layout and bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathsynth.data import labels
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.evaluation import contact_sheets
from pathsynth.evaluation.contact_sheets import Block, draw_contact_sheet
from pathsynth.evaluation.copying import Pairs
from pathsynth.sources import phantom

SLUGS = labels.SLUGS
CAPTION = "synthetic images, a stand-in"


def draw() -> dict[str, Image.Image]:
    """Sheets of 4 phantoms per tissue, of which the gate takes the first for the next tissue, and of two pairs."""
    images, y_true = phantom.draw_split(4, 0, 32, "val")
    order = np.argsort(y_true.ravel(), kind="stable")
    drawn = LabelledImages(images[order], y_true.ravel()[order])
    predicted = (drawn.labels.astype(np.int64) + (np.arange(len(order)) % 4 == 0)) % len(SLUGS)
    nothing = LabelledImages(drawn.images[:0], drawn.labels[:0])
    sets = GeneratedSets(drawn, nothing)
    sheets = contact_sheets.draw_contact_sheets(sets, predicted, drawn, labels.PATHMNIST, SLUGS, CAPTION)
    none = np.zeros(0, np.int64)
    pairs = {"structure": Pairs(np.array([3, 1]), np.array([4, 0]), np.array([0.1, 0.2])), "pixels": Pairs(none, none, none)}
    return {**sheets, "pairs": contact_sheets.draw_pairs(pairs, drawn.images, drawn.images, CAPTION)}


@pytest.fixture(scope="module")
def sheets() -> dict[str, Image.Image]:
    return draw()


def test_every_tissue_has_a_sheet(sheets: dict[str, Image.Image]):
    assert list(sheets) == [*SLUGS, "overview", "pairs"]
    assert all(sheet.width < 1600 and sheet.height < 1100 for sheet in sheets.values())


def test_paper_and_text_keep_their_colours(sheets: dict[str, Image.Image]):
    colours = {colour: count for count, colour in sheets["mucus"].convert("RGB").getcolors()}
    assert len(colours) <= 256
    assert colours[(255, 255, 255)] == max(colours.values())
    assert (31, 35, 40) in colours, "the ink of the title"


def test_files_have_the_same_bytes_and_the_boxes_of_the_blocks(sheets: dict[str, Image.Image], tmp_path: Path):
    contact_sheets.write_contact_sheets(tmp_path / "a", sheets)
    contact_sheets.write_contact_sheets(tmp_path / "b", draw())
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert written == sorted(f"{name}.png" for name in sheets)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in written)
    with Image.open(tmp_path / "a" / "mucus.png") as sheet:
        boxes = contact_sheets.read_boxes(sheet)
    assert list(boxes) == ["data set", "raw (first attempts)", "accepted by the gate", "rejected, taken for"]
    assert contact_sheets.read_boxes(sheets["overview"]) == {}


@pytest.mark.parametrize("size", [28, 224])
def test_layout_does_not_depend_on_the_size_of_images(size: int):
    images = np.full((3, size, size, 3), 90, np.uint8)
    sheet = draw_contact_sheet("mucus", [Block("raw", images), Block("rejected", images[:0])], CAPTION)
    blank = draw_contact_sheet("mucus", [Block("raw", images[:0]), Block("rejected", images[:0])], CAPTION)
    assert sheet.size == blank.size
    box = contact_sheets.read_boxes(sheet)["raw"]
    middle = (box.left + contact_sheets.CELL // 2, box.top + contact_sheets.CELL // 2)
    assert sheet.convert("RGB").getpixel(middle) == pytest.approx((90, 90, 90), abs=4)


def test_block_shows_at_most_18_images_and_needs_a_note_for_each():
    images = np.zeros((100, 28, 28, 3), np.uint8)
    many = draw_contact_sheet("mucus", [Block("raw", images)], CAPTION)
    assert many.size == draw_contact_sheet("mucus", [Block("raw", images[:18])], CAPTION).size
    with pytest.raises(ValueError, match="2 notes for 100 images"):
        Block("rejected", images, ("a", "b"))


@pytest.mark.parametrize(("text", "drawn"), [
    ("mucus", "mucus"),
    ("Schleim, grün: größer als 5 µm", "Schleim, grün: größer als 5 µm"),
    ("слизь", "слизь"),
    ("βλέννα", "βλέννα"),
    ("黏液", "NianYe"),
    ("粘液 (mucus)", "ZhanYe (mucus)"),
    ("점액", "JeomAeg"),
    ("श्लेष्मा", "slesma"),
    ("مخاط", "mkht"),
    ("ריר", "ryr"),
])  # fmt: skip
def test_labels_are_drawn_in_letters_that_the_fonts_have(text: str, drawn: str):
    assert contact_sheets.make_readable(text) == drawn
    unknown = bytes(contact_sheets._font(drawn, 20).getmask("\U0010ffff"))
    assert all(bytes(contact_sheets._font(drawn, 20).getmask(letter)) != unknown for letter in drawn)


def test_sheets_of_two_labels_in_another_script_differ():
    images = np.zeros((2, 28, 28, 3), np.uint8)
    first, second = (draw_contact_sheet(label, [Block(label, images)], CAPTION).tobytes() for label in ("黏液", "脂肪"))
    assert first != second
