"""From images to scores and pictures: what the stage evaluate and the command `score` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.classifier import Classifier
from pathsynth.evaluation import Evaluation, Pairs, evaluate
from pathsynth.extractors import Extractor
from pathsynth.generated import GeneratedSets, LabelledImages
from pathsynth.observed import Observers, observe, open_real
from pathsynth.plates import Block, caption, draw_overview, draw_plates
from pathsynth.prepared import Prepared
from pathsynth.rows import Rows
from pathsynth.settings import Params

if TYPE_CHECKING:
    from PIL import Image

SPACES = {"features": "closest by features", "pixels": "closest by pixels"}


def score_sets(
    sets: GeneratedSets,
    params: Params,
    prepared: Prepared,
    observed: Path,
    gate: Classifier,
    judge: Classifier,
    extractor: Extractor,
    scratch: Path,
) -> tuple[Evaluation, dict[str, Image.Image]]:
    """Looks at all generated images, scores them, and draws the plates and the closest pairs.

    Args:
        sets: the generated images.
        params: how they are scored.
        prepared: the real images.
        observed: folder in which the stage observe_real has left what was seen of them.
        gate, judge, extractor: who looks, besides the colour control.
        scratch: folder for what is seen, used meanwhile.

    Returns:
        The evaluation, and a picture per tissue, `overview` and `pairs`.

    Raises:
        DataError: when there are no raw images, or files do not belong together or cannot be written.
        MemoryFault: a batch does not fit into memory.
    """
    colour, real = open_real(observed, prepared, extractor)
    observers = Observers(gate, judge, colour, extractor)
    seen = {
        name: observe(scratch / "seen", name, images.images, images.labels, observers)
        for name, images in (("raw", sets.raw), ("accepted", sets.accepted), ("untuned", sets.untuned))
    }
    result = evaluate(
        sets,
        seen,
        real,
        slugs=prepared.slugs,
        extractor=extractor.name,
        realism=params.benchmark.evaluation.realism,
        generation=params.benchmark.generation,
        resamples=params.benchmark.evaluation.bootstrap_resamples,
        seed=params.seed,
        device=judge.device,
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
