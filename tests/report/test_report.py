"""The report: complete, self-contained, deterministic, safe for any label, and clear about missing or damaged files."""

from __future__ import annotations

import base64
import io
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
from fake_results import ANCHORS, SLUGS, N, log, write_run
from html_tags import HOSTILE, Tags
from PIL import Image

from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.report import charts
from pathsynth.report.pages import Picture
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
    folders = (run / name for name in ("metrics", "plots", "logs", "metrics/anchors"))
    return read_report(load_params(run / "params.yaml"), *folders, subject)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the contents of a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def write_sheet(run: Path, name: str, count: int) -> None:
    """Writes a sheet of plain squares, each redder than the one before."""
    sheet = Image.new("RGB", (8 * count, 8))
    for place in range(count):
        sheet.paste((20 * place, 0, 0), (8 * place, 0, 8 * place + 8, 8))
    sheet.save(run / "plots" / "training" / name)


def edited_page(run: Path, name: str, change: Callable[[dict], object]) -> str:
    edit(run / name, change)
    page = render_report(read(run))
    Tags(page)
    return page


class TestContent:
    def test_page_shows_every_class_and_score(self, content, page):
        assert all(page.count(label) >= 12 for label in labels.PATHMNIST)
        for text in (
            "95 % interval over images, this training: ", "What may not be concluded", "0.912", "0.987", "0.034",
            "to_q, to_k, conv1", "97.2 % accurate on real test images", "Gate minus judge", "Accepted, colour only",
            "diagonal by construction", "Fréchet, features of judge, raw (180 images: at least 1025 are needed)",
            "3 images: at least 6 are needed", "+0.019 to +0.066, 162 pairs", "9 of 162 images, 95 % interval 2.6 % to 10.3 %",
            "2.3 by structure features", "gate 99.1 %, judge 97.2 %, colour 71.0 %",
            "Orientation coherence", "0.083 expected", "0.76 to 0.84", "more than chance",
            "1,056,256", "0.774", "0.003", "1.2 %", "93.0 %",
            "not corrected", "0.50 to 0.56", "Base without it", "moved and restained", 'id="anchors"', "± 0.013",
            "+0.023 to +0.039", "with 20 repeats, a true gain of 0.012 or more would be found with 80 % power",
            "always for 120 steps", "Expected attempts", "after regeneration", "selected the epoch of gate and judge",
            "trained on the reference images", "4.2 MB", "12.6 min", "0.76 s", "cpu (2 threads)", "haematoxylin times 0.75",
            "running mean", "2.14.1", "not for diagnosis", "100 % by construction", "Stand-in data",
            "number of sampler steps, with another seed", "without the LoRA",
        ):  # fmt: skip
            assert text in page, text

    def test_confusion_matrices_count_the_predictions(self, content):
        assert content.confusion["raw", "gate"].sum(axis=1).tolist() == [20] * N
        accepted = content.confusion["accepted", "gate"]
        assert accepted.trace() == accepted.sum() == 18 * N

    def test_first_figure_is_the_judge_of_raw_images(self, content, page):
        raw = content.evaluation["sets"]["raw"]
        assert re.findall(r'class="figure">([\d.]+)<', page) == [
            f"{raw[by]['macro_f1']:.3f}" for by in ("judge", "open_set", "gate")
        ]

    def test_paper_is_shown_only_beside_its_data_at_its_size(self, content, page):
        assert "0.673" not in page
        page = render_report(replace(content, is_published=True))
        assert "0.673" in page and "90 images, interval 0.60 to 0.73" in page

    def test_paper_used_the_download_at_224_pixels(self, run):
        tree = tiny_tree()
        dataset = {"source": "medmnist", "flag": "pathmnist", "archive_size": 224, "root": "data", "labels": "pathmnist"}
        for side, published in ((224, True), (64, False)):
            tree["benchmarks"]["tiny"]["dataset"] = dataset | {"channels": 3, "image_size": side}
            write_params(run / "params.yaml", tree)
            assert read(run).is_published is published

    def test_rows_of_realism_are_ordered(self, page):
        section = page.partition('id="realism"')[2].partition("</table>")[0]
        rows = re.findall(r'<th scope="row">([^<]+)', section)
        assert rows == [
            "Raw", "Accepted by the gate", "Paraphrased prompts", "Untuned base", "Real validation images", "Real test images"
        ]  # fmt: skip
        assert re.findall(r'colspan="(\d)">([^<]+)', section) == [("5", "Features of judge"), ("6", "Structure features")]

    def test_sentence_on_paraphrased_prompts_gives_the_scores_and_no_verdict(self, run):
        page = edited_page(
            run, "metrics/evaluation.json", lambda data: data["sets"]["paraphrased"]["judge"].update(macro_f1=0.123)
        )
        sets = read_details(run / "metrics" / "evaluation.json")["sets"]
        raw, untuned = (f"{sets[name]['judge']['macro_f1']:.3f}" for name in ("raw", "untuned"))
        assert f"0.123 with paraphrased prompts, {raw} with those of the training and {untuned} without the LoRA." in page

    def test_examples_pair_a_real_with_a_generated_image(self, run, content):
        assert list(content.examples) == list(SLUGS)
        pair = decode(content.examples["mucus"])
        with Image.open(run / "plots" / "evaluation" / "plates" / "mucus.png") as sheet:
            assert pair.size == (196, 96)
            for left, place in ((36, 0), (364, 100)):
                expected = sheet.convert("RGB").crop((left, 108, left + 96, 204))
                assert pair.crop((place, 0, place + 96, 96)).tobytes() == expected.tobytes()

    def test_every_chart_has_its_numbers_as_text(self, page):
        drawn = [attributes for tag, attributes in Tags(page).found if tag == "svg"]
        assert len(drawn) >= 12
        assert all(chart["role"] == "img" and re.search(r"\d", chart["aria-label"]) for chart in drawn)

    def test_other_data_set_has_no_stand_in_notice(self, content):
        page = render_report(replace(content, labels=tuple(f"class {i}" for i in range(N)), stand_in=False))
        assert "Stand-in data" not in page and "drawn phantoms" not in page and "not for diagnosis" in page

    def test_copies_between_splits_are_a_warning_and_all_counts_a_table(self, run, page):
        def found(split: str, source: str, exact: int, near: int, relabelled: int) -> dict:
            counts = {"images": 1502, "exact": exact, "near": near, "relabelled": relabelled, "examples": []}
            return {"split": split, "source": source} | counts

        rows = [found("train", "train", 3, 0, 0), found("test", "train", 1498, 1, 5)]
        assert "Duplicates in the data" not in page and "share images" not in page
        within = edited_page(run, "metrics/evaluation.json", lambda data: data.update(duplicates=rows[:1]))
        assert "Duplicates in the data" in within and "share images" not in within
        page = edited_page(run, "metrics/evaluation.json", lambda data: data.update(duplicates=rows))
        warning = page.partition("The splits share images.")[2].partition("</div>")[0]
        assert "1,498 of 1,502 test images are exact copies of training images: test scores will be too good" in warning
        assert "1 of 1,502 test images is a near copy" in warning and "training images are" not in warning
        table = page.partition("<h3>Duplicates in the data</h3>")[2].partition("</table>")[0]
        cells = [re.findall(r"<t[hd][^>]*>(?:<b>)?([^<]+)", row) for row in table.split("<tr>")[2:]]
        assert cells == [
            ["Training", "one another", "1,502", "3", "0", "0"], ["Test", "training", "1,502", "1,498", "1", "5"]
        ]  # fmt: skip

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
        assert len(pictures) == 2 * N + 2 + 4 * N
        assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in pictures)

    def test_sheets_have_a_row_per_step_in_order_and_a_column_per_class(self, run):
        write_sheet(run, "0500.png", N)
        write_sheet(run, "none.png", N)
        page = render_report(read(run))
        table = page.partition('<table class="sheets">')[2].partition("</table>")[0]
        assert re.findall(r'<th scope="row">([\d,]+)', table) == ["0", "100", "500", "1,000", "10,000"]
        assert re.findall(r'<th scope="col">([^<]+)', table) == ["Step", *labels.PATHMNIST]
        cells = [tile for row in re.findall(r"<tr>.*500.*</tr>", table) for tile in re.findall(r"base64,([^\"]+)", row)]
        colours = [Image.open(io.BytesIO(base64.b64decode(tile))).getpixel((3, 3)) for tile in cells]
        assert colours == [(20 * i, 0, 0) for i in range(N)], "each class has the picture of its place"
        write_sheet(run, "0500.png", N - 1)
        with pytest.raises(DataError, match=r"0500.png.*train_lora"):
            render_report(read(run))

    def test_validation_loss_shares_the_chart_and_its_legend(self, run):
        assert "validation loss: 0.3 at 50, 0.114 at 700" in render_report(read(run))
        shutil.rmtree(run / "plots" / "curves" / "lora" / "plots" / "metrics" / "validation")
        page = render_report(read(run))
        assert "validation loss" not in page and "running mean" in page

    def test_ids_are_unique_links_resolve_and_headings_are_nested(self, page):
        found = Tags(page).found
        ids = Counter(attributes["id"] for _, attributes in found if "id" in attributes)
        assert max(ids.values()) == 1
        links = [attributes["href"][1:] for _, attributes in found if attributes.get("href", "").startswith("#")]
        assert links and set(links) <= set(ids)
        levels = [int(tag[1]) for tag, _ in found if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))
        assert ("html", {"lang": "en"}) in found

    def test_landmarks_differ_in_name_and_parts_that_scroll_take_the_focus(self, page):
        found = Tags(page).found
        names = re.findall(r'<h2 id="[\w-]+-heading">([^<]+)</h2>', page)
        names += [attributes["aria-label"] for _, attributes in found if attributes.get("role") == "region"]
        assert len(names) > 20 and len(set(names)) == len(names)
        scrolling = [attributes for _, attributes in found if "scroll" in (attributes.get("class") or "").split()]
        assert scrolling and all(attributes.get("tabindex") == "0" for attributes in scrolling)

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
    def test_anchors_of_other_classifiers_are_left_out(self, run):
        def other(data: dict) -> None:
            data["real_images"]["gate"]["val"] /= 2

        assert 'id="anchors"' not in edited_page(run, "metrics/anchors/tiny.json", other)

    def test_unmeasured_sections_are_left_out(self, run):
        for name in ("generation", "lora", "memorisation", "robustness", "usefulness"):
            (run / "metrics" / f"{name}.json").unlink()
        for name in ("pairs", "filled"):
            (run / "plots" / "evaluation" / f"{name}.csv").unlink()
        for name in ("plots/curves", "plots/training", "plots/evaluation/plates", "logs", "metrics/anchors"):
            shutil.rmtree(run / name)

        def without_lora(data: dict) -> None:
            del data["sets"]["untuned"], data["sets"]["paraphrased"]

        page = edited_page(run, "metrics/evaluation.json", without_lora)
        for anchor in ("anchors", "robustness", "usefulness", "pictures", "training"):
            assert f'id="{anchor}"' not in page
        assert "not measured" in page and "versions</summary>" not in page
        for text in ("Untuned base", "araphrased prompts", "Memorisation", "Real | generated"):
            assert text not in page, text
        assert 'id="cost"' not in edited_page(run, "metrics/evaluation.json", lambda data: data.pop("cost"))

    def test_set_without_images_has_no_score(self, run):
        def accept_nothing(data: dict) -> None:
            data["sets"]["accepted"] = {"n_images": 0}
            data["observers"]["filter_gain"] = {"undefined": "no image was accepted"}
            data["observers"]["disputed"] = {"n_images": 0, "n_disputed": 0}

        page = edited_page(run, "metrics/evaluation.json", accept_nothing)
        assert "no image was accepted" in page and "0 of 0 images" in page
        assert re.search(r'<th scope="row">Accepted, judge</th>(<td>-</td>){5}<td>0</td>', page)

    def test_set_of_another_generator_shows_nothing_of_the_lora(self, run):
        content = read(run, subject="my GAN")
        page = render_report(content)
        assert not content.of_lora and content.lora is None and not content.logs
        assert "set <b>my GAN</b>" in page and "images that the gate classifies as labelled" in page
        assert content.memorisation is None
        for text in (
            "after regeneration",
            "1,056,256",
            "lora_name",
            "Loss of the LoRA",
            "LoRA training",
        ):
            assert text not in page, text

    def test_log_of_another_run_is_ignored(self, run):
        path = run / "logs" / "tiny" / "r2" / "generate_filtered.json"
        path.write_text(json.dumps(log(run, "generate_filtered", 123.5) | {"fingerprint": "0" * 16}))
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
            data["observers"]["gate_minus_judge"] = {"difference": 0.0, "low": 0.0, "high": 0.0}
            for by in ("gate", "judge"):
                data["sets"]["raw"][by].update(scores, per_tissue=classes)

        page = edited_page(run, "metrics/evaluation.json", perfect)
        assert not re.search(r"1\.00+ to 1\.00|\+0.000 to \+0.000", page)
        assert "all of 180" in page and "all of 20<" in page and "the same for all images" in page
        assert page.count("rule of three") == 1 and "for 180 images that is 1.7 %" in page

    def test_undefined_scores_give_the_reason(self, run):
        def unstained(data: dict) -> None:
            for by in ("gate", "judge"):
                data[by]["stain"] = {"undefined": "not stained so"}

        page = edited_page(run, "metrics/robustness.json", unstained)
        assert "Not measured: stain: not stained so" in page and "haematoxylin times" not in page

        def without_control(data: dict) -> None:
            few = {"undefined": "too few real images"}
            data["n_images"].pop("more_real")
            for kind in ("network", "probe"):
                for split in ("val", "test"):
                    data[kind][split] |= {"more_real": few, "gain_of_more_real": few}

        page = edited_page(run, "metrics/usefulness.json", lambda data: without_control(data) or data.update(trained_on="raw"))
        assert page.count("too few real images") == 8 and "the whole set, unfiltered" in page

        def without_distances(data: dict) -> None:
            raw = data["sets"]["raw"]
            raw["copying"]["pixels"] = {"undefined": "18 validation images: 99 are needed", "n_images": 180, "n_val": 18}
            raw["copying"]["structure"]["left_out"] = {"smooth_muscle": "no unit"}
            raw["two_sample_auc"]["spectrum"] = {"undefined": "too few images"}
            raw["nuclei"] = {"undefined": "no tissue has enough"}
            data["observers"]["raw"].pop("kappa")
            data["observers"]["raw"]["undefined"] = {"kappa": "one of the classifiers makes no error"}

        page = edited_page(run, "metrics/evaluation.json", without_distances)
        for text in (
            "18 validation images: 99 are needed",
            "smooth muscle (no unit)",
            "makes no error",
            "no tissue has enough",
        ):
            assert text in page, text


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
            ("metrics/memorisation.json", "{", "is not", "measure_memorisation"),
            ("logs/tiny/r2/train_lora.json", "{", "is not", "train_lora"),
            ("plots/evaluation/raw.csv", "tissue,slot\n", "columns tissue, gate, judge", "evaluate"),
            ("plots/evaluation/raw.csv", "tissue,slot,gate,judge\nmoon,0,mucus,mucus\n", "'moon'", "evaluate"),
            ("plots/evaluation/filled.csv", "tissue,attempt,filled\nall,1,x\n", "'x'", "evaluate"),
            ("plots/evaluation/plates/mucus.png", "no picture", "is not a PNG", "evaluate"),
            ("plots/training/0100.png", "no picture", "is not a PNG", "train_lora"),
            ("plots/curves/lora/plots/metrics/validation/loss.tsv", "step\n1\n", "columns step, loss", "train_lora"),
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
            ("evaluation", "sets", "evaluate"),
            ("evaluation", "observers", "evaluate"),
            ("generation", "acceptance_rate", "evaluate"),
            ("gate", "val", "train_classifier"),
            ("usefulness", "probe", "measure_usefulness"),
            ("memorisation", "base", "measure_memorisation"),
            ("robustness", "judge", "observe_real"),
        ],
    )
    def test_missing_key_is_named_with_its_file_and_stage(self, run, name, key, stage):
        edit(run / "metrics" / f"{name}.json", lambda data: data.pop(key))
        with pytest.raises(DataError, match=rf"{name}\.json.*{key}.*\. Run the stages? .*{stage}\.$"):
            render_report(read(run))

    @pytest.mark.parametrize("text", ["{", "{}"])
    def test_damaged_anchors_name_the_command(self, run, text):
        (run / "metrics" / "anchors" / "tiny.json").write_text(text)
        with pytest.raises(DataError, match=r"metrics/anchors.*\. Run `python -m pathsynth anchors`\.$"):
            render_report(read(run))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name", ["evaluation", "generation", "memorisation", "usefulness", "robustness", "anchors", "gate", "lora"]
    )
    def test_any_missing_or_mistyped_key_gives_a_page_or_a_one_line_error(self, run, name, monkeypatch):
        for draw in ("dots", "lines"):
            # drawing and reading pictures takes most of the time
            monkeypatch.setattr(charts, draw, lambda *_, **__: "")
        shutil.rmtree(run / "plots" / "evaluation" / "plates")
        path = run / ("metrics/anchors/tiny.json" if name == "anchors" else f"metrics/{name}.json")
        content, original = read(run), path.read_text()
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
                    assert re.search(r"\. Run [^.]+\.$", str(error)) and "\n" not in str(error), keys

    def test_stage_writes_the_page_or_ends_in_one_line(self, run, monkeypatch):
        from stages.report import main

        monkeypatch.chdir(run)
        folders = [f"--{name}={name}" for name in ("metrics", "plots", "logs")]
        options = ["--params=params.yaml", *folders, "--anchors=metrics/anchors", "--out=reports/report.html"]
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 0, result.output
        assert (run / "reports" / "report.html").stat().st_size < 6_000_000
        (run / "metrics" / "judge.json").unlink()
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "metrics/judge.json: " in result.stderr


def decode(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2])))


def list_keys(data: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path to every key; of classes and sets, whose entries are alike, only the first."""
    for key, value in data.items():
        if key not in (*SLUGS[1:], "accepted", "untuned", "paraphrased", "val", "test", *list(ANCHORS)[2:]):
            yield (*above, key)
            if isinstance(value, dict):
                yield from list_keys(value, (*above, key))
