"""Devices, number formats, and running out of memory."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pathsynth.core.errors import OutOfMemory
from pathsynth.core.gpu import check_device, explain_missing_gpu, gpu_available

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pathsynth.core.params import Device

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Out-of-memory messages of the CPU allocator and of libraries below torch, which raise no specific exception class.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
# On a CPU, torch's kernels change the order of summation for small or odd batch sizes. At multiples of this size, rounding is
# the same on any number of threads. Batches are padded to it, so that an image does not depend on the rest of its batch.
CPU_BATCH = 16
# CPU features with which torch multiplies in bf16: of x86, then of ARM.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
# 16 x 16 latents, the size that the bundled base uses.
MAX_PLAIN_ATTENTION = 256


def pick_device(device: Device, deterministic: bool = False) -> str:
    """Returns this process's GPU if there is one and `device` allows it, else `cpu`, and names it once on stderr.

    Args:
        device: `auto`, `cuda` or `cpu`, as in params.yaml.
        deterministic: whether to restrict a GPU to kernels that sum in a fixed order. All CPU kernels do.

    Raises:
        DeviceError: as `check_device`.
    """
    check_device(device)
    _report_device(device)
    if device == "cpu" or not gpu_available():
        return "cpu"
    import torch

    if deterministic:
        # cuBLAS reads it at its first use
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if "LOCAL_RANK" not in os.environ:
        return "cuda"
    # clusters may show each process only its own GPU; accelerate picks the same
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


@functools.cache
def _report_device(device: Device) -> None:
    import click

    if os.environ.get("RANK", "0") == "0":
        click.echo(f"device: {describe_device(device)}", err=True)


def describe_device(device: Device = "auto") -> str:
    """Names the GPU, or the CPU's threads and the reason why no GPU is used, and how many GPUs or processes there are."""
    import torch

    size = int(os.environ.get("WORLD_SIZE", "1"))
    processes = f", {size} processes" if size > 1 else ""
    if device != "cpu" and gpu_available():
        count = torch.cuda.device_count()
        return torch.cuda.get_device_name() + (processes or (f" (1 of {count})" if count > 1 else ""))
    threads = torch.get_num_threads()
    reason = "params: device: cpu" if device == "cpu" else explain_missing_gpu()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}{processes} ({reason})"


def autocast(device: str, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Returns a torch.autocast for `mixed_precision` in `no`, `bf16`, `fp16`, see `supported_precision`."""
    import torch

    if supported_precision(device, mixed_precision) == "no":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype(mixed_precision))


def supported_precision(device: str, mixed_precision: str) -> str:
    """Returns `mixed_precision`, or `no` on a CPU without instructions for it; warns of a GPU that emulates bf16.

    On a CPU, fp16 is never used. Without AVX-512 BF16 or AMX it would emulate bf16: a training step takes 1.9 times as long as
    in fp32 with other AVX-512, and 13 to 35 times without any.
    """
    if device == "cpu":
        return "bf16" if mixed_precision == "bf16" and computes_bf16(device) else "no"
    if mixed_precision == "bf16":
        _warn_of_emulated_bf16()
    return mixed_precision


def computes_bf16(device: str) -> bool:
    """Whether a device has instructions for bf16; says once on stderr if this CPU has none."""
    import torch

    return _has_bf16_instructions() if device == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def _warn_of_emulated_bf16() -> None:
    """Warns once if the GPU emulates bf16 (before Ampere)."""
    import click
    import torch

    if not computes_bf16("cuda") and os.environ.get("RANK", "0") == "0":
        remedy = "set mixed_precision and weight_dtype of LoRA, generation and classifiers to fp16"
        click.echo(f"warning: {torch.cuda.get_device_name()} emulates bf16, which is slow: {remedy}", err=True)


@functools.cache
def _has_bf16_instructions() -> bool:
    """Whether this CPU computes in bf16; says once on stderr that it does not."""
    import click
    import torch

    # torch's own check is true for all CPUs with AVX-512, also for those that emulate bf16
    supported = any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS)
    if not supported:
        click.echo("this CPU has no bf16 instructions: computing in fp32 instead", err=True)
    return supported


def unet_memory_format(device: str) -> torch.memory_format:
    """Returns the memory format for the UNet and its inputs: channels_last, but NCHW on a CPU with bf16 instructions.

    The CPU's group norm in bf16 is some 20 times slower in channels_last. In fp32 the convolutions gain more than it loses.
    """
    import torch

    return torch.contiguous_format if device == "cpu" and computes_bf16(device) else torch.channels_last


def dtype(name: str) -> torch.dtype:
    """Returns the torch dtype for `fp32`, `bf16` or `fp16`."""
    import torch

    return getattr(torch, DTYPES[name])


def training_attention(device: str, pixels: int) -> contextlib.AbstractContextManager:
    """Returns a context that selects the attention kernels for training.

    On a CPU the backward pass of torch's fused attention takes three times as long as plain matrix products for small images.
    Plain products store the attention maps, so large images use the fused kernel. On a GPU every kernel but cuDNN's is
    allowed, which torch would prefer on recent cards: its gradients are reported to be NaN at key lengths of 64 modulo 128.

    Args:
        device: torch device.
        pixels: height x width of the latents, the longest sequence of attention.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device != "cpu":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return contextlib.nullcontext() if pixels > MAX_PLAIN_ATTENTION else sdpa_kernel(SDPBackend.MATH)


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Sets whether float32 matrix products on a GPU use TF32, which keeps 10 bits of the mantissa, and resets it at the end.

    Convolutions use TF32 by torch's default. The search for copies relies on exact products, so this is never set for good.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, enabled
    try:
        yield
    finally:
        matmul.allow_tf32 = before


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
