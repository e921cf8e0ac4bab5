"""The report: complete, self-contained, deterministic, safe for any label, and clear about missing or damaged files."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import tiny_tree, write_params
from fake_results import SLUGS, N, log, write_run
from html_tags import HOSTILE, Tags

from pathsynth.core.errors import DataError
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.report import charts
from pathsynth.report.render import ReportInput, read_report, render_report


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("written"))


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(written, tmp_path / "run")


@pytest.fixture(scope="module")
def content(written: Path) -> ReportInput:
    return read(written)


@pytest.fixture(scope="module")
def page(content: ReportInput) -> str:
    return render_report(content)


def read(run: Path, subject: str | None = None) -> ReportInput:
    return read_report(load_params(run / "params.yaml"), run / "metrics", run / "plots", run / "logs", subject)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the contents of a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edited_page(run: Path, name: str, change: Callable[[dict], object]) -> str:
    edit(run / name, change)
    page = render_report(read(run))
    Tags(page)
    return page


class TestContent:
    def test_page_shows_every_class_and_score(self, content, page):
        assert all(page.count(label) >= 12 for label in labels.PATHMNIST)
        for text in (
            f"{content.evaluation['macro_f1']:.4f}", "0.6727", "0.60 to 0.73", "0.912", "0.987", "0.034", "to_q, to_k, conv1",
            "97.2 % accurate on real test images", "Gate gaming", "Accepted, colour only", "diagonal by construction",
            "Few images for the Fréchet distance", "Variety lost by filtering", "images: 3, at least 6 are needed",
            "at least 1900 are needed", "± 0.013", "no more than expected by chance", "more than expected by chance: look",
            "1,056,256", "0.774", "0.003", "not corrected", "real validation images", "twice as many real images",
            "same 120 optimizer steps", "Expected attempts", "after regeneration", "selected the epoch of gate and judge",
            "trained on the reference images", "4.2 MB", "12.6 min", "0.76 s", "cpu (2 threads)", "haematoxylin times 0.75",
            "running mean", "2.14.1", "validation images: 18, a quantile of 0.01 needs 100", "left out: smooth muscle: no unit",
            "not for diagnosis", "100 % by construction", "Stand-in data", "cover the sampling of images only",
        ):  # fmt: skip
            assert text in page, text

    def test_confusion_matrices_count_the_predictions(self, content):
        assert content.confusion["raw", "gate"].sum(axis=1).tolist() == [20] * N
        accepted = content.confusion["accepted", "gate"]
        assert accepted.trace() == accepted.sum() == 18 * N

    def test_columns_of_realism_are_ordered(self, page):
        section = page.partition('id="realism"')[2].partition("</section>")[0]
        heads = re.findall(r'<th scope="col">(real [a-z ]+|raw|accepted)<small>', section)
        assert heads == ["raw", "accepted", "real validation images", "real test images"]

    def test_every_chart_has_its_numbers_as_text(self, page):
        drawn = [attributes for tag, attributes in Tags(page).found if tag == "svg"]
        assert len(drawn) >= 10
        assert all(chart["role"] == "img" and re.search(r"\d", chart["aria-label"]) for chart in drawn)

    def test_other_data_set_has_no_published_score_and_no_stand_in_notice(self, content):
        page = render_report(replace(content, labels=tuple(f"class {i}" for i in range(N)), stand_in=False))
        assert "0.6727" not in page and "Stand-in data" not in page and "not for diagnosis" in page

    def test_checkpoints_are_those_of_the_parameters(self, content):
        page = render_report(replace(content, checkpoints={"gate": "last", "judge": "last"}))
        assert "selected no epoch" in page and "the last epoch of the judge" in page


class TestPage:
    def test_page_requests_nothing(self, page):
        assert not re.search(r"https?://|//[a-z0-9-]+\.|@import|url\((?!#)", page)
        found = Tags(page).found
        assert "script" not in [tag for tag, _ in found]
        for _, attributes in found:
            assert all(attributes.get(name, "#").startswith(("data:", "#")) for name in ("src", "href"))
        pictures = [attributes for tag, attributes in found if tag == "img"]
        assert len(pictures) == N + 2
        assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in pictures)

    def test_ids_are_unique_links_resolve_and_headings_are_nested(self, page):
        found = Tags(page).found
        ids = Counter(attributes["id"] for _, attributes in found if "id" in attributes)
        assert max(ids.values()) == 1
        links = [attributes["href"][1:] for _, attributes in found if attributes.get("href", "").startswith("#")]
        assert links and set(links) <= set(ids)
        levels = [int(tag[1]) for tag, _ in found if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))
        assert ("html", {"lang": "en"}) in found

    def test_hostile_names_stay_text(self, content):
        hostile = (HOSTILE, *labels.PATHMNIST[1:])
        quoting = {'" onload="alert(1)': '"><script>alert(2)</script>'}
        page = render_report(replace(content, labels=hostile, subject=HOSTILE, benchmark=HOSTILE, parameters=quoting))
        found = Tags(page).found
        assert "script" not in [tag for tag, _ in found]
        assert not any(name.startswith("on") for _, attributes in found for name in attributes)
        assert page.count("&lt;script&gt;") > 10

    def test_page_is_deterministic_and_has_no_absolute_paths(self, run):
        tree = tiny_tree()
        tree["benchmarks"]["tiny"]["base"]["pretrained_model_name_or_path"] = "/home/someone/model_x"
        write_params(run / "params.yaml", tree)
        page = render_report(read(run))
        assert page == render_report(read(run))
        assert "someone" not in page and str(run) not in page and "model_x" in page
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)


class TestMissingMeasurements:
    def test_unmeasured_sections_are_left_out(self, run):
        for name in ("metrics/generation.json", "metrics/lora.json", "metrics/robustness.json", "metrics/usefulness.json",
                     "plots/evaluation/pairs.csv", "plots/evaluation/filled.csv"):  # fmt: skip
            (run / name).unlink()
        for name in ("plots/curves", "plots/evaluation/plates", "logs"):
            shutil.rmtree(run / name)
        page = edited_page(run, "metrics/evaluation.json", lambda data: data.pop("untuned"))
        for anchor in ("robustness", "usefulness", "pictures", "training"):
            assert f'id="{anchor}"' not in page
        assert "not measured" in page and "Untuned base" not in page and "versions</summary>" not in page
        assert 'id="cost"' not in edited_page(run, "metrics/evaluation.json", lambda data: data.pop("cost"))

    def test_set_without_images_has_no_score(self, run):
        empty = {"filtered_judge": {"n_images": 0}, "filtered_colour": {"n_images": 0}}
        assert "no images" in edited_page(run, "metrics/evaluation.json", lambda data: data.update(empty))

    def test_set_of_another_generator_shows_nothing_of_the_lora(self, run):
        content = read(run, subject="my GAN")
        page = render_report(content)
        assert not content.of_lora and content.lora is None and not content.logs
        assert "set <b>my GAN</b>" in page and "images that the gate classifies as labelled" in page
        for text in (
            "after regeneration",
            "first attempts, classified",
            "1,056,256",
            "lora_name",
            "Loss of the LoRA",
            "LoRA training",
        ):
            assert text not in page, text

    @pytest.mark.parametrize("other", [{"seed": 8}, {"fingerprint": "0" * 16}])
    def test_log_of_another_run_is_ignored(self, run, other):
        path = run / "logs" / "tiny" / "r2" / "generate_filtered.json"
        path.write_text(json.dumps(log(run, "generate_filtered", 123.5) | other))
        assert set(read(run).logs) == {"train_lora"}

    def test_memory_of_several_processes_is_that_of_the_first(self, run, page):
        assert "first process" not in page
        page = edited_page(run, "logs/tiny/r2/generate_filtered.json", lambda data: data.update(processes=4))
        assert "Peak memory, generation, first process" in page and "cpu (2 threads), 4 processes" in page
        assert "Peak memory, training, first process" not in page

    def test_interval_of_no_width_is_left_out_with_one_note(self, run, page):
        assert "rule of three" not in page

        def perfect(data: dict) -> None:
            scores = {f"{name}{end}": 1.0 for name in ("macro_f1", "accuracy") for end in ("", "_low", "_high")}
            classes = {slug: dict.fromkeys(("precision", "recall", "f1", "f1_low", "f1_high"), 1.0) for slug in SLUGS}
            data.update(scores, gate_gaming={"difference": 0.0, "low": 0.0, "high": 0.0})
            data["judge"].update(scores, per_tissue=classes)

        page = edited_page(run, "metrics/evaluation.json", perfect)
        assert not re.search(r"1\.00+ to 1\.00|\+0.000 to \+0.000", page)
        assert "all of 180" in page and "all of 20<" in page and "same on every resample" in page
        assert page.count("rule of three") == 1 and "for 180 images that is 1.7 %" in page

    def test_undefined_scores_give_the_reason(self, run):
        def unstained(data: dict) -> None:
            for by in ("gate", "judge"):
                data[by]["stain"] = {"undefined": "not stained so"}

        page = edited_page(run, "metrics/robustness.json", unstained)
        assert "Not measured: stain: not stained so" in page and "haematoxylin times" not in page
        few = {"n_images": 0, "undefined": "too few real images"}
        page = edited_page(run, "metrics/usefulness.json", lambda data: data.update(twice_real=few, trained_on="raw"))
        assert "not measured: too few real images" in page and "the whole set, unfiltered" in page


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "text", "problem", "stage"),
        [
            ("metrics/evaluation.json", None, "could not be read", "evaluate"),
            ("metrics/judge.json", None, "could not be read", "train_classifier"),
            ("plots/evaluation/thresholds.csv", None, "could not be read", "evaluate"),
            ("plots/evaluation/plates/mucus.png", None, "could not be read", "evaluate"),
            ("metrics/evaluation.json", "{", "is not", "evaluate"),
            ("metrics/lora.json", "[]", "", "train_lora"),
            ("metrics/robustness.json", "", "is not", "observe_real"),
            ("logs/tiny/r2/train_lora.json", "{", "is not", "train_lora"),
            ("plots/evaluation/raw.csv", "tissue,slot\n", "columns tissue, gate, judge", "evaluate"),
            ("plots/evaluation/raw.csv", "tissue,slot,gate,judge\nmoon,0,mucus,mucus\n", "'moon'", "evaluate"),
            ("plots/evaluation/filled.csv", "tissue,attempt,filled\nall,1,x\n", "'x'", "evaluate"),
            ("plots/evaluation/plates/mucus.png", "no picture", "is not a PNG", "evaluate"),
        ],
    )
    def test_missing_or_damaged_file_is_named_with_its_stage(self, run, name, text, problem, stage):
        (run / name).unlink()
        if text is not None:
            (run / name).write_text(text)
        with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{problem}.*\. Run the stage {stage}\.$"):
            read(run)

    @pytest.mark.parametrize(
        ("name", "key", "stage"),
        [
            ("evaluation", "gate_gaming", "evaluate"),
            ("generation", "acceptance_rate", "evaluate"),
            ("gate", "val", "train_classifier"),
            ("usefulness", "twice_real", "measure_usefulness"),
            ("robustness", "judge", "observe_real"),
        ],
    )
    def test_missing_key_is_named_with_its_file_and_stage(self, run, name, key, stage):
        edit(run / "metrics" / f"{name}.json", lambda data: data.pop(key))
        with pytest.raises(DataError, match=rf"{name}\.json.*{key}.*\. Run the stage {stage}\.$"):
            render_report(read(run))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["evaluation", "generation", "usefulness", "robustness", "gate", "lora"])
    def test_any_missing_or_mistyped_key_gives_a_page_or_a_one_line_error(self, run, name, monkeypatch):
        for draw in ("bars", "lines"):
            # drawing and reading pictures takes most of the time
            monkeypatch.setattr(charts, draw, lambda *_, **__: "")
        shutil.rmtree(run / "plots" / "evaluation" / "plates")
        content, original = read(run), (run / "metrics" / f"{name}.json").read_text()
        for keys in list_keys(json.loads(original)):
            for mistyped in (False, True):
                data = json.loads(original)
                *above, last = keys
                parent = reduce(getitem, above, data)
                del parent[last]
                if mistyped:
                    parent[last] = "x"
                changed = {"classifiers": {"gate": data, "judge": data}} if name == "gate" else {name: data}
                try:
                    render_report(replace(content, **changed))
                except DataError as error:
                    assert re.search(r"\. Run the stage \w+\.$", str(error)) and "\n" not in str(error), keys

    def test_stage_writes_the_page_or_ends_in_one_line(self, run, monkeypatch):
        from stages.report import main

        monkeypatch.chdir(run)
        folders = [f"--{name}={name}" for name in ("metrics", "plots", "logs")]
        options = ["--params=params.yaml", *folders, "--out=reports/report.html"]
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 0, result.output
        assert (run / "reports" / "report.html").stat().st_size < 6_000_000
        (run / "metrics" / "judge.json").unlink()
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "metrics/judge.json: " in result.stderr


def list_keys(data: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path to every key; of the classes, whose entries are alike, only the first."""
    for key, value in data.items():
        if key not in SLUGS[1:]:
            yield (*above, key)
            if isinstance(value, dict):
                yield from list_keys(value, (*above, key))
