"""Images from a sentence: sample with base and LoRA, retry what the gate rejects, and redraw what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.io import compute_sha256
from pathsynth.core.progress import progress_bar
from pathsynth.diffusion.adapter import WEIGHTS
from pathsynth.synthesis.artifacts import Artifacts, load_artifacts
from pathsynth.synthesis.records import NOT_CHECKED, REJECTED, SAMPLING, Record, compute_pixels_sha256
from pathsynth.synthesis.stream import format_versions, stream_images


class OtherWeights(DataError):
    """A record of an image that other weights drew; `problem` says so without a remedy."""

    def __init__(self, file: str, name: str, recorded: str, actual: str):
        problem = f"was generated with different weights: {name} {recorded[:12]}, these have {actual[:12]}"
        super().__init__(file, f"{problem}; --lora and --artifacts select others")
        self.problem = f"{file}: {problem}"


@dataclass(frozen=True)
class SyntheticImages:
    """The result of a request.

    Attributes:
        images: uint8 (N, H, W, 3).
        records: the provenance of each image.
        requested: number of requested images.
        attempted: number of sampled images.
    """

    images: np.ndarray
    records: list[Record]
    requested: int
    attempted: int


def synthesize(
    sentence: str,
    n: int = 1,
    *,
    artifacts: Path | Artifacts = Path(),
    seed: int | None = None,
    gate: bool = True,
    max_attempts: int | None = None,
    guidance_scale: float | None = None,
) -> SyntheticImages:
    """Synthesizes images of the tissue that a sentence names, and keeps those that the gate accepts.

    Args:
        sentence: for example "a histopathological image of an area with mucus". A bare tissue name is expanded to its training
            prompt.
        n: number of images, from 1 to MAX_IMAGES.
        artifacts: folder of the artifacts, or the result of `load_artifacts`, which loads the models once for many calls.
        seed: from 0 to 2**32 - 1; by default that of the parameters. It gives the same noise for every sentence.
        gate: False accepts any text and does not filter.
        max_attempts: limit of attempts per image; by default that of the parameters.
        guidance_scale: weight of the text, from 1 to MAX_GUIDANCE_SCALE; by default that of the parameters.

    Returns:
        The accepted images, which may be fewer than requested.

    Raises:
        SentenceError: if the sentence does not name exactly one tissue and `gate` is True.
        PathsynthError: if an artifact is missing or damaged, or a number is out of range.
    """
    artifacts = artifacts if isinstance(artifacts, Artifacts) else load_artifacts(Path(artifacts))
    options: dict[str, Any] = {"seed": seed, "max_attempts": max_attempts, "guidance_scale": guidance_scale}
    batches = stream_images(sentence, n, artifacts=artifacts, gate=gate, **options)
    size = artifacts.dataset.image_size
    # allocated once, because a list of many large images and an array of them would not fit into memory together
    images, records, attempted = np.empty((n, size, size, 3), np.uint8), {}, 0
    with progress_bar(None, "accepted" if gate else "images", n) as progress:
        for batch in batches:
            attempted += len(batch)
            for made in batch:
                if made.record.checked != REJECTED:
                    images[made.slot], records[made.slot] = made.image, made.record
                    progress.update()
    slots = sorted(records)
    kept = images if len(slots) == n else images[slots]
    return SyntheticImages(kept, [records[slot] for slot in slots], n, attempted)


def redraw(records: Sequence[Record], *, artifacts: Path | Artifacts = Path()) -> SyntheticImages:
    """Redraws recorded images. On the same CPU the pixels are the same.

    Returns:
        The images and their records. An image whose pixels differ from the recorded ones counts as not checked.

    Raises:
        DataError: if UNet or LoRA differ from the recorded ones, a tissue is unknown, or the images differ in size.
    """
    artifacts = artifacts if isinstance(artifacts, Artifacts) else load_artifacts(Path(artifacts))
    _check_records(records, artifacts)
    size = records[0].image_size
    images = np.empty((len(records), size, size, 3), np.uint8)
    groups: dict[tuple, list[int]] = {}
    for index, record in enumerate(records):
        key = tuple(getattr(record, name) for name in ("prompt", "channels", *SAMPLING))
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        images[indices] = _redraw_group([records[index] for index in indices], artifacts)
    made_with = format_versions()
    redrawn = [_update_record(record, image, made_with) for record, image in zip(records, images, strict=True)]
    return SyntheticImages(images, redrawn, len(images), len(images))


def _check_records(records: Sequence[Record], artifacts: Artifacts) -> None:
    slugs, sizes = artifacts.dataset.slugs, sorted({record.image_size for record in records})
    checksums = {"unet_sha256": artifacts.unet_sha256, "lora_sha256": compute_sha256(artifacts.lora_folder / WEIGHTS)}
    for record in records:
        for name, actual in checksums.items():
            recorded = getattr(record, name)
            if recorded != actual:
                raise OtherWeights(record.file, name, recorded, actual)
        if record.tissue not in (None, *slugs):
            raise DataError(record.file, f"tissue: {record.tissue} is unknown; allowed: {', '.join(slugs)}")
    if len(sizes) != 1:
        found = ", ".join(map(str, sizes)) or "none"
        raise DataError("records", f"must all have the same image size, found: {found}; redraw the sizes separately")


def _redraw_group(records: Sequence[Record], artifacts: Artifacts) -> np.ndarray:
    """Redraws records that differ only in their seeds."""
    from pathsynth.generation.sampler import Sampler

    first, configured = records[0], artifacts.generation.sampler
    settings = configured.model_copy(update={name: getattr(first, name) for name in SAMPLING})
    # a sampler converts the weights to its format, which cannot be undone
    same_format = settings.weight_dtype == configured.weight_dtype
    pipeline = artifacts.pipeline if same_format else artifacts.load_pipeline()
    sampler = Sampler(pipeline, [first.prompt], settings, 0, first.image_size, first.channels)
    return sampler.sample([0] * len(records), [record.seed for record in records])


def _update_record(record: Record, image: np.ndarray, made_with: str) -> Record:
    """The record of a redrawn image; the gate's prediction holds only for the same pixels."""
    pixels = compute_pixels_sha256(image)
    update: dict[str, Any] = {"made_with": made_with, "pixels_sha256": pixels}
    if pixels != record.pixels_sha256:
        update |= {"checked": NOT_CHECKED, "predicted": None, "confidence": None, "gate_sha256": None}
    return record.model_copy(update=update)
