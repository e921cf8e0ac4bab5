"""Where and in what number format things are computed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pathsynth.core.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
# On a CPU torch's kernels sum in another order for small or odd batches, and round as before from this size on and in multiples
# of it, on any number of threads. So batches are filled up to it, and no image depends on the images beside it.
CPU_BATCH = 16
# Latents of 16 x 16, those of the bundled base.
MOST_PLAIN_ATTENTION = 256


def pick_device(deterministic: bool = False) -> str:
    """A GPU where there is one, this process's own where there are several processes, else `cpu`.

    Args:
        deterministic: whether a GPU may use no kernel whose sums come in another order each time. On a CPU none do.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    if deterministic:
        # read by cuBLAS when it is first used
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def autocast(device: str, mixed_precision: str) -> contextlib.AbstractContextManager:
    """A torch.autocast for `mixed_precision` in `no`, `bf16`, `fp16`."""
    import torch

    if mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype(mixed_precision))


def dtype(name: str) -> torch.dtype:
    """The number format `fp32`, `bf16` or `fp16`."""
    import torch

    return getattr(torch, DTYPES[name])


def training_attention(device: str, pixels: int) -> contextlib.AbstractContextManager:
    """The way in which attention is computed while it learns, as a context.

    On a CPU the backward pass of torch's fused attention takes three times as long as plain matrix products where images are
    small; the products keep their attention maps, so large images go on with what is fused.

    Args:
        device: torch device.
        pixels: of the latents, the most that can attend to each other.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device != "cpu" or pixels > MOST_PLAIN_ATTENTION:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def pad_batch_size(count: int, device: str) -> int:
    """The batch size that is computed for `count` images: on a CPU the next multiple of CPU_BATCH."""
    return -(-count // CPU_BATCH) * CPU_BATCH if device == "cpu" else count


@contextlib.contextmanager
def catch_out_of_memory(remedy: str) -> Iterator[None]:
    """Turns a full memory into one line that says which parameter to lower.

    Raises:
        OutOfMemory: the device's memory, or the machine's, is full.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # some libraries below torch, and the CPU, have no class of their own for this
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise OutOfMemory(remedy) from error
