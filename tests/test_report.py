"""The report: complete, self-contained, the same every time, and not to be fooled by a label."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathsynth import labels, report
from pathsynth.report import ReportInput

SLUGS = labels.SLUGS
N = len(SLUGS)
HOSTILE = "<script>alert('mucus')</script>"
VOID = {"meta", "link", "img"}


def scored(value: float) -> dict:
    row = {"precision": value, "recall": value, "f1": value}
    averages = {"macro_f1": value, "macro_precision": value, "macro_recall": value, "accuracy": value}
    interval = {"macro_f1_low": value - 0.05, "macro_f1_high": value + 0.05}
    return {**averages, **interval, "n_images": 90, "per_tissue": {slug: dict(row) for slug in SLUGS}}


@pytest.fixture
def content() -> ReportInput:
    counts = {"attempted": 20, "accepted": 10, "acceptance_rate": 0.5, "unfilled": 3}
    split = {"accuracy": 0.912, "macro_f1": 0.9, "auc": 0.987, "ece": 0.034}
    return ReportInput(
        benchmark="phantom",
        lora="r8",
        labels=labels.PATHMNIST,
        slugs=SLUGS,
        stand_in=True,
        evaluation={**scored(0.8125), "judge": scored(0.7), "filtered_judge": scored(0.9), "untuned": scored(0.11)},
        confusion={"gate": np.eye(N, dtype=int) * 8 + 1, "judge": np.zeros((N, N), int)},
        generation={**counts, "per_tissue": {slug: dict(counts) for slug in SLUGS}},
        classifiers={name: {"epoch": 3, "val": split, "test": split} for name in ("gate", "judge")},
        plates={name: Image.new("RGB", (30, 20), "#c080c0") for name in (*SLUGS, "overview")},
        parameters={"seed": 1337, "benchmark": {"dataset": {"source": "phantom", "md5": None}, "modules": ["to_k", "to_q"]}},
    )


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that every opened tag is closed in turn."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag


def test_page_names_every_tissue_and_score(content: ReportInput):
    page = report.render_report(content)
    for label in labels.PATHMNIST:
        assert page.count(label) >= 4
    for text in ("0.8125", "0.6727", "0.60\u20130.73", "0.912", "0.987", "0.034", "r8", "1337", "to_k, to_q"):
        assert text in page, text


def test_page_needs_nothing_from_outside(content: ReportInput):
    page = report.render_report(content)
    assert not re.search(r"https?://|//[a-z0-9-]+\.|@import|url\(", page)
    found = Tags(page).found
    assert "script" not in [tag for tag, _ in found]
    for _, attributes in found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    pictures = [attributes for tag, attributes in found if tag == "img"]
    assert len(pictures) == N + 1
    assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in pictures)


def test_hostile_label_is_only_text(content: ReportInput):
    hostile = (HOSTILE, *labels.PATHMNIST[1:])
    quoting = {'" onload="alert(1)': '"><script>alert(2)</script>'}
    page = report.render_report(replace(content, labels=hostile, lora=HOSTILE, benchmark=HOSTILE, parameters=quoting))
    found = Tags(page).found
    assert "script" not in [tag for tag, _ in found]
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert "&lt;script&gt;" in page


def test_page_says_what_it_is_not(content: ReportInput):
    page = report.render_report(content)
    assert "not for diagnosis" in page
    assert "100 % by construction" in page
    assert "Stand-in data" in page
    medical = report.render_report(replace(content, stand_in=False, benchmark="pathmnist"))
    assert "Stand-in data" not in medical
    assert "not for diagnosis" in medical


def test_set_without_images_has_no_score(content: ReportInput):
    page = report.render_report(replace(content, evaluation={**content.evaluation, "filtered_judge": {"n_images": 0}}))
    assert "no images" in page
    Tags(page)


def test_page_is_the_same_every_time_and_keeps_paths_to_itself(content: ReportInput, tmp_path: Path):
    content = replace(content, parameters={"path": "/home/someone/pathmnist_64.npz", "base": "base/model"})
    report.write_report(tmp_path / "reports" / "a.html", content)
    report.write_report(tmp_path / "reports" / "b.html", content)
    page = (tmp_path / "reports" / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "reports" / "b.html").read_text(encoding="utf-8")
    assert "someone" not in page
    assert "pathmnist_64.npz" in page
    assert "base/model" in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)
