"""The contents of the atlas, read from the files of the last run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.atlas.licences import Credit, credit_real_images
from pathsynth.atlas.look_alikes import LookAlikes, rank_look_alikes
from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import get_nested, read_details
from pathsynth.core.params import Params, describe_lora
from pathsynth.data.archives import unpack_split
from pathsynth.data.generated import LabelledImages, check_labels, read_attempts
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.settings import Prompts
from pathsynth.report.attempts import match_attempts
from pathsynth.report.inputs import class_nouns, count_predictions, read_predictions

if TYPE_CHECKING:
    import pandas as pd

REAL_EXAMPLES = 6


@dataclass(frozen=True)
class AtlasFiles:
    """Where a run has left its files.

    Attributes:
        prepared, generated: folders of the stages prepare and generate_filtered.
        evaluation: metrics/evaluation.json.
        tables: folder with raw.csv and accepted.csv, the predictions of gate and judge.
    """

    prepared: Path
    generated: Path
    evaluation: Path
    tables: Path

    def check(self) -> None:
        """Raises DataError for a missing file; names it and the remedy."""
        accepted, attempts = self.generated / "accepted.npz", self.generated / "attempts.csv"
        for path in (accepted, attempts, self.tables / "raw.csv", self.tables / "accepted.csv", self.evaluation):
            if not path.is_file():
                reason = "no images have been generated" if path in (accepted, attempts) else "the images have not been scored"
                raise DataError(path, f"is missing: {reason}. Run `make repro` first.")


@dataclass(frozen=True)
class Accepted:
    """An image that the gate accepted.

    Attributes:
        image: uint8 (H, W, 3).
        slot, attempt: which image of its class it is, and the number of earlier attempts at it; both count from 0.
        seed: of its noise.
        confidence: the gate's probability of its class.
        judge: index of the class that the judge predicts.
    """

    image: np.ndarray
    slot: int
    attempt: int
    seed: int
    confidence: float
    judge: int


@dataclass(frozen=True)
class AtlasClass:
    """A class and its images.

    Attributes:
        label: its name.
        prompt: the sentence that the images were drawn with.
        description: the sentence that describes its structures; `prompt` if the images were drawn with it.
        attempts: number of images that the gate has checked.
        n_accepted: number of images that it accepted.
        n_confirmed: number of accepted images in which the judge predicts the same class.
        accepted: the first of the accepted images.
        real: examples from the data set's test split, uint8 (n, H, W, 3); n is 0 if they may not be shown.
    """

    label: str
    prompt: str
    description: str
    attempts: int
    n_accepted: int
    n_confirmed: int
    accepted: Sequence[Accepted]
    real: np.ndarray


@dataclass(frozen=True)
class AtlasContent:
    """Contents of the atlas.

    Attributes:
        benchmark, lora: names of the benchmark and of the LoRA configuration.
        stand_in: whether the images imitate drawn phantoms instead of tissue.
        noun, nouns: what a class is called, and several.
        classes: in the order of their labels.
        look_alikes: the pairs that gate and judge confuse most, in first attempts.
        accuracy: share of real test images that "gate" and "judge" recognise; None if not measured.
        credit: of the real images; None if they may not be shown.
    """

    benchmark: str
    lora: str
    stand_in: bool
    noun: str
    nouns: str
    classes: Sequence[AtlasClass]
    look_alikes: Sequence[LookAlikes]
    accuracy: dict[str, float | None]
    credit: Credit | None


def read_atlas(params: Params, files: AtlasFiles, scratch: Path, limit: int, show_real: bool = False) -> AtlasContent:
    """Reads the contents of the atlas.

    Args:
        params: the parameters that made the files.
        files: the files of the run.
        scratch: folder for the unpacked images; it is not needed afterwards.
        limit: maximum number of accepted images per class, from the first on.
        show_real: whether to show real images whose licence is not known.

    Raises:
        DataError: a file is missing or damaged, or belongs to a different run; names the file and the remedy.
    """
    files.check()
    dataset, prompts = params.section("dataset", AnyDataset), params.section("prompts", Prompts)
    slugs, credit = dataset.slugs, credit_real_images(dataset, show_real)
    real = _read_real(files.prepared, params.benchmark_name, dataset.label_names) if credit else None
    sentences = zip(prompts.texts(params.lora["prompts"], dataset), prompts.texts("described", dataset), strict=True)
    classes = _read_classes(files, dataset, list(sentences), real, scratch / "accepted", limit)
    raw = read_predictions(files.tables / "raw.csv", slugs)
    evaluation = read_details(files.evaluation)
    noun, nouns = class_nouns(dataset.label_names)
    return AtlasContent(
        benchmark=params.benchmark_name,
        lora=describe_lora(params.lora_name, params.benchmark["generation"].get("snapshot")),
        stand_in=dataset.stand_in,
        noun=noun,
        nouns=nouns,
        classes=classes,
        look_alikes=rank_look_alikes(count_predictions(raw, slugs)),
        accuracy={by: get_nested(evaluation, ("real_images", by, "test")) for by in ("gate", "judge")},
        credit=credit,
    )


def _read_classes(
    files: AtlasFiles,
    dataset: AnyDataset,
    sentences: Sequence[tuple[str, str]],
    real: LabelledImages | None,
    scratch: Path,
    limit: int,
) -> list[AtlasClass]:
    """Reads the images of each class; `sentences` are its prompt and its description."""
    archive, table, slugs = files.generated / "accepted.npz", files.generated / "attempts.csv", dataset.slugs
    images, indices = unpack_split(archive, scratch)
    check_labels(archive, indices, slugs)
    attempts = read_attempts(table)
    accepted = _match_judge(files, match_attempts(table, attempts, "accepted", indices, slugs), slugs)
    accepted = accepted.assign(row=np.arange(len(accepted)))
    classes = []
    for index, (label, (prompt, description)) in enumerate(zip(dataset.label_names, sentences, strict=True)):
        rows = accepted[indices == index]
        classes.append(
            AtlasClass(
                label=label,
                prompt=prompt,
                description=description,
                attempts=int((attempts["tissue"] == slugs[index]).sum()),
                n_accepted=len(rows),
                n_confirmed=int((rows["judge"] == index).sum()),
                accepted=[_to_accepted(images, row) for row in rows.head(limit).to_dict("records")],
                real=real.of(index, REAL_EXAMPLES) if real else np.empty((0, *images.shape[1:]), np.uint8),
            )
        )
    return classes


def _match_judge(files: AtlasFiles, accepted: pd.DataFrame, slugs: Sequence[str]) -> pd.DataFrame:
    """Adds the index of the class that the judge predicts."""
    path = files.tables / "accepted.csv"
    judged = {(row["tissue"], row["slot"]): slugs.index(row["judge"]) for row in read_predictions(path, slugs)}
    keys = list(zip(accepted["tissue"], accepted["slot"], strict=True))
    if set(keys) != set(judged):
        raise DataError(path, f"does not list the {len(keys)} accepted images of {files.generated}. Run `make repro`.")
    return accepted.assign(judge=np.array([judged[key] for key in keys], np.int64))


def _to_accepted(images: np.ndarray, row: dict) -> Accepted:
    image = np.array(images[row["row"]])
    return Accepted(image, row["slot"], row["attempt"], row["seed"], row["confidence"], row["judge"])


def _read_real(folder: Path, benchmark: str, names: Sequence[str]) -> LabelledImages:
    """Real images of the test split, on which nothing was trained."""
    prepared = open_prepared(folder, benchmark, names)
    return LabelledImages(prepared.images("test"), prepared.labels_of("test"))
