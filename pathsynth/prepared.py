"""The prepared data set: one memory-mapped .npy file for each split's images and labels, and a card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathsynth.archives import SPLITS, Split, check_splits
from pathsynth.errors import DataError
from pathsynth.files import json_text, read_json, read_npy, write_npy, write_whole
from pathsynth.labels import slug

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
        source: where the images are from, as in params.yaml.
        stand_in: whether they only stand in for medical images, as phantoms do.
        counts: number of images in each split.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    slugs: tuple[str, ...]
    image_size: int
    source: dict[str, Any]
    stand_in: bool
    counts: dict[str, int]

    def images(self, split: str) -> np.ndarray:
        """Images of "train", "val" or "test", uint8 (N, image_size, image_size, 3), read-only and mapped from disk.

        Raises:
            DataError: if the file is missing, damaged or not what the card says.
        """
        path = _images_path(self.folder, split)
        images = read_npy(path)
        _expect(path, images, (self.counts[split], self.image_size, self.image_size, 3))
        return images

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
    folder: str | Path, name: str, labels: Sequence[str], splits: dict[str, Split], source: dict[str, Any], size: int
) -> None:
    """Writes a data set in the prepared layout, resized with PIL's bicubic filter where its images have another size.

    All files are written before the first one takes its place, the card last.

    Args:
        folder: where the files go.
        name: name of the benchmark.
        labels: names of the tissues, in the order of their numbers.
        splits: for "train", "val" and "test" images, uint8 (N, H, H, 3), and labels, uint8 (N,).
        source: where the images are from, for the card.
        size: side of the prepared images in pixels.

    Raises:
        DataError: if a split is missing or not in this form, or a file cannot be written.
    """
    folder = Path(folder)
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise DataError(folder, f"no split {', '.join(missing)}")
    check_splits(folder, splits, len(labels))
    resized = {split: (_resize(splits[split][0], size), splits[split][1]) for split in SPLITS}
    card = _card(name, labels, resized, source, size)
    with ExitStack() as stack:
        # Entered first, so that it is the last to take its place.
        part = stack.enter_context(write_whole(folder / CARD))
        part.write_text(json_text(folder / CARD, card), encoding="utf-8", newline="\n")
        for split, (images, numbers) in resized.items():
            write_npy(stack.enter_context(write_whole(_images_path(folder, split))), images)
            write_npy(stack.enter_context(write_whole(_labels_path(folder, split))), numbers)


def open_prepared(folder: str | Path) -> Prepared:
    """Opens a prepared data set and checks every file's type and shape against the card.

    Raises:
        DataError: if a file is missing, damaged or not what the card says.
    """
    folder = Path(folder)
    card = read_json(folder / CARD)
    try:
        prepared = Prepared(
            folder=folder,
            name=str(card["name"]),
            labels=tuple(str(label) for label in card["labels"]),
            slugs=tuple(card["slugs"]),
            image_size=int(card["image_size"]),
            source=dict(card["source"]),
            stand_in=bool(card["source"].get("stand_in", False)),
            counts={split: int(card["splits"][split]["images"]) for split in SPLITS},
        )
    except KeyError as error:
        raise DataError(folder / CARD, f"has no key {error.args[0]!r}") from error
    except (TypeError, ValueError) as error:
        raise DataError(folder / CARD, f"is not the card of a prepared data set: {error}") from error
    if prepared.slugs != tuple(slug(label) for label in prepared.labels):
        raise DataError(folder / CARD, "slugs: not those of the labels")
    for split in SPLITS:
        prepared.images(split)
        prepared.labels_of(split)
    return prepared


def _card(name: str, labels: Sequence[str], splits: dict[str, Split], source: dict[str, Any], size: int) -> dict[str, Any]:
    slugs = [slug(label) for label in labels]
    described = {}
    for split, (images, numbers) in splits.items():
        counts = np.bincount(numbers, minlength=len(labels)).tolist()
        checksum = hashlib.sha256(np.ascontiguousarray(images).data)
        checksum.update(np.ascontiguousarray(numbers).data)
        described[split] = {
            "images": len(images),
            "per_tissue": dict(zip(slugs, counts, strict=True)),
            "sha256": checksum.hexdigest(),
        }
    return {
        "name": name,
        "labels": list(labels),
        "slugs": slugs,
        "image_size": size,
        "source": source,
        "splits": described,
    }


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 (N, H, H, 3) as uint8 (N, size, size, 3)."""
    if images.shape[1] == size:
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return resized


def _expect(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(path, f"{array.dtype} {array.shape}, but {CARD} says uint8 {shape}")


def _images_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"
