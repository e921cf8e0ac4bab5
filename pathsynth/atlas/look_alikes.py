"""Look-alikes: the pairs of classes that gate and judge confuse most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MAX_PAIRS = 5


@dataclass(frozen=True)
class LookAlikes:
    """Two classes that are mistaken for each other.

    Attributes:
        first, second: indices of the classes.
        share: mean over the observers of the share of both classes' images that are taken for the other, in (0, 1].
        counts: by observer, how many images of `first` are taken for `second`, and of `second` for `first`.
    """

    first: int
    second: int
    share: float
    counts: Mapping[str, tuple[int, int]]


def rank_look_alikes(confusion: Mapping[str, np.ndarray], limit: int = MAX_PAIRS) -> list[LookAlikes]:
    """Ranks pairs of classes by how often they are mistaken for each other, most often first.

    Args:
        confusion: int (n, n) by observer, all of the same images; row: prompted, column: predicted class.
        limit: maximum number of pairs.

    Returns:
        Pairs that at least one observer confuses. Pairs with equal shares are in the order of their classes.
    """
    pairs = []
    totals = next(iter(confusion.values())).sum(axis=1)
    for first, second in zip(*np.triu_indices(len(totals), 1), strict=True):
        counts = {by: (int(matrix[first, second]), int(matrix[second, first])) for by, matrix in confusion.items()}
        images = int(totals[first] + totals[second])
        share = sum(map(sum, counts.values())) / (len(counts) * images) if images else 0.0
        if share > 0:
            pairs.append(LookAlikes(int(first), int(second), share, counts))
    return sorted(pairs, key=lambda pair: -pair.share)[:limit]
