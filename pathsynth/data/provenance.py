"""Where images come from and what they may be used for: sources, licences, captions."""

from __future__ import annotations

import re

from pathsynth.core.io import shown_path
from pathsynth.data.settings import AnyDataset, FileDataset, MedmnistDataset

# Of the data sets that pathsynth draws or fetches; the licence of any other file is known to its owner.
DATA_LICENCES = {
    "phantom": "drawn by pathsynth, MIT",
    "medmnist": "MedMNIST v2 (Yang et al., Scientific Data 2023), CC BY 4.0 for most of its sets; see the set's own page",
    "medmnist_file": "that of the archive; PathMNIST is CC BY 4.0 (Kather et al., 2019; Yang et al., 2023)",
}
STAND_IN_CAPTION = "synthetic images, {benchmark} benchmark: a stand-in, not medical"
CAPTION = "synthetic images, {benchmark} benchmark: research only, not for diagnosis"


def data_source(dataset: AnyDataset) -> str:
    """Describes the source of the training images in a phrase."""
    match dataset:
        case MedmnistDataset():
            return f"MedMNIST's {dataset.flag} at {dataset.archive_size} px, train split"
        case FileDataset():
            return f"the archive {markdown_cell(shown_path(dataset.path))}, train split"
        case _:
            return "tissue phantoms drawn from the seed, a stand-in and not medical images"


def caption(benchmark: str, stand_in: bool) -> str:
    """The line under every picture: what the images are, and what they are not for."""
    return (STAND_IN_CAPTION if stand_in else CAPTION).format(benchmark=benchmark)


def markdown_cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return re.sub(r"([\\|`*_\[\]!#~])", r"\\\1", " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;"))
