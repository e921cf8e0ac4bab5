"""Counts of duplicates in a data set, as the card of the prepared data has them, and as sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pathsynth.core.params import NonNegativeInt

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}

SplitName = Annotated[str, Field(pattern=f"^({'|'.join(SPLIT_NAMES)})$")]


@dataclass(frozen=True)
class Duplicates:
    """Images of a split that occur in an earlier split, or earlier in the same one.

    Attributes:
        split: the split whose images are counted.
        source: the split that is searched for them, an earlier one or `split` itself.
        images: number of images of `split`.
        exact: number of them that equal an image of `source`.
        near: number of the others that are near copies of an image of `source`.
        relabelled: number of exact ones whose label is not that of the first equal image.
        examples: up to 3 exact and 3 near pairs of rows, in `split` and in `source`.
    """

    split: SplitName
    source: SplitName
    images: NonNegativeInt
    exact: NonNegativeInt
    near: NonNegativeInt
    relabelled: NonNegativeInt
    examples: list[list[int]]


def parse_duplicates(rows: Any) -> list[Duplicates]:
    """Converts a list of dicts, as read from JSON.

    Raises:
        ValueError: if it is something else.
    """
    return TypeAdapter(list[Duplicates]).validate_python(rows)


def describe_duplicates(found: Iterable[Duplicates]) -> list[str]:
    """Returns a sentence with its consequence for each kind of duplicate that was found."""
    sentences = []
    for each in found:
        split, source, within = SPLIT_NAMES[each.split], SPLIT_NAMES[each.source], each.split == each.source
        if within:
            effect = "repeated images count more than once"
        elif each.source == "train":
            effect = f"{split} scores will be too good"
        else:
            effect = f"{split} scores are not independent of the {source} images"
        for kind, article, count in (("exact", "an", each.exact), ("near", "a", each.near)):
            one = f"is {article} {kind} copy of {'another' if within else 'a'} {source} image"
            several = f"are {kind} copies of {'other ' if within else ''}{source} images"
            if count:
                sentences.append(f"{count:,} of {each.images:,} {split} images {one if count == 1 else several}: {effect}")
        if each.relabelled:
            where = f"within the {split} images" if within else f"of {source} images among the {split} images"
            sentences.append(f"labels differ for {each.relabelled:,} of the exact copies {where}")
    return sentences
