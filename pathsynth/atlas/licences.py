"""Whether the real images of a data set may be shown, and with which credit."""

from __future__ import annotations

from dataclasses import dataclass

from pathsynth.data.provenance import data_licence
from pathsynth.data.settings import AnyDataset, MedmnistDataset, PhantomDataset

# Licences under which an image may be passed on, cropped and resized, if its source and the change are named.
SHAREABLE = {
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-NC 4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
}


@dataclass(frozen=True)
class Credit:
    """Source and licence of real images that are shown.

    Attributes:
        text: a phrase.
        url: of the licence, or "".
    """

    text: str
    url: str = ""


def credit_real_images(dataset: AnyDataset, show_real: bool = False) -> Credit | None:
    """Returns the credit of the data set's images, or None if they may not be shown.

    The licence of a user's own archive or folder is not known, so its images are shown only on request.

    Args:
        dataset: where the images come from.
        show_real: whether the user vouches for the right to show them.
    """
    if isinstance(dataset, PhantomDataset):
        return Credit(data_licence(dataset))
    if isinstance(dataset, MedmnistDataset):
        from medmnist import INFO

        licence = INFO[dataset.flag]["license"]
        if licence in SHAREABLE:
            source = f"MedMNIST v2, {dataset.flag} (Yang et al., Scientific Data 2023; sources on its page)"
            return Credit(f"{source}, {licence}{_describe_change(dataset)}", SHAREABLE[licence])
    return Credit(f"licence: {data_licence(dataset)}") if show_real else None


def _describe_change(dataset: MedmnistDataset) -> str:
    """CC BY asks for changes to be named."""
    return "" if dataset.archive_size == dataset.image_size else f", resized to {dataset.image_size} px"
