"""Versions of packages and the name of the processor, on which exact results depend."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "dvc")


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, as far as they are installed."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES if _installed(name)}}


def processor() -> str:
    """The processor's name, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
