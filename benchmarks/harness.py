"""The harness: two contestants alternate on one machine and share one row of a table."""

from __future__ import annotations

import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pathsynth.core.environment import cpu_name
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import read_json, write_json
from pathsynth.core.params import Params
from pathsynth.data.settings import AnyDataset, Dataset
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RESULTS = Path("benchmarks/results")
MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate",
    "medmnist", "numpy", "dvc", "click",
)  # fmt: skip

Value = TypeVar("Value")
# Prepares everything and returns the function to time, which returns the number of units that it processed.
Contestant = Callable[[], Callable[[], int]]


@dataclass(frozen=True)
class Setup:
    """What every benchmark runs with: parameters, a temporary directory, the torch device, the number of rounds."""

    params: Params
    scratch: Path
    device: str
    rounds: int = 5

    @cached_property
    def dataset(self) -> Dataset:
        """The selected benchmark's data set."""
        return self.params.section("dataset", AnyDataset)

    @cached_property
    def base(self) -> BaseModelSettings:
        """The base model."""
        return self.params.section("base", BaseModelSettings)

    @cached_property
    def lora(self) -> LoraSettings:
        """The selected LoRA configuration."""
        return self.params.section("lora", LoraSettings)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts that the LoRA is trained with, one per class."""
        return self.params.section("prompts", Prompts).texts(self.lora.prompts, self.dataset)

    @property
    def base_folder(self) -> Path:
        """The folder of the base, downloaded if necessary."""
        return locate_base(self.base, self.params.folder)

    def load_base(self) -> StableDiffusionPipeline:
        """Loads the base onto the device."""
        return load_base(self.base_folder, self.device, self.base.variant)

    def artifact(self, path: str) -> Path:
        """A path that `make repro` writes, such as `models/gate`."""
        return self.params.folder / path


@dataclass(frozen=True)
class Row:
    """One benchmark against its peer.

    Attributes:
        part: what is measured.
        peer: what it is compared with.
        ours, theirs: medians over the rounds, in `unit`.
        unit: of a rate (higher is better), or of time or memory (lower is better).
        ratio: how many times better ours is, the median over the rounds.
        spread: lowest and highest ratio.
        n: number of rounds.
        ours_gpu_mb, theirs_gpu_mb: highest `torch.cuda.max_memory_allocated` in MB; None without a GPU.
    """

    part: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    spread: str
    n: int
    ours_gpu_mb: int | None = None
    theirs_gpu_mb: int | None = None


class Run(NamedTuple, Generic[Value]):
    """A timed call: what it returned, seconds, and peak GPU memory in MB or None."""

    value: Value
    seconds: float
    gpu_mb: int | None


def compare_rates(part: str, peer: str, unit: str, ours: Contestant, theirs: Contestant, rounds: int) -> Row:
    """Compares units per second; the warm-up round is not counted."""
    pairs = alternate(lambda: measure_run(ours()), lambda: measure_run(theirs()), rounds)
    row = make_row(part, peer, unit, [(a.value / a.seconds, b.value / b.seconds) for a, b in pairs])
    if pairs[0][0].gpu_mb is None:
        return row
    ours_gpu_mb, theirs_gpu_mb = (max(run.gpu_mb or 0 for run in runs) for runs in zip(*pairs, strict=True))
    return replace(row, ours_gpu_mb=ours_gpu_mb, theirs_gpu_mb=theirs_gpu_mb)


def alternate(
    ours: Callable[[], Value], theirs: Callable[[], Value], rounds: int, warm_up: int = 1
) -> list[tuple[Value, Value]]:
    """Runs both in turn, so that a machine that slows down does so for both; drops the first `warm_up` rounds."""
    return [(ours(), theirs()) for _ in range(warm_up + rounds)][warm_up:]


def make_row(
    part: str,
    peer: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    *,
    lower_is_better: bool = False,
) -> Row:
    """The row for values (ours, theirs) of each round."""
    ratios = [theirs / ours if lower_is_better else ours / theirs for ours, theirs in pairs]
    ours, theirs = (round(statistics.median(values), 2) for values in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return Row(part, peer, ours, theirs, unit, round(statistics.median(ratios), 2), spread, len(ratios))


def measure_run(run: Callable[[], Value]) -> Run[Value]:
    """Times a function until the device has finished, and reads the peak GPU memory."""
    import torch

    gpu = torch.cuda.is_available()
    # the models of the contestant before this one
    gc.collect()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    value = run()
    if gpu:
        torch.cuda.synchronize()
    return Run(value, time.perf_counter() - start, round(torch.cuda.max_memory_allocated() / 1e6) if gpu else None)


def write_results(path: Path, params: Params, results: Mapping[str, Any]) -> None:
    """Writes results together with machine, versions and parameters."""
    write_json(path, {**describe_run(params), **results})


def describe_run(params: Params) -> dict[str, Any]:
    """What results depend on: machine, versions, and the selected parameters by name and fingerprint."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    selected = {"benchmark": params.benchmark_name, "lora": params.lora_name, "fingerprint": params.fingerprint()}
    return {"machine": describe_machine(), "versions": versions, **selected}


def describe_machine() -> str:
    """The GPU, or the CPU with torch's number of threads."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_name()}, {torch.get_num_threads()} threads"


def results_path(name: str, device: str) -> Path:
    """The file for results of that name; those of a GPU are kept apart."""
    return RESULTS / (f"{name}.json" if device == "cpu" else f"{name}_gpu.json")


def format_rows(rows: Sequence[Row]) -> str:
    """Benchmark rows as Markdown."""
    return format_table([{**asdict(row), "ratio": f"{row.ratio:.2f} ({row.spread})", "spread": None} for row in rows])


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as Markdown; a column that is None everywhere is left out."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = (f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill_tables(page: Path, folder: Path) -> str:
    """The text of a page with the table of NAME.json between each `<!-- bench: NAME -->` and `<!-- end -->`.

    Raises:
        DataError: the page has no pair of marks or an unpaired one, or a results file cannot be used.
    """
    text = page.read_text(encoding="utf-8")
    pairs = len(MARKED.findall(text))
    if not pairs or pairs != text.count("<!-- bench:") or pairs != text.count("<!-- end -->"):
        raise DataError(page, "needs pairs of <!-- bench: NAME --> and <!-- end -->, each on a line of its own")
    return MARKED.sub(partial(_fill_mark, folder), text)


def _fill_mark(folder: Path, match: re.Match) -> str:
    path = folder / f"{match[2]}.json"
    content = read_json(path)
    try:
        versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
        rows = content["rows"].values() if "rows" in content else ()
        table = format_rows([Row(**row) for row in rows]) if rows else format_table(content["table"])
        return f"{match[1]}{table}\n\n{content['machine']}; {versions}.\n{match[3]}"
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(path, f"is not a results file of this benchmark: {one_line(error)}. Measure it again.") from error
