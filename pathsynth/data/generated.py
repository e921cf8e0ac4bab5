"""A generated set as it is evaluated: raw, accepted and untuned images, and what the gate refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import DataError, one_line
from pathsynth.core.rows import Rows
from pathsynth.data.archives import read_generated

if TYPE_CHECKING:
    import pandas as pd

ATTEMPT_COLUMNS = ("tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted")


@dataclass(frozen=True)
class LabelledImages:
    """Images and the tissue of each: the prompted one for generated images.

    Attributes:
        images: uint8 (N, H, W, 3), RGB, in memory, mapped from disk or some of such.
        labels: integers (N,).
    """

    images: Rows
    labels: np.ndarray

    def of(self, tissue: int, most: int) -> np.ndarray:
        """The first images of a tissue, at most `most` of them: never picked by looks."""
        return self.images[np.flatnonzero(self.labels == tissue)[:most]]


@dataclass(frozen=True)
class Refused:
    """Images uint8 (N, H, W, 3) of one tissue, and the N slugs that the gate saw in them."""

    images: np.ndarray
    seen: tuple[str, ...]


@dataclass(frozen=True)
class GeneratedSets:
    """All images of one evaluation.

    Attributes:
        raw: the first attempt of every wanted image.
        accepted: the images that the gate let through; may be empty.
        untuned: one attempt of every wanted image from the base without LoRA; empty where there is none.
        attempts: the table of attempts, or None for a set that came without one.
    """

    raw: LabelledImages
    accepted: LabelledImages
    untuned: LabelledImages
    attempts: pd.DataFrame | None = None

    def slots(self, name: str) -> np.ndarray:
        """The slot of every "raw" or "accepted" image within its tissue, int64 (N,); without a table they are counted."""
        if self.attempts is None:
            return _counted(getattr(self, name).labels)
        rows = self.attempts["attempt"] == 0 if name == "raw" else self.attempts["accepted"] == 1
        return self.attempts.loc[rows, "slot"].to_numpy(np.int64)


def read_sets(generated: Path, untuned: Path, slugs: Sequence[str], scratch: Path) -> GeneratedSets:
    """Opens the folders that generate_filtered wrote with and without a LoRA.

    Args:
        generated, untuned: those folders.
        slugs: names of all tissues.
        scratch: folder for the unpacked images, used as long as they are.

    Raises:
        DataError: when a file is missing or damaged, or table and images do not belong together.
    """
    paths = {"raw": generated / "raw.npz", "accepted": generated / "accepted.npz", "untuned": untuned / "raw.npz"}
    sets = {name: LabelledImages(*read_generated(path, scratch / name)) for name, path in paths.items()}
    for name, images in sets.items():
        check_labels(paths[name], images.labels, slugs)
    table = generated / "attempts.csv"
    attempts = read_attempts(table)
    check_attempts(table, attempts, sets["raw"], sets["accepted"], slugs)
    return GeneratedSets(**sets, attempts=attempts)


def check_labels(where: object, labels: np.ndarray, slugs: Sequence[str]) -> None:
    """Raises DataError for a label that is no index into `slugs`."""
    if len(labels) and labels.max() >= len(slugs):
        known = ", ".join(f"{number} {slug}" for number, slug in enumerate(slugs))
        raise DataError(where, f"label {labels.max()} is not one of 0 to {len(slugs) - 1}: {known}")


def read_attempts(path: Path) -> pd.DataFrame:
    """Reads the table of attempts of a generated set.

    Raises:
        DataError: when the file is missing, is no such table or lacks a column.
    """
    import pandas as pd

    try:
        attempts = pd.read_csv(path)
    except OSError as error:
        raise DataError(path, f"could not be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(path, f"is not a table: {one_line(error)}") from error
    missing = [name for name in ATTEMPT_COLUMNS if name not in attempts]
    if missing:
        raise DataError(path, f"has no column {', '.join(missing)}; expected {', '.join(ATTEMPT_COLUMNS)}")
    return attempts


def check_attempts(
    where: object, attempts: pd.DataFrame, raw: LabelledImages, accepted: LabelledImages, slugs: Sequence[str]
) -> None:
    """Checks that a table's first attempts are the raw images, and its accepted ones the accepted images, in order.

    Raises:
        DataError: when they are not.
    """
    unknown = set(attempts["predicted"]) - set(slugs)
    if unknown:
        raise DataError(where, f"predicted: {', '.join(sorted(map(str, unknown)))} is not one of {', '.join(slugs)}")
    names = np.array(slugs)
    for words, rows, images in (
        ("first attempts", attempts["attempt"] == 0, raw),
        ("accepted attempts", attempts["accepted"] == 1, accepted),
    ):
        tissues = attempts.loc[rows, "tissue"].to_numpy()
        if len(tissues) != len(images.labels) or (tissues != names[images.labels]).any():
            kind = "raw" if images is raw else "accepted"
            raise DataError(where, f"its {words} are not those of the {len(images.labels)} {kind} images; generate both anew")


def refused(raw: LabelledImages, seen: np.ndarray, slugs: Sequence[str], most: int) -> tuple[Refused, ...]:
    """The first raw images of every tissue that the gate refused, and what it took them for.

    Args:
        raw: the first attempt of every wanted image.
        seen: the gate's label of each, integers (N,).
        slugs: names of all tissues.
        most: most images of a tissue.
    """
    found = []
    for tissue in range(len(slugs)):
        wrong = np.flatnonzero((raw.labels == tissue) & (seen != tissue))[:most]
        found.append(Refused(raw.images[wrong], tuple(slugs[label] for label in seen[wrong])))
    return tuple(found)


def _counted(labels: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each label."""
    slots = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        slots[labels == label] = np.arange((labels == label).sum())
    return slots
