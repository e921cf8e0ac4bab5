"""Loads the images of a dataset section from any source, in a common form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pathsynth.core.errors import DataError
from pathsynth.core.io import portable_path, resolve_path
from pathsynth.data.archives import SPLITS, Images, Split, count_available, read_archive
from pathsynth.data.settings import AnyDataset, FileDataset, FolderDataset, MedmnistDataset, PhantomDataset
from pathsynth.sources import phantom
from pathsynth.sources.division import select_per_tissue
from pathsynth.sources.download import compute_md5, fetch_archive
from pathsynth.sources.folder import open_folder
from pathsynth.sources.image_files import ImageFiles

Progress = Callable[[Iterable], Iterable]


def load_source(dataset: AnyDataset, seed: int, progress: Progress = iter, *, folder: Path = Path()) -> dict[str, Split]:
    """Draws, downloads or opens a whole data set, in the image size of its source; image files are resized.

    Args:
        dataset: the dataset section; its `source` is the kind of source.
        seed: seed of drawn images, of splits that are drawn, and of selected images.
        progress: wraps the iterable of a long loop, like `tqdm.tqdm`.
        folder: folder that paths in `dataset` are relative to.

    Returns:
        For "train", "val" and "test" images, uint8 (N, H, H, 3) or for grey ones (N, H, H), and labels, uint8 (N,).

    Raises:
        DataError: if the archive is missing, damaged or has a different checksum, the folders do not match the dataset, or
            a tissue has fewer images than are to be selected.
        FetchError: if the archive cannot be downloaded.
    """
    match dataset:
        case PhantomDataset():
            return _draw_phantoms(dataset, seed, progress)
        case FileDataset():
            path = resolve_path(folder, dataset.path)
            _check_md5(path, dataset.md5)
        case FolderDataset():
            return open_folder(dataset, seed, folder)
        case MedmnistDataset():
            path = fetch_archive(dataset.flag, dataset.archive_size, resolve_path(folder, dataset.root))
    return _open_archive(path, dataset, seed)


def describe_source(dataset: AnyDataset) -> dict[str, Any]:
    """Describes the dataset section for the card of the prepared data, without folders of this machine."""
    values = dataset.model_dump(exclude={"root"})
    paths = {key: portable_path(values[key]) for key in ("path", "test_path") if values.get(key)}
    return values | paths | {"stand_in": dataset.stand_in}


def count_images(images: Images) -> str:
    """Formats the image count, with the number available and the number of groups where known."""
    groups = images.groups if isinstance(images, ImageFiles) else None
    available = count_available(images)
    number = f"{len(images)} of {available}" if available > len(images) else f"{len(images)}"
    return number if groups is None else f"{number} ({groups} group{'s' if groups > 1 else ''})"


def _draw_phantoms(dataset: PhantomDataset, seed: int, progress: Progress) -> dict[str, Split]:
    per_tissue = (dataset.train_per_tissue, dataset.val_per_tissue, dataset.test_per_tissue)
    return {
        split: phantom.draw_split(count, seed, dataset.image_size, split, progress)
        for split, count in zip(SPLITS, per_tissue, strict=True)
    }


def _open_archive(path: Path, dataset: FileDataset | MedmnistDataset, seed: int) -> dict[str, Split]:
    """The selected images of an archive, left on disk, and their labels."""
    splits: dict[str, Split] = {}
    for split, (images, labels) in read_archive(path, len(dataset.label_names), dataset.channels).items():
        try:
            indices = select_per_tissue(dataset, split, labels, seed)
        except ValueError as error:
            raise DataError(path, str(error)) from error
        splits[split] = (images, labels) if indices is None else (images.select(indices), labels[indices])
    return splits


def _check_md5(path: Path, md5: str | None) -> None:
    if md5 is not None and (found := compute_md5(path)) != md5:
        raise DataError(path, f"has MD5 {found}, but dataset.md5 is {md5}: wrong file or incomplete download")
