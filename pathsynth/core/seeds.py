"""Named random streams: every purpose and every image has its own seed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from pathsynth.core.gpu import gpu_available

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """Purposes of random numbers; no two share a stream."""

    CLASSIFIER_WEIGHTS = 1
    CLASSIFIER_BATCHES = 2
    LORA_WEIGHTS = 3
    LORA_NOISE = 4
    LORA_BATCHES = 5
    IMAGES = 6
    LORA_VIEWS = 7
    LORA_ROTATIONS = 8
    USEFULNESS = 9
    DRAWN = 10
    MEMORISATION = 11
    DIVISION = 12
    SELECTION = 13
    VALIDATION = 14
    SHEETS = 15


def mix_seed(stream: Stream, *seed: int) -> int:
    """Mixes a purpose and non-negative integers into a 63-bit seed with numpy's SeedSequence.

    Tuples that differ, also in length, give independent seeds.
    """
    import numpy as np

    # SeedSequence pads with zeros, so without the length (s, 3) would equal (s, 3, 0)
    return int(np.random.SeedSequence((stream, *seed, len(seed))).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(stream: Stream, *seed: int) -> torch.Generator:
    """Creates a CPU generator that is seeded with `mix_seed`."""
    import torch

    return torch.Generator().manual_seed(mix_seed(stream, *seed))


def get_random_state() -> dict[str, torch.Tensor]:
    """Returns the state of torch's global generators, which dropout uses."""
    import torch

    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if gpu_available() else {})}


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Restores a state that `get_random_state` returned."""
    import torch

    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
