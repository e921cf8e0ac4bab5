"""A generated set as it is evaluated: raw, accepted and untuned images, and what the gate refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.archives import read_generated
from pathsynth.errors import DataError, one_line

if TYPE_CHECKING:
    import pandas as pd

ATTEMPT_COLUMNS = ("tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted")


@dataclass(frozen=True)
class LabelledImages:
    """Images and the tissue of each: the prompted one for generated images.

    Attributes:
        images: uint8 (N, H, W, 3), RGB.
        labels: integers (N,).
    """

    images: np.ndarray
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
        untuned: one attempt of every wanted image from the base without LoRA.
        refused: for each tissue the raw images that the gate refused and what it took them for.
    """

    raw: LabelledImages
    accepted: LabelledImages
    untuned: LabelledImages
    refused: tuple[Refused, ...]


def read_sets(generated: Path, untuned: Path, slugs: Sequence[str]) -> GeneratedSets:
    """Reads the folders that generate_filtered wrote with and without a LoRA.

    Raises:
        DataError: when a file is missing or damaged, or table and images do not belong together.
    """
    raw, accepted, bare = (
        LabelledImages(*read_generated(path))
        for path in (generated / "raw.npz", generated / "accepted.npz", untuned / "raw.npz")
    )
    for where, images in ((generated / "raw.npz", raw), (generated / "accepted.npz", accepted), (untuned / "raw.npz", bare)):
        if len(images.labels) and images.labels.max() >= len(slugs):
            raise DataError(where, f"label {images.labels.max()} is not one of 0 to {len(slugs) - 1}")
    refused = refused_first_attempts(read_attempts(generated / "attempts.csv"), raw, slugs)
    return GeneratedSets(raw, accepted, bare, refused)


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


def refused_first_attempts(attempts: pd.DataFrame, raw: LabelledImages, slugs: Sequence[str]) -> tuple[Refused, ...]:
    """The raw images that the gate refused, and what it took them for.

    Args:
        attempts: the table of attempts; its rows with `attempt` 0 are those of `raw`, in the same order.
        raw: the first attempt of every wanted image.
        slugs: names of all tissues.

    Returns:
        For each tissue what was refused of it, in the order of the slots.

    Raises:
        DataError: when the table and the images do not belong together.
    """
    first = attempts[attempts["attempt"] == 0]
    prompted = np.array(slugs)[raw.labels] if len(raw.labels) else np.array([])
    unknown = set(first["predicted"]) - set(slugs)
    if unknown:
        raise DataError("attempts.csv", f"predicted: {', '.join(map(str, unknown))} is not one of {', '.join(slugs)}")
    if len(first) != len(raw.labels) or (first["tissue"].to_numpy() != prompted).any():
        raise DataError(
            "attempts.csv", f"its first attempts are not those of the {len(raw.labels)} raw images; generate both anew"
        )
    refused = first["accepted"].to_numpy() == 0
    seen = first["predicted"].to_numpy()
    of_tissue = [refused & (raw.labels == tissue) for tissue in range(len(slugs))]
    return tuple(Refused(raw.images[chosen], tuple(seen[chosen])) for chosen in of_tissue)
