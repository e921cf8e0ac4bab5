"""Links from the report to the pages that other commands have written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Address of a page, relative to the report's folder, and its title.
PAGES = {
    "atlas.html": "Atlas of the accepted images, with a quiz",
    "compare.html": "Comparison of experiments",
    "study.html": "Reader study",
    "study/study.html": "Reader study",
    "preference.html": "Preference study",
    "preference/preference.html": "Preference study",
    "readers.html": "Results of the readers",
    "readers/readers.html": "Results of the readers",
    # browsers show Markdown as plain text
    "../leaderboard/README.md": "Leaderboard (Markdown file)",
}


@dataclass(frozen=True)
class Link:
    """A page beside the report: its relative address and its title."""

    address: str
    title: str


def find_links(folder: Path) -> list[Link]:
    """Lists the pages that exist beside a report in `folder`, one per title."""
    links: dict[str, Link] = {}
    for address, title in PAGES.items():
        if (folder / address).is_file():
            links.setdefault(title, Link(address, title))
    return list(links.values())
