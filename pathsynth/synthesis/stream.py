"""Images from a sentence, one batch after another: each attempt with its provenance and what the gate predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth import __version__
from pathsynth.classifiers.model import WEIGHTS as GATE_WEIGHTS
from pathsynth.core.devices import pad_batch_size
from pathsynth.core.errors import PathsynthError
from pathsynth.core.io import compute_sha256
from pathsynth.diffusion.adapter import WEIGHTS
from pathsynth.diffusion.base import base_name
from pathsynth.generation.slots import Attempt, first_attempts, in_batches
from pathsynth.synthesis.artifacts import Artifacts, check_trained
from pathsynth.synthesis.manifest import MAX_IMAGES
from pathsynth.synthesis.records import (
    BY_GATE,
    DISCLAIMER,
    MAX_GUIDANCE_SCALE,
    NOT_CHECKED,
    REJECTED,
    SAMPLING,
    STAND_IN_NOTICE,
    Record,
    compute_pixels_sha256,
)
from pathsynth.synthesis.sentences import is_label, match_label, normalize_sentence

if TYPE_CHECKING:
    from pathsynth.generation.sampler import Sampler

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class SyntheticImage:
    """One attempt at a requested image.

    Attributes:
        slot: which of the requested images it is meant for, from 0.
        image: uint8 (H, W, 3).
        record: its provenance, with the gate's prediction.
    """

    slot: int
    image: np.ndarray
    record: Record


def stream_images(
    sentence: str,
    n: int,
    *,
    artifacts: Artifacts,
    seed: int | None = None,
    gate: bool = True,
    max_attempts: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
) -> Iterator[list[SyntheticImage]]:
    """Synthesizes images as `synthesize` does, and yields every attempt, also the rejected ones, batch by batch.

    Every image is attempted once, then those that the gate rejected are attempted again, up to the limit.

    Args:
        sentence, n, artifacts, seed, gate, max_attempts, guidance_scale: as in `synthesize`.
        batch_size: images per batch, on a CPU rounded up by `pad_batch_size`; by default that of the parameters.

    Raises:
        SentenceError, PathsynthError: as in `synthesize`; at once, not when the first image is asked for.
    """
    from pathsynth.generation.sampler import Sampler

    _check_number("n", n, 1, MAX_IMAGES)
    dataset, generation = artifacts.dataset, artifacts.generation
    settings, seed = generation.sampler, artifacts.seed if seed is None else seed
    _check_number("seed", seed, 0, MAX_SEED)
    if guidance_scale is not None:
        if not 1 <= guidance_scale <= MAX_GUIDANCE_SCALE:
            raise PathsynthError(f"guidance_scale: {guidance_scale!r}; allowed: 1 to {MAX_GUIDANCE_SCALE}")
        settings = settings.model_copy(update={"guidance_scale": float(guidance_scale)})
    prompt, tissue = expand_prompt(sentence, artifacts, gate)
    if gate:
        check_trained(artifacts.gate_folder, "gate", "train_classifier@gate")
    sampler = Sampler(artifacts.pipeline, [prompt], settings, seed, dataset.image_size, dataset.channels)
    size = sampler.batch_size if batch_size is None else pad_batch_size(batch_size, artifacts.device)
    limit = generation.filter.max_attempts if max_attempts is None else max_attempts
    shared = _shared_values(artifacts, sampler, prompt, tissue)
    if not gate:
        return _sample(sampler, n, size, shared)
    classify, digest = artifacts.gate.probabilities, compute_sha256(artifacts.gate_folder / GATE_WEIGHTS)
    return _sample_and_check(sampler, classify, n, limit, size, dataset.slugs, {**shared, "gate_sha256": digest})


def expand_prompt(sentence: str, artifacts: Artifacts, gate: bool = True) -> tuple[str, int | None]:
    """Returns the prompt for a sentence and the label of its tissue, None for free text.

    Raises:
        SentenceError: if `gate` is True and the sentence does not name exactly one tissue.
    """
    labels = artifacts.dataset.label_names
    sentence = normalize_sentence(sentence, labels)
    for tissue, (label, prompt) in enumerate(zip(labels, artifacts.prompts, strict=True)):
        if is_label(sentence, label) or sentence == prompt:
            return prompt, tissue
    return sentence, match_label(sentence, labels) if gate else None


def format_versions() -> str:
    """Returns the versions that a record names."""
    from pathsynth.core.environment import package_versions

    versions = package_versions()
    return f"pathsynth {__version__}, diffusers {versions['diffusers']}, torch {versions['torch']}"


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise PathsynthError(f"{name}: {value!r}; allowed: whole numbers from {low} to {high}")


def _sample(sampler: Sampler, n: int, batch_size: int, shared: dict[str, Any]) -> Iterator[list[SyntheticImage]]:
    """Samples one image per slot without a gate."""
    for batch in in_batches(first_attempts(1, n), batch_size):
        images = sampler(batch)
        yield [_describe(sampler, each, image, NOT_CHECKED, shared) for each, image in zip(batch, images, strict=True)]


def _sample_and_check(
    sampler: Sampler,
    classify: Callable[[np.ndarray], np.ndarray],
    n: int,
    max_attempts: int,
    batch_size: int,
    slugs: Sequence[str],
    shared: dict[str, Any],
) -> Iterator[list[SyntheticImage]]:
    """Attempts each slot until the gate predicts the tissue or the limit is reached, in rounds as `generate_filtered`."""
    # the slots have a single tissue, so that a seed gives the same noise for every sentence
    attempts = first_attempts(1, n)
    while attempts:
        retries = []
        for batch in in_batches(attempts, batch_size):
            images = sampler(batch)
            described = []
            for each, image, row in zip(batch, images, classify(images), strict=True):
                label = int(row.argmax())
                checked = BY_GATE if slugs[label] == shared["tissue"] else REJECTED
                found = {"predicted": slugs[label], "confidence": round(float(row[label]), 4)}
                described.append(_describe(sampler, each, image, checked, {**shared, **found}))
                if checked == REJECTED and each.attempt + 1 < max_attempts:
                    retries.append(Attempt(0, each.slot, each.attempt + 1))
            yield described
        attempts = retries


def _shared_values(artifacts: Artifacts, sampler: Sampler, prompt: str, tissue: int | None) -> dict[str, Any]:
    """What the records of a request have in common."""
    dataset = artifacts.dataset
    return {
        "tissue": None if tissue is None else dataset.slugs[tissue],
        "prompt": prompt,
        **{name: getattr(sampler.settings, name) for name in SAMPLING},
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "benchmark": artifacts.benchmark,
        "base": base_name(artifacts.base),
        "lora": artifacts.lora,
        "unet_sha256": artifacts.unet_sha256,
        "lora_sha256": compute_sha256(artifacts.lora_folder / WEIGHTS),
        "made_with": format_versions(),
        "notice": STAND_IN_NOTICE if dataset.stand_in else DISCLAIMER,
    }


def _describe(sampler: Sampler, attempt: Attempt, image: np.ndarray, checked: str, values: dict[str, Any]) -> SyntheticImage:
    """An image and its record; rejected ones are named after their attempt, because a slot may have several."""
    rejected = f"_rejected_{attempt.attempt + 1}" if checked == REJECTED else ""
    own: dict[str, Any] = {
        "file": f"{values['tissue'] or 'image'}_{attempt.slot + 1:04d}{rejected}.png",
        "seed": attempt.seed(sampler.seed),
        "attempt": attempt.attempt,
        "checked": checked,
        "pixels_sha256": compute_pixels_sha256(image),
    }
    return SyntheticImage(attempt.slot, image, Record(**own, **values))
