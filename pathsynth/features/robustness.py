"""Robustness of gate and judge to JPEG compression, stain variation and blur of real, labelled images.

A score by a classifier is only as good as the classifier.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from pathsynth.classifiers.metrics import classification_scores
from pathsynth.core.progress import progress_bar
from pathsynth.core.rows import Rows, iter_blocks

Corruption = Callable[[np.ndarray], np.ndarray]

# Channels of scikit-image's haematoxylin-eosin-DAB space.
STAINS = {"haematoxylin": 0, "eosin": 1}
# Bytes of a chunk of images; as float32 they are four times as many.
CHUNK_BYTES = 8 << 20


class SupportsProbabilities(Protocol):
    """A classifier of tissue images."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities float32 (N, tissues), rows sum to 1, of images uint8 (N, H, W, 3)."""


def compress_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Compresses images uint8 (N, H, W, 3) by JPEG at a quality of 1 to 100, with Pillow's default chroma subsampling."""
    from PIL import Image

    result = np.empty_like(images)
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as decoded:
            result[i] = np.asarray(decoded)
    return result


def scale_stain(images: np.ndarray, stain: str, factor: float) -> np.ndarray:
    """Multiplies the concentration of one stain in every pixel.

    Colour deconvolution (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001; `skimage.color.rgb2hed`) gives the
    concentration, the Beer-Lambert law its transmittance. Pixels with a negative concentration stay unchanged.

    Args:
        images: uint8 (N, H, W, 3).
        stain: "haematoxylin" or "eosin".
        factor: of the concentration; 1 changes nothing.

    Returns:
        uint8 (N, H, W, 3).
    """
    from skimage.color import hed2rgb, rgb2hed

    pixels = images.astype(np.float32) / 255
    alone = np.zeros_like(pixels)
    alone[..., STAINS[stain]] = rgb2hed(pixels)[..., STAINS[stain]]
    return _to_uint8(pixels * hed2rgb(alone) ** (factor - 1))


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of images uint8 (N, H, W, 3), `sigma` in 64ths of the side, mirrored at the edges."""
    from scipy.ndimage import gaussian_filter

    width = sigma * images.shape[1] / 64
    return _to_uint8(gaussian_filter(images.astype(np.float32) / 255, (0, width, width, 0)))


# Keys of metrics have no dots, which would separate them.
CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "jpeg": {f"quality_{quality}": partial(compress_jpeg, quality=quality) for quality in (75, 50, 25)},
    "stain": {
        f"{stain}_x{factor}".replace(".", "_"): partial(scale_stain, stain=stain, factor=factor)
        for stain in STAINS
        for factor in (0.75, 1.25)
    },
    "blur": {f"sigma_{sigma}".replace(".", "_"): partial(blur, sigma=sigma) for sigma in (0.5, 1, 2)},
}


def robustness_scores(
    classifiers: Mapping[str, SupportsProbabilities],
    images: Rows,
    labels: np.ndarray,
    slugs: Sequence[str],
    *,
    haematoxylin_eosin: bool = True,
) -> dict:
    """Accuracy and macro F1 of classifiers on real images, clean and corrupted.

    Args:
        classifiers: by name, such as gate and judge.
        images: uint8 (N, H, W, 3), read in chunks; N >= 1.
        labels: integers (N,), indices into `slugs`.
        slugs: names of all tissues, in the order of the classifiers' columns.
        haematoxylin_eosin: whether the images have this staining, the only one that can be deconvolved.

    Returns:
        n_images, and for each classifier `clean` and every kind and name of `CORRUPTIONS` with accuracy and macro_f1. For grey
        images or a different staining, `stain` is `undefined` with the reason.

    Raises:
        ValueError: no images, or labels that are not indices into `slugs`.
    """
    labels = np.asarray(labels)
    size = max(1, CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    reason = "" if haematoxylin_eosin else "not stained with haematoxylin and eosin"
    if all((chunk == chunk[..., :1]).all() for chunk in iter_blocks(images, size)):
        reason = "grey images have no stain"
    kinds = {kind: cases for kind, cases in CORRUPTIONS.items() if kind != "stain" or not reason}
    predicted = _predict(classifiers, images, size, {"clean": {"": _identity}, **kinds})
    result: dict = {"n_images": len(labels)}
    for name in classifiers:
        scores = {key: _score(labels, y_pred, slugs) for key, y_pred in predicted[name].items()}
        result[name] = {"clean": scores["clean", ""]}
        result[name] |= {kind: {case: scores[kind, case] for case in cases} for kind, cases in kinds.items()}
        if reason:
            result[name]["stain"] = {"undefined": reason}
    return result


def _predict(
    classifiers: Mapping[str, SupportsProbabilities], images: Rows, size: int, kinds: Mapping[str, Mapping[str, Corruption]]
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Predicted tissues int64 (N,) by classifier and by kind and name of the corruption."""
    parts: dict[str, dict[tuple[str, str], list[np.ndarray]]] = {
        name: {(kind, case): [np.zeros(0, np.int64)] for kind, cases in kinds.items() for case in cases} for name in classifiers
    }
    total = -(-len(images) // size)
    for chunk in progress_bar(iter_blocks(images, size), "corrupting test images", total, hidden=total <= 1):
        for kind, cases in kinds.items():
            for case, corrupt in cases.items():
                corrupted = corrupt(chunk)
                for name, classifier in classifiers.items():
                    parts[name][kind, case].append(classifier.probabilities(corrupted).argmax(axis=1))
    return {name: {key: np.concatenate(chunks) for key, chunks in cases.items()} for name, cases in parts.items()}


def _score(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str]) -> dict[str, float]:
    scores = classification_scores(y_true, y_pred, slugs)
    return {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}


def _identity(images: np.ndarray) -> np.ndarray:
    return images


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
