"""The scores as a plain-text table for the terminal: `python -m pathsynth summary`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import read_details
from pathsynth.report.pages import interval

HEADS = ("class", "precision", "recall", "F1", "accepted", "unfilled")
SETS = (
    ("judge", "raw images by judge"),
    ("colour", "raw images by colour alone"),
    ("filtered_judge", "accepted images by judge"),
    ("untuned", "untuned base by judge"),
)


def summary_table(evaluation: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    """A table of the scores of raw images by the gate, tissue by tissue and overall, and one line for each other set.

    Args:
        evaluation: dict of metrics/evaluation.json.
        generation: dict of metrics/generation.json.

    Returns:
        Lines of text without a newline at the end.
    """
    rows = [
        _row(tissue, [scores[name] for name in ("precision", "recall", "f1")], generation["per_tissue"][tissue])
        for tissue, scores in evaluation["per_tissue"].items()
    ]
    rows.append(_row("all", [evaluation[f"macro_{name}"] for name in ("precision", "recall", "f1")], generation))
    widths = [max(len(row[i]) for row in (HEADS, *rows)) for i in range(len(HEADS))]
    rule = "  ".join("-" * width for width in widths)
    lines = ["raw images by gate (prompted against predicted class)", "", _line(HEADS, widths), rule]
    lines += [_line(row, widths) for row in rows[:-1]]
    return "\n".join([*lines, rule, _line(rows[-1], widths), "", headlines(evaluation)])


def headlines(evaluation: Mapping[str, Any]) -> str:
    """One line for each scored set, and one for realism and copies."""
    lines = [_headline("raw images by gate", evaluation), *(_headline(name, evaluation[key]) for key, name in SETS)]
    raw, floor = evaluation["realism"]["raw"], evaluation["realism"]["floor"]
    distances = [f"{scores['frechet_distance']:.3g}" if "frechet_distance" in scores else "-" for scores in (raw, floor)]
    lines.append(f"{'Fréchet distance, raw':<28}{distances[0]} (real test images {distances[1]}), by {_extractor(evaluation)}")
    copies = evaluation["copying"]["accepted"]
    shares = [
        f"{space} {copies[space]['share_below']:.1%}" for space in ("features", "pixels") if "share_below" in copies[space]
    ]
    if shares:
        lines.append(f"{'nearer than real, accepted':<28}by {', by '.join(shares)} (1.0% is expected of new images)")
    asked = images_of(evaluation)
    if missing := [slug for slug, images in asked.items() if not images]:
        lines.append(f"note: {len(missing)} of {len(asked)} classes have no images and count as 0: {', '.join(missing)}")
    return "\n".join(lines)


def images_of(evaluation: Mapping[str, Any]) -> dict[str, int]:
    """Number of raw images of every class."""
    return {slug: scores["n_images"] for slug, scores in evaluation["realism"]["raw"]["per_tissue"].items()}


def _extractor(evaluation: Mapping[str, Any]) -> str:
    return f"features of {evaluation['realism']['extractor']}"


def _row(name: str, scores: list[float], generation: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, *(f"{score:.3f}" for score in scores), f"{generation['acceptance_rate']:.0%}", str(generation["unfilled"]))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells)


def _headline(name: str, scores: Mapping[str, Any]) -> str:
    if not scores["n_images"]:
        return f"{name:<28}no images"
    between = interval(scores["macro_f1_low"], scores["macro_f1_high"])
    shown = f" (95 % {between})" if between else ""
    return f"{name:<28}macro F1 {scores['macro_f1']:.3f}{shown}, {scores['n_images']} images"


@click.command()
@click.option(
    "--evaluation", type=FILE, default="metrics/evaluation.json", show_default=True, help="Scores of the stage evaluate."
)
@click.option(
    "--generation", type=FILE, default="metrics/generation.json", show_default=True, help="Counts of generate_filtered."
)
@click.option("--plots", type=FOLDER, default="plots/evaluation", show_default=True, help="Folder of plates and tables.")
@click.option("--report", type=FILE, default="reports/report.html", show_default=True, help="The HTML report.")
@reports_errors
def summary(evaluation: Path, generation: Path, plots: Path, report: Path) -> None:
    """Prints the scores and says where the pictures are."""
    try:
        click.echo(summary_table(read_details(evaluation), read_details(generation)))
    except KeyError as error:
        raise DataError(evaluation, f"or {generation}: has no key {error.args[0]!r}; run the stage evaluate anew") from error
    click.echo(f"\nlook at {plots / 'plates' / 'overview.png'}, then open {report} in a browser")
