"""Fidelity and variety of generated images: distances and shares between their features and those of real images.

Sets have a fixed number of images of each tissue, so distances and intervals are stratified by tissue. Features are float64
(N, D) in memory; pairs of images are compared in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from pathsynth.classifiers.metrics import DIGITS
from pathsynth.data.sampling import proportional_counts, subsample_per_class
from pathsynth.evaluation.statistics import bootstrap_mean

# Kernel distances are small.
KERNEL_DIGITS = 8
# k of precision, recall, density and coverage, as Naeem et al. (ICML 2020) recommend.
NEAREST_NEIGHBOURS = 5
JACKKNIFE_GROUPS = 10
# With fewer images, a large part of the Fréchet distance is bias.
IMAGES_PER_DIMENSION = 10
# Factor on radii: a neighbour at exactly the radius is outside the ball, even if rounding makes its distance slightly smaller.
TIE = 1.0 - 1e-9
# |x|^2 + |y|^2 - 2xy of equal rows leaves a rounding error; distances below this share of the row's length count as 0.
EQUAL = 1e-6
MEBIBYTES = 256
CHUNK = 1024

Moments = dict[str, np.ndarray]
# Scores by name; a string is the reason why the score is undefined.
Scores = dict[str, float | str]


@dataclass(frozen=True)
class RealFeatures:
    """Features of the real images that sets are compared with, and cached values derived from them.

    Attributes:
        features: float64 (M, D).
        labels: tissues, integers (M,) in [0, tissues).
        tissues: number of tissues.
    """

    features: np.ndarray
    labels: np.ndarray
    tissues: int

    @cached_property
    def cells(self) -> np.ndarray:
        """Tissue and jackknife group of each image, one-hot, see `assign_cells`."""
        return assign_cells(self.labels, self.tissues)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of images of each tissue, int64 (tissues,)."""
        return np.bincount(self.labels, minlength=self.tissues)

    @cached_property
    def kernel_sums(self) -> np.ndarray:
        """Sums of the kernel over pairs of different images, see `sum_kernel_within`."""
        return sum_kernel_within(self.features, self.cells)

    def draw_proportional(self, counts: np.ndarray, *seed: int) -> np.ndarray:
        """Draws features (n, D) of as many images as there are in the tissue proportions of `counts`, integers (tissues,)."""
        return self.features[subsample_per_class(self.labels, proportional_counts(self.counts, counts), *seed)]


def fidelity_scores(features: np.ndarray, labels: np.ndarray, real: RealFeatures, *, slugs: Sequence[str], seed: int) -> dict:
    """Scores images against real ones, over all tissues and tissue by tissue.

    Args:
        features: float64 (N, D); N may be 0.
        labels: integers (N,), indices into `slugs`.
        real: real images of the same tissues.
        slugs: names of all tissues.
        seed: non-negative seed; each draw has a separate random stream.

    Returns:
        n_images, n_reference (all real images) and dimensions; kernel_distance from all real images; precision, recall, density
        and coverage, with as many images of each tissue on either side; frechet_distance from real images in the tissue
        proportions of the set, and frechet_bias; {name}_low and {name}_high of the 95 % intervals of kernel, precision, density
        and frechet; per_tissue.{slug} with the same scores except Fréchet distances and intervals; mean_per_tissue, the means
        over tissues that have the score. A score that cannot be computed is absent, and `undefined` gives the reason.
    """
    counts = np.bincount(labels, minlength=len(slugs))
    equal = np.minimum(counts, real.counts)
    rows, real_rows = subsample_per_class(labels, equal, seed, 0), subsample_per_class(real.labels, equal, seed, 1)
    own, own_labels, others, other_labels = features[rows], labels[rows], real.features[real_rows], real.labels[real_rows]
    kernel, kernel_per_tissue = _kernel_scores(features, labels, real, slugs)
    balls = _ball_scores(own, others, len(features), len(real.features), own_labels, seed)
    per_tissue = {}
    for i, (slug, n, m) in enumerate(zip(slugs, counts.tolist(), real.counts.tolist(), strict=True)):
        in_tissue = _ball_scores(own[own_labels == i], others[other_labels == i], n, m)
        scores = {"kernel_distance": kernel_per_tissue[i], **in_tissue}
        per_tissue[slug] = {"n_images": n, "n_reference": m, **_round_scores(scores)}
    means: Scores = {}
    for name in ("kernel_distance", "precision", "recall", "density", "coverage"):
        values = [row[name] for row in per_tissue.values() if name in row]
        means |= {name: float(np.mean(values))} if values else {}
    return {
        "n_images": len(features),
        "n_reference": len(real.features),
        "dimensions": features.shape[1],
        **_round_scores(kernel | balls | _frechet_scores(features, labels, real, slugs, seed)),
        "mean_per_tissue": _round_scores(means),
        "per_tissue": per_tissue,
    }


def _kernel_scores(
    features: np.ndarray, labels: np.ndarray, real: RealFeatures, slugs: Sequence[str]
) -> tuple[Scores, list[float | str]]:
    """Kernel distance with its interval, and the kernel distance of each tissue."""
    distance, half, by_tissue = kernel_distance(features, labels, real)
    counts = np.bincount(labels, minlength=len(slugs))
    sides = ((counts, "image"), (real.counts, "real image"))
    undefined = _too_few(len(labels), 1) or _tissue_shortage(slugs, 2 * (counts > 0), *sides)
    no_interval = (
        undefined
        or _too_few(len(labels), JACKKNIFE_GROUPS)
        or _too_few(len(real.labels), JACKKNIFE_GROUPS, "real image")
        # without any group, two images of each tissue have to be left
        or _tissue_shortage(slugs, 3 * (counts > 0), *sides)
    )
    scores: Scores = {"kernel_distance": undefined or distance}
    return scores | _interval("kernel", no_interval, distance - half, distance + half), [
        _too_few(n, 2) or _too_few(m, 2, "real image") or value
        for n, m, value in zip(counts, real.counts, by_tissue.tolist(), strict=True)
    ]


def _ball_scores(
    features: np.ndarray, real: np.ndarray, n: int, m: int, strata: np.ndarray | None = None, seed: int = 0
) -> Scores:
    """Precision, recall, density and coverage of equally many of n images and m real ones, with intervals if given strata."""
    k = NEAREST_NEIGHBOURS
    names = ("precision", "density", "coverage", *({} if strata is None else _interval("precision") | _interval("density")))
    reason = _too_few(n, k + 1) or _too_few(m, k + 1, "real image") or _too_few(len(features), k + 1, "same-tissue pair")
    if reason:
        return dict.fromkeys(("recall", *names), reason)
    near, _ = count_balls(real, features, compute_radii(features))
    scores: Scores = {"recall": float((near > 0).mean())}
    radii = compute_radii(real)
    if not radii.any():
        return scores | dict.fromkeys(names, f"every real image has {k} others with the same features")
    counts, occupied = count_balls(features, real, radii)
    scores["coverage"] = float(occupied.mean())
    for i, (name, values) in enumerate({"precision": (counts > 0).astype(np.float64), "density": counts / k}.items()):
        scores[name] = float(values.mean())
        if strata is not None:
            ends = bootstrap_mean(values, strata, np.random.default_rng((seed, i)))
            scores |= _interval(name, _too_few(len(values), JACKKNIFE_GROUPS), *ends)
    return scores


def _frechet_scores(features: np.ndarray, labels: np.ndarray, real: RealFeatures, slugs: Sequence[str], seed: int) -> Scores:
    """Fréchet distance with its interval and its bias."""
    counts, dimensions = np.bincount(labels, minlength=len(slugs)), features.shape[1]
    selected = real.draw_proportional(counts, seed, 2)
    needed, why = IMAGES_PER_DIMENSION * dimensions, f", {IMAGES_PER_DIMENSION} for each of {dimensions} dimensions,"
    reason = _too_few(len(features), needed, why=why) or _too_few(len(selected), needed, "real image", why)
    if reason:
        return {"frechet_distance": reason, **_interval("frechet", reason), "frechet_bias": reason}
    moments = compute_moments(selected)
    distance = frechet_distance(compute_moments(features), moments)
    groups = jackknife_groups(labels)
    left_out = (compute_moments(features[groups != group]) for group in range(JACKKNIFE_GROUPS))
    half = jackknife_half_width([frechet_distance(each, moments) for each in left_out])
    no_bias = _tissue_shortage(slugs, 2 * counts, (real.counts, "real image"))
    return {
        "frechet_distance": distance,
        **_interval("frechet", "", max(0.0, distance - half), distance + half),
        "frechet_bias": no_bias or frechet_bias(counts, real, seed),
    }


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


def frechet_bias(counts: np.ndarray, real: RealFeatures, seed: int) -> float:
    """Fréchet distance of real images from other real images, which would approach 0 as their number grows.

    A Fréchet distance of that few images contains about this much bias (Chong and Forsyth, CVPR 2020).

    Args:
        counts: images of each tissue to draw without replacement, integers (tissues,), at most half of the real ones; the
            others are drawn in the same proportions.
        real: the real images.
        seed: non-negative seed.
    """
    drawn = np.zeros(len(real.labels), bool)
    drawn[subsample_per_class(real.labels, counts, seed, 3)] = True
    others = RealFeatures(real.features[~drawn], real.labels[~drawn], real.tissues).draw_proportional(counts, seed, 4)
    return frechet_distance(compute_moments(real.features[drawn]), compute_moments(others))


def kernel_distance(features: np.ndarray, labels: np.ndarray, real: RealFeatures) -> tuple[float, float, np.ndarray]:
    """Kernel distance: unbiased squared maximum mean discrepancy of sets with a fixed number of images of each tissue.

    The kernel is (xy / D + 1)^3 (Bińkowski et al., ICLR 2018, section 4). With w_t the share of tissue t in the set, the same
    for the real images, the estimate is the sum over tissues s and t of w_s w_t times the mean kernel of pairs within the set,
    plus that of pairs within the real images, minus twice that of pairs across. Pairs of an image with itself are left out: a
    U-statistic in each tissue. It has mean 0 for equal distributions, so it may be below 0. With one tissue it is the usual
    U-statistic; that of all pairs would be biased downwards, because images drawn by tissue resemble each other less.

    Args:
        features: float64 (N, D), with at least two images of each tissue that occurs.
        labels: tissues, integers (N,).
        real: the real images, with at least two of each of these tissues.

    Returns:
        The distance; half the width of its 95 % interval by the delete-a-group jackknife, which covers the choice of the scored
        and of the real images; and the distance of each tissue alone, float64 (tissues,).
    """
    cells, by_tissue = assign_cells(labels, real.tissues), np.eye(real.tissues)
    within, across = sum_kernel_within(features, cells), sum_kernel(features, cells, real.features, real.cells)
    n, m = cells.sum(axis=0), real.cells.sum(axis=0)
    weights = np.bincount(labels, minlength=real.tissues) / max(len(labels), 1)

    def compare(groups: np.ndarray, real_groups: np.ndarray) -> np.ndarray:
        """Discrepancies (tissues, tissues) of the images of some groups, given as weights 0 or 1 (G,)."""
        own, others = np.kron(by_tissue, groups), np.kron(by_tissue, real_groups)
        a, b = own @ n, others @ m
        # pairs that do not exist have the sum 0
        return (
            own @ within @ own.T / np.maximum(np.outer(a, a) - np.diag(a), 1.0)
            + others @ real.kernel_sums @ others.T / np.maximum(np.outer(b, b) - np.diag(b), 1.0)
            - 2.0 * own @ across @ others.T / np.maximum(np.outer(a, b), 1.0)
        )

    everything, left = np.ones(JACKKNIFE_GROUPS), 1.0 - np.eye(JACKKNIFE_GROUPS)
    discrepancies = compare(everything, everything)
    half = jackknife_half_width(
        [weights @ compare(groups, everything) @ weights for groups in left],
        [weights @ compare(everything, groups) @ weights for groups in left],
    )
    return float(weights @ discrepancies @ weights), half, np.diag(discrepancies)


def sum_kernel(features: np.ndarray, cells: np.ndarray, others: np.ndarray, other_cells: np.ndarray) -> np.ndarray:
    """Sums the kernel (xy / D + 1)^3 over pairs of images by the cells of both.

    Args:
        features: float64 (N, D).
        cells: one-hot (N, C), see `assign_cells`.
        others: float64 (M, D).
        other_cells: one-hot (M, C).

    Returns:
        float64 (C, C).
    """
    from sklearn.metrics.pairwise import polynomial_kernel

    sums = np.zeros((cells.shape[1], other_cells.shape[1]))
    blocks = [[slice(i, i + CHUNK) for i in range(0, len(rows), CHUNK)] for rows in (features, others)]
    for i, j in product(*blocks):
        sums += cells[i].T @ (polynomial_kernel(features[i], others[j]) @ other_cells[j])
    return sums


def sum_kernel_within(features: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Sums the kernel as `sum_kernel` does, over pairs of different images of one set."""
    with_itself = (np.square(features).sum(axis=1) / features.shape[1] + 1.0) ** 3
    return sum_kernel(features, cells, features, cells) - np.diag(with_itself @ cells)


def assign_cells(labels: np.ndarray, tissues: int) -> np.ndarray:
    """Cells of images (N,), one for each tissue and jackknife group, one-hot float64 (N, tissues x G)."""
    cells = np.ravel_multi_index((labels, jackknife_groups(labels)), (tissues, JACKKNIFE_GROUPS))
    return np.eye(tissues * JACKKNIFE_GROUPS)[cells]


def jackknife_groups(labels: np.ndarray) -> np.ndarray:
    """Assigns images to G groups, int64 (N,), whose sizes differ by at most 1, also within each tissue of labels (N,)."""
    assigned = np.empty(len(labels), np.int64)
    assigned[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % JACKKNIFE_GROUPS
    return assigned


def jackknife_half_width(*samples: Sequence[float]) -> float:
    """Half the width of a 95 % interval from G estimates that leave out one group each, for each of some independent samples.

    The variance due to a sample is (G - 1) / G times the sum of squares about the mean of its estimates, and those of several
    samples add up; the factor is that of Student's t distribution with G - 1 degrees of freedom (Kott, Journal of Official
    Statistics 2001).
    """
    from scipy.stats import t

    estimates = np.array(samples)
    count = estimates.shape[1]
    variance = (count - 1) * estimates.var(axis=1).sum()
    return float(t.ppf(0.975, count - 1) * np.sqrt(variance))


def count_balls(features: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the balls around other images that each image lies in.

    With the k-th nearest neighbour as the radius, precision is the share of images in any ball around a real one, recall that
    of real images in any ball around a generated one (Kynkäänniemi et al., NeurIPS 2019), density the mean number of balls
    around real images that an image is in, divided by k, and coverage the share of these balls that hold an image (Naeem et
    al., ICML 2020).

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


def compute_radii(rows: np.ndarray) -> np.ndarray:
    """Distance of each row (N, D), N > k, to its k-th nearest among the others, float64 (N,)."""
    k = NEAREST_NEIGHBOURS
    # each row is its own nearest, at index 0
    return np.concatenate([np.partition(distances, k, axis=1)[:, k] for distances in _iter_distances(rows, rows)])


def _iter_distances(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yields Euclidean distances (n, M) of some rows at a time; of equal rows exactly 0."""
    from sklearn.metrics import pairwise_distances_chunked

    lengths = np.linalg.norm(others, axis=1)
    for distances in pairwise_distances_chunked(rows, others, working_memory=MEBIBYTES):
        distances[distances <= EQUAL * lengths] = 0.0
        yield distances


def _too_few(count: int, needed: int, noun: str = "image", why: str = "") -> str:
    """Returns why a number of images is too small, or an empty string."""
    if count >= needed:
        return ""
    return f"{count} {noun}{'s' if count > 1 else ''}: at least {needed}{why} are needed" if count else f"no {noun}s"


def _tissue_shortage(slugs: Sequence[str], needed: np.ndarray, *sides: tuple[np.ndarray, str]) -> str:
    """Returns which tissue has too few images on which side, or an empty string."""
    for counts, noun in sides:
        for slug, count, minimum in zip(slugs, counts, needed, strict=True):
            if reason := _too_few(count, minimum, noun):
                return f"{slug} has {reason}"
    return ""


def _interval(name: str, undefined: str = "", low: float = 0.0, high: float = 0.0) -> Scores:
    return {f"{name}_low": undefined or low, f"{name}_high": undefined or high}


def _round_scores(scores: Scores) -> dict:
    """Rounds scores, and separates those that are undefined."""
    result: dict = {}
    for name, value in scores.items():
        if isinstance(value, str):
            result.setdefault("undefined", {})[name] = value
        else:
            # adding 0.0 converts a rounded -0.0 to 0.0
            result[name] = round(value, KERNEL_DIGITS if name.startswith("kernel") else DIGITS) + 0.0
    return result
