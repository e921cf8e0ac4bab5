"""The `dataset` section of a benchmark: where its images come from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pathsynth.core.params import Md5, PositiveInt, Section, merge_list
from pathsynth.data import labels


class Dataset(Section):
    """Options that all sources of images share.

    `labels` is the name of a MedMNIST set or a list of labels; `channels` is 3, or 1 for grey images; `image_size` is the side
    of the prepared images in pixels.
    """

    labels: str | list[str]
    channels: Literal[1, 3] = 3
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]

    @field_validator("labels", mode="before")
    @classmethod
    def _check_labels(cls, value: Any) -> Any:
        labels.resolve_labels(value)
        return value

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in words, in the order of their indices."""
        return labels.resolve_labels(self.labels)

    @property
    def slugs(self) -> tuple[str, ...]:
        """The labels in snake_case, in the order of their indices."""
        return tuple(labels.slugify(label) for label in self.label_names)

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return False


class PhantomDataset(Dataset):
    """Tissue phantoms drawn from the seed; see `pathsynth.sources.phantom`."""

    labels: str | list[str] = "pathmnist"
    source: Literal["phantom"]
    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=8)]
    train_per_tissue: PositiveInt
    val_per_tissue: PositiveInt
    test_per_tissue: PositiveInt

    @model_validator(mode="after")
    def _check_drawable(self) -> Self:
        if self.label_names != labels.PATHMNIST or self.channels != 3:
            raise ValueError("phantoms support only pathmnist's labels and 3 channels")
        return self

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return True


class StoredDataset(Dataset):
    """A data set stored in files.

    `train_per_tissue`, `val_per_tissue` and `test_per_tissue` select this many images per tissue, drawn without
    replacement by `seeds.data`; null selects all.
    """

    train_per_tissue: PositiveInt | None = None
    val_per_tissue: PositiveInt | None = None
    test_per_tissue: PositiveInt | None = None

    def per_tissue(self, split: str) -> int | None:
        """Number of images to select of every tissue in "train", "val" or "test"; None for all."""
        return getattr(self, f"{split}_per_tissue")


class FileDataset(StoredDataset):
    """A local archive in MedMNIST's format; its images are resized to `image_size`.

    `path` is relative to the folder of the parameter file. `md5`, unless null, must be the file's checksum: DVC does not
    track the file itself.
    """

    source: Literal["medmnist_file"]
    path: Annotated[str, Field(min_length=1)]
    md5: Md5 | None = None


class FolderDataset(StoredDataset):
    """Image files in one folder per class, cropped to squares and resized to `image_size`; see `pathsynth.sources.folder`.

    `path` is a folder, relative to that of the parameter file, with the folders train, val and test or with the class folders;
    `test_path` one with the class folders of test. `val_share` and `test_share` of train become the splits that have no
    folder. `folders` names the class folders in the order of the labels; null finds them by label. `group` is a regular
    expression whose first group finds the patient in a file's path.
    """

    source: Literal["folder"]
    path: Annotated[str, Field(min_length=1)]
    test_path: Annotated[str, Field(min_length=1)] | None = None
    folders: list[str] | None = None
    group: str | None = None
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @field_validator("group")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"is not a regular expression: {error}") from error
            if not groups:
                raise ValueError("needs a group in parentheses, which finds the patient, such as '(patient_[0-9]+)'")
        return value

    @model_validator(mode="after")
    def _check_folders_and_shares(self) -> Self:
        if self.folders is not None:
            if len(self.folders) != len(self.label_names):
                raise ValueError(f"folders: {len(self.folders)} for the {len(self.label_names)} labels")
            for name in self.folders:
                if self.folders.count(name) > 1 or not name.strip(".") or re.search(r"[/\\]", name):
                    raise ValueError(f"folders: {name!r} must be the name of one folder, different from the others")
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share leave nothing for train; together they must be below 1")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of train that becomes each other split, if it has no folder."""
        return {"val": self.val_share, "test": self.test_share}


class MedmnistDataset(StoredDataset):
    """A MedMNIST set, downloaded if missing and checked by MD5.

    `flag` is MedMNIST's name of the set and `archive_size` the side of its images in pixels; `root` is the folder of the
    archive, relative to the parameter file's or under `~`. MedMNIST's own is `~/.medmnist`.
    """

    source: Literal["medmnist"]
    flag: str
    archive_size: Literal[28, 64, 128, 224]
    root: Annotated[str, Field(min_length=1)]

    @field_validator("flag")
    @classmethod
    def _check_flag(cls, value: str) -> str:
        labels.medmnist_labels(value)
        return value

    @model_validator(mode="after")
    def _check_against_medmnist(self) -> Self:
        from medmnist import INFO

        channels, count = INFO[self.flag]["n_channels"], len(labels.medmnist_labels(self.flag))
        if self.channels != channels:
            raise ValueError(f"channels: {self.flag} has {channels}, not {self.channels}")
        if isinstance(self.labels, str) and self.labels != self.flag:
            raise ValueError(f"labels: {self.labels!r} is a different set; allowed: {self.flag}, or a list of {count} labels")
        if len(self.label_names) != count:
            raise ValueError(f"labels: {len(self.label_names)} for the {count} classes of {self.flag}")
        return self


AnyDataset = Annotated[
    PhantomDataset | FileDataset | FolderDataset | MedmnistDataset, Field(discriminator="source"), BeforeValidator(merge_list)
]
