"""Writes are atomic and reproducible; a damaged file is a one-line error that names it."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathsynth.core import io as files
from pathsynth.core.errors import DataError, OutOfMemory
from pathsynth.core.metric_files import get_nested, read_details, write_details
from pathsynth.core.rows import select_rows

LARGE = np.random.default_rng(0).integers(0, 256, (400, 100), np.uint8)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (40, 8, 8, 3), np.uint8), "labels": np.arange(40, dtype=np.uint8)[:, None]}


@pytest.fixture
def archive(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    files.write_npz(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


@contextmanager
def _raises_one_line(path: Path, problem: str) -> Iterator[None]:
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{problem}") as caught:
        yield
    assert "\n" not in str(caught.value)


# Atomic writes


def test_failed_block_keeps_old_file_and_leaves_no_other(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as part:
        part.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_is_one_line_error_and_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "scores.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, fail)
    with _raises_one_line(path, "could not be written: No space left on device$"):
        files.write_json(path, {"a": 1})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_npz(path, a=LARGE),
        lambda path: files.write_csv(path, pd.DataFrame(LARGE)),
        lambda path: files.write_json(path, {str(i): i for i in range(9999)}),
    ],
    ids=["npz", "csv", "json"],
)
def test_file_size_limit_is_one_line_error_and_keeps_old_file(tmp_path: Path, write):
    path, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with _raises_one_line(path, "could not be written: File too large$"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_path_under_a_file_or_at_a_folder_is_one_line_error(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.json", tmp_path / "folder"):
        with _raises_one_line(path, "could not be written"):
            files.write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_missing_folders_are_made_and_temporary_name_keeps_suffix(tmp_path: Path):
    with files.atomic_write(tmp_path / "new" / "weights.safetensors") as part:
        assert part.suffix == ".safetensors"
        part.touch()
    assert os.listdir(tmp_path / "new") == ["weights.safetensors"]


# JSON and CSV


def test_json_keeps_order_and_ends_with_newline(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": {"é": 0.5}})
    assert path.read_bytes() == '{\n  "b": 1,\n  "a": {\n    "é": 0.5\n  }\n}\n'.encode()
    assert list(files.read_json(path)) == ["b", "a"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_number_is_reported_by_key(tmp_path: Path, number: float):
    with _raises_one_line(tmp_path / "a.json", r"scores\.1\.f1: not a finite number"):
        files.write_json(tmp_path / "a.json", {"n": 1.0, "scores": [0, {"f1": number}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "could not be read: No such file or directory$"),
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 9999, "is not JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b'{"a": NaN}', "a: not a finite number"),
        (b'{"a": 1e999}', "a: not a finite number"),
    ],
)
def test_unreadable_json_is_one_line_error(tmp_path: Path, content: bytes | None, problem: str):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with _raises_one_line(tmp_path / "a.json", problem):
        files.read_json(tmp_path / "a.json")


def test_details_are_a_list_of_one_object_and_older_ones_are_bare(tmp_path: Path):
    path, details = tmp_path / "details.json", {"scores": {"f1": 0.5}}
    write_details(path, details)
    assert path.read_text().startswith("[\n  {") and read_details(path) == details
    files.write_json(path, details)
    assert get_nested(read_details(path), ("scores", "f1")) == 0.5
    assert get_nested(details, ("scores", "f1", "low")) is get_nested(details, ("f1",)) is None


def test_csv_has_no_index_unix_line_ends_and_no_formulas(tmp_path: Path):
    files.write_csv(tmp_path / "a.csv", pd.DataFrame({"slot": [-1, 1], "tissue": ["mucus", "=1+1"]}))
    assert (tmp_path / "a.csv").read_bytes() == b"slot,tissue\n-1,mucus\n1,'=1+1\n"


# .npy and .npz


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.zeros((0, 3), np.float32),
        np.arange(12).reshape(3, 4).T,
        np.arange(10)[::2],
    ],
    ids=["matrix", "empty", "transposed", "strided"],
)
def test_npy_chunks_are_what_numpy_writes(tmp_path: Path, array: np.ndarray):
    files.write_npy_chunks(tmp_path / "a.npy", array.shape, array.dtype, (array[i : i + 2] for i in range(0, len(array), 2)))
    expected = io.BytesIO()
    np.save(expected, np.ascontiguousarray(array))
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()


def test_chunks_that_do_not_fit_and_objects_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="do not add up"):
        files.write_npy_chunks(tmp_path / "a.npy", (3, 2), np.dtype(np.uint8), [np.zeros((2, 2), np.uint8)])
    with pytest.raises(ValueError, match="pickle"):
        files.write_npz(tmp_path / "a.npz", a=np.array([{}]))
    assert os.listdir(tmp_path) == ["a.npy"]


def test_npz_round_trip_agrees_with_numpy(archive: Path, arrays: dict[str, np.ndarray]):
    ours = files.read_npz(archive, ["labels", "images"])
    assert list(ours) == ["labels", "images"]
    with np.load(archive, allow_pickle=False) as theirs:
        for key, array in arrays.items():
            assert ours[key].dtype == array.dtype
            np.testing.assert_array_equal(ours[key], array)
            np.testing.assert_array_equal(theirs[key], array)
            np.testing.assert_array_equal(np.concatenate(list(files.stream_npz(archive, key, 7))), array)


def test_same_arrays_give_the_same_bytes(archive: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    fortran = {key: np.asfortranarray(array) for key, array in arrays.items()}
    files.write_npz(archive.with_name("again.npz"), **fortran)
    assert archive.read_bytes() == archive.with_name("again.npz").read_bytes()
    with zipfile.ZipFile(archive) as members:
        assert {info.date_time for info in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_fortran_order_is_read_but_not_streamed(tmp_path: Path):
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.savez(tmp_path / "a.npz", images=array)
    np.testing.assert_array_equal(files.read_npz(tmp_path / "a.npz", ["images"])["images"], array)
    with _raises_one_line(tmp_path / "a.npz", "images: is in Fortran order; save it again after numpy.ascontiguousarray"):
        list(files.stream_npz(tmp_path / "a.npz", "images", 1))


def test_missing_key_is_reported_with_those_present(archive: Path):
    with _raises_one_line(archive, "has no array train_images; it holds images, labels$"):
        files.read_npz(archive, ["images", "train_images"])


def _npz_of(header: str, data: bytes = b"\0" * 7) -> bytes:
    """An archive whose member `images` has the given text as its header."""
    text, content = header.encode() + b"\n", io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return content.getvalue()


def _npz_of_shape(shape: str) -> bytes:
    return _npz_of(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")


def _pickled_npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, images=np.array([{"a": 1}], dtype=object))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "could not be read: No such file or directory$"),
        (b"", "is not an .npz archive, or it is damaged"),
        (b"not a zip", "is not an .npz archive, or it is damaged"),
        (_npz_of_shape("(7,)")[:-30], "is not an .npz archive, or it is damaged"),
        (_npz_of("("), "is not an .npz archive, or it is damaged"),
        (_pickled_npz(), "pickled Python objects, which are never loaded; store numbers$"),
        # a size that the member does not have is noticed before memory is taken for it
        (_npz_of_shape("(1000000000000,)"), "1000000000000 bytes, but holds 7 bytes$"),
        (_npz_of_shape("(4294967296, 4294967296)"), "18446744073709551616 bytes, but holds 7 bytes$"),
        (_npz_of_shape("(-1, -8)"), "8 bytes, but holds 7 bytes$"),
        (_npz_of_shape("(2,)"), "2 bytes, but holds 7 bytes$"),
    ],
)
def test_unreadable_archive_is_one_line_error(tmp_path: Path, content: bytes | None, problem: str):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    for read in (files.read_npz, files.read_npz_shapes, lambda path, keys: list(files.stream_npz(path, *keys, 1))):
        with _raises_one_line(path, problem):
            read(path, ["images"])


def test_any_damaged_byte_is_harmless(tmp_path: Path):
    """Whichever byte is wrong, the array comes back unchanged or the archive is refused in one line."""
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


def test_npy_is_mapped_read_only_and_damage_is_one_line_error(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(3))
    assert isinstance(files.read_npy(tmp_path / "a.npy"), np.memmap)
    assert not files.read_npy(tmp_path / "a.npy").flags.writeable
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for content in (b"", b"no array", b"\x93NUMPY\x01\x00", (tmp_path / "a.npy").read_bytes()[:-1], pickled.getvalue()):
        (tmp_path / "b.npy").write_bytes(content)
        with _raises_one_line(tmp_path / "b.npy", "is not a .npy file, or it is damaged"):
            files.read_npy(tmp_path / "b.npy")


def test_selected_rows_are_those_of_numpy(tmp_path: Path):
    array = np.random.default_rng(0).normal(size=(20, 3))
    np.save(tmp_path / "a.npy", array)
    some = np.array([1, 2, 7, 11, 19])
    nested = select_rows(select_rows(files.read_npy(tmp_path / "a.npy"), some), np.array([0, 3, 4]))
    assert (len(nested), nested.shape, nested.dtype) == (3, (3, 3), array.dtype)
    np.testing.assert_array_equal(nested[1:], array[[11, 19]])
    np.testing.assert_array_equal(nested[np.array([0, 2])], array[[1, 19]])


def test_file_larger_than_memory_is_not_called_damaged():
    with (
        pytest.raises(OutOfMemory, match=r"out of memory: x\.npz does not fit"),
        files.catch_read_errors("x.npz", "an .npz archive"),
    ):
        raise MemoryError
