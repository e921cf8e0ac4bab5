"""Archives in MedMNIST's format round-trip, and a user's archive with any fault is a one-line error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE, needs_sample

from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data import archives

Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> Arrays:
    """A data set of three classes, four images of each in every split."""
    rng = np.random.default_rng(0)
    made = {}
    for split in archives.SPLITS:
        made[f"{split}_images"] = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
        made[f"{split}_labels"] = np.tile(np.arange(3, dtype=np.uint8), 4)[:, None]
    return made


def test_data_set_is_read_with_flat_labels(tmp_path: Path, arrays: Arrays):
    arrays["val_labels"] = arrays["val_labels"][:, 0]
    files.write_npz(tmp_path / "set.npz", **arrays)
    splits = archives.read_archive(tmp_path / "set.npz", 3)
    assert list(splits) == ["train", "val", "test"]
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(np.concatenate(list(archives.iter_chunks(images))), arrays[f"{split}_images"])
        np.testing.assert_array_equal(labels, np.tile([0, 1, 2], 4))
        assert images.dtype == labels.dtype == np.uint8


def _as_dtypes(images: type | str, labels: type | str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: array.astype(images if "images" in key else labels) for key, array in arrays.items()}


def _move_channels(arrays: Arrays) -> Arrays:
    return {key: np.moveaxis(array, -1, 1) if "images" in key else array for key, array in arrays.items()}


@pytest.mark.parametrize("change", [
    _as_dtypes(np.int64, np.int64), _as_dtypes(np.int16, np.int8), _as_dtypes(">u2", ">i4"), _as_dtypes(np.uint64, np.float32),
    _move_channels, lambda arrays: _move_channels(_as_dtypes(np.int32, np.float16)(arrays)),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 10**6])
def test_other_dtypes_and_axes_give_the_same_images(
    tmp_path: Path, arrays: Arrays, change: Callable, channels: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(archives, "CHUNK_BYTES", chunk_bytes)
    arrays = {key: array[..., :channels] if "images" in key else array for key, array in arrays.items()}
    np.savez(tmp_path / "set.npz", **{key: np.ascontiguousarray(array) for key, array in change(arrays).items()})
    for split, (images, labels) in archives.read_archive(tmp_path / "set.npz", 3, channels).items():
        expected = arrays[f"{split}_images"] if channels == 3 else arrays[f"{split}_images"][..., 0]
        chunks = list(archives.iter_chunks(images))
        assert len(chunks) == -(-len(images) // archives.rows_per_chunk(images))
        np.testing.assert_array_equal(np.concatenate(chunks), expected)
        unpacked = archives.unpack_split(tmp_path / "set.npz", tmp_path, split)
        np.testing.assert_array_equal(unpacked[0], archives.expand_grey(expected))
        for found in (labels, unpacked[1]):
            np.testing.assert_array_equal(found, np.tile([0, 1, 2], 4))
        assert images.shape == expected.shape and chunks[0].dtype == labels.dtype == unpacked[0].dtype == np.uint8


@pytest.mark.parametrize("change", [lambda arrays: arrays, _move_channels, _as_dtypes(np.int32, np.uint8)])
@pytest.mark.parametrize("chunk_bytes", [1, 800, 10**6])
@pytest.mark.parametrize("indices", [[0, 11], [3, 4, 5, 9], []])
def test_selected_images_are_read_in_order(
    tmp_path: Path, arrays: Arrays, change: Callable, chunk_bytes: int, indices: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(archives, "CHUNK_BYTES", chunk_bytes)
    np.savez(tmp_path / "set.npz", **{key: np.ascontiguousarray(array) for key, array in change(arrays).items()})
    whole, _ = archives.read_archive(tmp_path / "set.npz", 3)["train"]
    images = whole.select(np.array(indices, np.int64))
    assert (len(images), images.shape) == (len(indices), (len(indices), *whole.shape[1:]))
    assert (images.available, archives.count_available(whole), archives.count_available(np.zeros(2))) == (12, 12, 2)
    rows = archives.rows_per_chunk(images)
    chunks = [np.zeros((0, *images.shape[1:]), np.uint8), *archives.iter_chunks(images)]
    assert all(0 < len(chunk) <= rows for chunk in chunks[1:])
    np.testing.assert_array_equal(np.concatenate(chunks), arrays["train_images"][indices])


@pytest.mark.parametrize(("dtype", "value"), [(np.int64, -1), (np.uint16, 256), (np.uint64, 2**64 - 1)])
def test_value_out_of_range_is_found_while_images_are_read(
    tmp_path: Path, arrays: Arrays, dtype: type, value: int, monkeypatch: pytest.MonkeyPatch
):
    arrays["val_images"] = arrays["val_images"].astype(dtype)
    arrays["val_images"][7, 2:] = value
    np.savez(tmp_path / "set.npz", **arrays)
    monkeypatch.setattr(archives, "CHUNK_BYTES", 5 * 8 * 8 * 3 * np.dtype(dtype).itemsize)
    images, _ = archives.read_archive(tmp_path / "set.npz", 3)["val"]
    with pytest.raises(DataError) as caught:
        list(archives.iter_chunks(images))
    problem = f"val_images: image 7 has the value {value}; only 0 to 255 can be stored as uint8"
    assert str(caught.value) == f"{tmp_path / 'set.npz'}: {problem}"


IMAGES, LABELS = np.zeros((12, 8, 8, 3), np.uint8), np.tile(np.arange(3, dtype=np.uint8), 4)[:, None]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"val_images": None, "test_labels": None}, "has no array val_images, test_labels; it holds train_images, "),
        ({"val_images": IMAGES / 255}, "val_images: float64, expected uint8; store 0 to 255 as uint8 (values from 0 to 1: mul"),
        ({"val_images": IMAGES.astype(bool)}, "val_images: bool, expected uint8; store 0 to 255 as uint8"),
        ({"test_labels": LABELS.astype(bool)}, "test_labels: bool, expected integers; store the number of each image's class"),
        ({"test_labels": LABELS.astype(str)}, "test_labels: <U3, expected integers; store the number of each image's class"),
        ({"train_labels": LABELS.astype(object)}, "train_labels holds pickled Python objects, which are never loaded; store n"),
        ({"test_labels": LABELS + 1}, "test_labels: label 3 is not in 0 to 2; labels start at 0, so subtract 1"),
        ({"test_labels": LABELS * 2}, "test_labels: label 4 is not in 0 to 2"),
        ({"test_labels": LABELS.astype(np.int64) - 1}, "test_labels: label -1 is not in 0 to 2"),
        ({"test_labels": LABELS + np.int64(2**40)}, "test_labels: label 1099511627778 is not in 0 to 2"),
        ({"test_labels": LABELS / 2}, "test_labels: label 0.5 of image 1 is not a whole number"),
        ({"test_labels": np.where(LABELS == 2, np.nan, LABELS)}, "test_labels: label nan of image 2 is not a whole number"),
        ({"test_labels": np.where(LABELS == 2, np.inf, LABELS)}, "test_labels: label inf is not in 0 to 2"),
        ({"val_labels": LABELS // 2 * 2}, "val_labels: no image with label 1; every label from 0 to 2 needs one"),
        ({"val_images": IMAGES[:0], "val_labels": LABELS[:0]}, "val_labels: no image with label 0, 1, 2;"),
        ({"train_labels": LABELS[:-1]}, "train: 12 images but 11 labels"),
        ({"train_images": IMAGES[..., 0]}, "is grey, expected (N, H, H, 3); for grey images set dataset.channels: 1"),
        ({"train_images": np.zeros((12, 8, 8, 8), np.uint8)}, "contains volumes, but only flat images"),
        (
            {"train_images": np.zeros((12, 8, 8, 4), np.uint8)},
            "has an alpha channel, expected (N, H, H, 3); store only red, gr",
        ),
        (
            {"train_images": np.zeros((12, 4, 8, 8), np.uint8)},
            "has an alpha channel, expected (N, H, H, 3); store only red, gr",
        ),
        ({"train_images": np.zeros((12, 1, 8, 8), np.uint8)}, "shape (12, 1, 8, 8) is grey, expected (N, H, H, 3); for grey"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "train_labels: shape (12, 14) is multi-label, but a prompt names one"),
        ({"train_labels": np.eye(3)[LABELS[:, 0]]}, "label; if it is one-hot, store labels.argmax(axis=1)"),
        ({"test_images": IMAGES[:, :6, :6]}, "the splits have images of different sizes, in pixels: train 8, val 8, test 6"),
    ],
)
def test_fault_of_an_archive_is_one_line_error(tmp_path: Path, arrays: Arrays, changes: dict, problem: str):
    path = tmp_path / "set.npz"
    np.savez(path, **{key: array for key, array in {**arrays, **changes}.items() if array is not None})
    with pytest.raises(DataError) as caught:
        archives.read_archive(path, 3)
    assert str(caught.value).startswith(f"{path}: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(12, 8, 6, 3), (12, 3, 8, 6), (12, 8, 8, 2), (12, 1, 8, 8, 3), (12, 0, 0, 3), (2304,), ()])
def test_other_image_shape_is_one_line_error(tmp_path: Path, arrays: Arrays, shape: tuple[int, ...]):
    np.savez(tmp_path / "set.npz", **{**arrays, "train_images": np.zeros(shape, np.uint8)})
    with pytest.raises(DataError) as caught:
        archives.read_archive(tmp_path / "set.npz", 3)
    assert str(caught.value).endswith(f"set.npz: train_images: shape {shape} is not (N, H, H, 3)")


@pytest.mark.parametrize("shape", [(12, 1, 1), (), (12, 0)])
def test_other_label_shape_is_one_line_error(tmp_path: Path, arrays: Arrays, shape: tuple[int, ...]):
    np.savez(tmp_path / "set.npz", **{**arrays, "train_labels": np.zeros(shape, np.uint8)})
    with pytest.raises(DataError) as caught:
        archives.read_archive(tmp_path / "set.npz", 3)
    assert str(caught.value).endswith(f"set.npz: train_labels: shape {shape} is not (N, 1) or (N,)")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_generated_images_round_trip(tmp_path: Path, arrays: Arrays, dtype: type):
    images, labels = arrays["train_images"], arrays["train_labels"][:, 0]
    archives.write_archive(tmp_path / "raw.npz", images, labels.astype(dtype))
    read_images, read_labels = archives.unpack_split(tmp_path / "raw.npz", tmp_path / "unpacked")
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)
    assert read_labels.dtype == np.uint8
    with np.load(tmp_path / "raw.npz", allow_pickle=False) as stored:
        assert stored["train_labels"].shape == (12, 1)


def test_grey_images_are_stored_with_one_channel(tmp_path: Path):
    grey = archives.expand_grey(np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8))
    archives.write_archive(tmp_path / "raw.npz", grey, np.zeros(5, np.uint8), channels=1)
    with np.load(tmp_path / "raw.npz", allow_pickle=False) as stored:
        assert stored["train_images"].shape == (5, 8, 8)
    np.testing.assert_array_equal(archives.unpack_split(tmp_path / "raw.npz", tmp_path)[0], grey)


def test_generated_set_may_be_empty(tmp_path: Path):
    archives.write_archive(tmp_path / "raw.npz", np.empty((0, 8, 8, 3), np.uint8), np.empty(0, np.int64))
    images, labels = archives.unpack_split(tmp_path / "raw.npz", tmp_path / "unpacked")
    assert (images.shape, labels.shape) == ((0, 8, 8, 3), (0,))


def test_generated_set_without_labels_is_one_line_error(tmp_path: Path):
    np.savez(tmp_path / "raw.npz", train_images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="has no array train_labels"):
        archives.unpack_split(tmp_path / "raw.npz", tmp_path / "unpacked")


@needs_sample
def test_sample_of_real_images():
    splits = archives.read_archive(SAMPLE, 9)
    assert {split: images.shape for split, (images, _) in splits.items()} == {
        "train": (801, 28, 28, 3),
        "val": (199, 28, 28, 3),
        "test": (502, 28, 28, 3),
    }
    assert np.bincount(splits["train"][1]).tolist() == [85, 95, 86, 112, 73, 116, 66, 73, 95]
