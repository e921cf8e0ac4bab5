"""Scores of structure: distances of single features and of the spread of colour, and whether a classifier sees a difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.data.sampling import subsample_per_class

FOLDS = 5
# Images of each side that a classifier can be trained and tested with.
MIN_IMAGES = 4 * FOLDS


def distribution_distances(
    values: np.ndarray, labels: np.ndarray, real_values: np.ndarray, real_labels: np.ndarray, slugs: Sequence[str]
) -> dict:
    """Wasserstein-1 distances between the distributions of a feature in generated and in real images.

    Two samples of the same distribution also differ. `expected` is the mean distance of n new real images from the m given
    ones: sqrt(2 / pi (1 / n + 1 / m)) times the integral of sqrt(F (1 - F)), where F is the distribution of the m (del Barrio,
    Giné and Matrán, Annals of Probability 1999).

    Args:
        values: of generated images, float (N,).
        labels: integers (N,), indices into `slugs`.
        real_values: of real images, float (M,).
        real_labels: integers (M,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        distance and expected, means over tissues, and per_tissue.{slug} with distance, expected, and the means `generated` and
        `real`. Distances are in standard deviations of the tissue's real images, or of all real images where that is 0. Tissues
        without generated or without real images are absent, and without any tissue so are the means.
    """
    from scipy.stats import wasserstein_distance

    values, real_values = np.asarray(values, np.float64), np.asarray(real_values, np.float64)
    per_tissue = {}
    for i, slug in enumerate(slugs):
        own, real = values[labels == i], real_values[real_labels == i]
        if len(own) and len(real):
            # a feature that is the same in all real images has no unit
            unit = real.std() or real_values.std() or 1.0
            per_tissue[slug] = {
                "generated": own.mean(),
                "real": real.mean(),
                "distance": wasserstein_distance(own, real) / unit,
                "expected": _expected_distance(real, len(own)) / unit,
            }
    return _summarize(per_tissue, ("distance", "expected"))


def colour_spread(
    pixels: np.ndarray, labels: np.ndarray, real_pixels: np.ndarray, real_labels: np.ndarray, slugs: Sequence[str]
) -> dict:
    """Compares how much the mean colour varies between images of the same tissue.

    The spread is the standard deviation of the images' mean colour, root mean square over red, green and blue, in grey levels
    from 0 to 255. If a generator has learned one stain per tissue, it is smaller than in the data set.

    Args:
        pixels: of generated images, uint8 (N, H, W, 3).
        labels: integers (N,), indices into `slugs`.
        real_pixels: of real images, uint8 (M, H, W, 3).
        real_labels: integers (M,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        distance, the mean over tissues, and per_tissue.{slug} with the spreads `generated` and `real`, and distance, their
        difference in grey levels, negative where generated images vary less. Tissues with fewer than two generated or real
        images are absent, and without any tissue so is the mean.
    """
    colours, real_colours = pixels.mean(axis=(1, 2)), real_pixels.mean(axis=(1, 2))
    per_tissue = {}
    for i, slug in enumerate(slugs):
        own, real = colours[labels == i], real_colours[real_labels == i]
        if len(own) > 1 and len(real) > 1:
            generated_spread, real_spread = (np.sqrt(rows.var(axis=0, ddof=1).mean()) for rows in (own, real))
            difference = generated_spread - real_spread
            per_tissue[slug] = {"generated": generated_spread, "real": real_spread, "distance": difference}
    return _summarize(per_tissue, ("distance",))


def two_sample_auc(
    features: np.ndarray, labels: np.ndarray, real_features: np.ndarray, real_labels: np.ndarray, seed: int
) -> dict:
    """Area under the ROC curve of a classifier that tells generated from real images (Lopez-Paz and Oquab, ICLR 2017).

    A logistic regression (`sklearn.linear_model.LogisticRegression`) on standardized features and indicators of the tissue,
    with 5-fold cross-validation. Every fold has the same number of images of each tissue from both sides: otherwise the
    classifier would learn which tissue happens to be more frequent on one side of the training images, and that one is less
    frequent there in the test images.

    The interval is that of Hanley and McNeil (Radiology 1982), widened because the folds share training images: the variance is
    that of a fold times 1 / 5 + 1 / 4 (Nadeau and Bengio, Machine Learning 2003).

    Args:
        features: of generated images, float (N, D).
        labels: integers (N,), at least 0.
        real_features: of real images, float (M, D).
        real_labels: integers (M,), at least 0.
        seed: non-negative seed of the subsample and the folds.

    Returns:
        auc, low and high (95 % interval) in [0, 1]: 0.5 if the classifier cannot tell the two apart, 1 if it always can. With
        fewer than 20 images of each side, `undefined` with the reason.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    tissues = 1 + max(np.max(labels, initial=-1), np.max(real_labels, initial=-1))
    counts = np.minimum(np.bincount(labels, minlength=tissues), np.bincount(real_labels, minlength=tissues))
    n = int(counts.sum())
    if n < MIN_IMAGES:
        return {"undefined": f"images with a real image of the same tissue: {n}, at least {MIN_IMAGES} are needed"}
    # both sides tissue by tissue, so that rows i and n + i have the same tissue and fold
    rows = [
        side[_draw_by_tissue(side_labels, counts, (seed, i))]
        for i, (side, side_labels) in enumerate(((features, labels), (real_features, real_labels)))
    ]
    indicators = np.eye(tissues)[np.repeat(np.arange(tissues), counts)]
    x, y = np.hstack([np.concatenate(rows), np.tile(indicators, (2, 1))]), np.repeat([1, 0], n)
    folds = PredefinedSplit(np.tile(np.arange(n) % FOLDS, 2))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    auc = float(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="decision_function")))
    # a fold has a fifth of the images, so its variance is five times that of all
    half_width = 1.96 * np.sqrt((1 / FOLDS + 1 / (FOLDS - 1)) * FOLDS * _auc_variance(auc, n))
    low, high = np.clip([auc - half_width, auc + half_width], 0.0, 1.0)
    return {"auc": round_score(auc), "low": round_score(low), "high": round_score(high)}


def _expected_distance(real: np.ndarray, n: int) -> float:
    """Mean Wasserstein-1 distance between n new images and the real ones (m,), if both have the same distribution."""
    below = np.arange(1, len(real)) / len(real)
    integral = np.sqrt(below * (1 - below)) @ np.diff(np.sort(real))
    return float(np.sqrt(2 / np.pi * (1 / n + 1 / len(real))) * integral)


def _summarize(per_tissue: dict[str, dict], averaged: Sequence[str]) -> dict:
    """Rounds the scores of the tissues and adds the means of those named in `averaged`."""
    means = {name: round_score(np.mean([scores[name] for scores in per_tissue.values()])) for name in averaged if per_tissue}
    rounded = {slug: {name: round_score(value) for name, value in scores.items()} for slug, scores in per_tissue.items()}
    return {**means, "per_tissue": rounded}


def _draw_by_tissue(labels: np.ndarray, counts: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """Indices (n,) of `counts` (tissues,) images of each tissue, sorted by tissue, in random order within it."""
    drawn = np.random.default_rng(seed).permutation(subsample_per_class(labels, counts, *seed))
    return drawn[np.argsort(labels[drawn], kind="stable")]


def _auc_variance(auc: float, n: int) -> float:
    """Variance of the area under the ROC curve of n images of each side (Hanley and McNeil 1982, equation 2)."""
    first, second = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    return (auc * (1 - auc) + (n - 1) * (first + second)) / n**2
