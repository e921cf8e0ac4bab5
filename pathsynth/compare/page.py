"""The page across experiments: per benchmark a table, charts, tests, and contact sheets side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.compare.experiments import ReadFile
from pathsynth.compare.table import Configuration, build_table, group_seeds, lowest_common_seed, most_common_seed
from pathsynth.data import labels
from pathsynth.data.settings import PhantomDataset
from pathsynth.evaluation.contact_sheets import DATA_SET, RAW, read_boxes
from pathsynth.report import charts, pages
from pathsynth.report.charts import Axis, Series
from pathsynth.report.pages import Chart, Picture, decimals, signed, significant
from pathsynth.report.tables import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

Run = Mapping[str, Any]
View = dict[str, Any]

PREDICTIONS = "plots/evaluation/raw.csv"
SHEET = "plots/evaluation/plates/{}.png"
# How many configurations a chart shows, and how many images stand side by side; the table has them all.
CHARTED, SIDE_BY_SIDE, STRIP_ROWS = 5, 6, 4
OBSERVERS = ("gate", "judge")
# At least this many permutations for each test of a table, so that the smallest p, corrected, is still 1/200.
PERMUTATIONS, PERMUTATIONS_EACH = 2000, 200


def render_comparison(runs: pd.DataFrame, read: ReadFile) -> str:
    """Renders the page.

    Args:
        runs: as `pathsynth.compare.experiments.collect_runs` returns them.
        read: reads a file of a revision.

    Returns:
        HTML that needs no other file; equal runs give equal text.
    """
    sections = [
        _section(f"benchmark-{number}", benchmark, group, read)
        for number, (benchmark, group) in enumerate(runs.groupby("benchmark"), 1)
    ]
    count = sum(len(section["table"].rows) for section in sections)
    return pages.render("compare.html.j2", sections=sections, configurations=count, runs=len(runs))


def _section(anchor: str, benchmark: str, runs: pd.DataFrame, read: ReadFile) -> View:
    configurations = group_seeds(runs)
    names = _class_names(runs)
    charted = [one for one in configurations if any(one.runs["tissues"].map(lambda scores: bool(scores["gate"])))]
    side_by_side = [one.run(most_common_seed(configurations)) for one in configurations[:SIDE_BY_SIDE]]
    tests = difference_tests(configurations, list(names), read) if len(configurations) > 1 and names else []
    return {
        "anchor": anchor,
        "title": f"Benchmark {benchmark}",
        "benchmark": benchmark,
        "kind": "tissue" if tuple(names.values()) == labels.PATHMNIST else "class",
        "stand_in": any(dataset["source"] == "phantom" for dataset in runs["dataset"]),
        "best": configurations[0].name,
        "table": build_table(configurations),
        "single_runs": [(one.name, build_table(one.single_runs)) for one in configurations if one.repeated],
        "charts": [_chart(anchor, charted[:CHARTED], names, by) for by in OBSERVERS if charted],
        "charted": CHARTED if len(charted) > CHARTED else 0,
        "tests": _test_table(tests) if tests else None,
        "repeats": any(test["repeats"] for test in tests),
        "sheets": [sheet for slug, name in names.items() if (sheet := _sheet(side_by_side, slug, name, read))],
        "shown": SIDE_BY_SIDE if len(configurations) > SIDE_BY_SIDE else 0,
    }


def _class_names(runs: pd.DataFrame) -> dict[str, str]:
    """Names of the classes by slug, from the benchmark's parameters, or from the slugs where these are other classes."""
    slugs = list(dict.fromkeys(slug for scores in runs["tissues"] for slug in scores["gate"]))
    # a benchmark's file may leave the labels to their default
    named = runs["dataset"].iloc[0].get("labels", PhantomDataset.model_fields["labels"].default)
    known = {labels.slugify(name): name for name in labels.resolve_labels(named)}
    return known if set(known) == set(slugs) else {slug: slug.replace("_", " ") for slug in slugs}


def _chart(anchor: str, configurations: Sequence[Configuration], names: Mapping[str, str], by: str) -> Chart:
    series = [_bars(one, list(names), by) for one in configurations]
    title = f"F1 of raw images by the {by}"
    caption = f"{title}."
    if any(one.repeated for one in configurations):
        caption += " Whiskers: standard deviation over the seeds."
    accuracies = [accuracy for one in configurations if (accuracy := one.mean("judge_on_real")) is not None]
    if by == "judge" and accuracies:
        caption += f" The judge's accuracy on real test images is {pages.percent(float(np.mean(accuracies)))}."
    return Chart(charts.bars(f"{anchor}-{by}", list(names.values()), series, Axis("F1"), title), caption)


def _bars(one: Configuration, slugs: Sequence[str], by: str) -> Series:
    """Means over the seeds, with whiskers of one standard deviation where there are several."""
    import pandas as pd

    scores = pd.DataFrame([run[by] for run in one.runs["tissues"]], columns=slugs)
    means, deviations = scores.mean(), scores.std()
    if not one.repeated:
        return Series(one.name, _none_if_nan(means))
    low, high = (means - deviations).clip(lower=0), (means + deviations).clip(upper=1)
    return Series(one.name, _none_if_nan(means), _none_if_nan(low), _none_if_nan(high))


def _none_if_nan(values: pd.Series) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def difference_tests(configurations: Sequence[Configuration], slugs: Sequence[str], read: ReadFile) -> list[View]:
    """Tests the first configuration against each other one, by the raw images of one run of each.

    These are the runs of the lowest seed that both have, whatever they score. Images of the same prompt and noise are paired;
    otherwise all images are permuted.

    Args:
        configurations: of one benchmark, the best first.
        slugs: of all classes.
        read: reads a file of a revision.

    Returns:
        For each other configuration `name`, the common `seed` (or None), and `repeats` as `_compare_repeats` returns it; then
        either `skipped`, why there is no test, or `unpaired` (why the images are not paired, or None), by observer the
        `difference` of macro F1 (first minus other) and `p`, corrected for all tests by Holm's method, and a `sentence`.
    """
    best, *others = configurations
    permutations = max(PERMUTATIONS, PERMUTATIONS_EACH * len(OBSERVERS) * len(others))
    tests: list[View] = []
    for other in others:
        seed = lowest_common_seed([best, other])
        test = _test(best.run(seed), other.run(seed), slugs, permutations, read)
        tests.append({"name": other.name, "seed": seed, "repeats": _compare_repeats(best, other), **test})
    _correct([test for test in tests if "skipped" not in test], best.name)
    return tests


def _compare_repeats(best: Configuration, other: Configuration) -> View | None:
    """Differences of the judge's macro F1 over the common seeds: mean, deviation, count above 0, n; None for fewer than two."""
    scores = best.runs.merge(other.runs, on="seed")[["judge_f1_x", "judge_f1_y"]].dropna()
    differences = scores["judge_f1_x"] - scores["judge_f1_y"]
    if len(differences) < 2:
        return None
    above = int((differences > 0).sum())
    return {"mean": float(differences.mean()), "deviation": float(differences.std()), "above": above, "n": len(differences)}


def _test(best: Run, other: Run, slugs: Sequence[str], permutations: int, read: ReadFile) -> View:
    """One test of `difference_tests`, not yet corrected."""
    from pathsynth.classifiers.metrics import classification_scores
    from pathsynth.evaluation.statistics import paired_permutation_test, unpaired_permutation_test

    first, second = (_read_predictions(run["rev"], read) for run in (best, other))
    if first is None or second is None:
        missing = [run["name"] for run, table in ((best, first), (other, second)) if table is None]
        return {"skipped": f"no table of raw images of {' and '.join(missing)}"}
    one, two = (_label_indices(table, slugs) for table in (first, second))
    if min(indices.min() for table in (one, two) for indices in table.values()) < 0:
        return {"skipped": "classes of another benchmark"}
    unpaired = _why_unpaired(best, other, first.index.equals(second.index))
    test: View = {"unpaired": unpaired, "n": min(len(first), len(second))}
    for by in OBSERVERS:
        scores = [classification_scores(table["tissue"], table[by], slugs)["macro_f1"] for table in (one, two)]
        if unpaired:
            images = one["tissue"], one[by], two["tissue"], two[by]
            p = unpaired_permutation_test(*images, len(slugs), best["seed"], permutations)
        else:
            p = paired_permutation_test(one["tissue"], one[by], two[by], len(slugs), best["seed"], permutations)
        test[by] = {"difference": scores[0] - scores[1], "p": p}
    return test


def _correct(tests: Sequence[View], best: str) -> None:
    """Corrects the p-values of all tests together, and adds the sentences."""
    from pathsynth.evaluation.statistics import difference_sentence, holm

    keys = [(test, by) for test in tests for by in OBSERVERS]
    for (test, by), p in zip(keys, holm([test[by]["p"] for test, by in keys]), strict=True):
        test[by]["p"] = p
    for test in tests:
        judged = test["judge"]
        test["sentence"] = difference_sentence(judged["difference"], judged["p"], test["n"], (best, test["name"]))


def _why_unpaired(best: Run, other: Run, same_slots: bool) -> str | None:
    """Why images of the same class and slot do not share prompt and noise, or None where they do."""
    differs = {"seed": best["seed"] != other["seed"], "prompts": best["texts"] != other["texts"], "slots": not same_slots}
    return f"other {' and '.join(name for name, value in differs.items() if value)}" if any(differs.values()) else None


def _read_predictions(revision: str, read: ReadFile) -> pd.DataFrame | None:
    """Classes that gate and judge predicted, by class and slot of the image, or None where the table is missing or damaged."""
    import pandas as pd

    data = read(revision, PREDICTIONS)
    try:
        columns = ["tissue", "slot", *OBSERVERS]
        return None if data is None else pd.read_csv(io.BytesIO(data), dtype=str)[columns].set_index(columns[:2]).sort_index()
    except (ValueError, KeyError):
        return None


def _label_indices(table: pd.DataFrame, slugs: Sequence[str]) -> dict[str, np.ndarray]:
    """Indices (N,) of prompted and predicted classes among `slugs`, -1 for one that is not there."""
    import pandas as pd

    columns = table.reset_index()[["tissue", *OBSERVERS]]
    return {str(name): pd.Index(slugs).get_indexer(column) for name, column in columns.items()}


def _test_table(tests: Sequence[View]) -> Table:
    head = ["Against", "Difference", "p", "Difference", "p", "By the judge", "Over all common seeds, by the judge"]
    rows = [[*_test_cells(test), _repeats_text(test["repeats"])] for test in tests]
    return Table(head, rows, groups=(("Gate", 2), ("Judge", 2), ("In words", 2)), prose=(5, 6))


def _test_cells(test: View) -> list[Cell | str]:
    if "skipped" in test:
        return [test["name"], *["-"] * 4, f"not tested: {test['skipped']}"]
    pairing = f"not paired: {test['unpaired']}" if test["unpaired"] else "paired"
    note = pairing if test["seed"] is None else f"{pairing}, seed {test['seed']}"
    numbers = [text for by in OBSERVERS for text in (signed(test[by]["difference"]), significant(test[by]["p"], 2))]
    return [Cell(test["name"], note), *numbers, test["sentence"]]


def _repeats_text(repeats: View | None) -> str:
    if repeats is None:
        return "-"
    spread = f"{signed(repeats['mean'])} ± {decimals(repeats['deviation'])}"
    return f"{spread}, better with {repeats['above']} of {repeats['n']} seeds"


def _sheet(runs: Sequence[Run], slug: str, name: str, read: ReadFile) -> View | None:
    """Raw images of one class of every run, and the first run's real images before them."""
    strips: list[View] = []
    for run in runs:
        data = read(run["rev"], SHEET.format(slug))
        blocks = {} if data is None else _crop_blocks(data, f"{run['rev']}: {slug}")
        if blocks and not strips:
            strips.append({"name": DATA_SET, "alt": "real images", "picture": blocks[DATA_SET]})
        if blocks:
            strips.append({"name": run["name"], "alt": f"raw images of {run['name']}", "picture": blocks[RAW]})
    return {"name": name, "strips": strips} if strips else None


def _crop_blocks(data: bytes, name: str) -> dict[str, Picture]:
    """The first rows of the real and of the raw images of a contact sheet, or nothing if it does not record their places."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as sheet:
        known = read_boxes(sheet)
        if not {DATA_SET, RAW} <= set(known):
            return {}
        crops = {title: sheet.crop(known[title].rows(STRIP_ROWS)) for title in (DATA_SET, RAW)}
    return {title: pages.embed_png(name, _to_png(crop)) for title, crop in crops.items()}


def _to_png(image: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
