"""scores.json, which `python -m pathsynth score` writes: the scores of one set, and what a leaderboard needs to check them.

The confusion matrices are in the file because classification scores and their bootstrap intervals follow from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from pathsynth import __version__
from pathsynth.classifiers.metrics import confusion_matrix
from pathsynth.classifiers.model import WEIGHTS
from pathsynth.core.environment import package_versions
from pathsynth.core.errors import DataError
from pathsynth.core.io import catch_read_errors, check_json_object, compute_sha256, parse_json
from pathsynth.core.params import Fraction, NonNegativeInt, PositiveInt, Section, Seed, validate
from pathsynth.core.rows import iter_blocks
from pathsynth.data.generated import LabelledImages
from pathsynth.evaluation.evaluate import score_accuracies
from pathsynth.evaluation.scoring import References
from pathsynth.features.observe import OBSERVERS

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "pathsynth-scores"
# Raise it whenever a score of an unchanged set changes its value or its meaning.
SCORES_VERSION = 1
MAX_BYTES = 5_000_000
MAX_IMAGES = 10_000_000

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_IMAGES)]


def _check_sum(counts: dict[str, int]) -> dict[str, int]:
    """Limits the memory that the checks of a submitted file can take."""
    if sum(counts.values()) > MAX_IMAGES:
        raise ValueError(f"must not add up to more than {MAX_IMAGES:,} images")
    return counts


class Reference(Section):
    """What scores depend on besides the scored images; only scores with the same reference can be compared.

    Attributes:
        scores_version: version of the scores.
        benchmark: name of the benchmark.
        stand_in: whether its images only stand in for medical ones.
        classes: slugs of the classes, in the order of their indices.
        data: SHA-256 of images and labels of each split.
        gate: SHA-256 of the gate's weights.
        judge: SHA-256 of the judge's weights.
        extractor: name of the feature extractor.
        dimensions: number of its features.
        seed: of bootstrap and subsamples.
        real_images: accuracy of each observer on real images by split.
    """

    scores_version: PositiveInt
    benchmark: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
    stand_in: bool
    classes: Annotated[list[str], Field(min_length=2, max_length=256)]
    data: dict[str, Sha256]
    gate: Sha256
    judge: Sha256
    extractor: str
    dimensions: PositiveInt
    seed: Seed
    real_images: dict[str, dict[str, Fraction]]


class ScoredImages(Section):
    """The scored images: a checksum that does not depend on their order, and how many there are.

    `distinct` counts images without exact copies within the set.
    """

    sha256: Sha256
    distinct: Count
    per_class: Annotated[dict[str, Count], AfterValidator(_check_sum)]

    @property
    def count(self) -> int:
        """Number of all images."""
        return sum(self.per_class.values())


class ScoresFile(Section):
    """Contents of scores.json.

    `confusion` has a matrix per observer, rows are intended classes. `scores` are those of
    `pathsynth.evaluation.set_scores.SetScorer`. `digest` is the SHA-256 of everything else, see `compute_digest`.
    """

    format: Literal["pathsynth-scores"]
    reference: Reference
    images: ScoredImages
    confusion: dict[str, list[list[Count]]]
    scores: dict[str, Any]
    made_with: dict[str, str]
    digest: Sha256


def describe_references(references: References, gate: Path, judge: Path, seed: NonNegativeInt) -> Reference:
    """Describes opened references.

    Args:
        references: real images and observers.
        gate, judge: folders of the classifiers.
        seed: `seeds.observers`.

    Raises:
        DataError: a weights file cannot be read.
    """
    prepared, extractor = references.prepared, references.observers.extractor
    return Reference(
        scores_version=SCORES_VERSION,
        benchmark=prepared.name,
        stand_in=prepared.stand_in,
        classes=list(prepared.slugs),
        data=prepared.checksums,
        gate=compute_sha256(gate / WEIGHTS),
        judge=compute_sha256(judge / WEIGHTS),
        extractor=extractor.name,
        dimensions=extractor.dimensions,
        seed=seed,
        real_images=score_accuracies(references.real),
    )


def build_scores(
    reference: Reference, images: LabelledImages, predicted: pd.DataFrame, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Builds the contents of scores.json.

    Args:
        reference: what the images were scored against.
        images: the scored images.
        predicted: the table `raw` of the evaluation: a row per image with its intended class and each observer's prediction.
        scores: the scores of the set, see `SetScorer.score`.
    """
    content = {
        "format": FORMAT,
        "reference": reference.model_dump(),
        "images": describe_images(images, reference.classes).model_dump(),
        "confusion": {by: _confusion(predicted["tissue"], predicted[by], reference.classes) for by in OBSERVERS},
        "scores": dict(scores),
        "made_with": {"pathsynth": __version__, **package_versions()},
    }
    return {**content, "digest": compute_digest(content)}


def describe_images(images: LabelledImages, classes: Sequence[str]) -> ScoredImages:
    """Computes checksum and counts of labelled images."""
    digests = []
    for block, labels in zip(iter_blocks(images.images), iter_blocks(np.asarray(images.labels, np.int64)), strict=True):
        shape = repr(block.shape[1:]).encode()
        digests += [
            hashlib.sha256(shape + label.tobytes() + np.ascontiguousarray(image).tobytes()).digest()
            for image, label in zip(block, labels, strict=True)
        ]
    counts = np.bincount(images.labels, minlength=len(classes)).tolist()
    return ScoredImages(
        sha256=hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
        distinct=len(set(digests)),
        per_class=dict(zip(classes, counts, strict=True)),
    )


def compute_digest(content: Mapping[str, Any]) -> str:
    """Computes the SHA-256 of all keys but `digest`, written as compact JSON with sorted keys.

    It shows that a file was edited, not who made it: whoever edits on purpose can compute it too.
    """
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_scores(path: Path) -> ScoresFile:
    """Reads scores.json of anyone; `pathsynth.leaderboard.checks` checks the numbers in it.

    Raises:
        DataError: the file is missing, too large, no JSON object, or was edited.
        ParamsError: it has other keys or types.
    """
    with catch_read_errors(path, "a file of scores"):
        if path.stat().st_size > MAX_BYTES:
            raise DataError(path, f"has {path.stat().st_size:,} bytes; allowed: {MAX_BYTES:,}")
        content = check_json_object(parse_json(path.read_bytes(), path), path)
        if content.get("format") != FORMAT:
            raise DataError(path, "was not written by `python -m pathsynth score`")
        scores = validate(path, "", ScoresFile, content)
        if compute_digest(content) != scores.digest:
            raise DataError(path, "was changed after it was written (wrong digest); score the images again")
    return scores


def _confusion(intended: pd.Series, predicted: pd.Series, classes: Sequence[str]) -> list[list[int]]:
    place = {slug: index for index, slug in enumerate(classes)}
    y_true, y_pred = (column.map(place).to_numpy(np.int64) for column in (intended, predicted))
    return confusion_matrix(y_true, y_pred, len(classes)).tolist()
