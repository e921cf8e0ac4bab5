"""Where and in what number format things are computed."""

from __future__ import annotations

import contextlib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class Stream(IntEnum):
    """What random numbers are for: no two purposes share a stream."""

    CLASSIFIER_WEIGHTS = 1
    CLASSIFIER_BATCHES = 2
    LORA_WEIGHTS = 3
    LORA_NOISE = 4
    LORA_BATCHES = 5
    IMAGES = 6


def pick_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str, mixed_precision: str) -> contextlib.AbstractContextManager:
    """A torch.autocast for `mixed_precision` in `no`, `bf16`, `fp16`."""
    import torch

    if mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device, getattr(torch, DTYPES[mixed_precision]))


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
