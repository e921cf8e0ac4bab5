"""Open-set macro F1: an image that does not look like the tissue of its prompt is wrong, whatever the classifier says.

A classifier assigns every image to a tissue, even noise. The check here asks whether the image lies among the real images of
its tissue, in features that the classifier does not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import check_labels, round_score
from pathsynth.evaluation.copying import validation_units
from pathsynth.evaluation.statistics import bootstrap_counts, f1_scores, percentile_interval

if TYPE_CHECKING:
    from sklearn.covariance import LedoitWolf

# Share of the real validation images that are not rejected.
ACCEPTED = 0.95


@dataclass(frozen=True)
class OpenSet:
    """Distances to the real training images of each tissue, and the limit beyond which an image is rejected.

    Attributes:
        mean: of all training images, float64 (D,).
        deviation: standard deviation of all training images, float64 (D,).
        centres: standardized means of the tissues, float64 (tissues, D).
        covariances: of the standardized features of each tissue around its centre.
        units: median distance of each tissue's validation images; infinite for a tissue that is never rejected.
        limit: largest distance that is not rejected, in these units.
    """

    mean: np.ndarray
    deviation: np.ndarray
    centres: np.ndarray
    covariances: tuple[LedoitWolf, ...]
    units: np.ndarray
    limit: float

    def distances(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Mahalanobis distances of images to a tissue.

        Args:
            features: float (N, D).
            labels: the tissue that each image is compared with, integers (N,).

        Returns:
            float64 (N,), in units of the tissue's median validation image; 0 for a tissue without a unit.
        """
        rows = (features - self.mean) / self.deviation - self.centres[labels]
        distances = np.zeros(len(rows))
        for tissue in np.unique(labels):
            own = labels == tissue
            distances[own] = np.sqrt(self.covariances[tissue].mahalanobis(rows[own]))
        return distances / self.units[labels]

    def rejects(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether each image lies farther from its tissue than the limit, bool (N,); arguments as for `distances`."""
        return self.distances(features, labels) > self.limit


def fit_open_set(
    features: np.ndarray, labels: np.ndarray, val_features: np.ndarray, val_labels: np.ndarray, tissues: int
) -> OpenSet:
    """Fits the distances to training images, and the limit to validation images.

    Features are standardized, and the covariance of each tissue is shrunk (Ledoit and Wolf, Journal of Multivariate Analysis
    2004). A tissue with no more training images than features gets the covariance of all images around their tissues' centres.
    A tissue without training images, without validation images, or whose validation images have a median distance of 0
    rejects no image.

    Args:
        features: of real training images, float (M, D), M >= 1.
        labels: integers (M,) in [0, tissues).
        val_features: of real validation images, float (V, D).
        val_labels: integers (V,) in [0, tissues).
        tissues: number of tissues.
    """
    from sklearn.covariance import LedoitWolf
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.asarray(features, np.float64))
    rows, counts = scaler.transform(features), np.bincount(labels, minlength=tissues)
    centres = np.stack([rows[labels == tissue].sum(axis=0) for tissue in range(tissues)]) / np.maximum(counts, 1)[:, None]
    residuals = rows - centres[labels]
    pooled = LedoitWolf(assume_centered=True).fit(residuals)
    covariances = tuple(
        LedoitWolf(assume_centered=True).fit(residuals[labels == tissue]) if counts[tissue] > rows.shape[1] else pooled
        for tissue in range(tissues)
    )
    fitted = OpenSet(scaler.mean_, scaler.scale_, centres, covariances, np.ones(tissues), np.inf)
    units, _ = validation_units(fitted.distances(val_features, val_labels), val_labels, [""] * tissues)
    fitted = replace(fitted, units=np.where(counts, units, np.inf))
    counted = np.isfinite(fitted.units[val_labels])
    if not counted.any():
        return fitted
    return replace(fitted, limit=float(np.quantile(fitted.distances(val_features, val_labels)[counted], ACCEPTED)))


def open_set_scores(y_true: np.ndarray, y_pred: np.ndarray, rejected: np.ndarray, slugs: Sequence[str], seed: int) -> dict:
    """Macro F1 in which a rejected image is a miss of its tissue and a prediction of none.

    Args:
        y_true: prompted tissues, integers (N,), indices into `slugs`; N >= 1.
        y_pred: predictions, integers (N,), indices into `slugs`.
        rejected: bool (N,), see `OpenSet.rejects`.
        slugs: names of all tissues; one that is neither prompted nor predicted counts as 0.
        seed: non-negative seed of the bootstrap.

    Returns:
        macro_f1, macro_f1_low and macro_f1_high (95 % percentile bootstrap interval, see `bootstrap_counts`), rejected (share
        of images), and per_tissue.{slug}.{f1,rejected}, all in [0, 1]; `rejected` is absent for a tissue without images.

    Raises:
        ValueError: no images, unequal lengths, or a label that is not an index into `slugs`.
    """
    n = len(slugs)
    y_true, y_pred = check_labels(y_true, n, "y_true"), check_labels(y_pred, n, "y_pred")
    if not len(y_true) == len(y_pred) == len(rejected):
        raise ValueError(f"y_true, y_pred and rejected have {len(y_true)}, {len(y_pred)} and {len(rejected)} values")
    # the last column counts rejected images
    outcomes = np.where(rejected, n, y_pred)
    table = np.bincount(y_true * (n + 1) + outcomes, minlength=n * (n + 1)).reshape(n, n + 1)
    f1 = f1_scores(table)
    low, high = percentile_interval(f1_scores(bootstrap_counts(table, np.random.default_rng(seed))).mean(axis=1))
    per_tissue = {slug: {"f1": round_score(f1[i])} for i, slug in enumerate(slugs)}
    for i in np.unique(y_true):
        per_tissue[slugs[i]]["rejected"] = round_score(np.mean(rejected[y_true == i]))
    return {
        "macro_f1": round_score(f1.mean()),
        "macro_f1_low": round_score(low),
        "macro_f1_high": round_score(high),
        "rejected": round_score(np.mean(rejected)),
        "per_tissue": per_tissue,
    }
