"""The colour-only control: a classifier that sees the colour histogram of an image and nothing else.

In PathMNIST colour alone predicts many classes; a generator that reproduces only the colours would score as high as this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import read_npz, write_npz

LEVELS = 8
COLOURS = LEVELS**3


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Square roots of the shares of pixels in each of 8 x 8 x 8 bins of RGB.

    Euclidean distances of such square roots are Hellinger distances, in which rare colours count.

    Args:
        images: uint8 (N, H, W, 3).

    Returns:
        float32 (N, 512), each row of length 1.
    """
    levels = images.reshape(len(images), images.shape[1] * images.shape[2], 3) // (256 // LEVELS)
    bins = (levels[..., 0].astype(np.int32) * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    bins += COLOURS * np.arange(len(images), dtype=np.int32)[:, None]
    counts = np.bincount(bins.ravel(), minlength=COLOURS * len(images)).reshape(len(images), COLOURS)
    return np.sqrt(counts / max(1, bins.shape[1])).astype(np.float32)


@dataclass(frozen=True)
class ColourControl:
    """Multinomial logistic regression on colour histograms.

    Attributes:
        weights: float64 (tissues, 512).
        bias: float64 (tissues,).
    """

    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities float32 (N, tissues), rows sum to 1, of images uint8 (N, H, W, 3)."""
        logits = colour_histograms(images) @ self.weights.T + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def fit_colour_control(histograms: np.ndarray, labels: np.ndarray, tissues: int) -> ColourControl:
    """Fits the control (`sklearn.linear_model.LogisticRegression`, weak regularization: C = 10).

    Args:
        histograms: float32 (N, 512) of real training images.
        labels: integers (N,); every tissue has an image.
        tissues: number of tissues, at least 2.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(histograms, labels)
    # scikit-learn keeps float32, in which the rounding of sums depends on their order
    weights, bias = fitted.coef_.astype(np.float64, order="C"), fitted.intercept_.astype(np.float64)
    if tissues == 2:
        # for two classes scikit-learn stores only the logit of the second
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros_like(bias), bias])
    return ColourControl(weights, bias)


def save_colour_control(path: Path, control: ColourControl) -> None:
    """Writes the control as an .npz archive."""
    write_npz(path, weights=control.weights, bias=control.bias)


def load_colour_control(path: Path, tissues: int) -> ColourControl:
    """Reads the file that `save_colour_control` wrote.

    Raises:
        DataError: the file is missing, damaged, or has a different number of tissues.
    """
    arrays = read_npz(path, ["weights", "bias"])
    if arrays["weights"].shape != (tissues, COLOURS) or arrays["bias"].shape != (tissues,):
        raise DataError(path, f"is not a colour control of {tissues} tissues; run the stage observe_real again")
    return ColourControl(arrays["weights"], arrays["bias"])
