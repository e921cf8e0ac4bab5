"""The comparison of experiments: the table, its page, and what it writes into the README."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, write_params
from fake_results import SLUGS, write_run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_report import HOSTILE, Tags

from pathsynth.compare import experiments as compare
from pathsynth.compare.configurations import Configuration, fold
from pathsynth.compare.experiments import UNSAVED, experiments, fill_readme, fill_scores, markdown, table
from pathsynth.compare.locks import code_of, scored_by_its_params, usefulness_is_its_own
from pathsynth.compare.page import STRIP_ROWS, Named, difference_tests, render_comparison
from pathsynth.core.errors import DataError
from pathsynth.core.io import write_csv
from pathsynth.data import labels
from pathsynth.evaluation import contact_sheets as plates
from pathsynth.report.tables import score_table


def _revision(rev, lora, benchmark="phantom", seed=1, **of_lora):
    params = {
        "benchmark": benchmark,
        "lora": lora,
        "seed": seed,
        "benchmarks": {benchmark: {}},
        "loras": {lora: {"prompts": "plain"} | of_lora},
    }
    return {"rev": rev, "data": {"params": {"params.yaml": {"data": params}}, "metrics": {}}}


def _metrics(gate):
    """Metrics files by path, as an earlier version wrote them and as they are written now."""

    def score(f1):
        return {"macro_f1": f1, "macro_f1_low": f1 - 0.1, "macro_f1_high": f1 + 0.1, "n_images": 90}

    scores = score(gate) | {"judge": score(gate - 0.1), "filtered_judge": score(0.8), "untuned": score(0.2)}
    counts = {"acceptance_rate": 0.75, "unfilled": 2}
    return {"metrics/evaluation.json": [scores], "metrics/generation.json": counts}


# The gate's score of every revision by the letter of its name.
GATE = {"a": 0.6, "b": 0.7, "c": 0.9, "d": 0.6}


def _of_metrics(rev, path):
    """Files of revisions whose scores are in GATE; of any other, a commit that knew the headline and nothing else."""
    files = _metrics(GATE[rev[0]]) if rev[0] in GATE else {"metrics/evaluation.json": {"macro_f1": 0.4}}
    return json.dumps(files[path]).encode() if path in files else None


def _experiments(shown, file_of=_of_metrics):
    return table(list(experiments(shown, file_of)))


def _shown():
    unfinished = {"rev": "e" * 40, "data": None}
    inner = {"revs": [_revision("b" * 40, "r8")], "executor": {"state": "success"}}
    running = {"revs": [_revision("d" * 40, "r64")], "executor": {"state": "running"}}
    return [
        _revision("workspace", "r4") | {"experiments": None},
        _revision("a" * 40, "r4") | {"experiments": [inner, running, {"revs": [unfinished]}]},
        _revision("c" * 40, "r4", benchmark="other") | {"experiments": []},
    ]


def _old(rev):
    """A commit that knew neither seeds nor tables of params."""
    return {"rev": rev, "data": {"params": {"params.yaml": {"data": {"benchmark": "phantom", "lora": "old"}}}}}


def _plate(label):
    shades = {plates.DATA_SET: 40, plates.RAW: 200}
    return plates.draw_plate(
        label, [plates.Block(title, np.full((18, 24, 24, 3), shade, np.uint8)) for title, shade in shades.items()], "caption"
    )


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    """Three commits as folders: two configurations that differ, and one without tables and newer metrics."""
    folder = tmp_path_factory.mktemp("commits")
    found = {letter * 40: write_run(folder / letter, seed, skill) for letter, seed, skill in (("a", 0, 1.0), ("b", 1, 0.0))}
    # the other's plates do not say where their blocks lie
    plates.write_plates(found["a" * 40] / "plots" / "evaluation" / "plates", {slug: _plate(slug) for slug in SLUGS})
    (folder / "c" / "metrics").mkdir(parents=True)
    (folder / "c" / "metrics" / "evaluation.json").write_text('{"macro_f1": 0.4}')
    return found | {"c" * 40: folder / "c"}


@pytest.fixture(scope="module")
def rows(commits: dict[str, Path], file_of) -> list[dict]:
    """Rows of the table of these commits."""
    shown = []
    for rev, lora in zip(list(commits)[:2], ("good", "bad"), strict=True):
        benchmark = {"dataset": {"source": "phantom", "labels": "pathmnist"}, "prompts": {"plain": "an image of {label}"}}
        loras = {lora: {"prompts": "plain"}}
        params = {
            "benchmark": "phantom",
            "lora": lora,
            "seed": 7,
            "benchmarks": {"phantom": benchmark},
            "loras": loras,
        }
        shown.append({"rev": rev, "data": {"params": {"params.yaml": {"data": params}}}})
    shown.append(_old("c" * 40))
    return _experiments(shown, file_of).to_dict("records")


@pytest.fixture(scope="module")
def file_of(commits: dict[str, Path]):
    def read(rev: str, path: str) -> bytes | None:
        file = commits[rev] / path
        return file.read_bytes() if file.is_file() else None

    return read


def test_rows_are_sorted_by_the_headline_and_repeats_fold():
    frame = _experiments(_shown())
    assert list(frame["lora"]) == ["r4", "r8", "r4"]
    assert list(frame["benchmark"]) == ["other", "phantom", "phantom"]
    assert list(frame["macro_f1"]) == [0.9, 0.7, 0.6]
    assert list(frame["rev"])[2] == "a" * 40


def test_markdown_has_scores_with_intervals():
    line = markdown(_experiments(_shown()).query("benchmark == 'other'")).splitlines()[2]
    assert line == "| `r4` | plain | 1 | 0.900 (0.80 to 1.00) | 0.800 (0.70 to 0.90) | 0.800 | 0.200 | 75% | 2 | - | 90 |"


def test_commit_without_newer_files_is_shown_with_what_it_has():
    frame = _experiments([*_shown(), _old("f" * 40)])
    assert markdown(frame).splitlines()[-1] == "| `old` | - | 1 | 0.400 | - | - | - | - | - | - | - |"
    assert "macro_f1" in frame.drop(columns=UNSAVED).columns


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"{", b"[]", b"[1]", b"[{}, {}]", b"3", b'{"macro_f1": "x"}', b'[{"macro_f1": NaN}]', b'{"macro_f1": null}'],
)
def test_revision_with_damaged_scores_is_left_out(content):
    shown = [_revision("a" * 40, "r4"), _revision("b" * 40, "r8")]
    frame = _experiments(shown, lambda rev, path: content if rev[0] == "a" else _of_metrics(rev, path))
    assert list(frame["lora"]) == ["r8"]


def test_damage_beside_the_scores_leaves_values_open():
    files = {
        "metrics/evaluation.json": b'[{"macro_f1": 0.5, "judge": 3, "realism": {"raw": []}, "per_tissue": {"mucus": 1}}]',
        "metrics/generation.json": b'{"unfilled": "many", "acceptance_rate": true}',
        "metrics/lora.json": b"[",
    }
    row = _revision("a" * 40, "r4", prompts=["x"])
    row["data"]["params"]["params.yaml"]["data"]["benchmarks"]["phantom"] = {"dataset": 3}
    frame = _experiments([row], lambda rev, path: files.get(path))
    assert markdown(frame).splitlines()[-1] == "| `r4` | - | 1 | 0.500 | - | - | - | - | - | - | - |"
    render_comparison(frame.to_dict("records"), lambda rev, path: None)
    nameless = _revision("a" * 40, "r4")
    nameless["data"]["params"]["params.yaml"]["data"]["lora"] = ["r4"]
    assert not list(experiments([nameless, {"rev": "b" * 40, "data": {"params": 3}}], lambda rev, path: files.get(path)))


def _seeds():
    """Two seeds of one configuration, one of another with better luck, and one of the same name with other params."""
    return _experiments(
        [
            _revision("a" * 40, "r4", seed=1),
            _revision("b" * 40, "r4", seed=2),
            _revision("c" * 40, "r4", seed=3, steps=9),
            _revision("d" * 40, "r8", seed=2),
        ]
    )


def test_seeds_of_one_configuration_are_one_row_of_mean_and_deviation():
    frame = _seeds()
    alone, folded = dict.fromkeys(frame["config"][frame["lora"] == "r4"])
    scores = "0.650 ± 0.071 | 0.550 ± 0.071 | 0.800 ± 0.000 | 0.200 ± 0.000 | 75% ± 0% | 2.0 ± 0.0 | - | 90 |"
    assert markdown(frame).splitlines()[2:] == [
        f"| `r4, {alone}` | plain | 1 | 0.900 (0.80 to 1.00) | 0.800 (0.70 to 0.90) | 0.800 | 0.200 | 75% | 2 | - | 90 |",
        f"| `r4, {folded}` | plain | 2 | {scores}",
        "| `r8` | plain | 1 | 0.600 (0.50 to 0.70) | 0.500 (0.40 to 0.60) | 0.800 | 0.200 | 75% | 2 | - | 90 |",
    ]


def test_saved_runs_are_folded_when_they_are_read(tmp_path: Path):
    frame = _seeds()
    write_csv(tmp_path / "now.csv", frame.drop(columns=UNSAVED))
    write_csv(tmp_path / "before.csv", frame.drop(columns=[*UNSAVED, "config"]))
    now, before = (compare.read_saved(tmp_path / f"{name}.csv") for name in ("now", "before"))
    assert len(now) == 4 and markdown(now) == markdown(frame)
    assert [one.seeds for one in fold(before.to_dict("records"))] == [[3], [2], [1], [2]]


def test_page_shows_mean_deviation_and_the_single_runs(rows, file_of):
    again = rows[0] | {"seed": 8, "macro_f1": rows[0]["macro_f1"] - 0.02}
    page = render_comparison([rows[0], again, *rows[1:]], file_of)
    for text in (
        "3 configurations, 4 runs",
        "<small>± 0.014</small>",
        "<small>plain, 2 seeds</small>",
        "<summary>The single runs</summary>",
        "Whiskers: standard deviation over the seeds.",
        "paired, seed 7",
        "raw images of good, seed 7",
    ):
        assert text in page, text
    assert "The single runs" not in render_comparison(rows, file_of)


def test_readme_tables_are_replaced_between_marks_only():
    frame = _experiments(_shown())
    text = "before\n<!-- results: other -->\nold\n<!-- end -->\nafter\n"
    filled = fill_readme(text, frame)
    assert filled.startswith("before\n<!-- results: other -->\n| LoRA |") and filled.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in filled and fill_readme(filled, frame) == filled
    with pytest.raises(DataError, match="has a mark for moon, of which no experiment is known"):
        fill_readme("<!-- results: moon -->\n<!-- end -->", frame)


@pytest.mark.parametrize("kind", ["results", "scores"])
def test_mark_without_an_end_is_refused_before_it_swallows_text(kind):
    fill = (lambda text: fill_readme(text, _seeds())) if kind == "results" else (lambda text: fill_scores(text, Path()))
    mark = f"<!-- {kind}: phantom -->"
    for rest in ("\nold\n", "\nold\n<!-- scores: metrics -->\nolder\n<!-- end -->\n", "\n<!-- results: x -->\n<!-- end -->"):
        with pytest.raises(DataError, match=f"^README: the mark {mark} has no <!-- end -->$"):
            fill(mark + rest)
    assert fill("a <!-- end --> b") == "a <!-- end --> b"


def test_names_and_prompts_cannot_end_a_cell():
    row = _revision("a" * 40, "r|4", prompts="<b>\n| x")
    line = markdown(_experiments([row])).splitlines()[2]
    assert line.startswith("| `r4` | &lt;b&gt; \\| x | 1 | 0.600")


def _params(benchmark="phantom", lora="r4", seed=1, steps=9):
    entries = {"benchmarks": {benchmark: {"prompts": {"plain": "x"}}}, "loras": {lora: {"prompts": "plain", "steps": steps}}}
    return {"seed": seed, "benchmark": benchmark, "lora": lora, **entries}


def _lock(path, evaluated, trained=None):
    def recorded(**values):
        return {"cmd": "true", "params": {"params.yaml": values}}

    prompts = {f"benchmarks.{evaluated['benchmark']}.prompts": {"plain": "x"}}
    lora = {f"loras.{evaluated['lora']}": (trained or evaluated)["loras"][evaluated["lora"]]}
    stages = {
        "prepare": recorded(**{"benchmarks.any.dataset": 1}),
        "train_lora": recorded(seed=evaluated["seed"], **lora),
        "evaluate": recorded(seed=evaluated["seed"], lora=evaluated["lora"], **prompts),
    }
    write_params(path, {"schema": "2.0", "stages": stages})
    return path.read_bytes()


@pytest.mark.parametrize(
    "ran", [{}, {"benchmark": "moon"}, {"benchmark": "phan"}, {"lora": "r16"}, {"seed": 2}, {"steps": 10}, {"lora": "r4.b"}]
)
def test_scores_count_only_if_the_params_could_have_made_them(ran, tmp_path: Path):
    lock = _lock(tmp_path / "dvc.lock", _params())
    assert scored_by_its_params(_params(**ran), lock) == (not ran)
    assert scored_by_its_params(_params(**ran), _lock(tmp_path / "own.lock", _params(**ran)))


def test_training_that_the_params_do_not_describe_counts_as_little_as_an_evaluation(tmp_path: Path):
    assert not scored_by_its_params(_params(), _lock(tmp_path / "dvc.lock", _params(), trained=_params(steps=8)))


@pytest.mark.parametrize(
    "lock", [None, b"", b"\xff", b"a: [", b"[1]", b"stages:", b"stages: {evaluate: {cmd: x}}", b"stages: {prepare: {}}"]
)
def test_commits_that_recorded_no_params_are_kept(lock):
    assert scored_by_its_params(_params(), lock)


def _named(rows, **changed):
    return [Named(row["lora"], Configuration((row | (changed if number else {}),))) for number, row in enumerate(rows)]


def test_better_set_is_told_from_the_worse_by_images_that_belong_together(rows, file_of):
    assert [row["lora"] for row in rows] == ["good", "bad", "old"]
    named = _named(rows)
    bad, old = difference_tests(named, SLUGS, file_of)
    assert bad["unpaired"] is None and bad["seed"] == 7
    assert bad["gate"]["difference"] > 0.05 and bad["gate"]["p"] < 0.05
    assert bad["judge"]["difference"] == pytest.approx(rows[0]["judge_f1"] - rows[1]["judge_f1"], abs=1e-5)
    assert "good is better than bad at n = 180" in bad["sentence"]
    assert old == {"name": "old", "seed": None, "repeats": None, "why": "no table of raw images of old"}
    (same,) = difference_tests([named[0], named[0]], SLUGS, file_of)
    assert same["judge"] == {"difference": 0.0, "p": 1.0}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"seed": 8}, "other seed"),
        ({"texts": "a picture of {label}"}, "other prompts"),
        ({"seed": 8, "texts": "a picture of {label}"}, "other seed and prompts"),
        ({"seed": None}, "seed or prompts not known"),
        ({"benchmark": "moon"}, "other benchmark"),
    ],
)
def test_images_that_share_no_noise_are_not_paired(rows, file_of, changed, why):
    (test,) = difference_tests(_named(rows[:2], **changed), SLUGS, file_of)
    assert test["unpaired"] == why
    assert test["gate"]["difference"] > 0.05 and test["gate"]["p"] < 0.05


def test_p_values_of_a_table_are_corrected_together(rows, file_of):
    best, bad = _named(rows[:2])
    (alone,) = difference_tests([best, bad], SLUGS, file_of)
    tests = difference_tests([best, *[bad] * 10], SLUGS, file_of)
    assert len({test["judge"]["p"] for test in tests}) == 1
    assert tests[0]["judge"]["p"] > alone["judge"]["p"]
    assert f"p = {tests[0]['judge']['p']:.2g}" in tests[0]["sentence"]


def _repeated(row, scores, seeds, name):
    """Runs of one configuration; the lowest seed has the tables."""
    runs = [row | {"seed": seed, "judge_f1": score} for seed, score in zip(seeds, scores, strict=True)]
    return Named(name, Configuration((runs[0], *(run | {"rev": "f" * 40} for run in runs[1:]))))


def test_runs_of_the_lowest_common_seed_are_tested_and_the_others_counted(rows, file_of):
    def read(rev, path):
        return None if rev[0] == "f" else file_of(rev, path)

    good, bad = _repeated(rows[0], (0.9, 0.7, 0.8), (3, 4, 5), "good"), _repeated(rows[1], (0.6, 0.8, 0.2), (3, 4, 9), "bad")
    (test,) = difference_tests([good, bad], SLUGS, read)
    assert test["seed"] == 3 and test["unpaired"] is None and "why" not in test
    assert test["repeats"] == {"mean": pytest.approx(0.1), "deviation": pytest.approx(0.08**0.5), "above": 1, "n": 2}
    (missing,) = difference_tests([bad, _repeated(rows[0], (0.9,), (9,), "one")], SLUGS, read)
    assert missing["why"] == "no table of raw images of bad, seed 9" and missing["repeats"] is None


def test_sets_of_other_slots_are_not_paired_and_of_other_tissues_not_tested(rows, file_of):
    named = _named(rows[:2])

    def fewer(rev: str, path: str) -> bytes | None:
        data = file_of(rev, path)
        return data if rev == rows[0]["rev"] or data is None else b"\n".join(data.splitlines()[:-1])

    def damaged(rev: str, path: str) -> bytes | None:
        return b"\xff\xfe" if rev == rows[1]["rev"] else file_of(rev, path)

    (test,) = difference_tests(named, SLUGS, fewer)
    assert test["unpaired"] == "other slots" and "at n = 179" in test["sentence"]
    (test,) = difference_tests(named, SLUGS[:5], file_of)
    assert test["name"] == "bad" and test["why"] == "tissues of another benchmark"
    (test,) = difference_tests(named, SLUGS, damaged)
    assert test["why"] == "no table of raw images of bad"


def test_plate_says_where_its_blocks_lie(tmp_path: Path):
    for folder in ("one", "two"):
        plates.write_plates(tmp_path / folder, {"mucus": _plate("mucus")})
    path = tmp_path / "one" / "mucus.png"
    assert path.read_bytes() == (tmp_path / "two" / "mucus.png").read_bytes()
    with Image.open(path) as plate:
        known = plates.places(plate)
        for title, shade in ((plates.DATA_SET, 40), (plates.RAW, 200)):
            part = np.array(plate.crop(known[title].rows(STRIP_ROWS)).convert("L"), int)
            cells = [
                part[row * 100 : row * 100 + 96, column * 100 : column * 100 + 96] for row in range(4) for column in range(3)
            ]
            assert part.shape == (400, 296) and np.abs(np.stack(cells) - shade).max() <= 4


@pytest.mark.parametrize(
    "said",
    [
        "no JSON",
        "{}",
        "[1]",
        '[{"title": "raw"}]',
        '[{"title": [], "left": 0, "top": 0, "width": 9, "height": 9, "pitch": 9}]',
        '[{"title": "raw", "left": 0, "top": 0, "width": 99, "height": 9, "pitch": 9}]',
        '[{"title": "raw", "left": -1, "top": 0, "width": 9, "height": 9, "pitch": 9}]',
        '[{"title": "raw", "left": 0, "top": 0, "width": 9, "height": "9", "pitch": 9}]',
        '[{"title": "raw", "left": 0, "top": 0, "width": 9, "height": 9, "pitch": 0}]',
    ],
)
def test_plate_that_says_nonsense_says_nothing(said, tmp_path: Path):
    info = PngInfo()
    info.add_text(plates.BLOCKS, said)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as plate:
        assert plates.places(plate) == {}


def test_page_shows_every_experiment_its_plates_and_the_tests(rows, file_of):
    page = render_comparison(rows, file_of)
    found = Tags(page).found
    for text in (
        "Benchmark phantom",
        "Stand-in data",
        "good is better than bad",
        "corrected for its number of tests",
        "picked by its score",
        "<small>paired, seed 7</small>",
        "41.2",
        "0.700",
        "1,056,256",
        "97.2 %",
        "old",
    ):
        assert text in page, text
    for label in labels.PATHMNIST:
        assert f"<summary>{label}</summary>" in page
    pictures = [attributes for tag, attributes in found if tag == "img"]
    assert [picture["width"] for picture in pictures] == ["296", "296", "1352"] * len(SLUGS)
    assert [picture["alt"].split(": ")[1] for picture in pictures[:3]] == [
        "real images.",
        "raw images of good.",
        "plate of bad.",
    ]
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page == render_comparison(rows, file_of)


def test_names_are_only_text_and_missing_files_only_missing(rows):
    hostile = [row | {"lora": HOSTILE, "benchmark": HOSTILE, "prompts": HOSTILE} for row in rows]
    page = render_comparison(hostile, lambda rev, path: None)
    assert "script" not in [tag for tag, _ in Tags(page).found]
    assert hostile[0]["config"] in page and "no table of raw images" in page


def _answers(shown, file_of):
    """What git and DVC would say."""

    def output(*command: str) -> bytes:
        if command[:2] == ("git", "show"):
            rev, path = command[2].split(":")
            if (data := file_of(rev, path)) is None:
                raise DataError("git show", "no such path")
            return data
        return json.dumps(shown).encode()

    return output


def test_command_prints_and_writes_the_page(file_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(compare, "_output", _answers([_old("c" * 40)], file_of))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 0, result.output
    assert "| `old` | - | 1 | 0.400" in result.output and "open reports/compare.html in a browser" in result.output
    Tags((tmp_path / "reports" / "compare.html").read_text(encoding="utf-8"))
    assert result.output.endswith("only one experiment is known; `dvc exp run -S lora=r8` adds one\n")
    result = CliRunner().invoke(compare.main, ["--report", "a/b.html"])
    assert result.exit_code == 0 and (tmp_path / "a" / "b.html").is_file()


def test_command_leaves_out_scores_of_another_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    lock = _lock(tmp_path / "dvc.lock", _params())
    shown = [_revision("a" * 40, "r4"), _revision("b" * 40, "r8")]
    for revision in shown:
        params = revision["data"]["params"]["params.yaml"]["data"]
        params.update(_params(lora=params["lora"]))
    monkeypatch.chdir(tmp_path)

    def files(rev, path):
        return lock if path == "dvc.lock" else _of_metrics(rev, path)

    monkeypatch.setattr(compare, "_output", _answers(shown, files))
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 0, result.output
    assert "`r4`" in result.output and "`r8`" not in result.output
    assert "left out: bbbbbbb: their scores were made with other params than theirs" in result.output
    monkeypatch.setattr(compare, "_output", _answers(shown[1:], files))
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 1 and "knows no finished experiment" in result.output


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no repository", "compare: needs the git repository that holds the experiments"),
        ("no git", "(git: cannot be run: No such file or directory)"),
        ("no DVC", "compare: needs DVC, which is not installed"),
        ("no DVC repository", "you are not inside of a DVC repository"),
    ],
)
def test_command_says_in_one_line_what_it_lacks(case, said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if case != "no repository":
        subprocess.run(["git", "init", "-q"], check=True)
    if case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    if case == "no DVC":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 1 and said in result.output
    assert len(result.output.splitlines()) == 1 and result.output.startswith("error: ")


def test_file_of_a_commit_comes_from_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a.csv").write_bytes(b"1\r\n\xff")
    for command in (["init", "-q"], ["add", "a.csv"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "a.csv").unlink()
    assert compare.file_of("HEAD", "a.csv") == b"1\r\n\xff"
    assert compare.file_of("HEAD", "b.csv") is None


def test_readme_tells_what_accuracy_does_not(tmp_path):
    write_run(tmp_path)
    text = "a\n<!-- scores: metrics -->\nold\n<!-- end -->\nb\n"
    filled = fill_scores(text, tmp_path)
    usefulness = json.loads((tmp_path / "metrics" / "usefulness.json").read_text())
    assert filled.startswith("a\n<!-- scores: metrics -->\n| question |") and filled.endswith("|\n<!-- end -->\nb\n")
    assert f"{usefulness['synthetic']['accuracy_mean']:.3f} ± " in filled and "old" not in filled
    assert fill_scores(filled, tmp_path) == filled
    (tmp_path / "metrics" / "usefulness.json").write_text("{}")
    with pytest.raises(DataError, match="its scores lack 'synthetic'; run the stage evaluate anew"):
        fill_scores(text, tmp_path)


def test_scores_that_cannot_be_had_are_said_in_the_readme(tmp_path):
    write_run(tmp_path)
    evaluation = json.loads((tmp_path / "metrics" / "evaluation.json").read_text())
    usefulness = json.loads((tmp_path / "metrics" / "usefulness.json").read_text())
    del evaluation["realism"]["accepted"]["recall"]
    evaluation["realism"]["accepted"]["undefined"] = {"recall": "images: 0, at least 6 are needed"}
    evaluation["copying"]["accepted"]["features"] = {"n_images": 0, "n_val": 0, "undefined": {"share_below": "no images"}}
    usefulness["twice_real"] = {"n_images": 0, "undefined": "not twice as many"}
    table = score_table(evaluation, usefulness)
    for text in ("images: 0, at least 6 are needed", "not defined (no images)", "not defined (not twice as many)"):
        assert text in table


def _committed(folder: Path) -> Path:
    """This repository, or, where the user's own run has left other scores in it, what git has of it."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "metrics"], cwd=ROOT, check=False).returncode != 1:
        return ROOT
    committed = ["git", "archive", "HEAD", "README.md", "metrics", "results"]
    archive = subprocess.run(committed, cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def test_the_tables_in_the_readme_are_those_of_the_committed_results(tmp_path):
    root = _committed(tmp_path)
    text = (root / "README.md").read_text(encoding="utf-8")
    filled = compare.fill_readme(text, compare.read_saved(root / "results" / "experiments.csv"))
    assert compare.fill_scores(filled, root) == text


def _lock_of(code: str, images: str = "1", learnt: str = "1") -> bytes:
    lora = {"deps": [{"path": "pathsynth/lora.py", "md5": code}, {"path": "data/prepared", "md5": "x.dir"}]}
    generate = {"outs": [{"path": "data/generated", "md5": images}]}
    stages = {
        "train_lora": lora,
        "generate_filtered": generate,
        "measure_usefulness": {"deps": [generate["outs"][0] | {"md5": learnt}]},
    }
    return json.dumps({"stages": stages}).encode()


def test_a_lock_tells_of_code_and_images():
    assert code_of(_lock_of("a")) == {"pathsynth/lora.py": "a"} and code_of(None) == code_of(b"\xff") == {}
    assert usefulness_is_its_own(_lock_of("a")) and usefulness_is_its_own(None)
    assert not usefulness_is_its_own(_lock_of("a", learnt="2"))
    assert code_of(b"stages: {train_lora: {deps: [1, {path: pathsynth/a.py}]}}") == {}


def _with_locks(locks: dict[str, bytes]):
    return lambda rev, path: locks.get(rev[0]) if path == "dvc.lock" else _of_metrics(rev, path)


def test_an_experiment_with_other_code_is_left_out_unless_all_are_wanted(tmp_path, monkeypatch):
    inner = [
        {"revs": [_revision(letter * 40, "r8", seed=seed)], "executor": {"state": "success"}}
        for letter, seed in (("b", 1), ("c", 2))
    ]
    shown = [_revision("a" * 40, "r4") | {"experiments": inner}]
    monkeypatch.chdir(tmp_path)
    locks = {"a": _lock_of("1"), "b": _lock_of("1"), "c": _lock_of("2")}
    monkeypatch.setattr(compare, "_output", _answers(shown, _with_locks(locks)))
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 0, result.output
    assert "left out: ccccccc: they ran with other code than the commit that they started from" in result.output
    assert result.output.count("`r8") == 1
    # other code is another configuration, not another seed
    assert CliRunner().invoke(compare.main, ["--all-commits"]).output.count("`r8, ") == 2


def test_equal_runs_are_one_and_seeds_of_one_code_fold():
    shown = [_revision(letter * 40, "r8", seed=seed) for letter, seed in (("a", 1), ("b", 1), ("c", 2))]
    params = shown[1]["data"]["params"]["params.yaml"]["data"]
    shown[1]["data"]["params"]["params.yaml"]["data"] = dict(reversed(params.items()))
    frame = table(list(experiments(shown, _of_metrics)))
    assert set(frame["seed"]) == {1, 2} and len(frame) == 2
    assert markdown(frame).count("\n") == 3 and "| `r8` | plain | 2 |" in markdown(frame)


def test_usefulness_of_other_images_is_not_shown():
    def files(learnt: str):
        answers = _with_locks({"a": _lock_of("1", learnt=learnt)})
        useful = json.dumps([{"synthetic": {"macro_f1_mean": 0.5}}]).encode()
        return lambda rev, path: useful if path == "metrics/usefulness.json" else answers(rev, path)

    shown = [_revision("a" * 40, "r8")]
    assert [row["useful_f1"] for learnt in ("1", "2") for row in experiments(shown, files(learnt))] == [0.5, None]
