"""Stains of two centres, which convert doses of haematoxylin, eosin and dirt to colours.

Beer-Lambert law, as in Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Transmission of one dose of dirt, a neutral brown that neither stain produces.
DIRT = (0.45, 0.42, 0.38)

Range = tuple[float, float]


@dataclass(frozen=True)
class Stain:
    """Stain and optics of one slide.

    Attributes:
        haematoxylin: RGB in (0, 1] that one dose of haematoxylin lets through.
        eosin: RGB in (0, 1] that one dose of eosin lets through.
        glass: RGB in (0, 1] of the empty slide, lamp and white balance included.
        thickness: factor on every dose.
        blur: standard deviation of the scanner's blur, in 64ths of the image's side.
    """

    haematoxylin: np.ndarray
    eosin: np.ndarray
    glass: np.ndarray
    thickness: float
    blur: float

    def develop(self, doses: np.ndarray) -> np.ndarray:
        """Converts doses of haematoxylin, eosin and dirt, float (h, w, 3), to RGB, float32 (h, w, 3) in [0, 1]."""
        absorbance = -np.log(np.stack([self.haematoxylin, self.eosin, DIRT])).astype(np.float32)
        return self.glass.astype(np.float32) * np.exp(-self.thickness * (doses @ absorbance))


@dataclass(frozen=True)
class StainRange:
    """Distribution of the stains of one centre: each number of a `Stain` is uniform between its bounds.

    Attributes:
        haematoxylin, eosin: bounds of the red, green and blue that one dose lets through.
        brightness: bounds of the lamp's brightness, common to red, green and blue.
        tint: bounds of the factors on the brightness of red, green and blue.
        thickness, blur: bounds of the fields of `Stain`.
    """

    haematoxylin: tuple[Range, Range, Range]
    eosin: tuple[Range, Range, Range]
    brightness: Range
    tint: tuple[Range, Range, Range]
    thickness: Range
    blur: Range

    def sample(self, rng: np.random.Generator) -> Stain:
        """Draws one stain, with the same number of random draws at every centre, so that the structure stays the same."""
        return Stain(
            haematoxylin=_uniform(rng, self.haematoxylin),
            eosin=_uniform(rng, self.eosin),
            glass=np.minimum(rng.uniform(*self.brightness) * _uniform(rng, self.tint), 1.0),
            thickness=rng.uniform(*self.thickness),
            blur=rng.uniform(*self.blur),
        )


CENTRES = {
    "a": StainRange(
        haematoxylin=((0.27, 0.42), (0.14, 0.28), (0.46, 0.62)),
        eosin=((0.88, 0.98), (0.40, 0.60), (0.60, 0.82)),
        brightness=(0.85, 1.0),
        tint=((0.96, 1.02), (0.93, 1.01), (0.96, 1.02)),
        thickness=(0.7, 1.3),
        blur=(0.0, 0.3),
    ),
    "b": StainRange(
        haematoxylin=((0.22, 0.36), (0.18, 0.31), (0.42, 0.57)),
        eosin=((0.88, 0.98), (0.39, 0.55), (0.49, 0.66)),
        brightness=(0.85, 0.99),
        tint=((0.97, 1.02), (0.93, 1.01), (0.89, 0.97)),
        thickness=(0.8, 1.4),
        blur=(0.6, 0.8),
    ),
}


def _uniform(rng: np.random.Generator, bounds: tuple[Range, ...]) -> np.ndarray:
    low, high = np.transpose(bounds)
    return rng.uniform(low, high)
