"""Agreement of two benchmarks on a ranking of configurations: Kendall's tau-b of the mean scores over trainings.

Tau between single trainings of one benchmark is given beside it, as a scale of the noise. It is no upper limit, because means
over trainings are less noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pathsynth.compare.differences import correct_p_values
from pathsynth.compare.table import COLUMNS, RANKED, Configuration
from pathsynth.evaluation.statistics import RESAMPLES, percentile_interval
from pathsynth.report.pages import MISSING, decimals, interval, probability
from pathsynth.report.tables import Row, Table

# Scores by training seed, of each configuration by name.
Ranking = Mapping[str, Mapping[int, float]]

HEADS = {RANKED: "Judge F1"} | {score: head for head, score, _ in COLUMNS}
SCORES = (RANKED, "open_set_f1", "macro_f1", "accepted_judge_f1", "precision", "coverage", "structure_distance")
# With 4, even equal rankings have p = 2 / 4! = 0.083.
MIN_CONFIGURATIONS = 5


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two rankings; a value that ties leave undefined is None.

    Attributes:
        tau: of the mean scores, in [-1, 1].
        low: lower end of the 95 % interval over configurations and trainings.
        high: upper end.
        p: two-sided p-value of no association, exact without ties.
        within_first: mean tau between single trainings of the first benchmark.
        within_second: mean tau between single trainings of the second benchmark.
    """

    tau: float | None
    low: float | None
    high: float | None
    p: float | None
    within_first: float | None
    within_second: float | None


def compare_rankings(first: Ranking, second: Ranking, *, seed: int = 0) -> Agreement:
    """Correlates the rankings of the same configurations on two benchmarks.

    The interval is a percentile bootstrap: configurations are drawn with replacement, and on each benchmark the trainings of
    each. A configuration that is drawn twice has one mean, so that tau-b leaves out its pair with itself. Samples in which all
    scores of a ranking are equal are left out.

    Args:
        first: scores on one benchmark.
        second: scores of the same configurations on the other; trainings may have other seeds.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the configurations differ, or one has no training.
    """
    from scipy.stats import kendalltau

    if first.keys() != second.keys() or not all([*first.values(), *second.values()]):
        raise ValueError("the rankings must have the same configurations, with trainings each")
    values = [[np.array(list(ranking[name].values())) for name in first] for ranking in (first, second)]
    tau, p = kendalltau(*([scores.mean() for scores in ranking] for ranking in values))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(first), size=(RESAMPLES, len(first)))
    taus = kendall_tau(*(_resample_means(ranking, drawn, rng) for ranking in values))
    finite = taus[np.isfinite(taus)]
    low, high = percentile_interval(finite) if len(finite) else (np.nan, np.nan)
    between = (_mean_tau_between_trainings(ranking) for ranking in (first, second))
    return Agreement(*(None if np.isnan(value) else float(value) for value in (tau, low, high, p, *between)))


def kendall_tau(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row, as `scipy.stats.kendalltau`, which computes only one.

    Args:
        first: scores (..., n), n >= 2.
        second: the other scores of the same n, (..., n).

    Returns:
        float64 (...), in [-1, 1]; NaN where all scores of a row are equal.
    """
    i, j = np.triu_indices(first.shape[-1], 1)
    one, other = (np.sign(scores[..., i] - scores[..., j]) for scores in (first, second))
    with np.errstate(invalid="ignore"):
        return (one * other).sum(-1) / np.sqrt(np.abs(one).sum(-1) * np.abs(other).sum(-1))


def _resample_means(ranking: Sequence[np.ndarray], drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean scores of the drawn configurations (resamples, n), over trainings drawn with replacement."""
    means = np.stack([rng.choice(scores, (len(drawn), len(scores))).mean(axis=1) for scores in ranking], axis=1)
    return np.take_along_axis(means, drawn, axis=1)


def _mean_tau_between_trainings(ranking: Ranking) -> float:
    """Mean tau over the pairs of trainings that all configurations have; NaN where none is defined."""
    shared = set.intersection(*(set(scores) for scores in ranking.values()))
    single = [np.array([scores[training] for scores in ranking.values()]) for training in sorted(shared)]
    taus = np.array([kendall_tau(one, other) for one, other in combinations(single, 2)])
    return float(taus[np.isfinite(taus)].mean()) if np.isfinite(taus).any() else np.nan


def build_transfer_table(first: Sequence[Configuration], second: Sequence[Configuration]) -> Table:
    """Builds the table of agreement between two benchmarks, a row per score.

    Args:
        first: configurations of one benchmark, at least one.
        second: configurations of the other; those of the same name as one of the first are compared.

    Returns:
        A row for each score that MIN_CONFIGURATIONS or more configurations have on both benchmarks. p is corrected for the
        number of rows (Holm).
    """
    rankings: dict[str, list[Ranking]] = {}
    for score in SCORES:
        scored = [{one.name: trainings for one in side if (trainings := one.scores(score))} for side in (first, second)]
        shared = sorted(scored[0].keys() & scored[1].keys())
        if len(shared) >= MIN_CONFIGURATIONS:
            rankings[score] = [{name: side[name] for name in shared} for side in scored]
    agreements = [compare_rankings(*pair) for pair in rankings.values()]
    corrected = correct_p_values([found.p for found in agreements])
    rows = [
        _row(HEADS[score], pair, found, p)
        for (score, pair), found, p in zip(rankings.items(), agreements, corrected, strict=True)
    ]
    between = (f"tau between trainings, {side[0]['benchmark']}" for side in (first, second))
    return Table(("Score", "Configurations", "Trainings of each", "tau", "95 % interval", "p", *between), rows)


def _row(head: str, rankings: Sequence[Ranking], found: Agreement, p: float | None) -> Row:
    counts = [len(trainings) for ranking in rankings for trainings in ranking.values()]
    return (
        head,
        str(len(rankings[0])),
        str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}",
        decimals(found.tau, 2),
        interval(found.low, found.high) or MISSING,
        probability(p),
        decimals(found.within_first, 2),
        decimals(found.within_second, 2),
    )
