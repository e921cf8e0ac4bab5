"""Groups trainings of one configuration, and writes them as a table and as experiments.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.compare.experiments import SAVED
from pathsynth.core.errors import DataError
from pathsynth.core.io import write_csv
from pathsynth.evaluation.statistics import MeanInterval, mean_interval
from pathsynth.report.pages import MISSING, decimals, interval, percent, significant, whole
from pathsynth.report.tables import Cell, Row, Table

if TYPE_CHECKING:
    import pandas as pd

Format = Callable[[float | None], str]
# The score that sorts and ranks: the gate filters, so it cannot also grade.
RANKED = "judge_f1"
# Head, score, format.
COLUMNS: tuple[tuple[str, str, Format], ...] = (
    ("Open-set F1", "open_set_f1", decimals),
    ("Gate F1", "macro_f1", decimals),
    ("Accepted (judge)", "accepted_judge_f1", decimals),
    ("Untuned", "untuned_f1", decimals),
    ("Paraphrased", "paraphrased_f1", decimals),
    ("Judge on real images", "judge_on_real", percent),
    ("Precision", "precision", decimals),
    ("Coverage", "coverage", decimals),
    ("Kernel distance", "kernel_distance", significant),
    ("Structure distance", "structure_distance", significant),
    ("Copies", "copies", percent),
    ("Usefulness gain", "useful_gain", decimals),
    ("Memorisation AUC", "memorisation_auc", decimals),
    ("Acceptance", "acceptance_rate", partial(percent, digits=0)),
    ("Unfilled", "unfilled", significant),
    ("Parameters", "trainable_parameters", whole),
    ("Images seen in training", "images_seen", whole),
    ("Images per training", "n_images", whole),
)
SHORT = ("open_set_f1", "macro_f1", "accepted_judge_f1", "untuned_f1", "acceptance_rate", "n_images")
TEXT_COLUMNS = ("benchmark", "lora", "prompts", "config")


@dataclass(frozen=True)
class Configuration:
    """Trainings of one configuration: runs that differ only in `seeds.training`.

    Attributes:
        name: the LoRA's name, with the digest of params and code where several configurations share it.
        runs: one row per training as `pathsynth.compare.experiments.collect_runs` gives them, by rising seed.
    """

    name: str
    runs: pd.DataFrame

    @property
    def trainings(self) -> list[int]:
        """The seeds of the trainings, rising."""
        return [int(seed) for seed in self.runs["training"]]

    def __getitem__(self, column: str) -> Any:
        """A value that all runs share, such as the benchmark."""
        return self.runs[column].iloc[0]

    def run(self, training: int) -> dict[str, Any]:
        """The run of that training, or of the lowest where there is none; `name` is its name on the page."""
        row = self.runs.iloc[self.trainings.index(training) if training in self.trainings else 0].to_dict()
        return row | {"name": f"{self.name}, training {row['training']}" if len(self.runs) > 1 else self.name}

    def scores(self, score: str) -> dict[int, float]:
        """The score by training, without trainings that lack it."""
        known = self.runs[["training", score]].dropna()
        return {int(training): float(value) for training, value in zip(known["training"], known[score], strict=True)}

    def summarize(self, score: str) -> MeanInterval | None:
        """Mean over the trainings that have the score, see `mean_interval`; None where none has it."""
        values = list(self.scores(score).values())
        return mean_interval(values) if values else None


def group_trainings(runs: pd.DataFrame) -> list[Configuration]:
    """Groups runs that differ only in the training.

    Args:
        runs: as `pathsynth.compare.experiments.collect_runs` returns them, or as `read_saved` does.

    Returns:
        Configurations by benchmark, in each the best mean macro F1 by the judge first.
    """
    groups = [group.sort_values("training", ignore_index=True) for _, group in runs.groupby("config", sort=False)]
    groups.sort(key=lambda group: (group["benchmark"].iloc[0], -group[RANKED].mean()))
    names = Counter((group["benchmark"].iloc[0], group["lora"].iloc[0]) for group in groups)
    return [Configuration(_name(group.iloc[0], names), group) for group in groups]


def _name(row: pd.Series, names: Counter) -> str:
    return f"{row['lora']}, {row['config']}" if names[row["benchmark"], row["lora"]] > 1 else row["lora"]


def most_common_training(configurations: Sequence[Configuration]) -> int:
    """The training that most of them have, of several the one of the lowest seed."""
    counts = Counter(seed for one in configurations for seed in one.trainings)
    return min(counts, key=lambda seed: (-counts[seed], seed))


def build_table(configurations: Sequence[Configuration], short: bool = False) -> Table:
    """Builds the table of one benchmark's configurations.

    Args:
        configurations: its rows.
        short: only the columns that fit a terminal and a Markdown file.
    """
    columns = [column for column in COLUMNS if column[1] in SHORT or not short]
    rows = [
        (
            one.name,
            one["prompts"],
            str(len(one.runs)),
            *_ranked_cells(one),
            *(_score_cell(one, *column[1:]) for column in columns),
        )
        for one in configurations
    ]
    head = ("LoRA", "Prompts", "Trainings", "Judge F1 (mean)", "sd", "95 % interval", *(head for head, _, _ in columns))
    return Table(head, rows)


def build_training_table(configurations: Sequence[Configuration]) -> Table:
    """Builds the table of single trainings, in which intervals are over images."""
    rows: list[Row] = []
    for one in configurations:
        for training in one.trainings:
            run = one.runs[one.runs["training"] == training]
            single = Configuration(one.name, run)
            over_images = interval(*(run[f"{RANKED}_{end}"].item() for end in ("low", "high")))
            cells = (_score_cell(single, score, form) for _, score, form in COLUMNS)
            rows.append((one.name, str(training), run["rev"].item()[:7], decimals(run[RANKED].item()), over_images, *cells))
    over_images = "95 % interval over images, this training"
    return Table(("LoRA", "Training", "Revision", "Judge F1", over_images, *(head for head, _, _ in COLUMNS)), rows)


def _ranked_cells(one: Configuration) -> list[Cell | str]:
    """Mean, standard deviation and interval over trainings, each in a cell; only the value of a single training."""
    mean, sd, low, high = one.summarize(RANKED) or (None,) * 4
    # Student's t ignores that no F1 is outside 0 to 1
    within = (None, None) if low is None or high is None else (max(low, 0.0), min(high, 1.0))
    return [Cell(decimals(mean), _count_note(one, RANKED)), decimals(sd), interval(*within) or MISSING]


def _score_cell(one: Configuration, score: str, form: Format) -> Cell:
    """Mean ± standard deviation over the trainings; only the value of a single training."""
    mean, sd, _, _ = one.summarize(score) or (None,) * 4
    # counts depend on the parameters, not on the training
    spread = "" if sd is None or form is whole else f" ± {form(sd)}"
    return Cell(form(mean) + spread, _count_note(one, score), alert=score == "unfilled" and bool(mean))


def _count_note(one: Configuration, score: str) -> str:
    count = len(one.scores(score))
    return f"n={count}" if 0 < count < len(one.runs) else ""


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
