"""The sections of the report: which there are, in which order, and those that only repeat what was given.

A section whose numbers were not measured is left out; its function gives None then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathsynth.pages import flat
from pathsynth.report_cost import cost
from pathsynth.report_realism import copying, few, realism, usefulness
from pathsynth.report_scores import calibration, classifiers, confusion, headline, robustness, scores, tissues, training
from pathsynth.report_words import View, kind

if TYPE_CHECKING:
    from pathsynth.report import ReportInput


@dataclass(frozen=True)
class Section:
    """One section: its anchor, from which its template is named, its heading, and what its template shows."""

    anchor: str
    title: str
    view: View

    @property
    def template(self) -> str:
        """Name of the template."""
        return f"report_{self.anchor}.html.j2"


def sections(content: ReportInput) -> list[Section]:
    """The sections of the page, in order, without those that have nothing to show."""
    word = kind(content)
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
    found = ((anchor, title, view(content)) for anchor, title, view in views)
    return [Section(anchor, title, view) for anchor, title, view in found if view is not None]


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
    return {"by_judge": "judge" in extractor, "few": bool(few(content)), "useful": content.usefulness is not None}


def parameters(content: ReportInput) -> View:
    """Every value that was used, and the versions that a log tells."""
    versions: Mapping[str, Any] = next((log["versions"] for log in content.logs.values() if log.get("versions")), {})
    return {"values": list(flat(content.parameters)), "versions": list(flat(versions))}
