"""Copying of training images: distance of generated images to the nearest one, compared with that of validation images.

Two spaces are searched: pixels, in which a copy is found although it was shifted, rotated, mirrored or restained, and
features of structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.core.rows import Rows, iter_blocks
from pathsynth.data.images import VIEWS, rotate_and_mirror

# One in this many new images lies closer to a training image than the limit, where there are enough validation images.
ONE_IN = 100
# Standard deviation of the Gaussian that is subtracted, as a share of the side: gradients resemble each other by chance.
SMOOTHING = 1 / 8
# Largest frequency of the descriptors in periods per side; higher ones are the first to differ in a blurred or shifted copy.
MAX_FREQUENCY = 8
# Largest shift of a copy as a share of the side.
SEARCHED_SHIFT = 1 / 8
# Standard deviation of absorbance below which an image has no contrast: one of the 256 levels of a bright pixel.
NOISE = 1 / 256
# Queries at a time; each has up to 8 candidates, of 40 KB each.
CHUNK = 128
# Digits of a correlation that float32 computes.
DIGITS = 5

# Function from N queries to the distances float64 (N,) and indices int64 (N,) of the nearest references.
Search = Callable[[Rows], tuple[np.ndarray, np.ndarray]]


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


@dataclass(frozen=True)
class CopyCheck:
    """Compares images with the training images in one space.

    Attributes:
        search: among the training images, `search_moved` for pixels, `search_nearest` for features.
        val: rows of the V validation images.
        val_labels: integers (V,), indices into `slugs`.
        slugs: names of all tissues.
    """

    search: Search
    val: Rows
    val_labels: np.ndarray
    slugs: Sequence[str]

    @cached_property
    def val_distances(self) -> np.ndarray:
        """Distance of each validation image to the nearest training image, float64 (V,)."""
        return self.search(self.val)[0]

    def compare(self, queries: Rows, labels: np.ndarray, limit: int) -> tuple[dict, Pairs]:
        """Scores images and selects those closest to training images, with one search.

        Args:
            queries: rows of N images.
            labels: integers (N,), indices into `slugs`.
            limit: maximum number of pairs.

        Returns:
            `copying_scores` and `closest_pairs`.
        """
        distances, nearest = self.search(queries)
        args = distances, labels, self.val_distances, self.val_labels, self.slugs
        images, scaled = closest_pairs(*args, limit)
        return copying_scores(*args), Pairs(images, nearest[images], scaled)


def search_nearest(references: Rows) -> Search:
    """Prepares the search for the nearest reference in features, each divided by its standard deviation over the references.

    Args:
        references: features (M, D), M >= 1.

    Returns:
        A search among them for queries (N, D), by Euclidean distance.
    """
    from sklearn.metrics import pairwise_distances_argmin

    others = np.asarray(references[:], np.float64)
    mean, scale = others.mean(axis=0), others.std(axis=0)
    scale[scale == 0.0] = 1.0
    # centred, because the search squares large numbers
    others = (others - mean) / scale

    def search(queries: Rows) -> tuple[np.ndarray, np.ndarray]:
        if len(queries) == 0:
            return np.zeros(0), np.zeros(0, np.int64)
        rows = (np.asarray(queries[:], np.float64) - mean) / scale
        indices = pairwise_distances_argmin(rows, others)
        # from the difference itself, which is exactly 0 for equal rows
        return np.linalg.norm(rows - others[indices], axis=1), indices

    return search


def search_moved(references: Rows) -> Search:
    """Prepares the search for the reference that an image resembles most after a rotation, mirroring, shift or change of stain.

    A descriptor that hardly changes with a shift selects a reference for each of the 8 rotations and mirrorings; the two are
    then correlated at all shifts of up to 1/8 of the side. A correlation hardly depends on the amount of stain. Flat images
    correlate with none.

    Args:
        references: uint8 (M, s, s, 3), M >= 1.

    Returns:
        A search among them for queries uint8 (N, s, s, 3); the distance is 1 minus the largest correlation.
    """
    from sklearn.metrics import pairwise_distances_argmin

    descriptors = np.concatenate([_describe(_absorbance(block)) for block in iter_blocks(references)])

    def search(queries: Rows) -> tuple[np.ndarray, np.ndarray]:
        distances, indices = np.zeros(len(queries)), np.zeros(len(queries), np.int64)
        for start in range(0, len(queries), CHUNK):
            images = _absorbance(queries[start : start + CHUNK])
            doubled = _double(images)
            # a rotation by 180 degrees, view 2 of view 0, does not change the descriptor
            nearest = {
                view: pairwise_distances_argmin(_describe(rotate_and_mirror(images, view)), descriptors)
                for view in (0, 1, 4, 5)
            }
            candidates = np.stack([nearest[view & ~2] for view in range(VIEWS)])
            used, positions = np.unique(candidates, return_inverse=True)
            others = _Shifted(_double(_absorbance(references[used])))
            correlations = np.stack(
                [
                    _Shifted(rotate_and_mirror(doubled, view)).correlate(others, rows)
                    for view, rows in enumerate(positions.reshape(candidates.shape))
                ]
            )
            best = correlations.argmax(axis=0), np.arange(len(images))
            distances[start : start + CHUNK] = (1.0 - correlations[best].astype(np.float64)).round(DIGITS).clip(0.0)
            indices[start : start + CHUNK] = candidates[best]
        return distances, indices

    return search


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
    """Share of generated images that lie closer to a training image than about 99 % of the validation images do.

    Distances are in `validation_units`. The limit is the r-th smallest of those of the V validation images, with
    r = (V + 1) / 100 rounded down, at least 1. If all images were alike, r / (V + 1) of the generated ones would lie below it.

    The interval holds that limit fixed. But the limit is one of a few small distances of V validation images and varies with
    them, so an interval above the expected share is no evidence of copies. `p_more` is, see `copying_p_value`; it leaves out
    only how the units vary, and expects validation images of the same tissues in about the same proportions.

    Args:
        distances: of generated images to the nearest training image, float (N,).
        labels: integers (N,), indices into `slugs`.
        val_distances: of validation images, float (V,).
        val_labels: integers (V,).
        slugs: names of all tissues.

    Returns:
        share, low, high, expected, p_more in [0, 1], n_images and n_val that count, left_out.{slug} with the reason where a
        tissue has no unit. Where there is no share, `undefined` gives the reason instead.
    """
    units, missing = validation_units(val_distances, val_labels, slugs)
    own, val = _in_units(distances, labels, units), np.sort(_in_units(val_distances, val_labels, units))
    present = {slugs[i] for i in np.unique(labels)}
    left_out = {slug: why for slug, why in missing.items() if slug in present}
    result: dict = {"n_images": len(own), "n_val": len(val)} | ({"left_out": left_out} if left_out else {})
    rank = max(1, (len(val) + 1) // ONE_IN)
    if reason := _reason_undefined(len(distances), own, val, rank):
        return {"undefined": reason} | result
    below = int((own < val[rank - 1]).sum())
    low, high = binomial_interval(below, len(own))
    p_more = copying_p_value(below, len(own), rank, len(val))
    shares = {"share": below / len(own), "low": low, "high": high, "expected": rank / (len(val) + 1), "p_more": p_more}
    return {name: round_score(value) for name, value in shares.items()} | result


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """Exact 95 % interval of a share of hits (Clopper and Pearson, 1934; `scipy.stats.binomtest`)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)


def copying_p_value(below: int, count: int, rank: int, n_val: int) -> float:
    """Computes the p-value of this many generated images below the limit, if they were like validation images.

    If all distances are exchangeable, the number of `count` ones below the r-th smallest of V others is beta-binomial with r
    and V - r + 1 (Wilks, Annals of Mathematical Statistics 1942).

    Args:
        below: generated images below the limit, 0 to `count`.
        count: generated images, at least 1.
        rank: r, 1 to V.
        n_val: V.

    Returns:
        p in [0, 1], one-sided.
    """
    from scipy.stats import betabinom

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


def _reason_undefined(given: int, own: np.ndarray, val: np.ndarray, rank: int) -> str:
    if len(own) == 0:
        return "no images" if given == 0 else "no images of a tissue whose validation images give a unit"
    return "" if val[rank - 1] > 0.0 else f"{int((val == 0.0).sum())} of {len(val)} validation images equal training images"


def _absorbance(images: np.ndarray) -> np.ndarray:
    """Mean absorbance of the three colours, float32 (n, s, s), without what varies slowly over the image."""
    from scipy.ndimage import gaussian_filter

    absorbance = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    grey, sigma = absorbance[images] @ np.full(3, 1 / 3, np.float32), SMOOTHING * images.shape[1]
    return grey - gaussian_filter(grey, (0, sigma, sigma))


def _describe(images: np.ndarray) -> np.ndarray:
    """Square roots of the magnitudes of low frequencies under a Hann window, float32 (n, D) of length 1."""
    from scipy.fft import fftfreq, rfft2, rfftfreq
    from sklearn.preprocessing import normalize

    side = images.shape[1]
    frequency = np.hypot(fftfreq(side, 1 / side)[:, None], rfftfreq(side, 1 / side))
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    spectrum = rfft2(images * np.outer(window, window))
    return normalize(np.sqrt(np.abs(spectrum[:, frequency <= MAX_FREQUENCY])))


def _double(images: np.ndarray) -> np.ndarray:
    """Interpolates images (n, s, s) to twice their side by the cosine transform, so that shifts by half a pixel are found."""
    from scipy.fft import dctn, idctn

    shape = 2 * images.shape[1], 2 * images.shape[2]
    return 2 * idctn(dctn(images, axes=(1, 2), norm="ortho"), s=shape, axes=(1, 2), norm="ortho")


class _Shifted:
    """Images with mean and variance of the part that overlaps a shifted image, for normalised cross-correlation.

    As Padfield (IEEE Transactions on Image Processing 2012), with a rectangle for the mask.
    """

    def __init__(self, images: np.ndarray):
        from scipy.fft import rfft2

        side = images.shape[1]
        limit = round(side * SEARCHED_SHIFT)
        self.shifts, self.size = np.arange(-limit, limit + 1), side + limit
        # whether a row of the image overlaps the other image, by shift
        inside = np.abs(np.arange(side) - self.shifts[:, None] - (side - 1) / 2) < side / 2
        rows = inside.astype(np.float32)
        self.count = np.outer(inside.sum(axis=1), inside.sum(axis=1)).astype(np.float32)
        self.spectra = rfft2(images, (self.size, self.size))
        self.means = rows @ images @ rows.T / self.count
        self.variances = rows @ images**2 @ rows.T / self.count - self.means**2

    def correlate(self, others: _Shifted, indices: np.ndarray) -> np.ndarray:
        """Largest correlation of each image with the other image at its index (n,); 0 where one has no contrast."""
        from scipy.fft import irfft2

        products = irfft2(self.spectra * np.conj(others.spectra[indices]), (self.size, self.size))
        # the other image is shifted in the opposite direction
        means, variances = others.means[indices, ::-1, ::-1], others.variances[indices, ::-1, ::-1]
        covariances = products[:, self.shifts[:, None], self.shifts] / self.count - self.means * means
        contrast = np.minimum(self.variances, variances) > NOISE**2
        scale = np.sqrt(np.where(contrast, self.variances * variances, 1.0))
        return np.where(contrast, covariances / scale, 0.0).max(axis=(1, 2))
