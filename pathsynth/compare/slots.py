"""Images of several runs slot by slot: the same prompt and noise, side by side, with the verdicts of gate and judge."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.compare.cache import FindCached
from pathsynth.compare.experiments import ReadFile
from pathsynth.core.errors import DataError
from pathsynth.core.io import catch_read_errors, read_npz_shapes, stream_npz
from pathsynth.core.params import PROMPTS
from pathsynth.data.archives import GENERATED
from pathsynth.data.generated import read_attempts
from pathsynth.report.pages import Picture, embed_image

VERDICTS = "plots/evaluation/raw.csv"
IMAGES, ATTEMPTS = "data/generated/raw.npz", "data/generated/attempts.csv"
KEY = f"{GENERATED}_images"
# Larger images are reduced, to keep the page small: side in pixels.
MAX_SIDE = 96
ROWS_AT_ONCE = 64

Run = Mapping[str, Any]


class NoImages(Exception):
    """A run whose images cannot be shown; the message is the reason."""


@dataclass(frozen=True)
class SlotImage:
    """The first attempt at one slot of a tissue, by one run.

    Attributes:
        picture: the image.
        seed: of its noise.
        gate, judge: slugs of the predicted tissues.
        confidence: the gate's.
    """

    picture: Picture
    seed: int
    gate: str
    judge: str
    confidence: float


# By tissue and slot.
SlotImages = dict[tuple[str, int], SlotImage]


@dataclass(frozen=True)
class SlotComparison:
    """Images of several runs by slot.

    Attributes:
        runs: those whose images were found, in order.
        images: theirs, in the same order.
        missing: names of the other runs with the reason.
        same_prompts: whether all found runs were prompted with the same sentences.
    """

    runs: Sequence[Run]
    images: Sequence[SlotImages]
    missing: Sequence[tuple[str, str]]
    same_prompts: bool

    def rows(self, slug: str) -> list[tuple[int, bool, list[SlotImage | None]]]:
        """Slots of a tissue: number, whether all images have the same seed, and the image of each run."""
        slots = sorted({slot for images in self.images for tissue, slot in images if tissue == slug})
        rows = []
        for slot in slots:
            cells = [images.get((slug, slot)) for images in self.images]
            rows.append((slot, len({cell.seed for cell in cells if cell}) == 1, cells))
        return rows


def compare_slots(runs: Sequence[Run], read: ReadFile, find: FindCached, slots: int) -> SlotComparison:
    """Reads the first attempts at the first slots of each tissue.

    Args:
        runs: rows of `pathsynth.compare.experiments.collect_runs` with their `name` on the page.
        read: reads a file of a revision from git.
        find: finds a file of a revision in DVC's cache.
        slots: number of slots of each tissue.
    """
    found: list[Run] = []
    images: list[SlotImages] = []
    missing: list[tuple[str, str]] = []
    for run in runs:
        try:
            images.append(read_slots(run["rev"], read, find, slots))
            found.append(run)
        except NoImages as error:
            missing.append((run["name"], str(error)))
    sentences = {(run["prompts"], read(run["rev"], f"{PROMPTS.as_posix()}/{run['benchmark']}.yaml")) for run in found}
    return SlotComparison(found, images, missing, len(sentences) <= 1)


def read_slots(revision: str, read: ReadFile, find: FindCached, slots: int) -> SlotImages:
    """Reads the first attempts of one run.

    Raises:
        NoImages: they are not in the cache, or are damaged.
    """
    verdicts, archive, attempts = read(revision, VERDICTS), find(revision, IMAGES), find(revision, ATTEMPTS)
    if verdicts is None or archive is None or attempts is None:
        raise NoImages("not in the DVC cache of this machine")
    try:
        # an experiment may be anyone's
        with catch_read_errors(archive, "a set of generated images"):
            return _read_slots(verdicts, archive, attempts, slots)
    except DataError as error:
        raise NoImages("damaged, or not those of its tables") from error


def _read_slots(verdicts: bytes, archive: Path, attempts: Path, slots: int) -> SlotImages:
    import pandas as pd

    judged = pd.read_csv(io.BytesIO(verdicts))[["tissue", "slot", "gate", "judge"]].reset_index(names="row")
    ((count, *_), _) = read_npz_shapes(archive, [KEY])[KEY]
    if count != len(judged):
        raise DataError(archive, f"holds {count} images, not {len(judged)}")
    table = read_attempts(attempts)
    first = table.loc[table["attempt"] == 0, ["tissue", "slot", "seed", "confidence"]]
    shown = judged[judged["slot"] < slots]
    wanted = shown.merge(first, on=["tissue", "slot"], validate="one_to_one")
    if len(wanted) != len(shown):
        raise DataError(attempts, "lacks the first attempt at a slot")
    pictures = _read_rows(archive, wanted["row"].tolist())
    return {(row.tissue, row.slot): _slot_image(row, pictures[row.row]) for row in wanted.itertuples()}


def _slot_image(row: Any, picture: Picture) -> SlotImage:
    return SlotImage(picture, int(row.seed), str(row.gate), str(row.judge), float(row.confidence))


def _read_rows(archive: Path, rows: Sequence[int]) -> dict[int, Picture]:
    """Embeds some images of an archive, reading it in chunks."""
    found: dict[int, Picture] = {}
    start = 0
    for chunk in stream_npz(archive, KEY, ROWS_AT_ONCE):
        found |= {row: _embed(chunk[row - start]) for row in rows if start <= row < start + len(chunk)}
        start += len(chunk)
    return found


def _embed(image: np.ndarray) -> Picture:
    from PIL import Image

    shown = Image.fromarray(image)
    shown.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return embed_image(shown)
