"""The colour-only control: a classifier that sees how much of each colour an image has, and nothing of where.

PathMNIST's colours give much of its classes away, and a generator that gets only the colours right would score as much as this.
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
    """Square roots of the shares of pixels in each of 8 x 8 x 8 boxes of RGB.

    Distances between square roots of shares are Hellinger's, in which rare colours count.

    Args:
        images: uint8 (N, H, W, 3).

    Returns:
        float32 (N, 512), each row of length 1.
    """
    steps = images.reshape(len(images), images.shape[1] * images.shape[2], 3) // (256 // LEVELS)
    box = (steps[..., 0].astype(np.int32) * LEVELS + steps[..., 1]) * LEVELS + steps[..., 2]
    box += COLOURS * np.arange(len(images), dtype=np.int32)[:, None]
    counts = np.bincount(box.ravel(), minlength=COLOURS * len(images)).reshape(len(images), COLOURS)
    return np.sqrt(counts / max(1, box.shape[1])).astype(np.float32)


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
        """Class probabilities, float32 (N, tissues), rows sum to 1, for uint8 (N, H, W, 3)."""
        logits = colour_histograms(images) @ self.weights.T + self.bias
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (likely / likely.sum(axis=1, keepdims=True)).astype(np.float32)


def fit_colours(histograms: np.ndarray, labels: np.ndarray, tissues: int) -> ColourControl:
    """Fits the control (`sklearn.linear_model.LogisticRegression`, weak regularisation: C = 10).

    Args:
        histograms: float32 (N, 512) of real training images.
        labels: integers (N,); every one of 0 to tissues - 1 has an image.
        tissues: number of tissues, at least 2.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(histograms, labels)
    # scikit-learn keeps the histograms' number format, in which sums depend on the order
    weights, bias = fitted.coef_.astype(np.float64, order="C"), fitted.intercept_.astype(np.float64)
    if tissues == 2:
        # of two classes scikit-learn keeps the logit of the second alone
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros_like(bias), bias])
    return ColourControl(weights, bias)


def save_colours(path: Path, control: ColourControl) -> None:
    """Writes the control as an .npz archive."""
    write_npz(path, weights=control.weights, bias=control.bias)


def load_colours(path: Path, tissues: int) -> ColourControl:
    """Reads what `save_colours` wrote.

    Raises:
        DataError: if the file is missing, damaged or of another number of tissues.
    """
    arrays = read_npz(path, ["weights", "bias"])
    if arrays["weights"].shape != (tissues, COLOURS) or arrays["bias"].shape != (tissues,):
        raise DataError(path, f"is not a colour control of {tissues} tissues; run the stage observe_real anew")
    return ColourControl(arrays["weights"], arrays["bias"])
