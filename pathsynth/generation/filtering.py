"""Generates images and filters them: every wanted image is a slot, tried again until the gate sees the prompted tissue.

The noise of an image depends on (seed, tissue, slot, attempt) alone, so batches may be mixed at will, and made by any number of
processes. On a CPU an image is the same in any batch, byte for byte; on a GPU as far as float sums are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.errors import QuotaError
from pathsynth.core.io import write_csv
from pathsynth.core.progress import bar
from pathsynth.data.archives import write_archive
from pathsynth.generation.slots import NOT_ASKED, Attempt, Slots, first_attempts, in_batches

if TYPE_CHECKING:
    import pandas as pd


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
