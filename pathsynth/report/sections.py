"""The sections of the report: which there are, in which order, and those that only repeat what was given.

A section whose numbers were not measured is left out; its function gives None then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pathsynth.core.errors import DataError, one_line
from pathsynth.data import labels
from pathsynth.report import pages
from pathsynth.report.cost import cost
from pathsynth.report.inputs import ReportInput
from pathsynth.report.pages import flat
from pathsynth.report.realism import copying, few, realism, usefulness
from pathsynth.report.scores import calibration, classifiers, confusion, headline, robustness, scores, tissues, training
from pathsynth.report.wording import View, class_noun

# Where the numbers of a section come from, if not from what the stage evaluate leaves alone.
SOURCES = {
    "heading": ("metrics/evaluation.json or metrics/generation.json", "evaluate"),
    "tissues": ("metrics/evaluation.json or metrics/generation.json", "evaluate"),
    "usefulness": ("metrics/usefulness.json", "measure_usefulness"),
    "cost": ("metrics/evaluation.json, metrics/generation.json, metrics/lora.json or logs", "evaluate"),
    "robustness": ("metrics/robustness.json", "observe_real"),
    "training": ("plots/curves", "train_lora"),
    "classifiers": ("metrics/gate.json or metrics/judge.json", "train_classifier"),
    "parameters": ("logs", "train_lora"),
}


@dataclass(frozen=True)
class Section:
    """One section: its anchor, its heading, and the HTML below it."""

    anchor: str
    title: str
    body: str


@contextmanager
def blamed(section: str) -> Iterator[None]:
    """Turns what a value of the wrong kind does to the code of a section into one line on the files it comes from.

    Raises:
        DataError: naming the files, the section's anchor and the stage to run.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        source, stage = SOURCES.get(section, ("metrics/evaluation.json", "evaluate"))
        problem = f"lacks a value, or has one of another kind, for the section {section} ({one_line(error)})"
        raise DataError(source, f"{problem}; run the stage {stage} anew") from error


def sections(content: ReportInput) -> list[Section]:
    """The sections of the page, in order, without those that have nothing to show.

    Raises:
        DataError: as `blamed`.
    """
    word = class_noun(content)
    views: tuple[tuple[str, str, Callable[[ReportInput], View | None]], ...] = (
        ("headline", f"Macro F1 of prompted against predicted {word}", headline),
        ("scores", "All scores", scores),
        ("tissues", f"{word.capitalize()} by {word}", tissues),
        ("confusion", "What was asked for, and what was seen", confusion),
        ("realism", "Realism and variety", realism),
        ("usefulness", "Usefulness for training", usefulness),
        ("copying", "Copies of training images", copying),
        ("calibration", "Can the gate's confidence be trusted?", calibration),
        ("cost", "What it costs", cost),
        ("robustness", "How gate and judge stand up to worse images", robustness),
        ("training", "Training curves", training),
        ("classifiers", "Gate and judge on real images", classifiers),
        ("pictures", "Pictures", pictures),
        ("limits", "What may not be concluded", limits),
        ("parameters", "Parameters and versions", parameters),
    )
    found = []
    for anchor, title, view in views:
        with blamed(anchor):
            shown = view(content)
            if shown is not None:
                body = pages.render(f"report_{anchor}.html.j2", content=content, kind=word, view=shown)
                found.append(Section(anchor, title, body))
    return found


def pictures(content: ReportInput) -> View | None:
    """The plates."""
    if not content.plates:
        return None
    plates = [
        {"label": label, "slug": slug, "picture": content.plates[slug]}
        for label, slug in zip(content.labels, content.slugs, strict=True)
    ]
    return {"overview": content.plates["overview"], "plates": plates}


def limits(content: ReportInput) -> View:
    """What the figures do not say."""
    extractor = str(content.evaluation["realism"].get("extractor"))
    return {
        "by_judge": "judge" in extractor,
        "few": bool(few(content)),
        "useful": content.usefulness is not None,
        "other_centre": content.labels == labels.PATHMNIST,
    }


def parameters(content: ReportInput) -> View:
    """Every value that was used, and the versions that a log tells."""
    versions: Mapping[str, Any] = next((log["versions"] for log in content.logs.values() if log.get("versions")), {})
    return {"values": list(flat(content.parameters)), "versions": list(flat(versions))}
