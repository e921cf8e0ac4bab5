"""The report: one HTML page without scripts or external files, built from the files of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import portable_path, write_text
from pathsynth.data.provenance import caption
from pathsynth.report import pages
from pathsynth.report.accuracy import ARXIV, View, agreement, classes, confusion, headline, scores
from pathsynth.report.anchors import build_anchor_table
from pathsynth.report.classifiers import calibration, classifiers, describe_leaks, robustness, training
from pathsynth.report.copying import copying
from pathsynth.report.cost import cost
from pathsynth.report.inputs import ANCHORS_REMEDY, ReportInput, read_report
from pathsynth.report.links import Link, find_links
from pathsynth.report.realism import realism
from pathsynth.report.usefulness import usefulness

__all__ = ["ReportInput", "read_report", "render_report", "write_report"]

# The files to name where a section fails, and what to do; by default those of the stage evaluate.
EVALUATION = ("metrics/evaluation.json", "Run the stage evaluate.")
SOURCES = {
    "classes": ("metrics/evaluation.json or metrics/generation.json", "Run the stage evaluate."),
    "heading": ("metrics/evaluation.json or metrics/generation.json", "Run the stage evaluate."),
    "anchors": ("metrics/anchors", ANCHORS_REMEDY),
    "usefulness": ("metrics/usefulness.json", "Run the stage measure_usefulness."),
    "copying": ("metrics/evaluation.json or metrics/memorisation.json", "Run the stages evaluate and measure_memorisation."),
    "cost": ("metrics/evaluation.json, metrics/generation.json, metrics/lora.json or logs", "Run the stage evaluate."),
    "robustness": ("metrics/robustness.json", "Run the stage observe_real."),
    "training": ("plots/curves or plots/training", "Run the stage train_lora."),
    "classifiers": ("metrics/gate.json or metrics/judge.json", "Run the stage train_classifier."),
    "parameters": ("logs", "Run the stage train_lora."),
}


def render_report(content: ReportInput, links: Sequence[Link] = ()) -> str:
    """Renders the page. Equal input gives equal text, without dates, hosts or absolute paths.

    Args:
        content: what it shows.
        links: other pages that it links to.

    Raises:
        DataError: a file lacks a value or holds one of the wrong type; names the file and the stage to run.
    """
    sections = list(_render_sections(content))
    with _name_source("heading"):
        return pages.render(
            "report.html.j2",
            content=content,
            caption=caption(content.benchmark, content.stand_in),
            arxiv=ARXIV,
            leaks=describe_leaks(content),
            links=links,
            sections=sections,
        )


def write_report(path: Path, content: ReportInput) -> None:
    """Writes the page atomically, with links to the pages beside it.

    Raises:
        DataError: as `render_report`, or the file cannot be written.
    """
    write_text(path, render_report(content, find_links(path.parent)))


def _render_sections(content: ReportInput) -> Iterator[dict[str, str]]:
    """Yields anchor, title and HTML of each section, except sections that were not measured."""
    noun = content.class_noun
    sections: tuple[tuple[str, str, Callable[[ReportInput], View | None]], ...] = (
        ("headline", f"Macro F1 of prompted against predicted {noun}", headline),
        ("scores", "All scores", scores),
        ("classes", f"Scores per {noun}", classes),
        ("agreement", "Agreement of gate and judge", agreement),
        ("confusion", "Confusion matrices", confusion),
        ("realism", "Realism and variety", realism),
        ("anchors", "Scores of damaged real images", anchors),
        ("copying", "Copies of training images", copying),
        ("usefulness", "Usefulness for training", usefulness),
        ("calibration", "Calibration of the gate", calibration),
        ("cost", "Cost", cost),
        ("robustness", "Robustness of gate and judge", robustness),
        ("training", "Training curves", training),
        ("classifiers", "Accuracy of gate and judge", classifiers),
        ("pictures", "Contact sheets", pictures),
        ("limits", "What these results do not show", limits),
        ("parameters", "Parameters and versions", parameters),
    )
    for anchor, title, view in sections:
        with _name_source(anchor):
            shown = view(content)
            if shown is not None:
                body = pages.render(f"report_{anchor}.html.j2", content=content, noun=noun, nouns=content.classes_noun, **shown)
                yield {"anchor": anchor, "title": title, "body": body}


@contextmanager
def _name_source(section: str) -> Iterator[None]:
    """Converts errors about a missing or mistyped value to one line that names the section's files.

    Raises:
        DataError: names files, section and the stage to run.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        source, remedy = SOURCES.get(section, EVALUATION)
        problem = f"a value that the section {section} needs is missing or has the wrong type ({one_line(error)})"
        raise DataError(source, f"{problem}. {remedy}") from error


def pictures(content: ReportInput) -> View | None:
    """Shows the contact sheets."""
    sheets = content.contact_sheets
    if not sheets:
        return None
    return {"overview": sheets["overview"], "sheets": [(slug, label, sheets[slug]) for slug, label in content.names.items()]}


def anchors(content: ReportInput) -> View | None:
    """Shows the scores of real images that were damaged in known ways, unless other data or classifiers gave them."""
    found = content.anchors
    if found is None or found["real_images"] != content.evaluation["real_images"]:
        return None
    return {"table": build_anchor_table(found, content.evaluation)}


def limits(content: ReportInput) -> View:
    """States what the scores do not show."""
    return {"judge_features": "judge" in str(content.evaluation["extractor"])}


def parameters(content: ReportInput) -> View:
    """Lists every parameter value, and the versions from a log."""
    versions: Mapping[str, Any] = next((log["versions"] for log in content.logs.values() if log.get("versions")), {})
    return {"parameters": list(_flatten(content.parameters)), "versions": list(_flatten(versions))}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested values as dotted keys and texts; shortens an absolute path to its last part."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif isinstance(value, str):
            yield f"{prefix}{key}", portable_path(value)
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
