"""The `dataset` section of a benchmark: where its images come from."""

from __future__ import annotations

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


class FileDataset(Dataset):
    """A local archive in MedMNIST's format; its images are resized to `image_size`.

    `path` is relative to the folder of the parameter file. `md5`, unless null, must be the file's checksum: DVC does not
    track the file itself.
    """

    source: Literal["medmnist_file"]
    path: Annotated[str, Field(min_length=1)]
    md5: Md5 | None = None


class MedmnistDataset(Dataset):
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
    PhantomDataset | FileDataset | MedmnistDataset, Field(discriminator="source"), BeforeValidator(merge_list)
]
