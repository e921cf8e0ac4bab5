"""Whether torch can use the GPU, the reason if it cannot, and errors of CUDA as one line."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from pathsynth.core.errors import DeviceError

if TYPE_CHECKING:
    from pathsynth.core.params import Device

# NVIDIA's number as a vendor of PCI devices, and where Linux lists them.
NVIDIA = "0x10de"
PCI_DEVICES = Path("/sys/bus/pci/devices")
# The version of NVIDIA's driver for Linux, and the device by which Linux under Windows reaches that of Windows.
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
WINDOWS_GPU = Path("/dev/dxg")
# The oldest driver for each major version of CUDA.
OLDEST_DRIVERS = {"12": "525", "13": "580"}
OTHER_BUILD = "install another build of PyTorch (docs/gpu.md#builds-of-pytorch), or set `device: cpu`"
# Warnings that torch issued while initializing CUDA.
_warnings: list[str] = []
# Substrings that identify errors of CUDA and its libraries, most of which are plain RuntimeErrors.
GPU_ERRORS = ("CUDA error", "CUDA driver error", "CUDA out of memory", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")
# Parts of their messages, and what to do.
GPU_REMEDIES = {
    "no kernel image is available": f"this build of PyTorch does not support the card: {OTHER_BUILD}",
    "/dev/shm": "shared memory is too small: start the container with --ipc=host or --shm-size=1g",
    "Duplicate GPU detected": "two processes share a GPU: start one process per GPU",
    "out of memory": "lower batch sizes, or end what else uses the GPU; nvidia-smi lists it",
}
RESTART = "start again; a stage that resumes continues at its last checkpoint; CUDA_LAUNCH_BLOCKING=1 shows the failed call"
NOT_DETERMINISTIC = "does not have a deterministic implementation"


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


def check_device(device: Device) -> None:
    """Checks that torch can use the GPU of this machine, unless `device` is `cpu`, and that there is one if it is `cuda`.

    Raises:
        DeviceError: the driver is too old, this build of torch has no kernels for the card, or `cuda` finds no GPU. A card
            without any driver is an error for `cuda` only, and so are GPUs that CUDA_VISIBLE_DEVICES hides.
    """
    # `check` and `prepare` need not import torch where there is no GPU
    if device == "cpu" or (device == "auto" and not _has_nvidia_gpu()):
        return
    if gpu_available():
        _check_capability()
        return
    if _warnings and not _hides_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")):
        raise DeviceError(_explain_warning())
    if device == "cuda":
        raise DeviceError(f"params: device: cuda, but {explain_missing_gpu()}; allowed on this machine: auto, cpu")


def _check_capability() -> None:
    """Raises DeviceError if this build of torch has no kernels for the GPU."""
    import warnings

    import torch

    with warnings.catch_warnings(action="ignore"):
        # torch warns of the same in a dozen lines
        capability = torch.cuda.get_device_capability()
    architectures = [name for name in torch.cuda.get_arch_list() if name.startswith(("sm_", "compute_"))]
    # AMD's architectures have other names
    if torch.version.hip or not architectures or any(_runs_on(name, capability) for name in architectures):
        return
    card = f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
    raise DeviceError(f"{card}: {_torch_build()} has kernels for {', '.join(architectures)} only: {OTHER_BUILD}")


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `sm_86` or `compute_86` runs on a GPU: machine code within a major version, PTX on any newer GPU."""
    kind, _, digits = architecture.rstrip("af").partition("_")
    built = divmod(int(digits), 10)
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _torch_build() -> str:
    import torch

    return f"PyTorch {torch.__version__.partition('+')[0]} (CUDA {torch.version.cuda})"


def _has_nvidia_gpu() -> bool:
    return _has_nvidia_card() or DRIVER_VERSION.exists() or WINDOWS_GPU.exists()


def _has_nvidia_card() -> bool:
    return any(path.read_text().strip() == NVIDIA for path in PCI_DEVICES.glob("*/vendor"))


def _hides_gpus(visible: str | None) -> bool:
    """Whether this value of CUDA_VISIBLE_DEVICES hides all GPUs."""
    return visible is not None and not visible.startswith((*"0123456789", "GPU-", "MIG-"))


def explain_missing_gpu() -> str:
    """Returns why torch finds no GPU, as part of a line. Call `gpu_available` first, which records torch's warnings."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA"
    if _hides_gpus(visible):
        return f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs"
    if _warnings:
        return _explain_warning()
    if not _has_nvidia_card():
        return "no NVIDIA GPU found"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} names no GPU of this machine"
    return "there is an NVIDIA GPU, but no driver for it; in a container, start it with --gpus all"


def _explain_warning() -> str:
    """Explains torch's warning: the driver is too old, or another fault of it."""
    import torch

    if not (found := re.search(r"driver on your system is too old \(found version (\d+)\d\)", _warnings[0])):
        # the first sentences have the cause, the rest is advice for those who compile PyTorch
        warning = shorten(_warnings[0].removeprefix("CUDA initialization: "), 200, placeholder=" ...")
        return f"torch cannot use the NVIDIA GPU: {warning}; check the driver with nvidia-smi, or set `device: cpu`"
    major, minor = divmod(int(found[1]), 100)
    version = re.search(r"\d+\.[\d.]+", DRIVER_VERSION.read_text()) if DRIVER_VERSION.exists() else None
    driver = f"NVIDIA driver {version[0]}" if version else "NVIDIA driver"
    oldest = OLDEST_DRIVERS.get(str(torch.version.cuda).partition(".")[0])
    needed = f", which needs driver {oldest} or newer" if oldest else ""
    return f"{driver} (CUDA {major}.{minor}) is too old for {_torch_build()}{needed}: update it, {OTHER_BUILD}"


def explain_gpu_error(error: Exception) -> DeviceError | None:
    """Converts an error of CUDA or its libraries, or of an operation without a deterministic kernel, to one line with a remedy.

    Returns:
        None for other errors, and under CUDA_LAUNCH_BLOCKING=1, which is set to see where an error comes from.
    """
    if "torch" not in sys.modules or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return None
    import torch

    text = str(error)
    if NOT_DETERMINISTIC in text:
        operation = text.partition(NOT_DETERMINISTIC)[0].strip()
        remedy = "set it to false, or select another architecture in the section of this stage's classifier"
        return DeviceError(f"params: deterministic: true: {operation} has no deterministic kernel on a GPU; {remedy}")
    remedies = [remedy for part, remedy in GPU_REMEDIES.items() if part in text]
    if not isinstance(error, torch.AcceleratorError) and not any(part in text for part in GPU_ERRORS):
        # without a known cause, an error of NCCL is a lost connection; builds without distributed have no DistError
        if not (remedies and torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)):
            return None
        # NCCL names the cause last
        text = text.strip().splitlines()[-1]
    line = (text.strip() or type(error).__name__).splitlines()[0]
    return DeviceError(f"{shorten(line, 200, placeholder=' ...')}: {(*remedies, RESTART)[0]}")
