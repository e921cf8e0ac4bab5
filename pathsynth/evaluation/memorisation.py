"""The memorisation gap: whether a model denoises its training images better than unseen images of the same tissue.

A membership inference attack that thresholds the denoising loss (Carlini et al., Extracting Training Data from Diffusion
Models, 2023, section 5; Matsumoto et al., Membership Inference Attacks against Diffusion Models, 2023). Unlike the copy check,
it needs no generated images.
"""

from __future__ import annotations

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.data.sampling import subsample_per_class
from pathsynth.evaluation.statistics import RESAMPLES, bootstrap_counts, percentile_interval

IMAGES_PER_TISSUE = 25
TIMESTEPS = 2


def select_images(train_labels: np.ndarray, val_labels: np.ndarray, n_tissues: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws equally many training and validation images of each tissue, at most IMAGES_PER_TISSUE.

    Args:
        train_labels: integers (N,) in [0, n_tissues).
        val_labels: integers (M,) in [0, n_tissues).
        n_tissues: number of tissues.
        seed: non-negative seed of the subsample.

    Returns:
        Sorted indices into the training and the validation images, int64 (n,) each.
    """
    available = [np.bincount(labels, minlength=n_tissues) for labels in (train_labels, val_labels)]
    counts = np.minimum(np.minimum(*available), IMAGES_PER_TISSUE)
    return subsample_per_class(train_labels, counts, seed), subsample_per_class(val_labels, counts, seed)


def memorisation_scores(
    train_losses: np.ndarray, val_losses: np.ndarray, train_labels: np.ndarray, val_labels: np.ndarray, seed: int
) -> dict:
    """Area under the ROC curve of a threshold on the loss, averaged over the tissues that have images of both splits.

    Within a tissue it is the probability that a training image has a lower loss than a validation image, ties counted half: the
    Mann-Whitney statistic. The interval is a bootstrap of both splits within each tissue.

    Args:
        train_losses: float (N,).
        val_losses: float (M,).
        train_labels: tissues, integers (N,).
        val_labels: tissues, integers (M,).
        seed: non-negative seed of the resampling.

    Returns:
        auc, low and high in [0, 1], where 0.5 is no gap; train_loss and val_loss, the mean losses.

    Raises:
        ValueError: no tissue has images of both splits.
    """
    tissues = np.intersect1d(train_labels, val_labels)
    if not len(tissues):
        raise ValueError("no tissue has both training and validation images")
    rng, auc, resampled = np.random.default_rng(seed), 0.0, np.zeros(RESAMPLES)
    for tissue in tissues:
        train, val = train_losses[train_labels == tissue, None], val_losses[val_labels == tissue]
        wins = (train < val) + 0.5 * (train == val)
        auc += wins.mean()
        # how often each image is drawn
        drawn_train, drawn_val = (bootstrap_counts(np.ones((1, n), np.int64), rng)[:, 0] for n in wins.shape)
        resampled += ((drawn_train @ wins) * drawn_val).sum(axis=1) / wins.size
    low, high = percentile_interval(resampled / len(tissues))
    return {
        "auc": round_score(auc / len(tissues)),
        "low": round_score(low),
        "high": round_score(high),
        "train_loss": round_score(train_losses.mean()),
        "val_loss": round_score(val_losses.mean()),
    }
