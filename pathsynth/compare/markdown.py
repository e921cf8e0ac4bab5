"""Writes tables between marks of a Markdown file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.compare.table import Configuration, build_table, group_trainings
from pathsynth.compare.transfer import MIN_CONFIGURATIONS, build_transfer_table
from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import read_details
from pathsynth.report.anchors import build_anchor_table
from pathsynth.report.tables import score_table, to_markdown

if TYPE_CHECKING:
    import pandas as pd

END = "<!-- end -->"
KINDS = "results|scores|anchors|transfer"
# Groups: the mark, its kind, its argument, the old table, and the terminator (END, or by mistake another mark or
# the end of the file).
MARKED = re.compile(rf"(<!-- ({KINDS}): ([\w/.-]+) -->\n)(.*?)({END}|<!-- (?:{KINDS}): |\Z)", re.DOTALL)


def fill_tables(text: str, name: object, runs: pd.DataFrame, folder: Path) -> str:
    """Rewrites the tables between marks and `<!-- end -->` in a Markdown file.

    - `<!-- results: BENCHMARK -->`: the configurations of a benchmark.
    - `<!-- scores: FOLDER -->`: the other scores of one run.
    - `<!-- anchors: BENCHMARK -->`: metrics/anchors/BENCHMARK.json beside the scores in results/BENCHMARK, or in metrics where
      there are none.
    - `<!-- transfer: BENCHMARK/BENCHMARK -->`: agreement of the rankings on two benchmarks.

    Args:
        text: the content of the file.
        name: the file, for errors.
        runs: the saved runs.
        folder: what the folders in the marks are relative to.

    Raises:
        DataError: a mark has no end, its benchmark or scores are missing, or the benchmarks share too few configurations.
    """

    def replace(match: re.Match) -> str:
        mark, kind, argument, _, end = match.groups()
        if end != END:
            raise DataError(name, f"`{mark.strip()}` has no `{END}`. Add it below the table.")
        try:
            return mark + builders[kind](argument) + end
        except KeyError as error:
            raise DataError(name, f"`{mark.strip()}`: the scores lack {error}. Run the stage `evaluate` again.") from error

    def select(benchmark: str) -> list[Configuration]:
        selected = runs[runs["benchmark"] == benchmark]
        if selected.empty:
            raise DataError(name, f"has a mark for {benchmark}, which has no saved run")
        return group_trainings(selected)

    def results(benchmark: str) -> str:
        return to_markdown(build_table(select(benchmark), short=True))

    def scores(run: str) -> str:
        return score_table(*(read_details(folder / run / f"{file}.json") for file in ("evaluation", "usefulness")))

    def anchors(benchmark: str) -> str:
        saved = folder / "results" / benchmark / "evaluation.json"
        evaluation = saved if saved.is_file() else folder / "metrics" / "evaluation.json"
        found = folder / "metrics" / "anchors" / f"{benchmark}.json"
        return to_markdown(build_anchor_table(read_details(found), read_details(evaluation)))

    def transfer(benchmarks: str) -> str:
        first, _, second = benchmarks.partition("/")
        if second in ("", first):
            raise DataError(name, f"`<!-- transfer: {benchmarks} -->` needs two benchmarks, such as phantom/pathmnist_small")
        table = build_transfer_table(select(first), select(second))
        if not table.rows:
            problem = (
                f"`<!-- transfer: {benchmarks} -->` needs {MIN_CONFIGURATIONS} configurations with runs on both benchmarks."
            )
            raise DataError(name, f"{problem} Save them with `python -m pathsynth compare --save results`.")
        return to_markdown(table)

    builders = {"results": results, "scores": scores, "anchors": anchors, "transfer": transfer}
    return MARKED.sub(replace, text)
