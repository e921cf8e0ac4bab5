"""Links of the report to the pages beside it."""

from __future__ import annotations

from pathlib import Path

from fake_results import write_run
from html_tags import Tags

from pathsynth.core.params import load_params
from pathsynth.report.links import Link, find_links
from pathsynth.report.render import read_report, write_report


def write_page(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<p>page</p>")


def test_only_pages_that_exist_are_linked(tmp_path):
    reports = tmp_path / "reports"
    assert find_links(reports) == []
    write_page(reports / "readers" / "readers.html")
    write_page(tmp_path / "leaderboard" / "README.md")
    write_page(reports / "atlas.html")
    assert [link.address for link in find_links(reports)] == ["atlas.html", "readers/readers.html", "../leaderboard/README.md"]


def test_link_to_markdown_says_so(tmp_path):
    (tmp_path / "reports").mkdir()
    write_page(tmp_path / "leaderboard" / "README.md")
    assert [link.title for link in find_links(tmp_path / "reports")] == ["Leaderboard (Markdown file)"]


def test_a_title_is_linked_once(tmp_path):
    write_page(tmp_path / "study" / "study.html")
    write_page(tmp_path / "study.html")
    assert find_links(tmp_path) == [Link("study.html", "Reader study")]


def test_report_links_to_the_pages_beside_it(tmp_path):
    run = write_run(tmp_path / "run")
    content = read_report(load_params(run / "params.yaml"), run / "metrics", run / "plots", run / "logs")
    page = run / "reports" / "report.html"
    write_report(page, content)
    assert "See also" not in page.read_text(encoding="utf-8")
    write_page(run / "reports" / "atlas.html")
    write_report(page, content)
    text = page.read_text(encoding="utf-8")
    addresses = [attributes["href"] for _, attributes in Tags(text).found if "href" in attributes]
    assert addresses.count("atlas.html") == 1 and "Atlas of the accepted images, with a quiz" in text
