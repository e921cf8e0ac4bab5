"""Run time, memory, device and versions of a stage, in a log that DVC does not track, because it differs between runs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathsynth.core.environment import package_versions
from pathsynth.core.gpu import gpu_available
from pathsynth.core.io import write_json
from pathsynth.core.params import Params

# ru_maxrss counts kilobytes on Linux and bytes on macOS
PER_MEGABYTE = 1e6 if sys.platform == "darwin" else 1e6 / 1024


@contextmanager
def measure_run(stage: str, params: Params, logs: Path, *, keep: bool = True, earlier: float = 0.0) -> Iterator[None]:
    """Measures the block and, if it succeeds, writes LOGS/BENCHMARK/LORA/STAGE.json.

    Args:
        stage: name of the stage.
        params: parameters of the run.
        logs: folder of all logs.
        keep: whether to write; only the main process does.
        earlier: seconds spent in earlier, interrupted runs of the stage.

    Raises:
        DataError: if the log cannot be written.
    """
    started = time.perf_counter()
    yield
    if keep:
        path = logs / params.benchmark_name / params.lora_name / f"{stage}.json"
        write_json(path, _build_log(stage, params, earlier + time.perf_counter() - started))


def _build_log(stage: str, params: Params, seconds: float) -> dict[str, Any]:
    import torch

    gpu = gpu_available()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "stage": stage,
        "benchmark": params.benchmark_name,
        "lora": params.lora_name,
        "seeds": params.seeds.model_dump(),
        "fingerprint": params.fingerprint(),
        "processes": params.processes,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak / PER_MEGABYTE),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if gpu else None,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": package_versions(),
    }
