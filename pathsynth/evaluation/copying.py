"""Copying of training images: distance of generated images to the nearest one, compared with that of validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathsynth.classifiers.metrics import round_score

# The share of validation images that lie closer to a training image than the limit.
EXPECTED = 0.01
# With fewer validation images, the limit would lie below all of their distances.
MIN_VALIDATION = round(1 / EXPECTED) - 1
VIEWS = 8
CHUNK = 4096


@dataclass(frozen=True)
class Pairs:
    """Generated images and the training images nearest to them, closest first.

    Attributes:
        images: indices of generated images, int64 (n,).
        nearest: indices of training images, int64 (n,).
        distances: in units of the median distance of validation images, float64 (n,).
    """

    images: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


def find_nearest(queries: np.ndarray, references: np.ndarray, chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest reference of each query.

    Images are compared in all 8 rotations and mirrorings, because an adapter trained with flips and rotations may copy an image
    in any of them.

    Args:
        queries: images uint8 (N, s, s, 3), or features (N, D).
        references: M >= 1 rows of the same shape; read in chunks.
        chunk: references at a time.

    Returns:
        Distances float64 (N,) and indices int64 (N,). The distance of images is the root mean square difference in [0, 1], of
        features the Euclidean distance.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    queries, images = np.asarray(queries), queries.ndim == 4
    distances, indices = np.full(len(queries), np.inf), np.zeros(len(queries), np.int64)
    for start in range(0, len(references) if len(queries) else 0, chunk):
        block = _flatten(references[start : start + chunk])
        for view in range(VIEWS if images else 1):
            rows = _flatten(rotate_and_mirror(queries, view) if images else queries)
            nearest, least = pairwise_distances_argmin_min(rows, block)
            closer = least < distances
            distances[closer], indices[closer] = least[closer], nearest[closer] + start
    if images:
        return distances / np.sqrt(np.prod(queries.shape[1:])) / 255.0, indices
    # from the difference itself, which is exactly 0 for equal rows
    return np.linalg.norm(_flatten(queries) - references[indices], axis=1), indices


def _flatten(rows: np.ndarray) -> np.ndarray:
    """Rows as float64 (n, D), in which sums of products of bytes are exact."""
    return rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).astype(np.float64)


def rotate_and_mirror(images: np.ndarray, view: int) -> np.ndarray:
    """Rotates images (N, s, s, C) by `view` % 4 right angles, and mirrors them from view 4 on: the 8 symmetries of a square."""
    images = np.rot90(images, view % 4, axes=(1, 2))
    return images[:, :, ::-1] if view >= VIEWS // 2 else images


def validation_units(distances: np.ndarray, labels: np.ndarray, slugs: Sequence[str]) -> tuple[np.ndarray, dict[str, str]]:
    """Median distance of each tissue's validation images, the unit of that tissue's distances.

    Images of flat background resemble each other most, so without units only they would have small distances.

    Args:
        distances: of validation images to the nearest training image, float (V,).
        labels: integers (V,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        Medians float64 (tissues,), infinite for a tissue without one; and the reason by slug.
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

    Distances are in `validation_units`; the limit is the quantile at rank 0.01 (V + 1), below which one
    more validation image would lie with a probability of 0.01 (Hyndman and Fan, 1996, definition 6).

    The interval holds that limit fixed. But the limit is one of a few small distances of V validation images and varies with
    them, so an interval above 0.01 is no evidence of copies. `p_more` is, see `copying_p_value`; it leaves out only how the
    units vary, and expects validation images of the same tissues in about the same proportions.

    Args:
        distances: of generated images to the nearest training image, float (N,).
        labels: integers (N,), indices into `slugs`.
        val_distances: of validation images, float (V,).
        val_labels: integers (V,).
        slugs: names of all tissues.

    Returns:
        share_below, low, high, p_more in [0, 1], expected, n_images and n_val that count, left_out.{slug} with the reason
        where a tissue has no unit. Where there is no share, `undefined.share_below` gives the reason instead.
    """
    units, missing = validation_units(val_distances, val_labels, slugs)
    own, val = _in_units(distances, labels, units), _in_units(val_distances, val_labels, units)
    present = {slugs[i] for i in np.unique(labels)}
    left_out = {slug: why for slug, why in missing.items() if slug in present}
    result: dict = {"n_images": len(own), "n_val": len(val)} | ({"left_out": left_out} if left_out else {})
    limit = float(np.quantile(val, EXPECTED, method="weibull")) if len(val) >= MIN_VALIDATION else 0.0
    if reason := _reason_undefined(len(distances), len(own), len(val), limit):
        return result | {"undefined": {"share_below": reason}}
    below = int((own < limit).sum())
    low, high = binomial_interval(below, len(own))
    p_more = copying_p_value(below, len(own), len(val))
    shares = {"share_below": below / len(own), "low": low, "high": high, "p_more": p_more, "expected": EXPECTED}
    return {name: round_score(value) for name, value in shares.items()} | result


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """Exact 95 % interval of a share of hits (Clopper and Pearson, 1934; `scipy.stats.binomtest`)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)


def copying_p_value(below: int, count: int, n_val: int) -> float:
    """Computes the p-value of this many generated images below the limit, if they were like validation images.

    If all distances are exchangeable, the number of `count` ones below the r-th smallest of V others is beta-binomial with r
    and V - r + 1 (Wilks, Annals of Mathematical Statistics 1942). The limit at rank 0.01 (V + 1) lies between two of the V; r
    is the upper one, below which there are no fewer, so p is conservative.

    Args:
        below: generated images below the limit, 0 to `count`.
        count: generated images, at least 1.
        n_val: V, at least `MIN_VALIDATION`.

    Returns:
        p in [0, 1], one-sided.
    """
    from scipy.stats import betabinom

    # in integers, as 0.01 (V + 1) in floats may be a little more than the rank
    rank = -(-(n_val + 1) // round(1 / EXPECTED))
    # summing the tail keeps precision for small p, which 1 - cdf would lose
    return min(1.0, float(betabinom.pmf(np.arange(below, count + 1), count, rank, n_val - rank + 1).sum()))


def closest_pairs(
    distances: np.ndarray,
    labels: np.ndarray,
    val_distances: np.ndarray,
    val_labels: np.ndarray,
    slugs: Sequence[str],
    limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the images closest to training images.

    Args:
        distances, labels, val_distances, val_labels, slugs: as for `copying_scores`.
        limit: maximum number of images.

    Returns:
        Indices int64 (n <= limit,) into `distances`, closest first, and their distances float64 (n,) in `validation_units`;
        images of a tissue without a unit are left out.
    """
    units, _ = validation_units(val_distances, val_labels, slugs)
    counted = np.flatnonzero(np.isfinite(units[labels]))
    scaled = _in_units(distances, labels, units)
    order = np.argsort(scaled, kind="stable")[:limit]
    return counted[order], scaled[order]


def _in_units(distances: np.ndarray, labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Distances in units of their tissue, of the images whose tissue has one."""
    counted = np.isfinite(units[labels])
    return distances[counted] / units[labels[counted]]


def _reason_undefined(given: int, count: int, n_val: int, limit: float) -> str:
    if count == 0:
        return "no images" if given == 0 else "no images of a tissue whose validation images give a unit"
    if n_val < MIN_VALIDATION:
        return f"validation images: {n_val}, a quantile of {EXPECTED:g} needs {MIN_VALIDATION}"
    return "" if limit > 0.0 else f"a share {EXPECTED:g} of the validation images equals training images"
