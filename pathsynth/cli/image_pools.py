"""Opens the images that pages for readers show: real ones of the prepared data set, and generated ones from any source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import read_npz_shapes, read_text, resolve_path
from pathsynth.core.params import Params
from pathsynth.data.archives import GENERATED, unpack_split
from pathsynth.data.generated import check_labels, count_within_label, read_attempts
from pathsynth.data.prepared import Prepared
from pathsynth.data.settings import AnyDataset, FileDataset, MedmnistDataset
from pathsynth.readers.pool import Classes, Pool
from pathsynth.report.attempts import match_attempts
from pathsynth.synthesis.sets import read_labelled_set

# What an attempt's row in the table of attempts contributes to the key.
ATTEMPT = ("slot", "attempt", "seed")
# Archives are named by how their images were selected.
SELECTIONS = ("accepted", "raw")


def open_classes(params: Params) -> Classes:
    """Returns the classes of the selected benchmark."""
    dataset = params.section("dataset", AnyDataset)
    return Classes(dataset.slugs, dataset.label_names, dataset.channels, dataset.stand_in)


def open_real(prepared: Prepared, split: str) -> Pool:
    """Opens one split of the prepared data set.

    Raises:
        DataError: if a file is missing or damaged.
    """
    name = f"{prepared.folder} ({split})"
    return Pool(name, prepared.images(split), prepared.labels_of(split), lambda row: {"split": split, "row": row})


def open_generated(path: Path, selection: str, dataset: AnyDataset, scratch: Path) -> Pool:
    """Opens generated images.

    Args:
        path: an output folder of the stage generate_filtered, an archive in MedMNIST's format, a folder of class folders, or a
            folder that `synthesize` wrote. Images of the latter two are resized to the data set's size.
        selection: which archive of an output folder is opened, "accepted" or "raw".
        dataset: the data set whose classes the images have.
        scratch: folder for the unpacked images, used for this set only; it must outlive them.

    Raises:
        DataError: the images are missing, damaged or have other classes, or the table of attempts belongs to others.
    """
    if not path.exists():
        raise DataError(path, "is missing; run `make repro`, or pass an archive or a folder of generated images")
    archive = path / f"{selection}.npz"
    if path.is_dir() and not archive.is_file():
        found = read_labelled_set(path, None, dataset, scratch)
        return Pool(str(path), found.images, found.labels, _describe_positions(found.labels))
    source = archive if path.is_dir() else path
    images, labels = unpack_split(source, scratch, GENERATED)
    check_labels(source, labels, dataset.slugs)
    table = path / "attempts.csv"
    describe = _describe_attempts(table, selection, labels, dataset.slugs) if table.is_file() else _describe_positions(labels)
    return Pool(str(source), images, labels, describe)


def find_native_size(params: Params) -> int | None:
    """Returns the side in pixels of the archive that the real images come from, or None if it is not known."""
    match params.section("dataset", AnyDataset):
        case MedmnistDataset() as dataset:
            return dataset.archive_size
        case FileDataset() as dataset:
            path = resolve_path(params.folder, dataset.path)
            # index 2 is the height or the width in every layout that is read
            return read_npz_shapes(path, ["test_images"])["test_images"][0][2] if path.is_file() else None
    return None


def read_consent(path: Path | None) -> list[str]:
    """Reads a text file as paragraphs, which empty lines divide; none without a file.

    Raises:
        DataError: if the file cannot be read or is not UTF-8.
    """
    return [] if path is None else [" ".join(part.split()) for part in read_text(path).split("\n\n") if part.strip()]


def _describe_positions(labels: np.ndarray) -> Callable[[int], Mapping[str, Any]]:
    """Describes an image by its position within its class, which is its slot, and within the set."""
    slots = count_within_label(labels).tolist()
    return lambda row: {"slot": slots[row], "row": row}


def _describe_attempts(path: Path, selection: str, labels: np.ndarray, slugs: tuple[str, ...]) -> Callable[[int], Mapping]:
    """Describes an image by its row in the table of attempts."""
    rows = match_attempts(path, read_attempts(path), selection, labels, slugs)
    records = [{name: int(value) for name, value in record.items()} for record in rows[list(ATTEMPT)].to_dict("records")]
    return lambda row: records[row]
