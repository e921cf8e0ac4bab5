"""Sources, licences and captions of images. The provenance of a single PNG is written by `pathsynth.synthesis.records`."""

from __future__ import annotations

import re

from pathsynth.core.io import portable_path
from pathsynth.data.settings import AnyDataset, FileDataset, FolderDataset, MedmnistDataset, PhantomDataset, StoredDataset

# The card of a generated set holds these until the stage `evaluate` fills in the scores and the duplicates of its data.
SCORES_PLACEHOLDER = "See `metrics/evaluation.json` and `reports/report.html` of the run that made the set."
DUPLICATES_PLACEHOLDER = "see `data/prepared/card.json` of the run that made the set"
STAND_IN_CAPTION = "synthetic images, {benchmark} benchmark: a stand-in, not medical"
CAPTION = "synthetic images, {benchmark} benchmark: research only, not for diagnosis"


def data_source(dataset: AnyDataset) -> str:
    """Describes the source of the training images in a phrase."""
    match dataset:
        case MedmnistDataset():
            return f"MedMNIST's {dataset.flag} at {dataset.archive_size} px, {_describe_train_split(dataset)}"
        case FileDataset():
            return f"the archive {escape_markdown(portable_path(dataset.path))}, {_describe_train_split(dataset)}"
        case FolderDataset():
            folder = escape_markdown(portable_path(dataset.path))
            return f"the image files in the folder {folder}, {_describe_train_split(dataset)}"
        case PhantomDataset():
            return "tissue phantoms drawn from the seed, a stand-in and not medical images"


def _describe_train_split(dataset: StoredDataset) -> str:
    """The train split, or how much of it is used; only the size of MedMNIST's sets is known without their files."""
    count = dataset.train_per_tissue
    if count is None:
        return "train split"
    if not isinstance(dataset, MedmnistDataset):
        return f"{count} images of each class of the train split"
    from medmnist import INFO

    total, used = INFO[dataset.flag]["n_samples"]["train"], count * len(dataset.label_names)
    return f"{used:,} of the {total:,} images of the train split, {count} of each class"


def data_licence(dataset: AnyDataset) -> str:
    """Returns the licence of the training images."""
    match dataset:
        case MedmnistDataset():
            return "MedMNIST v2 (Yang et al., Scientific Data 2023), CC BY 4.0 for most of its sets; see the set's own page"
        case FileDataset():
            return "that of the archive; PathMNIST is CC BY 4.0 (Kather et al., 2019; Yang et al., 2023)"
        case FolderDataset():
            return "that of the image files; NCT-CRC-HE-100K is CC BY 4.0 (Kather et al., 2018)"
        case PhantomDataset():
            return "drawn by pathsynth, MIT"


def caption(benchmark: str, stand_in: bool) -> str:
    """Returns the caption under every figure: what the images are, and what they must not be used for."""
    return (STAND_IN_CAPTION if stand_in else CAPTION).format(benchmark=benchmark)


def escape_markdown(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return re.sub(r"([\\|`*_\[\]!#~])", r"\\\1", " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;"))
