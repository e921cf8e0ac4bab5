"""The page across experiments: one section per benchmark with a table, a chart, paired tests, and plates side by side."""

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
from pathsynth.plates import BLOCK_GAP, CELL, COLUMNS, GAP, MARGIN

# (revision, path) to the file's bytes, or None where the revision has no such file.
FileOf = Callable[[str, str], bytes | None]
Row = dict[str, Any]
View = dict[str, Any]
Predictions = dict[tuple[str, str], tuple[str, str]]

PREDICTIONS = "plots/evaluation/raw.csv"
PLATE = "plots/evaluation/plates/{}.png"
# What a chart and a screen hold beside each other; the table has them all.
CHARTED, SIDE_BY_SIDE, STRIP_ROWS = 5, 6, 4
BLOCK = COLUMNS * (CELL + GAP) - GAP
PLATE_WIDTH, PLATE_TOP = 2 * MARGIN + 4 * (BLOCK + BLOCK_GAP) - BLOCK_GAP, MARGIN + 72


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


def paired_tests(rows: Sequence[Row], slugs: Sequence[str], file_of: FileOf) -> list[View]:
    """Tests the first experiment against each other one whose raw images answer the same prompts and slots.

    Args:
        rows: experiments of one benchmark, the best first.
        slugs: names of all tissues.
        file_of: reads a file of an experiment's commit.

    Returns:
        For each other experiment its name, by "gate" and "judge" the difference of macro F1 (best minus other) and p, and
        `sentence` by the judge; `why` instead where there is nothing to pair.
    """
    best, *others = rows
    first = _predictions(file_of(best["rev"], PREDICTIONS))
    found = []
    for row in others:
        second = _predictions(file_of(row["rev"], PREDICTIONS))
        names = (best["name"], row["name"])
        if first is None or second is None:
            missing = " and ".join(name for name, table in zip(names, (first, second), strict=True) if table is None)
            found.append({"name": row["name"], "why": f"no table of raw images of {missing}"})
        elif set(first) != set(second) or not {slug for slug, _ in first} <= set(slugs):
            found.append({"name": row["name"], "why": "not the same prompts and slots"})
        else:
            found.append({"name": row["name"], **_paired(first, second, slugs, names, best["seed"] or 0)})
    return found


def _paired(first: Predictions, second: Predictions, slugs: Sequence[str], names: tuple[str, str], seed: int) -> View:
    from pathsynth.scores import classification_scores, difference_sentence, paired_permutation_test

    index, images = {slug: number for number, slug in enumerate(slugs)}, sorted(first)
    y_true = np.array([index[slug] for slug, _ in images])
    tested: View = {"n": len(images)}
    for column, by in enumerate(("gate", "judge")):
        one, other = (np.array([index.get(table[image][column], -1) for image in images]) for table in (first, second))
        if min(one.min(), other.min()) < 0:
            return {"why": f"the {by} saw tissues of another benchmark"}
        scores = [classification_scores(y_true, seen, slugs)["macro_f1"] for seen in (one, other)]
        p = paired_permutation_test(y_true, one, other, len(slugs), seed)
        tested[by] = {"difference": scores[0] - scores[1], "p": p}
    judged = tested["judge"]
    tested["sentence"] = difference_sentence(judged["difference"], judged["p"], len(images), names)
    return tested


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
        "charts": [_chart(anchor, charted[:CHARTED], words, by) for by in ("gate", "judge") if charted],
        "charted": CHARTED if len(charted) > CHARTED else 0,
        "tests": paired_tests(rows, list(words), file_of) if len(rows) > 1 and words else [],
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
    """Raw images of one tissue of every experiment, and the data set's."""
    strips: list[View] = []
    for row in rows:
        data = file_of(row["rev"], PLATE.format(slug))
        with suppress(DataError):
            if data is not None:
                real, raw = _strips(data, f"{row['rev']}: {slug}")
                if real is not None and not strips:
                    strips.append({"name": "data set", "picture": real})
                strips.append({"name": row["name"], "picture": raw})
    return {"label": label, "strips": strips} if strips else None


def _strips(data: bytes, name: str) -> tuple[Picture | None, Picture]:
    """The data set's and the raw images of a plate; nothing and the whole plate, where it is laid out in another way."""
    from PIL import Image

    whole = pages.picture(name, data)
    if whole.width != PLATE_WIDTH or whole.height <= PLATE_TOP + CELL:
        return None, whole
    bottom = min(whole.height - 58, PLATE_TOP + STRIP_ROWS * (CELL + GAP) - GAP)
    with Image.open(io.BytesIO(data)) as plate:
        lefts = [MARGIN + number * (BLOCK + BLOCK_GAP) for number in range(2)]
        parts = [plate.crop((left, PLATE_TOP, left + BLOCK, bottom)) for left in lefts]
    real, raw = (pages.picture(name, _png(part)) for part in parts)
    return real, raw


def _png(image: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
