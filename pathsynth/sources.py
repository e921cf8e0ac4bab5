"""Sources of images: what each kind of dataset section in params.yaml gives, in one form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pathsynth import labels as tissues
from pathsynth import phantom
from pathsynth.archives import SPLITS, Split, read_archive
from pathsynth.errors import DataError
from pathsynth.files import shown_path
from pathsynth.params import FileDataset, PhantomDataset

Progress = Callable[[Iterable], Iterable]


def load_source(
    dataset: PhantomDataset | FileDataset,
    labels: Sequence[str],
    seed: int,
    progress: Progress = iter,
    *,
    folder: Path = Path(),
) -> dict[str, Split]:
    """Draws or reads a whole data set, in the size of its source.

    Args:
        dataset: the selected section; its `source` says which kind it is.
        labels: names of the tissues, in the order of their numbers.
        seed: seed of what is drawn.
        progress: wraps the iterable over what takes long, such as `tqdm.tqdm`.
        folder: what a relative path in `dataset` is relative to.

    Returns:
        For "train", "val" and "test" images, uint8 (N, H, H, 3), and labels, uint8 (N,).

    Raises:
        DataError: if the source cannot give these tissues, or its file is missing, damaged or another one than wanted.
    """
    match dataset:
        case PhantomDataset():
            return _draw_phantoms(dataset, labels, seed, progress)
        case FileDataset():
            return _read_file(folder / dataset.path, dataset.md5, len(labels))


def describe(dataset: PhantomDataset | FileDataset) -> dict[str, Any]:
    """The section as the card of the prepared data set shows it: no folders, and whether it is a stand-in."""
    shown = {key: shown_path(value) if isinstance(value, str) else value for key, value in dataset.model_dump().items()}
    return shown | {"stand_in": dataset.stand_in}


def _draw_phantoms(dataset: PhantomDataset, labels: Sequence[str], seed: int, progress: Progress) -> dict[str, Split]:
    if tuple(labels) != tissues.PATHMNIST:
        raise DataError(dataset.source, f"draws {', '.join(tissues.PATHMNIST)}, and nothing else")
    per_tissue = (dataset.train_per_tissue, dataset.val_per_tissue, dataset.test_per_tissue)
    splits = {}
    for split, count in zip(SPLITS, per_tissue, strict=True):
        splits[split] = phantom.draw_split(count, seed, dataset.image_size, split, progress)
    return splits


def _read_file(path: Path, md5: str | None, n_labels: int) -> dict[str, Split]:
    if md5 is not None:
        found = _md5(path)
        if found != md5:
            raise DataError(path, f"its MD5 is {found}, not {md5} as in the parameters: another file, or only a part of it")
    return read_archive(path, n_labels)


def _md5(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(path, f"could not be read: {error.strerror}") from error
