"""Devices, number formats and memory errors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from pathsynth.core.errors import OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Out-of-memory messages of the CPU allocator and of libraries below torch, which raise no specific exception class.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
# On a CPU, torch's kernels change the order of summation for small or odd batch sizes. At multiples of this size, rounding is
# the same on any number of threads. Batches are padded to it, so that an image does not depend on the rest of its batch.
CPU_BATCH = 16
# NVIDIA's number as a vendor of PCI devices, and where Linux lists them.
NVIDIA = "0x10de"
PCI_DEVICES = Path("/sys/bus/pci/devices")
# What torch has said about CUDA.
_warnings: list[str] = []
# 16 x 16 latents, the size that the bundled base uses.
MAX_PLAIN_ATTENTION = 256


def pick_device(deterministic: bool = False) -> str:
    """Returns this process's own GPU if there is one, else `cpu`, and names it once on stderr.

    Args:
        deterministic: whether to restrict a GPU to kernels that sum in a fixed order. All CPU kernels do.
    """
    _report_device()
    if not gpu_available():
        return "cpu"
    if deterministic:
        import torch

        # cuBLAS reads it at its first use
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


@functools.cache
def _report_device() -> None:
    import click

    if os.environ.get("RANK", "0") == "0":
        click.echo(f"device: {describe_device()}", err=True)


def gpu_available() -> bool:
    """Returns whether torch can use a GPU; every module asks here.

    torch warns of a driver that it cannot use, once in a process, and then behaves as if there were none.
    """
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    _warnings.extend(str(each.message) for each in caught if "CUDA" in str(each.message))
    return available


def describe_device() -> str:
    """Names the GPU, or the CPU's threads and the reason why no GPU is used."""
    import torch

    if gpu_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''} ({_explain_missing_gpu()})"


def _explain_missing_gpu() -> str:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA"
    if visible is not None and not visible.startswith((*"0123456789", "GPU-", "MIG-")):
        return f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs"
    if _warnings:
        # the first sentences have the versions, the rest is advice for those who compile PyTorch
        return shorten(_warnings[0].removeprefix("CUDA initialization: "), 200, placeholder=" ...")
    if not any(path.read_text().strip() == NVIDIA for path in PCI_DEVICES.glob("*/vendor")):
        return "no NVIDIA GPU found"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} names no GPU of this machine"
    return "there is an NVIDIA GPU, but no driver for it; in a container, start it with --gpus all"


def autocast(device: str, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Returns a torch.autocast for `mixed_precision` in `no`, `bf16`, `fp16`, see `supported_precision`."""
    import torch

    if supported_precision(device, mixed_precision) == "no":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype(mixed_precision))


def supported_precision(device: str, mixed_precision: str) -> str:
    """Returns `mixed_precision`, or `no` on a CPU without kernels for it.

    Such CPUs, those without AVX-512, emulate bf16: a training step takes 13 to 35 times as long as in fp32.
    """
    return mixed_precision if device != "cpu" or mixed_precision != "bf16" or _has_bf16_kernels() else "no"


@functools.cache
def _has_bf16_kernels() -> bool:
    """Whether this CPU has kernels for bf16; says once on stderr that it has none."""
    import click
    import torch

    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not supported:
        click.echo("this CPU has no bf16 kernels: computing in fp32 instead", err=True)
    return supported


def dtype(name: str) -> torch.dtype:
    """Returns the torch dtype for `fp32`, `bf16` or `fp16`."""
    import torch

    return getattr(torch, DTYPES[name])


def training_attention(device: str, pixels: int) -> contextlib.AbstractContextManager:
    """Returns a context that selects the fastest attention kernel for training.

    On a CPU the backward pass of torch's fused attention takes three times as long as plain matrix products for small images.
    Plain products store the attention maps, so large images use the fused kernel.

    Args:
        device: torch device.
        pixels: height x width of the latents, the longest sequence of attention.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device != "cpu" or pixels > MAX_PLAIN_ATTENTION:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def pad_batch_size(count: int, device: str) -> int:
    """Returns the batch size to compute for `count` images: on a CPU the next multiple of CPU_BATCH."""
    return -(-count // CPU_BATCH) * CPU_BATCH if device == "cpu" else count


def pad_rows(count: int, device: str) -> np.ndarray:
    """Returns the rows to compute for `count` images, at least 1, int64 (n,): on a CPU the last one is repeated as padding."""
    import numpy as np

    return np.minimum(np.arange(pad_batch_size(count, device)), count - 1)


@contextlib.contextmanager
def catch_out_of_memory(hint: str) -> Iterator[None]:
    """Converts out-of-memory errors of torch and its libraries to a one-line error with a hint, such as a parameter to lower.

    Raises:
        OutOfMemory: if the device or the machine runs out of memory.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in OUT_OF_MEMORY_TEXTS):
            raise
        raise OutOfMemory(hint) from error
