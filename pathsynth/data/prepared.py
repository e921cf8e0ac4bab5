"""The prepared data set: memory-mapped .npy files with the images and labels of each split, and a card that describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, catch_read_errors, format_json, read_json, read_npy, write_npy_chunks
from pathsynth.core.progress import progress_bar
from pathsynth.data.archives import SPLITS, Images, Split, count_available, expand_grey, iter_chunks, rows_per_chunk
from pathsynth.data.duplicates import Duplicates, parse_duplicates
from pathsynth.data.images import resize_images
from pathsynth.data.labels import slugify

CARD = "card.json"

# Images uint8 (N, S, S, 3) or (N, S, S) and labels (N,) by split to counts.
CountDuplicates = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], list[Duplicates]]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk, opened by `open_prepared`.

    Attributes:
        folder: where the files are.
        name: name of the benchmark.
        labels: names of the tissues, in the order of their indices.
        slugs: the same in snake_case.
        image_size: side of the images in pixels.
        channels: 3, or 1 for grey images.
        source: the dataset section of the benchmark.
        stand_in: whether the images only stand in for medical ones, as phantoms do.
        counts: number of images in each split.
        checksums: SHA-256 of each split's images and labels.
        duplicates: images that occur more than once; None for a data set of an earlier version, which did not count them.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    slugs: tuple[str, ...]
    image_size: int
    channels: int
    source: dict[str, Any]
    stand_in: bool
    counts: dict[str, int]
    checksums: dict[str, str]
    duplicates: list[Duplicates] | None

    def images(self, split: str) -> np.ndarray:
        """Maps the images of "train", "val" or "test", uint8 (N, image_size, image_size, 3), read-only.

        Grey images are stored with one channel and broadcast to three, which takes no memory.

        Raises:
            DataError: if the file is missing or damaged.
        """
        return expand_grey(read_npy(_images_path(self.folder, split)))

    def labels_of(self, split: str) -> np.ndarray:
        """Reads the labels of "train", "val" or "test", int64 (N,).

        Raises:
            DataError: if the file is missing or damaged.
        """
        return np.array(read_npy(_labels_path(self.folder, split)), np.int64)


def write_prepared(
    folder: str | Path,
    name: str,
    labels: Sequence[str],
    splits: Mapping[str, Split],
    source: dict[str, Any],
    size: int,
    channels: int = 3,
    count_duplicates: CountDuplicates | None = None,
) -> list[Duplicates]:
    """Writes a data set in the prepared layout, resizing its images with PIL's bicubic filter where needed.

    Images are streamed in chunks, so a data set may exceed memory. All files are written before the first is renamed to its
    final name, and the card is renamed last.

    Args:
        folder: where the files go.
        name: name of the benchmark.
        labels: names of the tissues, in the order of their indices.
        splits: for "train", "val" and "test" images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and labels, uint8 (N,).
        source: description of where the images come from, for the card.
        size: side of the prepared images in pixels.
        channels: 3 for colour images, 1 for grey ones.
        count_duplicates: counts duplicates of the written images, given them and their labels by split.

    Returns:
        What it has counted, which the card states too; without it, nothing.

    Raises:
        DataError: if an archive that the images are read from is damaged, or a file cannot be written.
    """
    folder, written, split_cards = Path(folder), {}, {}
    with ExitStack() as stack:
        # entered first, therefore renamed last
        card = stack.enter_context(atomic_write(folder / CARD))
        for split in SPLITS:
            images, indices = splits[split]
            checksum = hashlib.sha256()
            part = stack.enter_context(atomic_write(_images_path(folder, split)))
            shape = (len(images), size, size, *images.shape[3:])
            write_npy_chunks(part, shape, np.dtype(np.uint8), _resized_chunks(images, size, split, checksum))
            written[split] = part
            part = stack.enter_context(atomic_write(_labels_path(folder, split)))
            write_npy_chunks(part, indices.shape, indices.dtype, [indices])
            checksum.update(np.ascontiguousarray(indices).data)
            split_cards[split] = _describe_split(labels, indices, count_available(images), checksum.hexdigest())
        labels_of = {split: indices for split, (_, indices) in splits.items()}
        duplicates = []
        content = {
            "name": name,
            "labels": list(labels),
            "slugs": [slugify(label) for label in labels],
            "image_size": size,
            "channels": channels,
            "source": source,
            "splits": split_cards,
        }
        if count_duplicates:
            duplicates = count_duplicates({split: read_npy(part) for split, part in written.items()}, labels_of)
            content["duplicates"] = [asdict(each) for each in duplicates]
        card.write_text(format_json(folder / CARD, content), encoding="utf-8", newline="\n")
    return duplicates


def open_prepared(folder: str | Path, benchmark: str | None = None, labels: Sequence[str] | None = None) -> Prepared:
    """Opens a prepared data set.

    Args:
        folder: what `write_prepared` wrote.
        benchmark: name of the benchmark that is expected, or None for any.
        labels: the labels that are expected, or None for any.

    Raises:
        DataError: if the card is missing or damaged, or the data belong to a different benchmark.
    """
    folder = Path(folder)
    card = read_json(folder / CARD)
    with catch_read_errors(folder / CARD, "the card of a prepared data set"):
        prepared = Prepared(
            folder=folder,
            name=card["name"],
            labels=tuple(card["labels"]),
            slugs=tuple(card["slugs"]),
            image_size=card["image_size"],
            channels=card["channels"],
            source=card["source"],
            stand_in=card["source"].get("stand_in", False),
            counts={split: card["splits"][split]["images"] for split in SPLITS},
            checksums={split: card["splits"][split]["sha256"] for split in SPLITS},
            duplicates=parse_duplicates(card["duplicates"]) if "duplicates" in card else None,
        )
    if benchmark not in (None, prepared.name) or (labels is not None and tuple(labels) != prepared.labels):
        found = f"{prepared.name}: {', '.join(prepared.labels)}"
        raise DataError(folder, f"holds {found}, but the parameters select {benchmark}; run the stage prepare")
    return prepared


def _describe_split(labels: Sequence[str], indices: np.ndarray, available: int, sha256: str) -> dict[str, Any]:
    """The part of the card on one split; it names the number of available images if not all were selected."""
    counts = np.bincount(indices, minlength=len(labels)).tolist()
    per_tissue = dict(zip([slugify(label) for label in labels], counts, strict=True))
    selection = {"available": available} if available > len(indices) else {}
    return {"images": len(indices), **selection, "per_tissue": per_tissue, "sha256": sha256}


def _resized_chunks(images: Images, size: int, split: str, checksum: Any) -> Iterator[np.ndarray]:
    """Yields resized chunks of images and adds them to a checksum, with a progress bar where more than one chunk is read."""
    hidden = count_available(images) <= rows_per_chunk(images)
    with progress_bar(None, f"preparing {split}", len(images), hidden=hidden, unit="images") as progress:
        for chunk in iter_chunks(images):
            resized = np.ascontiguousarray(resize_images(chunk, size))
            checksum.update(resized.data)
            yield resized
            progress.update(len(chunk))


def _images_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"
