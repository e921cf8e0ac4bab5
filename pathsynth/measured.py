"""What a stage took, measured: seconds, memory, device and versions, in a log that is never hashed.

Times differ from run to run, and an out that held them would never be the same again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pathsynth.files import write_json
from pathsynth.settings import Params

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "dvc")
# ru_maxrss counts kilobytes on Linux and bytes on macOS
PER_MEGABYTE = 1e6 if sys.platform == "darwin" else 1e6 / 1024


@contextmanager
def measured(stage: str, params: Params, logs: Path, *, keep: bool = True, earlier: float = 0.0) -> Iterator[None]:
    """Measures the block and writes logs/BENCHMARK/LORA/STAGE.json once it has ended well.

    Args:
        stage: name of the stage.
        params: whose run it is.
        logs: folder of all logs.
        keep: False writes nothing, for all but one of several processes that share a stage.
        earlier: seconds that interrupted runs have worked on the same.

    Raises:
        DataError: the log cannot be written.
    """
    started = time.perf_counter()
    yield
    if keep:
        write_json(log_path(logs, params, stage), _measures(stage, params, earlier + time.perf_counter() - started))


def log_path(logs: Path, params: Params, stage: str) -> Path:
    """Where the log of a stage is."""
    return logs / params.benchmark_name / params.lora_name / f"{stage}.json"


def fingerprint(params: Params) -> str:
    """Sixteen hexadecimal digits that are others for other parameters, so that no log is taken for that of another run."""
    content = json.dumps(params.model_dump(exclude={"processes"}), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _measures(stage: str, params: Params, seconds: float) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "stage": stage,
        "benchmark": params.benchmark_name,
        "lora": params.lora_name,
        "seed": params.seed,
        "fingerprint": fingerprint(params),
        "processes": params.processes,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak / PER_MEGABYTE),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if gpu else None,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": versions(),
    }


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
