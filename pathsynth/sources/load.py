"""Loads the images of a dataset section from any source, in a common form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pathsynth.core.errors import DataError
from pathsynth.core.io import portable_path, resolve_path
from pathsynth.data.archives import SPLITS, Split, read_archive
from pathsynth.data.settings import AnyDataset, FileDataset, MedmnistDataset, PhantomDataset
from pathsynth.sources import phantom
from pathsynth.sources.download import compute_md5, fetch_archive

Progress = Callable[[Iterable], Iterable]


def load_source(dataset: AnyDataset, seed: int, progress: Progress = iter, *, folder: Path = Path()) -> dict[str, Split]:
    """Draws, downloads or opens a whole data set, in the image size of its source.

    Args:
        dataset: the dataset section; its `source` is the kind of source.
        seed: seed of drawn images.
        progress: wraps the iterable of a long loop, like `tqdm.tqdm`.
        folder: folder that paths in `dataset` are relative to.

    Returns:
        For "train", "val" and "test" images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and labels, uint8 (N,).

    Raises:
        DataError: if the archive is missing, damaged or has a different checksum.
        FetchError: if the archive cannot be downloaded.
    """
    match dataset:
        case PhantomDataset():
            return _draw_phantoms(dataset, seed, progress)
        case FileDataset():
            path = resolve_path(folder, dataset.path)
            _check_md5(path, dataset.md5)
        case MedmnistDataset():
            path = fetch_archive(dataset.flag, dataset.archive_size, resolve_path(folder, dataset.root))
    return read_archive(path, len(dataset.label_names), dataset.channels)


def describe_source(dataset: AnyDataset) -> dict[str, Any]:
    """Describes the dataset section for the card of the prepared data, without folders of this machine."""
    values = dataset.model_dump(exclude={"root"})
    values = {key: portable_path(value) if isinstance(value, str) else value for key, value in values.items()}
    return values | {"stand_in": dataset.stand_in}


def _draw_phantoms(dataset: PhantomDataset, seed: int, progress: Progress) -> dict[str, Split]:
    per_tissue = (dataset.train_per_tissue, dataset.val_per_tissue, dataset.test_per_tissue)
    return {
        split: phantom.draw_split(count, seed, dataset.image_size, split, progress)
        for split, count in zip(SPLITS, per_tissue, strict=True)
    }


def _check_md5(path: Path, md5: str | None) -> None:
    if md5 is not None and (found := compute_md5(path)) != md5:
        raise DataError(path, f"has MD5 {found}, but dataset.md5 is {md5}: wrong file or incomplete download")
