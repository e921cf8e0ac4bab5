"""The page of results: one HTML file without scripts or external files, in the style of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pathsynth.readers import PACKAGE, preference_tables, tables
from pathsynth.readers.tables import format_interval, to_words
from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.pages import Chart, percent, render, whole

Results = Mapping[str, Any]
View = dict[str, Any]

# Rows of long tables and dots of long charts that the page shows; readers.json has them all.
MAX_DISPUTED, MAX_PAIRS, MAX_CHARTED = 20, 45, 40
MISTAKES = ("synthetic_taken_for_real", "real_taken_for_synthetic")
# Series that a chart can tell apart.
MAX_SERIES = 7
GATE_NOTE = (
    "The gate agrees with the prompt of every accepted image by construction, so readers can differ from it there only by "
    "missing the prompted tissue."
)


def render_results(results: Results) -> str:
    """Renders the page. Equal results give equal text.

    Args:
        results: as `pathsynth.readers.results.evaluate_answers` returns them.
    """
    study = results["kind"] == "study"
    sections = list(_study_sections(results) if study else _preference_sections(results))
    return render(
        "readers.html.j2", PACKAGE, results=results, title=_title(results), lead=_describe(results), sections=sections
    )


def _title(results: Results) -> str:
    if results["kind"] == "study":
        return "Can readers tell synthetic images from real ones?"
    questions = results["questions"]
    return questions[0] if len(questions) == 1 else "Which configuration do readers prefer?"


def _describe(results: Results) -> str:
    counts = results["counts"]
    readers = f"{whole(counts['readers'])} {'reader' if counts['readers'] == 1 else 'readers'}"
    complete = f"{whole(counts['complete'])} of them to the end" if counts["readers"] > 1 else ""
    if results["kind"] == "study":
        shown = f"{whole(counts['real'])} real and {whole(counts['synthetic'])} synthetic images"
        shown += f", {whole(counts['repeats'])} shown twice" if counts["repeats"] else ""
    else:
        shown = f"{whole(counts['trials'])} pairs of images by {whole(counts['configurations'])} configurations"
    return f"{', '.join(part for part in (readers, complete, shown) if part)}, {whole(counts['answers'])} answers."


def _section(anchor: str, title: str, lead: str, **parts: Any) -> View:
    """A section: figures, charts, and tables (table, label, CSS class, note), beside the charts, below them or folded."""
    empty: View = {"figures": [], "charts": [], "beside": [], "tables": [], "folded": [], "matrices": []}
    return {"anchor": anchor, "title": title, "lead": lead, **empty, **parts}


def _study_sections(results: Results) -> Iterator[View]:
    yield _headline(results)
    yield _tissues_of_study(results)
    yield _origin(results)
    yield _readers(results)
    yield _agreement(results)
    if results["observers"]:
        yield _observers(results)


def _headline(results: Results) -> View:
    origin, naming = results["origin"], results["tissue_naming"]
    figures = [
        _figure("synthetic images taken for real", origin["synthetic_taken_for_real"], percent),
        _figure("real images taken for synthetic", origin["real_taken_for_synthetic"], percent),
        _figure("tissue named right, real images", naming["real"], percent),
        _figure("tissue named right, synthetic images", naming["synthetic"], percent),
    ]
    lead = (
        "A synthetic image that is taken for real is convincing only if real images are seldom taken for synthetic: read both "
        "shares together. Readers who cannot tell the two apart have an AUC near 0.5."
    )
    note = (
        "Sensitivity is the share of synthetic images that are called synthetic, specificity that of real images that are "
        "called real. d' and AUC are means over readers, and do not depend on how readily one says synthetic; AUC also uses "
        "the stated confidence."
    )
    summary = (tables.build_summary_table(results), "All measures", "", note)
    return _section("headline", "Synthetic taken for real", lead, figures=figures, tables=[summary])


def _figure(name: str, found: Results, form: tables.Format) -> View:
    ends = format_interval(found, form)
    return {"name": name, "value": form(found["value"]), "note": f"95 % interval {ends}" if ends else ""}


def _tissues_of_study(results: Results) -> View:
    naming, origin = results["tissue_naming"]["per_tissue"], results["origin"]["per_tissue"]
    names = [to_words(slug) for slug in naming]
    named = [_series(name, [found[name] for found in naming.values()]) for name in ("real", "synthetic")]
    mistaken = [_series(_mistake(score), [found[score] for found in origin.values()]) for score in MISTAKES]
    drawn = [
        _chart("naming", names, named, Axis("named right", percent=True), "Tissue named right"),
        _chart("origin-mistaken", names, mistaken, Axis("mistaken", percent=True), "Origin mistaken"),
    ]
    lead = (
        "How often readers name the tissue of a real image or the prompted tissue of a synthetic one, and mistake its origin."
    )
    table = (tables.build_tissue_table(results), "Scores by tissue", "dense", "")
    matrices = [_matrix(results, name) for name in ("real", "synthetic") if results["counts"][name]]
    return _section("tissues", "By tissue", lead, charts=drawn, tables=[table], matrices=matrices)


def _origin(results: Results) -> View:
    lead = "Confidence is how sure a reader is of real or synthetic. Confidence means something if it goes with being right."
    beside = [(tables.build_confidence_table(results), "Confidence"), (tables.build_time_table(results), "Time per image")]
    return _section("origin", "Confidence and time", lead, beside=[(*one, "", "") for one in beside])


def _mistake(score: str) -> str:
    return score.replace("_", " ")


def _readers(results: Results) -> View:
    readers = results["readers"][:MAX_CHARTED]
    series = [_series(_mistake(score), [one[score] for one in readers]) for score in MISTAKES]
    axis = Axis("mistaken", percent=True)
    drawn = [_chart("readers", [one["name"] for one in readers], series, axis, "Origin mistaken, by reader")]
    shown = [(tables.build_reader_table(results), "Scores by reader", "dense", "")]
    if results["repeats"]:
        shown.append((tables.build_repeat_table(results), "Images seen twice", "dense", ""))
    lead = "Intervals of single readers are over images (Wilson)."
    return _section("readers", "Scores by reader", lead, charts=drawn, tables=shown)


def _agreement(results: Results) -> View:
    fleiss, pairs = results["agreement"]["fleiss"], results["agreement"]["pairs"]
    figures = []
    for name, what in (("tissue", "tissue"), ("real or synthetic", "origin")):
        cell = tables.kappa_cell(fleiss[what])
        note = f"95 % interval {cell.note}" if "kappa" in fleiss[what] and cell.note else cell.note
        figures.append({"name": f"Fleiss' kappa, {name}", "value": cell.text, "note": note})
    lead = (
        "1 is full agreement, 0 that of chance. The interval of Fleiss' kappa is over images, because a reader who is drawn "
        "twice would agree fully with the copy."
    )
    parts: View = {"figures": figures}
    if 0 < len(pairs) <= MAX_PAIRS:
        parts["folded"] = [(tables.build_pair_table(results), "Each pair of readers", "dense", "")]
    elif pairs:
        lead += f" The kappas of all {whole(len(pairs))} pairs are in readers.json."
    return _section("agreement", "Agreement between readers", lead, **parts)


def _observers(results: Results) -> View:
    disputed = results["disputed"]
    folded = []
    if disputed:
        more = (
            f" The first {MAX_DISPUTED} of {len(disputed)}; readers.json has them all." if len(disputed) > MAX_DISPUTED else ""
        )
        note = f"Images for which at least half of the answers name another tissue than the gate.{more}"
        table = tables.build_disputed_table(disputed[:MAX_DISPUTED])
        folded.append((table, "Images for which readers and gate disagree", "dense", note))
    table = tables.build_observer_table(results)
    note = "Counted are answers. Of those that differ, the last three columns say who named the true or prompted tissue."
    title = "Readers against gate and judge"
    return _section("observers", title, GATE_NOTE, tables=[(table, title, "dense", note)], folded=folded)


def _matrix(results: Results, origin: str) -> View:
    """A confusion matrix of true against named tissue."""
    names = [to_words(slug) for slug in results["classes"]]
    rows = []
    for true, counts in enumerate(results["tissue_naming"]["confusion"][origin]):
        total = sum(counts)
        cells = [{"count": count, "share": count / max(1, total), "hit": seen == true} for seen, count in enumerate(counts)]
        rows.append({"label": names[true], "total": total, "cells": cells})
    title = "Real images" if origin == "real" else "Synthetic images"
    return {
        "title": title,
        "note": "Answers of all readers. Blue: right; orange: wrong.",
        "head": "true ↓   named →" if origin == "real" else "prompted ↓   named →",
        "names": names,
        "rows": rows,
    }


def _preference_sections(results: Results) -> Iterator[View]:
    ranking = results["ranking"]
    if "undefined" in ranking:
        lead = f"There is no common ranking, because some configurations were {ranking['undefined']}."
        yield _section("ranking", "Ranking", lead)
    else:
        yield _ranking(ranking)
    yield _tissues(results)
    table = (preference_tables.build_choice_table(results), "Ties, position, agreement and time", "", "")
    yield _section("choices", "How readers chose", "", tables=[table])


def _ranking(ranking: Results) -> View:
    names = [one["name"] for one in ranking["configurations"]]
    values, low, high = ([one[f"strength{end}"] for one in ranking["configurations"]] for end in ("", "_low", "_high"))
    series = [Series("strength", values, low, high)]
    lead = (
        "The Bradley-Terry model gives each configuration a strength; their mean is 0. The chance that one is preferred to "
        "another depends on the difference of their strengths. A tie is half a win for both."
    )
    if ranking["regularised"]:
        lead += (
            " A configuration won or lost all its comparisons, which gives no finite strength, so half a win was added to both "
            "sides of each compared pair."
        )
    axis = Axis("strength (logit)", (None, None))
    ranked = preference_tables.build_ranking_table(ranking)
    contests, wins = preference_tables.build_contest_table(ranking), preference_tables.build_win_matrix(ranking)
    first = (ranked, "Ranking", "", "Preferred to another: against the average of the others.")
    parts = [
        (contests, "Pairs of configurations", "", "Intervals are those of one pair alone."),
        (wins, "Wins", "dense", "A tie is half a win."),
    ]
    return _section(
        "ranking", "Ranking", lead, charts=[_chart("ranking", names, series, axis, "Strength")], beside=[first], tables=parts
    )


def _tissues(results: Results) -> View:
    names = results["configurations"]
    found = {slug: one for slug, one in results["per_tissue"].items() if "undefined" not in one}
    charted = []
    if found and len(names) <= MAX_SERIES:
        by_name = {slug: {one["name"]: one for one in ranking["configurations"]} for slug, ranking in found.items()}
        series = [_chance_series(name, [ranking[name] for ranking in by_name.values()]) for name in names]
        labels = [to_words(slug) for slug in found]
        charted = [_chart("tissues", labels, series, Axis("preferred to another", percent=True), "Preferred to another")]
    table = preference_tables.build_preference_tissue_table(results)
    lead = "The chance to be preferred to another configuration, fitted to the pairs of one tissue."
    return _section("tissues", "By tissue", lead, charts=charted, beside=[(table, "By tissue", "dense", "")])


def _chance_series(name: str, found: Sequence[Results]) -> Series:
    values, low, high = ([one[f"win_chance{end}"] for one in found] for end in ("", "_low", "_high"))
    return Series(name, values, low, high)


def _series(name: str, found: Sequence[Results]) -> Series:
    values, low, high = ([one[key] for one in found] for key in ("value", "low", "high"))
    return Series(name, values, low, high)


def _chart(key: str, labels: Sequence[str], series: Sequence[Series], axis: Axis, title: str) -> Chart:
    """A dot chart with its caption."""
    svg = charts.dots(key, labels, series, axis, title)
    return Chart(svg, f"{title}, with 95 % intervals.")
