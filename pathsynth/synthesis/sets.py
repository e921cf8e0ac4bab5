"""Sets of images by any generator: archives, class folders, and folders that `synthesize` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.data.archives import GENERATED, Split, unpack_images, unpack_split
from pathsynth.data.generated import LabelledImages, check_labels
from pathsynth.data.settings import AnyDataset, FolderDataset
from pathsynth.sources.folder import find_split_folders, list_entries, list_images
from pathsynth.sources.image_files import ImageFiles
from pathsynth.synthesis.manifest import MANIFEST, read_manifest


def read_labelled_set(source: Path, split: str | None, dataset: AnyDataset, folder: Path) -> LabelledImages:
    """Reads the images of a set and the class that each is meant to show.

    Args:
        source: an archive in MedMNIST's format, a folder of class folders, or a folder that `synthesize` wrote.
        split: "train", "val" or "test"; None is train, or all images of a folder without splits.
        dataset: the data set whose classes and image size the set gets.
        folder: where the images are unpacked; it must outlive them.

    Raises:
        DataError: the set is missing, damaged or empty, or has other classes.
    """
    if source.is_dir():
        files, labels = _open_folder(source, split, dataset)
        images = unpack_images(files, folder / "images.npy")
    else:
        images, labels = unpack_split(source, folder, split or GENERATED, dataset.image_size)
        check_labels(source, labels, dataset.slugs)
    if not len(labels):
        what = "holds no images" if source.is_dir() else f"{split or GENERATED}_images is empty"
        raise DataError(source, f"{what}; at least one image is needed")
    return LabelledImages(images, labels)


def _open_folder(source: Path, split: str | None, dataset: AnyDataset) -> Split:
    """Opens the images of a manifest, of a split's folder, or of the class folders in `source`."""
    splits, wanted, manifest = find_split_folders(source), split or GENERATED, source / MANIFEST
    if splits and wanted not in splits:
        raise DataError(source, f"has no folder {wanted}; select one with --split: {', '.join(splits)}")
    if split and not splits:
        raise DataError(source, f"has no folder {split}; without --split, all of its images are scored")
    if manifest.is_file() and not splits:
        return _open_manifest(manifest, dataset)
    root = splits.get(wanted, source)
    # generated images may be sorted by label although the real ones have other folders
    names = dataset.folders if isinstance(dataset, FolderDataset) else None
    names = names if names and not set(names).isdisjoint(list_entries(root)[0]) else None
    return list_images(root, dataset.slugs, names, every_class=False).open(dataset.image_size, dataset.channels)


def _open_manifest(path: Path, dataset: AnyDataset) -> Split:
    """Opens the images that a manifest of `synthesize` lists."""
    records = read_manifest(path)
    for record in records:
        if record.tissue not in dataset.slugs:
            found = "free text" if record.tissue is None else record.tissue
            raise DataError(path, f"{record.file} shows {found}, which is not a class of {', '.join(dataset.slugs)}")
    labels = np.array([dataset.slugs.index(str(record.tissue)) for record in records], np.uint8)
    return ImageFiles(path.parent, [record.file for record in records], dataset.image_size, dataset.channels), labels
