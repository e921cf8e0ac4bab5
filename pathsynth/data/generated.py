"""Generated images as they are evaluated, and those that the gate rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import catch_read_errors
from pathsynth.core.rows import Rows
from pathsynth.data.archives import hint_at_offset, unpack_split

if TYPE_CHECKING:
    import pandas as pd

ATTEMPT_COLUMNS = ("tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted")


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels; a generated image has the label of its prompt.

    Attributes:
        images: uint8 (N, H, W, 3), RGB, in memory or on disk.
        labels: integers (N,).
    """

    images: Rows
    labels: np.ndarray

    def of(self, label: int, limit: int) -> np.ndarray:
        """Returns the first images of a label, at most `limit`, not hand-picked."""
        return self.images[np.flatnonzero(self.labels == label)[:limit]]


@dataclass(frozen=True)
class Rejected:
    """Rejected images uint8 (N, H, W, 3) of one tissue, and the N slugs that the gate predicted."""

    images: np.ndarray
    predicted: tuple[str, ...]


@dataclass(frozen=True)
class GeneratedSets:
    """All images of one evaluation.

    Attributes:
        raw: the first attempt at every requested image.
        accepted: the images that the gate accepted; may be empty.
        controls: one attempt at every requested image by name: "untuned" by the base without LoRA, "paraphrased" by the LoRA
            from sentences that it was not trained with. Empty for a set from a different generator.
        attempts: the table of attempts, or None for a set without one.
    """

    raw: LabelledImages
    accepted: LabelledImages
    controls: Mapping[str, LabelledImages] = field(default_factory=dict)
    attempts: pd.DataFrame | None = None

    @property
    def by_name(self) -> dict[str, LabelledImages]:
        """All sets by name."""
        return {"raw": self.raw, "accepted": self.accepted, **self.controls}

    def slots(self, name: str) -> np.ndarray:
        """Returns the slot of every "raw" or "accepted" image within its tissue, int64 (N,); without a table, its position."""
        if self.attempts is None:
            return count_within_label(getattr(self, name).labels)
        return select_attempts(self.attempts, name)["slot"].to_numpy(np.int64)


def read_sets(generated: Path, controls: Path, scratch: Path) -> GeneratedSets:
    """Opens the outputs of the stages that generate images.

    Args:
        generated, controls: their folders.
        scratch: folder for the unpacked images; it must outlive them.

    Raises:
        DataError: if a file is missing or damaged.
    """
    paths = {
        "raw": generated / "raw.npz",
        "accepted": generated / "accepted.npz",
        "untuned": controls / "untuned.npz",
        "paraphrased": controls / "paraphrased.npz",
    }
    sets = {name: LabelledImages(*unpack_split(path, scratch / name)) for name, path in paths.items()}
    raw, accepted = sets.pop("raw"), sets.pop("accepted")
    return GeneratedSets(raw, accepted, sets, attempts=read_attempts(generated / "attempts.csv"))


def check_labels(path: object, labels: np.ndarray, slugs: Sequence[str]) -> None:
    """Raises DataError for a label that is not an index into `slugs`."""
    if len(labels) and labels.max() >= len(slugs):
        names = ", ".join(f"{number} {slug}" for number, slug in enumerate(slugs))
        hint = hint_at_offset(labels, len(slugs))
        raise DataError(path, f"label {labels.max()} is not in 0 to {len(slugs) - 1}: {names}{hint}")


def read_attempts(path: Path) -> pd.DataFrame:
    """Reads the table of attempts, with at least the columns of `ATTEMPT_COLUMNS`.

    Raises:
        DataError: if the file is missing, damaged or lacks a column.
    """
    import pandas as pd

    with catch_read_errors(path, "a table of attempts"):
        attempts = pd.read_csv(path)
        if missing := [name for name in ATTEMPT_COLUMNS if name not in attempts]:
            raise DataError(path, f"has no column {', '.join(missing)}; expected {', '.join(ATTEMPT_COLUMNS)}")
    return attempts


def select_rejected(raw: LabelledImages, predicted: np.ndarray, slugs: Sequence[str], limit: int) -> tuple[Rejected, ...]:
    """Selects the first raw images of every tissue that the gate rejected.

    Args:
        raw: the first attempt at every requested image.
        predicted: the gate's label of each, integers (N,).
        slugs: names of all tissues.
        limit: maximum number of images per tissue.
    """
    rejected = []
    for tissue in range(len(slugs)):
        wrong = np.flatnonzero((raw.labels == tissue) & (predicted != tissue))[:limit]
        rejected.append(Rejected(raw.images[wrong], tuple(slugs[label] for label in predicted[wrong])))
    return tuple(rejected)


def select_attempts(attempts: pd.DataFrame, name: str) -> pd.DataFrame:
    """Selects the attempts that drew the "raw" images, the first ones, or the "accepted" images, in their order."""
    return attempts[attempts["attempt"] == 0 if name == "raw" else attempts["accepted"] == 1]


def count_within_label(labels: np.ndarray) -> np.ndarray:
    """Numbers images 0, 1, 2, ... within each label, int64 (N,)."""
    slots = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        slots[labels == label] = np.arange((labels == label).sum())
    return slots
