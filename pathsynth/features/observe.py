"""What gate, judge, colour control and feature extractor make of a set of images, looked at once and kept as rows on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pathsynth.classifiers.model import Classifier
from pathsynth.core.errors import DataError
from pathsynth.core.io import NpyWriter, atomic_write, read_json, sha256_of, write_json
from pathsynth.core.progress import bar
from pathsynth.core.rows import RowFile, Rows
from pathsynth.data.archives import SPLITS
from pathsynth.data.images import as_batch, as_images
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.features.colour import ColourControl, colour_histograms, fit_colours, load_colours, save_colours
from pathsynth.features.extractors import Extractor, JudgeExtractor

CARD, COLOURS = "card.json", "colours.npz"
OBSERVERS = ("gate", "judge", "colour")
# Side of the pictures in which pixels are compared: small enough for 90 000 of them, fine enough for a copy to show.
PIXELS = 32
# Images in memory at a time take so many bytes, and are whole batches of the classifiers.
PIECE_BYTES = 2**23
BATCH = 128


@dataclass(frozen=True)
class Observers:
    """Who looks at images: the classifier that filters, the one that does not, the colour-only control, the extractor."""

    gate: Classifier
    judge: Classifier
    colour: ColourControl
    extractor: Extractor

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities float32 (n, tissues) by each observer, features float32 (n, D) and pixels uint8 (n, 32, 32, 3)."""
        if isinstance(self.extractor, JudgeExtractor):
            judged, features = self.extractor.looks(images)
        else:
            judged, features = self.judge.probabilities(images), self.extractor(images)
        answers = {"gate": self.gate.probabilities(images), "judge": judged, "colour": self.colour.probabilities(images)}
        small = as_images(as_batch(images, "cpu", PIXELS)) if len(images) else np.zeros((0, PIXELS, PIXELS, 3), np.uint8)
        return {**answers, "features": features, "pixels": small}


@dataclass(frozen=True)
class Observed:
    """A set of N images as it was seen.

    Attributes:
        labels: true or prompted tissue, int64 (N,).
        probabilities: by observer, float32 (N, tissues), rows sum to 1.
        features: float32 (N, D).
        pixels: uint8 (N, 32, 32, 3).
    """

    labels: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    features: Rows
    pixels: Rows

    def predicted(self, observer: str) -> np.ndarray:
        """The tissue that an observer sees in each image, int64 (N,)."""
        return self.probabilities[observer].argmax(axis=1)

    def confidence(self, observer: str) -> np.ndarray:
        """How sure the observer is of it, float64 (N,) in [0, 1]."""
        return self.probabilities[observer].max(axis=1).astype(np.float64)


def observe(folder: Path, name: str, images: Rows, labels: np.ndarray, observers: Observers) -> Observed:
    """Looks at every image once, some at a time, and writes what was seen to NAME_*.npy in `folder`.

    Args:
        folder: where the files go.
        name: begins their names.
        images: uint8 (N, H, W, 3).
        labels: integers (N,).
        observers: who looks.

    Raises:
        DataError: a file cannot be written.
        MemoryFault: a batch does not fit into memory.
    """
    count = len(images)
    with ExitStack() as stack:
        writers: dict[str, NpyWriter] = {}
        # one pass even over no images, so that every file is written
        piece = _piece(images)
        starts = range(0, max(1, count), piece)
        for start in bar(starts, f"looking at {name}", hidden=len(starts) < 2):
            for kind, rows in observers.predict(images[start : start + piece]).items():
                if kind not in writers:
                    part = stack.enter_context(atomic_write(_path(folder, name, kind)))
                    writers[kind] = stack.enter_context(NpyWriter(part, (count, *rows.shape[1:]), rows.dtype))
                writers[kind].add(rows)
    return open_observed(folder, name, labels)


def open_observed(folder: Path, name: str, labels: np.ndarray) -> Observed:
    """Opens what `observe` wrote.

    Raises:
        DataError: a file is missing, damaged or of another number of images.
    """
    rows = {kind: RowFile(_path(folder, name, kind)) for kind in (*OBSERVERS, "features", "pixels")}
    for kind, found in rows.items():
        if len(found) != len(labels):
            problem = f"{len(found)} rows for {len(labels)} images; run the stage observe_real anew"
            raise DataError(_path(folder, name, kind), problem)
    probabilities = {observer: rows[observer][:] for observer in OBSERVERS}
    return Observed(np.asarray(labels, np.int64), probabilities, rows["features"], rows["pixels"])


def observe_real(folder: Path, prepared: Prepared, observers: Observers, models: Sequence[Path]) -> None:
    """Looks at every real image; `open_real` opens what this writes.

    Args:
        folder: where the files go.
        prepared: the real images.
        observers: who looks.
        models: folders of gate and judge, whose weights are named in the card.

    Raises:
        DataError: a file cannot be read or written.
    """
    save_colours(folder / COLOURS, observers.colour)
    for split in SPLITS:
        observe(folder, split, prepared.images(split), prepared.labels_of(split), observers)
    write_json(folder / CARD, _card(prepared, observers.extractor, models))


def fit_control(prepared: Prepared, most: int, seed: int) -> ColourControl:
    """Fits the colour-only control to at most `most` training images of each tissue, drawn by `seed`."""
    labels, images = prepared.labels_of("train"), prepared.images("train")
    some = subsample_per_class(labels, np.full(len(prepared.slugs), most), seed)
    piece = _piece(images)
    histograms = [colour_histograms(images[some[start : start + piece]]) for start in range(0, len(some), piece)]
    return fit_colours(np.concatenate(histograms), labels[some], len(prepared.slugs))


def open_real(
    folder: Path, prepared: Prepared, extractor: Extractor, models: Sequence[Path]
) -> tuple[ColourControl, dict[str, Observed]]:
    """The colour control, and the real images as they were seen, by split.

    Raises:
        DataError: a file is missing, damaged, or made from other data, by other classifiers or by another extractor.
    """
    found, expected = read_json(folder / CARD), _card(prepared, extractor, models)
    if found != expected:
        others = ", ".join(key for key in expected if found.get(key) != expected[key]) or "another set of keys"
        raise DataError(folder / CARD, f"was made with other {others}; run the stage observe_real")
    colour = load_colours(folder / COLOURS, len(prepared.slugs))
    return colour, {split: open_observed(folder, split, prepared.labels_of(split)) for split in SPLITS}


def _card(prepared: Prepared, extractor: Extractor, models: Sequence[Path]) -> dict[str, str | int]:
    """What the observations depend on: features of one network cannot be compared with those of another."""
    gate, judge = (sha256_of(folder / "model.safetensors") for folder in models)
    data = sha256_of(prepared.folder / "card.json")
    return {"data": data, "gate": gate, "judge": judge, "extractor": extractor.name, "dimensions": extractor.dimensions}


def _piece(images: Rows) -> int:
    """How many images are looked at together."""
    batches = PIECE_BYTES // max(1, BATCH * int(np.prod(images.shape[1:], dtype=np.int64)))
    return BATCH * max(1, batches)


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}_{kind}.npy"
