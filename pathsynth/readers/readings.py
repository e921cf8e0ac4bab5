"""The answers to a blinded study as arrays, readers by images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pathsynth.readers.answers import StudyAnswers, StudyKey, StudyTrial

NONE = -1
OBSERVERS = ("gate", "judge")


@dataclass(frozen=True)
class Readings:
    """Answers of R readers to N trials.

    Attributes:
        classes: slugs of the tissues, in label order.
        names: what the readers are called: R1, R2, … in the order of their start, and the name where one was typed.
        ids: of the trials.
        y_true: true or prompted tissue, integers (N,).
        synthetic: bool (N,).
        tissue: named tissue, integers (R, N), NONE without an answer.
        origin: 1 for "synthetic" and 0 for "real", float (R, N), NaN without an answer.
        rating: origin and confidence, float (R, N), from -5 (certainly real) to 5 (certainly synthetic), NaN without an answer.
        seconds: time of the answer, float (R, N), NaN without an answer.
        predicted: tissue that gate and judge predict, integers (N,), NONE where unknown.
        repeats: indices of trials that repeat one of another reading, integers (N,), NONE for first trials.
    """

    classes: Sequence[str]
    names: Sequence[str]
    ids: Sequence[str]
    y_true: np.ndarray
    synthetic: np.ndarray
    tissue: np.ndarray
    origin: np.ndarray
    rating: np.ndarray
    seconds: np.ndarray
    predicted: dict[str, np.ndarray]
    repeats: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """Which trials each reader has answered, bool (R, N)."""
        return self.tissue != NONE

    @property
    def named_right(self) -> np.ndarray:
        """Whether the named tissue is the true one, float (R, N), NaN without an answer."""
        return np.where(self.answered, self.tissue == self.y_true, np.nan)

    @property
    def strata(self) -> np.ndarray:
        """What the design fixes of each trial, tissue and origin, as integers (N,)."""
        return self.y_true * 2 + self.synthetic

    def select(self, trials: np.ndarray) -> Readings:
        """The readings of some trials, by index or mask."""
        return replace(
            self,
            ids=[self.ids[place] for place in np.arange(len(self.ids))[trials]],
            y_true=self.y_true[trials],
            synthetic=self.synthetic[trials],
            tissue=self.tissue[:, trials],
            origin=self.origin[:, trials],
            rating=self.rating[:, trials],
            seconds=self.seconds[:, trials],
            predicted={observer: values[trials] for observer, values in self.predicted.items()},
            repeats=self.repeats[trials],
        )


def collect_readings(key: StudyKey, readers: Sequence[StudyAnswers]) -> Readings:
    """Arranges answers as arrays.

    Args:
        key: of the study.
        readers: validated answers to it, one per reader.
    """
    index = {slug: number for number, slug in enumerate(key.classes)}
    place = {trial.id: number for number, trial in enumerate(key.trials)}
    shape = len(readers), len(key.trials)
    tissue = np.full(shape, NONE)
    origin, rating, seconds = (np.full(shape, np.nan) for _ in range(3))
    for row, reader in enumerate(readers):
        for answer in reader.answers:
            at = row, place[answer.id]
            synthetic = answer.origin == "synthetic"
            tissue[at], origin[at], seconds[at] = index[answer.tissue], synthetic, answer.seconds
            rating[at] = answer.confidence if synthetic else -answer.confidence
    return Readings(
        key.classes,
        name_readers([reader.name for reader in readers]),
        list(place),
        np.array([index[trial.tissue] for trial in key.trials]),
        np.array([trial.origin == "synthetic" for trial in key.trials]),
        tissue,
        origin,
        rating,
        seconds,
        {observer: np.array([_predicted(trial, observer, index) for trial in key.trials]) for observer in OBSERVERS},
        np.array([NONE if trial.repeats is None else place[trial.repeats] for trial in key.trials]),
    )


def _predicted(trial: StudyTrial, observer: str, index: dict[str, int]) -> int:
    found = getattr(trial, observer)
    return NONE if found is None else index[found.predicted]


def name_readers(names: Sequence[str]) -> list[str]:
    """Numbers the readers, because names need be neither given nor unique."""
    return [f"R{number} {name}".strip() for number, name in enumerate(names, 1)]
