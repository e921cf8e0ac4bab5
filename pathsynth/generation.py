"""Generates images and filters them: every wanted image is a slot, tried again until the gate sees the prompted tissue.

The noise of an image depends on (seed, tissue, slot, attempt) alone, so batches may be mixed at will, and made by any number of
processes. On a CPU an image is the same in any batch, byte for byte; on a GPU as far as float sums are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.archives import write_archive
from pathsynth.base_model import check_image_size, embed
from pathsynth.devices import autocast, dtype, filled_up, memory_faults
from pathsynth.errors import ModelError, QuotaError, one_line
from pathsynth.files import write_csv
from pathsynth.pixels import as_images
from pathsynth.processes import ALONE, Processes
from pathsynth.progress import bar
from pathsynth.settings import GenerationSettings
from pathsynth.slots import NOT_ASKED, Attempt, Slots

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import StableDiffusionPipeline


def generate_filtered(
    draw: Callable[[list[Attempt]], np.ndarray],
    gate: Callable[[np.ndarray], np.ndarray],
    slots: Slots,
    max_attempts: int,
    batch_size: int,
    processes: Processes = ALONE,
) -> None:
    """Fills all slots as far as the limit allows, and goes on where an interrupted run has stopped.

    It goes in rounds: every open slot is tried once, in batches that mix all tissues, then those that were rejected are open.
    The processes share the batches, which are the same for any number of processes.

    Args:
        draw: makes images, uint8 (n, H, W, 3), for n attempts.
        gate: gives probabilities, float (n, tissues), for images.
        slots: what is to be filled; only the first process's keeps anything.
        max_attempts: most tries per slot.
        batch_size: most images at a time.
        processes: who shares the work.
    """

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = gate(images)
        return probabilities.argmax(axis=1), probabilities.max(axis=1)

    recorded = _shared_record(slots, processes)
    attempts = first_attempts(slots.tissues, slots.per_tissue)
    with bar(None, "accepted", len(attempts)) as progress:
        while attempts:
            again = []
            for attempt, seen in _tried(attempts, draw, answer, slots, recorded, batch_size, processes):
                if seen == attempt.tissue:
                    progress.update()
                elif attempt.attempt + 1 < max_attempts:
                    again.append(Attempt(attempt.tissue, attempt.slot, attempt.attempt + 1))
            attempts = again


def generate_unfiltered(
    draw: Callable[[list[Attempt]], np.ndarray], slots: Slots, batch_size: int, processes: Processes = ALONE
) -> None:
    """Draws one image for every slot, asks no gate, and goes on where an interrupted run has stopped."""

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(images), NOT_ASKED), np.zeros(len(images))

    recorded, attempts = _shared_record(slots, processes), first_attempts(slots.tissues, slots.per_tissue)
    for _ in bar(_tried(attempts, draw, answer, slots, recorded, batch_size, processes), "drawing images", len(attempts)):
        pass


def _shared_record(slots: Slots, processes: Processes) -> dict[Attempt, int]:
    """What the first process has on record, on all of them."""
    return processes.gather(slots.recorded())[0]


def _tried(
    attempts: list[Attempt],
    draw: Callable[[list[Attempt]], np.ndarray],
    answer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    slots: Slots,
    recorded: dict[Attempt, int],
    batch_size: int,
    processes: Processes,
) -> Iterator[tuple[Attempt, int]]:
    """Each attempt, in order, with the tissue that was seen in it; what is not on record is drawn, and kept."""

    def look(batch: list[Attempt]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        if all(attempt in recorded for attempt in batch):
            return None
        images = draw(batch)
        return images, *answer(images)

    for batch, found in processes.share(in_batches(attempts, batch_size), look):
        if found is not None:
            slots.add(batch, *found)
        # looked up once each, so the record takes less and less memory
        seen = [recorded.pop(attempt) for attempt in batch] if found is None else found[1].tolist()
        yield from zip(batch, seen, strict=True)


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

    def draw_all(self, attempts: list[Attempt]) -> np.ndarray:
        """The same for any number of attempts, a batch at a time."""
        return np.concatenate([self(batch) for batch in in_batches(attempts, self.batch_size)])


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


def save_generated(folder: Path, slots: Slots, table: pd.DataFrame, channels: int = 3) -> None:
    """Writes raw.npz and accepted.npz in MedMNIST's format, grey ones with one channel, and attempts.csv."""
    write_archive(folder / "raw.npz", *slots.raw(), channels)
    write_archive(folder / "accepted.npz", *slots.accepted(), channels)
    write_csv(folder / "attempts.csv", table)
