"""The prepared data set: one memory-mapped .npy file for each split's images and labels, and a card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, json_text, read_json, read_npy, write_npy, write_npy_in_pieces
from pathsynth.core.progress import bar
from pathsynth.data.archives import SPLITS, Images, Split, as_colour, check_splits, pieces, rows_per_piece
from pathsynth.data.images import resized
from pathsynth.data.labels import slug

CARD = "card.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk, made by `open_prepared`.

    Attributes:
        folder: where the files are.
        name: name of the benchmark.
        labels: names of the tissues, in the order of their numbers.
        slugs: the same in snake_case.
        image_size: side of the images in pixels.
        channels: 3, or 1 where the images are grey.
        source: where the images are from, as in params.yaml.
        stand_in: whether they only stand in for medical images, as phantoms do.
        counts: number of images in each split.
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

    def images(self, split: str) -> np.ndarray:
        """Images of "train", "val" or "test", uint8 (N, image_size, image_size, 3), read-only and mapped from disk.

        Grey images are stored with one channel and shown with three that are equal, at no cost in memory.

        Raises:
            DataError: if the file is missing, damaged or not what the card says.
        """
        path = _images_path(self.folder, split)
        images = read_npy(path)
        _expect(path, images, _shape(self.counts[split], self.image_size, self.channels))
        return as_colour(images)

    def labels_of(self, split: str) -> np.ndarray:
        """Labels of "train", "val" or "test", int64 (N,).

        Raises:
            DataError: if the file is missing, damaged or not what the card says.
        """
        path = _labels_path(self.folder, split)
        labels = read_npy(path)
        _expect(path, labels, (self.counts[split],))
        if labels.max() >= len(self.labels):
            raise DataError(path, f"label {labels.max()} is not one of 0 to {len(self.labels) - 1}")
        return np.array(labels, np.int64)


def write_prepared(
    folder: str | Path,
    name: str,
    labels: Sequence[str],
    splits: dict[str, Split],
    source: dict[str, Any],
    size: int,
    channels: int = 3,
) -> None:
    """Writes a data set in the prepared layout, resized with PIL's bicubic filter where its images have another size.

    Images go from source to file in pieces of some megabytes, so that no data set is too large for memory. All files are
    written before the first one takes its place, the card last.

    Args:
        folder: where the files go.
        name: name of the benchmark.
        labels: names of the tissues, in the order of their numbers.
        splits: for "train", "val" and "test" images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and labels, uint8 (N,).
        source: where the images are from, for the card.
        size: side of the prepared images in pixels.
        channels: 3 for colour images, 1 for grey ones.

    Raises:
        DataError: if a split is missing or not in this form, or a file cannot be written.
    """
    folder = Path(folder)
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise DataError(folder, f"no split {', '.join(missing)}")
    check_splits(folder, splits, len(labels), channels)
    described = {}
    with ExitStack() as stack:
        # Entered first, so that it is the last to take its place.
        card = stack.enter_context(atomic_write(folder / CARD))
        for split in SPLITS:
            images, numbers = splits[split]
            checksum = hashlib.sha256()
            shape = _shape(len(images), size, channels)
            part = stack.enter_context(atomic_write(_images_path(folder, split)))
            write_npy_in_pieces(part, shape, np.dtype(np.uint8), _watched(images, size, split, checksum))
            write_npy(stack.enter_context(atomic_write(_labels_path(folder, split))), numbers)
            checksum.update(np.ascontiguousarray(numbers).data)
            described[split] = _split_card(labels, numbers, checksum.hexdigest())
        content = _card(name, labels, described, source, size, channels)
        card.write_text(json_text(folder / CARD, content), encoding="utf-8", newline="\n")


def open_prepared(folder: str | Path, benchmark: str | None = None, labels: Sequence[str] | None = None) -> Prepared:
    """Opens a prepared data set and checks every file's type and shape against the card.

    Args:
        folder: what `write_prepared` wrote.
        benchmark: whose data it must be, or None for anyone's.
        labels: the labels that it must have, or None for any.

    Raises:
        DataError: if a file is missing, damaged or not what the card says, or the data are another benchmark's.
    """
    folder = Path(folder)
    card = read_json(folder / CARD)
    try:
        source = dict(card["source"])
        prepared = Prepared(
            folder=folder,
            name=str(card["name"]),
            labels=tuple(str(label) for label in card["labels"]),
            slugs=tuple(card["slugs"]),
            image_size=int(card["image_size"]),
            channels=int(card["channels"]),
            source=source,
            stand_in=bool(source.get("stand_in", False)),
            counts={split: int(card["splits"][split]["images"]) for split in SPLITS},
        )
    except KeyError as error:
        raise DataError(folder / CARD, f"has no key {error.args[0]!r}") from error
    except (TypeError, ValueError) as error:
        raise DataError(folder / CARD, f"is not the card of a prepared data set: {error}") from error
    if prepared.slugs != tuple(slug(label) for label in prepared.labels):
        raise DataError(folder / CARD, "slugs: not those of the labels")
    if benchmark not in (None, prepared.name) or (labels is not None and tuple(labels) != prepared.labels):
        has = f"{prepared.name}: {', '.join(prepared.labels)}"
        raise DataError(folder, f"holds {has}; the parameters select {benchmark}: run the stage prepare")
    for split in SPLITS:
        prepared.images(split)
        prepared.labels_of(split)
    return prepared


def _card(
    name: str, labels: Sequence[str], splits: dict[str, dict], source: dict[str, Any], size: int, channels: int
) -> dict[str, Any]:
    return {
        "name": name,
        "labels": list(labels),
        "slugs": [slug(label) for label in labels],
        "image_size": size,
        "channels": channels,
        "source": source,
        "splits": splits,
    }


def _split_card(labels: Sequence[str], numbers: np.ndarray, sha256: str) -> dict[str, Any]:
    counts = np.bincount(numbers, minlength=len(labels)).tolist()
    per_tissue = dict(zip([slug(label) for label in labels], counts, strict=True))
    return {"images": len(numbers), "per_tissue": per_tissue, "sha256": sha256}


def _watched(images: Images, size: int, split: str, checksum: Any) -> Iterator[np.ndarray]:
    """The images in pieces and in the wanted size, added to the checksum; with a bar where there is more than one piece."""
    total = -(-len(images) // rows_per_piece(images))
    for piece in bar(pieces(images), f"preparing {split}", total, hidden=total == 1):
        sized = np.ascontiguousarray(resized(piece, size))
        checksum.update(sized.data)
        yield sized


def _shape(count: int, size: int, channels: int) -> tuple[int, ...]:
    return (count, size, size, 3) if channels == 3 else (count, size, size)


def _expect(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(path, f"{array.dtype} {array.shape}, but {CARD} says uint8 {shape}")


def _images_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"
