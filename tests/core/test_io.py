"""Files are whole or absent, and nothing that a damaged file says is believed."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathsynth.core import io as files
from pathsynth.core.errors import DataError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (40, 8, 8, 3), np.uint8), "labels": np.arange(40, dtype=np.uint8)[:, None]}


@pytest.fixture
def archive(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    files.write_npz(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def _zip(path: Path, member: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", member)
    return path


def _npy(header: str) -> bytes:
    """A version 1.0 .npy header around the given text, with no data after it."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refusal(path: Path, keys: tuple[str, ...] = ("images",)) -> str:
    with pytest.raises(DataError) as caught:
        files.read_npz(path, keys)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as part:
        part.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, old: str | None):
    path = tmp_path / "scores.json"
    if old is not None:
        path.write_text(old)
    monkeypatch.setattr(os, call, _full_disk)
    with pytest.raises(DataError, match=r"scores\.json: could not be written: No space left on device$"):
        files.write_json(path, {"a": 1})
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_disk_that_fills_while_an_archive_is_written(
    archive: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    before = archive.read_bytes()
    monkeypatch.setattr(files.NpyWriter, "add", _full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        files.write_npz(archive, **arrays)
    assert archive.read_bytes() == before
    assert list(archive.parent.iterdir()) == [archive]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="could not be written"), files.atomic_write(tmp_path / "a.txt"):
        pass


def test_a_path_under_a_file_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be written"):
        files.write_json(tmp_path / "file" / "a.json", {})


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(DataError, match="could not be written"):
        files.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_missing_folders_are_made_and_the_temporary_name_keeps_the_suffix(tmp_path: Path):
    with files.atomic_write(tmp_path / "new" / "weights.safetensors") as part:
        assert part.suffix == ".safetensors"
        part.touch()
    assert os.listdir(tmp_path / "new") == ["weights.safetensors"]


@pytest.mark.parametrize(
    "writer", ["write_npz(path, a=data)", "write_csv(path, pandas.DataFrame(data))", "write_json(path, big)"]
)
def test_a_limit_of_the_system_gives_one_line(tmp_path: Path, writer: str):
    script = f"""
import resource, sys, numpy, pandas
from pathsynth.errors import DataError
from pathsynth.files import *
path, data = sys.argv[1], numpy.random.default_rng(0).integers(0, 256, (400, 100), "uint8")
big = {{str(i): i for i in range(9999)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    {writer}
except DataError as error:
    sys.exit(str(error))
"""
    path = tmp_path / "out"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr == f"{path}: could not be written: File too large\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_keeps_order_and_ends_with_a_newline(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": {"é": 0.5}})
    assert path.read_bytes() == '{\n  "b": 1,\n  "a": {\n    "é": 0.5\n  }\n}\n'.encode()
    assert list(files.read_json(path)) == ["b", "a"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path: Path, number: float):
    with pytest.raises(DataError, match=r"a\.json: scores\.1\.f1: not a finite number"):
        files.write_json(tmp_path / "a.json", {"n": 1.0, "scores": [0, {"f1": number}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is not JSON"), ('{"a": 1', "is not JSON"), ("\xff", "is not JSON"), ("[1]", "a JSON list"), ("[" * 9999, "JSON")],
)
def test_damaged_json_is_refused(tmp_path: Path, text: str, problem: str):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=problem):
        files.read_json(tmp_path / "a.json")


def test_missing_json_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.json: could not be read: No such file or directory"):
        files.read_json(tmp_path / "a.json")


def test_csv_has_no_index_and_unix_line_ends(tmp_path: Path):
    files.write_csv(tmp_path / "a.csv", pd.DataFrame({"slot": [0, 1], "tissue": ["mucus", "debris"]}))
    assert (tmp_path / "a.csv").read_bytes() == b"slot,tissue\n0,mucus\n1,debris\n"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.zeros((0, 3), np.float32),
        np.float64(2.5),
        np.arange(12).reshape(3, 4).T,
        np.arange(10)[::2],
    ],
    ids=["matrix", "empty", "scalar", "transposed", "strided"],
)
def test_npy_is_what_numpy_writes(tmp_path: Path, array: np.ndarray):
    files.write_npy(tmp_path / "ours.npy", array)
    expected = io.BytesIO()
    np.save(expected, np.asarray(array, order="C"))
    assert (tmp_path / "ours.npy").read_bytes() == expected.getvalue()


def test_npz_comes_back_and_numpy_reads_it(archive: Path, arrays: dict[str, np.ndarray]):
    ours = files.read_npz(archive, ["labels", "images"])
    assert list(ours) == ["labels", "images"]
    with np.load(archive, allow_pickle=False) as theirs:
        for key, array in arrays.items():
            assert ours[key].dtype == array.dtype
            np.testing.assert_array_equal(ours[key], array)
            np.testing.assert_array_equal(theirs[key], array)


def test_the_same_arrays_give_the_same_bytes(archive: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    fortran = {key: np.asfortranarray(array) for key, array in arrays.items()}
    files.write_npz(archive.with_name("again.npz"), **fortran)
    assert archive.read_bytes() == archive.with_name("again.npz").read_bytes()
    with zipfile.ZipFile(archive) as members:
        assert {info.date_time for info in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_objects_are_never_written(tmp_path: Path):
    with pytest.raises(ValueError, match="pickle"):
        files.write_npz(tmp_path / "a.npz", a=np.array([{}]))
    with pytest.raises(ValueError, match="pickle"):
        files.write_npy(tmp_path / "a.npy", np.array([{}]))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_archive_and_a_folder_are_refused(tmp_path: Path):
    assert _refusal(tmp_path / "a.npz").endswith("could not be read: No such file or directory")
    assert _refusal(tmp_path).endswith("could not be read: Is a directory")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x93NUMPY\x01\x00"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    assert "is not a whole .npz archive" in _refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_archive_is_refused(archive: Path, share: float):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    assert "is not a whole .npz archive" in _refusal(archive)


def test_an_archive_that_lacks_a_key_says_what_it_holds(archive: Path):
    assert _refusal(archive, ("images", "train_images")).endswith("has no array train_images; it holds images, labels")


def test_pickled_objects_are_refused_and_others_still_read(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([{"a": 1}], dtype=object), labels=np.arange(3))
    assert "pickled Python objects" in _refusal(path)
    assert files.read_npz(path, ["labels"])["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(1000000, 1000000, 224, 224, 3)", "(4294967296, 4294967296)", "(-1, -8)", "(2,)"]
)
def test_a_size_that_is_not_there_is_refused_before_it_is_taken(tmp_path: Path, shape: str):
    member = _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}") + b"\0" * 7
    assert "claims" in _refusal(_zip(tmp_path / "a.npz", member))


def test_a_directory_that_claims_more_than_deflate_can_hold_is_refused(tmp_path: Path):
    path = _zip(tmp_path / "a.npz", _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,), }") + b"\0" * 4)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "more than" in _refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "(" * 5000,
        "{'descr': '|u1'}",
        "{'descr': 'zz', 'fortran_order': False, 'shape': (1,), }",
        "\x00",
        "'" * 3,
    ],
)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, header: str):
    assert "is not a whole .npz archive" in _refusal(_zip(tmp_path / "a.npz", _npy(header)))


def test_other_versions_and_compressions_are_refused(tmp_path: Path):
    assert ".npy format 9.0" in _refusal(_zip(tmp_path / "a.npz", b"\x93NUMPY\x09\x00" + b"\0" * 9))
    assert "compressed in a way" in _refusal(_zip(tmp_path / "b.npz", _npy("{}"), zipfile.ZIP_BZIP2))


def test_any_damaged_byte_is_harmless(tmp_path: Path):
    """Whatever byte is wrong, the arrays come back as they were, or the archive is refused in one line."""
    path = tmp_path / "a.npz"
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.savez(path, images=array)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read = files.read_npz(path, ["images"])["images"]
        except DataError as error:
            assert "\n" not in str(error)
        else:
            np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"\x93NUMPY\x01\x00", _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10**9,), }")]
)
def test_a_damaged_npy_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: "):
        files.read_npy(tmp_path / "a.npy")


def test_a_mapped_array_is_read_only_and_never_pickled(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(3))
    mapped = files.read_npy(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"b\.npy: "):
        files.read_npy(tmp_path / "b.npy")


def test_json_text_is_what_is_written(tmp_path: Path):
    data = {"splits": {"train": 3}}
    files.write_json(tmp_path / "a.json", data)
    assert (tmp_path / "a.json").read_text() == files.json_text("a.json", data) == json.dumps(data, indent=2) + "\n"
