"""Compares experiments: `python -m pathsynth.compare`, a table of what `dvc exp show` shows, and a page of charts and plates.

As there, this is the last commit and the experiments that started from it, all run by the same code and data; experiments of
other commits are compared with `--all-commits`, and may differ in more than their params. What was run in part only, so that
its scores are still those of the commit that it started from, is left out.
The page goes to reports/compare.html, or to another file with `--report`. With `--save results` the table goes to
results/experiments.csv and the overview plate of each benchmark's best experiment to results/BENCHMARK.png; with
`--readme README.md` the tables in the README are made anew from that file.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth import compare_page
from pathsynth.cards import cell
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.errors import DataError, one_line
from pathsynth.files import read_json, reason, write_csv, write_text, write_whole
from pathsynth.score_table import score_table

if TYPE_CHECKING:
    import pandas as pd

OVERVIEW = "plots/evaluation/plates/overview.png"
SCORES_MARKS = re.compile(r"(<!-- scores: ([\w/]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MARKS = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Column: the metrics file and the keys that lead to the value.
SCORES: dict[str, tuple[str, ...]] = {
    "macro_f1": ("evaluation", "macro_f1"),
    "macro_f1_low": ("evaluation", "macro_f1_low"),
    "macro_f1_high": ("evaluation", "macro_f1_high"),
    "judge_f1": ("evaluation", "judge", "macro_f1"),
    "judge_f1_low": ("evaluation", "judge", "macro_f1_low"),
    "judge_f1_high": ("evaluation", "judge", "macro_f1_high"),
    "filtered_judge_f1": ("evaluation", "filtered_judge", "macro_f1"),
    "untuned_f1": ("evaluation", "untuned", "macro_f1"),
    "judge_on_real": ("evaluation", "real_images", "judge", "test"),
    "frechet_distance": ("evaluation", "realism", "raw", "frechet_distance"),
    "kernel_distance": ("evaluation", "realism", "raw", "kernel_distance"),
    "coverage": ("evaluation", "realism", "raw", "coverage"),
    "useful_f1": ("usefulness", "synthetic", "macro_f1_mean"),
    "useful_f1_std": ("usefulness", "synthetic", "macro_f1_std"),
    "real_f1": ("usefulness", "real", "macro_f1_mean"),
    "n_images": ("evaluation", "n_images"),
    "acceptance_rate": ("generation", "acceptance_rate"),
    "unfilled": ("generation", "unfilled"),
    "trainable_parameters": ("lora", "trainable_parameters"),
}
FILES = ("evaluation", "generation", "usefulness", "lora")
# The stages whose params decide what metrics/evaluation.json holds; what the others depend on, these do too.
MAKERS = ("train_classifier@gate", "train_classifier@judge", "train_lora", "generate_filtered", "evaluate")
# Columns that are no part of the saved table.
UNSAVED = ["rev", "tissues", "dataset", "texts"]


def experiments(shown: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One flat row per finished experiment or commit in the answer of `dvc exp show --json`.

    The workspace is left out: its params may have been edited since its scores were made.
    """
    for entry in shown:
        if entry["rev"] == "workspace":
            continue
        # one that waits or runs shows its own params beside the scores of the commit that it started from
        ended = [e for e in entry.get("experiments") or [] if (e.get("executor") or {}).get("state") in (None, "success")]
        revisions = [entry] + [revision for experiment in ended for revision in experiment["revs"]]
        for revision in revisions:
            data = revision.get("data") or {}
            params = _content(data.get("params"), "params.yaml")
            metrics = {name: _content(data.get("metrics"), f"metrics/{name}.json") or {} for name in FILES}
            # what a commit does not know yet is left open, but without these there is nothing to be compared
            if params and {"benchmark", "lora"} <= set(params) and _found(metrics, SCORES["macro_f1"]) is not None:
                yield _row(revision, params, metrics)


def scored_by_its_params(params: dict[str, Any], lock: bytes | None) -> bool:
    """Whether a revision's params could have made its scores, by what dvc.lock says that the stages ran with.

    After `dvc exp run -S benchmark=other prepare` the scores in the working tree are still those of the commit before.

    Args:
        params: as in a row of `experiments`.
        lock: bytes of the revision's dvc.lock, or None.

    Returns:
        True also where there is nothing to judge by: no lock, or one of a commit that recorded no params of a benchmark.
    """
    stages = _locked(lock) if lock else {}
    recorded = [_found(stages, (stage, "params", "params.yaml")) or {} for stage in MAKERS]
    if not any(key.startswith("benchmarks.") for key in recorded[-1]):
        return True
    return all(_value(params, key) == value for of_stage in recorded for key, value in of_stage.items())


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows sorted by benchmark and macro F1 of raw images by the gate; of equal params the first is kept."""
    import pandas as pd

    # as objects: a column of numbers would make counts of experiments beside unknown ones fractional
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame[~frame["params"].map(json.dumps).duplicated()].drop(columns="params")
    return frame.sort_values(["benchmark", "macro_f1"], ascending=[True, False], kind="stable", ignore_index=True)


def markdown(frame: pd.DataFrame) -> str:
    """The table of one benchmark in Markdown, scores with their 95 % intervals."""
    head = "| LoRA | prompts | raw, gate | raw, judge | accepted, judge | untuned, judge | acceptance | unfilled | images |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in frame.to_dict("records"):
        gate, judge = (_interval(row, name) for name in ("macro_f1", "judge_f1"))
        cells = [
            _code(row["lora"]),
            cell(_text(row["prompts"])),
            gate,
            judge,
            *(_score(row[name]) for name in ("filtered_judge_f1", "untuned_f1")),
        ]
        cells += [
            _text(row[name], form) for name, form in (("acceptance_rate", ".0%"), ("unfilled", ".0f"), ("n_images", ".0f"))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _code(name: str) -> str:
    """A name as code in a cell of a table, where backslashes would show; names of old commits may be anything."""
    return f"`{re.sub(r'[`|<>]', '', ' '.join(str(name).split()))}`"


def fill_scores(text: str, folder: Path) -> str:
    """Replaces what stands between `<!-- scores: FOLDER -->` and `<!-- end -->` by what else that folder's metrics say."""

    def replacement(match: re.Match) -> str:
        evaluation, usefulness = (read_json(folder / match[2] / f"{name}.json") for name in ("evaluation", "usefulness"))
        try:
            return match[1] + score_table(evaluation, usefulness) + match[3]
        except KeyError as error:
            raise DataError(folder / match[2], f"its scores lack {error.args[0]!r}; run the stage evaluate anew") from error

    return SCORES_MARKS.sub(replacement, text)


def fill_readme(text: str, frame: pd.DataFrame) -> str:
    """Replaces what stands between `<!-- results: BENCHMARK -->` and `<!-- end -->` by that benchmark's table."""

    def replacement(match: re.Match) -> str:
        rows = frame[frame["benchmark"] == match[2]]
        if rows.empty:
            raise DataError("README", f"has a mark for {match[2]}, of which no experiment is known")
        return match[1] + markdown(rows) + match[3]

    return MARKS.sub(replacement, text)


@click.command()
@click.option("--save", type=FOLDER, help="Folder for experiments.csv and an overview plate per benchmark.")
@click.option("--readme", type=FILE, help="Markdown file whose marked tables are made anew from the saved experiments.csv.")
@click.option("--all-commits", is_flag=True, help="Also the experiments of earlier commits.")
@click.option("--report", type=FILE, default="reports/compare.html", show_default=True, help="The page that is written.")
@reports_errors
def main(save: Path | None, readme: Path | None, all_commits: bool, report: Path) -> None:
    """Prints the comparison of experiments and writes its page, or makes the README's tables from the saved one."""
    if readme:
        _fill(readme, (save or Path("results")) / "experiments.csv")
        return
    rows = _own_rows(all_commits)
    frame = table(rows)
    for benchmark, group in frame.groupby("benchmark"):
        click.echo(f"\n{benchmark}\n{markdown(group)}")
        if save:
            plate = _output("git", "show", f"{group.iloc[0]['rev']}:{OVERVIEW}")
            with write_whole(save / f"{benchmark}.png") as part:
                part.write_bytes(plate)
    if save:
        write_csv(save / "experiments.csv", frame.drop(columns=UNSAVED))
    write_text(report, compare_page.render_comparison(frame.to_dict("records"), file_of))
    click.echo(f"open {report} in a browser")


def _own_rows(all_commits: bool) -> list[dict[str, Any]]:
    """The experiments that are scored by their own params; the others are named on stderr."""
    _check_tools()
    answer = _output(sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if all_commits else []))
    try:
        rows = list(experiments(json.loads(answer)))
    except ValueError as error:
        raise DataError("dvc exp show", f"gives no JSON: {one_line(error)}") from error
    own = [row for row in rows if scored_by_its_params(row["params"], file_of(row["rev"], "dvc.lock"))]
    if left := sorted({row["rev"][:7] for row in rows} - {row["rev"][:7] for row in own}):
        click.echo(f"left out, as their scores were made with other params than theirs: {', '.join(left)}", err=True)
    if not own:
        raise DataError("dvc exp show", "knows no finished experiment; run `dvc exp run` first")
    return own


def _check_tools() -> None:
    """Asks git first: without it, DVC finds experiments of which no file can be read."""
    try:
        _output("git", "rev-parse", "--git-dir")
    except DataError as error:
        raise DataError("compare", f"needs the git repository that holds the experiments ({error})") from error
    if importlib.util.find_spec("dvc") is None:
        raise DataError("compare", "needs DVC, which is not installed")


def file_of(revision: str, path: str) -> bytes | None:
    """A file as a revision has it in git, or None where it has none."""
    try:
        return _output("git", "show", f"{revision}:{path}")
    except DataError:
        return None


def _fill(readme: Path, saved: Path) -> None:
    import pandas as pd

    for path in (readme, saved):
        if not path.is_file():
            raise DataError(path, "is not there")
    text = fill_readme(readme.read_text(encoding="utf-8"), pd.read_csv(saved))
    text = fill_scores(text, readme.parent)
    write_text(readme, text)


def _score(value: float | None) -> str:
    """Three digits, or a dash where there was nothing to score."""
    return _text(value, ".3f")


def _text(value: Any, form: str = "") -> str:
    """A value, or a dash where there is none; pandas makes None a NaN, which is not equal to itself."""
    return "-" if value is None or value != value else format(value, form)


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = (_text(row[f"{name}_{end}"], ".2f") for end in ("low", "high"))
    return f"{_score(row[name])} ({low} to {high})" if "-" not in (low, high) else _score(row[name])


def _row(revision: dict[str, Any], params: dict, metrics: dict[str, dict]) -> dict[str, Any]:
    benchmark, lora = params["benchmark"], params["lora"]
    of_benchmark, of_lora = _found(params, ("benchmarks", benchmark)), _found(params, ("loras", lora))
    scored = {"gate": metrics["evaluation"], "judge": metrics["evaluation"].get("judge", {})}
    prompts = _found(of_lora, ("prompts",))
    return {
        "benchmark": benchmark,
        "lora": lora,
        "prompts": prompts,
        "texts": _found(of_benchmark, ("prompts", prompts)),
        "seed": params.get("seed"),
        **{name: _found(metrics, keys) for name, keys in SCORES.items()},
        "tissues": {by: {slug: one.get("f1") for slug, one in of.get("per_tissue", {}).items()} for by, of in scored.items()},
        "dataset": _found(of_benchmark, ("dataset",)) or {},
        "params": {
            "seed": params.get("seed"),
            "deterministic": params.get("deterministic"),
            "benchmark": benchmark,
            "lora": lora,
            "benchmarks": {benchmark: of_benchmark},
            "loras": {lora: of_lora},
        },
        "rev": revision["rev"],
    }


def _found(tree: Any, keys: tuple[str, ...]) -> Any:
    """What stands at the end of nested keys, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _value(params: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of dvc.lock; the names of benchmark and LoRA may hold dots themselves."""
    for table, selector in (("benchmarks", "benchmark"), ("loras", "lora")):
        entry = f"{table}.{params[selector]}"
        if key == entry or key.startswith(f"{entry}."):
            return _found(params[table][params[selector]], tuple(key.removeprefix(entry).split(".")[1:]))
    return _found(params, tuple(key.split(".")))


@functools.lru_cache(maxsize=8)  # many commits share a lock
def _locked(lock: bytes) -> dict[str, Any]:
    """The stages of a dvc.lock by name; none for one that is damaged."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return _found(YAML(typ="safe", pure=True).load(lock.decode("utf-8")), ("stages",)) or {}
    except (YAMLError, UnicodeDecodeError):
        return {}


def _content(files: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return ((files or {}).get(name) or {}).get("data")


def _output(*command: str) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise DataError(command[0], f"cannot be run: {reason(error)}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["failed without a word"]
        raise DataError(" ".join(command[-4:]), said[-1]) from error


if __name__ == "__main__":
    main()
