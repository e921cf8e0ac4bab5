"""Where and in what number format things are computed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


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


def generator(*seed: int) -> torch.Generator:
    """A CPU generator for a tuple of numbers; different tuples give unrelated streams (numpy's SeedSequence)."""
    import torch

    return torch.Generator().manual_seed(mix_seed(*seed))


def mix_seed(*seed: int) -> int:
    """One 63-bit seed out of a tuple of numbers >= 0; tuples that differ, in length too, give unrelated seeds."""
    import numpy as np

    # SeedSequence pads with zeros, so without the length (s, 3) would be (s, 3, 0)
    return int(np.random.SeedSequence((*seed, len(seed))).generate_state(1, np.uint64)[0] >> np.uint64(1))
