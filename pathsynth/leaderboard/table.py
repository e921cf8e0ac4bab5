"""The tables of the leaderboard in Markdown. Every text of a submission is escaped, although cards allow only plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pathsynth.core.errors import DataError
from pathsynth.data.provenance import escape_markdown
from pathsynth.evaluation.statistics import mean_interval
from pathsynth.leaderboard.board import Board, PinnedBenchmark, Submission, Value, iter_boards
from pathsynth.leaderboard.checks import RANKED, SHOWN, ScoreColumn
from pathsynth.report.anchors import ROWS
from pathsynth.report.pages import MISSING, whole
from pathsynth.report.tables import Cell

START, END = "<!-- leaderboard -->", "<!-- end -->"
MARKED = re.compile(rf"({re.escape(START)}\n).*?({re.escape(END)})", re.DOTALL)
ANCHORS = {key: name for name, generated, key in ROWS if not generated}
SELECTIONS = {"none": "none", "gate": "gate", "other": "by other means"}
HEAD = (
    "", "Submission", "Selected by", "Trainings", *(shown.head for shown in SHOWN), "Images", "Cost of a training", "Licence",
    "Date",
)  # fmt: skip
CHECKSUM_DIGITS = 12
STAND_IN = "**Phantoms are a stand-in: no figure of this table says anything about real tissue.** "


@dataclass(frozen=True)
class Row:
    """A row, whose cells are Markdown already; `rank` sorts it, highest first."""

    rank: float
    ranked: bool
    cells: Sequence[str]


def fill_leaderboard(text: str, path: Path, board: Board) -> str:
    """Replaces what stands between the marks of leaderboard/README.md.

    Raises:
        DataError: the marks are missing.
    """
    if len(MARKED.findall(text)) != 1:
        raise DataError(path, f"needs the lines `{START}` and `{END}` once each; the tables go between them")
    tables = "\n".join(format_board(pin, submissions) for pin, submissions in iter_boards(board))
    return MARKED.sub(lambda match: match.group(1) + tables + match.group(2), text)


def format_board(pin: PinnedBenchmark, submissions: Sequence[Submission]) -> str:
    """Formats the table of one benchmark: submissions and anchors, the best macro F1 by the judge first."""
    rows = [_submission_row(one) for one in submissions] + _anchor_rows(pin)
    rows.sort(key=lambda row: -row.rank)
    lines: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    place = 0
    for row in rows:
        place += row.ranked
        lines.append([str(place) if row.ranked else "", *row.cells])
    reference = pin.reference
    pinned = ", ".join(
        f"{escape(name)} `{checksum[:CHECKSUM_DIGITS]}`"
        for name, checksum in (*reference.data.items(), ("gate", reference.gate), ("judge", reference.judge))
    )
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = STAND_IN if reference.stand_in else ""
    return f"### {reference.benchmark}\n\n{note}Scored with {pinned}; scores version {reference.scores_version}.\n\n{table}"


def escape(text: str) -> str:
    """Escapes a text for a cell: no Markdown, no HTML, no entity, and nothing that is linked automatically."""
    escaped = escape_markdown(text.replace("&", "&amp;"))
    return re.sub(r"www\.", "www&#46;", escaped.replace("://", "&#58;//").replace("@", "&#64;"), flags=re.IGNORECASE)


def _submission_row(one: Submission) -> Row:
    """Formats a submission; several trainings are the unit of its intervals. Selected images have no place."""
    card, images = one.card, one.trainings[0].images
    trainings = [{shown.key: shown.read(training.scores) for shown in SHOWN} for training in one.trainings]
    distinct = min(training.images.distinct for training in one.trainings)
    authors = escape(", ".join(card.authors))
    cells = (
        f"[{escape(card.name)}](<{card.link}>), {authors}",
        SELECTIONS[card.selection],
        str(len(one.trainings)),
        *_score_cells(trainings, by_construction=("gate_f1",) if card.selection == "gate" else ()),
        whole(images.count) + (f" ({whole(distinct)} distinct)" if distinct < images.count else ""),
        f"{card.cost.hours:g} h, {escape(card.cost.device)}",
        escape(card.licence),
        card.date.isoformat(),
    )
    return Row(_mean(training[RANKED][0] for training in trainings), card.selection == "none", cells)


def _anchor_rows(pin: PinnedBenchmark) -> list[Row]:
    """Formats images with a known answer, in italics."""
    rows = []
    for key, anchor in pin.anchors.items():
        scores = {shown.key: _as_value(anchor.scores.get(shown.key)) for shown in SHOWN}
        name = escape(ANCHORS.get(key, key))
        cells = (f"*{name}*", "", "", *_score_cells([scores]), whole(anchor.n_images), "", "", "")
        rows.append(Row(scores[RANKED][0] or 0.0, False, cells))
    return rows


def _score_cells(trainings: Sequence[Mapping[str, Value]], by_construction: Sequence[str] = ()) -> list[str]:
    return [
        "by construction" if shown.key in by_construction else format_score(shown, [one[shown.key] for one in trainings])
        for shown in SHOWN
    ]


def format_score(shown: ScoreColumn, trainings: Sequence[Value]) -> str:
    """Formats a score with its interval over images, or of several trainings as mean ± deviation with that over trainings."""
    values = [value for value, _, _ in trainings if value is not None]
    if len(values) < len(trainings):
        return MISSING
    if len(trainings) == 1:
        value, low, high = trainings[0]
        return str(Cell(shown.write(value), _interval(shown, low, high)))
    summary = mean_interval(values)
    text = f"{shown.write(summary.mean)} ± {shown.write(summary.sd)}"
    return str(Cell(text, _interval(shown, summary.low, summary.high)))


def _interval(shown: ScoreColumn, low: float | None, high: float | None) -> str:
    return "" if low is None or high is None or low == high else f"{shown.write(low)} to {shown.write(high)}"


def _mean(values: Iterable[float | None]) -> float:
    return fmean(value or 0.0 for value in values)


def _as_value(ends: Sequence[float | None] | None) -> Value:
    value, low, high = ends or (None, None, None)
    return value, low, high
