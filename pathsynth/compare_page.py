"""The page across experiments: one section per benchmark with a table, charts, tests, and plates side by side."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pathsynth import charts, labels, pages
from pathsynth.charts import Axis, Series
from pathsynth.errors import DataError
from pathsynth.pages import Chart, Picture, decimals
from pathsynth.plates import DATA_SET, RAW, places

# (revision, path) to the file's bytes, or None where the revision has no such file.
FileOf = Callable[[str, str], bytes | None]
Row = dict[str, Any]
View = dict[str, Any]
Predictions = dict[tuple[str, str], tuple[str, str]]

PREDICTIONS = "plots/evaluation/raw.csv"
PLATE = "plots/evaluation/plates/{}.png"
# What a chart and a screen hold beside each other; the table has them all.
CHARTED, SIDE_BY_SIDE, STRIP_ROWS = 5, 6, 4
OBSERVERS = ("gate", "judge")
# For each test of a table at least so many random tables: corrected, the smallest p is then still 1/200.
PERMUTATIONS, PERMUTATIONS_EACH = 2000, 200


def render_comparison(rows: Sequence[Mapping[str, Any]], file_of: FileOf) -> str:
    """Renders the page.

    Args:
        rows: experiments as `pathsynth.compare.table` sorts them; a value that is not known is None or NaN.
        file_of: reads a file of an experiment's commit.

    Returns:
        HTML that needs no other file; the same experiments give the same text.
    """
    known = [{str(name): _known(value) for name, value in row.items()} for row in rows]
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in known))
    sections = [
        _section(f"benchmark-{number}", benchmark, [row for row in known if row["benchmark"] == benchmark], file_of)
        for number, benchmark in enumerate(benchmarks, 1)
    ]
    return pages.render("compare.html.j2", sections=sections, count=len(known))


def difference_tests(rows: Sequence[Row], slugs: Sequence[str], file_of: FileOf) -> list[View]:
    """Tests the first experiment against each other one, by the raw images of both.

    Images are paired where they answer the same prompts with the same noise; else the two sets are dealt anew.

    Args:
        rows: experiments of one benchmark, the best first.
        slugs: names of all tissues.
        file_of: reads a file of an experiment's commit.

    Returns:
        For each other experiment its `name`; `unpaired`, why its images are not paired with those of the first, or nothing; by
        "gate" and "judge" the difference of macro F1 (first minus other) and p, corrected for all tests of the list by Holm's
        method; and `sentence` by the judge. `why` instead of all but the name where there is nothing to test.
    """
    best, *others = rows
    tables = [_predictions(file_of(row["rev"], PREDICTIONS)) for row in rows]
    permutations = max(PERMUTATIONS, PERMUTATIONS_EACH * len(OBSERVERS) * len(others))
    tests = [_test((best, row), (tables[0], table), slugs, permutations) for row, table in zip(others, tables[1:], strict=True)]
    _correct([test for test in tests if "why" not in test], best["name"])
    return tests


def _test(
    rows: tuple[Row, Row], tables: tuple[Predictions | None, Predictions | None], slugs: Sequence[str], permutations: int
) -> View:
    """One test of `difference_tests`, not yet corrected."""
    from pathsynth.scores import classification_scores, paired_permutation_test, unpaired_permutation_test

    (best, other), (first, second), seed = rows, tables, rows[0]["seed"] or 0
    if first is None or second is None:
        missing = [row["name"] for row, table in zip(rows, tables, strict=True) if table is None]
        return {"name": other["name"], "why": f"no table of raw images of {' and '.join(missing)}"}
    one, two = (_indices(table, slugs) for table in (first, second))
    if min(labels.min() for table in (one, two) for labels in table.values()) < 0:
        return {"name": other["name"], "why": "tissues of another benchmark"}
    unpaired = _unpaired(best, other, first.keys() == second.keys())
    test: View = {"name": other["name"], "unpaired": unpaired, "n": min(len(first), len(second))}
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
    from pathsynth.scores import difference_sentence, holm

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


def _section(anchor: str, benchmark: str, rows: list[Row], file_of: FileOf) -> View:
    for row, name in zip(rows, _names(rows), strict=True):
        row["name"] = name
    words, charted = _words(rows), [row for row in rows if row["tissues"]["gate"]]
    return {
        "anchor": anchor,
        "title": f"Benchmark {benchmark}",
        "benchmark": benchmark,
        "kind": "tissue" if tuple(words.values()) == labels.PATHMNIST else "class",
        "stand_in": any(row["dataset"].get("source") == "phantom" for row in rows),
        "rows": rows,
        "charts": [_chart(anchor, charted[:CHARTED], words, by) for by in OBSERVERS if charted],
        "charted": CHARTED if len(charted) > CHARTED else 0,
        "tests": difference_tests(rows, list(words), file_of) if len(rows) > 1 and words else [],
        "plates": [plate for slug, label in words.items() if (plate := _plate(rows[:SIDE_BY_SIDE], slug, label, file_of))],
        "shown": min(len(rows), SIDE_BY_SIDE),
    }


def _names(rows: Sequence[Row]) -> Iterator[str]:
    """The LoRAs' names; where several runs share one, with their seeds, and with their commits where those are the same."""
    seeds: dict[str, list] = {}
    for row in rows:
        seeds.setdefault(row["lora"], []).append(row["seed"])
    for row in rows:
        known = seeds[row["lora"]]
        seed = f", seed {row['seed']}" if len(set(known)) > 1 else ""
        commit = f", {row['rev'][:7]}" if known.count(row["seed"]) > 1 else ""
        yield f"{row['lora']}{seed}{commit}"


def _words(rows: Sequence[Row]) -> dict[str, str]:
    """The tissues' words by slug, from the params, or from the slugs where the params name a set that is not known."""
    slugs = list(dict.fromkeys(slug for row in rows for slug in row["tissues"]["gate"]))
    known: dict[str, str] = {}
    with suppress(ValueError):
        known = {labels.slug(label): label for label in labels.resolve(rows[0]["dataset"].get("labels", ()))}
    if set(known) == set(slugs):
        return known
    return {slug: known.get(slug, slug.replace("_", " ")) for slug in slugs}


def _chart(anchor: str, rows: Sequence[Row], words: Mapping[str, str], by: str) -> Chart:
    series = [Series(row["name"], [row["tissues"][by].get(slug) for slug in words]) for row in rows]
    spoken = f"F1 of raw images by the {by}. " + "; ".join(
        f"{label}: " + ", ".join(f"{one.name} {decimals(one.values[place], 2)}" for one in series)
        for place, label in enumerate(words.values())
    )
    drawn = charts.bars(f"{anchor}-{by}", list(words.values()), series, Axis("F1"), spoken)
    worth = next((row["judge_on_real"] for row in rows if row.get("judge_on_real") is not None), None)
    noted = f" The judge is {pages.percent(worth)} right on real test images." if by == "judge" and worth is not None else ""
    return Chart(drawn, f"F1 of raw images by the {by}.{noted}")


def _predictions(data: bytes | None) -> Predictions | None:
    """By tissue and slot what gate and judge saw, or None for a table that is missing or not whole."""
    if data is None:
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
        return {(row["tissue"], row["slot"]): (row["gate"], row["judge"]) for row in rows} or None
    except (UnicodeDecodeError, csv.Error, KeyError):
        return None


def _plate(rows: Sequence[Row], slug: str, label: str, file_of: FileOf) -> View | None:
    """Raw images of one tissue of every experiment, and the data set's; plates that do not say where these lie as a whole."""
    strips: list[View] = []
    real: list[View] = []
    for row in rows:
        data = file_of(row["rev"], PLATE.format(slug))
        with suppress(DataError):
            if data is not None:
                name = f"{row['rev']}: {slug}"
                whole, parts = pages.picture(name, data), _strips(data, name)
                said = f"raw images of {row['name']}" if parts else f"plate of {row['name']}"
                strips.append({"name": row["name"], "said": said, "whole": not parts, "picture": parts.get(RAW, whole)})
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


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
