"""The leaderboard: known answers of its table, and submissions that are wrong, edited or hostile."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT, write_yaml
from html_tags import HOSTILE

from pathsynth.__main__ import main
from pathsynth.core.errors import DataError, PathsynthError
from pathsynth.core.metric_files import read_details
from pathsynth.data.generated import LabelledImages
from pathsynth.evaluation.open_set import open_set_scores
from pathsynth.evaluation.set_scores import score_predictions
from pathsynth.leaderboard.board import read_board, read_pin, write_pin
from pathsynth.leaderboard.card import Card, read_card
from pathsynth.leaderboard.checks import DIFFERENCES, SHOWN
from pathsynth.leaderboard.scores import Reference, build_scores, compute_digest, describe_images, read_scores
from pathsynth.leaderboard.table import END, START, escape, fill_leaderboard, format_score

CLASSES = ["adipose", "mucus", "debris"]
PER_CLASS = 20
REFERENCE = {
    "scores_version": 1, "benchmark": "tiny", "stand_in": True, "classes": CLASSES,
    "data": dict.fromkeys(("train", "val", "test"), "1" * 64), "gate": "2" * 64, "judge": "3" * 64,
    "extractor": "judge", "dimensions": 4, "seed": 7, "real_images": {"judge": {"val": 1.0, "test": 0.9}},
}  # fmt: skip
CARD = {
    "name": "method A", "authors": ["A. Author"], "link": "https://example.org/a", "licence": "CC BY 4.0", "trainings": 1,
    "selection": "none", "cost": {"hours": 0.5, "device": "CPU"}, "date": datetime.date(2026, 1, 31),
}  # fmt: skip
JUDGE = next(shown for shown in SHOWN if shown.key == "judge_f1")


def write_file(path: Path, content: dict[str, Any], *, signed: bool = True) -> Path:
    """Writes scores.json, as someone would who also computes the digest of what was edited."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"digest": compute_digest(content)} if signed else content))
    return path


def scores(seed: int = 1, wrong: float = 0.2, reference: dict = REFERENCE) -> dict[str, Any]:
    """Scores of random images of which the observers misjudge a share."""
    return json.loads(_score(seed, wrong, json.dumps(reference)))


@cache
def _score(seed: int, wrong: float, reference_text: str) -> str:
    reference = json.loads(reference_text)
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES)), PER_CLASS)
    seen = {
        by: np.where(rng.random(len(labels)) < wrong, (labels + 1) % len(CLASSES), labels) for by in ("gate", "judge", "colour")
    }
    rejected, n = rng.random(len(labels)) < 0.3, len(labels)
    found = {
        "n_images": n,
        **{by: score_predictions(labels, predicted, CLASSES, reference["seed"]) for by, predicted in seen.items()},
        "open_set": open_set_scores(labels, seen["judge"], rejected, CLASSES, reference["seed"]),
        "features": {"precision": 0.8, "precision_low": 0.7, "precision_high": 0.9, "coverage": 0.5},
        "structure": {"kernel_distance": 0.7, "kernel_low": 0.6, "kernel_high": 0.8},
        "copying": {"pixels": {"share": 0.0, "low": 0.0, "high": 0.06}},
    }
    names = np.array(CLASSES)
    table = pd.DataFrame({"tissue": names[labels], **{by: names[predicted] for by, predicted in seen.items()}})
    images = LabelledImages(rng.integers(0, 256, (n, 4, 4, 3), np.uint8), labels)
    return json.dumps(build_scores(Reference.model_validate(reference), images, table, found))


def write_card(folder: Path, **changes: Any) -> Path:
    card = {key: value for key, value in (CARD | changes).items() if value is not None}
    return write_yaml(folder / "card.yaml", card)


@pytest.fixture
def board(tmp_path) -> Path:
    """A leaderboard with a pin and a valid submission, `method_a`."""
    folder = tmp_path / "leaderboard"
    write_file(folder / "method_a" / "scores.json", scores())
    write_card(folder / "method_a")
    (folder / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    reference = Reference.model_validate(REFERENCE)
    anchors = {"val": scores(2, 0.0), "shuffled_pixels": scores(3, 0.9)}
    sets = {name: content["scores"] for name, content in anchors.items()}
    write_pin(folder / "tiny.json", reference, {"real_images": REFERENCE["real_images"], "sets": sets})
    return folder


def run(board: Path):
    options = ["--folder", board, "--params", ROOT / "params.yaml"]
    return CliRunner().invoke(main, ["leaderboard", *map(str, options)], catch_exceptions=False)


def refused(board: Path) -> str:
    """The only line of a refusal; the table is unchanged."""
    before = (board / "README.md").read_bytes()
    result = run(board)
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert (board / "README.md").read_bytes() == before
    return result.output


class TestTable:
    def test_submission_and_anchors_are_sorted_by_the_judge(self, board):
        result = run(board)
        assert result.exit_code == 0 and "submissions: 1, benchmarks: 1; all are valid" in result.output
        text = (board / "README.md").read_text()
        assert text.startswith(f"before\n{START}\n### tiny\n") and text.endswith(f"|\n{END}\nafter\n") and "old" not in text
        assert "Phantoms are a stand-in" in text and "gate `222222222222`" in text
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
        assert [row[1] for row in rows] == [
            "*Real, validation*", "[method A](<https://example.org/a>), A. Author", "*Shuffled pixels*",
        ]  # fmt: skip
        assert [row[0] for row in rows] == ["| ", "| 1", "| "]
        judge = scores()["scores"]["judge"]
        expected = f"{judge['macro_f1']:.3f} ({judge['macro_f1_low']:.3f} to {judge['macro_f1_high']:.3f})"
        assert rows[1][4] == expected and rows[1][7:] == [
            "0.800 (0.700 to 0.900)", "0.500", "0.7 (0.6 to 0.8)", "0.0 % (0.0 % to 6.0 %)", "60", "0.5 h, CPU", "CC BY 4.0",
            "2026-01-31 |",
        ]  # fmt: skip
        assert run(board).exit_code == 0 and (board / "README.md").read_text() == text

    def test_trainings_are_the_unit_where_there_are_several(self, board):
        (board / "method_a" / "scores.json").unlink()
        for number in range(1, 12):
            write_file(board / "method_a" / f"scores_{number}.json", scores(number))
        write_card(board / "method_a", trainings=11)
        assert run(board).exit_code == 0
        values = [scores(number)["scores"]["judge"]["macro_f1"] for number in range(1, 12)]
        assert f" | 11 | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} (" in (board / "README.md").read_text()

    @pytest.mark.parametrize(
        ("selection", "place", "gate"), [("gate", "", "by construction"), ("other", "", "0."), ("none", "1", "0.")]
    )
    def test_selected_images_have_no_place_and_no_score_by_the_gate_that_selected(self, selection, place, gate, board):
        write_card(board / "method_a", selection=selection)
        assert run(board).exit_code == 0
        (row,) = [line.split(" | ") for line in (board / "README.md").read_text().splitlines() if "method A" in line]
        assert row[0] == f"| {place}" and row[6].startswith(gate)

    def test_interval_over_trainings_is_students(self):
        # t of 0.975 with 1 degree of freedom is 12.706, the standard deviation of 0.6 and 0.7 is 0.0707
        assert format_score(JUDGE, [(0.6, 0.5, 0.7), (0.7, 0.6, 0.8)]) == "0.650 ± 0.071 (0.015 to 1.285)"
        assert format_score(JUDGE, [(0.6, 0.5, 0.7)]) == "0.600 (0.500 to 0.700)"
        assert format_score(JUDGE, [(0.6, 0.5, 0.7), (None, None, None)]) == "-"

    def test_repeated_images_within_a_set_are_counted(self):
        images = LabelledImages(np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 0, 1, 1]))
        found = describe_images(images, CLASSES)
        assert (found.count, found.distinct) == (4, 2) and list(found.per_class.values()) == [2, 2, 0]

    def test_checksum_depends_on_pixels_and_labels_and_not_on_order(self):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (4, 2, 2, 3), np.uint8), np.array([0, 1, 2, 0])
        first = describe_images(LabelledImages(images, labels), CLASSES)
        assert describe_images(LabelledImages(images[::-1], labels[::-1]), CLASSES) == first
        assert describe_images(LabelledImages(images, labels[::-1]), CLASSES).sha256 != first.sha256
        assert describe_images(LabelledImages(images ^ 1, labels), CLASSES).sha256 != first.sha256

    @pytest.mark.parametrize("text", ["", f"{START}\n", f"{START}\n{END}\n{START}\n{END}\n"])
    def test_page_without_marks_is_one_line_error(self, text, board):
        (board / "README.md").write_text(text)
        assert "README.md: needs the lines `<!-- leaderboard -->`" in refused(board)

    def test_every_benchmark_has_a_table(self, board):
        other = REFERENCE | {"benchmark": "other", "stand_in": False}
        write_pin(board / "other.json", Reference.model_validate(other), {"real_images": REFERENCE["real_images"], "sets": {}})
        write_file(board / "method_b" / "scores.json", scores(5, reference=other))
        write_card(board / "method_b", name="method B")
        assert run(board).exit_code == 0
        other_table, tiny_table = (board / "README.md").read_text().split("### ")[1:]
        assert "method B" in other_table and "method A" not in other_table and "stand-in" not in other_table
        assert "method A" in tiny_table and "method B" not in tiny_table


class TestReference:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("scores_version", 2), ("data", {"train": "9" * 64}), ("gate", "9" * 64), ("judge", "9" * 64), ("seed", 8),
            ("classes", ["adipose", "mucus", "stroma"]), ("dimensions", 5), ("extractor", "dinov2"), ("stand_in", False),
            ("real_images", {}),
        ],
    )  # fmt: skip
    def test_scores_of_another_reference_are_refused(self, key, value, board):
        content = scores()
        content["reference"][key] = value
        write_file(board / "method_a" / "scores.json", content)
        assert f"scores.json: was scored with {DIFFERENCES[key]} than this leaderboard's ({key} differs)" in refused(board)

    def test_every_difference_has_a_message(self):
        assert set(DIFFERENCES) == set(Reference.model_fields)

    def test_unknown_benchmark_is_refused(self, board):
        write_file(board / "method_a" / "scores.json", scores(reference=REFERENCE | {"benchmark": "moon"}))
        assert "moon has no leaderboard; there are: tiny" in refused(board)

    def test_pin_of_anchors_by_other_classifiers_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="run `make anchors` first"):
            write_pin(tmp_path / "tiny.json", Reference.model_validate(REFERENCE), {"real_images": {}, "sets": {}})

    def test_damaged_pin_is_refused(self, board):
        shutil.copy(board / "tiny.json", board / "other.json")
        assert "other.json: is of the benchmark tiny; name it tiny.json" in refused(board)


def _edit(*keys: Any, value: Any) -> Callable[[dict], None]:
    """Sets a value under nested keys."""

    def edit(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


EDITS = {
    "macro F1": (_edit("scores", "judge", "macro_f1", value=0.99), "scores.judge.macro_f1: 0.99 does not follow"),
    "one class": (_edit("scores", "gate", "per_tissue", "mucus", "f1", value=1.0), "gate.per_tissue.mucus.f1: 1.0 does not"),
    "interval": (_edit("scores", "judge", "macro_f1_low", value=0.85), "scores.judge.macro_f1_low: 0.85 does not"),
    "missing": (_edit("scores", "judge", value={}), "scores.judge.macro_f1: None does not follow"),
    "text": (_edit("scores", "judge", "macro_f1", value=HOSTILE), "scores.judge.macro_f1: "),
    "digits": (_edit("scores", "judge", "macro_f1", value=10**400), "does not follow from the confusion matrix"),
    "true": (_edit("scores", "judge", "macro_f1", value=True), "scores.judge.macro_f1: True does not"),
    "confusion": (_edit("confusion", "judge", 0, value=[20, 0, 0]), "scores.judge."),
    "sum": (_edit("confusion", "judge", 0, 0, value=99), "confusion.judge: its rows do not add up to images.per_class"),
    "shape": (_edit("confusion", "judge", value=[[20]]), "confusion.judge: is not a matrix of 3 x 3"),
    "negative": (_edit("confusion", "judge", 0, 0, value=-1), "confusion.judge.0.0: -1: input should be greater"),
    "huge": (_edit("confusion", "judge", 0, 0, value=10**12), "confusion.judge.0.0: 1000000000000: input should be less"),
    "huge sum": (
        _edit("images", "per_class", value=dict.fromkeys(CLASSES, 9_000_000)),
        "images.per_class: must not add up to more than 10,000,000 images",
    ),
    "count": (_edit("scores", "n_images", value=61), "scores.n_images: is not 60"),
    "more images": (_edit("images", "per_class", "mucus", value=21), "its rows do not add up"),
    "other classes": (_edit("images", "per_class", value={"mucus": 60}), "images: counts are not those of a set"),
    "distinct": (_edit("images", "distinct", value=61), "images: counts are not those of a set"),
    "open set above 1": (_edit("scores", "open_set", "macro_f1", value=1.2), "open_set.macro_f1: 1.2 or its interval is not"),
    "open set mean": (_edit("scores", "open_set", "macro_f1", value=0.65), "open_set.macro_f1: 0.65 is not"),
    "open set absent": (_edit("scores", "open_set", value={}), "scores.open_set.macro_f1: is missing"),
    "open set classes": (_edit("scores", "open_set", "per_tissue", value=[1]), "scores.open_set.per_tissue: is not an F1"),
    "rejected": (_edit("scores", "open_set", "per_tissue", "mucus", "rejected", value=-0.1), "mucus.rejected: is not a share"),
    "too few hits": (
        _edit("scores", "open_set", "per_tissue", "mucus", "rejected", value=0.95),
        "open_set.per_tissue.mucus.f1: ",
    ),
    "outside": (_edit("scores", "features", "precision", value=0.95), "precision: 0.95 is not within its interval, 0.7 to 0.9"),
    "kernel": (_edit("scores", "structure", "kernel_distance", value=0.01), "kernel_distance: 0.01 is not within its interval"),
    "no interval": (_edit("scores", "open_set", "macro_f1_low", value=None), "scores.open_set.macro_f1: has no interval"),
    "share": (_edit("scores", "features", "coverage", value=-0.5), "coverage: -0.5 or its interval is not within 0 to 1"),
    "unknown key": (_edit("extra", value=1), "extra: unknown key"),
    "benchmark name": (_edit("reference", "benchmark", value="../x"), "reference.benchmark: '../x'"),
    "format": (_edit("format", value="other"), "was not written by `python -m pathsynth score`"),
}  # fmt: skip


class TestEditedScores:
    @pytest.mark.parametrize("case", EDITS)
    def test_inconsistent_scores_are_refused_though_their_digest_is_right(self, case, board):
        edit, message = EDITS[case]
        content = scores()
        edit(content)
        write_file(board / "method_a" / "scores.json", content)
        assert message in refused(board)

    def test_any_edit_changes_the_digest(self, board):
        content = scores()
        content["scores"]["structure"]["kernel_distance"] = 0.65
        write_file(board / "method_a" / "scores.json", content, signed=False)
        assert "scores.json: was changed after it was written (wrong digest)" in refused(board)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"{", "is not JSON"), (b"[]", "holds a JSON list"), (b"\xff", "is not JSON"), (b'{"a": NaN}', "not a finite"),
            (b"[" * 100_000, "is not"), (b"[" * 900 + b"]" * 900, "scores.json: "), (b" " * 5_000_001, "5,000,001 bytes"),
        ],
        ids=["json", "list", "binary", "NaN", "deep", "less deep", "large"],
    )  # fmt: skip
    def test_damaged_file_is_one_line_error(self, data, message, board):
        (board / "method_a" / "scores.json").write_bytes(data)
        assert message in refused(board)

    def test_scores_without_an_optional_score_have_a_dash(self, board):
        content = scores()
        content["scores"]["features"] = {"undefined": {"precision": "too few images"}}
        write_file(board / "method_a" / "scores.json", content)
        assert run(board).exit_code == 0 and " | - | - | 0.7 (0.6 to 0.8) |" in (board / "README.md").read_text()


HOSTILE_CARDS = {
    "script": ({"name": HOSTILE}, "name: "),
    "pipe": ({"name": "a | b"}, "name: 'a | b': '|' is not allowed"),
    "image": ({"name": "![x](https://example.org/x.png)"}, "name: "),
    "link": ({"name": "[x](javascript:alert(1))"}, "name: "),
    "bare link": ({"name": "https://example.org"}, "name: 'https://example.org': links belong to the key `link`"),
    "www": ({"name": "www.example.org"}, "links belong to"),
    "mention": ({"authors": ["@somebody"]}, "authors.0: '@somebody': '@' is not allowed"),
    "newline": ({"name": "a\nb"}, "name: "),
    "bidi": ({"name": "a\u202eb"}, "name: "),
    "zero width": ({"name": "a\u200bb"}, "name: "),
    "entity": ({"name": "a&lt;b", "device": ""}, "device: unknown key"),
    "comment": ({"licence": "<!-- end -->"}, "licence: "),
    "empty": ({"name": " "}, "name: "),
    "long": ({"name": "x" * 81}, "name: "),
    "nobody": ({"authors": []}, "authors: "),
    "crowd": ({"authors": ["x"] * 21}, "authors: "),
    "javascript": ({"link": "javascript:alert(1)"}, "link: 'javascript:alert(1)': must be https://HOST/PATH"),
    "data": ({"link": "data:text/html,x"}, "must be https://"),
    "http": ({"link": "http://example.org"}, "must be https://"),
    "bracket": ({"link": "https://example.org/a>b"}, "must be https://"),
    "parenthesis": ({"link": "https://example.org/a)b"}, "must be https://"),
    "user": ({"link": "https://good.org@evil.org/"}, "must be https://"),
    "link newline": ({"link": "https://example.org/\n"}, "must be https://"),
    "other folder": ({"link": "/etc/passwd"}, "must be https://"),
    "relative": ({"link": "../a](javascript:x)"}, "must be https://"),
    "other repository": ({"link": "../../../../evil/repo"}, "must be https://"),
    "hidden steps": ({"link": "../docs/../../../evil/repo"}, "must be https://"),
    "no host": ({"link": "https:///a"}, "must be https://"),
    "trainings": ({"trainings": 3}, "card.yaml: trainings: 3, but there are scores of 1"),
    "no trainings": ({"trainings": 0}, "trainings: 0: input should be greater than 0"),
    "cost": ({"cost": {"hours": -1.0, "device": "CPU"}}, "cost.hours: -1.0: input should be greater"),
    "infinite": ({"cost": {"hours": float("inf"), "device": "CPU"}}, "cost.hours: "),
    "selection": ({"selection": "best"}, "selection: 'best'"),
    "date": ({"date": "tomorrow"}, "date: 'tomorrow'"),
    "missing": ({"licence": None}, "card.yaml: licence: missing"),
    "unknown": ({"score": 1.0}, "score: unknown key; allowed: name, authors"),
}  # fmt: skip


class TestHostileSubmissions:
    @pytest.mark.parametrize("case", HOSTILE_CARDS)
    def test_card_is_refused_with_one_line(self, case, board):
        changes, message = HOSTILE_CARDS[case]
        write_card(board / "method_a", **changes)
        assert message in refused(board)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"!!python/object/apply:os.system [ls]", "card.yaml"), (b"- 1", "must hold a mapping"), (b"\xff", "is not UTF-8"),
            (b"a: &a [1]\nb: *c", "is not YAML"), (b"[" * 500, "card.yaml"), (b"#" * 10_001, "10,001 bytes; allowed: 10,000"),
        ],
        ids=["tag", "list", "binary", "alias", "deep", "large"],
    )  # fmt: skip
    def test_damaged_card_is_one_line_error(self, data, message, board):
        (board / "method_a" / "card.yaml").write_bytes(data)
        assert message in refused(board)

    def test_text_that_a_card_would_refuse_is_escaped_all_the_same(self, board):
        names = [
            HOSTILE,
            "a | b",
            "![x](https://e.org/x.png)",
            "[x](javascript:y)",
            "<img src=x>",
            "&lt;b&gt;",
            "www.e.org",
            "@me",
        ]
        valid = read_board(board)
        card = Card.model_construct(**CARD | {"authors": names, "cost": valid.submissions[0].card.cost})
        object.__setattr__(valid.submissions[0], "card", card)
        filled = fill_leaderboard((board / "README.md").read_text(), board, valid)
        (row,) = [line for line in filled.splitlines() if "method A" in line]
        assert len(re.findall(r"(?<!\\)\|", row)) == 16
        assert not re.search(r"(?<!\\)[\[\]!`*]|@|www\.|<(?!https://example)|&(?!amp;|lt;|gt;|#)", row[row.index(">),") + 2 :])
        assert "e.org/x.png" in row and "https://e.org" not in row

    def test_escaped_text_is_what_was_meant(self):
        assert escape("a_b & c") == r"a\_b &amp; c" and escape("plain words 1.5") == "plain words 1.5"

    def test_letters_of_any_script_are_allowed(self, board):
        write_card(board / "method_a", name="методика 組織 ऊतक", authors=["Zoë O'Brien-Łuk & Co. (2)"])
        assert run(board).exit_code == 0 and "методика 組織 ऊतक" in (board / "README.md").read_text()

    def test_link_to_another_file_is_not_followed(self, board, tmp_path):
        (tmp_path / "secret.json").write_text('{"secret": 1}')
        (board / "method_a" / "scores.json").unlink()
        os.symlink(tmp_path / "secret.json", board / "method_a" / "scores.json")
        assert "scores.json: is a link or a folder; a submission holds only files" in refused(board)
        shutil.rmtree(board / "method_a")
        os.symlink(tmp_path, board / "method_a")
        assert "method_a: is not a submission folder" in refused(board)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (["scores.json", "page.html"], "holds card.yaml, page.html, scores.json; expected card.yaml and scores.json, or"),
            (["scores.json", "scores_1.json"], "expected card.yaml and scores.json"),
            (["scores_1.json", "scores_3.json"], "expected card.yaml and scores.json"),
            (["scores_01.json"], "expected card.yaml and scores.json"),
            ([], "holds card.yaml; expected"),
        ],
    )
    def test_other_files_are_refused(self, files, message, board):
        (board / "method_a" / "scores.json").unlink()
        for name in files:
            write_file(board / "method_a" / name, scores())
        assert message in refused(board)

    def test_odd_folder_names_and_stray_files_are_refused(self, board):
        (board / "note.txt").write_text("x")
        assert "note.txt: is not a submission folder" in refused(board)
        (board / "note.txt").unlink()
        (board / "method_a").rename(board / "a [x](y)|")
        assert "allowed in names: letters, digits, '_' and '-'" in refused(board)

    def test_images_count_once(self, board):
        shutil.copytree(board / "method_a", board / "method_b")
        assert "method_b: training 1 of method_b has the same images as training 1 of method_a" in refused(board)
        shutil.rmtree(board / "method_b")
        (board / "method_a" / "scores.json").rename(board / "method_a" / "scores_1.json")
        shutil.copy(board / "method_a" / "scores_1.json", board / "method_a" / "scores_2.json")
        write_card(board / "method_a", trainings=2)
        assert "training 2 of method_a has the same images as training 1 of method_a" in refused(board)

    def test_every_invalid_submission_is_named(self, board):
        for name in ("b", "c"):
            write_card(board / name)
        result = run(board)
        assert result.exit_code == 1 and [line[:6] for line in result.output.splitlines()] == ["error:"] * 2

    def test_missing_folder_is_one_line_error(self, tmp_path):
        result = run(tmp_path / "nowhere")
        assert result.exit_code == 1 and "nowhere: could not be read" in result.output


class TestOfThisRepository:
    @pytest.mark.slow
    def test_scores_of_the_command_are_accepted(self, finished, tmp_path):
        """The very files that `score` and `leaderboard --pin` write fit together."""
        places = {"--prepared": "data/prepared", "--observed": "data/observed", "--models": "models"}
        shared = [word for option, place in places.items() for word in (option, finished / place)]
        shared += ["--params", finished / "params.yaml"]
        raw = finished / "data" / "generated" / "raw.npz"
        outputs = ["--metrics", finished / "metrics", "--scratch", tmp_path / "scratch", "--out", tmp_path / "out"]
        command = ["score", raw, *shared, *outputs, "--no-usefulness"]
        result = CliRunner().invoke(main, [str(word) for word in command], catch_exceptions=False)
        assert result.exit_code == 0 and "scores.json is the file for the leaderboard" in result.output, result.output
        evaluation = read_details(finished / "metrics" / "evaluation.json")
        anchors = {"real_images": evaluation["real_images"], "sets": {"val": evaluation["sets"]["val"]}}
        folder = tmp_path / "leaderboard"
        (tmp_path / "anchors").mkdir()
        (tmp_path / "anchors" / "tiny.json").write_text(json.dumps(anchors))
        write_card(folder / "ours")
        shutil.copy(tmp_path / "out" / "scores.json", folder / "ours" / "scores.json")
        (folder / "README.md").write_text(f"{START}\n{END}\n")
        command = ["leaderboard", "--pin", "--folder", folder, "--anchors", tmp_path / "anchors", *shared]
        result = CliRunner().invoke(main, [str(word) for word in command], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert read_scores(folder / "ours" / "scores.json").reference == read_pin(folder / "tiny.json").reference

    def test_committed_leaderboard_is_valid_and_up_to_date(self):
        folder = ROOT / "leaderboard"
        found = read_board(folder)
        assert [str(mistake) for mistake in found.mistakes] == []
        assert found.pins and found.submissions
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert fill_leaderboard(text, folder / "README.md", found) == text, "run `make leaderboard`"

    def test_example_of_a_card_is_valid(self, tmp_path):
        text = (ROOT / "leaderboard" / "README.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        (tmp_path / "card.yaml").write_text(example)
        assert read_card(tmp_path / "card.yaml").trainings == 3

    def test_errors_are_ours(self, board):
        assert all(isinstance(mistake, PathsynthError) for mistake in read_board(board).mistakes)
