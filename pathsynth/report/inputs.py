"""Reads the contents of the report from the files that the stages write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core.errors import DataError
from pathsynth.core.io import catch_read_errors
from pathsynth.core.metric_files import get_nested, read_details
from pathsynth.core.params import Params, describe_lora, merge_list
from pathsynth.data import labels
from pathsynth.data.settings import AnyDataset, MedmnistDataset
from pathsynth.evaluation.contact_sheets import CELL, DATA_SET, GAP, PAPER, RAW, read_boxes
from pathsynth.report.pages import Picture, embed_image, read_picture

# File in metrics/, and the stage that writes it.
STAGES = {
    "evaluation": "evaluate",
    "gate": "train_classifier",
    "judge": "train_classifier",
    "generation": "generate_filtered",
    "lora": "train_lora",
    "memorisation": "measure_memorisation",
    "robustness": "observe_real",
    "usefulness": "measure_usefulness",
}
# Tables in plots/evaluation/ with the columns that the report uses. `filled` and `pairs` may be absent.
PREDICTIONS: dict[str, type] = {"tissue": str, "gate": str, "judge": str, "slot": float}
TABLES: dict[str, dict[str, type]] = {
    "thresholds": dict.fromkeys(
        ("threshold", "kept_share", "judge_accuracy", "expected_attempts", "n_kept", "tissues_lost"), float
    ),
    "reliability": {"set": str, **dict.fromkeys(("low", "high", "n", "confidence", "accuracy"), float)},
    "filled": {"tissue": str, "attempt": float, "filled": float},
    "pairs": {
        "space": str,
        "tissue": str,
        "train_tissue": str,
        **dict.fromkeys(("rank", "slot", "distance", "train_index"), float),
    },
}
OPTIONAL_TABLES = ("filled", "pairs")
ANCHORS_REMEDY = "Run `python -m pathsynth anchors`."
# Side of the paper's images in pixels.
PAPER_SIZE = 224
# Table of a curve in plots/curves/, and the stage that writes it.
CURVES = {
    "lora": ("lora/plots/metrics/train/loss.tsv", "train_lora"),
    "validation": ("lora/plots/metrics/validation/loss.tsv", "train_lora"),
    "gate": ("gate/plots/metrics/val/macro_f1.tsv", "train_classifier"),
    "judge": ("judge/plots/metrics/val/macro_f1.tsv", "train_classifier"),
}

Scores = Mapping[str, Any]
Rows = list[dict[str, Any]]


def class_nouns(names: Sequence[str]) -> tuple[str, str]:
    """Returns what one class and several classes of these names are called."""
    return ("tissue", "tissues") if tuple(names) == labels.PATHMNIST else ("class", "classes")


@dataclass(frozen=True)
class ReportInput:
    """Contents of the report; values that were not measured are None or empty.

    Attributes:
        benchmark: name of the benchmark.
        subject: name of the scored set: the LoRA configuration, or the name of a set from a different generator.
        of_lora: whether the images were generated with the LoRA of the parameters.
        labels: names of the classes.
        slugs: their slugs, in the same order.
        stand_in: whether the data stand in for medical images, as phantoms do.
        is_published: whether the images are those of the paper, PathMNIST's official splits at its size.
        evaluation: contents of metrics/evaluation.json.
        classifiers: contents of metrics/gate.json and metrics/judge.json, by "gate" and "judge".
        generation, lora, memorisation, robustness, usefulness: contents of the files of these names in metrics/, or None.
        anchors: contents of the benchmark's file in metrics/anchors, or None.
        confusion: int (n, n) by (set, observer), such as ("raw", "gate"); row: prompted, column: predicted class.
        tables: rows of the tables of plots/evaluation/, by name.
        curves: steps and values of loss or macro F1, by "lora", "validation" (of the LoRA), "gate" and "judge".
        sheets: images that the LoRA sampled during training, one per class in the order of labels, by step, rising.
        logs: measurements of each stage, such as seconds and memory.
        contact_sheets: a picture per slug, `overview` and `pairs`; or none at all.
        examples: a real and a raw generated image side by side, by slug, from contact sheets that record their places.
        parameters: nested dict of the values of the run.
        checkpoints: which epoch was kept, "best" or "last", by "gate" and "judge".
    """

    benchmark: str
    subject: str
    of_lora: bool
    labels: tuple[str, ...]
    slugs: tuple[str, ...]
    stand_in: bool
    is_published: bool
    evaluation: Scores
    classifiers: Mapping[str, Scores]
    generation: Scores | None
    lora: Scores | None
    memorisation: Scores | None
    robustness: Scores | None
    usefulness: Scores | None
    anchors: Scores | None
    confusion: Mapping[tuple[str, str], np.ndarray]
    tables: Mapping[str, Rows]
    curves: Mapping[str, tuple[list[float], list[float | None]]]
    sheets: Mapping[int, Sequence[Picture]]
    logs: Mapping[str, Scores]
    contact_sheets: Mapping[str, Picture]
    examples: Mapping[str, Picture]
    parameters: Mapping[str, Any]
    checkpoints: Mapping[str, str]

    @property
    def is_pathmnist(self) -> bool:
        """Whether the classes are PathMNIST's nine tissues."""
        return self.labels == labels.PATHMNIST

    @property
    def has_other_centre(self) -> bool:
        """Whether the test images are known to come from another centre than the training images."""
        source = merge_list(get_nested(self.parameters, ("benchmark", "dataset"))) or {}
        return source.get("source") == "phantom" or source.get("flag") == "pathmnist"

    @property
    def class_noun(self) -> str:
        """What one class is called."""
        return class_nouns(self.labels)[0]

    @property
    def classes_noun(self) -> str:
        """What several classes are called."""
        return class_nouns(self.labels)[1]

    @property
    def names(self) -> dict[str, str]:
        """Name of each class by its slug."""
        return dict(zip(self.slugs, self.labels, strict=True))


def read_report(
    params: Params, metrics: Path, plots: Path, logs: Path, anchors: Path | None = None, subject: str | None = None
) -> ReportInput:
    """Reads the files of one run.

    evaluation.json, gate.json, judge.json and the tables of plots/evaluation/ are required. The other files may be absent.

    Args:
        params: the parameters that made the files.
        metrics: folder of the metrics files.
        plots: folder with `evaluation` and `curves`.
        logs: folder of BENCHMARK/LORA/STAGE.json. A log counts if it has the fingerprint of `params`.
        anchors: folder of BENCHMARK.json with the scores of damaged real images; the file may be absent.
        subject: name of a set from a different generator, for which nothing about the LoRA is read; None for the LoRA's images.

    Raises:
        DataError: a file is missing or damaged; names the file and the stage to run.
    """
    dataset, of_lora = params.section("dataset", AnyDataset), subject is None
    found = {name: _read_metrics(metrics / f"{name}.json", stage) for name, stage in STAGES.items()}
    tables = plots / "evaluation"
    return ReportInput(
        benchmark=params.benchmark_name,
        subject=describe_lora(params.lora_name, params.benchmark["generation"].get("snapshot")) if subject is None else subject,
        of_lora=of_lora,
        labels=dataset.label_names,
        slugs=dataset.slugs,
        stand_in=dataset.stand_in,
        is_published=isinstance(dataset, MedmnistDataset)
        and (dataset.flag, dataset.archive_size, dataset.image_size) == ("pathmnist", PAPER_SIZE, PAPER_SIZE),
        evaluation=found["evaluation"] or {},
        classifiers={role: found[role] or {} for role in ("gate", "judge")},
        generation=found["generation"],
        lora=found["lora"] if of_lora else None,
        memorisation=found["memorisation"] if of_lora else None,
        robustness=found["robustness"],
        usefulness=found["usefulness"],
        anchors=None if anchors is None else _read_anchors(anchors / f"{params.benchmark_name}.json"),
        confusion={
            (name, by): counts
            for name in ("raw", "accepted")
            for by, counts in count_predictions(read_predictions(tables / f"{name}.csv", dataset.slugs), dataset.slugs).items()
        },
        tables={
            name: _read_table(tables / f"{name}.csv", "evaluate", columns)
            for name, columns in TABLES.items()
            if name not in OPTIONAL_TABLES or (tables / f"{name}.csv").exists()
        },
        curves=_read_curves(plots / "curves", of_lora),
        sheets=_read_sheets(plots / "training", len(dataset.slugs)) if of_lora else {},
        logs=_read_logs(logs, params) if of_lora else {},
        contact_sheets=_read_contact_sheets(tables / "plates", dataset.slugs),
        examples=_read_examples(tables / "plates", dataset.slugs),
        parameters={key: value for key, value in params.values().items() if of_lora or key not in ("lora", "lora_name")},
        checkpoints={role: params.section(f"classifiers.{role}", ClassifierSettings).checkpoint for role in ("gate", "judge")},
    )


@contextmanager
def _name_stage(path: Path, stage: str) -> Iterator[None]:
    """Appends the stage to run to an error about a file."""
    with _append_remedy(path, f"Run the stage {stage}."):
        yield


@contextmanager
def _append_remedy(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(path, f"{str(error).removeprefix(f'{path}: ')}. {remedy}") from error


def _read_metrics(path: Path, stage: str) -> Scores | None:
    required = path.stem in ("evaluation", "gate", "judge")
    with _name_stage(path, stage):
        return read_details(path) if required or path.exists() else None


def _read_anchors(path: Path) -> Scores | None:
    with _append_remedy(path, ANCHORS_REMEDY):
        return read_details(path) if path.exists() else None


def _read_table(path: Path, stage: str, columns: Mapping[str, type], separator: str = ",") -> Rows:
    """Reads the given columns; an empty cell is None."""
    import pandas as pd

    with _name_stage(path, stage), catch_read_errors(path, f"a table with the columns {', '.join(columns)}"):
        # a class may be called "none" or "null", so only an empty cell is missing
        frame = pd.read_csv(
            path, sep=separator, usecols=list(columns), dtype=dict(columns), keep_default_na=False, na_values=[""]
        )
        return frame.astype(object).where(frame.notna(), None).to_dict("records")


def read_predictions(path: Path, slugs: Sequence[str]) -> Rows:
    """Reads a table of predictions: a row per image with its `slot`, and the slugs `tissue`, `gate` and `judge`.

    Raises:
        DataError: the file is missing or damaged, or names a class that is not in `slugs`; names the stage to run.
    """
    rows = _read_table(path, "evaluate", PREDICTIONS)
    with _name_stage(path, "evaluate"), catch_read_errors(path, f"a table of {', '.join(slugs)}"):
        for row in rows:
            if unknown := [row[name] for name in ("tissue", "gate", "judge") if row[name] not in slugs]:
                raise ValueError(f"{unknown[0]!r} is not a class")
    return rows


def count_predictions(rows: Rows, slugs: Sequence[str]) -> dict[str, np.ndarray]:
    """Counts the confusion matrices of "gate" and "judge", int64 (n, n); row: prompted, column: predicted class."""
    index = {slug: number for number, slug in enumerate(slugs)}
    matrices = {by: np.zeros((len(slugs), len(slugs)), np.int64) for by in ("gate", "judge")}
    for row in rows:
        for by, counts in matrices.items():
            counts[index[row["tissue"]], index[row[by]]] += 1
    return matrices


def _read_curves(folder: Path, of_lora: bool) -> dict[str, tuple[list[float], list[float | None]]]:
    curves = {}
    for who, (table, stage) in CURVES.items():
        path = folder / table
        if path.exists() and (of_lora or stage != "train_lora"):
            columns = {"step": float, path.stem: float}
            rows = [row for row in _read_table(path, stage, columns, "\t") if row["step"] is not None]
            curves[who] = ([row["step"] for row in rows], [row[path.stem] for row in rows])
    return curves


def _read_sheets(folder: Path, classes: int) -> dict[int, list[Picture]]:
    """Cuts sheets into their images, which stand side by side."""
    from PIL import Image

    sheets = {}
    for path in sorted((path for path in folder.glob("*.png") if path.stem.isdecimal()), key=lambda path: int(path.stem)):
        with _name_stage(path, "train_lora"), catch_read_errors(path, f"a PNG of {classes} square images"):
            read_picture(path)
            with Image.open(path, formats=["PNG"]) as sheet:
                side = sheet.height
                if sheet.width != classes * side:
                    raise ValueError(f"{sheet.width} x {side} px")
                tiles = [sheet.crop((left, 0, left + side, side)) for left in range(0, sheet.width, side)]
        sheets[int(path.stem)] = [embed_image(tile) for tile in tiles]
    return sheets


def _read_logs(folder: Path, params: Params) -> dict[str, Scores]:
    """Reads the logs by stage, except those of runs with different parameters."""
    found: dict[str, Scores] = {}
    for path in sorted((folder / params.benchmark_name / params.lora_name).glob("*.json")):
        with _name_stage(path, path.stem):
            log = read_details(path)
        if log.get("fingerprint") == params.fingerprint():
            found[path.stem] = log
    return found


def _read_contact_sheets(folder: Path, slugs: Sequence[str]) -> dict[str, Picture]:
    if not folder.is_dir():
        return {}
    paths = [folder / f"{name}.png" for name in ("overview", *slugs)]
    if (folder / "pairs.png").exists():
        paths.append(folder / "pairs.png")
    pictures = {}
    for path in paths:
        with _name_stage(path, "evaluate"):
            pictures[path.stem] = read_picture(path)
    return pictures


def _read_examples(folder: Path, slugs: Sequence[str]) -> dict[str, Picture]:
    """Cuts the first real and the first raw image of each class out of its contact sheet."""
    from PIL import Image

    examples = {}
    for slug in slugs if folder.is_dir() else ():
        with Image.open(folder / f"{slug}.png", formats=["PNG"]) as sheet:
            boxes = read_boxes(sheet)
            if {DATA_SET, RAW} <= set(boxes):
                pair = Image.new("RGB", (2 * CELL + GAP, CELL), PAPER)
                for place, title in enumerate((DATA_SET, RAW)):
                    left, top, *_ = boxes[title].rows(1)
                    pair.paste(sheet.crop((left, top, left + CELL, top + CELL)), (place * (CELL + GAP), 0))
                examples[slug] = embed_image(pair)
    return examples
