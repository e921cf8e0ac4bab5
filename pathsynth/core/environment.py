"""Package versions and hardware, on which exact results depend."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pathsynth.core.gpu import gpu_available

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "dvc")


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_name() -> str:
    """Returns the CPU's model name, or Python's less exact name on systems without /proc."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_hardware() -> list[str | None]:
    """Returns the hardware that determines how sums are rounded: architecture, CPU model, and GPU or None."""
    import torch

    return [platform.machine(), cpu_name(), torch.cuda.get_device_name() if gpu_available() else None]
