"""The comparison of experiments: which runs count, the table, its page, and the tables in Markdown files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT, write_yaml
from fake_results import SLUGS, write_run
from html_tags import HOSTILE, Tags
from PIL import Image

from pathsynth.cli import compare as command
from pathsynth.compare import table
from pathsynth.compare.differences import RULE
from pathsynth.compare.experiments import SCORES, LeftOut, collect_runs, list_revisions, read_run, to_frame
from pathsynth.compare.markdown import fill_tables
from pathsynth.compare.page import render_comparison
from pathsynth.compare.project import open_project
from pathsynth.compare.table import build_table, build_training_table, group_trainings, most_common_training
from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import get_nested, read_details
from pathsynth.data import labels
from pathsynth.report.tables import to_markdown

BENCHMARK = "configs/benchmarks/phantom.yaml"
PROMPTS = {"plain": "an image of {label}", "described": {}}


def _metrics(judge: float) -> dict[str, object]:
    def score(f1):
        return {"macro_f1": f1, "macro_f1_low": f1 - 0.1, "macro_f1_high": f1 + 0.1}

    raw = {"n_images": 90, "judge": score(judge), "gate": score(judge + 0.1), "open_set": score(judge - 0.1)}
    sets = {"raw": raw, "accepted": {"judge": score(0.8)}, "untuned": {"judge": score(0.2)}}
    useful = {"probe": {"test": {"gain": {"mean": 0.05}}}}
    counts = {"acceptance_rate": 0.75, "unfilled": 2}
    lora = {"trainable_parameters": 1000, "images_seen": 500}
    files = {"evaluation": [{"sets": sets}], "generation": counts, "usefulness": [useful], "lora": [lora]}
    return {f"metrics/{name}.json": data for name, data in files.items()}


def _params(lora: str, training: int, data: int, benchmark: str, rank: int) -> dict[str, dict]:
    seeds = {"data": data, "observers": 1, "training": training, "drawing": 1}
    selected = {"seeds": seeds, "deterministic": False, "benchmark": benchmark, "lora": lora}
    loras = {"lora_families": {"tiny": {"prompts": "plain"}}, "loras": {lora: ["tiny", {"adapter": {"rank": rank}}]}}
    return {
        "params.yaml": selected | loras,
        f"configs/benchmarks/{benchmark}.yaml": {"dataset": {"source": "phantom"}},
        f"configs/prompts/{benchmark}.yaml": PROMPTS,
    }


def _lock(params: dict[str, dict], code: str, **learned: str) -> dict:
    """dvc.lock of a run with these params; `learned` are checksums that a stage has recorded of its input."""

    def entries(paths: str) -> list[dict]:
        return [{"path": path, "md5": "md51"} for path in paths.split()]

    def stage(outs: str, deps: str, *keys: str) -> dict:
        values = {key: get_nested(params["params.yaml"], tuple(key.split("."))) for key in keys}
        return {"cmd": "true", "deps": entries(deps), "params": {"params.yaml": values}, "outs": entries(outs)}

    lora = next(iter(params["params.yaml"]["loras"]))
    stages = {
        "prepare": stage("data/prepared", "", "seeds.data"),
        "train_lora": stage("models/lora metrics/lora.json", "data/prepared base", "seeds.training", f"loras.{lora}"),
        "generate_filtered": stage("data/generated metrics/generation.json", "models/lora base", "seeds.drawing"),
        "measure_usefulness": stage("metrics/usefulness.json", "data/generated"),
        "evaluate": stage("metrics/evaluation.json", "data/prepared data/generated pathsynth/evaluation"),
    }
    (benchmark,) = (path for path in params if path.startswith("configs/benchmarks"))
    stages["evaluate"]["params"][benchmark] = {"dataset.source": "phantom"}
    stages["evaluate"]["deps"][-1]["md5"] = f"md5{code}"
    for name, checksum in learned.items():
        stages[name]["deps"][0]["md5"] = f"md5{checksum}"
    return {"schema": "2.0", "stages": stages}


def revision(judge=0.6, lora="r4", training=1, data=1, benchmark="phantom", rank=4, code="1", **learned) -> dict[str, bytes]:
    """The files of a revision that a finished run was committed in. JSON is YAML too."""
    params = _params(lora, training, data, benchmark, rank)
    files = {**params, **_metrics(judge), "dvc.lock": _lock(params, code, **learned)}
    return {path: json.dumps(data).encode() for path, data in files.items()}


def reader(revisions: dict[str, dict[str, bytes]]):
    return lambda rev, path: revisions[rev].get(path)


def frame_of(**revisions: dict[str, bytes]) -> pd.DataFrame:
    return to_frame([read_run(rev, reader(revisions)) for rev in revisions])


def markdown(frame: pd.DataFrame) -> list[str]:
    return to_markdown(build_table(group_trainings(frame), short=True)).splitlines()[2:]


@pytest.fixture
def several() -> pd.DataFrame:
    """Two trainings of a configuration, one of another of the same name and higher score, and one of another LoRA."""
    return frame_of(
        a=revision(0.6, training=1),
        b=revision(0.7, training=2),
        c=revision(0.9, training=3, rank=9),
        d=revision(0.6, "r8", training=2),
    )


class TestWhichRunsCount:
    @pytest.mark.parametrize(
        ("path", "content", "reason"),
        [
            ("metrics/evaluation.json", None, "no scores"),
            ("metrics/evaluation.json", b"{", "no scores"),
            ("metrics/evaluation.json", b"[1]", "no scores"),
            ("metrics/evaluation.json", b'[{"macro_f1": 0.5}]', "no scores of raw images by the judge"),
            ("params.yaml", b'{"benchmark": "phantom", "lora": "r4", "benchmarks": {}}', "benchmarks in params.yaml"),
            (
                "params.yaml",
                b'{"benchmark": "phantom", "lora": "r4", "seed": 1}',
                "^seed instead of seeds in params.yaml, as earlier versions had it$",
            ),
            ("params.yaml", b"- 1", "unreadable parameters"),
            ("params.yaml", b'{"benchmark": "phantom"}', "unreadable parameters"),
            ("configs/prompts/phantom.yaml", None, "unreadable parameters"),
            ("dvc.lock", None, "scores of other parameters"),
        ],
    )
    def test_unreadable_revision_is_left_out_with_the_reason(self, path, content, reason):
        files = revision()
        files.pop(path) if content is None else files.update({path: content})
        with pytest.raises(LeftOut, match=reason):
            read_run("a", reader({"a": files}))

    @pytest.mark.parametrize("other", [{"benchmark": "moon"}, {"lora": "r16"}, {"training": 2}, {"data": 2}, {"rank": 10}])
    def test_scores_of_other_parameters_are_left_out(self, other):
        files = revision(**other) | {"dvc.lock": revision()["dvc.lock"]}
        with pytest.raises(LeftOut, match="scores of other parameters"):
            read_run("a", reader({"a": files}))

    @pytest.mark.parametrize("stage", ["train_lora", "generate_filtered", "evaluate"])
    def test_scores_of_another_input_are_left_out(self, stage):
        with pytest.raises(LeftOut, match="scores of other parameters"):
            frame_of(a=revision(**{stage: "2"}))

    def test_usefulness_of_other_images_is_not_shown(self):
        frame = frame_of(a=revision(training=1), b=revision(training=2, measure_usefulness="2"))
        assert list(frame["useful_gain"].isna()) == [False, True] and frame["judge_f1"].notna().all()

    def test_equal_runs_count_once_and_other_code_is_another_configuration(self):
        frame = frame_of(a=revision(), b=revision(), c=revision(training=2), d=revision(code="2"))
        assert list(frame["rev"]) == ["a", "c", "d"]
        assert [len(one.runs) for one in group_trainings(frame)] == [2, 1]

    def test_only_the_training_seed_makes_trainings_of_one_configuration(self):
        frame = frame_of(a=revision(), b=revision(training=2), c=revision(data=2))
        assert [one.trainings for one in group_trainings(frame)] == [[1, 2], [1]]

    def test_snapshots_of_a_training_are_configurations_of_their_own(self):
        def scored(snapshot: int | None, kept: list[int], validation: int | None = None) -> dict[str, bytes]:
            """A run of a training of ten steps, which saw 500 images."""
            files, name = revision(), "r4"
            params, benchmark = (json.loads(files[path]) for path in ("params.yaml", BENCHMARK))
            training = {"max_train_steps": 10, "snapshots": kept}
            params["loras"][name][1] |= {"training": training, "validation": {"validation_steps": validation}}
            lock = json.loads(files["dvc.lock"])
            lock["stages"]["train_lora"]["params"]["params.yaml"][f"loras.{name}"] = params["loras"][name]
            benchmark["generation"] = {"snapshot": snapshot}
            trees = {"params.yaml": params, BENCHMARK: benchmark, "dvc.lock": lock}
            return files | {path: json.dumps(tree).encode() for path, tree in trees.items()}

        frame = frame_of(a=scored(None, []), b=scored(None, [2, 5], 3), c=scored(2, [2, 5]), d=scored(5, [2, 5]))
        assert list(frame["rev"]) == ["a", "c", "d"], "records of a training change no score"
        assert [one.name for one in group_trainings(frame)] == ["r4", "r4 after 2 steps", "r4 after 5 steps"]
        assert list(frame["images_seen"]) == [500, 100, 250]


class TestTable:
    def test_runs_are_sorted_by_benchmark_and_judge(self):
        frame = frame_of(a=revision(0.6), b=revision(0.7, "r8"), c=revision(0.9, benchmark="zoo"))
        assert list(frame["judge_f1"]) == [0.7, 0.6, 0.9] and list(frame["rev"]) == ["b", "a", "c"]

    def test_trainings_become_mean_deviation_and_interval_and_a_single_one_has_neither(self, several):
        alone, repeated = dict.fromkeys(several["config"][several["lora"] == "r4"])
        # t of 0.975 with 1 degree of freedom is 12.706, the standard deviation of 0.6 and 0.7 is 0.0707
        both = "0.650 | 0.071 | 0.01 to 1.00 | 0.550 ± 0.071 | 0.750 ± 0.071 | 0.800 ± 0.000 | 0.200 ± 0.000 | 75 % ± 0 % | 90"
        rest = "0.800 | 0.200 | 75 % | 90"
        assert markdown(several) == [
            f"| r4, {alone} | plain | 1 | 0.900 | - | - | 0.800 | 1.000 | {rest} |",
            f"| r4, {repeated} | plain | 2 | {both} |",
            f"| r8 | plain | 1 | 0.600 | - | - | 0.500 | 0.700 | {rest} |",
        ]

    def test_short_table_has_the_columns_of_the_readme(self, several):
        assert build_table(group_trainings(several), short=True).head == (
            "LoRA", "Prompts", "Trainings", "Judge F1 (mean)", "sd", "95 % interval", "Open-set F1", "Gate F1",
            "Accepted (judge)", "Untuned", "Acceptance", "Images per training",
        )  # fmt: skip

    def test_single_trainings_have_intervals_over_images(self, several):
        trainings = build_training_table(group_trainings(several))
        assert trainings.head[4] == "95 % interval over images, this training"
        assert [row[1:5] for row in trainings.rows] == [
            ("3", "c", "0.900", "0.80 to 1.00"),
            ("1", "a", "0.600", "0.50 to 0.70"),
            ("2", "b", "0.700", "0.60 to 0.80"),
            ("2", "d", "0.600", "0.50 to 0.70"),
        ]

    def test_score_of_fewer_runs_has_its_count(self):
        stale = (revision(training=seed, measure_usefulness="2") for seed in (2, 3))
        frame = frame_of(**dict(zip("bc", stale, strict=True)), a=revision(training=1))
        assert "0.050 (n=1)" in [str(cell) for cell in build_table(group_trainings(frame)).rows[0]]

    def test_missing_score_is_a_dash(self):
        files = {path: content for path, content in revision().items() if path != "metrics/generation.json"}
        assert markdown(frame_of(a=files))[0].endswith("| 0.200 | - | 90 |")

    def test_most_common_training_is_the_lowest_of_several(self, several):
        assert most_common_training(group_trainings(several)) == 2
        assert most_common_training(group_trainings(several)[:2]) == 1

    def test_saved_runs_give_the_same_table(self, several, tmp_path):
        table.save(tmp_path / "a.csv", several)
        assert "\nphantom,r4,plain," in (tmp_path / "a.csv").read_text() and ",90," in (tmp_path / "a.csv").read_text()
        assert markdown(table.read_saved(tmp_path / "a.csv")) == markdown(several)
        with pytest.raises(DataError, match="is missing"):
            table.read_saved(tmp_path / "b.csv")


class TestMarkdownFiles:
    def test_tables_are_replaced_between_marks_only(self, several, tmp_path):
        write_run(tmp_path)
        marks = ("results: phantom", "scores: metrics", "anchors: tiny")
        text = "a\n" + "b\n".join(f"<!-- {mark} -->\nold\n<!-- end -->\n" for mark in marks) + "c\n"
        filled = fill_tables(text, "x.md", several, tmp_path)
        assert filled.startswith("a\n<!-- results: phantom -->\n| LoRA |") and filled.endswith("|\n<!-- end -->\nc\n")
        for start in ("<!-- scores: metrics -->\n| Measure |", "<!-- anchors: tiny -->\n| Images |"):
            assert f"|\n<!-- end -->\nb\n{start}" in filled
        assert "old" not in filled
        assert fill_tables(filled, "x.md", several, tmp_path) == filled
        assert fill_tables("a <!-- end --> b", "x.md", several, tmp_path) == "a <!-- end --> b"

    def test_anchors_stand_beside_the_saved_scores_of_their_benchmark(self, several, tmp_path):
        write_run(tmp_path)
        mark = "<!-- anchors: tiny -->\n<!-- end -->"
        of_metrics = fill_tables(mark, "x.md", several, tmp_path)
        evaluation = read_details(tmp_path / "metrics" / "evaluation.json")
        evaluation["sets"] = {"raw": {"n_images": 1, "judge": {"macro_f1": 0.123}}}
        _write(tmp_path, {"results/tiny/evaluation.json": json.dumps(evaluation).encode()})
        saved = fill_tables(mark, "x.md", several, tmp_path)
        assert "| Generated, raw | - | 0.123 |" in saved and "| 0.123 |" not in of_metrics

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("<!-- results: moon -->\n<!-- end -->", "x.md: has a mark for moon, which has no saved run"),
            ("<!-- results: phantom -->\nold", "x.md: `<!-- results: phantom -->` has no `<!-- end -->`"),
            ("<!-- scores: a -->\n<!-- results: phantom -->\n<!-- end -->", "`<!-- scores: a -->` has no `<!-- end -->`"),
            ("<!-- scores: a -->\n<!-- end -->", "a/evaluation.json"),
            ("<!-- anchors: a -->\n<!-- end -->", "metrics/anchors/a.json"),
            ("<!-- anchors: old -->\n<!-- end -->", "x.md: `<!-- anchors: old -->`: the scores lack 'sets'"),
        ],
    )
    def test_mark_that_cannot_be_filled_is_an_error(self, text, message, several, tmp_path):
        _write(tmp_path, dict.fromkeys(("metrics/anchors/old.json", "metrics/evaluation.json"), b"[{}]"))
        with pytest.raises(DataError, match=message):
            fill_tables(text, "x.md", several, tmp_path)

    @pytest.mark.parametrize("path", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
    def test_committed_tables_are_those_of_the_committed_results(self, path):
        if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "metrics"], cwd=ROOT, check=False).returncode == 1:
            pytest.skip("metrics/ holds the scores of another run than the committed one")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert fill_tables(text, path, table.read_saved(ROOT / "results" / "experiments.csv"), ROOT) == text


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    """A good and a bad run as folders; the bad one's contact sheets do not record their blocks."""
    folder = tmp_path_factory.mktemp("commits")
    found = {rev: write_run(folder / rev, seed, skill) for rev, seed, skill in (("good", 0, 1.0), ("bad", 1, 0.0))}
    for sheet in (found["bad"] / "plots" / "evaluation" / "plates").iterdir():
        Image.new("RGB", (20, 20)).save(sheet)
    return found


@pytest.fixture(scope="module")
def read(commits):
    """Reads the runs' metrics, tables and sheets from these folders, and their params and lock from memory."""
    files = {rev: revision(lora=rev, training=7) for rev in (*commits, "old")}

    def read(rev: str, path: str) -> bytes | None:
        if rev in commits and path.startswith(("metrics/", "plots/")):
            file = commits[rev] / path
            return file.read_bytes() if file.is_file() else None
        return files[rev].get(path)

    return read


@pytest.fixture
def runs(read) -> pd.DataFrame:
    return to_frame([read_run(rev, read) for rev in ("good", "bad", "old")])


class TestPage:
    def test_page_shows_every_configuration_and_sheet(self, runs, read):
        page = render_comparison(runs, read)
        for text in (
            "Benchmark phantom",
            "Stand-in data",
            RULE,
            "Not testable: 3 pairs (one training each).",
            "1,056,256",
            "old",
        ):
            assert text in page, text
        assert "is better than" not in page and "no difference shown" not in page and "Whiskers" not in page
        found = Tags(page).found
        for label in labels.PATHMNIST:
            assert f"<summary>{label}</summary>" in page
        pictures = [attributes for tag, attributes in found if tag == "img"]
        assert [picture["width"] for picture in pictures] == ["296", "296"] * len(SLUGS)
        assert [picture["alt"].split(": ")[1] for picture in pictures[:2]] == ["real images.", "raw images of good."]
        ids = [attributes["id"] for _, attributes in found if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert page == render_comparison(runs, read)

    def test_page_tests_repeated_trainings_and_shows_their_deviation(self, runs, read):
        again = [
            runs.assign(training=training, judge_f1=lambda run, noise=noise: run["judge_f1"] + noise * run.index)
            for training, noise in ((8, 0.002), (9, -0.003))
        ]
        page = render_comparison(pd.concat([runs, *again], ignore_index=True), read)
        for text in (
            "3 configurations, 9 trainings", "good is better than bad", "trained on 11,200 and 500 images",
            "Whiskers: one standard deviation over trainings.", "raw images of good, training 7",
        ):  # fmt: skip
            assert text in page, text
        assert "Not testable" not in page

    def test_names_are_escaped_and_missing_files_skipped(self, runs):
        hostile = runs.assign(lora=HOSTILE, benchmark=HOSTILE, prompts=HOSTILE)
        page = render_comparison(hostile, lambda rev, path: None)
        assert "script" not in [tag for tag, _ in Tags(page).found]
        assert runs["config"][0] in page and "Images side by side" not in page


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
        for name, files in (("same", revision(0.7, "r8")), ("other", revision(0.8, "r8", training=2, code="2"))):
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
        with open_project() as project:
            read = project.read
            runs = collect_runs(read, all_commits=False)
            assert list(runs["lora"]) == ["r8", "r4"] and list(runs["judge_f1"]) == [0.7, 0.6]
            assert "other code than the commit they started from" in capsys.readouterr().err
            assert len(collect_runs(read, all_commits=True)) == 3
            assert read("main", "missing") is None

    def test_command_prints_saves_and_fills(self, inside):
        save = inside / "saved"
        result = CliRunner().invoke(command.compare, ["--save", str(save), "--report", str(inside / "a.html")])
        assert result.exit_code == 0, result.output
        for text in (
            "r8",
            "0.700",
            "left out: ",
            "Not testable: 1 pair (one training each).",
            RULE,
            "One training is no result.",
        ):
            assert text in result.output, text
        Tags((inside / "a.html").read_text(encoding="utf-8"))
        saved = pd.read_csv(save / "experiments.csv")
        assert list(saved.columns) == ["benchmark", "lora", "prompts", "config", "training", *SCORES]
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
