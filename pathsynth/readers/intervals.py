"""Bootstrap intervals over readers and images, the two crossed factors of a reader study.

Readers and images are resampled independently, and each answer counts with the product of both weights (the pigeonhole
bootstrap: Owen, Annals of Applied Statistics 2007; McCullagh, Bernoulli 2000). It counts the variance of single answers up to
three times, so its intervals are mildly conservative (Owen and Eckles, Annals of Applied Statistics 2012).

Two corrections for small numbers: of n readers or images n - 1 are drawn, which removes the bias of the variance (Rao and Wu,
Journal of the American Statistical Association 1988), and the percentiles are those of Student's t (Hesterberg, The American
Statistician 2015, "expanded percentile interval").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.evaluation.statistics import RESAMPLES

LEVEL = 0.95


@dataclass(frozen=True)
class Weights:
    """How often each reader and each image counts in B resamples: float64 (B, readers) and (B, images)."""

    readers: np.ndarray
    images: np.ndarray

    def select(self, images: np.ndarray) -> Weights:
        """Weights of some images, by index or mask."""
        return Weights(self.readers, self.images[:, images])


# Function from weights to one value per resample, float64 (B,), NaN where the resample leaves it undefined.
Statistic = Callable[[Weights], np.ndarray]


def draw_weights(n_readers: int, strata: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Weights:
    """Draws the weights of the resamples.

    Strata of one image are drawn together as one stratum: each alone would always count once, and contribute no variance
    (collapsed strata: Cochran, Sampling Techniques, 1977). A single reader always counts once.

    Args:
        n_readers: at least 1.
        strata: integers (N,), which images are drawn together: tissue and origin are fixed by the design.
        seed: non-negative seed.
        resamples: number of resamples.
    """
    rng = np.random.default_rng(seed)
    readers = _draw(np.zeros(n_readers, np.int64), rng, resamples)
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    return Weights(readers, _draw(np.where(sizes[stratum] == 1, -1, stratum), rng, resamples))


def unit_weights(n_readers: int, n_images: int) -> Weights:
    """Weights of the data themselves."""
    return Weights(np.ones((1, n_readers)), np.ones((1, n_images)))


def _draw(strata: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Draws n - 1 of the n units of each stratum, and scales their weights to n."""
    weights = np.ones((resamples, len(strata)))
    for stratum in np.unique(strata):
        units = np.flatnonzero(strata == stratum)
        n = len(units)
        if n > 1:
            weights[:, units] = rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples) * (n / (n - 1))
    return weights


def weighted_share(values: np.ndarray, weights: Weights) -> np.ndarray:
    """Mean of answers (readers, images) in each resample, NaN where it has none.

    Args:
        values: float (R, N), NaN where there is no answer.
        weights: of R readers and N images.

    Returns:
        float64 (B,).
    """
    known = np.isfinite(values)
    total, count = (
        ((weights.readers @ part) * weights.images).sum(axis=1) for part in (np.where(known, values, 0.0), known.astype(float))
    )
    return divide(total, count)


def mean_over_readers(per_reader: np.ndarray, weights: Weights) -> np.ndarray:
    """Mean (B,) over readers of a statistic (B, R) that each reader has in each resample, without undefined ones."""
    known = np.isfinite(per_reader)
    return divide((np.where(known, per_reader, 0.0) * weights.readers).sum(axis=1), (known * weights.readers).sum(axis=1))


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divides, NaN where the divisor is 0."""
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def expanded_interval(values: np.ndarray, clusters: int) -> tuple[float, float] | None:
    """95 % percentile interval with the tails of Student's t.

    Args:
        values: float (B,), one value per resample; NaN are left out.
        clusters: number of independent units, of two factors the smaller number.

    Returns:
        Lower and upper end, or None for fewer than two clusters or without values.
    """
    from scipy.special import ndtr, stdtrit

    values = values[np.isfinite(values)]
    if clusters < 2 or not len(values):
        return None
    tail = float(ndtr(stdtrit(clusters - 1, (1 - LEVEL) / 2)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def count_clusters(n_readers: int, n_images: int) -> int:
    """Number of independent units of the less replicated factor; a single reader is fixed and does not count."""
    return n_images if n_readers == 1 else min(n_readers, n_images)


def estimate(statistic: Statistic, weights: Weights, n_answers: int) -> dict[str, Any]:
    """Value of a statistic with its interval over readers and images, over images only for one reader.

    Args:
        statistic: of the weights.
        weights: of the resamples.
        n_answers: number of answers on which it rests.

    Returns:
        value, low and high, None where undefined, and n_answers.
    """
    n_readers, n_images = weights.readers.shape[1], weights.images.shape[1]
    value = statistic(unit_weights(n_readers, n_images))[0] if n_answers else np.nan
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "n_answers": n_answers}
    ends = expanded_interval(statistic(weights), count_clusters(n_readers, n_images))
    low, high = (None, None) if ends is None else map(round_score, ends)
    return {"value": round_score(value), "low": low, "high": high, "n_answers": n_answers}


def share(values: np.ndarray, weights: Weights) -> dict[str, Any]:
    """Estimates the share of answers (R, N) that are 1, with its interval, see `estimate`."""
    return estimate(lambda drawn: weighted_share(values, drawn), weights, int(np.isfinite(values).sum()))
