"""The folder of the leaderboard: a file BENCHMARK.json for each table, and a folder for each submission."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pathsynth.core.errors import DataError, PathsynthError
from pathsynth.core.io import catch_read_errors, os_error_reason, read_json, write_json
from pathsynth.core.params import NAME, NonNegativeInt, Section, show, validate
from pathsynth.leaderboard.card import Card, read_card
from pathsynth.leaderboard.checks import SHOWN, check_scores
from pathsynth.leaderboard.scores import Reference, ScoresFile, read_scores

CARD, README = "card.yaml", "README.md"
SINGLE = "scores.json"
REPEATED = re.compile(r"scores_([1-9]\d{0,3})\.json")

# A score with the ends of its interval, each None where it is missing.
Value = tuple[float | None, float | None, float | None]


class AnchorRow(Section):
    """Scores of images with a known answer: [value, low, high] by the key of the score."""

    n_images: NonNegativeInt
    scores: dict[str, Annotated[list[float | None], Field(min_length=3, max_length=3)]]


class PinnedBenchmark(Section):
    """Contents of BENCHMARK.json: what submissions must be scored with, and the anchors that were scored with it."""

    reference: Reference
    anchors: dict[str, AnchorRow]


@dataclass(frozen=True)
class Submission:
    """A folder of the leaderboard.

    Attributes:
        folder: its name.
        card: who submitted what.
        trainings: the scores of each training.
    """

    folder: str
    card: Card
    trainings: tuple[ScoresFile, ...]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark that it belongs to."""
        return self.trainings[0].reference.benchmark


@dataclass(frozen=True)
class Board:
    """A leaderboard, and what is wrong with it.

    Attributes:
        pins: by benchmark.
        submissions: those that are valid, by the name of their folder.
        mistakes: one error for each invalid pin or submission.
    """

    pins: dict[str, PinnedBenchmark]
    submissions: list[Submission]
    mistakes: list[PathsynthError] = field(default_factory=list)


def read_board(folder: Path) -> Board:
    """Reads and checks all submissions.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(folder, f"could not be read: {os_error_reason(error)}") from error
    board = Board({}, [])
    for path in entries:
        if path.suffix == ".json" and not path.is_dir():
            with _collect_mistakes(board):
                board.pins[path.stem] = read_pin(path)
    for path in entries:
        with _collect_mistakes(board):
            if path.is_symlink() or (not path.is_dir() and path.suffix != ".json" and path.name != README):
                raise DataError(path, f"is not a submission folder; remove it (only {README} and BENCHMARK.json may lie here)")
            if path.is_dir():
                board.submissions.append(read_submission(path, board.pins))
    _drop_repeated(board, folder)
    return board


@contextmanager
def _collect_mistakes(board: Board) -> Iterator[None]:
    """Adds an error of the block to the mistakes of a board, and goes on."""
    try:
        yield
    except PathsynthError as error:
        board.mistakes.append(error)


def read_submission(folder: Path, pins: Mapping[str, PinnedBenchmark]) -> Submission:
    """Reads the folder of a submission and checks everything in it.

    Raises:
        DataError, ParamsError: the first mistake.
    """
    if not NAME.fullmatch(folder.name):
        raise DataError(folder, f"{show(folder.name)}: allowed in names: letters, digits, '_' and '-'")
    files = _list_scores(folder)
    card = read_card(folder / CARD)
    if card.trainings != len(files):
        raise DataError(folder / CARD, f"trainings: {card.trainings}, but there are scores of {len(files)}")
    trainings = tuple(read_scores(path) for path in files)
    for path, scores in zip(files, trainings, strict=True):
        if (pin := pins.get(scores.reference.benchmark)) is None:
            known = ", ".join(pins) or "none"
            raise DataError(path, f"{scores.reference.benchmark} has no leaderboard; there are: {known}")
        check_scores(path, scores, pin.reference)
        if scores.reference != trainings[0].reference or scores.images.per_class != trainings[0].images.per_class:
            raise DataError(path, f"is of another benchmark or number of images than {files[0].name}")
    return Submission(folder.name, card, trainings)


def _list_scores(folder: Path) -> list[Path]:
    """The files of scores in their order; nothing else but the card may be in the folder."""
    with catch_read_errors(folder, "a folder"):
        entries = sorted(folder.iterdir())
    names = [path.name for path in entries if path.name != CARD]
    for path in entries:
        if path.is_symlink() or not path.is_file():
            raise DataError(path, "is a link or a folder; a submission holds only files")
    numbers = sorted(int(match.group(1)) for name in names if (match := REPEATED.fullmatch(name)))
    if names != [SINGLE] and (not numbers or len(numbers) != len(names) or numbers != list(range(1, len(numbers) + 1))):
        wanted = f"{CARD} and {SINGLE}, or {CARD} and scores_1.json, scores_2.json, ..."
        raise DataError(folder, f"holds {', '.join(path.name for path in entries)[:200] or 'nothing'}; expected {wanted}")
    return [folder / SINGLE] if names == [SINGLE] else [folder / f"scores_{number}.json" for number in numbers]


def _drop_repeated(board: Board, folder: Path) -> None:
    """Drops submissions with images that were already submitted, also as another training."""
    owners: dict[tuple[str, str], str] = {}
    for one in list(board.submissions):
        for number, training in enumerate(one.trainings, 1):
            place = f"training {number} of {one.folder}"
            owner = owners.setdefault((one.benchmark, training.images.sha256), place)
            if owner != place:
                board.mistakes.append(DataError(folder / one.folder, f"{place} has the same images as {owner}"))
                board.submissions.remove(one)
                break


def read_pin(path: Path) -> PinnedBenchmark:
    """Reads what `write_pin` wrote.

    Raises:
        DataError, ParamsError: the file is missing or damaged, or has the name of another benchmark.
    """
    pin: PinnedBenchmark = validate(path, "", PinnedBenchmark, read_json(path))
    if pin.reference.benchmark != path.stem:
        raise DataError(path, f"is of the benchmark {pin.reference.benchmark}; name it {pin.reference.benchmark}.json")
    return pin


def write_pin(path: Path, reference: Reference, anchors: Mapping[str, Any]) -> None:
    """Writes what submissions must be scored with.

    Args:
        path: BENCHMARK.json.
        reference: of the last run.
        anchors: contents of metrics/anchors/BENCHMARK.json.

    Raises:
        DataError: the anchors were scored with other classifiers, or the file cannot be written.
    """
    if anchors.get("real_images") != reference.real_images:
        raise DataError(path, "its anchors were scored with other data or classifiers; run `make anchors` first")
    rows = {
        name: AnchorRow(
            n_images=scores["n_images"], scores={shown.key: list(shown.read(scores)) for shown in SHOWN}
        ).model_dump()
        for name, scores in anchors["sets"].items()
    }
    write_json(path, {"reference": reference.model_dump(), "anchors": rows})


def iter_boards(board: Board) -> Iterator[tuple[PinnedBenchmark, list[Submission]]]:
    """Yields each benchmark with its valid submissions, by name."""
    for name, pin in board.pins.items():
        yield pin, [one for one in board.submissions if one.benchmark == name]
