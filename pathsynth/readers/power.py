"""How wide the interval of "synthetic taken for real" becomes with how many readers and images: a simulation.

A reader takes an image for real with the probability expit(m + a + b), a ~ N(0, reader_sd²) for the reader and b ~ N(0,
image_sd²) for the image, both on the logit scale: the crossed random effects of a multi-reader multi-case study (Gallas et al.,
Journal of the Optical Society of America A 2007). m is chosen so that the mean over readers and images is the given rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.readers.intervals import draw_weights, share

# Nodes of the quadrature over normal variables.
NODES = 60
RESAMPLES = 1000


def simulate_answers(
    rate: float, reader_sd: float, image_sd: float, n_readers: int, n_images: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Simulates whether each reader takes each image for real.

    Args:
        rate: mean over readers and images, in (0, 1).
        reader_sd, image_sd: standard deviations on the logit scale.
        n_readers, n_images: size of the study.
        rng: source of the draws.

    Returns:
        Answers, float (n_readers, n_images), and each reader's own rate over all images, float (n_readers,).
    """
    from scipy.special import expit

    middle = find_intercept(rate, np.hypot(reader_sd, image_sd))
    readers = middle + rng.normal(0.0, reader_sd, n_readers)
    chances = expit(readers[:, None] + rng.normal(0.0, image_sd, n_images))
    answers = (rng.random(chances.shape) < chances).astype(np.float64)
    return answers, np.array([mean_chance(reader, image_sd) for reader in readers])


def mean_chance(logit: float, sd: float) -> float:
    """Mean of expit(logit + x) over x ~ N(0, sd²), by Gauss-Hermite quadrature."""
    from scipy.special import expit

    nodes, weights = _quadrature()
    return float(expit(logit + sd * nodes) @ weights / weights.sum())


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, cached because every simulated reader needs them."""
    return np.polynomial.hermite_e.hermegauss(NODES)


@cache
def find_intercept(rate: float, sd: float) -> float:
    """Finds the logit whose `mean_chance` is the rate; cached because all simulated studies need it."""
    from scipy.optimize import brentq

    return float(brentq(lambda logit: mean_chance(logit, sd) - rate, -50.0, 50.0))


def simulate_width(
    rate: float, reader_sd: float, image_sd: float, n_readers: int, n_images: int, simulations: int, seed: int = 0
) -> dict[str, Any]:
    """Simulates studies, and evaluates each like answers of real readers.

    Args:
        rate, reader_sd, image_sd, n_readers, n_images: as `simulate_answers`; at least two images, because one has no interval.
        simulations: number of studies.
        seed: non-negative seed.

    Returns:
        readers, images, width (mean width of the 95 % interval) and coverage (share of intervals that hold the rate; for one
        reader that reader's own rate, because the interval covers no others).
    """
    rng = np.random.default_rng([seed, n_readers, n_images])
    strata = np.zeros(n_images, np.int64)
    widths, hits = [], []
    for study in range(simulations):
        answers, own = simulate_answers(rate, reader_sd, image_sd, n_readers, n_images, rng)
        found = share(answers, draw_weights(n_readers, strata, study, RESAMPLES))
        truth = own[0] if n_readers == 1 else rate
        widths.append(found["high"] - found["low"])
        hits.append(found["low"] <= truth <= found["high"])
    return {
        "readers": n_readers,
        "images": n_images,
        "width": round_score(np.mean(widths)),
        "coverage": round_score(np.mean(hits)),
    }


def simulate_power(
    rate: float,
    reader_sd: float,
    image_sd: float,
    readers: Sequence[int],
    images: Sequence[int],
    simulations: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`simulate_width` for all combinations of numbers of readers and of synthetic images, readers first."""
    return [
        simulate_width(rate, reader_sd, image_sd, n_readers, n_images, simulations, seed)
        for n_readers in readers
        for n_images in images
    ]
