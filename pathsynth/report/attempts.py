"""Finds the attempt that drew each generated image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.data.generated import select_attempts

if TYPE_CHECKING:
    import pandas as pd


def match_attempts(
    path: Path, attempts: pd.DataFrame, selection: str, labels: np.ndarray, slugs: Sequence[str]
) -> pd.DataFrame:
    """Selects the attempts that drew the images of an archive, one row per image, in the order of the images.

    Args:
        path: the table of attempts, for errors.
        attempts: its contents.
        selection: which archive beside it the images come from, "raw" (first attempts) or "accepted".
        labels: classes of the images, integers (N,).
        slugs: of the classes.

    Raises:
        DataError: the table belongs to other images.
    """
    matched = select_attempts(attempts, selection).reset_index(drop=True)
    if matched["tissue"].tolist() != [slugs[label] for label in labels]:
        problem = f"does not list the {len(labels)} images of {selection}.npz in this benchmark's classes"
        raise DataError(path, f"{problem}. Restore both with `dvc checkout`, or run `make repro`.")
    return matched
