"""The page across experiments: per benchmark a table, tests, charts, and contact sheets side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.compare.cache import FindCached, find_nothing
from pathsynth.compare.differences import RULE, compare_configurations
from pathsynth.compare.experiments import ReadFile
from pathsynth.compare.slots import SlotComparison, compare_slots
from pathsynth.compare.table import Configuration, build_table, build_training_table, group_trainings, most_common_training
from pathsynth.data import labels
from pathsynth.data.settings import PhantomDataset
from pathsynth.evaluation.contact_sheets import DATA_SET, RAW, read_boxes
from pathsynth.report import charts, pages
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import class_nouns
from pathsynth.report.pages import Chart, Picture

if TYPE_CHECKING:
    import pandas as pd

Run = Mapping[str, Any]
View = dict[str, Any]

SHEET = "plots/evaluation/plates/{}.png"
# How many configurations a chart shows, and how many images stand side by side; the table has them all.
CHARTED, SIDE_BY_SIDE, STRIP_ROWS = 5, 6, 4
OBSERVERS = ("judge", "gate")


def render_comparison(runs: pd.DataFrame, read: ReadFile, find: FindCached = find_nothing, slots: int = 0) -> str:
    """Renders the page.

    Args:
        runs: as `pathsynth.compare.experiments.collect_runs` returns them.
        read: reads a file of a revision.
        find: finds a file of a revision in DVC's cache.
        slots: how many slots of each class are compared image by image.

    Returns:
        HTML that needs no other file; equal runs give equal text.
    """
    sections = [
        _section(f"benchmark-{number}", benchmark, group, read, find, slots)
        for number, (benchmark, group) in enumerate(runs.groupby("benchmark"), 1)
    ]
    count = sum(len(section["table"].rows) for section in sections)
    return pages.render("compare.html.j2", sections=sections, configurations=count, trainings=len(runs), rule=RULE)


def _section(anchor: str, benchmark: str, runs: pd.DataFrame, read: ReadFile, find: FindCached, slots: int) -> View:
    configurations = group_trainings(runs)
    names = _class_names(runs)
    charted = [one for one in configurations if any(one.runs["tissues"].map(lambda scores: bool(scores["judge"])))]
    side_by_side = [one.run(most_common_training(configurations)) for one in configurations[:SIDE_BY_SIDE]]
    differences, untested = compare_configurations(configurations)
    return {
        "anchor": anchor,
        "title": f"Benchmark {benchmark}",
        "benchmark": benchmark,
        "kind": class_nouns(list(names.values()))[0],
        "stand_in": any(dataset["source"] == "phantom" for dataset in runs["dataset"]),
        "table": build_table(configurations),
        "trainings": build_training_table(configurations),
        "differences": differences,
        "untested": untested,
        "charts": [_chart(anchor, charted[:CHARTED], names, by) for by in OBSERVERS if charted],
        "charted": CHARTED if len(charted) > CHARTED else 0,
        "sheets": [sheet for slug, name in names.items() if (sheet := _sheet(side_by_side, slug, name, read))],
        "shown": SIDE_BY_SIDE if len(configurations) > SIDE_BY_SIDE else 0,
        **_slots(compare_slots(side_by_side, read, find, slots) if slots else None, names),
    }


def _slots(compared: SlotComparison | None, names: Mapping[str, str]) -> View:
    """The same slots of every configuration by class, without classes that have no images; None if none are wanted."""
    tissues = [(slug, name, compared.rows(slug)) for slug, name in names.items()] if compared else []
    return {"slots": compared, "slot_tissues": [tissue for tissue in tissues if tissue[2]]}


def _class_names(runs: pd.DataFrame) -> dict[str, str]:
    """Names of the classes by slug, from the benchmark's parameters, or from the slugs where these are other classes."""
    slugs = list(dict.fromkeys(slug for scores in runs["tissues"] for slug in scores["judge"]))
    # a benchmark's file may leave the labels to their default
    named = runs["dataset"].iloc[0].get("labels", PhantomDataset.model_fields["labels"].default)
    known = {labels.slugify(name): name for name in labels.resolve_labels(named)}
    return known if set(known) == set(slugs) else {slug: slug.replace("_", " ") for slug in slugs}


def _chart(anchor: str, configurations: Sequence[Configuration], names: Mapping[str, str], by: str) -> Chart:
    series = [_dots(one, list(names), by) for one in configurations]
    title = f"F1 of raw images by the {by}"
    caption = f"{title}."
    if any(len(one.runs) > 1 for one in configurations):
        caption += " Whiskers: one standard deviation over trainings."
    on_real = [summary.mean for one in configurations if (summary := one.summarize("judge_on_real"))]
    if by == "judge" and on_real:
        caption += f" The judge's accuracy on real test images is {pages.percent(float(np.mean(on_real)))}."
    return Chart(charts.dots(f"{anchor}-{by}", list(names.values()), series, Axis("F1"), title), caption)


def _dots(one: Configuration, slugs: Sequence[str], by: str) -> Series:
    """Means over the trainings, with whiskers of one standard deviation where there are several."""
    import pandas as pd

    scores = pd.DataFrame([run[by] for run in one.runs["tissues"]], columns=slugs)
    means, deviations = scores.mean(), scores.std()
    if len(one.runs) == 1:
        return Series(one.name, _none_if_nan(means))
    low, high = (means - deviations).clip(lower=0), (means + deviations).clip(upper=1)
    return Series(one.name, _none_if_nan(means), _none_if_nan(low), _none_if_nan(high))


def _none_if_nan(values: pd.Series) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _sheet(runs: Sequence[Run], slug: str, name: str, read: ReadFile) -> View | None:
    """Raw images of one class of every run, and the first run's real images before them."""
    strips: list[View] = []
    for run in runs:
        data = read(run["rev"], SHEET.format(slug))
        blocks = {} if data is None else _crop_blocks(data)
        if blocks and not strips:
            strips.append({"name": DATA_SET, "alt": "real images", "picture": blocks[DATA_SET]})
        if blocks:
            strips.append({"name": run["name"], "alt": f"raw images of {run['name']}", "picture": blocks[RAW]})
    return {"name": name, "strips": strips} if strips else None


def _crop_blocks(data: bytes) -> dict[str, Picture]:
    """The first rows of the real and of the raw images of a contact sheet, or nothing if it does not record their places."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as sheet:
        known = read_boxes(sheet)
        if not {DATA_SET, RAW} <= set(known):
            return {}
        crops = {title: sheet.crop(known[title].rows(STRIP_ROWS)) for title in (DATA_SET, RAW)}
    return {title: pages.embed_image(crop) for title, crop in crops.items()}
