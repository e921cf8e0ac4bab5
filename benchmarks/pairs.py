"""What the benchmarks share: two contestants in turns on one machine, a row of a table for both, and a file of rows."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pathsynth.cli.check import Params
from pathsynth.cli.run_log import fingerprint
from pathsynth.core.environment import processor
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import read_json, write_json

RESULTS = Path("benchmarks/results")
WARM_UP = 1
MARKS = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ANY_MARK = re.compile(r"<!-- (bench:|end).*?-->")
PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "medmnist",
    "numpy",
    "torch-fidelity",
    "dvc",
    "click",
)

Found = TypeVar("Found")

# Makes everything ready and gives back what is to be timed, which tells how many units it has done.
Contestant = Callable[[], Callable[[], int]]


@dataclass(frozen=True)
class Bench:
    """What a part measures: parameters, where their relative paths start, a folder for what is needed meanwhile, rounds."""

    params: Params
    root: Path
    scratch: Path
    device: str
    rounds: int


@dataclass(frozen=True)
class Row:
    """One part against its peer.

    Attributes:
        part: what is measured.
        peer: what it is measured against.
        ours, theirs: medians over the rounds, in `unit`.
        unit: of a rate, of which more is better, or of time or memory, of which less is.
        ratio: how many times better ours is, the median over the rounds.
        spread: the least and the greatest of these ratios.
        n: number of rounds.
    """

    part: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    spread: str
    n: int


def in_turns(part: str, peer: str, unit: str, ours: Contestant, theirs: Contestant, rounds: int) -> Row:
    """Lets both work in turns, so that a machine that gets slower or faster does so for both; the first turn does not count."""

    def rate(prepare: Contestant) -> float:
        done, seconds = timed(prepare())
        return done / seconds

    return compared(part, peer, unit, turns(partial(rate, ours), partial(rate, theirs), rounds))


def turns(
    ours: Callable[[], Found], theirs: Callable[[], Found], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[Found]]:
    """What both find, one after the other, round by round; the first `warm_up` rounds are left out."""
    contestants = {"ours": ours, "theirs": theirs}
    found: dict[str, list[Found]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, find in contestants.items():
            value = find()
            if turn >= warm_up:
                found[name].append(value)
    return found


def timed(run: Callable[[], Found]) -> tuple[Found, float]:
    """What `run` gives, and its seconds until the device has done its work."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    wait()
    start = time.perf_counter()
    done = run()
    wait()
    return done, time.perf_counter() - start


def _nothing() -> None:
    """A CPU has done its work when a call returns."""


def compared(part: str, peer: str, unit: str, found: Mapping[str, Sequence[float]], *, less_is_better: bool = False) -> Row:
    """The row for what was measured round by round, of "ours" and "theirs"."""
    ratios = [ours / theirs for ours, theirs in zip(found["ours"], found["theirs"], strict=True)]
    if less_is_better:
        ratios = [1 / ratio for ratio in ratios]
    return Row(
        part=part,
        peer=peer,
        ours=round(statistics.median(found["ours"]), 2),
        theirs=round(statistics.median(found["theirs"]), 2),
        unit=unit,
        ratio=round(statistics.median(ratios), 2),
        spread=f"{min(ratios):.2f} to {max(ratios):.2f}",
        n=len(ratios),
    )


def write_results(path: Path, params: Params, results: Mapping[str, Any]) -> None:
    """Writes results, and what they were measured on and with."""
    write_json(path, {**about(params), **results})


def about(params: Params) -> dict[str, Any]:
    """What results depend on: machine, versions and the selected parameters, by their names and their fingerprint."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    selected = {"benchmark": params.benchmark_name, "lora": params.lora_name, "fingerprint": fingerprint(params)}
    return {"machine": machine(), "versions": versions, **selected}


def machine() -> str:
    """The GPU by its name, or the number of threads that torch computes with."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()}, {torch.get_num_threads()} threads"


def results(name: str, device: str) -> Path:
    """The file of results of that name: those of a GPU are kept apart."""
    return RESULTS / (f"{name}.json" if device == "cpu" else f"{name}_gpu.json")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    return table([{**asdict(row), "ratio": f"{row.ratio:.2f} ({row.spread})", "spread": None} for row in rows])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys; what is None in the first one is left out."""
    names = [name for name, value in rows[0].items() if value is not None]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = (f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(page: Path, folder: Path) -> str:
    """The text of a page, with what NAME.json in `folder` says between each `<!-- bench: NAME -->` and `<!-- end -->`.

    Raises:
        DataError: the page or a file of results cannot be read, or its marks are not pairs.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(page, f"could not be read: {one_line(error)}") from error
    if not MARKS.search(text):
        raise DataError(page, "has no marks <!-- bench: NAME --> and <!-- end --> with lines between them")
    kinds = [match[1] for match in ANY_MARK.finditer(text)]
    if kinds != ["bench:", "end"] * (len(kinds) // 2):
        raise DataError(page, "has a mark <!-- bench: NAME --> without <!-- end -->, or one without the other")

    def replacement(match: re.Match) -> str:
        path = folder / f"{match[2]}.json"
        content = read_json(path)
        try:
            versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
            found = (
                table(content["table"]) if "table" in content else markdown([Row(**row) for row in content["rows"].values()])
            )
            return f"{match[1]}{found}\n\n{content['machine']}; {versions}.\n{match[3]}"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(path, f"holds no table of this suite: {one_line(error)}") from error

    return MARKS.sub(replacement, text)
