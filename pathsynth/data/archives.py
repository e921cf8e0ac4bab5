"""Archives in MedMNIST's .npz format: images and labels by split, as in MedMNIST v2 (Yang et al., Scientific Data 2023).

Colour images are (N, H, H, 3), grey ones (N, H, H). Everywhere else in the package an image has three channels, which are equal
where it is grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, npz_shapes, read_npy, read_npz, stream_npz, write_npy_in_pieces, write_npz_in_pieces
from pathsynth.core.rows import Rows
from pathsynth.data.images import resized

SPLITS = ("train", "val", "test")
# A generated set is a set to train on, so MedMNIST's own loader opens it with split="train".
GENERATED = "train"
# Bytes of images in memory at a time.
PIECE = 32 * 2**20


class ArchiveImages:
    """Images of an archive that stay on disk until they are asked for.

    Attributes:
        shape: (N, H, H, 3), or (N, H, H) for grey images.
        dtype: uint8 in any archive that passes `check_splits`.
    """

    def __init__(self, path: str | Path, key: str, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.key, self.shape, self.dtype = path, key, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return read_npz(self.path, [self.key])[self.key].astype(dtype or self.dtype)


Images = np.ndarray | ArchiveImages
Split = tuple[Images, np.ndarray]


def pieces(images: Images | Rows) -> Iterator[np.ndarray]:
    """Yields uint8 (n, ...) pieces of at most about 32 MB, in order.

    Raises:
        DataError: if they are on disk and the file turns out to be damaged.
    """
    rows = rows_per_piece(images)
    if isinstance(images, ArchiveImages):
        yield from stream_npz(images.path, images.key, rows)
    else:
        for start in range(0, len(images), rows):
            yield images[start : start + rows]


def rows_per_piece(images: Images | Rows) -> int:
    """How many images `pieces` yields at a time."""
    return max(1, PIECE // max(1, int(np.prod(images.shape[1:], dtype=np.int64))))


def read_archive(path: str | Path, n_labels: int, channels: int = 3) -> dict[str, Split]:
    """Opens a whole data set; its labels are read, its images when they are asked for.

    Args:
        path: an .npz archive with `{train,val,test}_images` and `{train,val,test}_labels`.
        n_labels: number of classes, each of which must have an image in every split.
        channels: 3 for colour images, 1 for grey ones.

    Returns:
        For each split its images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and its labels, uint8 (N,).

    Raises:
        DataError: if the file is missing, damaged or not in this format; one line says what is wrong and where.
    """
    shapes = npz_shapes(path, [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")])
    splits: dict[str, Split] = {}
    for split in SPLITS:
        _check_label_shape(path, split, shapes[f"{split}_labels"][0])
        labels = read_npz(path, [f"{split}_labels"])[f"{split}_labels"]
        splits[split] = (ArchiveImages(path, f"{split}_images", *shapes[f"{split}_images"]), _flat(labels))
    check_splits(path, splits, n_labels, channels)
    return splits


def write_archive(path: str | Path, images: Rows, labels: np.ndarray, channels: int = 3) -> None:
    """Writes a generated set as the train split of an archive; the same images always give the same bytes.

    Args:
        path: the .npz archive to write.
        images: uint8 (N, H, H, 3), of which some at a time are read.
        labels: integers (N,) in 0 to 255.
        channels: 1 writes the first of the channels, to be equal, as (N, H, H), as MedMNIST's grey sets have them.

    Raises:
        DataError: if the arrays do not have this form, or the file cannot be written.
    """
    labels = _flat(np.asarray(labels))
    if labels.dtype.kind in "iu" and labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.uint8).max):
        raise DataError(path, f"{GENERATED}_labels: {labels.min()} to {labels.max()} is not within 0 to 255")
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.uint8)
    _check_arrays(path, GENERATED, images, labels, channels=3)
    shape = images.shape[: 3 if channels == 1 else 4]
    stored = (piece[..., 0] if channels == 1 else piece for piece in pieces(images))
    write_npz_in_pieces(
        path,
        {
            f"{GENERATED}_images": (shape, images.dtype, stored),
            f"{GENERATED}_labels": ((len(labels), 1), labels.dtype, [labels[:, None]]),
        },
    )


def read_generated(
    path: str | Path, folder: Path, split: str = GENERATED, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks what `write_archive` wrote, or any split in MedMNIST's format, so that sets of any size are at hand.

    Args:
        path: the archive.
        folder: where the unpacked images go; it is used as long as they are.
        split: whose images; a generated set is the train split.
        size: side of the images in pixels, to which others are resized as `prepare` does; None leaves them as they are.

    Returns:
        Images, uint8 (N, H, H, 3), mapped from disk, and labels, uint8 (N,); N may be 0.

    Raises:
        DataError: if the file is missing, damaged or not in this format, or `folder` cannot be written.
    """
    keys = [f"{split}_images", f"{split}_labels"]
    shape, dtype = npz_shapes(path, keys)[keys[0]]
    images, labels = ArchiveImages(path, keys[0], shape, dtype), _flat(read_npz(path, keys[1:])[keys[1]])
    _check_arrays(path, split, images, labels, channels=1 if len(shape) == 3 else 3)
    if not len(images):
        return as_colour(np.zeros(shape, np.uint8)), labels
    unpacked, size = folder / f"{Path(path).stem}_{split}.npy", size or shape[1]
    with atomic_write(unpacked) as part:
        wanted = (shape[0], size, size, *shape[3:])
        write_npy_in_pieces(part, wanted, dtype, (resized(piece, size) for piece in pieces(images)))
    return as_colour(read_npy(unpacked)), labels


def as_colour(images: np.ndarray) -> np.ndarray:
    """Grey images (N, H, W) as (N, H, W, 3), a view with equal channels; images that have three are left."""
    return np.broadcast_to(images[..., None], (*images.shape, 3), subok=True) if images.ndim == 3 else images


def check_splits(where: str | Path, splits: Mapping[str, Split], n_labels: int, channels: int = 3) -> None:
    """Checks that all splits have images of one size and every class.

    Args:
        where: what the error names, such as the file that the arrays are from.
        splits: for each split images and labels, to be uint8 (N, H, H, 3), or (N, H, H) for grey ones, and uint8 (N,).
        n_labels: number of classes.
        channels: 3 for colour images, 1 for grey ones.

    Raises:
        DataError: for the first thing that does not hold.
    """
    for split, (images, labels) in splits.items():
        _check_arrays(where, split, images, labels, channels)
        _check_classes(where, split, labels, n_labels)
    sides = {split: images.shape[1] for split, (images, _) in splits.items()}
    if len(set(sides.values())) > 1:
        sizes = ", ".join(f"{split} {side}" for split, side in sides.items())
        raise DataError(where, f"the splits have images of different sizes, in pixels: {sizes}")


def _check_arrays(where: str | Path, split: str, images: Images | Rows, labels: np.ndarray, channels: int) -> None:
    for part, array in (("images", images), ("labels", labels)):
        if array.dtype != np.uint8:
            raise DataError(where, f"{split}_{part}: {array.dtype}, not uint8")
    _check_image_shape(where, split, images.shape, channels)
    _check_label_shape(where, split, labels.shape)
    if len(images) != len(labels):
        raise DataError(where, f"{split}: {len(images)} images but {len(labels)} labels")


def _check_image_shape(where: str | Path, split: str, shape: tuple[int, ...], channels: int) -> None:
    wanted = "(N, H, H, 3)" if channels == 3 else "(N, H, H)"
    if channels == 3 and len(shape) == 3:
        raise DataError(where, f"{split}_images: shape {shape} is grey, expected {wanted}; grey sets need dataset.channels: 1")
    if channels == 1 and len(shape) == 4 and shape[3] == 3:
        raise DataError(where, f"{split}_images: shape {shape} is colour, expected {wanted}; use dataset.channels: 3")
    if len(shape) == 4 and shape[1] == shape[2] == shape[3] != 3:
        raise DataError(where, f"{split}_images: shape {shape} is of volumes; only flat images, {wanted}, can be drawn")
    fits = len(shape) == 4 and shape[3] == 3 if channels == 3 else len(shape) == 3
    if not fits or shape[1] != shape[2] or not shape[1]:
        raise DataError(where, f"{split}_images: shape {shape}, not {wanted}")


def _check_label_shape(where: str | Path, split: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and shape[1] > 1:
        problem = f"shape {shape} is multi-label; a prompt asks for one label, so (N, 1) or (N,) is wanted"
        raise DataError(where, f"{split}_labels: {problem}")
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise DataError(where, f"{split}_labels: shape {shape}, not (N, 1) or (N,)")


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
