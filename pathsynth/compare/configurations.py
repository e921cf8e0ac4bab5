"""Runs that differ in nothing but their seed, as one configuration with means and deviations."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DIGITS = 8


@dataclass(frozen=True)
class Configuration:
    """Runs with the same params but for the seed.

    Attributes:
        runs: rows of the table of experiments, by rising seed; a value that is not known is None or NaN.
    """

    runs: tuple[Mapping[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        """A value that all runs share, such as the LoRA's name, or None. What differs from run to run is in `runs`."""
        return none_if_nan(self.runs[0].get(name))

    @property
    def seeds(self) -> list[Any]:
        """The seeds of the runs, None where one is not known."""
        return [none_if_nan(run.get("seed")) for run in self.runs]

    def run(self, seed: Any) -> Mapping[str, Any]:
        """The run of that seed, or the one of the lowest where there is none."""
        return next((run for run in self.runs if seed is not None and none_if_nan(run.get("seed")) == seed), self.runs[0])

    def count(self, name: str) -> int:
        """How many runs have the score."""
        return sum(none_if_nan(run.get(name)) is not None for run in self.runs)

    def mean(self, name: str) -> float | None:
        """The mean over the runs that have the score, or None."""
        return mean(run.get(name) for run in self.runs)

    def deviation(self, name: str) -> float | None:
        """The sample standard deviation over the runs that have the score, or None for fewer than two."""
        return deviation(run.get(name) for run in self.runs)


def digest(params: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """A short name of params and code that leaves out the seed; equal for runs that are repeats of each other."""
    rest = {**{name: value for name, value in params.items() if name != "seed"}, "code": code}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:DIGITS]


def fold(rows: Iterable[Mapping[str, Any]]) -> list[Configuration]:
    """Folds rows of the table of experiments.

    Args:
        rows: with `benchmark`, `lora`, `prompts`, `seed`, the scores, and `config` as `digest` gives it; a row of which that is
            not known is a configuration of its own.

    Returns:
        Configurations by benchmark, and by falling mean of `macro_f1`.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        config = none_if_nan(row.get("config"))
        own = number if config is None else tuple(str(row.get(name)) for name in ("benchmark", "lora", "prompts", "config"))
        groups.setdefault(own, []).append(row)
    folded = [Configuration(tuple(sorted(runs, key=_by_seed))) for runs in groups.values()]
    return sorted(folded, key=lambda one: (str(one["benchmark"]), -(one.mean("macro_f1") or 0.0)))


def names_of(configurations: Sequence[Configuration]) -> list[str]:
    """The names of their LoRAs; where several share one, also their digests, or the commit of a run where none is known."""
    counts = Counter(one["lora"] for one in configurations)
    more = [one["config"] or str(none_if_nan(one.runs[0].get("rev")) or "")[:7] for one in configurations]
    return [
        f"{one['lora']}, {own}" if counts[one["lora"]] > 1 and own else str(one["lora"])
        for one, own in zip(configurations, more, strict=True)
    ]


def common_seed(first: Configuration, second: Configuration) -> Any:
    """The lowest seed that both were run with, or None."""
    return next((seed for seed in first.seeds if seed is not None and seed in second.seeds), None)


def shared_seed(configurations: Sequence[Configuration]) -> Any:
    """The seed that most configurations were run with, of several the lowest; None where no seed is known."""
    counts = Counter(seed for one in configurations for seed in one.seeds if seed is not None)
    return min(counts, key=lambda seed: (-counts[seed], seed)) if counts else None


def mean(values: Iterable[Any]) -> float | None:
    """The mean of the values that are known, or None."""
    some = [value for value in values if none_if_nan(value) is not None]
    return statistics.fmean(some) if some else None


def deviation(values: Iterable[Any]) -> float | None:
    """The sample standard deviation of the values that are known, or None for fewer than two."""
    some = [float(value) for value in values if none_if_nan(value) is not None]
    return statistics.stdev(some) if len(some) > 1 else None


def none_if_nan(value: Any) -> Any:
    """None instead of NaN, which is what pandas makes of it."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _by_seed(row: Mapping[str, Any]) -> tuple[bool, Any]:
    seed = none_if_nan(row.get("seed"))
    return (seed is None, 0 if seed is None else seed)
