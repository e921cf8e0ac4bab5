"""From images to scores and pictures: what the stage evaluate and the command `score` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.classifiers.model import load_pair
from pathsynth.core.devices import pick_device
from pathsynth.core.params import Params, PositiveInt
from pathsynth.core.rows import Rows
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.data.prepared import Prepared, open_prepared
from pathsynth.data.provenance import caption
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.contact_sheets import Block, draw_overview, draw_plates
from pathsynth.evaluation.evaluate import Evaluation, Pairs, evaluate
from pathsynth.evaluation.settings import FidelitySettings
from pathsynth.features.extractors import load_extractor
from pathsynth.features.observe import Observed, Observers, observe, open_real
from pathsynth.features.settings import AnyFeatures

if TYPE_CHECKING:
    from PIL import Image

SPACES = {"features": "closest by features", "pixels": "closest by pixels"}


@dataclass(frozen=True)
class References:
    """What generated sets are held against.

    Attributes:
        prepared: the real images.
        real: the same by split, as they were seen.
        observers: who looks.
    """

    prepared: Prepared
    real: Mapping[str, Observed]
    observers: Observers


def open_references(params: Params, prepared: Path, observed: Path, gate: Path, judge: Path) -> References:
    """Opens what the stages prepare, train_classifier and observe_real have left.

    Args:
        params: whose benchmark it is.
        prepared, observed, gate, judge: folders of the stages.

    Raises:
        DataError, ModelError, FetchError: something is missing, damaged, or does not belong to the rest.
    """
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    filtering, judging = load_pair(gate, judge, pick_device(params.deterministic), data.slugs)
    extractor = load_extractor(params.section("evaluation.features", AnyFeatures), params.folder, judging.device, judging)
    colour, real = open_real(observed, data, extractor, (gate, judge))
    return References(data, real, Observers(filtering, judging, colour, extractor))


def score_sets(
    sets: GeneratedSets, params: Params, bench: References, scratch: Path
) -> tuple[Evaluation, dict[str, Image.Image]]:
    """Looks at all generated images, scores them, and draws the plates and the closest pairs.

    Args:
        sets: the generated images.
        params: how they are scored.
        bench: what they are held against.
        scratch: folder for what is seen, used meanwhile.

    Returns:
        The evaluation, and a picture per tissue, `overview` and `pairs`.

    Raises:
        DataError: when there are no raw images, or a file cannot be written.
        MemoryFault: a batch does not fit into memory.
    """
    prepared, observers = bench.prepared, bench.observers
    seen = {
        name: observe(scratch / "seen", name, images.images, images.labels, observers)
        for name, images in (("raw", sets.raw), ("accepted", sets.accepted), ("untuned", sets.untuned))
    }
    result = evaluate(
        sets,
        seen,
        bench.real,
        slugs=prepared.slugs,
        extractor=observers.extractor.name,
        fidelity=params.section("evaluation.fidelity", FidelitySettings),
        images_per_tissue=params.section("generation.images_per_tissue", PositiveInt),
        max_attempts=params.section("generation.max_attempts", PositiveInt),
        seed=params.seed,
        device=observers.judge.device,
    )
    words = caption(params.benchmark_name, prepared.stand_in)
    val = LabelledImages(prepared.images("val"), prepared.labels_of("val"))
    sheets = draw_plates(sets, seen["raw"].predicted("gate"), val, prepared.labels, prepared.slugs, words)
    pairs = draw_pairs(result.pairs, sets.accepted.images, prepared.images("train"), words)
    return result, {**sheets, "pairs": pairs}


def draw_pairs(pairs: Mapping[str, Pairs], generated: Rows, train: Rows, words: str) -> Image.Image:
    """Draws the generated images that are closest to training images beside these, closest first, a row per space.

    Args:
        pairs: by "features" and "pixels".
        generated, train: uint8 (N, H, W, 3), of which the pairs give indices.
        words: the line at the foot.
    """
    rows = []
    for space, found in pairs.items():
        blocks = [Block("generated", generated[found.images]), Block("nearest training image", train[found.nearest])]
        rows.append((SPACES[space], blocks))
    return draw_overview(rows, words, columns=max(2, *(len(found.images) for found in pairs.values())))
