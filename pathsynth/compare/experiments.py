"""Compares experiments: `python -m pathsynth.compare.experiments`, a table of what `dvc exp show` shows, and a page of charts and plates.

As there, this is the last commit and the experiments that started from it, all run by the same code and data; experiments of
other commits are compared with `--all-commits`, and may differ in more than their params. What was run in part only, so that
its scores are still those of the commit that it started from, is left out. Runs that differ in nothing but the seed are one
row, of their mean and standard deviation.
The page goes to reports/compare.html, or to another file with `--report`. With `--save results` the single runs go to
results/experiments.csv and an overview plate of each benchmark's best configuration to results/BENCHMARK.png; with
`--readme README.md` the tables in the README are made anew from that file.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.compare.configurations import Configuration, digest, fold, names_of
from pathsynth.compare.locks import code_of, scored_by_its_params, usefulness_is_its_own
from pathsynth.compare.page import FileOf
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import reason, write_text
from pathsynth.core.metric_files import get_nested, parse_details, read_details
from pathsynth.data.provenance import cell
from pathsynth.report.tables import score_table

if TYPE_CHECKING:
    import pandas as pd

OVERVIEW = "plots/evaluation/plates/overview.png"
MARK = re.compile(r"<!-- (?:(results|scores): *([\w/.-]+)|end) -->")
HEAD = (
    "LoRA", "prompts", "seeds", "raw, gate", "raw, judge", "accepted, judge", "untuned, judge", "acceptance", "unfilled",
    "usefulness F1", "images per seed",
)  # fmt: skip
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
# Columns that are no part of the saved table.
UNSAVED = ["rev", "baseline", "code", "tissues", "dataset", "texts"]


def experiments(shown: list[dict[str, Any]], file_of: FileOf) -> Iterator[dict[str, Any]]:
    """One flat row per finished experiment or commit in the answer of `dvc exp show --json`.

    The workspace is left out: its params may have been edited since its scores were made. So is a revision without scores, or
    with damaged ones.

    Args:
        shown: the answer.
        file_of: reads a file of a revision.
    """
    for entry in shown:
        if entry["rev"] == "workspace":
            continue
        # one that waits or runs shows its own params beside the scores of the commit that it started from
        ended = [e for e in entry.get("experiments") or [] if (e.get("executor") or {}).get("state") in (None, "success")]
        for revision in [entry] + [revision for experiment in ended for revision in experiment["revs"]]:
            params = get_nested(revision, ("data", "params", "params.yaml", "data"))
            if not all(isinstance(get_nested(params, (selector,)), str) for selector in ("benchmark", "lora")):
                continue
            # what a commit does not know yet is left open, but without these there is nothing to be compared
            metrics = {name: _details(revision["rev"], f"metrics/{name}.json", file_of) for name in FILES}
            if _number(get_nested(metrics, SCORES["macro_f1"])) is not None:
                yield _row(revision["rev"], params, metrics, file_of(revision["rev"], "dvc.lock")) | {"baseline": entry["rev"]}


def _details(revision: str, path: str, file_of: FileOf) -> dict[str, Any]:
    """What a metrics file of a revision holds; nothing where it is missing or damaged."""
    data = file_of(revision, path)
    with suppress(DataError):
        return {} if data is None else parse_details(data, path)
    return {}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows sorted by benchmark and macro F1 of raw images by the gate; of equal params and code the first is kept."""
    import pandas as pd

    # as objects: a column of numbers would make counts of experiments beside unknown ones fractional
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame[~frame[["config", "seed"]].duplicated()].drop(columns="params")
    return frame.sort_values(["benchmark", "macro_f1"], ascending=[True, False], kind="stable", ignore_index=True)


def markdown(frame: pd.DataFrame) -> str:
    """The table of one benchmark in Markdown: a row per configuration, scores with their deviation or 95 % interval."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    folded = fold(frame.to_dict("records"))
    for one, name in zip(folded, names_of(folded), strict=True):
        names = (("filtered_judge_f1", ".3f"), ("untuned_f1", ".3f"), ("acceptance_rate", ".0%"))
        cells = [_code(name), cell(_text(one["prompts"])), str(len(one.runs))]
        cells += [_score(one, "macro_f1"), _score(one, "judge_f1"), *(_score(one, name, form) for name, form in names)]
        cells += [_score(one, "unfilled", ".1f" if len(one.runs) > 1 else ".0f"), _score(one, "useful_f1")]
        lines.append("| " + " | ".join([*cells, _text(one.mean("n_images"), ".0f")]) + " |")
    return "\n".join(lines) + "\n"


def _code(name: str) -> str:
    """A name as code in a cell of a table, where backslashes would show; names of old commits may be anything."""
    return f"`{re.sub(r'[`|<>]', '', ' '.join(str(name).split()))}`"


def _score(one: Configuration, name: str, form: str = ".3f") -> str:
    """Mean ± standard deviation over the seeds; of a single run its value, with its interval where it has one."""
    value, spread = one.mean(name), one.deviation(name)
    of_fewer = f" (n={one.count(name)})" if value is not None and one.count(name) < len(one.runs) else ""
    if value is not None and spread is not None:
        return f"{value:{form}} ± {spread:{form}}{of_fewer}"
    low, high = (one.mean(f"{name}_{end}") if len(one.runs) == 1 else None for end in ("low", "high"))
    return _text(value, form) + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else of_fewer)


def fill_scores(text: str, folder: Path) -> str:
    """Replaces what stands between `<!-- scores: FOLDER -->` and `<!-- end -->` by what else that folder's metrics say.

    Raises:
        DataError: for a mark without its end, and for scores that are missing or damaged.
    """

    def scores(name: str) -> str:
        evaluation, usefulness = (read_details(folder / name / f"{part}.json") for part in ("evaluation", "usefulness"))
        try:
            return score_table(evaluation, usefulness)
        except KeyError as error:
            raise DataError(folder / name, f"its scores lack {error.args[0]!r}; run the stage evaluate anew") from error

    return _filled(text, "scores", scores)


def fill_readme(text: str, frame: pd.DataFrame) -> str:
    """Replaces what stands between `<!-- results: BENCHMARK -->` and `<!-- end -->` by that benchmark's table.

    Raises:
        DataError: for a mark without its end, and for a benchmark that has no rows.
    """

    def results(benchmark: str) -> str:
        rows = frame[frame["benchmark"] == benchmark]
        if rows.empty:
            raise DataError("README", f"has a mark for {benchmark}, of which no experiment is known")
        return markdown(rows)

    return _filled(text, "results", results)


def _filled(text: str, kind: str, made: Callable[[str], str]) -> str:
    """Text with what stands between marks of that kind and their ends made anew from the names in the marks."""
    parts, at, opened = [], 0, None
    for mark in MARK.finditer(text):
        if opened and mark[1]:
            break
        if opened and opened[1] == kind:
            parts += [text[at : opened.end()], "\n", made(opened[2])]
            at = mark.start()
        opened = mark if mark[1] else None
    if opened:
        raise DataError("README", f"the mark {opened[0]} has no <!-- end -->")
    return "".join([*parts, text[at:]])


def finished_runs(all_commits: bool) -> list[dict[str, Any]]:
    """The experiments that are scored by their own params and code; the others are named on stderr."""
    _check_tools()
    answer = run_tool(sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if all_commits else []))
    try:
        rows = list(experiments(json.loads(answer), file_of))
    except ValueError as error:
        raise DataError("dvc exp show", f"gives no JSON: {one_line(error)}") from error
    own = [row for row in rows if scored_by_its_params(row["params"], file_of(row["rev"], "dvc.lock"))]
    _tell_left_out(rows, own, "their scores were made with other params than theirs")
    if not all_commits:
        codes = {revision: code_of(file_of(revision, "dvc.lock")) for revision in {row["baseline"] for row in own}}
        scored, own = own, [row for row in own if row["code"] == codes[row["baseline"]]]
        remedy = "commit such changes before `dvc exp run`, or compare with --all-commits"
        _tell_left_out(scored, own, f"they ran with other code than the commit that they started from; {remedy}")
    if not own:
        raise DataError("dvc exp show", "knows no finished experiment; run `dvc exp run` first")
    return own


def _tell_left_out(rows: list[dict[str, Any]], kept: list[dict[str, Any]], why: str) -> None:
    if left := sorted({row["rev"][:7] for row in rows} - {row["rev"][:7] for row in kept}):
        click.echo(f"left out: {', '.join(left)}: {why}", err=True)


def _check_tools() -> None:
    """Asks git first: without it, DVC finds experiments of which no file can be read."""
    try:
        run_tool("git", "rev-parse", "--git-dir")
    except DataError as error:
        raise DataError("compare", f"needs the git repository that holds the experiments ({error})") from error
    if importlib.util.find_spec("dvc") is None:
        raise DataError("compare", "needs DVC, which is not installed")


def file_of(revision: str, path: str) -> bytes | None:
    """A file as a revision has it in git, or None where it has none."""
    try:
        return run_tool("git", "show", f"{revision}:{path}")
    except DataError:
        return None


def fill_tables(readme: Path, saved: Path) -> None:
    for path in (readme, saved):
        if not path.is_file():
            raise DataError(path, "is not there")
    text = fill_readme(readme.read_text(encoding="utf-8"), read_saved(saved))
    text = fill_scores(text, readme.parent)
    write_text(readme, text)


def read_saved(path: Path) -> pd.DataFrame:
    """The table that `--save` has written, as it does now or before it knew `config`."""
    import pandas as pd

    # a digest of digits alone is a name too
    return pd.read_csv(path, dtype=dict.fromkeys(("benchmark", "lora", "prompts", "config"), object))


def _text(value: Any, form: str = "") -> str:
    """A value, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def _number(value: Any) -> float | None:
    """A number as a file holds it, or None for what is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _row(
    revision: str, params: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], lock: bytes | None
) -> dict[str, Any]:
    benchmark, lora = params["benchmark"], params["lora"]
    of_benchmark, of_lora = get_nested(params, ("benchmarks", benchmark)), get_nested(params, ("loras", lora))
    prompts = get_nested(of_lora, ("prompts",))
    dataset = get_nested(of_benchmark, ("dataset",))
    code = code_of(lock)
    if not usefulness_is_its_own(lock):
        metrics = {**metrics, "usefulness": {}}
    selected = {
        "seed": params.get("seed"),
        "deterministic": params.get("deterministic"),
        "benchmark": benchmark,
        "lora": lora,
        "benchmarks": {benchmark: of_benchmark},
        "loras": {lora: of_lora},
    }
    return {
        "benchmark": benchmark,
        "lora": lora,
        "prompts": prompts if isinstance(prompts, str) else None,
        "config": digest(selected, code),
        "texts": get_nested(of_benchmark, ("prompts", prompts)) if isinstance(prompts, str) else None,
        "seed": _number(params.get("seed")),
        **{name: _number(get_nested(metrics, keys)) for name, keys in SCORES.items()},
        "tissues": {"gate": _tissues(metrics, ()), "judge": _tissues(metrics, ("judge",))},
        "dataset": dataset if isinstance(dataset, Mapping) else {},
        "params": selected,
        "code": code,
        "rev": revision,
    }


def _tissues(metrics: Mapping[str, Mapping[str, Any]], keys: tuple[str, ...]) -> dict[str, float | None]:
    """F1 by tissue."""
    scores = get_nested(metrics, ("evaluation", *keys, "per_tissue"))
    return {slug: _number(get_nested(one, ("f1",))) for slug, one in scores.items()} if isinstance(scores, Mapping) else {}


def run_tool(*command: str) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise DataError(command[0], f"cannot be run: {reason(error)}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["failed without a word"]
        raise DataError(" ".join(command[-4:]), said[-1]) from error
