"""Archives in MedMNIST's .npz format: images and labels by split, as in MedMNIST v2 (Yang et al., Scientific Data 2023).

Colour images are (N, H, H, 3), grey ones (N, H, H). Everywhere else in the package images have three channels, which are equal
where the image is grey. Archives that people make themselves often differ in dtype or in the order of axes. What cannot be
mistaken is read as well: integers of any width, images (N, H, H, 1), (N, 1, H, H) and (N, 3, H, H), labels as whole floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, read_npy, read_npz, read_npz_shapes, stream_npz, write_npy_chunks, write_npz_chunks
from pathsynth.core.rows import Rows, RowSelection, iter_blocks
from pathsynth.data.images import resize_images

SPLITS = ("train", "val", "test")
# Generated images are training images, so MedMNIST's own loader opens them with split="train".
GENERATED = "train"
# Bytes of images in memory at a time.
CHUNK_BYTES = 32 * 2**20


class StreamedImages(Protocol):
    """Images that are not in memory and can only be read in order, in chunks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, H, 3), or (N, H, H) for grey images."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the chunks, uint8."""

    @property
    def row_bytes(self) -> int:
        """Memory that reading one image takes."""

    @property
    def available(self) -> int:
        """Number of available images, from which these were selected."""

    def __len__(self) -> int: ...

    def iter_chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yields the images in chunks of at most `rows`."""


@dataclass(frozen=True)
class ArchiveImages:
    """Images of an archive that stay on disk until `iter_chunks` reads them.

    Attributes:
        path: the archive.
        key: name of the array.
        stored_shape: its shape; may be (N, H, H, 1), (N, 1, H, H) or (N, 3, H, H) too.
        stored_dtype: its dtype, an integer.
        indices: images that are selected, sorted integers (n,); None selects all.
    """

    path: str | Path
    key: str
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype
    indices: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, H, 3), or (N, H, H) for grey images."""
        shape = self.stored_shape
        if self._channels_first:
            shape = (shape[0], *shape[2:], shape[1])
        shape = shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
        return shape if self.indices is None else (len(self.indices), *shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the chunks, uint8."""
        return np.dtype(np.uint8)

    @property
    def row_bytes(self) -> int:
        """Size of one image as it is stored."""
        return math.prod(self.stored_shape[1:]) * self.stored_dtype.itemsize

    @property
    def available(self) -> int:
        """Number of images in the archive."""
        return self.stored_shape[0]

    def __len__(self) -> int:
        return self.available if self.indices is None else len(self.indices)

    def select(self, indices: np.ndarray) -> ArchiveImages:
        """Selects images by their indices in the archive, sorted integers (n,)."""
        return replace(self, indices=indices)

    def iter_chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yields the images, uint8, in chunks of at most `rows`; the whole array is read even for a selection.

        Raises:
            DataError: if the archive is damaged, or a value is not in 0 to 255.
        """
        start = 0
        for chunk in stream_npz(self.path, self.key, rows):
            if chunk.dtype != np.uint8:
                self._check_values(chunk, start)
            start += len(chunk)
            if self.indices is not None:
                first, last = np.searchsorted(self.indices, (start - len(chunk), start))
                if first == last:
                    continue
                chunk = chunk[self.indices[first:last] - (start - len(chunk))]
            if self._channels_first:
                chunk = np.moveaxis(chunk, 1, -1)
            yield chunk.astype(np.uint8, copy=False).reshape(len(chunk), *self.shape[1:])

    @property
    def _channels_first(self) -> bool:
        shape = self.stored_shape
        return len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] and shape[3] not in (1, 3)

    def _check_values(self, chunk: np.ndarray, start: int) -> None:
        """Raises DataError for the first value that uint8 cannot hold; `start` is the number of images before the chunk."""
        if chunk.min() < 0 or chunk.max() > 255:
            first = np.argmax((chunk < 0) | (chunk > 255))
            number = start + first // math.prod(chunk.shape[1:])
            problem = f"image {number} has the value {chunk.flat[first]}; only 0 to 255 can be stored as uint8"
            raise DataError(self.path, f"{self.key}: {problem}")


Images = Rows | StreamedImages
Split = tuple[Images, np.ndarray]


def iter_chunks(images: Images) -> Iterator[np.ndarray]:
    """Yields images in chunks of at most about 32 MB, in order.

    Raises:
        DataError: if a file that they are read from is damaged.
    """
    rows = rows_per_chunk(images)
    if isinstance(images, np.ndarray | RowSelection):
        yield from iter_blocks(images, rows)
    else:
        yield from images.iter_chunks(rows)


def rows_per_chunk(images: Images) -> int:
    """Returns how many images `iter_chunks` yields at a time."""
    row_bytes = math.prod(images.shape[1:]) if isinstance(images, np.ndarray | RowSelection) else images.row_bytes
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def count_available(images: Images) -> int:
    """Returns the number of available images, from which `images` were selected."""
    return len(images) if isinstance(images, np.ndarray | RowSelection) else images.available


def read_archive(path: str | Path, n_labels: int, channels: int = 3) -> dict[str, tuple[ArchiveImages, np.ndarray]]:
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
    # names all arrays that are missing, not only those of the first split
    read_npz_shapes(path, [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")])
    splits: dict[str, tuple[ArchiveImages, np.ndarray]] = {}
    for split in SPLITS:
        images, labels = _open_split(path, split, channels, n_labels)
        empty = ", ".join(str(label) for label in np.flatnonzero(np.bincount(labels, minlength=n_labels) == 0))
        if empty:
            problem = f"no image with label {empty}; every label from 0 to {n_labels - 1} needs one"
            raise DataError(path, f"{split}_labels: {problem}")
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
    images, labels = _open_split(path, split)
    return unpack_images(images, folder / f"{Path(path).stem}_{split}.npy", size), labels


def unpack_images(images: Images, path: Path, size: int | None = None) -> np.ndarray:
    """Writes images to a .npy file, so that any number of them can be indexed.

    Args:
        images: uint8 (N, H, H, 3) or (N, H, H), read in chunks.
        path: the file, which must outlive the result.
        size: side in pixels to resize to, with the filter that `prepare` uses; None keeps their size.

    Returns:
        uint8 (N, H, H, 3) as a memory map.

    Raises:
        DataError: if a file that the images are read from is damaged, or `path` cannot be written.
    """
    # an empty file cannot be mapped
    if not len(images):
        return expand_grey(np.zeros(images.shape, np.uint8))
    side = size or images.shape[1]
    with atomic_write(path) as part:
        chunks = (resize_images(chunk, side) for chunk in iter_chunks(images))
        write_npy_chunks(part, (len(images), side, side, *images.shape[3:]), images.dtype, chunks)
    return expand_grey(read_npy(path))


def expand_grey(images: np.ndarray) -> np.ndarray:
    """Views grey images (N, H, W) as (N, H, W, 3) with equal channels; colour images are returned unchanged."""
    return np.broadcast_to(images[..., None], (*images.shape, 3), subok=True) if images.ndim == 3 else images


def hint_at_offset(labels: np.ndarray, n_labels: int) -> str:
    """Returns the end of an error about labels (N,) that are out of range: a remedy if they count from 1, else nothing."""
    return "; labels start at 0, so subtract 1" if labels.min() == 1 and labels.max() == n_labels else ""


def _open_split(
    path: str | Path, split: str, channels: int | None = None, n_labels: int | None = None
) -> tuple[ArchiveImages, np.ndarray]:
    """Images of one split on disk, and its labels uint8 (N,); None allows any number of channels or labels."""
    keys = [f"{split}_images", f"{split}_labels"]
    stored = read_npz_shapes(path, keys)
    images = ArchiveImages(path, keys[0], *stored[keys[0]])
    _check_image_dtype(images)
    _check_image_shape(images, channels)
    # checked before the labels are read, because multi-label arrays may be large
    _check_label_array(path, keys[1], *stored[keys[1]])
    labels = read_npz(path, keys[1:])[keys[1]].reshape(-1)
    if len(images) != len(labels):
        raise DataError(path, f"{split}: {len(images)} images but {len(labels)} labels")
    return images, _convert_labels(path, keys[1], labels, n_labels or 256)


def _check_image_dtype(images: ArchiveImages) -> None:
    if images.stored_dtype.kind not in "iu":
        hint = "store 0 to 255 as uint8 (values from 0 to 1: multiply by 255 first)"
        raise DataError(images.path, f"{images.key}: {images.stored_dtype}, expected uint8; {hint}")


def _check_image_shape(images: ArchiveImages, channels: int | None) -> None:
    shape, expected = images.shape, {3: "(N, H, H, 3)", 1: "(N, H, H)", None: "(N, H, H, 3) or (N, H, H)"}[channels]
    grey, colour = len(shape) == 3, len(shape) == 4 and shape[3] == 3
    if len(shape) == 4 and shape[1] == shape[2] == shape[3] != 3:
        problem = f"contains volumes, but only flat images {expected} are supported"
    elif len(shape) == 4 and (shape[1:] == (shape[1], shape[1], 4) or shape[1:] == (4, shape[3], shape[3])):
        problem = f"has an alpha channel, expected {expected}; store only red, green and blue"
    elif channels == 3 and grey:
        problem = f"is grey, expected {expected}; for grey images set dataset.channels: 1"
    elif channels == 1 and colour:
        problem = f"is colour, expected {expected}; for colour images set dataset.channels: 3"
    elif not (grey or colour) or shape[1] != shape[2] or not shape[1]:
        problem = f"is not {expected}"
    else:
        return
    raise DataError(images.path, f"{images.key}: shape {images.stored_shape} {problem}")


def _check_label_array(path: str | Path, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) == 2 and shape[1] > 1:
        problem = f"shape {shape} is multi-label, but a prompt names one label; if it is one-hot, store labels.argmax(axis=1)"
        raise DataError(path, f"{key}: {problem}")
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise DataError(path, f"{key}: shape {shape} is not (N, 1) or (N,)")
    if dtype.kind not in "iuf":
        raise DataError(path, f"{key}: {dtype}, expected integers; store the number of each image's class, from 0")


def _convert_labels(path: str | Path, key: str, labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Converts labels (N,) of any integer dtype, or whole floats, to uint8; they must be in 0 to `n_labels` - 1."""
    if labels.dtype.kind == "f" and len(broken := np.flatnonzero(labels != np.floor(labels))):
        raise DataError(path, f"{key}: label {labels[broken[0]]} of image {broken[0]} is not a whole number")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_labels:
        worst = labels.max() if labels.max() >= n_labels else labels.min()
        raise DataError(path, f"{key}: label {worst} is not in 0 to {n_labels - 1}{hint_at_offset(labels, n_labels)}")
    return labels.astype(np.uint8)
