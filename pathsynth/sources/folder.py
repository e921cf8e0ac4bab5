"""Folders of image files with one folder per class, such as `train/ADI/patient_07/tile_1.tif` or `ADI/tile_1.tif`.

Splits have folders, or are drawn as shares of train.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from pathsynth.core.errors import CONTROLS, DataError
from pathsynth.core.io import catch_read_errors, resolve_path
from pathsynth.data.archives import SPLITS, Split
from pathsynth.data.labels import slugify
from pathsynth.data.settings import FolderDataset
from pathsynth.sources.division import divide_images, select_per_tissue
from pathsynth.sources.image_files import SUFFIXES, ImageFiles

# Files of file managers, which like hidden files are no mistake.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
# Folder names that an error shows.
MAX_NAMES = 12


@dataclass(frozen=True)
class ListedImages:
    """Image files of one split, sorted by path.

    Attributes:
        folder: the folder of the class folders.
        names: paths of N files relative to it, with slashes.
        labels: their classes, uint8 (N,).
        groups: patients or slides, (N,) names, or None if they are not known.
        selected_from: number of available images; None if all are selected.
    """

    folder: Path
    names: Sequence[str]
    labels: np.ndarray
    groups: Sequence[str] | None = None
    selected_from: int | None = None

    def select(self, indices: np.ndarray) -> ListedImages:
        """Some of the images."""
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        return replace(self, names=[self.names[index] for index in indices], labels=self.labels[indices], groups=groups)

    def open(self, size: int, channels: int) -> Split:
        """Opens the images, square with `size` pixels and 3 or 1 `channels`; they are decoded when they are read."""
        groups = None if self.groups is None else len(set(self.groups))
        return ImageFiles(self.folder, self.names, size, channels, groups, self.selected_from), self.labels


def open_folder(dataset: FolderDataset, seed: int, folder: Path = Path()) -> dict[str, Split]:
    """Lists the images of a data set and divides them into splits; the images are decoded when they are read.

    Args:
        dataset: the dataset section.
        seed: `seeds.data`, by which splits without a folder and selected images are drawn.
        folder: folder that paths in `dataset` are relative to.

    Returns:
        For "train", "val" and "test" images, uint8 (N, image_size, image_size, 3) or without the last axis for grey ones, and
        labels, uint8 (N,).

    Raises:
        DataError: a folder is missing or cannot be read, folders and classes do not match, a class has no images, or the groups
            are on two sides, unknown or too few, or a class has fewer images than are to be selected.
    """
    listed = {split: list_images(path, dataset.slugs, dataset.folders) for split, path in _find_splits(dataset, folder).items()}
    if dataset.group is not None:
        listed = {split: replace(images, groups=_find_groups(images, dataset.group)) for split, images in listed.items()}
        _check_groups(listed)
    shares = {split: share for split, share in dataset.shares.items() if split not in listed}
    if shares:
        train = listed["train"]
        try:
            parts = divide_images(train.labels, _number_groups(train), shares, seed, dataset.slugs)
        except ValueError as error:
            raise DataError(train.folder, str(error)) from error
        listed |= {split: train.select(indices) for split, indices in parts.items()}
    selected = {split: _select_images(dataset, split, listed[split], seed) for split in SPLITS}
    return {split: images.open(dataset.image_size, dataset.channels) for split, images in selected.items()}


def list_images(
    folder: Path, slugs: Sequence[str], names: Sequence[str] | None = None, *, every_class: bool = True
) -> ListedImages:
    """Lists the images below class folders; hidden files are left out, and links are followed.

    Args:
        folder: the folder of the class folders.
        slugs: the classes.
        names: names of their folders in the same order; None finds the folders by slug.
        every_class: whether every class must have images.

    Raises:
        DataError: a class folder is missing, empty, ambiguous or unknown, or a folder cannot be read.
    """
    labels, images = _match_folders(folder, slugs, names, every_class), []
    skipped = list_entries(folder)[1]
    for name, label in labels.items():
        files = list(_iter_files(folder / name, name))
        of_class = [(file, label) for file in files if _is_image(file)]
        if every_class and not of_class:
            raise DataError(folder / name, f"holds no images; allowed suffixes: {' '.join(SUFFIXES)}")
        images += of_class
        skipped += [file for file in files if not _is_image(file)]
    if skipped:
        example = CONTROLS.sub(" ", min(skipped))
        found = "1 file that is not an image" if len(skipped) == 1 else f"{len(skipped)} files that are not images"
        click.echo(f"{folder}: skipped {found} of a class, such as {example}", err=True)
    # some file systems store accents as separate characters
    images.sort(key=lambda image: (_normalize(image[0]), image[0]))
    return ListedImages(folder, [file for file, _ in images], np.array([label for _, label in images], np.uint8))


def find_split_folders(folder: Path) -> dict[str, Path]:
    """Finds the folders train, val and test, in upper or lower case, in a folder; empty for class folders.

    Raises:
        DataError: if the folder cannot be read.
    """
    folders, _ = list_entries(folder)
    return {split: folder / name for split in SPLITS for name in folders if name.lower() == split}


def list_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the sorted names of the folders and of the files in a folder that are not hidden; links are followed.

    Raises:
        DataError: if the folder cannot be read.
    """
    with catch_read_errors(folder, "a folder"), os.scandir(folder) as entries:
        visible = {entry.name: entry.is_dir() for entry in entries if not _is_hidden(entry.name)}
    folders = sorted(name for name, is_folder in visible.items() if is_folder)
    return folders, sorted(visible.keys() - folders)


def _select_images(dataset: FolderDataset, split: str, images: ListedImages, seed: int) -> ListedImages:
    """The images of a split that the dataset section selects."""
    try:
        indices = select_per_tissue(dataset, split, images.labels, seed)
    except ValueError as error:
        raise DataError(images.folder, str(error)) from error
    return images if indices is None else replace(images.select(indices), selected_from=len(images.names))


def _find_splits(dataset: FolderDataset, folder: Path) -> dict[str, Path]:
    """The folders of train, and of val and test if they have any."""
    root = resolve_path(folder, dataset.path)
    found = find_split_folders(root)
    if found and "train" not in found:
        raise DataError(root, f"has a folder {next(iter(found))}, but none named train")
    if found:
        used = {path.name for path in found.values()}
        _check_unknown(root, [name for name in list_entries(root)[0] if name not in used], SPLITS)
    found = found or {"train": root}
    if dataset.test_path is not None:
        if "test" in found:
            raise DataError(root, "has a folder test, so dataset.test_path must be null")
        found["test"] = resolve_path(folder, dataset.test_path)
    if len({path.resolve() for path in found.values()}) < len(found):
        raise DataError(root, f"{' and '.join(found)} must be different folders")
    return found


def _match_folders(folder: Path, slugs: Sequence[str], names: Sequence[str] | None, every_class: bool) -> dict[str, int]:
    """The class folders in `folder` and their labels."""
    expected, normalize = (slugs, slugify) if names is None else (names, _normalize)
    numbers = {normalize(name): label for label, name in enumerate(expected)}
    folders, _ = list_entries(folder)
    labels = {name: numbers[normalize(name)] for name in folders if normalize(name) in numbers}
    found: dict[int, str] = {}
    for name, label in labels.items():
        if (other := found.setdefault(label, name)) != name:
            raise DataError(folder, f"{other!r} and {name!r} are both a folder of the class {slugs[label]}")
    missing = [name for label, name in enumerate(expected) if label not in found]
    if missing and (every_class or not labels):
        held = ", ".join(folders[:MAX_NAMES]) + (", ..." if len(folders) > MAX_NAMES else "")
        hint = ""
        if names is None:
            hint = "; name them like the labels, or with dataset.source: folder list their names in dataset.folders"
        raise DataError(folder, f"has no folder {', '.join(missing)}; its folders: {held or 'none'}{hint}")
    _check_unknown(folder, [name for name in folders if name not in labels], expected)
    return labels


def _check_unknown(folder: Path, names: Sequence[str], expected: Sequence[str]) -> None:
    """Raises DataError for a folder with images that would otherwise be left out silently."""
    for name in names:
        if any(_is_image(file) for file in _iter_files(folder / name, name)):
            raise DataError(folder / name, f"holds images, but is none of the folders {', '.join(expected)}")


def _iter_files(folder: Path, name: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yields the files below a folder as paths that begin with `name`; `above` has the device and inode of folders above it."""
    with catch_read_errors(folder, "a folder"):
        status = os.stat(folder)
    if (identity := (status.st_dev, status.st_ino)) in above:
        raise DataError(folder, "is reached from itself by a link; remove the link")
    folders, files = list_entries(folder)
    for child in folders:
        yield from _iter_files(folder / child, f"{name}/{child}", above | {identity})
    yield from (f"{name}/{child}" for child in files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _find_groups(images: ListedImages, pattern: str) -> list[str]:
    """The group of every image, by the pattern's first group in its path."""
    compiled, groups = re.compile(pattern), []
    for name in images.names:
        match = compiled.search(_normalize(name))
        if not match or not match[1]:
            raise DataError(images.folder / name, f"dataset.group {pattern!r} finds no group in {name}")
        groups.append(match[1])
    return groups


def _check_groups(listed: Mapping[str, ListedImages]) -> None:
    """Raises DataError for a group with images in two splits."""
    sides: dict[str, str] = {}
    for split, images in listed.items():
        for name, group in zip(images.names, images.groups or (), strict=True):
            if (other := sides.setdefault(group, split)) != split:
                raise DataError(images.folder / name, f"group {group!r} of dataset.group is in {other} too")


def _number_groups(images: ListedImages) -> np.ndarray:
    """Groups as integers (N,); each image is one if there are none."""
    if images.groups is None:
        return np.arange(len(images.names))
    numbers = {group: number for number, group in enumerate(sorted(set(images.groups)))}
    return np.array([numbers[group] for group in images.groups])
