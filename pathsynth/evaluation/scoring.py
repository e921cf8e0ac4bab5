"""Scoring of generated sets: opens the references, observes the images, computes scores and draws contact sheets.

Used by the stage evaluate and the command `score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.classifiers.model import load_gate_and_judge
from pathsynth.core.devices import pick_device
from pathsynth.core.params import Params, PositiveInt
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.data.prepared import Prepared, open_prepared
from pathsynth.data.provenance import caption
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.contact_sheets import draw_contact_sheets, draw_pairs
from pathsynth.evaluation.evaluate import Evaluation, evaluate
from pathsynth.evaluation.set_scores import SetScorer
from pathsynth.features.extractors import load_extractor
from pathsynth.features.observe import Observed, Observers, observe, open_real
from pathsynth.features.settings import ObservationSettings

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class References:
    """Real images, and the models that observe real and generated images.

    Attributes:
        prepared: the real images.
        real: their observations by split, and those of altered copies of training images.
        observers: classifiers and feature extractor.
    """

    prepared: Prepared
    real: Mapping[str, Observed]
    observers: Observers


def open_references(params: Params, prepared: Path, observed: Path, gate: Path, judge: Path) -> References:
    """Opens the outputs of the stages prepare, train_classifier and observe_real.

    Args:
        params: parameters of the benchmark.
        prepared, observed, gate, judge: folders of the stages.

    Raises:
        DataError, ModelError, FetchError: a file is missing, damaged, or does not belong to the others.
    """
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    gate_model, judge_model = load_gate_and_judge(gate, judge, pick_device(params.device, params.deterministic), data.slugs)
    extractor = load_extractor(
        params.section("evaluation.observation", ObservationSettings).features, params.folder, judge_model.device, judge_model
    )
    colour, real = open_real(observed, data, extractor, (gate, judge))
    return References(data, real, Observers(gate_model, judge_model, colour, extractor))


def open_scorer(params: Params, references: References) -> SetScorer:
    """Prepares the scores of any set against the real images."""
    return SetScorer(references.real, references.prepared.slugs, params.seeds.observers)


def score_sets(
    sets: GeneratedSets, params: Params, references: References, scratch: Path
) -> tuple[Evaluation, dict[str, Image.Image]]:
    """Observes all generated images, scores them, and draws the contact sheets.

    Args:
        sets: the generated images.
        params: parameters of the benchmark.
        references: the real images that the sets are compared with.
        scratch: folder for the observations; temporary.

    Returns:
        The evaluation, and contact sheets by tissue, `overview` and `pairs`.

    Raises:
        DataError: there are no raw images, or a file cannot be written.
        OutOfMemory: a batch does not fit into memory.
    """
    prepared, observers = references.prepared, references.observers
    observed = {
        name: observe(scratch / "observed", name, images.images, images.labels, observers)
        for name, images in sets.by_name.items()
    }
    result = evaluate(
        sets,
        observed,
        open_scorer(params, references),
        extractor=observers.extractor.name,
        images_per_tissue=params.section("generation.images_per_tissue", PositiveInt),
        max_attempts=params.section("generation.filter.max_attempts", PositiveInt),
    )
    if prepared.duplicates is not None:
        result.metrics["duplicates"] = [asdict(each) for each in prepared.duplicates]
    text = caption(params.benchmark_name, prepared.stand_in)
    val = LabelledImages(prepared.images("val"), prepared.labels_of("val"))
    sheets = draw_contact_sheets(sets, observed["raw"].predicted("gate"), val, prepared.labels, prepared.slugs, text)
    pairs = draw_pairs(result.pairs, sets.accepted.images, prepared.images("train"), text)
    return result, {**sheets, "pairs": pairs}
