"""Sources of images: what each kind of dataset section in params.yaml gives, in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pathsynth.core.errors import DataError
from pathsynth.core.io import located, shown_path
from pathsynth.data.archives import SPLITS, Split, read_archive
from pathsynth.data.settings import AnyDataset, FileDataset, MedmnistDataset, PhantomDataset
from pathsynth.sources import phantom
from pathsynth.sources.download import fetch_archive, md5_of

Progress = Callable[[Iterable], Iterable]


def load_source(dataset: AnyDataset, seed: int, progress: Progress = iter, *, folder: Path = Path()) -> dict[str, Split]:
    """Draws, fetches or opens a whole data set, in the size of its source.

    Args:
        dataset: the selected section; its `source` says which kind it is.
        seed: seed of what is drawn.
        progress: wraps the iterable over what takes long, such as `tqdm.tqdm`.
        folder: what a relative path in `dataset` is relative to.

    Returns:
        For "train", "val" and "test" images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and labels, uint8 (N,).

    Raises:
        DataError: if its file is missing, damaged or another one than wanted.
        FetchError: if it cannot be fetched.
    """
    match dataset:
        case PhantomDataset():
            return _draw_phantoms(dataset, seed, progress)
        case FileDataset():
            path = located(folder, dataset.path)
            _check_md5(path, dataset.md5)
        case MedmnistDataset():
            path = fetch_archive(dataset.flag, dataset.archive_size, located(folder, dataset.root))
    return read_archive(path, len(dataset.label_names), dataset.channels)


def describe(dataset: AnyDataset) -> dict[str, Any]:
    """The section as the card of the prepared data set shows it: no folders, and whether it is a stand-in."""
    values = dataset.model_dump(exclude={"root"})
    return {key: shown_path(value) if isinstance(value, str) else value for key, value in values.items()} | {
        "stand_in": dataset.stand_in
    }


def _draw_phantoms(dataset: PhantomDataset, seed: int, progress: Progress) -> dict[str, Split]:
    per_tissue = (dataset.train_per_tissue, dataset.val_per_tissue, dataset.test_per_tissue)
    splits: dict[str, Split] = {}
    for split, count in zip(SPLITS, per_tissue, strict=True):
        splits[split] = phantom.draw_split(count, seed, dataset.image_size, split, progress)
    return splits


def _check_md5(path: Path, md5: str | None) -> None:
    if md5 is not None and (found := md5_of(path)) != md5:
        raise DataError(path, f"its MD5 is {found}, not {md5} as in the parameters: another file, or only a part of it")
