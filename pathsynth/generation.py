"""Generates images and filters them: every wanted image is a slot, tried again until the gate sees the prompted tissue.

The noise of an image depends on (seed, tissue, slot, attempt) alone, so batches may be mixed at will, and made by any number of
processes. On a CPU an image is the same in any batch, byte for byte; on a GPU as far as float sums are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.archives import write_archive
from pathsynth.base_model import check_image_size, embed
from pathsynth.devices import Stream, autocast, dtype, filled_up, memory_faults, mix_seed
from pathsynth.errors import ModelError, QuotaError, one_line
from pathsynth.files import write_csv
from pathsynth.generated import ATTEMPT_COLUMNS
from pathsynth.pixels import as_images
from pathsynth.processes import ALONE, Processes
from pathsynth.progress import bar
from pathsynth.settings import GenerationSettings

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Attempt:
    """One try at one slot of one tissue, all counted from 0."""

    tissue: int
    slot: int
    attempt: int

    def seed(self, seed: int) -> int:
        """The seed of this try's noise, 63 bits."""
        return mix_seed(Stream.IMAGES, seed, self.tissue, self.slot, self.attempt)


@dataclass
class Filtered:
    """What came out: one row per attempt, the first try of every slot, the accepted image of every filled slot."""

    rows: list[dict] = field(default_factory=list)
    raw: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    accepted: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def add(self, attempt: Attempt, image: np.ndarray, probabilities: np.ndarray, seed: int, *, keep: bool) -> bool:
        """Takes in one try; tells whether the gate accepts it. The image is kept only where it is wanted."""
        predicted = int(probabilities.argmax())
        accepted = predicted == attempt.tissue
        self.rows.append(_row(attempt, seed, predicted, float(probabilities[predicted]), accepted))
        key = (attempt.tissue, attempt.slot)
        if keep and attempt.attempt == 0:
            self.raw[key] = image
        if keep and accepted:
            self.accepted[key] = image
        return accepted

    def archive(self, images: dict[tuple[int, int], np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, size, size, 3) and labels uint8 (N,) of `raw` or `accepted`, by tissue, then slot."""
        keys = sorted(images)
        stacked = np.stack([images[key] for key in keys]) if keys else np.zeros((0, size, size, 3), np.uint8)
        return stacked, np.array([tissue for tissue, _ in keys], np.uint8)

    def table(self, slugs: Sequence[str]) -> pd.DataFrame:
        """One row per attempt, by tissue, slot and attempt, with the columns of `ATTEMPT_COLUMNS`."""
        import pandas as pd

        rows = sorted(self.rows, key=lambda row: (row["tissue"], row["slot"], row["attempt"]))
        frame = pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))
        for column in ("tissue", "predicted"):
            frame[column] = [slugs[label] for label in frame[column]]
        return frame


def generate_filtered(
    draw: Callable[[list[Attempt]], np.ndarray],
    gate: Callable[[np.ndarray], np.ndarray],
    tissues: int,
    images_per_tissue: int,
    max_attempts: int,
    batch_size: int,
    seed: int,
    processes: Processes = ALONE,
) -> Filtered:
    """Fills `images_per_tissue` slots of every tissue.

    It goes in rounds: every open slot is tried once, in batches that mix all tissues, then those that were rejected are open.
    The processes share the batches, which are the same for any number of processes.

    Args:
        draw: makes images, uint8 (n, H, W, 3), for n attempts.
        gate: gives probabilities, float (n, tissues), for images.
        tissues: number of tissues.
        images_per_tissue: slots of each.
        max_attempts: most tries per slot.
        batch_size: most images at a time.
        seed: global seed, written into the rows as each image's own seed.
        processes: who shares the work.

    Returns:
        All rows on every process; images on the first one alone, which writes them.
    """

    def look(batch: list[Attempt]) -> tuple[np.ndarray, np.ndarray]:
        images = draw(batch)
        return images, gate(images)

    result = Filtered()
    attempts = first_attempts(tissues, images_per_tissue)
    progress = bar(None, "accepted", len(attempts))
    while attempts:
        again = []
        for batch, (images, probabilities) in processes.share(in_batches(attempts, batch_size), look):
            for attempt, image, p in zip(batch, images, probabilities, strict=True):
                accepted = result.add(attempt, image, p, seed, keep=processes.main)
                if not accepted and attempt.attempt + 1 < max_attempts:
                    again.append(Attempt(attempt.tissue, attempt.slot, attempt.attempt + 1))
                progress.update(accepted)
        attempts = again
    progress.close()
    return result


def first_attempts(tissues: int, images_per_tissue: int) -> list[Attempt]:
    """The first try at every slot, by tissue, then slot."""
    return [Attempt(tissue, slot, 0) for tissue in range(tissues) for slot in range(images_per_tissue)]


def in_batches(attempts: list[Attempt], size: int) -> list[list[Attempt]]:
    """The attempts in order, `size` at a time."""
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]


class Sampler:
    """Draws attempts with a stock pipeline: each row its own prompt and its own noise.

    Attributes:
        batch_size: images at a time; that of the settings, on a CPU rounded up, see `devices.filled_up`.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: list[str],
        settings: GenerationSettings,
        seed: int,
        image_size: int,
        channels: int = 3,
    ):
        check_image_size(pipeline, image_size)
        set_scheduler(pipeline, settings.scheduler)
        self.pipeline = pipeline.to(dtype(settings.weight_dtype))
        self.settings, self.seed, self.image_size, self.channels = settings, seed, image_size, channels
        self.batch_size = filled_up(settings.batch_size, pipeline.device.type)
        self.positive = embed(pipeline, prompts)
        self.negative = embed(pipeline, [settings.negative_prompt])

    def __call__(self, attempts: list[Attempt]) -> np.ndarray:
        """Images, uint8 (n, size, size, 3), of the attempts; their channels are equal where grey ones are wanted."""
        spare = filled_up(len(attempts), self.pipeline.device.type) - len(attempts)
        images = self._draw([*attempts, *[attempts[-1]] * spare])[: len(attempts)]
        if not images.isfinite().all():
            raise ModelError("base or LoRA", "draws pixels that are no numbers; train the LoRA with a lower learning rate")
        if self.channels == 1:
            images = images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return as_images(images)

    def _draw(self, attempts: list[Attempt]) -> torch.Tensor:
        """NCHW in [0, 1]."""
        import torch

        generators = [torch.Generator().manual_seed(attempt.seed(self.seed)) for attempt in attempts]
        with (
            torch.inference_mode(),
            autocast(self.pipeline.device.type, self.settings.mixed_precision),
            memory_faults(f"lower generation.batch_size ({self.settings.batch_size}), or set generation.weight_dtype: bf16"),
        ):
            return self.pipeline(
                prompt_embeds=self.positive[[attempt.tissue for attempt in attempts]],
                negative_prompt_embeds=self.negative.expand(len(attempts), -1, -1),
                generator=generators,
                height=self.image_size,
                width=self.image_size,
                num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                output_type="pt",
            ).images

    def draw_all(self, attempts: list[Attempt], processes: Processes = ALONE) -> np.ndarray:
        """The same for any number of attempts, a batch at a time, shared by the processes."""
        batches = in_batches(attempts, self.batch_size)
        done = bar(processes.share(batches, self), "drawing images", len(batches))
        return np.concatenate([images for _, images in done])


def set_scheduler(pipeline: StableDiffusionPipeline, name: str) -> None:
    """Swaps the pipeline's scheduler for the diffusers class `name`, keeping noise schedule and prediction type."""
    known = {kind.__name__: kind for kind in (type(pipeline.scheduler), *pipeline.scheduler.compatibles)}
    if name not in known:
        raise ModelError("generation.scheduler", f"{name!r} does not suit the base; allowed: {', '.join(sorted(known))}")
    try:
        pipeline.scheduler = known[name].from_config(pipeline.scheduler.config)
    except ImportError as error:
        raise ModelError("generation.scheduler", f"{name!r} cannot be used here: {one_line(error)}") from error


def generation_metrics(table: pd.DataFrame, slugs: Sequence[str], images_per_tissue: int) -> dict:
    """Counts of attempts: `attempted`, `accepted`, `acceptance_rate`, `unfilled`, in all and per tissue."""

    def counts(rows: pd.DataFrame, wanted: int) -> dict:
        accepted = int(rows["accepted"].sum())
        rate = round(accepted / len(rows), 6) if len(rows) else 0.0
        return {"attempted": len(rows), "accepted": accepted, "acceptance_rate": rate, "unfilled": wanted - accepted}

    per_tissue = {slug: counts(table[table["tissue"] == slug], images_per_tissue) for slug in slugs}
    return {**counts(table, images_per_tissue * len(slugs)), "per_tissue": per_tissue}


def check_quota(metrics: dict, images_per_tissue: int, quota: float) -> None:
    """Raises QuotaError where a tissue has less than `quota` of its slots filled."""
    short = {slug: m["accepted"] for slug, m in metrics["per_tissue"].items() if m["accepted"] < quota * images_per_tissue}
    if short:
        listed = ", ".join(f"{slug} {accepted}/{images_per_tissue}" for slug, accepted in short.items())
        raise QuotaError(
            f"too few images accepted: {listed}; the quota is {quota:.0%} (params: generation.quota, generation.max_attempts)"
        )


def _row(attempt: Attempt, seed: int, predicted: int, confidence: float, accepted: bool) -> dict:
    return {
        "tissue": attempt.tissue,
        "slot": attempt.slot,
        "attempt": attempt.attempt,
        "seed": attempt.seed(seed),
        "predicted": predicted,
        "confidence": round(confidence, 4),
        "accepted": int(accepted),
    }


def save_generated(folder: Path, result: Filtered, table: pd.DataFrame, size: int, channels: int = 3) -> None:
    """Writes raw.npz and accepted.npz in MedMNIST's format, grey ones with one channel, and attempts.csv."""
    write_archive(folder / "raw.npz", *result.archive(result.raw, size), channels)
    write_archive(folder / "accepted.npz", *result.archive(result.accepted, size), channels)
    write_csv(folder / "attempts.csv", table)
