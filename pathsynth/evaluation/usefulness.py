"""Usefulness of a synthetic set: what it adds to a few real images, in accuracy on real images of classifiers trained on both.

Train on synthetic, test on real (Esteban, Hyland and Raetsch, 2017; Ravuri and Vinyals, NeurIPS 2019, as classification
accuracy score). The real images are few, because a classifier that has enough of them gains nothing from more, whatever they
show. The gain of further real images in place of the synthetic ones is the ceiling.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import stdtrit

from pathsynth.classifiers.metrics import classification_scores, round_score
from pathsynth.classifiers.model import list_weight_files
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import Training, build_classifier, steps_per_epoch
from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint, open_shared
from pathsynth.core.params import Params, PositiveInt, Section
from pathsynth.core.rows import Rows
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.evaluation.statistics import mean_interval
from pathsynth.features.structure import structure_features

SOURCES = ("real", "synthetic", "real_and_synthetic", "more_real")
REAL_SOURCES = ("real", "more_real")
# Differences of macro F1 to `real`, and the source that they belong to.
GAINS = {"gain": "real_and_synthetic", "gain_of_more_real": "more_real"}
SPLITS = ("val", "test")

# Scores of one training on each split.
Scores = dict[str, dict]


class UsefulnessSettings(Section):
    """The number of real images, of trainings of the network and of fits of the probe, and the network.

    An epoch has the same number of steps for all training sets, that of the few real images.
    """

    real_per_tissue: PositiveInt = 20
    probe_repeats: Annotated[int, Field(ge=2, le=1000)] = 20
    repeats: Annotated[int, Field(ge=2, le=100)]
    classifier: ClassifierSettings

    @model_validator(mode="after")
    def _check_checkpoint(self) -> Self:
        if self.classifier.checkpoint != "last":
            raise ValueError("classifier.checkpoint: 'best' would select by real images; allowed: 'last'")
        return self


@dataclass(frozen=True)
class _Selection:
    """Images of two sets, numbered as one: `second` follows `first`, and `indices` selects from both."""

    first: Rows
    second: Rows
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: np.ndarray, /) -> np.ndarray:
        indices = self.indices[key]
        in_first = indices < len(self.first)
        images = np.empty((len(indices), *self.first.shape[1:]), self.first.dtype)
        images[in_first] = self.first[indices[in_first]]
        images[~in_first] = self.second[indices[~in_first] - len(self.first)]
        return images


def measure_usefulness(
    prepared: Prepared,
    synthetic: LabelledImages,
    structure: Mapping[str, np.ndarray],
    settings: UsefulnessSettings,
    seed: int,
    device: str,
    folder: Path = Path(),
    *,
    trained_on: str,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    shared: Checkpoint = NO_CHECKPOINT,
) -> dict:
    """Trains classifiers on few real images, with and without synthetic ones, and tests them on all other real images.

    The sources are `real`, a different draw of few real images in every repeat; `synthetic`; `real_and_synthetic`, both; and
    `more_real`, the few real images and as many further ones of each tissue as there are synthetic ones, or all. The probe is
    logistic regression on structure features, whose training is not random. The network is trained for the same number of
    optimizer steps on all sources.

    Args:
        prepared: real images, of which train is subsampled.
        synthetic: images of the same size.
        structure: structure features of the real images by split, float32 (N, 45).
        settings: the number of real images, the repeats and the network.
        seed: seed of the draws and trainings, `seeds.observers`.
        device: torch device.
        folder: folder that relative paths in the settings start from.
        trained_on: name of the synthetic set, "accepted" or "raw".
        checkpoint: saves the scores of each training of the network, and reuses those of an interrupted run.
        shared: the same for trainings without synthetic images, from `open_real_trainings`.

    Returns:
        `trained_on`, `repeats` by learner, `steps` of each training, `real_per_tissue`, `n_images` by source, and for the
        learners `network` and `probe`, by split and source, accuracy_mean, accuracy_std, macro_f1_mean, macro_f1_std and
        per_tissue.{slug}.{f1_mean,f1_std}; std is the sample standard deviation over repeats. Beside the sources are `gain` and
        `gain_of_more_real`, see `paired_gain`. Where images are missing, `undefined` gives the reason instead.

    Raises:
        TrainingError, ModelError, OutOfMemory: as in training any classifier.
    """
    real, images, slugs = prepared.labels_of("train"), prepared.images("train"), prepared.slugs
    prompted = np.asarray(synthetic.labels, np.int64)
    labels = np.concatenate([real, prompted])
    features = np.concatenate([structure["train"], structure_features(synthetic.images)])
    undefined = _find_undefined(real, prompted, settings.real_per_tissue, slugs)
    repeats = {"network": settings.repeats, "probe": settings.probe_repeats}
    draws = [_draw_sources(real, prompted, settings.real_per_tissue, seed, repeat) for repeat in range(max(repeats.values()))]
    steps = steps_per_epoch(len(draws[0]["real"]), settings.classifier.batch_size)

    def train_network(repeat: int, source: str) -> Scores:
        selected = draws[repeat][source]
        classifier = settings.classifier.model_copy(
            update={"seed": mix_seed(Stream.USEFULNESS, settings.classifier.seed, repeat)}
        )
        selection = _Selection(images, synthetic.images, selected)
        arguments = (prepared, selection, labels[selected], classifier, seed, steps, device, folder)
        if source not in REAL_SOURCES:
            return checkpoint.cached(f"{repeat}_{source}", partial(_test_network, *arguments))
        # `more_real` depends on the number of synthetic images of each tissue
        digest = hashlib.sha256(selected.tobytes()).hexdigest()[:16]
        return shared.cached(f"{repeat}_{source}_{digest}", partial(_test_network, *arguments))

    def train_probe(repeat: int, source: str) -> Scores:
        selected, few = draws[repeat][source], draws[repeat]["real"]
        return _test_probe(prepared, features[selected], labels[selected], features[few], structure)

    sources = [source for source in SOURCES if source not in undefined]
    result = {
        "trained_on": trained_on,
        "repeats": repeats,
        "steps": steps * settings.classifier.epochs,
        "real_per_tissue": settings.real_per_tissue,
        "n_images": {source: 0 if source in undefined else len(draws[0][source]) for source in SOURCES},
    }
    for name, train in (("network", train_network), ("probe", train_probe)):
        rounds = [{source: train(repeat, source) for source in sources} for repeat in range(repeats[name])]
        result[name] = {split: _summarize(rounds, split, undefined, slugs) for split in SPLITS}
    return result


def open_real_trainings(scratch: Path, params: Params, settings: UsefulnessSettings, prepared: Prepared) -> Checkpoint:
    """Opens the cached scores of classifiers that were trained without synthetic images.

    Args:
        scratch: folder for temporary files.
        params: parameters, for the folder that relative paths start from, `deterministic` and `seeds.observers`.
        settings: as for `measure_usefulness`.
        prepared: real images.

    Raises:
        DataError: if the folder for them cannot be created.
    """
    depends_on = {"usefulness": settings, "images": prepared.checksums}
    weights = list_weight_files(settings.classifier, params.folder)
    return open_shared(scratch, "usefulness", params, params.seeds.observers, depends_on, weights)


def paired_gain(gains: Sequence[float]) -> dict[str, float]:
    """Mean gain over paired repeats, with its interval and the gain that as many repeats would detect.

    The interval is that of Student's t. It covers draws of the real images and, for the network, of its weights and batches;
    the synthetic images and the test images are the same in all repeats. `detectable` is the true gain that a two-sided paired
    t-test at the 5 % level finds with 80 % power (Bloom, Evaluation Review 1995, minimum detectable effect), given the observed
    standard deviation.

    Args:
        gains: one difference per repeat, at least two.

    Returns:
        mean, std, low, high and detectable.
    """
    mean, sd, low, high = mean_interval(gains)
    if sd is None or low is None or high is None:
        raise ValueError("one repeat has no interval; at least two are needed")
    quantiles = stdtrit(len(gains) - 1, (0.975, 0.8))
    detectable = quantiles.sum() * sd / math.sqrt(len(gains))
    scores = {"mean": mean, "std": sd, "low": low, "high": high, "detectable": detectable}
    return {name: round_score(value) for name, value in scores.items()}


def _find_undefined(real: np.ndarray, prompted: np.ndarray, per_tissue: int, slugs: Sequence[str]) -> dict[str, str]:
    """Sources that cannot be trained on, with the reason."""
    if len(prompted) < 2:
        return dict.fromkeys(SOURCES[1:], "fewer than 2 synthetic images")
    available, wanted = np.bincount(real, minlength=len(slugs)), np.bincount(prompted, minlength=len(slugs))
    undefined = {}
    if (wanted > 0).sum() < 2:
        undefined["synthetic"] = "synthetic images of only one tissue"
    if lacking := [slug for slug, lacks in zip(slugs, (wanted > 0) & (available <= per_tissue), strict=True) if lacks]:
        undefined["more_real"] = f"no further real images of {', '.join(lacking)}"
    return undefined


def _draw_sources(real: np.ndarray, prompted: np.ndarray, per_tissue: int, seed: int, repeat: int) -> dict[str, np.ndarray]:
    """Indices of the training images of each source for one repeat; synthetic images follow the real ones."""
    tissues = max(real.max(), prompted.max(initial=0)) + 1
    few = subsample_per_class(real, np.full(tissues, per_tissue), seed, repeat)
    rest = real.copy()
    rest[few] = -1
    further = subsample_per_class(rest, np.bincount(prompted, minlength=tissues), seed, repeat, 1)
    synthetic = len(real) + np.arange(len(prompted))
    return {
        "real": few,
        "synthetic": synthetic,
        "real_and_synthetic": np.concatenate([few, synthetic]),
        "more_real": np.concatenate([few, further]),
    }


def _test_network(
    prepared: Prepared,
    images: _Selection,
    labels: np.ndarray,
    settings: ClassifierSettings,
    seed: int,
    steps: int,
    device: str,
    folder: Path,
) -> Scores:
    """Trains the network on `images` and scores it on real val and test images."""
    classifier = build_classifier(settings, prepared.slugs, seed, device, folder)
    Training(classifier, images, labels, settings, seed, steps).run()
    predicted = {split: classifier.probabilities(prepared.images(split)).argmax(axis=1) for split in SPLITS}
    return _score_splits(prepared, predicted)


def _test_probe(
    prepared: Prepared, features: np.ndarray, labels: np.ndarray, few: np.ndarray, structure: Mapping[str, np.ndarray]
) -> Scores:
    """Fits logistic regression to features that are scaled as those of the few real images, and scores it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(few.astype(np.float64))
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(features.astype(np.float64)), labels)
    return _score_splits(prepared, {split: model.predict(scaler.transform(structure[split])) for split in SPLITS})


def _score_splits(prepared: Prepared, predicted: Mapping[str, np.ndarray]) -> Scores:
    return {
        split: classification_scores(prepared.labels_of(split), labels, prepared.slugs) for split, labels in predicted.items()
    }


def _summarize(rounds: Sequence[Mapping[str, Scores]], split: str, undefined: Mapping[str, str], slugs: Sequence[str]) -> dict:
    """Mean and standard deviation over repeats for each source on one split, and the gains."""
    result: dict = {}
    for source in SOURCES:
        if source in undefined:
            result[source] = {"undefined": undefined[source]}
            continue
        scores = [trained[source][split] for trained in rounds]
        result[source] = {
            **_spread("accuracy", [s["accuracy"] for s in scores]),
            **_spread("macro_f1", [s["macro_f1"] for s in scores]),
            "per_tissue": {slug: _spread("f1", [s["per_tissue"][slug]["f1"] for s in scores]) for slug in slugs},
        }
    for name, source in GAINS.items():
        if source in undefined:
            result[name] = {"undefined": undefined[source]}
        else:
            result[name] = paired_gain([s[source][split]["macro_f1"] - s["real"][split]["macro_f1"] for s in rounds])
    return result


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_mean": round_score(float(np.mean(values))), f"{name}_std": round_score(float(np.std(values, ddof=1)))}
