"""Usefulness of a synthetic set: classifiers that learn from it are tested on real images.

Train on synthetic, test on real (Esteban, Hyland and Raetsch, 2017; for images Ravuri and Vinyals, NeurIPS 2019, as
classification accuracy score), beside the same number of real images and both together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from pathsynth.classifiers.metrics import classification_scores, plain
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import Indexable, Training, new_classifier, steps_per_epoch
from pathsynth.core.checkpoint import NOTHING, Saved
from pathsynth.core.params import Section
from pathsynth.core.rows import select_rows
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class

SOURCES = ("real", "synthetic", "real_and_synthetic", "twice_real")


class UsefulnessSettings(Section):
    """The classifier that is trained on synthetic images and tested on real ones, and how often it is trained.

    An epoch has as many steps as one of the synthetic images, whatever the training images are.
    """

    repeats: Annotated[int, Field(ge=2, le=100)]
    classifier: ClassifierSettings

    @model_validator(mode="after")
    def _check_checkpoint(self) -> Self:
        if self.classifier.checkpoint != "last":
            raise ValueError("classifier.checkpoint: 'best' would select by real images; allowed: 'last'")
        return self


@dataclass(frozen=True)
class _Joined:
    """Two sets of images of one size as one."""

    first: Indexable
    second: Indexable

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        own = indices < len(self.first)
        some = [self.first[indices[own]], self.second[indices[~own] - len(self.first)]]
        order = np.argsort(np.concatenate([np.flatnonzero(own), np.flatnonzero(~own)]))
        return np.concatenate(some)[order]


def usefulness(
    prepared: Prepared,
    synthetic: LabelledImages,
    settings: UsefulnessSettings,
    seed: int,
    device: str,
    folder: Path = Path(),
    *,
    trained_on: str,
    saved: Saved = NOTHING,
) -> dict:
    """Trains classifiers anew on real, on synthetic and on both images, and tests them on all real test images.

    Of every tissue there are as many real images as synthetic ones, or all where there are fewer, drawn anew for each repeat;
    as real and synthetic images together are twice as many, there is also a training on twice as many real ones. All trainings
    have the same number of optimiser steps: more images are not more training.

    Args:
        prepared: real images; train is drawn from, test is tested on.
        synthetic: images of the same size.
        settings: the classifier, and the number of repeats, each with another seed.
        seed: global seed.
        device: torch device.
        folder: what a relative path in the settings is relative to.
        trained_on: what the synthetic images are, "accepted" or "raw".
        saved: where the scores of each training are saved, and what an earlier run has saved.

    Returns:
        `repeats`, `trained_on`, `steps` of each training, and for `real`, `synthetic`, `real_and_synthetic` and `twice_real`
        n_images, accuracy_mean, accuracy_std, macro_f1_mean,
        macro_f1_std and per_tissue.{slug}.{f1_mean,f1_std}; std is the deviation between repeats, with n - 1. What cannot be
        trained has `undefined` with the reason: less than two synthetic images, less than twice as many real ones.

    Raises:
        TrainingError, ModelError, MemoryFault: as in training any classifier.
    """
    count = len(synthetic.labels)
    steps = steps_per_epoch(count, settings.classifier.batch_size)
    head = {"repeats": settings.repeats, "trained_on": trained_on, "steps": steps * settings.classifier.epochs}
    if count < 2:
        nothing = {"n_images": count, "undefined": "less than 2 synthetic images to train on"}
        return {**head, **{source: dict(nothing) for source in SOURCES}}
    rounds: dict[str, list[tuple[int, dict]]] = {source: [] for source in SOURCES}
    for repeat in range(settings.repeats):
        own_seed = mix_seed(Stream.USEFULNESS, settings.classifier.seed, repeat)
        classifier = settings.classifier.model_copy(update={"seed": own_seed})
        for source, (images, labels) in _sources(prepared, synthetic, seed, repeat).items():
            given = (prepared, images, labels, classifier, seed, steps, device, folder)
            scores = saved.cached(f"{repeat}_{source}", partial(_tested, *given))
            rounds[source].append((len(images), scores))
    missing = {"n_images": 0, "undefined": "not twice as many real images of every tissue"}
    return {**head, **{name: _folded(done, prepared.slugs) if done else missing for name, done in rounds.items()}}


def _sources(prepared: Prepared, synthetic: LabelledImages, seed: int, repeat: int) -> dict[str, tuple[Indexable, np.ndarray]]:
    """Images and labels, int64 (N,), of every source for one repeat."""
    labels, made = prepared.labels_of("train"), np.asarray(synthetic.labels, np.int64)
    counts, images = np.bincount(made, minlength=len(prepared.slugs)), prepared.images("train")
    some = subsample_per_class(labels, counts, seed, repeat)
    real = select_rows(images, some)
    sources: dict[str, tuple[Indexable, np.ndarray]] = {
        "real": (real, labels[some]),
        "synthetic": (synthetic.images, made),
        "real_and_synthetic": (_Joined(real, synthetic.images), np.concatenate([labels[some], made])),
    }
    if (np.bincount(labels, minlength=len(counts)) >= 2 * counts).all():
        more = subsample_per_class(labels, 2 * counts, seed, repeat)
        sources["twice_real"] = (select_rows(images, more), labels[more])
    return sources


def _tested(
    prepared: Prepared,
    images: Indexable,
    labels: np.ndarray,
    settings: ClassifierSettings,
    seed: int,
    steps: int,
    device: str,
    folder: Path,
) -> dict:
    """Scores on the real test images of a classifier that has learnt from `images`."""
    classifier = new_classifier(settings, prepared.slugs, seed, device, folder)
    for _ in Training(classifier, images, labels, settings, seed, steps).epochs():
        pass
    predicted = classifier.probabilities(prepared.images("test")).argmax(axis=1)
    return classification_scores(prepared.labels_of("test"), predicted, prepared.slugs)


def _folded(rounds: Sequence[tuple[int, dict]], slugs: Sequence[str]) -> dict:
    """Mean and deviation over repeats."""
    scores = [scores for _, scores in rounds]
    per_tissue = {slug: _spread("f1", (s["per_tissue"][slug]["f1"] for s in scores)) for slug in slugs}
    averages = {**_spread("accuracy", (s["accuracy"] for s in scores)), **_spread("macro_f1", (s["macro_f1"] for s in scores))}
    return {"n_images": rounds[0][0], **averages, "per_tissue": per_tissue}


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {f"{name}_mean": plain(float(np.mean(values))), f"{name}_std": plain(float(np.std(values, ddof=1)))}
