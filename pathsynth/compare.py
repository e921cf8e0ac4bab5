"""Compares experiments: `python -m pathsynth.compare`, a table of what `dvc exp show` shows.

As there, this is the last commit and the experiments that started from it, all run by the same code and data; experiments of
other commits are compared with `--all-commits`, and may differ in more than their params.
With `--save results` the table goes to results/experiments.csv and the overview plate of each benchmark's best experiment
to results/BENCHMARK.png; with `--readme README.md` the tables in the README are made anew from that file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.errors import DataError
from pathsynth.files import write_csv, write_text, write_whole

if TYPE_CHECKING:
    import pandas as pd

OVERVIEW = "plots/evaluation/plates/overview.png"
MARKS = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCORES = {
    "macro_f1": ("macro_f1",),
    "macro_f1_low": ("macro_f1_low",),
    "macro_f1_high": ("macro_f1_high",),
    "judge_f1": ("judge", "macro_f1"),
    "judge_f1_low": ("judge", "macro_f1_low"),
    "judge_f1_high": ("judge", "macro_f1_high"),
    "filtered_judge_f1": ("filtered_judge", "macro_f1"),
    "untuned_f1": ("untuned", "macro_f1"),
    "n_images": ("n_images",),
}


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
            scores = _content(data.get("metrics"), "metrics/evaluation.json")
            counts = _content(data.get("metrics"), "metrics/generation.json")
            if params and scores and counts:
                # commits from before a change of these files' keys have nothing to be compared with
                with suppress(KeyError):
                    yield _row(revision, params, scores, counts)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows sorted by benchmark and judge's macro F1; of equal settings the first is kept."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame = frame.drop_duplicates("settings", keep="first").drop(columns="settings")
    return frame.sort_values(["benchmark", "judge_f1"], ascending=[True, False], kind="stable", ignore_index=True)


def markdown(frame: pd.DataFrame) -> str:
    """The table of one benchmark in Markdown, scores with their 95 % intervals."""
    head = "| LoRA | prompts | raw, gate | raw, judge | accepted, judge | untuned, judge | acceptance | unfilled | images |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in frame.to_dict("records"):
        gate, judge = (_interval(row, name) for name in ("macro_f1", "judge_f1"))
        cells = [
            f"`{row['lora']}`",
            row["prompts"],
            gate,
            judge,
            *(_score(row[name]) for name in ("filtered_judge_f1", "untuned_f1")),
        ]
        cells += [f"{row['acceptance_rate']:.0%}", str(row["unfilled"]), str(row["n_images"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
@reports_errors
def main(save: Path | None, readme: Path | None, all_commits: bool) -> None:
    """Prints the comparison of experiments, or makes the README's tables from the saved one."""
    if readme:
        _fill(readme, (save or Path("results")) / "experiments.csv")
        return
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if all_commits else [])]
    rows = list(experiments(json.loads(_output(*command))))
    if not rows:
        raise DataError("dvc exp show", "knows no finished experiment; run `dvc exp run` first")
    frame = table(rows)
    for benchmark, group in frame.groupby("benchmark"):
        click.echo(f"\n{benchmark}\n{markdown(group)}")
        if save:
            plate = _output("git", "show", f"{group.iloc[0]['rev']}:{OVERVIEW}")
            with write_whole(save / f"{benchmark}.png") as part:
                part.write_bytes(plate)
    if save:
        write_csv(save / "experiments.csv", frame.drop(columns="rev"))


def _fill(readme: Path, saved: Path) -> None:
    import pandas as pd

    for path in (readme, saved):
        if not path.is_file():
            raise DataError(path, "is not there")
    text = fill_readme(readme.read_text(encoding="utf-8"), pd.read_csv(saved))
    write_text(readme, text)


def _score(value: float | None) -> str:
    """Three digits, or a dash where there was nothing to score."""
    return "-" if value is None or value != value else f"{value:.3f}"


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def _row(revision: dict[str, Any], params: dict, scores: dict, counts: dict) -> dict[str, Any]:
    benchmark, lora, values = params["benchmark"], params["lora"], {}
    for name, (*outer, key) in SCORES.items():
        node = scores[outer[0]] if outer else scores
        values[name] = node.get(key)
    return {
        "benchmark": benchmark,
        "lora": lora,
        "prompts": params["loras"][lora]["prompts"],
        "seed": params["seed"],
        **values,
        "acceptance_rate": counts["acceptance_rate"],
        "unfilled": counts["unfilled"],
        "settings": json.dumps([params["seed"], benchmark, lora, params["benchmarks"][benchmark], params["loras"][lora]]),
        "rev": revision["rev"],
    }


def _content(files: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return ((files or {}).get(name) or {}).get("data")


def _output(*command: str) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise DataError(command[0], f"cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["failed without a word"]
        raise DataError(" ".join(command[-4:]), said[-1]) from error


if __name__ == "__main__":
    main()
