"""Usefulness of a synthetic set: accuracy on real images of classifiers that were trained on it.

Train on synthetic, test on real (Esteban, Hyland and Raetsch, 2017; Ravuri and Vinyals, NeurIPS 2019, as classification
accuracy score), compared with the same number of real images and with both together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from pathsynth.classifiers.metrics import classification_scores, round_score
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import Indexable, Training, build_classifier, steps_per_epoch
from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.params import Section
from pathsynth.core.rows import select_rows
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class

SOURCES = ("real", "synthetic", "real_and_synthetic", "twice_real")


class UsefulnessSettings(Section):
    """The classifier that is trained on synthetic images and tested on real ones, and the number of trainings.

    An epoch has the same number of steps for all training sets, that of the synthetic images.
    """

    repeats: Annotated[int, Field(ge=2, le=100)]
    classifier: ClassifierSettings

    @model_validator(mode="after")
    def _check_checkpoint(self) -> Self:
        if self.classifier.checkpoint != "last":
            raise ValueError("classifier.checkpoint: 'best' would select by real images; allowed: 'last'")
        return self


@dataclass(frozen=True)
class _Concatenation:
    """Two sets of images of the same size, indexed as one."""

    first: Indexable
    second: Indexable

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        in_first = indices < len(self.first)
        parts = [self.first[indices[in_first]], self.second[indices[~in_first] - len(self.first)]]
        order = np.argsort(np.concatenate([np.flatnonzero(in_first), np.flatnonzero(~in_first)]))
        return np.concatenate(parts)[order]


def measure_usefulness(
    prepared: Prepared,
    synthetic: LabelledImages,
    settings: UsefulnessSettings,
    seed: int,
    device: str,
    folder: Path = Path(),
    *,
    trained_on: str,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict:
    """Trains classifiers on real images, synthetic images and both, and tests them on all real test images.

    Each repeat draws as many real images of every tissue as there are synthetic ones, or all where there are fewer. Real and
    synthetic images together are twice as many, so twice as many real images are the control. All trainings have the same
    number of optimizer steps.

    Args:
        prepared: real images, of which train is subsampled.
        synthetic: images of the same size.
        settings: the classifier and the number of repeats, each with a different seed.
        seed: global seed.
        device: torch device.
        folder: folder that relative paths in the settings start from.
        trained_on: name of the synthetic set, "accepted" or "raw".
        checkpoint: saves the scores of each training, and reuses those of an earlier run.

    Returns:
        `repeats`, `trained_on`, `steps` of each training, and for `real`, `synthetic`, `real_and_synthetic` and `twice_real`
        n_images, accuracy_mean, accuracy_std, macro_f1_mean, macro_f1_std and per_tissue.{slug}.{f1_mean,f1_std}; std is the
        sample standard deviation over repeats. Without enough images `undefined` gives the reason instead.

    Raises:
        TrainingError, ModelError, OutOfMemory: as in training any classifier.
    """
    count = len(synthetic.labels)
    steps = steps_per_epoch(count, settings.classifier.batch_size)
    head = {"repeats": settings.repeats, "trained_on": trained_on, "steps": steps * settings.classifier.epochs}
    if count < 2:
        nothing = {"n_images": count, "undefined": "fewer than 2 synthetic images to train on"}
        return {**head, **{source: dict(nothing) for source in SOURCES}}
    rounds: dict[str, list[tuple[int, dict]]] = {source: [] for source in SOURCES}
    for repeat in range(settings.repeats):
        repeat_seed = mix_seed(Stream.USEFULNESS, settings.classifier.seed, repeat)
        classifier = settings.classifier.model_copy(update={"seed": repeat_seed})
        for source, (images, labels) in _training_sets(prepared, synthetic, seed, repeat).items():
            arguments = (prepared, images, labels, classifier, seed, steps, device, folder)
            scores = checkpoint.cached(f"{repeat}_{source}", partial(_test_classifier, *arguments))
            rounds[source].append((len(images), scores))
    missing = {"n_images": 0, "undefined": "not twice as many real images of every tissue"}
    return {**head, **{name: _aggregate_repeats(done, prepared.slugs) if done else missing for name, done in rounds.items()}}


def _training_sets(
    prepared: Prepared, synthetic: LabelledImages, seed: int, repeat: int
) -> dict[str, tuple[Indexable, np.ndarray]]:
    """Images and labels int64 (N,) of every training set for one repeat."""
    labels, prompted = prepared.labels_of("train"), np.asarray(synthetic.labels, np.int64)
    counts, images = np.bincount(prompted, minlength=len(prepared.slugs)), prepared.images("train")
    selected = subsample_per_class(labels, counts, seed, repeat)
    real = select_rows(images, selected)
    sources: dict[str, tuple[Indexable, np.ndarray]] = {
        "real": (real, labels[selected]),
        "synthetic": (synthetic.images, prompted),
        "real_and_synthetic": (_Concatenation(real, synthetic.images), np.concatenate([labels[selected], prompted])),
    }
    if (np.bincount(labels, minlength=len(counts)) >= 2 * counts).all():
        more = subsample_per_class(labels, 2 * counts, seed, repeat)
        sources["twice_real"] = (select_rows(images, more), labels[more])
    return sources


def _test_classifier(
    prepared: Prepared,
    images: Indexable,
    labels: np.ndarray,
    settings: ClassifierSettings,
    seed: int,
    steps: int,
    device: str,
    folder: Path,
) -> dict:
    """Trains a classifier on `images` and scores it on the real test images."""
    classifier = build_classifier(settings, prepared.slugs, seed, device, folder)
    Training(classifier, images, labels, settings, seed, steps).run()
    predicted = classifier.probabilities(prepared.images("test")).argmax(axis=1)
    return classification_scores(prepared.labels_of("test"), predicted, prepared.slugs)


def _aggregate_repeats(rounds: Sequence[tuple[int, dict]], slugs: Sequence[str]) -> dict:
    """Mean and standard deviation over repeats."""
    scores = [scores for _, scores in rounds]
    per_tissue = {slug: _spread("f1", (s["per_tissue"][slug]["f1"] for s in scores)) for slug in slugs}
    averages = {**_spread("accuracy", (s["accuracy"] for s in scores)), **_spread("macro_f1", (s["macro_f1"] for s in scores))}
    return {"n_images": rounds[0][0], **averages, "per_tissue": per_tissue}


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {f"{name}_mean": round_score(float(np.mean(values))), f"{name}_std": round_score(float(np.std(values, ddof=1)))}
