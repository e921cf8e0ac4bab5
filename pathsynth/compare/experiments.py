"""Collects the experiments that DVC knows: a row of scores per finished run, read from its git revision.

By default these are the last commit and the experiments that started from it. A run counts only if its scores were made with
its own parameters, and by the same code as the commit that it started from; the others are named on stderr. With all commits,
runs of other code count too: they are configurations of their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.core.errors import DataError, ParamsError, one_line
from pathsynth.core.metric_files import get_nested, parse_details
from pathsynth.core.params import BENCHMARKS, PROMPTS, merge_list, parse_yaml, resolve_lora

if TYPE_CHECKING:
    import pandas as pd

# (revision, path) to the file's bytes, or None where the revision has no such file.
ReadFile = Callable[[str, str], bytes | None]
Tree = dict[str, Any]

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
SAVED = ("benchmark", "lora", "prompts", "config", "seed", *SCORES)
# The stages that metrics/evaluation.json depends on.
SCORING_STAGES = ("train_classifier@gate", "train_classifier@judge", "train_lora", "generate_filtered", "evaluate")
CODE = ("pathsynth/", "stages/", "base/")
DIGITS = 8
MAX_NAMED = 8


class LeftOut(Exception):
    """A revision that cannot be compared; the message is the reason."""


def collect_runs(read: ReadFile, all_commits: bool) -> pd.DataFrame:
    """Collects the runs that can be compared; the others are named on stderr with the reason.

    Args:
        read: reads a file of a revision.
        all_commits: also runs of earlier commits, whatever code they ran with.

    Returns:
        One row per run with the columns SAVED, `tissues`, `dataset`, `texts`, `code` and `rev`, the best macro F1 first. Of
        runs with the same parameters, code and seed the first stays.

    Raises:
        DataError: there is no repository or no finished run.
    """
    runs, left_out = [], defaultdict(list)
    for revision, baseline in list_revisions(all_commits).items():
        try:
            run = read_run(revision, read)
            if not all_commits and run["code"] != code_checksums(_read_lock(baseline, read)):
                raise LeftOut(
                    "other code than the commit they started from; commit code before `dvc exp run`, or use --all-commits"
                )
            runs.append(run)
        except (LeftOut, ParamsError) as error:
            left_out[str(error)].append(revision[:7])
    for reason, revisions in left_out.items():
        more = f" and {len(revisions) - MAX_NAMED} more" if len(revisions) > MAX_NAMED else ""
        click.echo(f"left out: {', '.join(revisions[:MAX_NAMED])}{more}: {reason}", err=True)
    if not runs:
        raise DataError("compare", "no finished experiment can be compared. Run `dvc exp run` first.")
    return to_frame(runs)


def to_frame(runs: list[Tree]) -> pd.DataFrame:
    """Sorts runs and drops repeated ones, see `collect_runs`."""
    import pandas as pd

    frame = pd.DataFrame(runs)
    frame[list(SCORES)] = frame[list(SCORES)].apply(pd.to_numeric, errors="coerce")
    frame = frame.drop_duplicates(["config", "seed"]).convert_dtypes()
    return frame.sort_values(["benchmark", "macro_f1"], ascending=[True, False], kind="stable", ignore_index=True)


@contextmanager
def open_project() -> Iterator[ReadFile]:
    """Opens the project in the working directory, which may be a sub folder of its git repository.

    Yields:
        A function that reads a file of the project at a git revision, or returns None if it does not exist there.

    Raises:
        DataError: there is no project or no git repository.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo()
    except (DvcException, SCMError) as error:
        raise DataError("compare", f"the project cannot be opened: {one_line(error)}") from error
    folder = Path(repo.root_dir).relative_to(repo.scm.root_dir)

    def read(revision: str, path: str) -> bytes | None:
        try:
            return repo.scm.get_fs(revision).cat_file((folder / path).as_posix())
        except FileNotFoundError:
            return None

    with repo:
        yield read


def list_revisions(all_commits: bool) -> dict[str, str]:
    """Lists commits and finished experiments, each with the commit that it started from.

    The workspace is not among them: its parameters may have been edited since its scores were made.
    """
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        shown = dvc.api.exp_show(num=-1 if all_commits else 1)
    except (DvcException, SCMError) as error:
        raise DataError("compare", f"the experiments cannot be listed: {one_line(error)}") from error
    revisions, baseline = {}, ""
    for row in shown:
        baseline = row["rev"] if row["typ"] == "baseline" else baseline
        # one that waits or runs has its own parameters, but the scores of the commit that it started from
        if row["rev"] != "workspace" and row["State"] in (None, "Success"):
            revisions[row["rev"]] = baseline
    return revisions


def read_run(revision: str, read: ReadFile) -> Tree:
    """Reads the row of a revision, see `collect_runs`.

    Raises:
        LeftOut: it has no scores, or scores that its parameters did not make.
    """
    metrics = {name: _read_details(revision, f"metrics/{name}.json", read) for name in FILES}
    scores = {name: get_nested(metrics, keys) for name, keys in SCORES.items()}
    if scores["macro_f1"] is None:
        raise LeftOut("no scores")
    params, lora = _read_params(revision, read)
    lock = _read_lock(revision, read)
    if not ran_with(lock, params):
        raise LeftOut("scores of other parameters than theirs; finish the run with `dvc exp run`")
    if not learned_from_own_images(lock):
        scores |= {name: None for name, keys in SCORES.items() if keys[0] == "usefulness"}
    selected = params["params.yaml"]
    benchmark, prompts = (params[f"{folder}/{selected['benchmark']}.yaml"] for folder in (BENCHMARKS, PROMPTS))
    code = code_checksums(lock)
    return {
        "benchmark": selected["benchmark"],
        "lora": selected["lora"],
        "prompts": lora["prompts"],
        "config": _digest(selected["deterministic"], selected["benchmark"], selected["lora"], benchmark, prompts, lora, code),
        "seed": selected["seed"],
        **scores,
        "tissues": {"gate": _class_f1(metrics["evaluation"]), "judge": _class_f1(metrics["evaluation"].get("judge"))},
        "dataset": merge_list(benchmark["dataset"]),
        "texts": prompts.get(lora["prompts"]),
        "code": code,
        "rev": revision,
    }


def ran_with(lock: Tree, params: Mapping[str, Tree]) -> bool:
    """Whether the scores were made with these parameters, by the values that dvc.lock recorded.

    After `dvc exp run -S benchmark=other prepare` the scores are still those of the commit before.

    Args:
        lock: the stages of dvc.lock by name.
        params: the selected parameters by file.
    """
    return all(
        get_nested(params.get(file), _keys(key)) == value
        for stage in SCORING_STAGES
        for file, recorded in (get_nested(lock, (stage, "params")) or {}).items()
        for key, value in recorded.items()
    )


def _keys(dotted: str) -> tuple[str, ...]:
    """The keys of a dotted name, without the numbers by which DVC finds an entry of a list."""
    return tuple(key for key in dotted.split(".") if not key.isdigit())


def code_checksums(lock: Tree) -> dict[str, str]:
    """Checksums, by path, of the code and the base that the scores were made with."""
    entries = [entry for stage in SCORING_STAGES for entry in get_nested(lock, (stage, "deps")) or []]
    return {entry["path"]: entry["md5"] for entry in entries if entry["path"].startswith(CODE)}


def learned_from_own_images(lock: Tree) -> bool:
    """Whether usefulness was measured on the images of the same run; after `dvc repro evaluate` it may not be."""
    checksums = [
        entry["md5"]
        for stage, kind in (("measure_usefulness", "deps"), ("generate_filtered", "outs"))
        for entry in get_nested(lock, (stage, kind)) or []
        if entry["path"] == "data/generated"
    ]
    return len(set(checksums)) <= 1


def _read_params(revision: str, read: ReadFile) -> tuple[dict[str, Tree], Tree]:
    """Reads the selected parameters by file, and the resolved LoRA configuration."""
    try:
        tree = _parse(revision, "params.yaml", read)
        if "benchmarks" in tree:
            raise LeftOut("benchmarks in params.yaml instead of configs/, as earlier versions had them")
        lora = resolve_lora(Path("params.yaml"), tree, tree["lora"])
        files = [f"{folder}/{tree['benchmark']}.yaml" for folder in (BENCHMARKS, PROMPTS)]
        selected = {**tree, "loras": {tree["lora"]: merge_list(tree["loras"])[tree["lora"]]}}
        return {"params.yaml": selected, **{file: _parse(revision, file, read) for file in files}}, lora
    except (ParamsError, KeyError) as error:
        raise LeftOut(f"unreadable parameters ({one_line(error)})") from error


def _parse(revision: str, path: str, read: ReadFile) -> Tree:
    return parse_yaml((read(revision, path) or b"").decode("utf-8", "replace"), path)


def _read_lock(revision: str, read: ReadFile) -> Tree:
    return _parse_lock(read(revision, "dvc.lock"))


@functools.lru_cache(maxsize=8)  # many revisions share a lock
def _parse_lock(data: bytes | None) -> Tree:
    """The stages of a dvc.lock by name."""
    return {} if data is None else parse_yaml(data.decode("utf-8", "replace"), "dvc.lock").get("stages") or {}


def _read_details(revision: str, path: str, read: ReadFile) -> Tree:
    """Detailed metrics of a revision; nothing where they are missing or damaged."""
    data = read(revision, path)
    try:
        return {} if data is None else parse_details(data, path)
    except DataError:
        return {}


def _class_f1(scores: Any) -> dict[str, float]:
    return {slug: row["f1"] for slug, row in (get_nested(scores, ("per_tissue",)) or {}).items()}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]
