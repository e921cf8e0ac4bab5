"""Fidelity and variety of generated images: distances and shares between their features and those of real images.

Features are float64 (N, D) in memory; pairwise distances are computed in chunks. All intervals hold the reference fixed, so
they only compare sets that were scored against the same real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from pathsynth.classifiers.metrics import DIGITS
from pathsynth.evaluation.statistics import bootstrap_mean

# Prefixes of the interval keys, and the score that each belongs to.
INTERVALS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "precision": "precision", "density": "density"}
# Kernel distances are small.
KERNEL_DIGITS = 8
# k of precision, recall, density and coverage, as Naeem et al. (ICML 2020) recommend.
NEAREST_NEIGHBOURS = 5
JACKKNIFE_GROUPS = 10
# Factor on radii: a neighbour at exactly the radius is outside the ball, even if rounding makes its distance slightly smaller.
TIE = 1.0 - 1e-9
# |x|^2 + |y|^2 - 2xy of equal rows leaves a rounding error; distances below this share of the row's length count as 0.
EQUAL = 1e-6
MEBIBYTES = 256
CHUNK = 1024

Moments = dict[str, np.ndarray]


@dataclass(frozen=True)
class RealFeatures:
    """Features of the real images that sets are compared with, and cached values derived from them.

    Attributes:
        features: float64 (M, D).
        neighbours: k of precision, recall, density and coverage, at least 1.
    """

    features: np.ndarray
    neighbours: int = NEAREST_NEIGHBOURS

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance, see `compute_moments`."""
        return compute_moments(self.features)

    @cached_property
    def radii(self) -> np.ndarray:
        """Distance of each image to its k-th nearest neighbour, float64 (M,)."""
        return compute_radii(self.features, self.neighbours)


def fidelity_scores(
    features: np.ndarray,
    labels: np.ndarray,
    real: RealFeatures,
    real_per_class: Sequence[RealFeatures],
    *,
    slugs: Sequence[str],
    seed: int,
    kernel_subsets: int,
    kernel_subset_size: int,
) -> dict:
    """Scores images against real ones, over all tissues and tissue by tissue.

    Args:
        features: float64 (N, D); N may be 0.
        labels: integers (N,), indices into `slugs`.
        real: real images for the scores over all tissues.
        real_per_class: real images of each tissue, in the order of `slugs`.
        slugs: names of all tissues.
        seed: non-negative seed; each tissue and each score has a separate random stream.
        kernel_subsets: subsets of the kernel distance.
        kernel_subset_size: maximum images of a subset.

    Returns:
        n_images, n_reference, frechet_distance, frechet_bias, frechet_full_rank (whether both sets have more images than
        dimensions, without which most of the distance is bias), kernel_distance, precision, recall, density, coverage;
        {name}_low and {name}_high of the 95 % intervals of frechet, kernel, precision and density; per_tissue.{slug} with the
        same scores without intervals. A score that cannot be computed is absent, and `undefined` gives the reason.
    """
    subsets = (kernel_subsets, kernel_subset_size)
    scores = _score_set(features, real, subsets, (seed, 0), labels)
    scores["per_tissue"] = {
        slug: _score_set(features[labels == i], real_per_class[i], subsets, (seed, i + 1)) for i, slug in enumerate(slugs)
    }
    return scores


def _score_set(
    features: np.ndarray,
    real: RealFeatures,
    subsets: tuple[int, int],
    seed: tuple[int, int],
    labels: np.ndarray | None = None,
) -> dict:
    """Scores of one set, with intervals if there are labels; reasons for those that are missing."""
    n, m, k = len(features), len(real.features), real.neighbours
    bias, kernel, precision, density = (np.random.default_rng((*seed, purpose)) for purpose in range(4))
    groups = None if labels is None or n < JACKKNIFE_GROUPS else jackknife_groups(labels, JACKKNIFE_GROUPS)
    strata = None if groups is None else labels
    parts: tuple[tuple[tuple[str, ...], str, Callable[[], dict]], ...] = (
        (("frechet_distance",), _too_few(n, m, 2, 2), partial(_frechet_scores, features, real, groups)),
        (("frechet_bias",), _too_few(n, m, 2, 2 * n), lambda: {"frechet_bias": frechet_bias(n, real.features, bias)}),
        (("kernel_distance",), _too_few(n, m, 2, 2), partial(_kernel_scores, features, real, groups, subsets, kernel)),
        (
            ("precision", "density", "coverage"),
            _too_few(n, m, 1, k + 1) or _all_equal(real),
            partial(_ball_scores, features, real, strata, (precision, density)),
        ),
        (("recall",), _too_few(n, m, k + 1, 1), lambda: {"recall": recall(features, real.features, k)}),
    )
    scores: dict = {"n_images": n, "n_reference": m}
    undefined: dict[str, str] = {}
    for names, reason, compute in parts:
        if reason:
            undefined |= dict.fromkeys(names, reason)
        else:
            scores |= compute()
    if labels is not None:
        missing = [(end, score) for name, score in INTERVALS.items() for end in _ends(name, 0, 0) if end not in scores]
        undefined |= {end: undefined.get(score) or _too_few(n, m, JACKKNIFE_GROUPS, 2) for end, score in missing}
    return _round_scores(scores) | ({"undefined": undefined} if undefined else {})


def _frechet_scores(features: np.ndarray, real: RealFeatures, groups: np.ndarray | None) -> dict:
    distance = frechet_distance(compute_moments(features), real.moments)
    full_rank = min(len(features), len(real.features)) > features.shape[1]
    scores = {"frechet_distance": distance, "frechet_full_rank": full_rank}
    if groups is None:
        return scores
    half = frechet_half_width(features, groups, real.moments)
    return scores | _ends("frechet", max(0.0, distance - half), distance + half)


def _kernel_scores(
    features: np.ndarray,
    real: RealFeatures,
    groups: np.ndarray | None,
    subsets: tuple[int, int],
    rng: np.random.Generator,
) -> dict:
    distance, variance = kernel_distance(features, real.features, *subsets, rng)
    if groups is None:
        return {"kernel_distance": distance}
    half = kernel_half_width(features, groups, real.features, variance)
    return {"kernel_distance": distance, **_ends("kernel", distance - half, distance + half)}


def _ball_scores(
    features: np.ndarray, real: RealFeatures, strata: np.ndarray | None, rngs: tuple[np.random.Generator, np.random.Generator]
) -> dict:
    counts, occupied = count_balls(features, real.features, real.radii)
    values = {"precision": (counts > 0).astype(np.float64), "density": counts / real.neighbours}
    scores = {name: float(value.mean()) for name, value in values.items()} | {"coverage": float(occupied.mean())}
    if strata is not None:
        for (name, value), rng in zip(values.items(), rngs, strict=True):
            scores |= _ends(name, *bootstrap_mean(value, strata, rng))
    return scores


def compute_moments(features: np.ndarray) -> Moments:
    """`mu`, the mean (D,), and `sigma`, the unbiased covariance (D, D), of at least 2 rows (N, D)."""
    return {"mu": features.mean(axis=0), "sigma": np.atleast_2d(np.cov(features, rowvar=False))}


def frechet_distance(first: Moments, second: Moments) -> float:
    """Fréchet distance of two normal distributions (Heusel et al., NeurIPS 2017, equation 6), by torch-fidelity.

    Args:
        first, second: see `compute_moments`.

    Returns:
        Distance >= 0; a negative rounding error counts as 0.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(0.0, fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def frechet_half_width(features: np.ndarray, groups: np.ndarray, real: Moments) -> float:
    """Half the width of the 95 % interval of the Fréchet distance, by the delete-a-group jackknife.

    The interval covers how the distance varies between sets of this size and includes their bias; see `frechet_bias`.

    Args:
        features: (N, D).
        groups: integers (N,), see `jackknife_groups`.
        real: moments of the real images.
    """
    left_out = (compute_moments(features[groups != group]) for group in range(groups.max() + 1))
    return jackknife_half_width([frechet_distance(moments, real) for moments in left_out])


def frechet_bias(count: int, real: np.ndarray, rng: np.random.Generator) -> float:
    """Fréchet distance of `count` real images from the other real images, which would approach 0 as their number grows.

    A Fréchet distance of that few images contains about this much bias (Chong and Forsyth, CVPR 2020).

    Args:
        count: images to draw without replacement, 2 to M / 2.
        real: features (M, D).
        rng: source of the draw.
    """
    drawn = np.zeros(len(real), bool)
    drawn[rng.choice(len(real), count, replace=False)] = True
    return frechet_distance(compute_moments(real[drawn]), compute_moments(real[~drawn]))


def kernel_distance(
    features: np.ndarray, real: np.ndarray, subsets: int, size: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Kernel distance: mean unbiased squared maximum mean discrepancy of subsets (Bińkowski et al., ICLR 2018, section 4).

    The kernel is (xy / D + 1)^3; torch-fidelity's estimate may be below 0.

    Args:
        features: (N, D), N >= 2.
        real: (M, D), M >= 2.
        subsets: number of subsets.
        size: images of a subset, limited by the smaller set.
        rng: source of the draws, each subset without replacement.

    Returns:
        The mean, and its variance due to the choice of the subsets alone.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size = min(size, len(features), len(real))
    values = np.empty(subsets)
    for i in range(subsets):
        real_subset, subset = (rows[np.sort(rng.choice(len(rows), size, replace=False))] for rows in (real, features))
        values[i] = kernel_mmd(real_subset, subset)
    return float(values.mean()), float(values.var(ddof=1) / subsets) if subsets > 1 else 0.0


def kernel_half_width(features: np.ndarray, groups: np.ndarray, real: np.ndarray, subset_variance: float) -> float:
    """Half the width of the 95 % interval of the kernel distance.

    Subsets overlap, so their spread says nothing about other images. Given the images, the mean over subsets scatters around
    the estimate from all pairs of images (it is an incomplete U-statistic: Blom, Biometrika 1976). Its variance is therefore
    that of the estimate from all pairs, by the delete-a-group jackknife, plus the variance due to the choice of subsets.

    Args:
        features: (N, D).
        groups: integers (N,), see `jackknife_groups`.
        real: (M, D).
        subset_variance: variance due to the choice of the subsets.
    """
    within, across = _sum_kernel_by_group(features, groups, real)
    left = len(features) - np.bincount(groups)
    pairs = within.sum() - 2.0 * within.sum(axis=1) + np.diag(within)
    estimates = pairs / (left * (left - 1)) - 2.0 * (across.sum() - across) / (left * len(real))
    return jackknife_half_width(estimates, subset_variance)


def _sum_kernel_by_group(features: np.ndarray, groups: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over pairs of different images by group (G, G), and over pairs with real images (G,)."""
    from sklearn.metrics.pairwise import polynomial_kernel
    from sklearn.utils import gen_batches

    member = np.eye(groups.max() + 1)[groups]
    within, across = np.zeros((member.shape[1],) * 2), np.zeros(member.shape[1])
    for rows in gen_batches(len(features), CHUNK):
        within += member[rows].T @ polynomial_kernel(features[rows], features) @ member
        across += member[rows].T @ polynomial_kernel(features[rows], real).sum(axis=1)
    with_itself = (np.square(features).sum(axis=1) / features.shape[1] + 1.0) ** 3
    return within - np.diag(member.T @ with_itself), across


def jackknife_groups(labels: np.ndarray, groups: int) -> np.ndarray:
    """Assigns images to groups of equal size, stratified by tissue.

    Args:
        labels: tissues, integers (N,).
        groups: number of groups G.

    Returns:
        Groups int64 (N,) from 0; sizes differ by at most 1, also within a tissue.
    """
    assigned = np.empty(len(labels), np.int64)
    assigned[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % groups
    return assigned


def jackknife_half_width(estimates: Sequence[float] | np.ndarray, extra_variance: float = 0.0) -> float:
    """Half the width of a 95 % interval from G estimates that leave out one group each.

    The variance is (G - 1) / G times the sum of squares about their mean; the factor is that of Student's t distribution with
    G - 1 degrees of freedom (Kott, Journal of Official Statistics 2001).
    """
    from scipy.stats import t

    values = np.asarray(estimates, np.float64)
    count = len(values)
    variance = (count - 1) / count * np.square(values - values.mean()).sum() + extra_variance
    return float(t.ppf(0.975, count - 1) * np.sqrt(variance))


def count_balls(features: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the balls around other images that each image lies in.

    With the k-th nearest neighbour as the radius, precision is the share of images in any ball (Kynkäänniemi et al., NeurIPS
    2019), density the mean number of balls an image is in, divided by k, and coverage the share of balls that hold an image
    (Naeem et al., ICML 2020).

    Args:
        features: (N, D), N >= 1.
        centres: (M, D).
        radii: (M,), see `compute_radii`.

    Returns:
        Number of balls (N,) for each image, and whether each ball holds an image, bool (M,).
    """
    counts, occupied = [], np.zeros(len(centres), bool)
    for distances in _iter_distances(features, centres):
        inside = distances < TIE * radii
        counts.append(inside.sum(axis=1))
        occupied |= inside.any(axis=0)
    return np.concatenate(counts), occupied


def recall(features: np.ndarray, real: np.ndarray, neighbours: int = NEAREST_NEIGHBOURS) -> float:
    """Share of real images (M, D) in the balls around generated ones (N, D), N > k (Kynkäänniemi et al., NeurIPS 2019)."""
    counts, _ = count_balls(real, features, compute_radii(features, neighbours))
    return float((counts > 0).mean())


def compute_radii(rows: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each row (N, D), N > k, to its k-th nearest among the others, float64 (N,)."""
    # each row is its own nearest, at index 0
    nearest = [np.partition(distances, neighbours, axis=1)[:, neighbours] for distances in _iter_distances(rows, rows)]
    return np.concatenate(nearest)


def _iter_distances(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yields Euclidean distances (n, M) of some rows at a time; of equal rows exactly 0."""
    from sklearn.metrics import pairwise_distances_chunked

    lengths = np.linalg.norm(others, axis=1)
    for distances in pairwise_distances_chunked(rows, others, working_memory=MEBIBYTES):
        distances[distances <= EQUAL * lengths] = 0.0
        yield distances


def _too_few(n: int, m: int, minimum: int, minimum_real: int) -> str:
    """Returns why n images and m real ones cannot be compared, or an empty string."""
    for count, needed, kind in ((n, minimum, "images"), (m, minimum_real, "real images")):
        if count < needed:
            return f"no {kind}" if count == 0 else f"{kind}: {count}, at least {needed} are needed"
    return ""


def _all_equal(real: RealFeatures) -> str:
    return "" if real.radii.any() else f"every real image has {real.neighbours} others with the same features"


def _ends(name: str, low: float, high: float) -> dict[str, float]:
    return {f"{name}_low": low, f"{name}_high": high}


def _round_scores(scores: dict) -> dict:
    return {
        # adding 0.0 converts a rounded -0.0 to 0.0
        name: round(value, KERNEL_DIGITS if name.startswith("kernel") else DIGITS) + 0.0 if isinstance(value, float) else value
        for name, value in scores.items()
    }
