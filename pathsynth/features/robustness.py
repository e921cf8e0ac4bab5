"""How gate and judge stand up to images that are worse than those they learnt from: compressed, stained otherwise, blurred.

A score by a classifier is worth as much as the classifier; these are real, labelled images, so what is lost is its own doing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from pathsynth.classifiers.metrics import classification_scores
from pathsynth.core.progress import bar
from pathsynth.core.rows import Rows, blocks

Corruption = Callable[[np.ndarray], np.ndarray]

# Columns of scikit-image's haematoxylin-eosin-DAB space.
STAINS = {"haematoxylin": 0, "eosin": 1}
# Bytes of a piece; as floats, of which some are held at a time, it is four times as many.
PIECE = 8 << 20


class SupportsProbabilities(Protocol):
    """A classifier of tissue images."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (N, tissues), rows sum to 1, for uint8 (N, H, W, 3)."""


def compressed(images: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG at a quality of 1 to 100 and back, with Pillow's chroma subsampling; uint8 (N, H, W, 3) in and out."""
    from PIL import Image

    found = np.empty_like(images)
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as read:
            found[i] = np.asarray(read)
    return found


def restained(images: np.ndarray, stain: str, factor: float) -> np.ndarray:
    """Multiplies the dose of one stain in every pixel and leaves the rest of its colour.

    Colour deconvolution (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001; `skimage.color.rgb2hed`) says how much of the
    stain there is, and the law of Beer and Lambert what light that lets through. There is no negative dose: pixels that show
    less than none of the stain stay as they are.

    Args:
        images: uint8 (N, H, W, 3).
        stain: "haematoxylin" or "eosin".
        factor: on the dose; 1 changes nothing.

    Returns:
        uint8 (N, H, W, 3).
    """
    from skimage.color import hed2rgb, rgb2hed

    pixels = images.astype(np.float32) / 255
    alone = np.zeros_like(pixels)
    alone[..., STAINS[stain]] = rgb2hed(pixels)[..., STAINS[stain]]
    return _as_bytes(pixels * hed2rgb(alone) ** (factor - 1))


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation in 64ths of the side, mirrored at the edges; uint8 (N, H, W, 3) in and out."""
    from scipy.ndimage import gaussian_filter

    width = sigma * images.shape[1] / 64
    return _as_bytes(gaussian_filter(images.astype(np.float32) / 255, (0, width, width, 0)))


# Keys of metrics have no dots, which would part them.
CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "jpeg": {f"quality_{quality}": partial(compressed, quality=quality) for quality in (75, 50, 25)},
    "stain": {
        f"{stain}_x{factor}".replace(".", "_"): partial(restained, stain=stain, factor=factor)
        for stain in STAINS
        for factor in (0.75, 1.25)
    },
    "blur": {f"sigma_{sigma}".replace(".", "_"): partial(blurred, sigma=sigma) for sigma in (0.5, 1, 2)},
}


def robustness_scores(
    classifiers: Mapping[str, SupportsProbabilities],
    images: Rows,
    labels: np.ndarray,
    slugs: Sequence[str],
    *,
    haematoxylin_eosin: bool = True,
    piece: int = PIECE,
) -> dict:
    """Accuracy and macro F1 of classifiers on real images, as they are and corrupted.

    Args:
        classifiers: by name, such as gate and judge.
        images: uint8 (N, H, W, 3), read piece by piece.
        labels: integers (N,), indices into `slugs`.
        slugs: names of all tissues, in the order of the classifiers' columns.
        haematoxylin_eosin: whether they are stained so; other dyes cannot be taken apart by what is known of these two.
        piece: bytes of images to look at at a time.

    Returns:
        n_images, and for each classifier `clean` and every kind and name of `CORRUPTIONS` with accuracy and macro_f1. Of images
        that are grey or stained otherwise `stain` is `undefined` with the reason.

    Raises:
        ValueError: no images, or labels that are no indices into `slugs`.
    """
    labels = np.asarray(labels)
    size = max(1, piece // max(1, int(np.prod(images.shape[1:]))))
    unstained = "" if haematoxylin_eosin else "not stained by haematoxylin and eosin"
    if all((block == block[..., :1]).all() for block in blocks(images, size)):
        unstained = "grey images have no stain"
    kinds = {kind: cases for kind, cases in CORRUPTIONS.items() if kind != "stain" or not unstained}
    predicted = _predictions(classifiers, images, size, {"clean": {"": _unchanged}, **kinds})
    found: dict = {"n_images": len(labels)}
    for name in classifiers:
        scores = {key: _scored(labels, seen, slugs) for key, seen in predicted[name].items()}
        found[name] = {"clean": scores["clean", ""]}
        found[name] |= {kind: {case: scores[kind, case] for case in cases} for kind, cases in kinds.items()}
        if unstained:
            found[name]["stain"] = {"undefined": unstained}
    return found


def _predictions(
    classifiers: Mapping[str, SupportsProbabilities], images: Rows, size: int, kinds: Mapping[str, Mapping[str, Corruption]]
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """The tissues int64 (N,) that each classifier sees, by classifier and by kind and name of the corruption."""
    none = np.zeros(0, np.int64)
    seen = {name: {(kind, case): [none] for kind, cases in kinds.items() for case in cases} for name in classifiers}
    total = -(-len(images) // size)
    for block in bar(blocks(images, size), "corrupting test images", total, hidden=total <= 1):
        for kind, cases in kinds.items():
            for case, corrupt in cases.items():
                changed = corrupt(block)
                for name, classifier in classifiers.items():
                    seen[name][kind, case].append(classifier.probabilities(changed).argmax(axis=1))
    return {name: {key: np.concatenate(parts) for key, parts in cases.items()} for name, cases in seen.items()}


def _scored(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str]) -> dict[str, float]:
    scores = classification_scores(y_true, y_pred, slugs)
    return {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}


def _unchanged(images: np.ndarray) -> np.ndarray:
    return images


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
