"""A stand-in for the gate that accepts about half of the images on any machine, which a barely trained one does not promise."""

from __future__ import annotations

import numpy as np

from pathsynth.data.labels import SLUGS


class ParityGate:
    """Predicts mucus or debris by the sum of the pixels."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        sums = images.sum(axis=(1, 2, 3), dtype=np.int64)
        result = np.zeros((len(images), len(SLUGS)), np.float32)
        labels = np.where(sums % 2, SLUGS.index("mucus"), SLUGS.index("debris"))
        result[np.arange(len(images)), labels] = 0.5 + sums % 1000 / 2000
        return result
