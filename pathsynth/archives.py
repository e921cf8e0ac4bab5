"""Archives in MedMNIST's .npz format: images and labels by split, as in MedMNIST v2 (Yang et al., Scientific Data 2023)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pathsynth.errors import DataError
from pathsynth.files import read_npz, write_npz

SPLITS = ("train", "val", "test")
# A generated set is a set to train on, so MedMNIST's own loader opens it with split="train".
GENERATED = "train"

Split = tuple[np.ndarray, np.ndarray]


def read_archive(path: str | Path, n_labels: int) -> dict[str, Split]:
    """Reads a whole data set.

    Args:
        path: an .npz archive with `{train,val,test}_images` and `{train,val,test}_labels`.
        n_labels: number of classes, each of which must have an image in every split.

    Returns:
        For each split its images, uint8 (N, H, H, 3), and its labels, uint8 (N,).

    Raises:
        DataError: if the file is missing, damaged or not in this format; one line says what is wrong and where.
    """
    arrays = read_npz(path, [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")])
    splits = {split: (arrays[f"{split}_images"], _flat(arrays[f"{split}_labels"])) for split in SPLITS}
    check_splits(path, splits, n_labels)
    return splits


def write_archive(path: str | Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes a generated set as the train split of an archive; the same images always give the same bytes.

    Args:
        path: the .npz archive to write.
        images: uint8 (N, H, H, 3).
        labels: integers (N,) in 0 to 255.

    Raises:
        DataError: if the arrays do not have this form, or the file cannot be written.
    """
    labels = _flat(np.asarray(labels))
    if labels.dtype.kind in "iu" and labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.uint8).max):
        raise DataError(path, f"{GENERATED}_labels: {labels.min()} to {labels.max()} is not within 0 to 255")
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.uint8)
    _check_arrays(path, GENERATED, images, labels)
    write_npz(path, **{f"{GENERATED}_images": images, f"{GENERATED}_labels": labels[:, None]})


def read_generated(path: str | Path) -> Split:
    """Reads what `write_archive` wrote.

    Returns:
        Images, uint8 (N, H, H, 3), and labels, uint8 (N,); N may be 0.

    Raises:
        DataError: if the file is missing, damaged or not in this format.
    """
    arrays = read_npz(path, [f"{GENERATED}_images", f"{GENERATED}_labels"])
    images, labels = arrays[f"{GENERATED}_images"], _flat(arrays[f"{GENERATED}_labels"])
    _check_arrays(path, GENERATED, images, labels)
    return images, labels


def check_splits(where: str | Path, splits: dict[str, Split], n_labels: int) -> None:
    """Checks that all splits have images of one size and every class.

    Args:
        where: what the error names, such as the file that the arrays are from.
        splits: for each split images and labels, to be uint8 (N, H, H, 3) and uint8 (N,).
        n_labels: number of classes.

    Raises:
        DataError: for the first thing that does not hold.
    """
    for split, (images, labels) in splits.items():
        _check_arrays(where, split, images, labels)
        _check_classes(where, split, labels, n_labels)
    sides = {split: images.shape[1] for split, (images, _) in splits.items()}
    if len(set(sides.values())) > 1:
        sizes = ", ".join(f"{split} {side}" for split, side in sides.items())
        raise DataError(where, f"the splits have images of different sizes, in pixels: {sizes}")


def _check_arrays(where: str | Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    for part, array in (("images", images), ("labels", labels)):
        if array.dtype != np.uint8:
            raise DataError(where, f"{split}_{part}: {array.dtype}, not uint8")
    if images.ndim == 3:
        raise DataError(where, f"{split}_images: shape {images.shape} is greyscale; only colour, (N, H, H, 3), is read")
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2] or not images.shape[1]:
        raise DataError(where, f"{split}_images: shape {images.shape}, not (N, H, H, 3)")
    if labels.ndim != 1:
        raise DataError(where, f"{split}_labels: shape {labels.shape}, not (N, 1) or (N,)")
    if len(images) != len(labels):
        raise DataError(where, f"{split}: {len(images)} images but {len(labels)} labels")


def _check_classes(where: str | Path, split: str, labels: np.ndarray, n_labels: int) -> None:
    counts = np.bincount(labels, minlength=n_labels)
    if len(counts) > n_labels:
        raise DataError(where, f"{split}_labels: label {len(counts) - 1} is not one of 0 to {n_labels - 1}")
    empty = ", ".join(str(label) for label in np.flatnonzero(counts == 0))
    if empty:
        raise DataError(where, f"{split}_labels: no image with label {empty}; every label from 0 to {n_labels - 1} needs one")


def _flat(labels: np.ndarray) -> np.ndarray:
    """Labels (N, 1), as MedMNIST stores them, as (N,); any other shape is left for the checks."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
