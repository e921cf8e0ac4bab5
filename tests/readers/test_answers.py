"""Reading of keys and answers: every damaged, foreign or incomplete file gets one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fake_answers import answer_truly, make_answers, make_key, make_preference_key, write_files

from pathsynth.core.errors import DataError, PathsynthError
from pathsynth.readers.answers import collect_answers, read_answers, read_key

KEY = make_key(2)
RIGHT = answer_truly(KEY)


def read(folder: Path, content: object) -> object:
    path = folder / "answers.json"
    path.write_text(json.dumps(content))
    return read_answers(path, read_key(write_files(folder, KEY, [])[1]))


def fail(folder: Path, content: object) -> str:
    with pytest.raises(DataError) as error:
        read(folder, content)
    assert "\n" not in error.value.message and len(error.value.message) < 600
    return error.value.message.removeprefix(f"{folder / 'answers.json'}: ")


def change(number: int, **changed: object) -> dict:
    return make_answers(KEY, [answer | (changed if place == number else {}) for place, answer in enumerate(RIGHT)])


def test_key_and_answers_are_read(tmp_path):
    found = read(tmp_path, make_answers(KEY, RIGHT, name=" Ann\x1b[2J\n " + "x" * 200))
    assert found.name.startswith("Ann [2J ") and len(found.name) == 80
    assert len(found.answers) == 12 and found.complete


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a JSON list, not an object"),
        ({}, "does not hold answers of a study (format: None, not pathsynth-answers)"),
        (KEY, "is a key, not answers; pass it with --key"),
        (make_answers(KEY, RIGHT, version=2), "has the version 2; this version of pathsynth reads 1"),
        (make_answers(KEY, RIGHT, kind="quiz"), "has the kind 'quiz'; allowed: study, preference"),
        (make_answers(KEY, RIGHT, kind=[1]), "has the kind [1]; allowed: study, preference"),
        (make_answers(KEY, [], kind="preference"), "answers a preference page, but the key is that of a study page"),
        (
            make_answers(KEY, RIGHT, study="6" * 64),
            "answers the study '666666666666…', but the key is that of '555555555555…'. "
            "Pass the key that was written with the page.",
        ),
        (change(0, id="999"), "answers trial '999', which the study does not have"),
        (change(0, id="002"), "answers trial '002' twice"),
        (change(3, tissue="<script>"), "names '<script>' for trial '004', which is not a class of this study"),
        (change(0, origin="fake"), "answers.0.origin: Input should be 'real' or 'synthetic'"),
        (change(5, confidence=6), "answers.5.confidence: Input should be less than or equal to 5"),
        (change(5, confidence=True), "answers.5.confidence: Input should be a valid integer"),
        (change(0, seconds=-1), "answers.0.seconds: Input should be greater than or equal to 0"),
        (change(0, seconds=1e300), "answers.0.seconds: Input should be less than or equal to 1000000"),
        (make_answers(KEY, RIGHT, started="yesterday"), "started: "),
        (make_answers(KEY, RIGHT, saved="2026-01-01T10:00:00"), "saved: Input should have timezone info"),
    ],
)
def test_wrong_answers_are_one_line(tmp_path, content, message):
    assert fail(tmp_path, content).startswith(message)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"format": NaN}', b"[" * 100_000])
def test_damaged_file_is_one_line(tmp_path, data):
    path = tmp_path / "damaged.json"
    path.write_bytes(data)
    with pytest.raises(PathsynthError, match=r"damaged\.json") as error:
        read_key(path)
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": []}, "trials: List should have at least 1 item"),
        ({"classes": ["adipose", "mucus"]}, "has the tissue 'smooth_muscle', which is not a class of this study"),
        ({"classes": [*KEY["classes"], "mucus"]}, "class 'mucus' appears twice"),
        ({"trials": [KEY["trials"][0], KEY["trials"][0]]}, "trial '001' appears twice"),
        (
            {"trials": [KEY["trials"][0] | {"repeats": "009"}]},
            "trial '001' repeats '009', which is not the first showing of this image",
        ),
        (
            {"trials": [KEY["trials"][0] | {"gate": {"predicted": "bone", "confidence": 1}}]},
            "the gate predicts 'bone' for trial '001', which is not a class of this study",
        ),
        ({"trials": [KEY["trials"][0] | {"tissue": 3}]}, "trials.0.tissue: Input should be a valid string"),
    ],
)
def test_wrong_key_is_one_line(tmp_path, changed, message):
    with pytest.raises(DataError) as error:
        read_key(write_files(tmp_path, KEY | changed, [])[1])
    assert message in error.value.message and "\n" not in error.value.message


def test_pair_of_one_configuration_is_an_error(tmp_path):
    with pytest.raises(DataError, match="trial '001' compares 'r8' with itself"):
        read_key(write_files(tmp_path, make_preference_key([("r8", "r8")]), [])[1])


def test_answers_instead_of_a_key(tmp_path):
    (path,), _ = write_files(tmp_path, KEY, [make_answers(KEY, RIGHT)])
    with pytest.raises(DataError, match="holds answers, not a key"):
        read_key(path)


@pytest.mark.parametrize("order", [1, -1])
def test_later_file_of_a_reader_counts_whatever_the_order(tmp_path, order):
    later = make_answers(KEY, RIGHT[:5], saved="2026-01-01T12:30:00+01:00")
    files, key = write_files(tmp_path, KEY, [make_answers(KEY, RIGHT), later, make_answers(KEY, RIGHT, reader=2)])
    _, found = collect_answers([*files[::order], files[0], key], key)
    assert [len(reader.answers) for reader in found.readers] == [5, 12]
    assert found.notes == ["answers-1.json is left out: answers-2.json is of the same reader and was saved later."]


def test_empty_answers_are_left_out_and_none_at_all_is_an_error(tmp_path):
    files, key = write_files(tmp_path, KEY, [make_answers(KEY, []), make_answers(KEY, RIGHT[:1], reader=2)])
    _, found = collect_answers(files, key)
    assert len(found.readers) == 1 and found.notes == ["answers-1.json is left out: it has no answers."]
    for paths in ([], [key], files[:1]):
        with pytest.raises(DataError, match="no answers to this study are left"):
            collect_answers(paths, key)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("changed")


@given(st.sampled_from(sorted(make_answers(KEY, RIGHT))), VALUES, st.sampled_from(sorted(RIGHT[0])), VALUES)
def test_any_change_is_read_or_is_one_line(folder, name, value, field, inner):
    for content in (make_answers(KEY, RIGHT) | {name: value}, change(0, **{field: inner})):
        try:
            read(folder, content)
        except PathsynthError as error:
            assert "\n" not in error.message
