"""The HTML of the page's status line and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathsynth.report import pages
from pathsynth.synthesis.records import BY_GATE, REJECTED, Record

PACKAGE = "pathsynth.app"
# Where the server serves the folder of `RecentImages`.
IMAGES_URL = "/images"


@dataclass(frozen=True)
class Card:
    """An image as the page shows it.

    Attributes:
        url: address of its PNG file.
        record: its provenance.
        label: what it is, in a word or two.
    """

    url: str
    record: Record
    label: str

    @property
    def rejected(self) -> bool:
        """Whether the gate has rejected the image."""
        return self.record.checked == REJECTED

    @property
    def subject(self) -> str:
        """The requested tissue in words, or the text."""
        return (self.record.tissue or self.record.prompt).replace("_", " ")

    @property
    def verdict(self) -> str:
        """What the gate predicted, as a sentence."""
        record = self.record
        if record.predicted is None:
            return "Not checked by the gate."
        verb = "Accepted" if record.checked == BY_GATE else "Rejected"
        return f"{verb}: the gate saw {record.predicted.replace('_', ' ')} ({record.confidence:.0%})."


def make_card(path: Path, record: Record, label: str = "synthetic") -> Card:
    """Describes an image whose PNG file lies in a folder of `RecentImages`."""
    return Card(f"{IMAGES_URL}/{path.parent.name}/{path.name}", record, label)


def render_status(message: str, *, alert: bool = False) -> str:
    """Renders the status line; an alert says what is wrong with the request."""
    return _render("status.html.j2", message=message, alert=alert)


def render_images(cards: Sequence[Card], notice: str) -> str:
    """Renders the images, or an empty text if there are none yet."""
    return _render("images.html.j2", cards=cards, notice=notice) if cards else ""


def render_heading(**values: Any) -> str:
    """Renders the head of the page with its statement of what the images are."""
    return _render("heading.html.j2", **values)


def read_css() -> str:
    """Returns the style sheet."""
    return _render("app.css.j2")


def _render(template: str, **values: Any) -> str:
    return pages.render(template, PACKAGE, **values)
