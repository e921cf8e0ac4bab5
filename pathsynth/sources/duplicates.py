"""Duplicates in a data set: equal images, and near copies that were recompressed, resized, retouched or shifted a little.

A flip or rotation makes no difference: all 8 orientations are compared. Near copies are found in two steps. The magnitudes of
low frequencies, which hardly change with a shift, select the most similar image; the correlation of both images over
orientations and shifts decides. Tiles that overlap by less are not searched for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pathsynth.core.progress import progress_bar
from pathsynth.core.rows import iter_blocks
from pathsynth.data.archives import iter_chunks, rows_per_chunk
from pathsynth.data.duplicates import Duplicates
from pathsynth.data.images import VIEWS, rotate_and_mirror

# Side in pixels of the grey thumbnails that are compared. With the magnitudes, 1.5 kB are kept of each image.
SIDE = 32
# Highest frequencies in periods per side, of the comparison and of the search. Up to 8, patterns that differ in their nuclei
# alone correlate by 0.95, up to 12 by 0.82. In the search the higher ones cost time and miss blurred copies.
MAX_FREQUENCY, SEARCHED_FREQUENCY = 12, 8
# Largest shift as a share of the side, and its steps in pixels of a thumbnail.
MAX_SHIFT, STEP = 1 / 16, 0.5
# Least correlation of near copies. Of different images it reaches 0.60 in 1 502 of PathMNIST and 0.82 in 27 000 phantoms; of
# copies with JPEG, blur, half the resolution or a shift by 1/20 it is mostly above 0.95 (docs/scores.md).
NEAR = 0.9
# Least share of an image that its structure covers. A speck of dust on glass covers 0.01, and any two specks correlate.
MIN_EXTENT = 0.02
# Thumbnails at a time, and examples of each kind of pair.
BLOCK, EXAMPLES = 1024, 3

_ROWS, _COLUMNS = np.arange(-MAX_FREQUENCY, MAX_FREQUENCY + 1), np.arange(MAX_FREQUENCY + 1)
_RADIUS = np.hypot(_ROWS[:, None], _COLUMNS)
# How often each column counts, because the transform of a real image leaves out the conjugates left of the first one.
_MULTIPLICITY = np.where(_COLUMNS == 0, 1.0, 2.0)


@dataclass(frozen=True)
class _Descriptors:
    """What is compared of the N images of a split.

    Attributes:
        labels: integers (N,).
        hashes: the same for equal images.
        firsts: row of the first image by hash.
        thumbnails: uint8 (N, SIDE, SIDE).
        magnitudes: float32 (N, D) of length 1.
        comparable: bool (N,), whether an image has enough structure to find near copies.
    """

    labels: np.ndarray
    hashes: list[bytes]
    firsts: dict[bytes, int]
    thumbnails: np.ndarray
    magnitudes: np.ndarray
    comparable: np.ndarray


def count_duplicates(images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> list[Duplicates]:
    """Counts exact and near copies within each split and between each two splits.

    Images are read once, in chunks. Memory grows with their number, and from about 50 000 on time with its square.

    Args:
        images: by split in order, uint8 (N, S, S, 3) or for grey images (N, S, S), of one size S; may be memory maps.
        labels: integers (N,) by split.

    Returns:
        For each split, the counts for each earlier split, then for the split itself.
    """
    descriptors = {split: _compute_descriptors(rows, labels[split], split) for split, rows in images.items()}
    splits = list(images)
    return [_compare(split, source, descriptors) for i, split in enumerate(splits) for source in (*splits[:i], split)]


def _compute_descriptors(images: np.ndarray, labels: np.ndarray, split: str) -> _Descriptors:
    """Hashes the images and computes what is compared of them."""
    hashes: list[bytes] = []
    thumbnails = np.empty((len(images), SIDE, SIDE), np.uint8)
    total = -(-len(images) // rows_per_chunk(images))
    for chunk in progress_bar(iter_chunks(images), f"comparing {split}", total, hidden=total <= 1):
        thumbnails[len(hashes) : len(hashes) + len(chunk)] = _shrink(chunk)
        hashes += _hash_images(chunk)
    firsts: dict[bytes, int] = {}
    for row, digest in enumerate(hashes):
        firsts.setdefault(digest, row)
    spectra = (_compute_spectra(block) for block in iter_blocks(thumbnails, BLOCK))
    magnitudes, extents = zip(*((_compute_magnitudes(each), _compute_extents(each)) for each in spectra), strict=True)
    return _Descriptors(labels, hashes, firsts, thumbnails, np.concatenate(magnitudes), np.concatenate(extents) >= MIN_EXTENT)


def _hash_images(images: np.ndarray) -> list[bytes]:
    """Hashes each image in its canonical orientation, the one with the smallest tuple of quadrant sums."""
    half, axes = max(1, images.shape[1] // 2), tuple(range(1, images.ndim))
    first, last = slice(None, half), slice(-half, None)
    corners = [images[:, rows, columns] for rows in (first, last) for columns in (first, last)]
    sums = np.stack([corner.sum(axis=axes, dtype=np.int64) for corner in corners], axis=1).reshape(-1, 2, 2)
    keys = np.stack([rotate_and_mirror(sums, view).reshape(-1, 4) for view in range(VIEWS)], axis=1).tolist()
    hashes = []
    for image, own in zip(images, keys, strict=True):
        # several orientations of a symmetric image; the smallest hash is the same for all its copies
        views = [view for view in range(VIEWS) if own[view] == min(own)]
        hashes.append(min(_hash_pixels(rotate_and_mirror(image[None], view)) for view in views))
    return hashes


def _hash_pixels(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def _shrink(images: np.ndarray) -> np.ndarray:
    """Resizes images to grey thumbnails. PIL computes with integers, so they are the same on every machine."""
    from PIL import Image

    small = [Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in small])


def _compute_spectra(thumbnails: np.ndarray) -> np.ndarray:
    """Low frequencies of the gradients, complex (n, rows, columns) of length 1, or 0 for constant images.

    Their magnitudes are square roots: otherwise a single gradient or period decides how similar two images are.
    """
    # a Tukey window, which rises over the outer quarters
    edges = np.minimum(np.arange(SIDE) + 0.5, SIDE - np.arange(SIDE) - 0.5) / SIDE
    taper = np.sin(np.pi * np.minimum(2 * edges, 0.5)) ** 2
    window = np.outer(taper, taper)
    means = np.average(thumbnails.reshape(len(thumbnails), -1), axis=1, weights=window.ravel())
    spectra = np.fft.rfft2((thumbnails - means[:, None, None]) * window)[:, _ROWS[:, None], _COLUMNS]
    spectra *= np.where(_RADIUS <= MAX_FREQUENCY, _RADIUS, 0.0)
    # one pixel that differs by one grey level has a magnitude of about 1, rounding errors of constant images far less
    spectra /= np.sqrt(np.maximum(np.abs(spectra), 1e-6))
    lengths = np.sqrt((np.abs(spectra) ** 2 * _MULTIPLICITY).sum(axis=(1, 2), keepdims=True))
    return spectra / np.maximum(lengths, 1e-3)


def _compute_magnitudes(spectra: np.ndarray) -> np.ndarray:
    """Magnitudes float32 (n, D) of length 1, the same for all orientations.

    An orientation exchanges at most four frequencies, whose magnitudes are sorted. A shift changes no magnitude.
    """
    size = np.abs(spectra)
    below, above = size[:, MAX_FREQUENCY::-1], size[:, MAX_FREQUENCY:]
    u, v = np.nonzero(np.triu(_RADIUS[MAX_FREQUENCY:] <= SEARCHED_FREQUENCY))
    groups = np.stack([above[:, u, v], below[:, u, v], above[:, v, u], below[:, v, u]], axis=-1)
    rows = np.sort(groups).reshape(len(size), -1)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _compute_extents(spectra: np.ndarray) -> np.ndarray:
    """Share of each image that its structure covers, (n,): 1 over the kurtosis of the pixels; 0 for constant images."""
    full = np.zeros((len(spectra), SIDE, SIDE // 2 + 1), np.complex128)
    full[:, _ROWS[:, None], _COLUMNS] = spectra
    energy = np.fft.irfft2(full, (SIDE, SIDE)) ** 2
    return energy.mean(axis=(1, 2)) ** 2 / np.maximum((energy**2).mean(axis=(1, 2)), 1e-30)


def _correlate(thumbnails: np.ndarray, others: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Largest correlation over orientations and shifts of pairs of rows (n, 2) of `thumbnails` and `others`, float64 (n,)."""
    shifts = np.arange(-MAX_SHIFT * SIDE, MAX_SHIFT * SIDE + STEP, STEP)
    down, right = (np.exp(2j * np.pi / SIDE * np.outer(shifts, numbers)) for numbers in (_ROWS, _COLUMNS))
    correlations = np.zeros((VIEWS, len(pairs)))
    for start in range(0, len(pairs), BLOCK):
        block = slice(start, start + BLOCK)
        images, conjugates = thumbnails[pairs[block, 0]], np.conj(_compute_spectra(others[pairs[block, 1]])) * _MULTIPLICITY
        for view in range(VIEWS):
            products = _compute_spectra(rotate_and_mirror(images, view)) * conjugates
            correlations[view, block] = (down @ products @ right.T).real.max(axis=(1, 2))
    # without the digits in which machines differ
    return correlations.max(axis=0).round(6)


def _compare(split: str, source: str, descriptors: Mapping[str, _Descriptors]) -> Duplicates:
    """Counts the images of a split that occur in an earlier split, or earlier in the same one."""
    images, others = descriptors[split], descriptors[source]
    rows = np.arange(len(images.hashes))
    equal = np.array([others.firsts.get(digest, -1) for digest in images.hashes], np.int64)
    if split == source:
        equal[equal == rows] = -1
    exact = np.flatnonzero(equal >= 0)
    near = _find_near(images, others, np.flatnonzero((equal < 0) & images.comparable), split == source)
    relabelled = images.labels[exact] != others.labels[equal[exact]]
    examples = np.concatenate([np.stack([exact, equal[exact]], axis=1)[:EXAMPLES], near[:EXAMPLES]])
    return Duplicates(
        split=split,
        source=source,
        images=len(rows),
        exact=len(exact),
        near=len(near),
        relabelled=int(relabelled.sum()),
        examples=examples.tolist(),
    )


def _find_near(images: _Descriptors, others: _Descriptors, queries: np.ndarray, within: bool) -> np.ndarray:
    """Returns pairs of rows (n, 2): a query that is a near copy, and its original.

    Within a split the later row is first, and a group of copies has one pair less than images, because nearest neighbours form
    no cycles.
    """
    from sklearn.neighbors import NearestNeighbors

    # of equal images only the first, so that the pairs are the same on every machine
    references = np.array([row for row in others.firsts.values() if others.comparable[row]], np.int64)
    if len(queries) == 0 or len(references) < 1 + within:
        return np.zeros((0, 2), np.int64)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(others.magnitudes[references])
    # the queries within a split are the references, and none of them finds itself
    found = search.kneighbors(None if within else images.magnitudes[queries], return_distance=False)[:, 0]
    pairs = np.stack([queries, references[found]], axis=1)
    pairs = pairs[_correlate(images.thumbnails, others.thumbnails, pairs) >= NEAR]
    return np.unique(np.sort(pairs)[:, ::-1], axis=0) if within else pairs
