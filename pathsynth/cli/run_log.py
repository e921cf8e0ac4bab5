"""What a stage took, measured: seconds, memory, device and versions, in a log that is never hashed.

Times differ from run to run, and an out that held them would never be the same again.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathsynth.core.environment import versions
from pathsynth.core.io import write_json
from pathsynth.core.params import Params

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
        write_json(
            logs / params.benchmark_name / params.lora_name / f"{stage}.json",
            _measures(stage, params, earlier + time.perf_counter() - started),
        )


def _measures(stage: str, params: Params, seconds: float) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "stage": stage,
        "benchmark": params.benchmark_name,
        "lora": params.lora_name,
        "seed": params.seed,
        "fingerprint": params.fingerprint(),
        "processes": params.processes,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak / PER_MEGABYTE),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if gpu else None,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": versions(),
    }
