"""`python -m pathsynth study` and `preference`: pages of prepared and generated images, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import tiny_tree, write_params

from pathsynth.__main__ import main
from pathsynth.classifiers.model import Classifier, build_card, build_network, save_classifier
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.data.archives import write_archive
from pathsynth.data.generated import ATTEMPT_COLUMNS
from pathsynth.data.labels import PATHMNIST, SLUGS
from pathsynth.data.prepared import write_prepared
from pathsynth.sources import phantom


def run(command: str, *args: object):
    return CliRunner().invoke(main, [command, *map(str, args)], catch_exceptions=False)


def seed_of(tissue: int, slot: int, attempt: int) -> int:
    return 100 * tissue + 10 * slot + attempt


def write_generated(folder: Path, seed: int, side: int = 32, slots: int = 3) -> Path:
    """A folder like that of the stage generate_filtered: the gate rejected the first attempt at slot 0 of every tissue."""
    rng, tissues = np.random.default_rng(seed), np.repeat(np.arange(9), slots)
    for name in ("raw", "accepted"):
        write_archive(folder / f"{name}.npz", rng.integers(0, 256, (9 * slots, side, side, 3), np.uint8), tissues)
    rows = []
    for number, slug in enumerate(SLUGS):
        for slot in range(slots):
            attempts = 2 if slot == 0 else 1
            for attempt in range(attempts):
                accepted = attempt == attempts - 1
                predicted = slug if accepted else "something else"
                rows.append((slug, slot, attempt, seed_of(number, slot, attempt), predicted, 0.9, int(accepted)))
    frame = pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))
    frame.to_csv(folder / "attempts.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Parameters, prepared phantoms and generated images."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder / "params.yaml", tiny_tree())
    splits = {split: phantom.draw_split(n, 7, 32, split) for split, n in (("train", 1), ("val", 1), ("test", 3))}
    write_prepared(folder / "prepared", "tiny", PATHMNIST, splits, {"source": "phantom", "stand_in": True}, 32)
    write_generated(folder / "generated", 1)
    write_generated(folder / "other", 2)
    return folder


def options(project: Path, out: Path) -> list[object]:
    return ["--params", project / "params.yaml", "--scratch", out.parent / "scratch", "--out", out]


def study(project: Path, out: Path, *more: object):
    places = ["--prepared", project / "prepared", "--generated", project / "generated", "--models", project / "models"]
    return run("study", *options(project, out), *places, *more)


class TestStudy:
    def test_writes_page_and_key_and_says_what_to_do_with_them(self, project, tmp_path):
        consent = tmp_path / "consent.txt"
        consent.write_text("First.\nStill first.\n\nSecond.\n")
        result = study(project, tmp_path / "out", "-n", 4, "--seed", 5, "--repeats", 2, "--consent", consent)
        assert result.exit_code == 0, result.output
        assert "38 trials" in result.output and "Hand out this file, and keep" in result.output
        assert "no gate and no judge" in result.output
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["study.html", "study_key.json"]
        page, key = (tmp_path / "out" / "study.html").read_text(), json.loads((tmp_path / "out" / "study_key.json").read_text())
        assert "<p>First. Still first.</p>" in page and "<p>Second.</p>" in page and "Phantoms." in page
        assert key["study"] in page and key["seed"] == 5 and key["stand_in"]
        assert not list((tmp_path / "scratch").iterdir())

    def test_key_states_split_and_row_or_slot_attempt_and_seed(self, project, tmp_path):
        assert study(project, tmp_path / "out", "-n", 6).exit_code == 0
        trials = json.loads((tmp_path / "out" / "study_key.json").read_text())["trials"]
        test_labels = np.load(project / "prepared" / "test_labels.npy")
        for entry in trials:
            source = entry["source"]
            if entry["origin"] == "real":
                assert source["split"] == "test" and SLUGS[test_labels[source["row"]]] == entry["tissue"]
            else:
                slot, attempt = source["slot"], int(source["slot"] == 0)
                assert source == {
                    "slot": slot,
                    "attempt": attempt,
                    "seed": seed_of(SLUGS.index(entry["tissue"]), slot, attempt),
                }

    def test_key_states_what_gate_and_judge_predict(self, project, tmp_path):
        settings = ClassifierSettings.model_validate(tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"])
        card = build_card(settings, SLUGS)
        save_classifier(tmp_path / "models" / "gate", Classifier(build_network(card), card, "cpu"))
        result = study(project, tmp_path / "out", "-n", 2, "--models", tmp_path / "models")
        assert result.exit_code == 0 and "no judge, so" in result.output
        trials = json.loads((tmp_path / "out" / "study_key.json").read_text())["trials"]
        assert all(entry["gate"]["predicted"] in SLUGS and 0 < entry["gate"]["confidence"] <= 1 for entry in trials)
        assert all(entry["judge"] is None for entry in trials)

    def test_without_a_seed_every_page_is_another_and_with_one_the_same(self, project, tmp_path):
        for name, seed in (("a", ()), ("b", ()), ("c", ("--seed", 1)), ("d", ("--seed", 1))):
            assert study(project, tmp_path / name, "-n", 2, *seed).exit_code == 0
        pages = [(tmp_path / name / "study.html").read_bytes() for name in "abcd"]
        assert pages[0] != pages[1] and pages[2] == pages[3]

    def test_archives_of_other_generators(self, project, tmp_path):
        assert study(project, tmp_path / "out", "-n", 2, "--generated", project / "other" / "raw.npz").exit_code == 0

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["-n", 8], "too few different synthetic images: adipose 3, background 3"),
            (["--generated", "nowhere"], "nowhere: is missing; run `make repro`, or pass an archive or a folder"),
            (["--tissue", "bone"], "bone is not a class; allowed: adipose"),
            (["-n", 2, "--size", 64], "64 px would enlarge images"),
            (["-n", 2, "--repeats", 20], "20 of 18 images; the limit is 9"),
            (["--consent", "nowhere.txt"], "nowhere.txt: could not be read"),
        ],
    )
    def test_errors_are_one_line_and_leave_nothing(self, project, tmp_path, args, message):
        result = study(project, tmp_path / "out", *(args if "-n" in args else [*args, "-n", 2]))
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()

    def test_refuses_to_overwrite(self, project, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "study_key.json").write_text("precious")
        result = study(project, tmp_path / "out", "-n", 2)
        assert result.exit_code == 1 and "is not empty; name a new folder" in result.output
        assert (tmp_path / "out" / "study_key.json").read_text() == "precious"

    def test_other_classes_and_other_sizes(self, project, tmp_path):
        path = tmp_path / "set.npz"
        np.savez(path, train_images=np.zeros((1, 32, 32, 3), np.uint8), train_labels=np.array([[9]], np.uint8))
        result = study(project, tmp_path / "out", "-n", 2, "--generated", path)
        assert result.exit_code == 1 and "label 9 is not in 0 to 8: 0 adipose" in result.output
        small = write_generated(tmp_path / "small", 3, side=16)
        result = study(project, tmp_path / "out", "-n", 2, "--generated", small)
        assert result.exit_code == 1 and "pass --size 16 to shrink all" in result.output
        assert study(project, tmp_path / "out", "-n", 2, "--generated", small, "--size", 16).exit_code == 0

    def test_table_of_attempts_of_other_images(self, project, tmp_path):
        folder = write_generated(tmp_path / "set", 3)
        write_archive(folder / "accepted.npz", np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1]))
        result = study(project, tmp_path / "out", "-n", 2, "--generated", folder)
        assert result.exit_code == 1 and "images of accepted.npz in this benchmark's classes" in result.output


class TestPreference:
    @pytest.mark.parametrize("images", ["raw", "accepted"])
    def test_compares_two_folders_whose_archives_have_the_same_name(self, project, tmp_path, images):
        sets = [f"a={project / 'generated'}", f"b={project / 'other'}"]
        result = run("preference", *sets, *options(project, tmp_path / "out"), "-n", 2, "--seed", 1, "--images", images)
        assert result.exit_code == 0, result.output
        assert "18 trials" in result.output
        trials = json.loads((tmp_path / "out" / "preference_key.json").read_text())["trials"]
        page = (tmp_path / "out" / "preference.html").read_text()
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        assert all({entry["left"], entry["right"]} == {"a", "b"} for entry in trials)
        assert all(trial["images"][0] != trial["images"][1] for trial in data["trials"])

    @pytest.mark.parametrize(
        ("sets", "message"),
        [
            (["a=x"], "needs at least two sets"),
            (["a=x", "a=y"], "two sets are named 'a'"),
            (["a=x", "y"], "'y' is not NAME=PATH"),
            (["a=x", "=y"], "'=y' is not NAME=PATH"),
        ],
    )
    def test_arguments(self, project, tmp_path, sets, message):
        result = run("preference", *sets, *options(project, tmp_path / "out"))
        assert result.exit_code == 2 and message in result.output

    def test_missing_set(self, project, tmp_path):
        result = run("preference", f"a={project / 'generated'}", "b=nowhere", *options(project, tmp_path / "out"))
        assert result.exit_code == 1 and "nowhere: is missing" in result.output and not (tmp_path / "out").exists()
