"""Tests of configurations against each other, with trainings as the unit.

One training is one draw: repeated trainings of one configuration differ by far more than a bootstrap over images covers. Two
configurations are therefore compared by their trainings with the same seeds, and only if there are several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pathsynth.compare.table import RANKED, Configuration
from pathsynth.evaluation.statistics import MeanInterval, holm, mean_interval, paired_t_test
from pathsynth.report.pages import interval, probability, signed, whole
from pathsynth.report.tables import Cell, Table

LEAST_TRAININGS = 3
LEVEL = 0.05
# Scores are rounded to six digits; smaller spreads are rounding errors.
ROUNDING = 1e-6
COUNTS = ("no trainings", "one training", "two trainings")
RULE = "Only configurations that were trained equally long, with several trainings each, can be ranked."


@dataclass(frozen=True)
class Difference:
    """Two configurations, and the paired t-test of their scores over the trainings that both have.

    Attributes:
        first: name of a configuration.
        second: name of the other.
        trainings: number of trainings in common.
        reason: why there is no test, or "".
        mean: mean difference, first minus second, with its 95 % interval for this pair alone; None without a test.
        p: p-value corrected for all tests by Holm's method, or None without a test.
    """

    first: str
    second: str
    trainings: int
    reason: str = ""
    mean: MeanInterval | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the test shows a difference."""
        return self.p is not None and self.p <= LEVEL

    def __str__(self) -> str:
        if self.mean is None:
            return f"not testable: {self.reason}"
        better, worse = (self.first, self.second) if self.mean.mean > 0 else (self.second, self.first)
        return f"{better} is better than {worse}" if self.significant else "no difference shown"


def compare_pairs(scores: Mapping[str, Mapping[int, float]]) -> list[Difference]:
    """Tests every pair of configurations that have LEAST_TRAININGS or more trainings in common.

    A paired t-test over trainings, corrected by Holm's method for the number of tested pairs: the chance that any equal pair
    of the table is called different is at most LEVEL.

    Args:
        scores: of each configuration by name, one score per training seed.

    Returns:
        All pairs, in the order of the names.
    """
    pairs = [_test(first, second, scores) for first, second in combinations(scores, 2)]
    return [replace(pair, p=p) for pair, p in zip(pairs, correct_p_values([pair.p for pair in pairs]), strict=True)]


def correct_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects the p-values of a table for the number of its tests by Holm's method; None, for no test, stays None."""
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]


def _test(first: str, second: str, scores: Mapping[str, Mapping[int, float]]) -> Difference:
    """One test of `compare_pairs`, not yet corrected."""
    one, other = scores[first], scores[second]
    differences = [one[training] - other[training] for training in sorted(one.keys() & other.keys())]
    n = len(differences)
    if n < LEAST_TRAININGS:
        each = len(one) == len(other) == 1
        return Difference(first, second, n, "one training each" if each else f"{COUNTS[n]} in common")
    if max(differences) - min(differences) < ROUNDING:
        return Difference(first, second, n, "the same difference with every training")
    return Difference(first, second, n, "", mean_interval(differences), paired_t_test(differences))


def compare_configurations(configurations: Sequence[Configuration]) -> tuple[Table | None, str]:
    """Tests the configurations of one benchmark by the judge's macro F1.

    Returns:
        A table of the tested pairs, the smallest p first, or None if there are none; and a sentence on the other pairs, or "".
    """
    pairs = compare_pairs({one.name: one.scores(RANKED) for one in configurations})
    seen = {one.name: summary.mean for one in configurations if (summary := one.summarize("images_seen"))}
    rows = [
        (
            f"{pair.first}, {pair.second}",
            str(pair.trainings),
            signed(pair.mean.mean),
            interval(pair.mean.low, pair.mean.high),
            probability(pair.p),
            Cell(str(pair), _note_unequal(seen.get(pair.first), seen.get(pair.second))),
        )
        for pair in sorted(pairs, key=lambda pair: pair.p or 0.0)
        if pair.mean is not None
    ]
    head = ("Configurations", "Trainings in common", "Difference of judge F1", "95 % interval", "p", "Result")
    return Table(head, rows, prose=(5,)) if rows else None, _count_untested(pairs)


def _note_unequal(first: float | None, second: float | None) -> str:
    return "" if first == second else f"trained on {whole(first)} and {whole(second)} images"


def _count_untested(pairs: Sequence[Difference]) -> str:
    """States how many pairs cannot be tested and why."""
    reasons = Counter(pair.reason for pair in pairs if pair.p is None)
    counts = [f"{count} {'pair' if count == 1 else 'pairs'} ({reason})" for reason, count in reasons.items()]
    return f"Not testable: {', '.join(counts)}." if counts else ""
