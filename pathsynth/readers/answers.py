"""Keys of reader studies and the answers that their pages save: reads and validates both.

The page knows only ids, images and classes. The key, a second file, tells which image is which. Both name the checksum of the
study, so that answers are never read with another study's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pathsynth.core.errors import CONTROLS, DataError
from pathsynth.core.io import read_json

KEY_FORMAT, ANSWERS_FORMAT, VERSION = "pathsynth-key", "pathsynth-answers", 1
KINDS = ("study", "preference")
# Of texts in messages and of names, in characters.
MAX_SHOWN, MAX_NAME = 60, 80
# A page counts only the time during which it is visible, so a longer one is a damaged value.
MAX_SECONDS = 1e6

Text = Annotated[str, Field(min_length=1, max_length=500)]
Choice = Literal["left", "right", "tie"]


def _clean_name(value: Any) -> Any:
    """Removes what could overwrite a terminal, and shortens the rest."""
    return CONTROLS.sub(" ", value).strip()[:MAX_NAME] if isinstance(value, str) else value


class Record(BaseModel):
    """Part of a file. Unknown keys are ignored, because a later page may save more."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Prediction(Record):
    """The class that a classifier predicts for an image, and its probability."""

    predicted: Text
    confidence: Annotated[float, Field(ge=0, le=1)]


class StudyTrial(Record):
    """One image of a study. `repeats` is the id of the trial in which the same image was shown first."""

    id: Text
    tissue: Text
    origin: Literal["real", "synthetic"]
    image: Text
    source: dict[str, Any] = {}
    gate: Prediction | None = None
    judge: Prediction | None = None
    repeats: Text | None = None


class PreferenceTrial(Record):
    """Two images of one tissue and slot, by the configurations that made them."""

    id: Text
    tissue: Text
    question: str = ""
    left: Text
    right: Text
    slot: int | None = None

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        if self.left == self.right:
            raise ValueError(f"trial {self.id!r} compares {self.left!r} with itself")
        return self


class _Key(Record):
    """What both kinds of key hold."""

    study: Text
    created_with: str = ""
    classes: Annotated[list[Text], Field(min_length=1)]
    trials: Any
    # whether the images are drawn phantoms; None where the key does not tell
    stand_in: bool | None = None

    @model_validator(mode="after")
    def _check_trials(self) -> Self:
        ids = [trial.id for trial in self.trials]
        if len(set(ids)) < len(ids):
            raise ValueError(f"trial {next(one for one in ids if ids.count(one) > 1)!r} appears twice")
        if len(set(self.classes)) < len(self.classes):
            twice = next(one for one in self.classes if self.classes.count(one) > 1)
            raise ValueError(f"class {_shorten(twice)} appears twice")
        for trial in self.trials:
            if trial.tissue not in self.classes:
                raise ValueError(
                    f"trial {trial.id!r} has the tissue {_shorten(trial.tissue)}, which is not a class of this study"
                )
        return self


class StudyKey(_Key):
    """Key of a blinded study."""

    kind: Literal["study"]
    trials: Annotated[list[StudyTrial], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        first = {trial.id: trial for trial in self.trials if trial.repeats is None}
        for trial in self.trials:
            shown = trial if trial.repeats is None else first.get(trial.repeats)
            if shown is None or shown.image != trial.image:
                raise ValueError(
                    f"trial {trial.id!r} repeats {_shorten(trial.repeats or '')}, which is not the first showing of this image"
                )
            for observer in ("gate", "judge"):
                found = getattr(trial, observer)
                if found is not None and found.predicted not in self.classes:
                    problem = f"the {observer} predicts {_shorten(found.predicted)} for trial {trial.id!r}"
                    raise ValueError(f"{problem}, which is not a class of this study")
        return self


class PreferenceKey(_Key):
    """Key of a page of pairs."""

    kind: Literal["preference"]
    trials: Annotated[list[PreferenceTrial], Field(min_length=1)]


class StudyAnswer(Record):
    """Answer about one image; `confidence` is that of the origin, from 1 (guessed) to 5 (certain)."""

    id: Text
    tissue: Text
    origin: Literal["real", "synthetic"]
    confidence: Annotated[int, Field(ge=1, le=5)]
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)]


class PreferenceAnswer(Record):
    """Answer about one pair."""

    id: Text
    choice: Choice
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)]


class _Answers(Record):
    """What both kinds of answers hold."""

    study: Text
    reader: Text
    name: Annotated[str, BeforeValidator(_clean_name)] = ""
    started: Annotated[AwareDatetime, Field(strict=False)]
    saved: Annotated[AwareDatetime, Field(strict=False)]
    complete: bool
    answers: Any


class StudyAnswers(_Answers):
    """Answers of one reader to a blinded study."""

    kind: Literal["study"]
    answers: list[StudyAnswer]


class PreferenceAnswers(_Answers):
    """Answers of one reader to a page of pairs."""

    kind: Literal["preference"]
    answers: list[PreferenceAnswer]


Key = StudyKey | PreferenceKey
Answers = StudyAnswers | PreferenceAnswers
KEYS: TypeAdapter[Key] = TypeAdapter(Annotated[Key, Field(discriminator="kind")])
ANSWERS: TypeAdapter[Answers] = TypeAdapter(Annotated[Answers, Field(discriminator="kind")])


@dataclass(frozen=True)
class Collection:
    """The answers of all readers.

    Attributes:
        readers: one per reader with answers, in the order in which they started.
        notes: sentences about files that were left out.
    """

    readers: list[Any]
    notes: list[str]


def read_key(path: Path) -> Key:
    """Reads the key of a study.

    Raises:
        DataError: the file is missing, damaged, or not a key.
    """
    return _parse(path, KEY_FORMAT, KEYS)


def read_answers(path: Path, key: Key) -> Answers:
    """Reads the answers of one reader.

    Raises:
        DataError: the file is missing, damaged, not answers, or answers to another study, to unknown trials or of unknown
            classes.
    """
    found = _parse(path, ANSWERS_FORMAT, ANSWERS)
    if found.kind != key.kind:
        raise DataError(path, f"answers a {found.kind} page, but the key is that of a {key.kind} page")
    if found.study != key.study:
        problem = f"answers the study {_shorten(found.study, 12)}, but the key is that of {_shorten(key.study, 12)}"
        raise DataError(path, f"{problem}. Pass the key that was written with the page.")
    known, seen = {trial.id for trial in key.trials}, set()
    for answer in found.answers:
        if answer.id not in known:
            raise DataError(path, f"answers trial {_shorten(answer.id)}, which the study does not have")
        if answer.id in seen:
            raise DataError(path, f"answers trial {_shorten(answer.id)} twice")
        if found.kind == "study" and answer.tissue not in key.classes:
            raise DataError(
                path, f"names {_shorten(answer.tissue)} for trial {_shorten(answer.id)}, which is not a class of this study"
            )
        seen.add(answer.id)
    return found


def collect_answers(paths: Sequence[Path], key_path: Path) -> tuple[Key, Collection]:
    """Reads a key and the answers of all readers.

    Of two files of one reader the later saved counts. The key may stand among the files, as it does in `*.json`.

    Args:
        paths: files of answers.
        key_path: the key.

    Raises:
        DataError: as `read_key` and `read_answers`, or no reader has answered any trial.
    """
    key = read_key(key_path)
    latest: dict[str, tuple[Path, Answers]] = {}
    notes = []
    for path in dict.fromkeys(path for path in paths if path.resolve() != key_path.resolve()):
        found = read_answers(path, key)
        if found.reader in latest:
            kept, dropped = (path, found), latest[found.reader]
            if kept[1].saved < dropped[1].saved:
                kept, dropped = dropped, kept
            notes.append(f"{dropped[0].name} is left out: {kept[0].name} is of the same reader and was saved later.")
            latest[found.reader] = kept
        else:
            latest[found.reader] = path, found
    notes += [f"{path.name} is left out: it has no answers." for path, found in latest.values() if not found.answers]
    readers = sorted((found for _, found in latest.values() if found.answers), key=lambda one: (one.started, one.reader))
    if not readers:
        raise DataError(key_path, "no answers to this study are left. Pass files of its page with at least one answer.")
    return key, Collection(readers, [CONTROLS.sub(" ", note) for note in notes])


def _parse(path: Path, expected: str, adapter: TypeAdapter) -> Any:
    """Reads and validates a file of the given format."""
    content = read_json(path)
    noun, other = ("a key", ANSWERS_FORMAT) if expected == KEY_FORMAT else ("answers", KEY_FORMAT)
    if content.get("format") == other:
        raise DataError(path, "holds answers, not a key" if noun == "a key" else "is a key, not answers; pass it with --key")
    if content.get("format") != expected:
        raise DataError(path, f"does not hold {noun} of a study (format: {_shorten(content.get('format'))}, not {expected})")
    if content.get("version") != VERSION:
        raise DataError(path, f"has the version {_shorten(content.get('version'))}; this version of pathsynth reads {VERSION}")
    if content.get("kind") not in KINDS:
        raise DataError(path, f"has the kind {_shorten(content.get('kind'))}; allowed: {', '.join(KINDS)}")
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # pydantic adds the kind, by which it selects the model
        where = ".".join(str(part) for part in first["loc"][1:])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(path, (f"{where}: {message}" if where else message) + more) from error


def _shorten(value: Any, length: int = MAX_SHOWN) -> str:
    """Quotes a value of a file for a message."""
    if isinstance(value, str) and len(value) > length:
        return f"'{value[:length]}…'"
    text = repr(value)
    return text if len(text) <= 2 * length else f"{text[:length]}…"
