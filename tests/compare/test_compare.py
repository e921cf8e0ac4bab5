"""The comparison of experiments: which runs count, the table, its page, and the tables in Markdown files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT, write_yaml
from fake_results import SLUGS, write_run
from html_tags import HOSTILE, Tags

from pathsynth.cli import compare as command
from pathsynth.compare import table
from pathsynth.compare.experiments import SCORES, LeftOut, collect_runs, list_revisions, open_project, read_run, to_frame
from pathsynth.compare.page import difference_tests, render_comparison
from pathsynth.compare.table import Configuration, build_short_table, fill_tables, group_seeds
from pathsynth.core.errors import DataError
from pathsynth.data import labels
from pathsynth.evaluation import contact_sheets
from pathsynth.report.tables import to_markdown

PROMPTS = {"plain": "an image of {label}", "described": {}}


def _metrics(gate: float) -> dict[str, object]:
    def score(f1):
        return {"macro_f1": f1, "macro_f1_low": f1 - 0.1, "macro_f1_high": f1 + 0.1, "n_images": 90}

    scores = score(gate) | {"judge": score(gate - 0.1), "filtered_judge": score(0.8), "untuned": score(0.2)}
    useful = {"synthetic": {"macro_f1_mean": 0.5}}
    counts = {"acceptance_rate": 0.75, "unfilled": 2}
    return {"metrics/evaluation.json": [scores], "metrics/generation.json": counts, "metrics/usefulness.json": [useful]}


def _params(lora: str, seed: int, benchmark: str, rank: int) -> dict[str, dict]:
    selected = {"seed": seed, "deterministic": False, "benchmark": benchmark, "lora": lora}
    loras = {"lora_families": {"tiny": {"prompts": "plain"}}, "loras": {lora: ["tiny", {"adapter": {"rank": rank}}]}}
    return {
        "params.yaml": selected | loras,
        f"configs/benchmarks/{benchmark}.yaml": {"dataset": {"source": "phantom"}},
        f"configs/prompts/{benchmark}.yaml": PROMPTS,
    }


def _lock(params: dict[str, dict], code: str, learned: str = "1") -> dict:
    """dvc.lock of a run with these params: the values of the stages train_lora and evaluate, and checksums."""
    of_lora = {key: params["params.yaml"][key] for key in ("seed", "lora_families")}
    of_lora |= {f"loras.{name}": entry for name, entry in params["params.yaml"]["loras"].items()}
    (benchmark,) = (path for path in params if path.startswith("configs/benchmarks"))
    deps = [{"path": "pathsynth/finetuning", "md5": f"code{code}"}, {"path": "data/prepared", "md5": "x.dir"}]
    images = {"path": "data/generated", "md5": "md51"}
    stages = {
        "train_lora": {"deps": deps, "params": {"params.yaml": of_lora}},
        "generate_filtered": {"outs": [images]},
        "measure_usefulness": {"deps": [images | {"md5": f"md5{learned}"}]},
        "evaluate": {"params": {benchmark: {"dataset.source": "phantom"}}},
    }
    return {"schema": "2.0", "stages": {name: {"cmd": "true", **stage} for name, stage in stages.items()}}


def revision(gate=0.6, lora="r4", seed=1, benchmark="phantom", rank=4, code="1", **lock) -> dict[str, bytes]:
    """The files of a revision that a finished run was committed in. JSON is YAML too."""
    params = _params(lora, seed, benchmark, rank)
    files = {**params, **_metrics(gate), "dvc.lock": _lock(params, code, **lock)}
    return {path: json.dumps(data).encode() for path, data in files.items()}


def reader(revisions: dict[str, dict[str, bytes]]):
    return lambda rev, path: revisions[rev].get(path)


def frame_of(**revisions: dict[str, bytes]) -> pd.DataFrame:
    return to_frame([read_run(rev, reader(revisions)) for rev in revisions])


def markdown(frame: pd.DataFrame) -> list[str]:
    return to_markdown(build_short_table(group_seeds(frame))).splitlines()[2:]


@pytest.fixture
def seeds() -> pd.DataFrame:
    """Two seeds of a configuration, one of another of the same name and higher score, and one of another LoRA."""
    return frame_of(
        a=revision(0.6, seed=1), b=revision(0.7, seed=2), c=revision(0.9, seed=3, rank=9), d=revision(0.6, "r8", seed=2)
    )


class TestWhichRunsCount:
    @pytest.mark.parametrize(
        ("path", "content", "reason"),
        [
            ("metrics/evaluation.json", None, "no scores"),
            ("metrics/evaluation.json", b"{", "no scores"),
            ("metrics/evaluation.json", b"[1]", "no scores"),
            ("params.yaml", b'{"benchmark": "phantom", "lora": "r4", "benchmarks": {}}', "benchmarks in params.yaml"),
            ("params.yaml", b"- 1", "unreadable parameters"),
            ("params.yaml", b'{"benchmark": "phantom"}', "unreadable parameters"),
            ("configs/prompts/phantom.yaml", None, "unreadable parameters"),
        ],
    )
    def test_unreadable_revision_is_left_out_with_the_reason(self, path, content, reason):
        files = revision()
        files.pop(path) if content is None else files.update({path: content})
        with pytest.raises(LeftOut, match=reason):
            read_run("a", reader({"a": files}))

    @pytest.mark.parametrize("other", [{"benchmark": "moon"}, {"lora": "r16"}, {"seed": 2}, {"rank": 10}])
    def test_scores_of_other_parameters_are_left_out(self, other):
        files = revision(**other) | {"dvc.lock": revision()["dvc.lock"]}
        with pytest.raises(LeftOut, match="scores of other parameters"):
            read_run("a", reader({"a": files}))

    def test_usefulness_of_other_images_is_not_shown(self):
        frame = frame_of(a=revision(seed=1), b=revision(seed=2, learned="2"))
        assert list(frame["useful_f1"].isna()) == [False, True] and frame["macro_f1"].notna().all()

    def test_equal_runs_count_once_and_other_code_is_another_configuration(self):
        frame = frame_of(a=revision(), b=revision(), c=revision(seed=2), d=revision(code="2"))
        assert list(frame["rev"]) == ["a", "c", "d"]
        assert [len(one.runs) for one in group_seeds(frame)] == [2, 1]


class TestTable:
    def test_runs_are_sorted_by_benchmark_and_headline(self):
        frame = frame_of(a=revision(0.6), b=revision(0.7, "r8"), c=revision(0.9, benchmark="zoo"))
        assert list(frame["macro_f1"]) == [0.7, 0.6, 0.9] and list(frame["rev"]) == ["b", "a", "c"]

    def test_seeds_become_mean_and_deviation_and_a_single_run_has_its_interval(self, seeds):
        alone, repeated = dict.fromkeys(seeds["config"][seeds["lora"] == "r4"])
        both = "0.650 ± 0.071 | 0.550 ± 0.071 | 0.800 ± 0.000 | 0.200 ± 0.000 | 75 % ± 0 % | 2 ± 0 | 0.500 ± 0.000 | 90"
        rest = "0.800 | 0.200 | 75 % | 2 | 0.500 | 90"
        assert markdown(seeds) == [
            f"| r4, {alone} | plain | 1 | 0.900 (0.80 to 1.00) | 0.800 (0.70 to 0.90) | {rest} |",
            f"| r4, {repeated} | plain | 2 | {both} |",
            f"| r8 | plain | 1 | 0.600 (0.50 to 0.70) | 0.500 (0.40 to 0.60) | {rest} |",
        ]

    def test_score_of_fewer_runs_has_its_count(self):
        frame = frame_of(a=revision(seed=1), b=revision(seed=2, learned="2"), c=revision(seed=3, learned="2"))
        assert "| 0.500 (n=1) |" in markdown(frame)[0]

    def test_missing_score_is_a_dash(self):
        files = {path: content for path, content in revision().items() if path != "metrics/generation.json"}
        assert markdown(frame_of(a=files))[0].endswith("| - | - | 0.500 | 90 |")

    def test_saved_runs_give_the_same_table(self, seeds, tmp_path):
        table.save(tmp_path / "a.csv", seeds)
        assert "\nphantom,r4,plain," in (tmp_path / "a.csv").read_text() and ",90," in (tmp_path / "a.csv").read_text()
        assert markdown(table.read_saved(tmp_path / "a.csv")) == markdown(seeds)
        with pytest.raises(DataError, match="is missing"):
            table.read_saved(tmp_path / "b.csv")


class TestMarkdownFiles:
    def test_tables_are_replaced_between_marks_only(self, seeds, tmp_path):
        write_run(tmp_path)
        text = "a\n<!-- results: phantom -->\nold\n<!-- end -->\nb\n<!-- scores: metrics -->\nold\n<!-- end -->\nc\n"
        filled = fill_tables(text, "x.md", seeds, tmp_path)
        assert filled.startswith("a\n<!-- results: phantom -->\n| LoRA |") and filled.endswith("|\n<!-- end -->\nc\n")
        assert "|\n<!-- end -->\nb\n<!-- scores: metrics -->\n| " in filled and "old" not in filled
        assert fill_tables(filled, "x.md", seeds, tmp_path) == filled
        assert fill_tables("a <!-- end --> b", "x.md", seeds, tmp_path) == "a <!-- end --> b"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("<!-- results: moon -->\n<!-- end -->", "x.md: has a mark for moon, which has no saved run"),
            ("<!-- results: phantom -->\nold", "x.md: `<!-- results: phantom -->` has no `<!-- end -->`"),
            ("<!-- scores: a -->\n<!-- results: phantom -->\n<!-- end -->", "`<!-- scores: a -->` has no `<!-- end -->`"),
            ("<!-- scores: a -->\n<!-- end -->", "a/evaluation.json"),
        ],
    )
    def test_mark_that_cannot_be_filled_is_an_error(self, text, message, seeds, tmp_path):
        with pytest.raises(DataError, match=message):
            fill_tables(text, "x.md", seeds, tmp_path)

    @pytest.mark.parametrize("path", ["README.md", "docs/results.md"])
    def test_committed_tables_are_those_of_the_committed_results(self, path):
        if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "metrics"], cwd=ROOT, check=False).returncode == 1:
            pytest.skip("metrics/ holds the scores of another run than the committed one")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert fill_tables(text, path, table.read_saved(ROOT / "results" / "experiments.csv"), ROOT) == text


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    """A good, a bad and an unplotted run as folders; the bad one's contact sheets do not record their blocks."""
    folder = tmp_path_factory.mktemp("commits")
    found = {rev: write_run(folder / rev, seed, skill) for rev, seed, skill in (("good", 0, 1.0), ("bad", 1, 0.0))}
    blocks = [
        contact_sheets.Block(title, np.full((18, 24, 24, 3), shade, np.uint8))
        for title, shade in ((contact_sheets.DATA_SET, 40), (contact_sheets.RAW, 200))
    ]
    sheets = {slug: contact_sheets.draw_contact_sheet(slug, blocks, "caption") for slug in SLUGS}
    contact_sheets.write_contact_sheets(found["good"] / "plots" / "evaluation" / "plates", sheets)
    return found


@pytest.fixture(scope="module")
def read(commits):
    """Reads the runs' metrics, tables and sheets from these folders, and their params and lock from memory."""
    files = {rev: revision(lora=rev, seed=7) for rev in (*commits, "old")}

    def read(rev: str, path: str) -> bytes | None:
        if rev in commits and path.startswith(("metrics/", "plots/")):
            file = commits[rev] / path
            return file.read_bytes() if file.is_file() else None
        return files[rev].get(path)

    return read


@pytest.fixture
def runs(read) -> pd.DataFrame:
    return to_frame([read_run(rev, read) for rev in ("good", "bad", "old")])


def _changed(runs: pd.DataFrame, rev: str, **values) -> pd.DataFrame:
    changed = runs.copy()
    for column, value in values.items():
        changed.loc[changed["rev"] == rev, column] = value
    return changed


class TestDifferences:
    def test_better_images_win_and_equal_ones_do_not(self, runs, read):
        bad, old = difference_tests(group_seeds(runs), SLUGS, read)
        assert bad["unpaired"] is None and bad["seed"] == 7
        assert bad["gate"]["difference"] > 0.05 and bad["gate"]["p"] < 0.05
        judged = runs.set_index("rev")["judge_f1"]
        assert bad["judge"]["difference"] == pytest.approx(judged["good"] - judged["bad"], abs=1e-5)
        assert "good is better than bad at n = 180" in bad["sentence"]
        assert old == {"name": "old", "seed": 7, "repeats": None, "skipped": "no table of raw images of old"}
        best = group_seeds(runs)[0]
        (same,) = difference_tests([best, best], SLUGS, read)
        assert same["judge"] == {"difference": 0.0, "p": 1.0}

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [({"seed": 8}, "other seed"), ({"texts": "x"}, "other prompts"), ({"seed": 8, "texts": "x"}, "other seed and prompts")],
    )
    def test_images_of_other_noise_or_prompts_are_not_paired(self, runs, read, changes, reason):
        test, _ = difference_tests(group_seeds(_changed(runs, "bad", **changes)), SLUGS, read)
        assert test["unpaired"] == reason and test["gate"]["difference"] > 0.05 and test["gate"]["p"] < 0.05

    def test_p_values_of_a_table_are_corrected_together(self, runs, read):
        best, bad, _ = group_seeds(runs)
        (alone,) = difference_tests([best, bad], SLUGS, read)
        tests = difference_tests([best, *[bad] * 10], SLUGS, read)
        assert len({test["judge"]["p"] for test in tests}) == 1 and tests[0]["judge"]["p"] > alone["judge"]["p"]
        assert f"p = {tests[0]['judge']['p']:.2g}" in tests[0]["sentence"]

    def test_lowest_common_seed_is_tested_and_all_common_ones_are_counted(self, runs, read):
        def repeat(rev: str, scores: dict[int, float]) -> Configuration:
            rows = [runs[runs["rev"] == rev].assign(seed=seed, judge_f1=score) for seed, score in scores.items()]
            return Configuration(rev, pd.concat(rows, ignore_index=True))

        good, bad = repeat("good", {3: 0.9, 4: 0.7, 5: 0.8}), repeat("bad", {3: 0.6, 4: 0.8, 9: 0.2})
        (test,) = difference_tests([good, bad], SLUGS, read)
        assert test["seed"] == 3 and test["unpaired"] is None
        assert test["repeats"] == {"mean": pytest.approx(0.1), "deviation": pytest.approx(0.08**0.5), "above": 1, "n": 2}
        (test,) = difference_tests([good, repeat("bad", {9: 0.2})], SLUGS, read)
        assert test["seed"] is None and test["unpaired"] == "other seed" and test["repeats"] is None

    def test_other_slots_are_not_paired_and_other_classes_not_tested(self, runs, read):
        configurations = group_seeds(runs)[:2]

        def change_bad(change):
            return lambda rev, path: change(read(rev, path)) if rev == "bad" else read(rev, path)

        (test,) = difference_tests(configurations, SLUGS, change_bad(lambda data: b"\n".join(data.splitlines()[:-1])))
        assert test["unpaired"] == "other slots" and "at n = 179" in test["sentence"]
        (test,) = difference_tests(configurations, SLUGS[:5], read)
        assert test["skipped"] == "classes of another benchmark"
        (test,) = difference_tests(configurations, SLUGS, change_bad(lambda data: b"\xff\xfe"))
        assert test["skipped"] == "no table of raw images of bad"


class TestPage:
    def test_page_shows_every_configuration_test_and_sheet(self, runs, read):
        page = render_comparison(runs, read)
        for text in (
            "Benchmark phantom",
            "Stand-in data",
            "good is better than bad",
            "paired, seed 7",
            "41.2",
            "1,056,256",
            "old",
        ):
            assert text in page, text
        assert "Single runs" not in page
        found = Tags(page).found
        for label in labels.PATHMNIST:
            assert f"<summary>{label}</summary>" in page
        pictures = [attributes for tag, attributes in found if tag == "img"]
        assert [picture["width"] for picture in pictures] == ["296", "296"] * len(SLUGS)
        assert [picture["alt"].split(": ")[1] for picture in pictures[:2]] == ["real images.", "raw images of good."]
        ids = [attributes["id"] for _, attributes in found if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert page == render_comparison(runs, read)

    def test_page_shows_mean_deviation_and_single_runs(self, runs, read):
        again = runs[runs["rev"] == "good"].assign(seed=8, macro_f1=lambda run: run["macro_f1"] - 0.02)
        page = render_comparison(pd.concat([runs, again], ignore_index=True), read)
        for text in (
            "3 configurations, 4 runs", " ± 0.014", "<summary>Single runs</summary>",
            "Whiskers: standard deviation over the seeds.",
            "paired, seed 7", "raw images of good, seed 7",
        ):  # fmt: skip
            assert text in page, text

    def test_names_are_escaped_and_missing_files_skipped(self, runs):
        hostile = runs.assign(lora=HOSTILE, benchmark=HOSTILE, prompts=HOSTILE)
        page = render_comparison(hostile, lambda rev, path: None)
        assert "script" not in [tag for tag, _ in Tags(page).found]
        assert runs["config"][0] in page and "no table of raw images" in page


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project in a sub folder of a git repository, with a commit, and an experiment of the same and one of other code."""
    import dvc.api
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("larger") / "project"
    folder.mkdir()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", "t")
            patch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
        subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder.parent, check=True)
        Repo.init(subdir=True).close()
        write_yaml(folder / "dvc.yaml", {"stages": {}})
        _write(folder, revision(0.6) | {"plots/evaluation/plates/overview.png": b"picture"})
        subprocess.run(["git", "add", "-A", "."], check=True)
        subprocess.run([*git, "commit", "-qm", "one"], check=True)
        for name, files in (("same", revision(0.7, "r8")), ("other", revision(0.8, "r8", seed=2, code="2"))):
            _write(folder, files)
            dvc.api.exp_save(name)
            subprocess.run(["git", "checkout", "-q", "."], check=True)
    return folder


@pytest.fixture
def inside(project, monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(project)
    return tmp_path


class TestCommand:
    def test_runs_of_the_last_commit_are_read_from_git(self, inside, capsys):
        assert len(list_revisions(False)) == 3 and set(list_revisions(False).values()) == {"main"}
        with open_project() as read:
            runs = collect_runs(read, all_commits=False)
            assert list(runs["lora"]) == ["r8", "r4"] and list(runs["macro_f1"]) == [0.7, 0.6]
            assert "other code than the commit they started from" in capsys.readouterr().err
            assert len(collect_runs(read, all_commits=True)) == 3
            assert read("main", "missing") is None

    def test_command_prints_saves_and_fills(self, inside):
        save = inside / "saved"
        result = CliRunner().invoke(command.compare, ["--save", str(save), "--report", str(inside / "a.html")])
        assert result.exit_code == 0, result.output
        assert "r8" in result.output and "0.700 (0.60 to 0.80)" in result.output and "left out: " in result.output
        Tags((inside / "a.html").read_text(encoding="utf-8"))
        saved = pd.read_csv(save / "experiments.csv")
        assert list(saved.columns) == ["benchmark", "lora", "prompts", "config", "seed", *SCORES]
        assert (save / "phantom.png").read_bytes() == b"picture"
        (inside / "a.md").write_text("<!-- results: phantom -->\n<!-- end -->\n")
        result = CliRunner().invoke(command.compare, ["--save", str(save), "--fill", str(inside / "a.md")])
        assert result.exit_code == 0 and "| r8 | plain |" in (inside / "a.md").read_text()

    @pytest.mark.parametrize("case", ["no repository", "no DVC repository", "no commit", "no git"])
    def test_missing_repository_is_one_line_error(self, case, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        if case != "no repository":
            subprocess.run(["git", "init", "-q"], check=True)
        if case == "no commit":
            subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
        if case == "no git":
            monkeypatch.setenv("PATH", str(tmp_path))
        result = CliRunner().invoke(command.compare, [])
        assert result.exit_code == 1 and result.output.startswith("error: compare: "), result.output
        assert len(result.output.splitlines()) == 1
