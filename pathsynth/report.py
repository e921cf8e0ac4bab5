"""The report: one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth import files, labels
from pathsynth.errors import DataError
from pathsynth.evaluation import Evaluation
from pathsynth.params import Params
from pathsynth.prepared import Prepared

if TYPE_CHECKING:
    from PIL import Image

# Published in arXiv 2506.00786; the interval is our bootstrap of its confusion matrix of 90 images.
ARXIV = "2506.00786"
PUBLISHED = {"arxiv": ARXIV, "macro_f1": 0.6727, "macro_f1_low": 0.60, "macro_f1_high": 0.73, "n_images": 90}
NOTHING = "-"
STAND_IN_CAPTION = "synthetic images, {benchmark} benchmark: a stand-in, not medical"
CAPTION = "synthetic images, {benchmark} benchmark: research only, not for diagnosis"


@dataclass(frozen=True)
class ReportInput:
    """What a report shows.

    Attributes:
        benchmark: name of the benchmark.
        lora: name of the LoRA configuration.
        labels: the tissues in words.
        slugs: their slugs, in the same order.
        stand_in: whether the data stand in for medical images, as phantoms do.
        evaluation: dict of metrics/evaluation.json.
        confusion: by "gate" and "judge", counts int (n, n) of raw images; row: prompted, column: predicted tissue.
        generation: dict of metrics/generation.json.
        classifiers: by "gate" and "judge", dicts of metrics/gate.json and metrics/judge.json with `val` and `test`.
        plates: an image per slug, and `overview`.
        parameters: nested dict of the values that were used.
    """

    benchmark: str
    lora: str
    labels: tuple[str, ...]
    slugs: tuple[str, ...]
    stand_in: bool
    evaluation: Mapping[str, Any]
    confusion: Mapping[str, np.ndarray]
    generation: Mapping[str, Any]
    classifiers: Mapping[str, Mapping[str, Any]]
    plates: Mapping[str, Image.Image]
    parameters: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        params: Params,
        data: Prepared,
        evaluation: Evaluation,
        generation: Mapping[str, Any],
        classifiers: Mapping[str, Mapping[str, Any]],
        plates: Mapping[str, Image.Image],
    ) -> ReportInput:
        """Puts together what the stages have left; arguments as the attributes of the same name.

        Raises:
            DataError: for counts or classifier scores that lack a part.
        """
        if not set(data.slugs) <= set(generation.get("per_tissue", ())):
            raise DataError("generation metrics", "not the counts of these tissues; run the stage generate_filtered anew")
        for name, scores in classifiers.items():
            if not {"val", "test"} <= set(scores):
                raise DataError(f"{name} metrics", "no scores of val and test; run the stage train_classifier anew")
        return cls(
            benchmark=params.benchmark_name,
            lora=params.lora_name,
            labels=data.labels,
            slugs=data.slugs,
            stand_in=data.stand_in,
            evaluation=evaluation.metrics,
            confusion={name: evaluation.confusion_counts(name) for name in ("gate", "judge")},
            generation=generation,
            classifiers=classifiers,
            plates=plates,
            parameters=params.model_dump(),
        )


def caption(benchmark: str, stand_in: bool) -> str:
    """The line under every picture: what the images are, and what they are not for."""
    return (STAND_IN_CAPTION if stand_in else CAPTION).format(benchmark=benchmark)


def render_report(content: ReportInput) -> str:
    """Renders the page; the same input gives the same text, without dates, hosts or absolute paths."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pathsynth"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(decimals=_decimals, percent=_percent)
    of_paper = content.labels == labels.PATHMNIST
    return environment.get_template("report.html.j2").render(
        benchmark=content.benchmark,
        lora=content.lora,
        labels=content.labels,
        kind="tissue" if of_paper else "class",
        stand_in=content.stand_in,
        caption=caption(content.benchmark, content.stand_in),
        arxiv=ARXIV,
        # the paper's figures stand beside those of its own nine tissues alone
        published=PUBLISHED if of_paper else None,
        evaluation=content.evaluation,
        generation=content.generation,
        scored=_scored_sets(content.evaluation),
        tissues=_tissue_rows(content),
        confusion=[
            {"title": f"Raw images by the {name}", "rows": _confusion_rows(content.labels, content.confusion[name])}
            for name in ("gate", "judge")
        ],
        classifiers=_classifier_rows(content.classifiers),
        overview=_embedded(content.plates["overview"]),
        plates=[
            {"label": label, **_embedded(content.plates[slug])}
            for label, slug in zip(content.labels, content.slugs, strict=True)
        ],
        parameters=list(_flat(content.parameters)),
    )


def write_report(path: Path, content: ReportInput) -> None:
    """Writes the page, whole or not at all.

    Raises:
        DataError: when the file cannot be written.
    """
    files.write_text(path, render_report(content))


def _scored_sets(evaluation: Mapping[str, Any]) -> list[dict]:
    sets = (
        ("Raw by gate", "the paper's measure", evaluation),
        ("Raw by judge", "same images, independent eye", evaluation["judge"]),
        ("Accepted by judge", "after filtering", evaluation["filtered_judge"]),
        ("Untuned by judge", "base model without LoRA", evaluation["untuned"]),
    )
    missing = dict.fromkeys(("macro_f1", "macro_f1_low", "macro_f1_high", "macro_precision", "macro_recall", "accuracy"))
    return [{"name": name, "note": note, "scores": {**missing, **scores}} for name, note, scores in sets]


def _tissue_rows(content: ReportInput) -> list[dict]:
    return [
        {
            "label": label,
            "gate": content.evaluation["per_tissue"][slug],
            "judge": content.evaluation["judge"]["per_tissue"][slug],
            "generation": content.generation["per_tissue"][slug],
        }
        for label, slug in zip(content.labels, content.slugs, strict=True)
    ]


def _confusion_rows(labels: tuple[str, ...], counts: np.ndarray) -> list[dict]:
    return [
        {
            "label": label,
            "total": int(row.sum()),
            "cells": [
                {"count": int(count), "share": count / max(1, row.sum()), "hit": seen == asked, "seen_as": labels[seen]}
                for seen, count in enumerate(row)
            ],
        }
        for asked, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]


def _classifier_rows(classifiers: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    splits = (("val", "validation"), ("test", "test"))
    return [
        {"name": name, "split": words, "scores": classifiers[name][split]}
        for name in ("gate", "judge")
        for split, words in splits
    ]


def _embedded(picture: Image.Image) -> dict:
    with io.BytesIO() as buffer:
        picture.save(buffer, format="PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"source": source, "width": picture.width, "height": picture.height}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted keys and texts."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        elif isinstance(value, str):
            yield f"{prefix}{key}", files.shown_path(value)
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def _decimals(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"
