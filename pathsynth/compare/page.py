"""The page across experiments: one section per benchmark with a table, charts, tests, and plates side by side.

Runs that differ in nothing but the seed are one configuration: a row, and a bar with their standard deviation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathsynth.compare.configurations import (
    Configuration,
    common_seed,
    deviation,
    fold,
    mean,
    names_of,
    none_if_nan,
    shared_seed,
)
from pathsynth.core.errors import DataError
from pathsynth.data import labels
from pathsynth.evaluation.contact_sheets import DATA_SET, RAW, places
from pathsynth.report import charts, pages
from pathsynth.report.charts import Axis, Series
from pathsynth.report.pages import Chart, Picture, decimals

# (revision, path) to the file's bytes, or None where the revision has no such file.
FileOf = Callable[[str, str], bytes | None]
Row = Mapping[str, Any]
View = dict[str, Any]
Predictions = dict[tuple[str, str], tuple[str, str]]

PREDICTIONS = "plots/evaluation/raw.csv"
PLATE = "plots/evaluation/plates/{}.png"
# What a chart and a screen hold beside each other; the table has them all.
CHARTED, SIDE_BY_SIDE, STRIP_ROWS = 5, 6, 4
OBSERVERS = ("gate", "judge")
# For each test of a table at least so many random tables: corrected, the smallest p is then still 1/200.
PERMUTATIONS, PERMUTATIONS_EACH = 2000, 200


@dataclass(frozen=True)
class Run:
    """One run of a configuration, with the name that it has on the page."""

    name: str
    row: Row


@dataclass(frozen=True)
class Named:
    """A configuration with the name that it has on the page."""

    name: str
    configuration: Configuration

    @property
    def several(self) -> bool:
        """Whether it was run with several seeds."""
        return len(self.configuration.runs) > 1

    def run(self, seed: Any) -> Run:
        """The run of that seed, or the one of the lowest."""
        row = self.configuration.run(seed)
        return Run(f"{self.name}, seed {row['seed']}" if self.several else self.name, row)

    @property
    def singles(self) -> list[Named]:
        """Each run as a configuration of its own, named by its seed and commit."""
        return [Named(f"seed {row['seed']}, {row['rev'][:7]}", Configuration((row,))) for row in self.configuration.runs]

    def f1(self, by: str, slug: str) -> list[Any]:
        """The F1 of a tissue, by run."""
        return [row["tissues"][by].get(slug) for row in self.configuration.runs]


def render_comparison(rows: Sequence[Row], file_of: FileOf) -> str:
    """Renders the page.

    Args:
        rows: experiments as `pathsynth.compare.experiments.table` sorts them; a value that is not known is None or NaN.
        file_of: reads a file of an experiment's commit.

    Returns:
        HTML that needs no other file; the same experiments give the same text.
    """
    configurations = fold([{str(name): none_if_nan(value) for name, value in row.items()} for row in rows])
    benchmarks = list(dict.fromkeys(one["benchmark"] for one in configurations))
    sections = [
        _section(f"benchmark-{number}", benchmark, [one for one in configurations if one["benchmark"] == benchmark], file_of)
        for number, benchmark in enumerate(benchmarks, 1)
    ]
    return pages.render("compare.html.j2", sections=sections, configurations=len(configurations), runs=len(rows))


def difference_tests(configurations: Sequence[Named], slugs: Sequence[str], file_of: FileOf) -> list[View]:
    """Tests the first configuration against each other one, by the raw images of one run of both.

    It is the run of the lowest seed that both have: images are paired where they answer the same prompts with the same noise.
    Else the two sets are dealt anew. Which seed is used depends on no score.

    Args:
        configurations: of one benchmark, the best first.
        slugs: names of all tissues.
        file_of: reads a file of an experiment's commit.

    Returns:
        For each other configuration its `name`; the `seed` of both runs, or None where none is in common; `unpaired`, why its
        images are not paired with those of the first, or nothing; by "gate" and "judge" the difference of macro F1 (first minus
        other) and p, corrected for all tests of the list by Holm's method; `sentence` by the judge; and `repeats` as `_repeats`
        gives it. `why` instead of difference and p where there is nothing to test.
    """
    best, *others = configurations
    permutations = max(PERMUTATIONS, PERMUTATIONS_EACH * len(OBSERVERS) * len(others))
    tests = []
    for other in others:
        seed = common_seed(best.configuration, other.configuration)
        runs = (best.run(seed), other.run(seed))
        tables = [_predictions(file_of(run.row["rev"], PREDICTIONS)) for run in runs]
        test = _test(runs, (tables[0], tables[1]), slugs, permutations)
        tests.append({**test, "name": other.name, "seed": seed, "repeats": _repeats(best.configuration, other.configuration)})
    _correct([test for test in tests if "why" not in test], best.name)
    return tests


def _repeats(best: Configuration, other: Configuration) -> View | None:
    """Differences of macro F1 by the judge over the seeds that both have: `mean`, `deviation`, how many are `above` 0, `n`.

    None where fewer than two are in common: it is by these alone that one sees whether another training would win again.
    """
    seeds = [seed for seed in best.seeds if seed is not None and seed in other.seeds]
    pairs = [(best.run(seed)["judge_f1"], other.run(seed)["judge_f1"]) for seed in seeds]
    differences = [first - second for first, second in pairs if None not in (first, second)]
    if len(differences) < 2:
        return None
    above = sum(difference > 0 for difference in differences)
    return {"mean": mean(differences), "deviation": deviation(differences), "above": above, "n": len(differences)}


def _test(
    runs: tuple[Run, Run], tables: tuple[Predictions | None, Predictions | None], slugs: Sequence[str], permutations: int
) -> View:
    """One test of `difference_tests`, not yet corrected."""
    from pathsynth.classifiers.metrics import classification_scores
    from pathsynth.evaluation.statistics import paired_permutation_test, unpaired_permutation_test

    (best, other), (first, second), seed = (run.row for run in runs), tables, runs[0].row["seed"] or 0
    if first is None or second is None:
        missing = [run.name for run, table in zip(runs, tables, strict=True) if table is None]
        return {"why": f"no table of raw images of {' and '.join(missing)}"}
    one, two = (_indices(table, slugs) for table in (first, second))
    if min(labels.min() for table in (one, two) for labels in table.values()) < 0:
        return {"why": "tissues of another benchmark"}
    unpaired = _unpaired(best, other, first.keys() == second.keys())
    test: View = {"unpaired": unpaired, "n": min(len(first), len(second))}
    for by in OBSERVERS:
        scores = [classification_scores(table["tissue"], table[by], slugs)["macro_f1"] for table in (one, two)]
        if unpaired:
            sets = one["tissue"], one[by], two["tissue"], two[by]
            p = unpaired_permutation_test(*sets, len(slugs), seed, permutations)
        else:
            p = paired_permutation_test(one["tissue"], one[by], two[by], len(slugs), seed, permutations)
        test[by] = {"difference": scores[0] - scores[1], "p": p}
    return test


def _correct(tests: Sequence[View], best: str) -> None:
    """Corrects the p of all tests together, and puts them into words."""
    from pathsynth.evaluation.statistics import difference_sentence, holm

    places = [(test, by) for test in tests for by in OBSERVERS]
    corrected = holm([test[by]["p"] for test, by in places])
    for (test, by), p in zip(places, corrected, strict=True):
        test[by]["p"] = p
    for test in tests:
        judged = test["judge"]
        test["sentence"] = difference_sentence(judged["difference"], judged["p"], test["n"], (best, test["name"]))


def _unpaired(best: Row, other: Row, same_slots: bool) -> str | None:
    """Why images of the same tissue and slot do not share prompt and noise, or nothing where they do."""
    if best["benchmark"] != other["benchmark"]:
        return "other benchmark"
    if None in (best["seed"], other["seed"], best["texts"], other["texts"]):
        return "seed or prompts not known"
    differ = {"seed": best["seed"] != other["seed"], "prompts": best["texts"] != other["texts"], "slots": not same_slots}
    return f"other {' and '.join(name for name, other in differ.items() if other)}" if any(differ.values()) else None


def _indices(table: Predictions, slugs: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels (N,) of tissue, gate and judge in the order of tissues and slots; -1 for one that is not among `slugs`."""
    index, images = {slug: number for number, slug in enumerate(slugs)}, sorted(table)
    columns = {"tissue": [tissue for tissue, _ in images]}
    columns |= {by: [table[image][column] for image in images] for column, by in enumerate(OBSERVERS)}
    return {name: np.array([index.get(slug, -1) for slug in column]) for name, column in columns.items()}


def _section(anchor: str, benchmark: str, found: Sequence[Configuration], file_of: FileOf) -> View:
    configurations = _named(found)
    rows = [row for one in found for row in one.runs]
    words, charted = (
        _words(rows),
        [one for one in configurations if any(row["tissues"]["gate"] for row in one.configuration.runs)],
    )
    seed, side_by_side = shared_seed(found), configurations[:SIDE_BY_SIDE]
    runs = [one.run(seed) for one in side_by_side]
    return {
        "anchor": anchor,
        "title": f"Benchmark {benchmark}",
        "benchmark": benchmark,
        "kind": "tissue" if tuple(words.values()) == labels.PATHMNIST else "class",
        "stand_in": any(row["dataset"].get("source") == "phantom" for row in rows),
        "configurations": configurations,
        "repeated": any(one.several for one in configurations),
        "charts": [_chart(anchor, charted[:CHARTED], words, by) for by in OBSERVERS if charted],
        "charted": CHARTED if len(charted) > CHARTED else 0,
        "tests": difference_tests(configurations, list(words), file_of) if len(found) > 1 and words else [],
        "plates": [plate for slug, label in words.items() if (plate := _plate(runs, slug, label, file_of))],
        "shown": len(side_by_side),
    }


def _named(configurations: Sequence[Configuration]) -> list[Named]:
    """The configurations with their names."""
    return [Named(name, one) for name, one in zip(names_of(configurations), configurations, strict=True)]


def _words(rows: Sequence[Row]) -> dict[str, str]:
    """The tissues' words by slug, from the params, or from the slugs where the params name a set that is not known."""
    slugs = list(dict.fromkeys(slug for row in rows for slug in row["tissues"]["gate"]))
    known: dict[str, str] = {}
    with suppress(ValueError):
        known = {labels.slug(label): label for label in labels.resolve(rows[0]["dataset"].get("labels", ()))}
    if set(known) == set(slugs):
        return known
    return {slug: known.get(slug, slug.replace("_", " ")) for slug in slugs}


def _chart(anchor: str, configurations: Sequence[Named], words: Mapping[str, str], by: str) -> Chart:
    series = [_bars(one, words, by) for one in configurations]
    spoken = f"F1 of raw images by the {by}. " + "; ".join(
        f"{label}: " + ", ".join(f"{one.name} {decimals(one.values[place], 2)}" for one in series)
        for place, label in enumerate(words.values())
    )
    drawn = charts.bars(f"{anchor}-{by}", list(words.values()), series, Axis("F1"), spoken)
    worth = mean(value for one in configurations if (value := one.configuration.mean("judge_on_real")) is not None)
    noted = f" The judge is {pages.percent(worth)} right on real test images." if by == "judge" and worth is not None else ""
    spread = " Whiskers: standard deviation over the seeds." if any(len(one.low) for one in series) else ""
    return Chart(drawn, f"F1 of raw images by the {by}.{spread}{noted}")


def _bars(one: Named, slugs: Iterable[str], by: str) -> Series:
    """Means over the seeds, with whiskers of one standard deviation where there are several."""
    scores = [one.f1(by, slug) for slug in slugs]
    means = [mean(values) for values in scores]
    if not one.several:
        return Series(one.name, means)
    spread = [(middle, deviation(values)) for middle, values in zip(means, scores, strict=True)]
    low = [None if middle is None or width is None else max(0.0, middle - width) for middle, width in spread]
    high = [None if middle is None or width is None else min(1.0, middle + width) for middle, width in spread]
    return Series(one.name, means, low, high)


def _predictions(data: bytes | None) -> Predictions | None:
    """By tissue and slot what gate and judge saw, or None for a table that is missing or not whole."""
    if data is None:
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
        return {(row["tissue"], row["slot"]): (row["gate"], row["judge"]) for row in rows} or None
    except (UnicodeDecodeError, csv.Error, KeyError):
        return None


def _plate(runs: Sequence[Run], slug: str, label: str, file_of: FileOf) -> View | None:
    """Raw images of one tissue of every experiment, and the data set's; plates that do not say where these lie as a whole."""
    strips: list[View] = []
    real: list[View] = []
    for run in runs:
        rev = run.row["rev"]
        data = file_of(rev, PLATE.format(slug))
        with suppress(DataError):
            if data is not None:
                name = f"{rev}: {slug}"
                whole, parts = pages.picture(name, data), _strips(data, name)
                said = f"raw images of {run.name}" if parts else f"plate of {run.name}"
                strips.append({"name": run.name, "said": said, "whole": not parts, "picture": parts.get(RAW, whole)})
                if parts and not real:
                    real = [{"name": DATA_SET, "said": "real images", "whole": False, "picture": parts[DATA_SET]}]
    return {"label": label, "strips": real + strips} if strips else None


def _strips(data: bytes, name: str) -> dict[str, Picture]:
    """The first rows of the data set's and of the raw images, or nothing where the plate does not say where they lie."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as plate:
        known = places(plate)
        if not {DATA_SET, RAW} <= set(known):
            return {}
        parts = {title: plate.crop(known[title].rows(STRIP_ROWS)) for title in (DATA_SET, RAW)}
    return {title: pages.picture(name, _png(part)) for title, part in parts.items()}


def _png(image: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
