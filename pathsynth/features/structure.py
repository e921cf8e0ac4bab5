"""Structure features: 45 numbers that describe stain, texture, orientation and nuclei, computed without a trained network.

All features but those of the stain depend little on the amount of stain: they come from the optical density, which is
proportional to it (Beer-Lambert law), divided by its standard deviation in the image. Nuclei also need a least concentration
of haematoxylin. The group "tissue" ignores sharpness and camera noise, which differ between centres and which an autoencoder
changes, because it is computed after a Gaussian blur.
"""

from __future__ import annotations

import numpy as np

from pathsynth.core.rows import Rows, iter_blocks
from pathsynth.data.images import as_batch, as_images

# All images are resized to this side, so that features mean the same in every benchmark and cost the same.
SIDE = 64
# Images at a time: larger arrays do not fit into the processor's cache.
BLOCK = 64
# Optical density of each grey level. Levels below 16 count as 16, because the logarithm amplifies the noise of black pixels.
OPTICAL_DENSITY = np.log(255 / np.maximum(np.arange(256), 16))
# Smallest standard deviation of an image that is not flat: about that of rounding to 256 levels.
FLAT = 1e-3
# Standard deviations in pixels of the blur, of the optical density and of haematoxylin, where small nuclei would merge.
BLUR, NUCLEI_BLUR = 1.5, 1.0
# Sides in pixels of the windows of orientation coherence.
WINDOWS = (8, 16, SIDE)
BANDS = 8
# Least share of a band in the power, so that it has a logarithm.
LEAST_SHARE = 1e-6
# Co-occurrence and binary patterns are computed at half the side: distances and radii in pixels of two.
LEVELS, OFFSETS = 8, (1, 4)
COOCCURRENCE = ("contrast", "homogeneity", "correlation")
RADII = (1, 3)
# Neighbours of a pixel as rows and columns, in the order of a walk around it.
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
# Nuclei: least concentration of haematoxylin in the unit of scikit-image, and side in pixels of the square that one dominates.
LEAST_CONCENTRATION, NUCLEUS = 0.04, 5

_GROUPS = {
    "stain": [f"{stain}_{moment}" for stain in ("haematoxylin", "eosin") for moment in ("mean", "sd", "skewness")],
    "spectrum": [f"power_{band}" for band in range(1, BANDS + 1)],
    "orientation": [f"coherence_{window}" for window in WINDOWS],
    "density": ["density_skewness", "density_kurtosis"],
    "cooccurrence": [f"{score}_{offset}" for score in COOCCURRENCE for offset in OFFSETS],
    # the shares of all codes add up to 1, so the last one, "not uniform", is left out
    "binary_patterns": [f"pattern_{radius}_{code}" for radius in RADII for code in range(len(NEIGHBOURS) + 1)],
    "nuclei": ["nuclei", "nuclei_area"],
}
NAMES: tuple[str, ...] = tuple(name for names in _GROUPS.values() for name in names)
# Columns of each group. "tissue" is all but stain and spectrum.
GROUPS: dict[str, slice] = {group: slice(NAMES.index(names[0]), NAMES.index(names[-1]) + 1) for group, names in _GROUPS.items()}
GROUPS["tissue"] = slice(GROUPS["orientation"].start, len(NAMES))
ORIENTATION, NUCLEI = NAMES.index(f"coherence_{SIDE}"), NAMES.index("nuclei")


def structure_features(images: Rows) -> np.ndarray:
    """Computes the structure features of images, block by block.

    Args:
        images: uint8 (N, H, H, 3); N may be 0.

    Returns:
        float32 (N, 45), finite, one column for each of `NAMES`. Rotation by right angles and mirroring change only rounding.
    """
    parts = [np.zeros((0, len(NAMES)), np.float32)]
    for block in iter_blocks(images, BLOCK):
        pixels = as_images(as_batch(block, "cpu", SIDE))
        haematoxylin, eosin = _separate_stains(pixels)
        # the mean of the channels
        density = np.take(OPTICAL_DENSITY, pixels) @ np.full(3, 1 / 3)
        blurred = _standardize(_blur(density, BLUR))
        half = blurred.reshape(len(blurred), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
        groups = [
            _stain_moments(haematoxylin),
            _stain_moments(eosin),
            _log_power(_standardize(density)),
            _coherence(blurred),
            _density_moments(blurred),
            _cooccurrence(half),
            _binary_patterns(half),
            _nuclei(_blur(haematoxylin, NUCLEI_BLUR)),
        ]
        parts.append(np.concatenate(groups, axis=1, dtype=np.float32))
    return np.concatenate(parts)


def _separate_stains(pixels: np.ndarray) -> np.ndarray:
    """Concentrations of haematoxylin and eosin, float64 (2, n, 64, 64), by colour deconvolution (`skimage.color.rgb2hed`)."""
    from skimage.color import rgb2hed

    concentrations = rgb2hed(pixels / 255)
    return np.ascontiguousarray(np.moveaxis(concentrations[..., :2], 3, 0))


def _blur(fields: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of fields (n, s, s), `sigma` in pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(fields, (0, sigma, sigma))


def _standardize(fields: np.ndarray) -> np.ndarray:
    """Fields (n, s, s) with mean 0 and standard deviation 1; flat ones become 0."""
    centred = fields - fields.mean(axis=(1, 2), keepdims=True)
    deviation = centred.std(axis=(1, 2), keepdims=True)
    return centred / np.where(deviation < FLAT, np.inf, deviation)


def _stain_moments(concentration: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and skewness of fields (n, s, s), (n, 3)."""
    skewness = _density_moments(_standardize(concentration))[:, 0]
    return np.stack([concentration.mean(axis=(1, 2)), concentration.std(axis=(1, 2)), skewness], axis=1)


def _density_moments(standardized: np.ndarray) -> np.ndarray:
    """Skewness and kurtosis of standardized fields (n, s, s), (n, 2)."""
    # cubes as products, because powers of float32 other than 2 are slow
    squares = standardized**2
    return np.stack([(squares * standardized).mean(axis=(1, 2)), (squares**2).mean(axis=(1, 2))], axis=1)


def _log_power(standardized: np.ndarray) -> np.ndarray:
    """Logarithm of the share of each of 8 radial bands in the power spectrum, (n, 8).

    The limits of the bands are a geometric series from 1 to 32 cycles per side, and the last band includes the corners of the
    spectrum. A Hann window keeps the edges of the image from leaking into all bands.
    """
    from scipy.signal.windows import hann

    window = hann(SIDE)
    power = np.abs(np.fft.fft2(standardized * window * window[:, None])) ** 2
    frequencies = np.fft.fftfreq(SIDE, 1 / SIDE)
    limits = np.geomspace(1, SIDE / 2, BANDS + 1)[:-1]
    # band 0 is the constant
    bands = np.digitize(np.hypot(frequencies, frequencies[:, None]), limits).ravel()
    sums = power.reshape(len(power), SIDE**2) @ np.eye(BANDS + 1)[bands, 1:]
    return np.log(np.maximum(sums / np.maximum(sums.sum(axis=1, keepdims=True), FLAT), LEAST_SHARE))


def _coherence(blurred: np.ndarray) -> np.ndarray:
    """Orientation coherence in windows of three sizes, (n, 3) in [0, 1]: 1 for parallel lines, 0 without a direction.

    With the products of gradients summed over a window to the structure tensor J, coherence is the difference of the two
    eigenvalues divided by their sum, sqrt((Jxx - Jyy)^2 + 4 Jxy^2) / (Jxx + Jyy) (Bigun and Granlund, ICCV 1987). The mean
    over the windows is weighted by Jxx + Jyy.
    """
    down, right = np.gradient(blurred, axis=(1, 2))
    tensors = np.stack([right**2 - down**2, 2 * right * down, right**2 + down**2])
    columns = []
    for side in WINDOWS:
        count = SIDE // side
        difference, product, energy = tensors.reshape(3, len(blurred), count, side, count, side).sum(axis=(3, 5))
        columns.append(np.hypot(difference, product).sum(axis=(1, 2)) / np.maximum(energy.sum(axis=(1, 2)), FLAT))
    return np.stack(columns, axis=1)


def _cooccurrence(half: np.ndarray) -> np.ndarray:
    """Scores of grey-level co-occurrence, mean over four angles (Haralick et al., IEEE Trans. SMC 1973), (n, 6)."""
    from skimage.feature import graycomatrix, graycoprops

    # 8 levels from 2 standard deviations below the mean to 2 above it
    levels = np.clip((half + 2) * (LEVELS / 4), 0, LEVELS - 1).astype(np.uint8)
    angles = np.arange(4) * np.pi / 4
    matrices = [graycomatrix(image, OFFSETS, angles, LEVELS, symmetric=True, normed=True).mean(axis=3) for image in levels]
    # graycoprops expects (levels, levels, offsets, angles), and the images take the place of the angles
    stacked = np.stack(matrices, axis=3)
    return np.concatenate([graycoprops(stacked, score).T for score in COOCCURRENCE], axis=1)


def _binary_patterns(half: np.ndarray) -> np.ndarray:
    """Shares of the uniform local binary patterns (Ojala et al., IEEE TPAMI 2002) by radius, (n, 18).

    The 8 neighbours lie on a square instead of a circle, so that nothing is interpolated. Rounding errors would decide which of
    two equal levels is higher, differently in each rotation.
    """
    # 1 / 40 of the standard deviation, so that rounding errors do not make patterns of equal pixels
    levels = np.rint(half * 40).astype(np.int32)
    columns = []
    for radius in RADII:
        side = levels.shape[1] - 2 * radius
        inner = levels[:, radius:-radius, radius:-radius]
        starts = [(radius * (1 + y), radius * (1 + x)) for y, x in NEIGHBOURS]
        higher = np.stack([levels[:, y : y + side, x : x + side] >= inner for y, x in starts])
        changes = (higher != np.roll(higher, 1, axis=0)).sum(axis=0, dtype=np.int8)
        codes = np.where(changes <= 2, higher.sum(axis=0, dtype=np.int8), len(NEIGHBOURS) + 1)
        columns += [(codes == code).mean(axis=(1, 2)) for code in range(len(NEIGHBOURS) + 1)]
    return np.stack(columns, axis=1)


def _nuclei(haematoxylin: np.ndarray) -> np.ndarray:
    """Number of nuclei and their share of the area, (n, 2), from blurred concentrations of haematoxylin.

    Nuclei lie where the concentration is half a standard deviation above the image's mean. Every local maximum there is one, so
    that nuclei that touch each other are not counted as one.
    """
    from scipy.ndimage import label, maximum_filter

    above = haematoxylin - haematoxylin.mean(axis=(1, 2), keepdims=True)
    deviation = haematoxylin.std(axis=(1, 2), keepdims=True)
    inside = (above > np.maximum(deviation, FLAT) / 2) & (haematoxylin > LEAST_CONCENTRATION)
    maxima = inside & (haematoxylin == maximum_filter(haematoxylin, (1, NUCLEUS, NUCLEUS)))
    # adjacent pixels of the same value are one maximum
    counts = [label(image, np.ones((3, 3)))[1] for image in maxima]
    return np.stack([counts, inside.mean(axis=(1, 2))], axis=1)
