"""Groups runs that differ only in the seed, and writes them: as a table, as experiments.csv, and between marks in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.compare.experiments import SAVED
from pathsynth.core.errors import DataError
from pathsynth.core.io import write_csv
from pathsynth.core.metric_files import read_details
from pathsynth.report.pages import decimals, interval, percent, significant, whole
from pathsynth.report.tables import Cell, Table, score_table, to_markdown

if TYPE_CHECKING:
    import pandas as pd

# Head, score, format.
COLUMNS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("Raw, gate", "macro_f1", decimals),
    ("Raw, judge", "judge_f1", decimals),
    ("Accepted, judge", "filtered_judge_f1", decimals),
    ("Untuned, judge", "untuned_f1", decimals),
    ("Judge on real images", "judge_on_real", percent),
    ("Fréchet distance", "frechet_distance", significant),
    ("Kernel distance", "kernel_distance", significant),
    ("Coverage", "coverage", decimals),
    ("Acceptance rate", "acceptance_rate", partial(percent, digits=0)),
    ("Unfilled", "unfilled", significant),
    ("Usefulness F1", "useful_f1", decimals),
    ("F1 of real images", "real_f1", decimals),
    ("Parameters", "trainable_parameters", whole),
    ("Images per seed", "n_images", whole),
)
SHORT_COLUMNS = (
    "macro_f1", "judge_f1", "filtered_judge_f1", "untuned_f1", "useful_f1", "acceptance_rate", "unfilled", "n_images",
)  # fmt: skip
TEXT_COLUMNS = ("benchmark", "lora", "prompts", "config")
END = "<!-- end -->"
# A mark, its name, what stands below it, and what ends that: the end mark, or wrongly another mark or the end of the file.
MARKED = re.compile(rf"(<!-- (results|scores): ([\w/.-]+) -->\n)(.*?)({END}|<!-- (?:results|scores): |\Z)", re.DOTALL)


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed.

    Attributes:
        name: the LoRA's name, with the digest of params and code where several configurations share it.
        runs: one row per run as `pathsynth.compare.experiments.collect_runs` gives them, by rising seed.
    """

    name: str
    runs: pd.DataFrame

    @property
    def repeated(self) -> bool:
        """Whether it was run with several seeds."""
        return len(self.runs) > 1

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, rising."""
        return [int(seed) for seed in self.runs["seed"]]

    @property
    def single_runs(self) -> list[Configuration]:
        """Each run as a configuration, named by its seed and revision."""
        rows = [self.runs.iloc[[row]] for row in range(len(self.runs))]
        return [Configuration(f"seed {row['seed'].item()}, {row['rev'].item()[:7]}", row) for row in rows]

    def __getitem__(self, column: str) -> Any:
        """A value that all runs share, such as the benchmark."""
        return self.runs[column].iloc[0]

    def run(self, seed: int | None) -> dict[str, Any]:
        """The run of that seed, or of the lowest where there is none; `name` is its name on the page."""
        row = self.runs.iloc[self.seeds.index(seed) if seed in self.seeds else 0].to_dict()
        return row | {"name": f"{self.name}, seed {row['seed']}" if self.repeated else self.name}

    def count(self, score: str) -> int:
        """Number of runs that have the score."""
        return int(self.runs[score].count())

    def mean(self, score: str) -> float | None:
        """Mean over the runs that have the score, or None."""
        return float(self.runs[score].mean()) if self.count(score) else None

    def deviation(self, score: str) -> float | None:
        """Sample standard deviation over the runs that have the score, or None for fewer than two."""
        return float(self.runs[score].std()) if self.count(score) > 1 else None


def group_seeds(runs: pd.DataFrame) -> list[Configuration]:
    """Groups runs that differ only in the seed.

    Args:
        runs: as `pathsynth.compare.experiments.collect_runs` returns them, or as `read_saved` does.

    Returns:
        Configurations by benchmark, in each the best mean macro F1 first.
    """
    groups = [group.sort_values("seed", ignore_index=True) for _, group in runs.groupby("config", sort=False)]
    groups.sort(key=lambda group: (group["benchmark"].iloc[0], -group["macro_f1"].mean()))
    names = Counter((group["benchmark"].iloc[0], group["lora"].iloc[0]) for group in groups)
    return [Configuration(_name(group.iloc[0], names), group) for group in groups]


def _name(row: pd.Series, names: Counter) -> str:
    return f"{row['lora']}, {row['config']}" if names[row["benchmark"], row["lora"]] > 1 else row["lora"]


def lowest_common_seed(configurations: Sequence[Configuration]) -> int | None:
    """The lowest seed that all of them were run with, or None."""
    return min(set.intersection(*(set(one.seeds) for one in configurations)), default=None)


def most_common_seed(configurations: Sequence[Configuration]) -> int:
    """The seed that most of them were run with, of several the lowest."""
    counts = Counter(seed for one in configurations for seed in one.seeds)
    return min(counts, key=lambda seed: (-counts[seed], seed))


def build_table(configurations: Sequence[Configuration]) -> Table:
    """Builds the table of one benchmark's configurations."""
    rows = [
        (one.name, one["prompts"], str(len(one.runs)), *(_score_cell(one, score, form) for _, score, form in COLUMNS))
        for one in configurations
    ]
    return Table(("LoRA", "Prompts", "Seeds", *(head for head, _, _ in COLUMNS)), rows)


def build_short_table(configurations: Sequence[Configuration]) -> Table:
    """Builds the same table with the columns that fit a terminal and a Markdown file."""
    columns = [3 + place for place, (_, score, _) in enumerate(COLUMNS) if score in SHORT_COLUMNS]
    return build_table(configurations).select_columns(0, 1, 2, *columns)


def _score_cell(one: Configuration, score: str, form: Callable[[float | None], str]) -> Cell:
    """Mean ± standard deviation over the seeds; for a single run its value and its interval, where it has one."""
    count, deviation = one.count(score), one.deviation(score)
    # counts are a matter of the parameters, not of the seed
    spread = "" if deviation is None or form is whole else f" ± {form(deviation)}"
    note = f"n={count}" if 0 < count < len(one.runs) else ""
    if not one.repeated and f"{score}_low" in one.runs:
        note = interval(one.mean(f"{score}_low"), one.mean(f"{score}_high"))
    return Cell(form(one.mean(score)) + spread, note, alert=score == "unfilled" and bool(one.mean(score)))


def save(path: Path, runs: pd.DataFrame) -> None:
    """Writes single runs as a CSV file."""
    write_csv(path, runs[list(SAVED)])


def read_saved(path: Path) -> pd.DataFrame:
    """Reads what `save` has written.

    Raises:
        DataError: the file is missing.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "string"), dtype_backend="numpy_nullable")
    except FileNotFoundError as error:
        raise DataError(path, "is missing. Write it with `python -m pathsynth compare --save results`.") from error


def fill_tables(text: str, name: object, runs: pd.DataFrame, folder: Path) -> str:
    """Replaces what stands between marks of a Markdown file and their `<!-- end -->`.

    Below `<!-- results: BENCHMARK -->` goes the table of a benchmark's configurations, below `<!-- scores: FOLDER -->` the
    other scores of one run.

    Args:
        text: the content of the file.
        name: the file, for errors.
        runs: the saved runs.
        folder: what the folders in the marks are relative to.

    Raises:
        DataError: a mark has no end, or its benchmark or scores are missing.
    """

    def replace(match: re.Match) -> str:
        mark, kind, what, _, end = match.groups()
        if end != END:
            raise DataError(name, f"`{mark.strip()}` has no `{END}`. Add it below the table.")
        return mark + (_results(what) if kind == "results" else _scores(folder / what)) + end

    def _results(benchmark: str) -> str:
        selected = runs[runs["benchmark"] == benchmark]
        if selected.empty:
            raise DataError(name, f"has a mark for {benchmark}, which has no saved run")
        return to_markdown(build_short_table(group_seeds(selected)))

    return MARKED.sub(replace, text)


def _scores(folder: Path) -> str:
    try:
        return score_table(read_details(folder / "evaluation.json"), read_details(folder / "usefulness.json"))
    except KeyError as error:
        raise DataError(folder, f"its scores lack {error.args[0]!r}. Run the stage `evaluate` again.") from error
