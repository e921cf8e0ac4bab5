"""Tables of scores, formatted as text, as Markdown, or by a template macro as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathsynth.data.provenance import escape_markdown
from pathsynth.report.pages import MISSING, decimals, interval, percent, probability, significant, whole

Scores = Mapping[str, Any]

# Key in evaluation.json ("" for the top level), name, and the observer: a classifier, or the colour control.
SETS = (
    ("", "Raw, gate", "gate"),
    ("judge", "Raw, judge", "judge"),
    ("colour", "Raw, colour only", "colour"),
    ("filtered_judge", "Accepted, judge", "judge"),
    ("filtered_colour", "Accepted, colour only", "colour"),
    ("untuned", "Untuned base, judge", "judge"),
)


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


def find_sets(evaluation: Scores) -> list[tuple[str, str, str, Scores]]:
    """Lists the scored sets of images: key, name, observer and scores. A set from a different generator has no untuned base."""
    sets = ((key, name, by, evaluation.get(key) if key else evaluation) for key, name, by in SETS)
    return [(key, name, by, scores) for key, name, by, scores in sets if scores is not None]


def build_set_table(evaluation: Scores) -> Table:
    """Builds the table of all averages of each set of images.

    Args:
        evaluation: contents of metrics/evaluation.json.

    Raises:
        KeyError: a value is missing.
    """
    averages = ("macro_f1", "macro_precision", "macro_recall", "accuracy")
    rows: list[Row] = [
        (
            name,
            *(score_cell(scores, average, scores["n_images"]) for average in averages),
            whole(scores["n_images"]),
            percent(evaluation["real_images"].get(by, {}).get("test")),
        )
        for _, name, by, scores in find_sets(evaluation)
    ]
    return Table(("Set", "Macro F1", "Precision", "Recall", "Accuracy", "Images", "Accuracy on real test images"), rows)


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
    observers = ("judge", "colour", "filtered_judge")
    rows: list[Row] = []
    for place, (slug, name) in enumerate(names.items()):
        n = {key: values[place] for key, values in (counts or {}).items()}
        gate = evaluation["per_tissue"][slug]
        judge, colour, accepted = (evaluation[by]["per_tissue"][slug] if evaluation[by]["n_images"] else {} for by in observers)
        rows.append(
            (
                name,
                decimals(gate["precision"]),
                decimals(gate["recall"]),
                score_cell(gate, "f1", n.get("raw")),
                score_cell(judge, "f1", n.get("raw")),
                decimals(colour.get("f1")),
                score_cell(accepted, "f1", n.get("accepted")),
                *([] if generation is None else _count_cells(generation["per_tissue"][slug])),
            )
        )
    judge, colour, accepted = (evaluation[by] for by in observers)
    total = (
        "all",
        decimals(evaluation["macro_precision"]),
        decimals(evaluation["macro_recall"]),
        score_cell(evaluation, "macro_f1", evaluation["n_images"]),
        score_cell(judge, "macro_f1", judge["n_images"]),
        decimals(colour.get("macro_f1")),
        score_cell(accepted, "macro_f1", accepted["n_images"]),
        *([] if generation is None else _count_cells(generation)),
    )
    filtering = ("Accepted", "Attempts", "Unfilled") if generation is not None else ()
    head = (noun.capitalize(), "Precision", "Recall", "F1", "Judge", "Colour", "Judge", *filtering)
    groups = (
        ("Raw, gate", 3),
        ("F1 of raw images", 2),
        ("F1 of accepted", 1),
        *((("Filtering", 3),) if generation is not None else ()),
    )
    return Table(head, rows, total, groups)


def _count_cells(counts: Scores) -> list[Cell | str]:
    unfilled = Cell(whole(counts["unfilled"]), alert=counts["unfilled"] > 0)
    return [percent(counts["acceptance_rate"], 0), whole(counts["attempted"]), unfilled]


def build_comparison_table(evaluation: Scores, usefulness: Scores | None = None) -> Table:
    """Builds the table of realism, variety, copies and usefulness: generated images beside real ones.

    Args:
        evaluation: contents of metrics/evaluation.json.
        usefulness: contents of metrics/usefulness.json, if it was measured.

    Raises:
        KeyError: a value is missing.
    """
    colour, realism, copies = evaluation["colour"], evaluation["realism"], evaluation["copying"]["accepted"]["features"]
    accepted, test = realism["accepted"], evaluation["real_images"].get("colour", {}).get("test")
    rows: list[Row] = [
        ("Macro F1 of raw images by colour alone", score_cell(colour, "macro_f1"), f"accuracy {percent(test)} on test"),
        (f"Kernel distance of accepted images, features of {realism['extractor']}", *_distance_cells(realism, "kernel")),
        (f"Fréchet distance of {accepted['n_images']} accepted images", *_distance_cells(realism, "frechet")),
        *((name.capitalize(), _format_score(accepted, name), _format_real(realism, name)) for name in ("recall", "coverage")),
        ("Closer to a training image than 99 % of validation images", _format_copies(copies), "1 % by definition"),
    ]
    if usefulness is not None:
        sources = ("real", "synthetic", "real_and_synthetic", "twice_real")
        trained = {source: _format_trained(usefulness[source]) for source in sources}
        rows += [
            ("Accuracy on test of a classifier trained on them", trained["synthetic"], f"trained on real {trained['real']}"),
            (
                "The same with these real images added",
                trained["real_and_synthetic"],
                f"twice as many real {trained['twice_real']}",
            ),
        ]
    return Table(("Measure", "Generated images", "Real images"), rows)


def score_table(evaluation: Scores, usefulness: Scores) -> str:
    """Formats `build_comparison_table` in Markdown."""
    return to_markdown(build_comparison_table(evaluation, usefulness))


def _distance_cells(realism: Scores, name: str) -> tuple[Cell, str]:
    scores, key = realism["accepted"], f"{name}_distance"
    low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
    note = "" if None in (low, high) else f"{significant(low)} to {significant(high)}"
    return Cell(_format_score(scores, key), note), _format_real(realism, key)


def _format_real(realism: Scores, name: str) -> str:
    """Formats the score of validation and test images, with their number where it differs, because distances depend on it."""
    parts = []
    for split, key in (("validation", "val"), ("test", "floor")):
        count = realism[key]["n_images"]
        note = "" if count == realism["accepted"]["n_images"] else f" ({count} images)"
        parts.append(f"{split} {_format_score(realism[key], name)}{note}")
    return ", ".join(parts)


def _format_score(scores: Scores, name: str) -> str:
    return significant(scores[name]) if name in scores else f"not defined ({scores['undefined'][name]})"


def _format_copies(scores: Scores) -> str:
    if "share_below" not in scores:
        return f"not defined ({scores['undefined']['share_below']})"
    ends = f"{percent(scores['low'])} to {percent(scores['high'])}"
    return f"{percent(scores['share_below'])} ({ends}), p = {probability(scores['p_more'])}"


def _format_trained(scores: Scores) -> str:
    if "accuracy_mean" not in scores:
        return f"not defined ({scores['undefined']})"
    return f"{decimals(scores['accuracy_mean'])} ± {decimals(scores['accuracy_std'])} ({scores['n_images']} images)"
