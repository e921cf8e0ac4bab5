"""Archives in MedMNIST's .npz format: images and labels by split, as in MedMNIST v2 (Yang et al., Scientific Data 2023).

Colour images are (N, H, H, 3), grey ones (N, H, H). Everywhere else in the package images have three channels, which are equal
where the image is grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, read_npy, read_npz, read_npz_shapes, stream_npz, write_npy_chunks, write_npz_chunks
from pathsynth.core.rows import Rows, iter_blocks
from pathsynth.data.images import resize_images

SPLITS = ("train", "val", "test")
# Generated images are training images, so MedMNIST's own loader opens them with split="train".
GENERATED = "train"
# Bytes of images in memory at a time.
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class ArchiveImages:
    """Images of an archive that stay on disk until `iter_chunks` reads them.

    Attributes:
        path: the archive.
        key: name of the array.
        shape: (N, H, H, 3), or (N, H, H) for grey images.
        dtype: of the array.
    """

    path: str | Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]


Images = Rows | ArchiveImages
Split = tuple[Images, np.ndarray]


def iter_chunks(images: Images) -> Iterator[np.ndarray]:
    """Yields images in chunks of at most about 32 MB, in order.

    Raises:
        DataError: if they are in a damaged archive.
    """
    rows = rows_per_chunk(images)
    if isinstance(images, ArchiveImages):
        yield from stream_npz(images.path, images.key, rows)
    else:
        yield from iter_blocks(images, rows)


def rows_per_chunk(images: Images) -> int:
    """Returns how many images `iter_chunks` yields at a time."""
    return max(1, CHUNK_BYTES // max(1, int(np.prod(images.shape[1:], dtype=np.int64))))


def read_archive(path: str | Path, n_labels: int, channels: int = 3) -> dict[str, Split]:
    """Opens a data set: reads its labels and leaves its images on disk.

    Args:
        path: an .npz archive with `{train,val,test}_images` and `{train,val,test}_labels`.
        n_labels: number of classes, each of which must have an image in every split.
        channels: 3 for colour images, 1 for grey ones.

    Returns:
        For each split its images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and its labels, uint8 (N,).

    Raises:
        DataError: if the file is missing, damaged or not in this format.
    """
    shapes = read_npz_shapes(path, [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")])
    splits: dict[str, Split] = {}
    for split in SPLITS:
        # checked before the labels are read, because multi-label arrays may be large
        _check_label_shape(path, split, shapes[f"{split}_labels"][0])
        images, labels = _open_split(path, split, shapes[f"{split}_images"])
        _check_arrays(path, split, images, labels, channels)
        _check_classes(path, split, labels, n_labels)
        splits[split] = images, labels
    sides = {split: images.shape[1] for split, (images, _) in splits.items()}
    if len(set(sides.values())) > 1:
        sizes = ", ".join(f"{split} {side}" for split, side in sides.items())
        raise DataError(path, f"the splits have images of different sizes, in pixels: {sizes}")
    return splits


def write_archive(path: str | Path, images: Rows, labels: np.ndarray, channels: int = 3) -> None:
    """Writes generated images as the train split of an archive; the same images always give the same bytes.

    Args:
        path: the .npz archive to write.
        images: uint8 (N, H, H, 3), read in chunks.
        labels: integers (N,) in [0, 255].
        channels: 1 writes only the first channel, as (N, H, H), like MedMNIST's grey sets.

    Raises:
        DataError: if the file cannot be written.
    """
    chunks = (chunk[..., 0] if channels == 1 else chunk for chunk in iter_chunks(images))
    stored_labels = labels.astype(np.uint8)[:, None]
    write_npz_chunks(
        path,
        {
            f"{GENERATED}_images": (images.shape[: 3 if channels == 1 else 4], images.dtype, chunks),
            f"{GENERATED}_labels": (stored_labels.shape, stored_labels.dtype, [stored_labels]),
        },
    )


def unpack_split(
    path: str | Path, folder: Path, split: str = GENERATED, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks the images of one split to a .npy file, so that a set of any size can be indexed.

    Args:
        path: an archive in MedMNIST's format.
        folder: where the unpacked images go; it must outlive them.
        split: "train", "val" or "test"; `write_archive` writes the train split.
        size: side in pixels to resize images to, with the filter that `prepare` uses; None keeps their size.

    Returns:
        Images, uint8 (N, H, H, 3), as a memory map, and labels, uint8 (N,); N may be 0.

    Raises:
        DataError: if the file is missing, damaged or not in this format, or `folder` cannot be written.
    """
    keys = [f"{split}_images", f"{split}_labels"]
    shape, dtype = read_npz_shapes(path, keys)[keys[0]]
    images, labels = _open_split(path, split, (shape, dtype))
    _check_arrays(path, split, images, labels, channels=1 if len(shape) == 3 else 3)
    if not len(images):
        return expand_grey(np.zeros(shape, np.uint8)), labels
    unpacked, size = folder / f"{Path(path).stem}_{split}.npy", size or shape[1]
    with atomic_write(unpacked) as part:
        chunks = (resize_images(chunk, size) for chunk in iter_chunks(images))
        write_npy_chunks(part, (shape[0], size, size, *shape[3:]), dtype, chunks)
    return expand_grey(read_npy(unpacked)), labels


def expand_grey(images: np.ndarray) -> np.ndarray:
    """Views grey images (N, H, W) as (N, H, W, 3) with equal channels; colour images are returned unchanged."""
    return np.broadcast_to(images[..., None], (*images.shape, 3), subok=True) if images.ndim == 3 else images


def _open_split(path: str | Path, split: str, stored: tuple[tuple[int, ...], np.dtype]) -> tuple[ArchiveImages, np.ndarray]:
    """Images of one split on disk, and its labels; MedMNIST's labels (N, 1) are flattened to (N,)."""
    key = f"{split}_labels"
    labels = read_npz(path, [key])[key]
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    return ArchiveImages(path, f"{split}_images", *stored), flat


def _check_arrays(path: str | Path, split: str, images: ArchiveImages, labels: np.ndarray, channels: int) -> None:
    for part, dtype in (("images", images.dtype), ("labels", labels.dtype)):
        if dtype != np.uint8:
            raise DataError(path, f"{split}_{part}: {dtype}, expected uint8")
    _check_image_shape(path, split, images.shape, channels)
    _check_label_shape(path, split, labels.shape)
    if len(images) != len(labels):
        raise DataError(path, f"{split}: {len(images)} images but {len(labels)} labels")


def _check_image_shape(path: str | Path, split: str, shape: tuple[int, ...], channels: int) -> None:
    expected = "(N, H, H, 3)" if channels == 3 else "(N, H, H)"
    if len(shape) == 4 and shape[1] == shape[2] == shape[3] != 3:
        problem = f"contains volumes, but only flat images {expected} are supported"
    elif channels == 3 and len(shape) == 3:
        problem = f"is grey, expected {expected}; for grey images set dataset.channels: 1"
    elif channels == 1 and len(shape) == 4 and shape[3] == 3:
        problem = f"is colour, expected {expected}; for colour images set dataset.channels: 3"
    elif len(shape) != (4 if channels == 3 else 3) or shape[3:] not in ((), (3,)) or shape[1] != shape[2] or not shape[1]:
        problem = f"is not {expected}"
    else:
        return
    raise DataError(path, f"{split}_images: shape {shape} {problem}")


def _check_label_shape(path: str | Path, split: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and shape[1] > 1:
        problem = f"shape {shape} is multi-label, but a prompt names one label; expected (N, 1) or (N,)"
        raise DataError(path, f"{split}_labels: {problem}")
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise DataError(path, f"{split}_labels: shape {shape} is not (N, 1) or (N,)")


def _check_classes(path: str | Path, split: str, labels: np.ndarray, n_labels: int) -> None:
    counts = np.bincount(labels, minlength=n_labels)
    if len(counts) > n_labels:
        raise DataError(path, f"{split}_labels: label {len(counts) - 1} is not in 0 to {n_labels - 1}")
    empty = ", ".join(str(label) for label in np.flatnonzero(counts == 0))
    if empty:
        raise DataError(path, f"{split}_labels: no image with label {empty}; every label from 0 to {n_labels - 1} needs one")
