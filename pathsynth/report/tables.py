"""Tables of scores, formatted as text, as Markdown, or by a template macro as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathsynth.data.provenance import escape_markdown
from pathsynth.report.pages import MISSING, decimals, interval, percent, signed, significant, whole

Scores = Mapping[str, Any]

# Set of images and observer (a classifier, or the colour control) of each row of scores, and its name. The gate's score of the
# images that it accepted is 100 % by construction, so it is no row.
SETS = {
    ("raw", "judge"): "Raw, judge",
    ("raw", "gate"): "Raw, gate",
    ("raw", "colour"): "Raw, colour only",
    ("accepted", "judge"): "Accepted, judge",
    ("accepted", "colour"): "Accepted, colour only",
    ("untuned", "judge"): "Untuned base, judge",
    ("paraphrased", "judge"): "Paraphrased prompts, judge",
    ("val", "judge"): "Real validation, judge",
    ("val", "gate"): "Real validation, gate",
    ("val", "colour"): "Real validation, colour only",
    ("test", "judge"): "Real test, judge",
    ("test", "gate"): "Real test, gate",
    ("test", "colour"): "Real test, colour only",
}
CLASS_SCORES = (
    ("raw", "judge"), ("raw", "open_set"), ("raw", "gate"), ("raw", "colour"), ("accepted", "judge"), ("test", "judge")
)  # fmt: skip
# Feature spaces of fidelity; the first is named after the extractor.
SPACES = {"features": "features of {}", "structure": "structure features"}


@dataclass(frozen=True)
class Cell:
    """A value with a note in smaller print, such as its interval.

    Attributes:
        text: the value.
        note: an interval, or the reason why there is no value.
        alert: whether a page emphasises the value.
    """

    text: str
    note: str = ""
    alert: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name.

    Attributes:
        head: names of the columns.
        rows: one cell per column.
        total: a last row, below a rule.
        groups: for pages, names over neighbouring columns after the first, with the number of columns.
        prose: for pages, indices of columns that hold sentences.
    """

    head: Sequence[Cell | str]
    rows: Sequence[Row]
    total: Row = ()
    groups: Sequence[tuple[str, int]] = ()
    prose: Sequence[int] = ()

    @property
    def group_starts(self) -> set[int]:
        """Indices of the first column of each group."""
        starts, column = set(), 1
        for _, span in self.groups:
            starts.add(column)
            column += span
        return starts

    def select_columns(self, *indices: int) -> Table:
        """Returns the table with some of its columns, without their groups."""

        def select(row: Row) -> Row:
            return [row[index] for index in indices] if row else ()

        return Table(select(self.head), [select(row) for row in self.rows], select(self.total))


def to_text(table: Table) -> str:
    """Formats a table in columns of fixed width: the first aligned left, the others right."""
    rows = [[str(cell) for cell in row] for row in (table.head, *table.rows, table.total) if row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    lines.insert(1, rule)
    if table.total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def to_markdown(table: Table) -> str:
    """Formats a table in Markdown, with a newline at the end."""
    rows = [[escape_markdown(str(cell)) for cell in row] for row in (table.head, *table.rows, table.total) if row]
    rows.insert(1, ["---"] * len(table.head))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def score_cell(scores: Scores | None, name: str, count: int | None = None) -> Cell:
    """Formats a score with its interval, or a dash if there is none.

    Args:
        scores: with keys such as `f1`, `f1_low` and `f1_high`.
        name: of the score.
        count: number of scored images, see `pages.interval`.
    """
    scores = scores or {}
    value = scores.get(name)
    if value is None:
        return Cell(MISSING)
    return Cell(decimals(value), interval(scores.get(f"{name}_low"), scores.get(f"{name}_high"), count))


def find_scores(evaluation: Scores, name: str, by: str) -> Scores:
    """Returns the scores of a set by an observer or in a feature space; empty for a set that is missing or has no images.

    Raises:
        KeyError: a set with images has no such scores.
    """
    scored = evaluation["sets"].get(name, {"n_images": 0})
    return scored[by] if scored["n_images"] else {}


def build_set_table(evaluation: Scores) -> Table:
    """Builds the table of all averages of each set of images.

    Args:
        evaluation: contents of metrics/evaluation.json.

    Raises:
        KeyError: a value is missing.
    """
    rows: list[Row] = []
    for (key, by), name in SETS.items():
        if key in evaluation["sets"]:
            scores, count = find_scores(evaluation, key, by), evaluation["sets"][key]["n_images"]
            averages = [score_cell(scores, average, count) for average in ("macro_precision", "macro_recall", "accuracy")]
            open_set = score_cell(find_scores(evaluation, key, "open_set"), "macro_f1", count) if by == "judge" else MISSING
            rows.append((name, score_cell(scores, "macro_f1", count), open_set, *averages, whole(count)))
    return Table(("Set", "Macro F1", "Open-set F1", "Precision", "Recall", "Accuracy", "Images"), rows)


def build_class_table(
    evaluation: Scores,
    generation: Scores | None,
    names: Mapping[str, str],
    noun: str = "class",
    counts: Mapping[str, Sequence[int]] | None = None,
) -> Table:
    """Builds the table of the scores of each class, and of what filtering did to it.

    Args:
        evaluation: contents of metrics/evaluation.json.
        generation: contents of metrics/generation.json, or None.
        names: of the classes, by slug.
        noun: what a class is called.
        counts: number of images per class, by "raw" and "accepted", for notes beside perfect scores.

    Raises:
        KeyError: a value is missing.
    """
    sets = [find_scores(evaluation, name, by) for name, by in CLASS_SCORES]
    rows = [
        _class_row(
            name,
            "",
            [scores["per_tissue"][slug] if scores else {} for scores in sets],
            {key: values[place] for key, values in (counts or {}).items()},
            generation and generation["per_tissue"][slug],
        )
        for place, (slug, name) in enumerate(names.items())
    ]
    images = {key: evaluation["sets"][key]["n_images"] for key in ("raw", "accepted")}
    total = _class_row("all", "macro_", sets, images, generation)
    filtering = ("Share accepted", "Attempts", "Unfilled") if generation is not None else ()
    head = (noun.capitalize(), "Precision", "Recall", "F1", "Open set", "Gate", "Colour", "Accepted", "Real test", *filtering)
    groups = [("Raw, judge", 4), ("F1 of raw", 2), ("F1 by the judge", 2), *([("Filtering", 3)] if filtering else [])]
    return Table(head, rows, total, groups)


def _class_row(name: str, prefix: str, sets: Sequence[Scores], images: Mapping[str, int], counts: Scores | None) -> Row:
    """Formats one row of `build_class_table` from the scores of CLASS_SCORES, whose keys begin with `prefix`."""
    judge, open_set, gate, colour, accepted, test = sets
    f1 = f"{prefix}f1"
    return (
        name,
        *(decimals(judge.get(f"{prefix}{score}")) for score in ("precision", "recall")),
        score_cell(judge, f1, images.get("raw")),
        decimals(open_set.get(f1)),
        score_cell(gate, f1, images.get("raw")),
        decimals(colour.get(f1)),
        score_cell(accepted, f1, images.get("accepted")),
        decimals(test.get(f1)),
        *([] if counts is None else _count_cells(counts)),
    )


def _count_cells(counts: Scores) -> list[Cell | str]:
    unfilled = Cell(whole(counts["unfilled"]), alert=counts["unfilled"] > 0)
    return [percent(counts["acceptance_rate"], 0), whole(counts["attempted"]), unfilled]


def build_comparison_table(evaluation: Scores, usefulness: Scores | None = None) -> Table:
    """Builds the table of accuracy, realism, copies and usefulness: raw generated images beside real ones.

    Args:
        evaluation: contents of metrics/evaluation.json.
        usefulness: contents of metrics/usefulness.json, if it was measured.

    Raises:
        KeyError: a value is missing.
    """
    measures = (
        ("Macro F1 by the judge", "judge", "macro_f1", decimals),
        ("Open-set macro F1", "open_set", "macro_f1", decimals),
        ("Macro F1 by colour alone", "colour", "macro_f1", decimals),
        *((f"Kernel distance, {name}", space, "kernel_distance", significant) for space, name in SPACES.items()),
        ("Precision", "features", "precision", decimals),
        ("Coverage (variety)", "features", "coverage", decimals),
    )
    rows: list[Row] = []
    for name, by, score, write in measures:
        raw, val, test = (find_scores(evaluation, key, by) for key in ("raw", "val", "test"))
        real = f"validation {_format_score(val, score, write)}, test {_format_score(test, score, write)}"
        rows.append((name.format(evaluation["extractor"]), _interval_cell(raw, score, write), real))
    for space in ("pixels", "structure"):
        found, control = evaluation["sets"]["raw"]["copying"][space], evaluation["copying_control"][space]
        real = f"{percent(found.get('expected'))} expected, {copies_cell(control).text} of moved copies"
        rows.append((f"Close to a training image, {space}", copies_cell(found), real))
    for kind in ("network", "probe") if usefulness is not None else ():
        assert usefulness is not None
        gain, more = (gain_cell(usefulness[kind]["test"][key]) for key in ("gain", "gain_of_more_real"))
        rows.append(
            (
                f"Macro F1 that {usefulness['trained_on']} images add to few real ones, {kind}",
                gain,
                f"more real images add {more}",
            )
        )
    return Table(("Measure", "Generated images, raw", "Real images"), rows)


def score_table(evaluation: Scores, usefulness: Scores) -> str:
    """Formats `build_comparison_table` in Markdown."""
    return to_markdown(build_comparison_table(evaluation, usefulness))


def copies_cell(found: Scores) -> Cell:
    """Formats the share of images close to a training image with its interval, or the reason why there is none."""
    if "share" not in found:
        return Cell(MISSING, found["undefined"])
    return Cell(percent(found["share"]), f"{percent(found['low'])} to {percent(found['high'])}")


def gain_cell(gain: Scores) -> Cell:
    """Formats a difference of macro F1 with its interval, or the reason why there is none."""
    if "mean" not in gain:
        return Cell(MISSING, gain["undefined"])
    return Cell(signed(gain["mean"]), f"{signed(gain['low'])} to {signed(gain['high'])}")


def _interval_cell(scores: Scores, name: str, write: Callable[[float | None], str]) -> Cell:
    low, high = (scores.get(f"{name.removesuffix('_distance')}_{end}") for end in ("low", "high"))
    note = "" if low is None or high is None or low == high else f"{write(low)} to {write(high)}"
    return Cell(_format_score(scores, name, write), note)


def _format_score(scores: Scores, name: str, write: Callable[[float | None], str]) -> str:
    return write(scores[name]) if name in scores else f"not defined ({scores.get('undefined', {}).get(name, 'no images')})"
