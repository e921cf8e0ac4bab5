"""Named random streams: every purpose and every image has a seed of its own."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """What random numbers are for: no two purposes share a stream."""

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


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's own random numbers, of which dropout's are."""
    import torch

    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})}


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Takes up what `random_state` gave."""
    import torch

    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def generator(stream: Stream, *seed: int) -> torch.Generator:
    """A CPU generator for a purpose and a tuple of numbers, see `mix_seed`."""
    import torch

    return torch.Generator().manual_seed(mix_seed(stream, *seed))


def mix_seed(stream: Stream, *seed: int) -> int:
    """One 63-bit seed out of a purpose and numbers >= 0; what differs, in length too, gives unrelated seeds.

    By numpy's SeedSequence, which is made for this.
    """
    import numpy as np

    # SeedSequence pads with zeros, so without the length (s, 3) would be (s, 3, 0)
    return int(np.random.SeedSequence((stream, *seed, len(seed))).generate_state(1, np.uint64)[0] >> np.uint64(1))
