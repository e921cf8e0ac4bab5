"""Bradley-Terry ranking of configurations from preferences between pairs of images: arrays in, plain dict out.

The chance that configuration i is preferred to j is 1 / (1 + exp(s_j - s_i)) with strengths s (Bradley and Terry, Biometrika
1952). A tie counts as half a win for both sides. Strengths are centred: their mean is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.readers.agreement import score_fleiss
from pathsynth.readers.answers import PreferenceAnswers, PreferenceKey
from pathsynth.readers.intervals import Weights, count_clusters, draw_weights, expanded_interval, share, unit_weights
from pathsynth.readers.readings import NONE, name_readers

# Score of the left image.
SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5}
# Added to both sides of each compared pair where no finite maximum of the likelihood exists; Jeffreys' prior for two
# configurations (Firth, Biometrika 1993).
HALF_WIN = 0.5
MAX_STEPS, MAX_STEP, TOLERANCE = 200, 1.0, 1e-9


@dataclass(frozen=True)
class Preferences:
    """Choices of R readers in T trials.

    Attributes:
        configurations: names, in the order in which the key first mentions them.
        names: of the readers.
        left, right: configurations of both images, integers (T,).
        tissue: integers (T,).
        cluster: trials of one tissue and slot share images and noise, and are resampled together; integers (T,).
        score: of the left image, 1, 0.5 or 0, float (R, T), NaN without an answer.
        seconds: float (R, T), NaN without an answer.
    """

    configurations: Sequence[str]
    names: Sequence[str]
    left: np.ndarray
    right: np.ndarray
    tissue: np.ndarray
    cluster: np.ndarray
    score: np.ndarray
    seconds: np.ndarray


def collect_preferences(key: PreferenceKey, readers: Sequence[PreferenceAnswers]) -> Preferences:
    """Arranges choices as arrays.

    Args:
        key: of the page.
        readers: validated answers to it, one per reader.
    """
    names = list(dict.fromkeys(name for trial in key.trials for name in (trial.left, trial.right)))
    place = {trial.id: number for number, trial in enumerate(key.trials)}
    shared = [(trial.tissue, trial.id if trial.slot is None else trial.slot) for trial in key.trials]
    clusters = {value: number for number, value in enumerate(dict.fromkeys(shared))}
    score, seconds = (np.full((len(readers), len(key.trials)), np.nan) for _ in range(2))
    for row, reader in enumerate(readers):
        for answer in reader.answers:
            score[row, place[answer.id]], seconds[row, place[answer.id]] = SCORES[answer.choice], answer.seconds
    return Preferences(
        names,
        name_readers([reader.name for reader in readers]),
        np.array([names.index(trial.left) for trial in key.trials]),
        np.array([names.index(trial.right) for trial in key.trials]),
        np.array([key.classes.index(trial.tissue) for trial in key.trials]),
        np.array([clusters[value] for value in shared]),
        score,
        seconds,
    )


def count_wins(preferences: Preferences, weights: Weights) -> np.ndarray:
    """Weighted wins (B, C, C) of row over column; a tie is half a win for both."""
    known = np.isfinite(preferences.score)
    n = len(preferences.configurations)
    left, right, scores = preferences.left, preferences.right, np.where(known, preferences.score, 0.0)
    wins = np.zeros((len(weights.images), n * n))
    for winner, loser, part in ((left, right, scores), (right, left, known - scores)):
        pairs = np.zeros((len(left), n * n))
        pairs[np.arange(len(left)), winner * n + loser] = 1.0
        wins += ((weights.readers @ part) * weights.images) @ pairs
    return wins.reshape(-1, n, n)


def fit_strengths(wins: np.ndarray) -> np.ndarray:
    """Maximum-likelihood strengths of each table of wins, by Newton's method.

    Args:
        wins: float (B, C, C), row over column, 0 on the diagonal. Each table is strongly connected, see `can_fit`: otherwise
            no finite maximum exists (Ford, American Mathematical Monthly 1957).

    Returns:
        float64 (B, C); each row has the mean 0.
    """
    n = wins.shape[-1]
    games = wins + wins.transpose(0, 2, 1)
    strengths = np.zeros(wins.shape[:2])
    for _ in range(MAX_STEPS):
        chance = win_chances(strengths)
        gradient = (wins - games * chance).sum(axis=2)
        information = -games * chance * chance.transpose(0, 2, 1)
        information[:, range(n), range(n)] -= information.sum(axis=2)
        # only differences of strengths matter: the added constant keeps their mean and makes the matrix regular
        step = np.linalg.solve(information + 1.0, gradient[:, :, None])[:, :, 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        strengths += step * np.minimum(1.0, MAX_STEP / np.maximum(largest, TOLERANCE))
        if largest.max() < TOLERANCE:
            break
    return strengths - strengths.mean(axis=1, keepdims=True)


def win_chances(strengths: np.ndarray) -> np.ndarray:
    """Chance (B, C, C) that row is preferred to column, 0.5 on the diagonal, of strengths (B, C)."""
    from scipy.special import expit

    return expit(strengths[:, :, None] - strengths[:, None, :])


def can_fit(wins: np.ndarray) -> np.ndarray:
    """Whether every configuration has won, directly or through others, against every other one: bool (B,)."""
    n = wins.shape[-1]
    reached = (wins > 0) | np.eye(n, dtype=bool)
    for _ in range(max(1, n - 1).bit_length()):
        reached = reached @ reached
    return np.asarray(reached.all(axis=(1, 2)))


def find_groups(games: np.ndarray) -> list[list[int]]:
    """Groups of configurations that are linked by comparisons, of numbers of comparisons (C, C)."""
    from scipy.sparse.csgraph import connected_components

    count, member = connected_components(games > 0, directed=False)
    return [np.flatnonzero(member == group).tolist() for group in range(count)]


def score_ranking(preferences: Preferences, weights: Weights) -> dict[str, Any]:
    """Ranks the configurations by strength, with intervals over readers and pairs of images.

    Where a configuration has won or lost all its comparisons, in the data or in a resample, half a win is added to both sides
    of each compared pair.

    Args:
        preferences: at least one choice.
        weights: resamples of its readers and trials.

    Returns:
        configurations (best first: name, strength, win_chance against an average other one and rank, each with low and high,
        wins, n_answers), pairs (first, second, wins of first, n_answers, chance with low and high), regularised, n_answers;
        or `undefined` with the reason.
    """
    wins = count_wins(preferences, unit_weights(*preferences.score.shape))
    games = wins[0] + wins[0].T
    groups = find_groups(games)
    if len(groups) > 1:
        named = " | ".join(", ".join(preferences.configurations[one] for one in group) for group in groups)
        return {"undefined": f"never compared with each other: {named}"}
    prior = HALF_WIN * (games > 0)
    clusters = count_clusters(preferences.score.shape[0], len(np.unique(preferences.cluster)))
    strengths = _fit_any(wins, prior)
    drawn = _fit_any(count_wins(preferences, weights), prior)
    best = np.argsort(-strengths[0], kind="stable").tolist()
    names = [preferences.configurations[one] for one in best]
    # best first
    counts, strengths, drawn = wins[0][np.ix_(best, best)], strengths[:, best], drawn[:, best]
    return {
        "configurations": _rank_rows(names, counts, strengths, drawn, clusters),
        "pairs": _pair_rows(names, counts, strengths, drawn, clusters),
        "regularised": bool(not can_fit(wins)[0]),
        "n_answers": int(np.isfinite(preferences.score).sum()),
    }


def _rank_rows(
    names: Sequence[str], wins: np.ndarray, strengths: np.ndarray, drawn: np.ndarray, clusters: int
) -> list[dict[str, Any]]:
    """Strength, chance and rank of each configuration, of wins (C, C) and strengths (1, C) and (B, C) in the order of names."""
    games = wins + wins.T
    scores = {"strength": lambda found: found, "win_chance": _mean_chance, "rank": _ranks}
    values = {name: (score(strengths), score(drawn)) for name, score in scores.items()}
    rows = []
    for place, configuration in enumerate(names):
        row = {"name": configuration, "wins": round_score(wins[place].sum()), "n_answers": int(games[place].sum())}
        for name, (value, resampled) in values.items():
            row |= _summarize(name, value[:, place], resampled[:, place], clusters)
        rows.append(row)
    return rows


def _pair_rows(
    names: Sequence[str], wins: np.ndarray, strengths: np.ndarray, drawn: np.ndarray, clusters: int
) -> list[dict[str, Any]]:
    """Wins and chance of each pair of configurations, of the arguments of `_rank_rows`."""
    chances, resampled = win_chances(strengths), win_chances(drawn)
    return [
        {"first": names[one], "second": names[other], "wins": round_score(wins[one, other])}
        | {"n_answers": int(wins[one, other] + wins[other, one])}
        | _summarize("chance", chances[:, one, other], resampled[:, one, other], clusters)
        for one, other in combinations(range(len(names)), 2)
    ]


def _fit_any(wins: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Strengths of each table, with the prior where no finite maximum exists."""
    return fit_strengths(wins + np.where(can_fit(wins)[:, None, None], 0.0, prior))


def _mean_chance(strengths: np.ndarray) -> np.ndarray:
    """Chance (B, C) to be preferred to another configuration that is drawn at random."""
    n = strengths.shape[1]
    return (win_chances(strengths).sum(axis=2) - 0.5) / (n - 1)


def _ranks(strengths: np.ndarray) -> np.ndarray:
    """Ranks (B, C) from 1, the best."""
    return 1.0 + (strengths[:, None, :] > strengths[:, :, None]).sum(axis=2)


def _summarize(name: str, value: np.ndarray, drawn: np.ndarray, clusters: int) -> dict[str, Any]:
    """A value with its interval, under names that begin with `name`."""
    ends = expanded_interval(drawn, clusters)
    low, high = (None, None) if ends is None else map(round_score, ends)
    return {name: round_score(value[0]), f"{name}_low": low, f"{name}_high": high}


def draw_preference_weights(preferences: Preferences, seed: int) -> Weights:
    """Draws weights of readers, and of clusters of trials within each tissue."""
    clusters, first = np.unique(preferences.cluster, return_index=True)
    drawn = draw_weights(len(preferences.names), preferences.tissue[first], seed)
    return Weights(drawn.readers, drawn.images[:, np.searchsorted(clusters, preferences.cluster)])


def select_trials(preferences: Preferences, mask: np.ndarray) -> Preferences:
    """The preferences in some trials, bool (T,)."""
    return replace(
        preferences,
        left=preferences.left[mask],
        right=preferences.right[mask],
        tissue=preferences.tissue[mask],
        cluster=preferences.cluster[mask],
        score=preferences.score[:, mask],
        seconds=preferences.seconds[:, mask],
    )


def score_choices(preferences: Preferences, weights: Weights) -> dict[str, Any]:
    """Shares of ties and of "left" among the other choices, and the agreement of readers.

    Returns:
        ties and left as `intervals.share`, and fleiss as `agreement.score_fleiss` of left, right and tie.
    """
    score = preferences.score
    decided = np.where(score == 0.5, np.nan, score)
    categories = np.where(np.isfinite(score), np.nan_to_num(score) * 2, NONE).astype(np.int64)
    return {
        "ties": share(np.where(np.isfinite(score), score == 0.5, np.nan), weights),
        "left": share(decided, weights),
        "fleiss": score_fleiss(categories, 3, weights),
    }
