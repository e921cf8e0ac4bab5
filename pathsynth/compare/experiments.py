"""Collects the experiments that DVC knows: a row of scores per finished run, read from its git revision.

By default these are the last commit and the experiments that started from it. A run counts only if its scores were made with
its own parameters, and by the same code as the commit that it started from; the others are named on stderr. With all commits,
runs of other code count too, as other configurations.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.core.errors import DataError, ParamsError, one_line
from pathsynth.core.metric_files import get_nested, parse_details
from pathsynth.core.params import BENCHMARKS, PROMPTS, describe_lora, merge_list, parse_yaml, resolve_lora
from pathsynth.evaluation.headline import COLUMNS, RAW
from pathsynth.finetuning.settings import drop_records

if TYPE_CHECKING:
    import pandas as pd

# (revision, path) to the file's bytes, or None where the revision has no such file.
ReadFile = Callable[[str, str], bytes | None]
Tree = dict[str, Any]

# Column: the metrics file and the keys that lead to the value. Scores refer to raw images unless the name states otherwise.
SCORES: dict[str, tuple[str, ...]] = {
    "judge_f1": COLUMNS["judge_f1"],
    "judge_f1_low": (*RAW, "judge", "macro_f1_low"),
    "judge_f1_high": (*RAW, "judge", "macro_f1_high"),
    "open_set_f1": COLUMNS["open_set_f1"],
    "macro_f1": COLUMNS["macro_f1"],
    "macro_f1_low": (*RAW, "gate", "macro_f1_low"),
    "macro_f1_high": (*RAW, "gate", "macro_f1_high"),
    "accepted_judge_f1": ("evaluation", "sets", "accepted", "judge", "macro_f1"),
    "untuned_f1": ("evaluation", "sets", "untuned", "judge", "macro_f1"),
    "paraphrased_f1": ("evaluation", "sets", "paraphrased", "judge", "macro_f1"),
    "judge_on_real": ("evaluation", "real_images", "judge", "test"),
    "precision": COLUMNS["precision"],
    "coverage": COLUMNS["coverage"],
    "kernel_distance": COLUMNS["kernel_distance"],
    "structure_distance": COLUMNS["structure_distance"],
    "copies": COLUMNS["copies"],
    "useful_gain": COLUMNS["useful_gain"],
    "memorisation_auc": ("memorisation", "lora", "auc"),
    "n_images": (*RAW, "n_images"),
    "acceptance_rate": ("generation", "acceptance_rate"),
    "unfilled": ("generation", "unfilled"),
    "trainable_parameters": ("lora", "trainable_parameters"),
    "images_seen": ("lora", "images_seen"),
}
FILES = ("evaluation", "generation", "usefulness", "memorisation", "lora")
SAVED = ("benchmark", "lora", "prompts", "config", "training", *SCORES)
CODE = ("pathsynth", "stages", "base")
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
        One row per run with the columns SAVED, `tissues`, `dataset`, `code` and `rev`, the best macro F1 by the judge first.
        `config` is a digest of code and parameters without `seeds.training`. Of runs with equal parameters and code the first
        stays.

    Raises:
        DataError: there is no repository or no finished run.
    """
    runs, left_out = [], defaultdict(list)
    for revision, baseline in list_revisions(all_commits).items():
        try:
            run = read_run(revision, read)
            if not all_commits and run["code"] != code_checksums(read_lock(baseline, read)):
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
    frame = frame.drop_duplicates(["config", "training"]).convert_dtypes()
    return frame.sort_values(["benchmark", "judge_f1"], ascending=[True, False], kind="stable", ignore_index=True)


def list_revisions(all_commits: bool) -> dict[str, str]:
    """Lists commits and finished experiments, each with the commit that it started from.

    The workspace is not among them: its parameters may have been edited since its scores were made.
    """
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from pygit2 import GitError

    try:
        shown = dvc.api.exp_show(num=-1 if all_commits else 1)
    except (DvcException, SCMError, GitError) as error:
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
    if not metrics["evaluation"]:
        raise LeftOut("no scores")
    params, lora = _read_params(revision, read)
    lock = read_lock(revision, read)
    current = {name: details for name, details in metrics.items() if is_current(lock, f"metrics/{name}.json", params)}
    if "evaluation" not in current:
        raise LeftOut("scores of other parameters than theirs; finish the run with `dvc exp run`")
    scores = {name: get_nested(current, keys) for name, keys in SCORES.items()}
    if scores["judge_f1"] is None:
        raise LeftOut("no scores of raw images by the judge")
    selected = params["params.yaml"]
    benchmark, prompts = (params[f"{folder}/{selected['benchmark']}.yaml"] for folder in (BENCHMARKS, PROMPTS))
    code = code_checksums(lock)
    seeds = {name: seed for name, seed in selected["seeds"].items() if name != "training"}
    names = selected["benchmark"], selected["lora"]
    snapshot = get_nested(benchmark, ("generation", "snapshot"))
    if snapshot is not None and scores["images_seen"] is not None:
        # metrics/lora.json counts those of the whole training
        scores["images_seen"] = scores["images_seen"] * snapshot // lora["training"]["max_train_steps"]
    return {
        "benchmark": selected["benchmark"],
        "lora": describe_lora(selected["lora"], snapshot),
        "prompts": lora["prompts"],
        "config": _digest(seeds, selected["deterministic"], *names, benchmark, prompts, drop_records(lora), code),
        "training": selected["seeds"]["training"],
        **scores,
        "tissues": {by: _class_f1(get_nested(current, (*RAW, by))) for by in ("judge", "gate")},
        "dataset": merge_list(benchmark["dataset"]),
        "code": code,
        "rev": revision,
    }


def is_current(lock: Tree, path: str, params: Mapping[str, Tree]) -> bool:
    """Whether dvc.lock records that a file was made with these parameters, by its stage and by all stages before it.

    After `dvc exp run -S benchmark=other prepare` the scores are still those of the commit before. After
    `dvc exp run -S lora=other evaluate` the usefulness is still that of images of the LoRA before.

    Args:
        lock: the stages of dvc.lock by name.
        path: an output of a stage.
        params: the selected parameters by file.
    """
    stages = _stages_behind(lock, path)
    checksums = {entry["path"]: entry["md5"] for stage in lock.values() for entry in stage.get("outs", [])}
    return bool(stages) and all(
        all(
            get_nested(params.get(file), _keys(key)) == value
            for file, recorded in stage.get("params", {}).items()
            for key, value in recorded.items()
        )
        and all(checksums.get(entry["path"], entry["md5"]) == entry["md5"] for entry in stage.get("deps", []))
        for stage in stages
    )


def _stages_behind(lock: Tree, path: str) -> list[Tree]:
    """The stage that writes a file, and all stages whose outputs it depends on."""
    behind: Tree = {}
    paths = [path]
    while paths:
        path = paths.pop()
        for name, stage in lock.items():
            if name not in behind and any(entry["path"] == path for entry in stage.get("outs", [])):
                behind[name] = stage
                paths += [entry["path"] for entry in stage.get("deps", [])]
    return list(behind.values())


def _keys(dotted: str) -> tuple[str, ...]:
    """The keys of a dotted name, without the numbers by which DVC finds an entry of a list."""
    return tuple(key for key in dotted.split(".") if not key.isdigit())


def code_checksums(lock: Tree) -> dict[str, str]:
    """Checksums, by path, of the code and the base that the scores were made with."""
    stages = _stages_behind(lock, "metrics/evaluation.json")
    entries = [entry for stage in stages for entry in stage.get("deps", [])]
    return {entry["path"]: entry["md5"] for entry in entries if entry["path"].startswith(CODE)}


def _read_params(revision: str, read: ReadFile) -> tuple[dict[str, Tree], Tree]:
    """Reads the selected parameters by file, and the resolved LoRA configuration."""
    try:
        tree = _parse(revision, "params.yaml", read)
        if "benchmarks" in tree:
            raise LeftOut("benchmarks in params.yaml instead of configs/, as earlier versions had them")
        if "seed" in tree:
            raise LeftOut("seed instead of seeds in params.yaml, as earlier versions had it")
        lora = resolve_lora(Path("params.yaml"), tree, tree["lora"])
        files = [f"{folder}/{tree['benchmark']}.yaml" for folder in (BENCHMARKS, PROMPTS)]
        loras, seeds = merge_list(tree["loras"]), merge_list(tree["seeds"])
        selected = {**tree, "seeds": seeds, "loras": {tree["lora"]: loras[tree["lora"]]}}
        return {"params.yaml": selected, **{file: _parse(revision, file, read) for file in files}}, lora
    except (ParamsError, KeyError) as error:
        raise LeftOut(f"unreadable parameters ({one_line(error)})") from error


def _parse(revision: str, path: str, read: ReadFile) -> Tree:
    return parse_yaml((read(revision, path) or b"").decode("utf-8", "replace"), path)


def read_lock(revision: str, read: ReadFile) -> Tree:
    """Reads the stages of a revision's dvc.lock by name; nothing where it has none."""
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
