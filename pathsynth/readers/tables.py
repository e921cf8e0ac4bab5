"""Tables of a study's results, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pathsynth.report.pages import MISSING, decimals, percent, seconds, signed, whole
from pathsynth.report.tables import Cell, Row, Table

Results = Mapping[str, Any]
Format = Callable[[float | None], str]


def signed_or_dash(value: float | None) -> str:
    """Formats a difference with its sign, or a dash for None."""
    return MISSING if value is None else signed(value)


def points(value: float | None) -> str:
    """Formats a difference of shares in percentage points, or as a dash for None."""
    return MISSING if value is None else f"{100 * value:+.1f}"


def short_percent(value: float | None) -> str:
    """Formats a share as a percentage without decimals, or as a dash for None."""
    return percent(value, 0)


def format_interval(found: Results, form: Format, prefix: str = "") -> str:
    """Formats an interval; "" where there is none or it has no width, and the count for a share of answers that all agree.

    Args:
        found: an estimate.
        form: of its ends.
        prefix: what the names of its ends begin with.
    """
    low, high = found.get(f"{prefix}low"), found.get(f"{prefix}high")
    if low is None or high is None:
        return ""
    if low < high:
        return f"{form(low)} to {form(high)}"
    # no width does not mean certainty
    if form not in (percent, short_percent) or low not in (0.0, 1.0):
        return ""
    return f"{'all' if low else 'none'} of {whole(found['n_answers'])}"


def estimate_cell(found: Results, form: Format = short_percent) -> Cell:
    """Formats an estimate of `pathsynth.readers.intervals` with its interval."""
    return Cell(form(found["value"]), format_interval(found, form))


def kappa_cell(found: Results) -> Cell:
    """Formats a kappa with its interval, or the reason why there is none."""
    if "kappa" not in found:
        return Cell(MISSING, found.get("undefined", ""))
    return Cell(decimals(found["kappa"], 2), format_interval(found, lambda value: decimals(value, 2)))


def to_words(slug: str) -> str:
    """The name of a class from its slug."""
    return slug.replace("_", " ")


def build_summary_table(results: Results) -> Table:
    """Builds the table of all averages of a study."""
    naming, origin, fleiss = results["tissue_naming"], results["origin"], results["agreement"]["fleiss"]
    measures: Sequence[tuple[str, Results, Format]] = (
        ("Synthetic taken for real", origin["synthetic_taken_for_real"], percent),
        ("Real taken for synthetic", origin["real_taken_for_synthetic"], percent),
        ("Sensitivity for synthetic", origin["sensitivity"], percent),
        ("Specificity for synthetic", origin["specificity"], percent),
        ("d' (0: guessing)", origin["d_prime"], lambda value: decimals(value, 2)),
        ("AUC (0.5: guessing)", origin["auc"], decimals),
        ("Tissue named right, real images", naming["real"], percent),
        ("Tissue named right, synthetic images", naming["synthetic"], percent),
        ("Difference in points, real minus synthetic", naming["difference"], points),
    )
    rows: list[Row] = [
        (name, form(found["value"]), format_interval(found, form) or MISSING, whole(found["n_answers"]))
        for name, found, form in measures
    ]
    for name, found in (("tissue", fleiss["tissue"]), ("real or synthetic", fleiss["origin"])):
        cell = kappa_cell(found)
        rows.append((f"Agreement of readers on {name} (Fleiss' kappa)", cell.text, cell.note or MISSING, MISSING))
    return Table(("Measure", "Value", "95 % interval", "Answers"), rows)


def build_tissue_table(results: Results) -> Table:
    """Builds the table of accuracy and of mistaken origins by tissue."""
    naming, origin = results["tissue_naming"], results["origin"]
    rows = [
        _tissue_row(to_words(slug), naming["per_tissue"][slug], origin["per_tissue"][slug]) for slug in naming["per_tissue"]
    ]
    head = ("Tissue", "Real", "Synthetic", "Difference, points", "Synthetic taken for real", "Real taken for synthetic")
    groups = (("Tissue named right", 3), ("Origin mistaken", 2))
    return Table(head, rows, _tissue_row("all", naming, origin), groups)


def _tissue_row(name: str, naming: Results, origin: Results) -> Row:
    return (
        name,
        estimate_cell(naming["real"]),
        estimate_cell(naming["synthetic"]),
        estimate_cell(naming["difference"], points),
        estimate_cell(origin["synthetic_taken_for_real"]),
        estimate_cell(origin["real_taken_for_synthetic"]),
    )


def build_reader_table(results: Results) -> Table:
    """Builds the table of the scores of each reader."""
    rows = [
        (
            one["name"],
            Cell(whole(one["n_answers"]), "" if one["complete"] else "incomplete", alert=not one["complete"]),
            *(estimate_cell(one[score]) for score in ("tissue_real", "tissue_synthetic")),
            *(estimate_cell(one[score]) for score in ("synthetic_taken_for_real", "real_taken_for_synthetic")),
            decimals(one["d_prime"], 2),
            decimals(one["auc"], 2),
            seconds(one["seconds"]),
        )
        for one in results["readers"]
    ]
    head = ("Reader", "Answers", "Real", "Synthetic", "Synthetic", "Real", "d'", "AUC", "Median time")
    groups = (("", 1), ("Tissue named right", 2), ("Origin mistaken", 2), ("Real or synthetic", 2), ("", 1))
    return Table(head, rows, groups=groups)


def build_confidence_table(results: Results) -> Table:
    """Builds the table of how often readers are right about the origin, by their confidence."""
    names = {1: "1, guessed", 5: "5, certain"}
    rows = [
        (names.get(one["confidence"], str(one["confidence"])), whole(one["n_answers"]), percent(one["right"], 0))
        for one in results["confidence"]
    ]
    return Table(("Confidence", "Answers", "Right about the origin"), rows)


def build_observer_table(results: Results) -> Table:
    """Builds the table that compares readers with gate and judge on the same images."""
    rows = [
        (
            f"{observer}, {origin} images",
            estimate_cell(found["agreement"]),
            kappa_cell(found),
            whole(found["differ"]),
            whole(found["reader_right"]),
            whole(found["observer_right"]),
            whole(found["neither_right"]),
        )
        for observer, origins in results["observers"].items()
        for origin, found in origins.items()
    ]
    head = (
        "Compared with",
        "Same tissue",
        "Cohen's kappa",
        "Answers that differ",
        "Reader right",
        "Classifier right",
        "Neither",
    )
    return Table(head, rows)


def build_pair_table(results: Results) -> Table:
    """Builds the table of agreement between two readers each."""
    rows = [
        (
            f"{pair['first']}, {pair['second']}",
            whole(pair["tissue"]["n_images"]),
            *(
                cell
                for what in ("tissue", "origin")
                for cell in (short_percent(pair[what].get("agreement")), kappa_cell(pair[what]))
            ),
        )
        for pair in results["agreement"]["pairs"]
    ]
    head = ("Readers", "Images", "Same", "Cohen's kappa", "Same", "Cohen's kappa")
    return Table(head, rows, groups=(("", 1), ("Tissue", 2), ("Real or synthetic", 2)))


def build_repeat_table(results: Results) -> Table:
    """Builds the table of answers to images that were shown twice."""
    everyone = {"name": "all"} | results["repeats"]
    rows: list[Row] = [
        (
            one["name"],
            whole(one["tissue"]["n_answers"]),
            estimate_cell(one["tissue"]),
            estimate_cell(one["origin"]),
            decimals(one["confidence_difference"], 1),
        )
        for one in (*everyone["readers"], everyone)
    ]
    return Table(("Reader", "Images seen twice", "Same tissue", "Same origin", "Change of confidence"), rows[:-1], rows[-1])


def build_disputed_table(rows: Sequence[Results]) -> Table:
    """Builds the table of images for which readers and gate disagree."""
    return Table(
        ("Trial", "Tissue", "Origin", "Gate", "Judge", "Most other answers", "Answers that differ"),
        [
            (
                one["trial"],
                to_words(one["tissue"]),
                one["origin"],
                to_words(one["gate"]),
                to_words(one["judge"]) if one["judge"] else MISSING,
                f"{to_words(one['named'])} ({one['n_named']})",
                f"{one['n_differ']} of {one['n_answers']}",
            )
            for one in rows
        ],
        prose=(1, 3, 4, 5),
    )


def build_time_table(results: Results) -> Table:
    """Builds the table of seconds per image."""
    names = {"all": "All images", "real": "Real images", "synthetic": "Synthetic images"}
    keys = ("lower_quartile", "median", "upper_quartile")
    rows = [(name, *(seconds(results["seconds"][key][value]) for value in keys)) for key, name in names.items()]
    return Table(("Time per image", "Lower quartile", "Median", "Upper quartile"), rows)


def build_power_table(rows: Sequence[Results]) -> Table:
    """Builds the table of widths, one row per number of readers and one column per number of images."""
    images = list(dict.fromkeys(row["images"] for row in rows))
    widths = {(row["readers"], row["images"]): row for row in rows}
    return Table(
        ("Readers", *(f"{count} synthetic images" for count in images)),
        [
            (
                str(readers),
                *(
                    Cell(decimals(found["width"], 2), f"covers {short_percent(found['coverage'])}")
                    for found in (widths[readers, count] for count in images)
                ),
            )
            for readers in dict.fromkeys(row["readers"] for row in rows)
        ],
    )
