"""Filtered generation: each slot is attempted until the gate predicts the prompted tissue, up to a limit.

The noise of an image depends only on seed, tissue, slot and attempt, so batches may mix slots freely and be spread over any
number of processes. On a CPU an image does not depend on its batch; on a GPU it does within rounding error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.errors import QuotaError
from pathsynth.core.io import write_csv
from pathsynth.core.progress import progress_bar
from pathsynth.data.archives import write_archive
from pathsynth.generation.slots import UNCHECKED, Attempt, Slots, first_attempts, in_batches

if TYPE_CHECKING:
    import pandas as pd

Sample = Callable[[list[Attempt]], np.ndarray]
Classify = Callable[[np.ndarray], np.ndarray]


def generate_filtered(
    sample: Sample,
    gate: Classify,
    slots: Slots,
    max_attempts: int,
    batch_size: int,
    processes: Processes = ALONE,
) -> None:
    """Attempts each slot until the gate accepts an image or the limit is reached; an interrupted run resumes.

    Works in rounds: each round attempts every unfilled slot once, in batches that mix all tissues. Batches are distributed over
    the processes and do not depend on their number.

    Args:
        sample: makes images, uint8 (n, H, W, 3), for n attempts.
        gate: gives class probabilities, float (n, tissues), for images.
        slots: the slots to fill; only the main process records attempts.
        max_attempts: limit of attempts per slot.
        batch_size: images per batch.
        processes: those that share the work.
    """
    recorded = processes.gather(slots.recorded())[0]
    attempts = first_attempts(slots.tissues, slots.per_tissue)
    with progress_bar(None, "accepted", len(attempts)) as progress:
        while attempts:
            retries = []
            for attempt, predicted in _predict(attempts, sample, gate, slots, recorded, batch_size, processes):
                if predicted == attempt.tissue:
                    progress.update()
                elif attempt.attempt + 1 < max_attempts:
                    retries.append(Attempt(attempt.tissue, attempt.slot, attempt.attempt + 1))
            attempts = retries


def generate_unfiltered(sample: Sample, slots: Slots, batch_size: int, processes: Processes = ALONE) -> None:
    """Samples one image per slot without a gate; an interrupted run resumes."""
    recorded = processes.gather(slots.recorded())[0]
    attempts = first_attempts(slots.tissues, slots.per_tissue)
    for _ in progress_bar(_predict(attempts, sample, None, slots, recorded, batch_size, processes), "images", len(attempts)):
        pass


def _predict(
    attempts: list[Attempt],
    sample: Sample,
    gate: Classify | None,
    slots: Slots,
    recorded: dict[Attempt, int],
    batch_size: int,
    processes: Processes,
) -> Iterator[tuple[Attempt, int]]:
    """Yields each attempt, in order, with the predicted tissue; samples and records those that are not recorded yet."""

    def run(batch: list[Attempt]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        if all(attempt in recorded for attempt in batch):
            return None
        images = sample(batch)
        if gate is None:
            return images, np.full(len(images), UNCHECKED), np.zeros(len(images))
        probabilities = gate(images)
        return images, probabilities.argmax(axis=1), probabilities.max(axis=1)

    for batch, result in processes.share(in_batches(attempts, batch_size), run):
        if result is not None:
            slots.add(batch, *result)
        # popped, to free memory: each is needed only once
        predicted = [recorded.pop(attempt) for attempt in batch] if result is None else result[1].tolist()
        yield from zip(batch, predicted, strict=True)


def generation_metrics(table: pd.DataFrame, slugs: Sequence[str], images_per_tissue: int) -> dict:
    """Counts attempts, in all and per tissue: `attempted`, `accepted`, `acceptance_rate`, `unfilled`."""

    def counts(rows: pd.DataFrame, requested: int) -> dict:
        accepted = int(rows["accepted"].sum())
        rate = round(accepted / len(rows), 6) if len(rows) else 0.0
        return {"attempted": len(rows), "accepted": accepted, "acceptance_rate": rate, "unfilled": requested - accepted}

    per_tissue = {slug: counts(table[table["tissue"] == slug], images_per_tissue) for slug in slugs}
    return {**counts(table, images_per_tissue * len(slugs)), "per_tissue": per_tissue}


def check_quota(metrics: dict, images_per_tissue: int, quota: float) -> None:
    """Raises QuotaError if less than the fraction `quota` of a tissue's slots is filled."""
    short = {slug: m["accepted"] for slug, m in metrics["per_tissue"].items() if m["accepted"] < quota * images_per_tissue}
    if short:
        counts = ", ".join(f"{slug} {accepted}/{images_per_tissue}" for slug, accepted in short.items())
        remedy = "raise generation.filter.0.max_attempts or lower generation.filter.0.quota"
        raise QuotaError(f"too few images accepted: {counts}; the quota is {quota:.0%}; {remedy}")


def save_generated(folder: Path, slots: Slots, table: pd.DataFrame, channels: int = 3) -> None:
    """Writes raw.npz and accepted.npz in MedMNIST's format, grey ones with one channel, and attempts.csv."""
    write_archive(folder / "raw.npz", *slots.raw(), channels)
    write_archive(folder / "accepted.npz", *slots.accepted(), channels)
    write_csv(folder / "attempts.csv", table)
