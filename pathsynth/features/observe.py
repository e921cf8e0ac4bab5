"""Observations of images: predictions of gate, judge and colour control, features, structure and thumbnails, as .npy files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from pathsynth.classifiers.model import WEIGHTS, Classifier
from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, compute_sha256, read_json, read_npy, write_json, write_npy_chunks
from pathsynth.core.progress import progress_bar
from pathsynth.core.rows import Rows
from pathsynth.data.archives import SPLITS
from pathsynth.data.generated import LabelledImages
from pathsynth.data.images import as_batch, as_images
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.features.colour import (
    ColourControl,
    colour_histograms,
    fit_colour_control,
    load_colour_control,
    save_colour_control,
)
from pathsynth.features.extractors import Extractor, JudgeExtractor
from pathsynth.features.structure import structure_features

CARD, COLOURS = "card.json", "colours.npz"
OBSERVERS = ("gate", "judge", "colour")
ARRAYS = ("features", "structure", "pixels")
# Name of the copies of training images in the folder of the real images.
COPIES = "copies"
# Side of the thumbnails whose pixels are compared: small enough for 90 000 in memory, large enough to recognize copies.
PIXELS = 32
# Images are observed in chunks of about this size, in whole batches of the classifiers.
CHUNK_BYTES = 2**23
BATCH = 128


@dataclass(frozen=True)
class Observers:
    """The gate, the judge (which takes no part in filtering), the colour-only control and the feature extractor."""

    gate: Classifier
    judge: Classifier
    colour: ColourControl
    extractor: Extractor

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Observes images uint8 (n, H, W, 3).

        Returns:
            Probabilities float32 (n, tissues) by observer, features float32 (n, D), structure float32 (n, 45) and pixels
            uint8 (n, 32, 32, 3).
        """
        if isinstance(self.extractor, JudgeExtractor):
            judged, features = self.extractor.predict_with_features(images)
        else:
            judged, features = self.judge.probabilities(images), self.extractor(images)
        probabilities = {"gate": self.gate.probabilities(images), "judge": judged, "colour": self.colour.probabilities(images)}
        pixels = as_images(as_batch(images, "cpu", PIXELS)) if len(images) else np.zeros((0, PIXELS, PIXELS, 3), np.uint8)
        return {**probabilities, "features": features, "structure": structure_features(images), "pixels": pixels}


@dataclass(frozen=True)
class Observed:
    """Observations of N images.

    Attributes:
        labels: true or prompted tissue, int64 (N,).
        probabilities: by observer, float32 (N, tissues), rows sum to 1.
        features: of the extractor, float32 (N, D), mapped from disk.
        structure: `structure_features`, float32 (N, 45), mapped from disk.
        pixels: uint8 (N, 32, 32, 3), mapped from disk.
    """

    labels: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    features: np.ndarray
    structure: np.ndarray
    pixels: np.ndarray

    def predicted(self, observer: str) -> np.ndarray:
        """Predicted tissues, int64 (N,)."""
        return self.probabilities[observer].argmax(axis=1)

    def confidence(self, observer: str) -> np.ndarray:
        """Probabilities of the predicted tissues, float64 (N,)."""
        return self.probabilities[observer].max(axis=1).astype(np.float64)

    def select(self, indices: np.ndarray) -> Observed:
        """The observations of some of the images, in memory."""
        probabilities = {observer: rows[indices] for observer, rows in self.probabilities.items()}
        return Observed(self.labels[indices], probabilities, *(getattr(self, kind)[indices] for kind in ARRAYS))


def observe(folder: Path, name: str, images: Rows, labels: np.ndarray, observers: Observers) -> Observed:
    """Observes images chunk by chunk and writes the observations to NAME_*.npy in `folder`.

    Args:
        folder: output folder.
        name: prefix of the files.
        images: uint8 (N, H, W, 3).
        labels: integers (N,).
        observers: classifiers and feature extractor.

    Raises:
        DataError: a file cannot be written.
        OutOfMemory: a batch does not fit into memory.
    """
    chunk = _chunk_size(images)
    # at least one pass, so that files are also written for a set without images
    starts = range(0, max(1, len(images)), chunk)
    files: dict[str, IO[bytes]] = {}
    with ExitStack() as stack:
        for start in progress_bar(starts, f"observing {name}", hidden=len(starts) < 2):
            for kind, rows in observers.predict(images[start : start + chunk]).items():
                if kind not in files:
                    part = stack.enter_context(atomic_write(_path(folder, name, kind)))
                    files[kind] = stack.enter_context(open(part, "wb"))
                    shape, dtype = (len(images), *rows.shape[1:]), npy.dtype_to_descr(rows.dtype)
                    npy.write_array_header_1_0(files[kind], {"shape": shape, "fortran_order": False, "descr": dtype})
                # not through a memory map, because a full disk would cause a SIGBUS
                files[kind].write(np.ascontiguousarray(rows).data)
    return open_observed(folder, name, labels)


def open_observed(folder: Path, name: str, labels: np.ndarray) -> Observed:
    """Opens the files that `observe` wrote.

    Raises:
        DataError: a file is missing, damaged, or does not have one row per label.
    """
    rows = {kind: read_npy(_path(folder, name, kind)) for kind in (*OBSERVERS, *ARRAYS)}
    for kind, array in rows.items():
        if len(array) != len(labels):
            problem = f"has {len(array)} rows for {len(labels)} images; run the stage observe_real again"
            raise DataError(_path(folder, name, kind), problem)
    probabilities = {observer: np.array(rows[observer]) for observer in OBSERVERS}
    return Observed(np.asarray(labels, np.int64), probabilities, *(rows[kind] for kind in ARRAYS))


def observe_real(
    folder: Path, prepared: Prepared, copies: LabelledImages, observers: Observers, models: Sequence[Path]
) -> None:
    """Observes every real image, and copies of training images; `open_real` opens the files.

    Args:
        folder: output folder.
        prepared: the real images.
        copies: altered copies of training images, which a check for copies should find.
        observers: classifiers and feature extractor.
        models: folders of gate and judge, whose checksums go into the card.

    Raises:
        DataError: a file cannot be read or written.
    """
    save_colour_control(folder / COLOURS, observers.colour)
    for split in SPLITS:
        observe(folder, split, prepared.images(split), prepared.labels_of(split), observers)
    observe(folder, COPIES, copies.images, copies.labels, observers)
    write_npy_chunks(folder / f"{COPIES}_labels.npy", copies.labels.shape, np.dtype(np.int64), [copies.labels])
    write_json(folder / CARD, _describe(prepared, observers.extractor, models))


def fit_control(prepared: Prepared, max_per_tissue: int, seed: int) -> ColourControl:
    """Fits the colour-only control to a subsample of at most `max_per_tissue` training images per tissue."""
    labels, images = prepared.labels_of("train"), prepared.images("train")
    selected = subsample_per_class(labels, np.full(len(prepared.slugs), max_per_tissue), seed)
    chunk = _chunk_size(images)
    histograms = [colour_histograms(images[selected[start : start + chunk]]) for start in range(0, len(selected), chunk)]
    return fit_colour_control(np.concatenate(histograms), labels[selected], len(prepared.slugs))


def open_real(
    folder: Path, prepared: Prepared, extractor: Extractor, models: Sequence[Path]
) -> tuple[ColourControl, dict[str, Observed]]:
    """Opens the colour control, and the observations of the real images by split and of the copies (`COPIES`).

    Raises:
        DataError: a file is missing or damaged, or was made with different data, classifiers or extractor.
    """
    card, expected = read_json(folder / CARD), _describe(prepared, extractor, models)
    if card != expected:
        differing = ", ".join(key for key in expected if card.get(key) != expected[key]) or "keys"
        raise DataError(folder / CARD, f"does not match the current {differing}; run the stage observe_real again")
    colour = load_colour_control(folder / COLOURS, len(prepared.slugs))
    labels = {split: prepared.labels_of(split) for split in SPLITS} | {COPIES: read_npy(folder / f"{COPIES}_labels.npy")}
    return colour, {name: open_observed(folder, name, of_name) for name, of_name in labels.items()}


def _describe(prepared: Prepared, extractor: Extractor, models: Sequence[Path]) -> dict[str, str | int]:
    """Describes what the observations depend on, because features of different networks cannot be compared."""
    gate, judge = (compute_sha256(folder / WEIGHTS) for folder in models)
    data = compute_sha256(prepared.folder / "card.json")
    return {"data": data, "gate": gate, "judge": judge, "extractor": extractor.name, "dimensions": extractor.dimensions}


def _chunk_size(images: Rows) -> int:
    batches = CHUNK_BYTES // max(1, BATCH * int(np.prod(images.shape[1:], dtype=np.int64)))
    return BATCH * max(1, batches)


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}_{kind}.npy"
