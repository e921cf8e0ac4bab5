"""The report: complete, self-contained, the same every time, made of files, and not to be fooled by a label."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import tiny_tree, write_params
from fake_results import SLUGS, N, log, write_run

from pathsynth.core.errors import DataError
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.report import charts, pages
from pathsynth.report import render as report
from pathsynth.report.render import ReportInput, read_report

HOSTILE = "<script>alert('mucus $x$')</script>"
VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("written"))


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A run of its own, to be spoilt."""
    return shutil.copytree(written, tmp_path / "run")


@pytest.fixture(scope="module")
def content(written: Path) -> ReportInput:
    return read(written)


@pytest.fixture(scope="module")
def page(content: ReportInput) -> str:
    return report.render_report(content)


def read(run: Path, subject: str | None = None) -> ReportInput:
    return read_report(load_params(run / "params.yaml"), run / "metrics", run / "plots", run / "logs", subject)


def change(path: Path, **values) -> None:
    """Replaces keys of a JSON file; None takes a key away."""
    data = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


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


def test_page_names_every_tissue_and_score(content: ReportInput, page: str):
    for label in labels.PATHMNIST:
        assert page.count(label) >= 12
    for text in (
        f"{content.evaluation['macro_f1']:.4f}",
        "0.6727",
        "0.60 to 0.73",
        "0.912",
        "0.987",
        "0.034",
        "r2",
        "to_q, to_k, conv1",
    ):
        assert text in page, text


def test_every_section_of_the_contract_is_there(page: str):
    for text in (
        "97.2 % right on real test images", "Gate-gaming", "Accepted, by colour alone", "the diagonal by construction",
        "Few images for the Fréchet distance", "Variety lost by filtering", "images: 3, at least 6 are needed",
        "at least 1900 are needed", "± 0.013", "no more than chance would give", "more than chance would give: look",
        "1,056,256", "0.774", "0.003", "without correction", "real validation images", "twice as many real images",
        "optimiser steps, 120, however", "Expected attempts",
        "after regeneration", "chose the epoch that was kept of gate and judge", "from the very images that are the reference",
        "4.2 MB", "12.6 min", "0.76 s", "cpu (2 threads)", "haematoxylin times 0.75", "running mean", "torch", "2.14.1",
        "validation images: 18, a quantile of 0.01 needs 100", "left out: smooth muscle: no unit",
    ):  # fmt: skip
        assert text in page, text


def test_page_needs_nothing_from_outside(page: str):
    assert not re.search(r"https?://|//[a-z0-9-]+\.|@import|url\((?!#)", page)
    found = Tags(page).found
    assert "script" not in [tag for tag, _ in found]
    for _, attributes in found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    pictures = [attributes for tag, attributes in found if tag == "img"]
    assert len(pictures) == N + 2
    assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in pictures)


def test_ids_are_unique_links_lead_somewhere_and_headings_are_in_order(page: str):
    found = Tags(page).found
    ids = Counter(attributes["id"] for _, attributes in found if "id" in attributes)
    assert max(ids.values()) == 1
    links = [attributes["href"][1:] for _, attributes in found if attributes.get("href", "").startswith("#")]
    assert links and set(links) <= set(ids)
    levels = [int(tag[1]) for tag, _ in found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert ("html", {"lang": "en"}) in found


def test_every_chart_says_its_numbers(page: str):
    charts = [attributes for tag, attributes in Tags(page).found if tag == "svg"]
    assert len(charts) >= 10
    assert all(chart["role"] == "img" and re.search(r"\d", chart["aria-label"]) for chart in charts)


def test_hostile_label_is_only_text(content: ReportInput):
    hostile = (HOSTILE, *labels.PATHMNIST[1:])
    quoting = {'" onload="alert(1)': '"><script>alert(2)</script>'}
    page = report.render_report(replace(content, labels=hostile, subject=HOSTILE, benchmark=HOSTILE, parameters=quoting))
    found = Tags(page).found
    assert "script" not in [tag for tag, _ in found]
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert page.count("&lt;script&gt;") > 10
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert "&lt;script&gt;alert('mucus $x$')&lt;/script&gt;" in texts


def test_page_says_what_it_is_not(content: ReportInput, page: str):
    for text in ("not for diagnosis", "100 % by construction", "Stand-in data", "cover the drawing of images only"):
        assert text in page
    medical = report.render_report(replace(content, stand_in=False, benchmark="pathmnist"))
    assert "Stand-in data" not in medical
    assert "not for diagnosis" in medical


def test_paper_stands_beside_its_own_tissues_only(content: ReportInput):
    assert "0.6727" not in report.render_report(replace(content, labels=tuple(f"class {i}" for i in range(N))))


def test_set_without_images_has_no_score(run: Path):
    change(run / "metrics" / "evaluation.json", filtered_judge={"n_images": 0}, filtered_colour={"n_images": 0})
    page = report.render_report(read(run))
    assert "no images" in page
    Tags(page)


def test_what_was_not_measured_is_left_out_or_said(run: Path):
    for name in ("generation", "lora", "robustness", "usefulness"):
        (run / "metrics" / f"{name}.json").unlink()
    for name in ("curves", "evaluation/plates"):
        shutil.rmtree(run / "plots" / name)
    for name in ("pairs.csv", "filled.csv"):
        (run / "plots" / "evaluation" / name).unlink()
    shutil.rmtree(run / "logs")
    change(run / "metrics" / "evaluation.json", untuned=None)
    page = report.render_report(read(run))
    Tags(page)
    for anchor in ("robustness", "usefulness", "pictures", "training"):
        assert f'id="{anchor}"' not in page
    assert "not measured here" in page
    assert "Untuned base" not in page and "versions</summary>" not in page
    change(run / "metrics" / "evaluation.json", cost=None)
    assert 'id="cost"' not in report.render_report(read(run))


def test_set_of_another_generator_is_not_told_of_the_lora(run: Path):
    content = read(run, subject="my GAN")
    page = report.render_report(content)
    assert "set <b>my GAN</b>" in page
    assert not content.of_lora and content.lora is None and not content.logs
    assert "those in which the gate sees the class" in page
    assert "after regeneration" not in page and "first attempts, seen by" not in page
    for text in (
        "1,056,256",
        "lora_name",
        "Loss of the LoRA",
        "Training of the LoRA",
    ):
        assert text not in page


def test_log_of_another_run_does_not_count(run: Path):
    path = run / "logs" / "tiny" / "r2" / "generate_filtered.json"
    for other in ({"seed": 8}, {"fingerprint": "0" * 16}):
        path.write_text(json.dumps(log(run, "generate_filtered", 123.5) | other))
        content = read(run)
        assert set(content.logs) == {"train_lora"}
        assert "not measured here" in report.render_report(content)


def test_log_of_several_processes_says_whose_memory_it_tells(run: Path, page: str):
    assert "processes" not in page.partition('id="cost"')[2].partition("</section>")[0]
    change(run / "logs" / "tiny" / "r2" / "generate_filtered.json", processes=4)
    page = report.render_report(read(run))
    assert "Most memory, generation (first process)" in page and "cpu (2 threads), 4 processes" in page
    assert "Most memory, training (first process)" not in page


def test_interval_without_width_is_left_out_with_one_note(run: Path, page: str):
    assert "rule of three" not in page
    path = run / "metrics" / "evaluation.json"
    perfect = {name: 1.0 for key in ("macro_f1", "accuracy") for name in (key, f"{key}_low", f"{key}_high")}
    tissues = {slug: dict.fromkeys(("precision", "recall", "f1", "f1_low", "f1_high"), 1.0) for slug in SLUGS}
    gaming = {"difference": 0.0, "low": 0.0, "high": 0.0}
    judged = json.loads(path.read_text())["judge"] | perfect | {"per_tissue": tissues}
    change(path, **perfect, judge=judged, gate_gaming=gaming)
    page = report.render_report(read(run))
    assert "1.00 to 1.00" not in page and "1.000 to 1.000" not in page
    assert "all of 180" in page and "all of 20<" in page
    assert page.count("rule of three") == 1 and "of 180 images that is 1.7 %" in page
    assert "+0.000 to +0.000" not in page and "score alike however these images are drawn again" in page


@pytest.mark.parametrize(
    ("low", "high", "count", "words"),
    [
        (0.5, 0.75, 9, "0.50 to 0.75"),
        (0.996, 1.0, 9, "0.996 to 1.000"),
        (1.0, 1.0, 1200, "all of 1,200"),
        (0.0, 0.0, 50, "none of 50"),
        (1.0, 1.0, None, ""),
        (0.4, 0.4, 50, ""),
        (None, 1.0, 50, ""),
    ],
)
def test_interval_in_words(low: float | None, high: float, count: int | None, words: str):
    assert pages.interval(low, high, count) == words


def test_columns_of_realism_are_no_limit(page: str):
    assert "hoped for" not in page and "fewer than chance" not in page
    section = page.partition('id="realism"')[2].partition("</section>")[0]
    heads = re.findall(r'<th scope="col">(real [a-z ]+|raw|accepted)<small>', section)
    assert heads == ["raw", "accepted", "real validation images", "real test images"]


def test_stain_that_was_not_measured_says_why(run: Path):
    path = run / "metrics" / "robustness.json"
    data = json.loads(path.read_text())
    missing = {by: data[by] | {"stain": {"undefined": "not stained so"}} for by in ("gate", "judge")}
    change(path, **missing)
    page = report.render_report(read(run))
    assert "Not measured: stain: not stained so" in page and "haematoxylin times" not in page
    Tags(page)


def test_usefulness_of_too_few_real_images_says_so(run: Path):
    few = {"n_images": 0, "undefined": "not twice as many real images of every tissue"}
    change(run / "metrics" / "usefulness.json", twice_real=few, trained_on="raw")
    page = report.render_report(read(run))
    assert "not measured: not twice as many" in page and "Synthetic images are all of the set" in page


def test_kept_epochs_are_those_of_the_parameters(content: ReportInput):
    page = report.render_report(replace(content, checkpoints={"gate": "last", "judge": "last"}))
    assert "No epoch was chosen by them" in page and "the last epoch of the judge" in page


# A key of each kind of section, which a template or the code behind it asks for.
NEEDED = [
    ("evaluation", "gate_gaming.low", "evaluate"),
    ("evaluation", "macro_f1", "evaluate"),
    ("evaluation", "judge.macro_f1", "evaluate"),
    ("evaluation", "realism.val", "evaluate"),
    ("evaluation", "realism.raw.n_images", "evaluate"),
    ("evaluation", "copying.accepted.features.p_more", "evaluate"),
    ("generation", "per_tissue.mucus.attempted", "generate_filtered"),
    ("generation", "accepted", "generate_filtered"),
    ("usefulness", "steps", "measure_usefulness"),
    ("usefulness", "twice_real", "measure_usefulness"),
]


def alter(path: Path, key: str, *value) -> None:
    """Takes the value at a dotted key of a JSON file away, or puts another in its place."""
    data = json.loads(path.read_text())
    *parents, last = key.split(".")
    parent = data
    for name in parents:
        parent = parent[name]
    del parent[last]
    if value:
        parent[last] = value[0]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(("name", "key", "stage"), NEEDED)
def test_missing_key_is_named_with_its_file_and_stage(run: Path, name: str, key: str, stage: str):
    alter(run / "metrics" / f"{name}.json", key)
    with pytest.raises(DataError, match=rf"{name}\.json: has no {re.escape(key)}; run the stage {stage}$"):
        report.render_report(read(run))


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, "x", {}])
@pytest.mark.parametrize(("name", "key", "stage"), NEEDED)
def test_value_of_another_kind_is_no_traceback(run: Path, name: str, key: str, stage: str, value: object):
    alter(run / "metrics" / f"{name}.json", key, value)
    try:
        report.render_report(read(run))
    except DataError as error:
        assert "run the stage" in str(error) and "metrics" in str(error) and "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "generation", "usefulness", "robustness", "gate", "lora"])
def test_every_key_taken_away_leaves_a_page_or_one_line(run: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    for drawing in ("bars", "lines"):
        # drawings take long, and so do pictures
        monkeypatch.setattr(charts, drawing, lambda *_, **__: "")
    shutil.rmtree(run / "plots" / "evaluation" / "plates")
    path = run / "metrics" / f"{name}.json"
    text = path.read_text()
    for key in sorted(set(_keys(json.loads(text)))):
        path.write_text(text)
        alter(path, key)
        try:
            report.render_report(read(run))
        except DataError as error:
            assert re.search(r"; run the stage \w+( anew)?$", str(error)), key


def _keys(data: dict, prefix: str = "") -> Iterator[str]:
    """Dotted keys; of all tissues, whose rows are alike, the first."""
    for key, value in data.items():
        if key in SLUGS[1:]:
            continue
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("metrics/evaluation.json", "evaluate"),
        ("metrics/gate.json", "train_classifier"),
        ("metrics/judge.json", "train_classifier"),
        ("plots/evaluation/raw.csv", "evaluate"),
        ("plots/evaluation/thresholds.csv", "evaluate"),
        ("plots/evaluation/plates/mucus.png", "evaluate"),
    ],
)
def test_missing_file_is_named_with_its_stage(run: Path, name: str, stage: str):
    (run / name).unlink()
    with pytest.raises(DataError, match=rf"^\S*{re.escape(name)}: could not be read: .*; run the stage {stage}$"):
        read(run)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("metrics/evaluation.json", "{", "is not JSON.*run the stage evaluate"),
        ("metrics/evaluation.json", '{"macro_f1": 1}', "has no n_images; run the stage evaluate"),
        ("metrics/evaluation.json", '{"n_images": NaN}', "is not JSON.*NaN.*run the stage evaluate"),
        ("metrics/evaluation.json", '{"n_images": -Infinity}', "is not JSON.*Infinity.*run the stage evaluate"),
        ("metrics/lora.json", "[]", "not an object; run the stage train_lora"),
        ("metrics/robustness.json", "", "is not JSON.*run the stage observe_real"),
        ("metrics/usefulness.json", "", "is not JSON.*run the stage measure_usefulness"),
        ("metrics/generation.json", "{}", "has not the counts of these tissues; run the stage generate_filtered"),
        ("metrics/gate.json", "{}", "has no val; run the stage train_classifier"),
        ("logs/tiny/r2/train_lora.json", "{", "is not JSON.*run the stage train_lora"),
        ("plots/evaluation/raw.csv", "tissue,slot\n", "has no column gate, judge, colour; run the stage evaluate"),
        (
            "plots/evaluation/raw.csv",
            "tissue,slot,gate,judge,colour\nmoon,0,mucus,mucus,mucus\n",
            "'moon' is none of the tissues",
        ),
        ("plots/evaluation/filled.csv", "tissue,attempt,filled\nall,1,nan\n", "'nan' is not a finite number"),
        ("plots/evaluation/pairs.csv", "rank,tissue\n", "has no column slot, distance, train_index, space, train_tissue"),
        ("plots/evaluation/filled.csv", "tissue,attempt,filled\nall,1\n", "shorter than the head"),
        ("plots/evaluation/plates/mucus.png", "no picture", "is not a whole PNG.*run the stage evaluate"),
    ],
)
def test_broken_file_is_named_with_its_stage(run: Path, name: str, text: str, problem: str):
    (run / name).write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        read(run)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_scores_of_other_tissues_are_refused(run: Path):
    path = run / "metrics" / "evaluation.json"
    change(path, judge=json.loads(path.read_text())["judge"] | {"per_tissue": {"moon": {}}})
    with pytest.raises(DataError, match=r"judge has not the scores of these tissues; run the stage evaluate"):
        read(run)


def test_page_is_the_same_every_time_and_keeps_paths_to_itself(run: Path):
    tree = tiny_tree()
    tree["benchmarks"]["tiny"]["base"]["pretrained_model_name_or_path"] = "/home/someone/model_x"
    write_params(run / "params.yaml", tree)
    content = read(run)
    report.write_report(run / "reports" / "a.html", content)
    report.write_report(run / "reports" / "b.html", read(run))
    page = (run / "reports" / "a.html").read_text(encoding="utf-8")
    assert page == (run / "reports" / "b.html").read_text(encoding="utf-8")
    assert "someone" not in page and str(run) not in page
    assert "model_x" in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)


def test_counts_are_those_of_the_table(content: ReportInput):
    assert content.confusion["raw", "gate"].sum(axis=1).tolist() == [20] * N
    accepted = content.confusion["accepted", "gate"]
    assert accepted.trace() == accepted.sum() == 18 * N
    assert content.slugs == SLUGS


def test_stage_writes_the_page(run: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.report import main

    monkeypatch.chdir(run)
    options = [
        "--params",
        "params.yaml",
        "--metrics",
        "metrics",
        "--plots",
        "plots",
        "--logs",
        "logs",
        "--out",
        "reports/report.html",
    ]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert (run / "reports" / "report.html").stat().st_size < 6_000_000
    (run / "metrics" / "judge.json").unlink()
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: metrics/judge.json: ") and result.stderr.count("\n") == 1
