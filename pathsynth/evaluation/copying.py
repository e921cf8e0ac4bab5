"""Whether generated images are copies of training images: distances to the nearest one, beside those of held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import plain
from pathsynth.core.rows import Rows
from pathsynth.evaluation.neighbours import BLOCK, doubles, squared_distances

if TYPE_CHECKING:
    import torch

# The share of validation images that lie closer to a training image than the limit.
EXPECTED = 0.01
# With fewer, the limit would lie below the smallest of them.
FEWEST_VALIDATION = round(1 / EXPECTED) - 1
VIEWS = 8
BLOCK_NUMBERS = 2**22  # of a block of references, in all its rows
# Of a block of queries in all its views: the references are read once for each block, 5 461 images of 32 x 32 pixels.
QUERY_BYTES = 2**27
# A sum of this many products of whole numbers from -128 to 127 is at most 2^24, up to which float32 holds every one.
EXACT = 1024


def nearest(
    queries: Rows, references: Rows, device: str = "cpu", views: int | None = None, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest reference of each query.

    Args:
        queries: images uint8 (N, s, s, 3), or features (N, D).
        references: as many numbers per row, M >= 1.
        device: where the distances are computed.
        views: the first so many of an image's turns and mirrors (see `turned`) in which it is compared; all 8 for images unless
            told otherwise, as an adapter that is trained on turned images copies turned images; features have one.
        size: rows of a block of either; by default as many as need about 256 MB in all at most.

    Returns:
        Distances float64 (N,), and indices int64 (N,), the first of equally near ones. The distance of images is the root mean
        square difference in [0, 1], of features the euclidean one.

    Raises:
        ValueError: for no references, shapes that do not fit, images that are not uint8, an impossible `views`, or a number
            that is not finite.
    """
    images, views = _checked(queries, references, views)
    numbers = int(np.prod(queries.shape[1:]))
    # features are cast to float64 and copied
    at_once = size or max(1, QUERY_BYTES // (numbers * (views if images else 16)))
    size = size or min(BLOCK, max(1, BLOCK_NUMBERS // numbers))
    distances, indices = np.empty(len(queries)), np.empty(len(queries), np.int64)
    for start in range(0, len(queries), at_once):
        here = slice(start, start + at_once)
        distances[here], indices[here] = _nearest_to(_Block(queries[here], start, device, views), references, device, size)
    return np.sqrt(distances / numbers) / 255.0 if images else np.sqrt(distances), indices


def turned(images: np.ndarray, view: int) -> np.ndarray:
    """Images (N, s, s, C) after `view` % 4 quarter turns, and mirrored from 4 on; 8 views make up all turns and mirrors."""
    images = np.rot90(images, view % 4, axes=(1, 2))
    return images[:, :, ::-1] if view >= VIEWS // 2 else images


def validation_units(distances: np.ndarray, labels: np.ndarray, slugs: Sequence[str]) -> tuple[np.ndarray, dict[str, str]]:
    """Median distance of each tissue's validation images, by which its distances are divided.

    Flat background lies closer to its like than any other tissue; without this it alone would be at the small distances.

    Args:
        distances: of validation images to the nearest training image, float (V,).
        labels: integers (V,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        Medians float64 (tissues,), infinite for a tissue without one; and why those have none, by slug.
    """
    units, missing = np.full(len(slugs), np.inf), {}
    for i, slug in enumerate(slugs):
        own = distances[labels == i]
        if len(own) == 0:
            missing[slug] = "no validation images"
        elif np.median(own) == 0.0:
            missing[slug] = "half of the validation images equal training images"
        else:
            units[i] = np.median(own)
    return units, missing


def copying_scores(
    distances: np.ndarray, labels: np.ndarray, val_distances: np.ndarray, val_labels: np.ndarray, slugs: Sequence[str]
) -> dict:
    """Share of generated images that lie closer to a training image than 99 % of the validation images do.

    Distances count in units of `validation_units`; the limit is the quantile at rank 0.01 (V + 1), below which another
    validation image is with a chance of 0.01 (Hyndman and Fan, 1996, definition 6).

    The interval is that of the share by Clopper and Pearson (1934) with the limit held as it is. The limit is itself one of a
    few small distances of V validation images and varies with them, which low and high leave out: that 0.01 lies outside of
    them does not yet tell of copies. `p_more` does, see `chance_of_more`, and leaves out only how the units vary. It expects
    validation images of the same tissues in about the same proportions.

    Args:
        distances: of generated images to the nearest training image, float (N,).
        labels: integers (N,), indices into `slugs`.
        val_distances: of validation images, float (V,).
        val_labels: integers (V,).
        slugs: names of all tissues.

    Returns:
        share_below, low, high, p_more in [0, 1], expected, n_images and n_val that count, left_out.{slug} with the reason
        where a tissue has no unit. Where there is no share, `undefined.share_below` says why instead.

    Raises:
        ValueError: for unequal lengths, labels that are not indices into `slugs`, or distances that are not finite or below 0.
    """
    distances, labels = _checked_distances(distances, labels, len(slugs), "distances")
    val_distances, val_labels = _checked_distances(val_distances, val_labels, len(slugs), "val_distances")
    units, missing = validation_units(val_distances, val_labels, slugs)
    own, val = _in_units(distances, labels, units), _in_units(val_distances, val_labels, units)
    asked = {slugs[i] for i in np.unique(labels)}
    left_out = {slug: why for slug, why in missing.items() if slug in asked}
    result: dict = {"n_images": len(own), "n_val": len(val)} | ({"left_out": left_out} if left_out else {})
    limit = float(np.quantile(val, EXPECTED, method="weibull")) if len(val) >= FEWEST_VALIDATION else 0.0
    fault = _fault(len(distances), len(own), len(val), limit)
    if fault:
        return result | {"undefined": {"share_below": fault}}
    below = int((own < limit).sum())
    low, high = binomial_interval(below, len(own))
    p_more = chance_of_more(below, len(own), len(val))
    shares = {"share_below": below / len(own), "low": low, "high": high, "p_more": p_more, "expected": EXPECTED}
    return {name: plain(value) for name, value in shares.items()} | result


def binomial_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of hits (Clopper and Pearson, 1934), by scipy's `binomtest`.

    Args:
        hits: 0 to `count`.
        count: at least 1.
        level: coverage in (0, 1).
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence_level=level, method="exact")
    return float(interval.low), float(interval.high)


def chance_of_more(below: int, count: int, n_val: int) -> float:
    """p-value of as many generated images below the limit if they were like the validation images.

    If all distances are exchangeable, each order of them is as likely, and the number of `count` ones below the r-th smallest
    of V others is beta-binomial with r and V - r + 1 (Wilks, Annals of Mathematical Statistics 1942). The limit at rank
    0.01 (V + 1) lies between two of the V; r is the upper one, below which no fewer are, so that p errs to the safe side.

    Args:
        below: generated images below the limit, 0 to `count`.
        count: generated images, at least 1.
        n_val: V, at least `FEWEST_VALIDATION`.

    Returns:
        p in [0, 1], one-sided.
    """
    from scipy.stats import betabinom

    # in whole numbers, as 0.01 (V + 1) in floats is at times a little more than the rank that it is
    rank = -(-(n_val + 1) // round(1 / EXPECTED))
    # the tail itself: 1 minus the rest would lose small ones
    return min(1.0, float(betabinom.pmf(np.arange(below, count + 1), count, rank, n_val - rank + 1).sum()))


def closest_pairs(
    distances: np.ndarray,
    labels: np.ndarray,
    val_distances: np.ndarray,
    val_labels: np.ndarray,
    slugs: Sequence[str],
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Which images lie closest to training images, closest first.

    Args:
        distances: as for `copying_scores`.
        labels: as for `copying_scores`.
        val_distances: as for `copying_scores`.
        val_labels: as for `copying_scores`.
        slugs: names of all tissues.
        most: most images to name.

    Returns:
        Indices int64 (n <= most,) into `distances`, and their distances float64 (n,) in units of `validation_units`; images
        whose tissue has no unit are left out, and of equally close ones the first comes first.

    Raises:
        ValueError: as `copying_scores`.
    """
    distances, labels = _checked_distances(distances, labels, len(slugs), "distances")
    val_distances, val_labels = _checked_distances(val_distances, val_labels, len(slugs), "val_distances")
    units, _ = validation_units(val_distances, val_labels, slugs)
    counted = np.flatnonzero(np.isfinite(units[labels]))
    scaled = distances[counted] / units[labels[counted]]
    order = np.argsort(scaled, kind="stable")[:most]
    return counted[order], scaled[order]


class _Block:
    """Rows on a device: images uint8 as they are, features float64; `turns` holds the images in each view, (n, D)."""

    def __init__(self, rows: np.ndarray, start: int, device: str, views: int = 1):
        import torch

        if rows.ndim == 2:
            self.turns = [doubles(rows, start, device)]
        elif rows.dtype == np.uint8:
            views_of = (turned(rows, view).reshape(len(rows), -1) for view in range(views))
            self.turns = [torch.tensor(np.ascontiguousarray(view), device=device) for view in views_of]
        else:
            raise ValueError(f"images: {rows.dtype}, expected uint8")

    def __len__(self) -> int:
        return len(self.turns[0])


def _nearest_to(block: _Block, references: Rows, device: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices of the nearest reference of a block of queries."""
    import torch

    best = torch.full((len(block),), torch.inf, dtype=torch.float64, device=device)
    index = torch.zeros(len(block), dtype=torch.int64, device=device)
    for start in range(0, len(references), size):
        others = _Block(references[start : start + size], start, device).turns[0]
        images = others.dtype == torch.uint8
        for first in range(0, len(block), size):
            here = slice(first, first + size)
            turns = [turn[here] for turn in block.turns]
            squared = least_squared_differences(turns, others) if images else squared_distances(turns[0], others)
            # argmin gives the first of equals, and a later block has to be closer
            nearest_here = squared.argmin(dim=1)
            least = squared.gather(1, nearest_here[:, None])[:, 0]
            index[here] = torch.where(least < best[here], nearest_here + start, index[here])
            best[here] = torch.minimum(best[here], least)
    return best.cpu().numpy(), index.cpu().numpy()


def least_squared_differences(turns: Sequence[torch.Tensor], others: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences of images in whichever view it is least, without rounding.

    The products are float32 matrix products, faster than float64, of `EXACT` numbers at a time around 0: such sums are whole
    numbers that float32 holds, those of all numbers are not.

    Args:
        turns: the images uint8 (N, D) in each view.
        others: images uint8 (M, D).

    Returns:
        float64 (N, M).
    """
    import torch

    columns = _centred(others)
    products = torch.full((len(turns[0]), len(others)), -torch.inf, dtype=torch.float64, device=others.device)
    for turn in turns:
        product = torch.zeros_like(products)
        for piece, column in zip(_centred(turn), columns, strict=True):
            product += piece @ column.T
        torch.maximum(products, product, out=products)

    def lengths(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([piece.square().sum(dim=1, dtype=torch.float64) for piece in _centred(images)]).sum(dim=0)

    # a turn changes no length
    return (lengths(turns[0])[:, None] + lengths(others)).sub_(products, alpha=2.0)


def _centred(images: torch.Tensor) -> list[torch.Tensor]:
    """Images uint8 (n, D) as float32 from -128 to 127, `EXACT` numbers of each at a time."""
    return [piece.float() - 128.0 for piece in images.split(EXACT, dim=1)]


def _in_units(distances: np.ndarray, labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Distances in units of their tissue, of the images whose tissue has one."""
    counted = np.isfinite(units[labels])
    return distances[counted] / units[labels[counted]]


def _fault(given: int, count: int, n_val: int, limit: float) -> str:
    """Why there is no share, or nothing."""
    if count == 0:
        return "no images" if given == 0 else "no images of a tissue whose validation images give a unit"
    if n_val < FEWEST_VALIDATION:
        return f"validation images: {n_val}, a quantile of {EXPECTED:g} needs {FEWEST_VALIDATION}"
    return "" if limit > 0.0 else f"a share {EXPECTED:g} of the validation images equals training images"


def _checked(queries: Rows, references: Rows, views: int | None) -> tuple[bool, int]:
    """Whether these are images, and in how many views they are compared."""
    if len(references) == 0:
        raise ValueError("references: none, expected at least 1")
    shape = queries.shape[1:]
    if shape != references.shape[1:]:
        raise ValueError(f"queries and references: rows of {shape} and {references.shape[1:]}, expected the same")
    images = len(shape) == 3
    if not images and len(shape) != 1:
        raise ValueError(f"queries: rows of {shape}, expected (s, s, 3) or (D,)")
    views = views or (VIEWS if images else 1)
    if not 1 <= views <= (VIEWS if images else 1) or (views > 1 and shape[0] != shape[1]):
        raise ValueError(f"views: {views} of rows of {shape}; square images have up to {VIEWS}, features 1")
    return images, views


def _checked_distances(distances: np.ndarray, labels: np.ndarray, tissues: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    distances, labels = np.asarray(distances, np.float64), np.asarray(labels)
    if distances.ndim != 1 or labels.shape != distances.shape:
        raise ValueError(f"{name}: shapes {distances.shape} and of the labels {labels.shape}, expected (N,) of both")
    if not (np.isfinite(distances) & (distances >= 0.0)).all():
        raise ValueError(f"{name}: some are not finite or below 0")
    if labels.size and not (np.issubdtype(labels.dtype, np.integer) and 0 <= labels.min() <= labels.max() < tissues):
        raise ValueError(f"{name}: labels {labels.min()} to {labels.max()}, expected integers 0 to {tissues - 1}")
    return distances, labels.astype(np.int64)
