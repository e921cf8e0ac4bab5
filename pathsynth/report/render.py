"""The report: one HTML page that needs no other file, no network and no script, made of the files that the stages leave."""

from __future__ import annotations

from pathlib import Path

from pathsynth.core import io as files
from pathsynth.data.provenance import caption
from pathsynth.report import pages
from pathsynth.report.inputs import ReportInput, read_report
from pathsynth.report.scores import ARXIV
from pathsynth.report.sections import blamed, sections
from pathsynth.report.wording import class_noun

__all__ = ["ReportInput", "read_report", "render_report", "write_report"]


def render_report(content: ReportInput) -> str:
    """Renders the page; the same input gives the same text, without dates, hosts or absolute paths.

    Raises:
        DataError: one line that names file and stage, where a file lacks a value or holds one of another kind.
    """
    found = sections(content)
    with blamed("heading"):
        return pages.render(
            "report.html.j2",
            content=content,
            kind=class_noun(content),
            caption=caption(content.benchmark, content.stand_in),
            arxiv=ARXIV,
            sections=found,
        )


def write_report(path: Path, content: ReportInput) -> None:
    """Writes the page, whole or not at all.

    Raises:
        DataError: as `render_report`, and when the file cannot be written.
    """
    files.write_text(path, render_report(content))
