"""The table of tissue types: one place for labels, slugs and their order.

PathMNIST's nine classes and their order are those of MedMNIST v2 (Yang et al., Scientific Data 2023).
"""

from __future__ import annotations

import re

PATHMNIST = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)


def slug(label: str) -> str:
    """The snake_case name of a label, e.g. `smooth_muscle`; used in metrics, file names and tables."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


SLUGS = tuple(slug(label) for label in PATHMNIST)
