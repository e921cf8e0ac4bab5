"""What a report shows, read from the files that the stages leave."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core import io as files
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import Params
from pathsynth.data.settings import AnyDataset
from pathsynth.report import pages
from pathsynth.report.pages import Picture

EVALUATION_KEYS = ("n_images", "judge", "colour", "gate_gaming", "real_images", "realism", "copying", "calibration")
# Other sets of images in evaluation.json, each with scores of its own; "untuned" may be absent.
SCORED_SETS = ("judge", "colour", "filtered_judge", "filtered_colour", "untuned")
Columns = tuple[tuple[str, ...], tuple[str, ...]]

# Columns that hold numbers, and those that hold words.
IMAGES: Columns = (("slot",), ("tissue", "gate", "judge", "colour"))
TABLES: dict[str, Columns] = {
    "thresholds": (("threshold", "kept_share", "judge_accuracy", "expected_attempts", "n_kept", "tissues_lost"), ()),
    "reliability": (("low", "high", "n", "confidence", "accuracy"), ("set",)),
}
OPTIONAL_TABLES: dict[str, Columns] = {
    "filled": (("attempt", "filled"), ("tissue",)),
    "pairs": (("rank", "slot", "distance", "train_index"), ("space", "tissue", "train_tissue")),
}
CURVES = {"lora": ("loss", "train_lora"), "gate": ("macro_f1", "train_classifier"), "judge": ("macro_f1", "train_classifier")}

Row = dict[str, Any]
Table = list[Row]


class FromFile(dict[str, Any]):
    """What a JSON file holds; to ask for a key that it lacks is a DataError that names file, key and stage.

    `get` and `in` ask without that risk.
    """

    def __init__(self, data: Mapping[str, Any], path: Path, stage: str, prefix: str = ""):
        super().__init__(
            (key, FromFile(value, path, stage, f"{prefix}{key}.") if isinstance(value, Mapping) else value)
            for key, value in data.items()
        )
        self._path, self._stage, self._prefix = path, stage, prefix

    def __missing__(self, key: str) -> NoReturn:
        raise _fault(self._path, f"has no {self._prefix}{key}", self._stage)


@dataclass(frozen=True)
class ReportInput:
    """What a report shows; whatever was not measured is None or empty.

    Attributes:
        benchmark: name of the benchmark.
        subject: name of what is scored: the LoRA, or a set of another generator.
        of_lora: whether the LoRA of the parameters made the images.
        labels: the tissues in words.
        slugs: their slugs, in the same order.
        stand_in: whether the data stand in for medical images, as phantoms do.
        evaluation: dict of metrics/evaluation.json.
        classifiers: by "gate" and "judge", dicts of metrics/gate.json and metrics/judge.json.
        generation, lora, robustness, usefulness: dicts of the files of these names in metrics/, or None.
        confusion: by (set, seen by), such as ("raw", "gate"), counts int (n, n); row: prompted, column: predicted tissue.
        tables: by name, such as "thresholds", the rows of a table in plots/evaluation/, without the images' own.
        curves: by "lora", "gate" and "judge", steps and values of loss or macro F1.
        logs: by stage, what was measured while it ran.
        plates: a picture per slug, and `overview`; or none at all.
        pairs: the picture of the closest pairs, or None.
        parameters: nested dict of the values that were used.
        checkpoints: by "gate" and "judge", which epoch was kept, "best" or "last".
    """

    benchmark: str
    subject: str
    of_lora: bool
    labels: tuple[str, ...]
    slugs: tuple[str, ...]
    stand_in: bool
    evaluation: Mapping[str, Any]
    classifiers: Mapping[str, Mapping[str, Any]]
    generation: Mapping[str, Any] | None
    lora: Mapping[str, Any] | None
    robustness: Mapping[str, Any] | None
    usefulness: Mapping[str, Any] | None
    confusion: Mapping[tuple[str, str], np.ndarray]
    tables: Mapping[str, Table]
    curves: Mapping[str, tuple[list[float], list[float | None]]]
    logs: Mapping[str, Mapping[str, Any]]
    plates: Mapping[str, Picture]
    pairs: Picture | None
    parameters: Mapping[str, Any]
    checkpoints: Mapping[str, str]


def read_report(params: Params, metrics: Path, plots: Path, logs: Path, subject: str | None = None) -> ReportInput:
    """Reads what the stages have left.

    evaluation.json, gate.json, judge.json and the tables of plots/evaluation/ must be there, and whole; of all else, what is
    there must be whole.

    Args:
        params: the parameters that made the files.
        metrics: folder of the metrics files.
        plots: folder with `evaluation` and `curves`.
        logs: folder of BENCHMARK/LORA/STAGE.json; a log counts if it names the benchmark, LoRA and seed of
            `params` and has their fingerprint.
        subject: name of a set that another generator made; then nothing is read or said of the LoRA of `params`.

    Raises:
        DataError: one line that names the file and the stage to run.
    """
    dataset, of_lora = params.section("dataset", AnyDataset), subject is None
    tables, slugs = plots / "evaluation", dataset.slugs
    return ReportInput(
        benchmark=params.benchmark_name,
        subject=params.lora_name if subject is None else subject,
        of_lora=of_lora,
        labels=dataset.label_names,
        slugs=slugs,
        stand_in=dataset.stand_in,
        evaluation=_read_evaluation(metrics / "evaluation.json", slugs),
        classifiers={name: _read_classifier(metrics / f"{name}.json") for name in ("gate", "judge")},
        generation=_read_generation(metrics / "generation.json", slugs),
        lora=_optional_json(metrics / "lora.json", "train_lora") if of_lora else None,
        robustness=_optional_json(metrics / "robustness.json", "observe_real"),
        usefulness=_optional_json(metrics / "usefulness.json", "measure_usefulness"),
        confusion={(name, by): counts for name in ("raw", "accepted") for by, counts in _read_confusion(tables, name, slugs)},
        tables=_read_tables(tables),
        curves=_read_curves(plots / "curves", of_lora),
        logs=_read_logs(logs, params) if of_lora else {},
        plates=_read_plates(tables / "plates", slugs),
        pairs=_read_picture(tables / "plates" / "pairs.png") if (tables / "plates" / "pairs.png").exists() else None,
        parameters={key: value for key, value in params.values().items() if of_lora or key not in ("lora", "lora_name")},
        checkpoints={name: params.section(f"classifiers.{name}", ClassifierSettings).checkpoint for name in ("gate", "judge")},
    )


def _read(path: Path, stage: str, reader: Callable[[Path], Any]) -> Any:
    """What `reader` makes of a file; its fault gains the stage that would mend it."""
    try:
        return reader(path)
    except DataError as error:
        raise _fault(path, str(error).removeprefix(f"{path}: "), stage) from error


def _fault(path: Path, problem: str, stage: str) -> DataError:
    return DataError(path, f"{problem}; run the stage {stage}")


def _read_json(path: Path, stage: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    data = FromFile(_read(path, stage, read_details), path, stage)
    for key in keys:
        if key not in data:
            raise _fault(path, f"has no {key}", stage)
    return data


def _optional_json(path: Path, stage: str) -> dict[str, Any] | None:
    return _read_json(path, stage) if path.exists() else None


def _read_evaluation(path: Path, slugs: Sequence[str]) -> dict[str, Any]:
    evaluation = _read_json(path, "evaluate", EVALUATION_KEYS)
    for name in ("", *SCORED_SETS):
        scored = evaluation.get(name) if name else evaluation
        if scored is None:
            continue
        if not isinstance(scored, dict) or "n_images" not in scored:
            raise _fault(path, f"{name} has no n_images", "evaluate")
        if scored["n_images"] and not _has_tissues(scored, slugs):
            raise _fault(path, f"{name or 'per_tissue'} has not the scores of these tissues", "evaluate")
    return evaluation


def _has_tissues(scored: Mapping[str, Any], slugs: Sequence[str]) -> bool:
    rows = scored.get("per_tissue")
    return isinstance(rows, Mapping) and all(isinstance(rows.get(slug), Mapping) for slug in slugs)


def _read_classifier(path: Path) -> dict[str, Any]:
    return _read_json(path, "train_classifier", ("val", "test"))


def _read_generation(path: Path, slugs: Sequence[str]) -> dict[str, Any] | None:
    generation = _optional_json(path, "generate_filtered")
    if generation is not None and not _has_tissues(generation, slugs):
        raise _fault(path, "has not the counts of these tissues", "generate_filtered")
    return generation


def _read_table(path: Path, stage: str, numbers: Sequence[str], words: Sequence[str] = (), delimiter: str = ",") -> Table:
    """Rows of a table with the named columns alone; an empty cell is None."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            missing = [name for name in (*numbers, *words) if name not in (reader.fieldnames or ())]
            if missing:
                raise _fault(path, f"has no column {', '.join(missing)}", stage)
            return [{name: row[name] for name in words} | {name: _number(row[name]) for name in numbers} for row in reader]
    except OSError as error:
        raise _fault(path, f"could not be read: {files.reason(error)}", stage) from error
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise _fault(path, f"is not a whole table: {one_line(error)}", stage) from error


def _number(text: str | None) -> float | None:
    if text is None:
        raise ValueError("a row is shorter than the head")
    if not text:
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _read_tables(folder: Path) -> dict[str, Table]:
    there = {name: columns for name, columns in OPTIONAL_TABLES.items() if (folder / f"{name}.csv").exists()}
    return {name: _read_table(folder / f"{name}.csv", "evaluate", *columns) for name, columns in (TABLES | there).items()}


def _read_confusion(folder: Path, name: str, slugs: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields who looked, and counts of prompted and predicted tissues, int64 (n, n)."""
    path, index = folder / f"{name}.csv", {slug: number for number, slug in enumerate(slugs)}
    rows = _read_table(path, "evaluate", *IMAGES)
    for by in ("gate", "judge"):
        counts = np.zeros((len(slugs), len(slugs)), np.int64)
        for row in rows:
            for slug in (row["tissue"], row[by]):
                if slug not in index:
                    raise _fault(path, f"{slug!r} is none of the tissues", "evaluate")
            counts[index[row["tissue"]], index[row[by]]] += 1
        yield by, counts


def _read_curves(folder: Path, of_lora: bool) -> dict[str, tuple[list[float], list[float | None]]]:
    found = {}
    for who, (name, stage) in CURVES.items():
        if who == "lora" and not of_lora:
            continue
        for path in sorted((folder / who / "plots" / "metrics").glob(f"**/{name}.tsv"))[:1]:
            rows = [row for row in _read_table(path, stage, ("step", name), delimiter="\t") if row["step"] is not None]
            found[who] = ([row["step"] for row in rows], [row[name] for row in rows])
    return found


def _read_logs(folder: Path, params: Params) -> dict[str, dict[str, Any]]:
    """Logs of these parameters by stage; those of others are left over from other runs."""
    wanted = {
        "benchmark": params.benchmark_name,
        "lora": params.lora_name,
        "seed": params.seed,
        "fingerprint": params.fingerprint(),
    }
    paths = sorted((folder / params.benchmark_name / params.lora_name).glob("*.json"))
    logs = {path.stem: _read_json(path, path.stem) for path in paths}
    return {stage: log for stage, log in logs.items() if {key: log.get(key) for key in wanted} == wanted}


def _read_plates(folder: Path, slugs: Sequence[str]) -> dict[str, Picture]:
    if not folder.is_dir():
        return {}
    return {name: _read_picture(folder / f"{name}.png") for name in ("overview", *slugs)}


def _read_picture(path: Path) -> Picture:
    return _read(path, "evaluate", pages.read_picture)
