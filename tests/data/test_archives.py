"""Archives in MedMNIST's format: what is read is what was written, and every fault is one line that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE

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


def _refusal(folder: Path, arrays: Arrays, **changes: np.ndarray | None) -> str:
    """The line with which the archive is refused after some arrays were exchanged, or left out for None."""
    path = folder / "set.npz"
    np.savez(path, **{key: array for key, array in {**arrays, **changes}.items() if array is not None})
    with pytest.raises(DataError) as caught:
        archives.read_archive(path, 3)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_data_set_is_read_with_flat_labels(tmp_path: Path, arrays: Arrays):
    files.write_npz(tmp_path / "set.npz", **arrays)
    splits = archives.read_archive(tmp_path / "set.npz", 3)
    assert list(splits) == ["train", "val", "test"]
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(images, arrays[f"{split}_images"])
        np.testing.assert_array_equal(labels, arrays[f"{split}_labels"][:, 0])
        assert images.dtype == labels.dtype == np.uint8


def test_labels_may_be_flat_already(tmp_path: Path, arrays: Arrays):
    arrays["val_labels"] = arrays["val_labels"][:, 0]
    files.write_npz(tmp_path / "set.npz", **arrays)
    assert archives.read_archive(tmp_path / "set.npz", 3)["val"][1].shape == (12,)


def test_a_split_that_is_missing(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, val_images=None, test_labels=None)
    assert message.startswith("has no array val_images, test_labels; it holds train_images,")


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.int8, bool])
def test_images_or_labels_of_another_type(tmp_path: Path, arrays: Arrays, kind: type):
    name = np.dtype(kind).name
    assert _refusal(tmp_path, arrays, val_images=arrays["val_images"].astype(kind)) == f"val_images: {name}, not uint8"
    assert _refusal(tmp_path, arrays, test_labels=arrays["test_labels"].astype(kind)) == f"test_labels: {name}, not uint8"


def test_pickled_labels(tmp_path: Path, arrays: Arrays):
    assert "pickled" in _refusal(tmp_path, arrays, train_labels=arrays["train_labels"].astype(object))


def test_a_label_out_of_range(tmp_path: Path, arrays: Arrays):
    arrays["test_labels"][5] = 3
    assert _refusal(tmp_path, arrays) == "test_labels: label 3 is not one of 0 to 2"


@pytest.mark.parametrize("split", archives.SPLITS)
def test_a_class_without_images(tmp_path: Path, arrays: Arrays, split: str):
    arrays[f"{split}_labels"][arrays[f"{split}_labels"] == 1] = 0
    assert _refusal(tmp_path, arrays) == f"{split}_labels: no image with label 1; every label from 0 to 2 needs one"


def test_a_split_without_images(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, val_images=arrays["val_images"][:0], val_labels=arrays["val_labels"][:0])
    assert message.startswith("val_labels: no image with label 0, 1, 2;")


def test_lengths_that_differ(tmp_path: Path, arrays: Arrays):
    assert _refusal(tmp_path, arrays, train_labels=arrays["train_labels"][:-1]) == "train: 12 images but 11 labels"


def test_grey_images_where_colour_is_wanted(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, train_images=arrays["train_images"][..., 0])
    assert message.endswith("is grey, expected (N, H, H, 3); grey sets need dataset.channels: 1")


def test_volumes_are_refused_with_the_reason(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, train_images=np.zeros((12, 8, 8, 8), np.uint8))
    assert "is of volumes; only flat images" in message


def test_multi_label_sets_are_refused_with_the_reason(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, train_labels=np.zeros((12, 14), np.uint8))
    assert message == "train_labels: shape (12, 14) is multi-label; a prompt asks for one label, so (N, 1) or (N,) is wanted"


@pytest.mark.parametrize("shape", [(12, 8, 6, 3), (12, 3, 8, 8), (12, 8, 8, 4), (12, 1, 8, 8, 3), (12, 0, 0, 3), (2304,), ()])
def test_images_of_another_shape(tmp_path: Path, arrays: Arrays, shape: tuple[int, ...]):
    message = _refusal(tmp_path, arrays, train_images=np.zeros(shape, np.uint8))
    assert message == f"train_images: shape {shape}, not (N, H, H, 3)"


@pytest.mark.parametrize("shape", [(12, 1, 1), (), (12, 0)])
def test_labels_of_another_shape(tmp_path: Path, arrays: Arrays, shape: tuple[int, ...]):
    message = _refusal(tmp_path, arrays, train_labels=np.zeros(shape, np.uint8))
    assert message == f"train_labels: shape {shape}, not (N, 1) or (N,)"


def test_splits_of_different_sizes(tmp_path: Path, arrays: Arrays):
    message = _refusal(tmp_path, arrays, test_images=arrays["test_images"][:, :6, :6])
    assert message == "the splits have images of different sizes, in pixels: train 8, val 8, test 6"


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_a_generated_set_comes_back(tmp_path: Path, arrays: Arrays, kind: type):
    images, labels = arrays["train_images"], arrays["train_labels"][:, 0]
    archives.write_archive(tmp_path / "raw.npz", images, labels.astype(kind))
    read_images, read_labels = archives.read_generated(tmp_path / "raw.npz", tmp_path / "unpacked")
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)
    assert read_labels.dtype == np.uint8
    with np.load(tmp_path / "raw.npz", allow_pickle=False) as stored:
        assert stored["train_labels"].shape == (12, 1)


def test_a_generated_set_may_be_empty(tmp_path: Path):
    archives.write_archive(tmp_path / "raw.npz", np.empty((0, 8, 8, 3), np.uint8), np.empty(0, np.int64))
    images, labels = archives.read_generated(tmp_path / "raw.npz", tmp_path / "unpacked")
    assert (images.shape, labels.shape) == ((0, 8, 8, 3), (0,))


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.uint8), "train_images: float32, not uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, np.uint8), "train: 2 images but 3 labels"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 256]), "0 to 256 is not within 0 to 255"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([-1, 0]), "-1 to 0 is not within 0 to 255"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2), "train_labels: float64, not uint8"),
    ],
)
def test_what_is_no_generated_set_is_not_written(tmp_path: Path, images: np.ndarray, labels: np.ndarray, problem: str):
    with pytest.raises(DataError, match=problem):
        archives.write_archive(tmp_path / "raw.npz", images, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_generated_set_without_labels_is_refused(tmp_path: Path):
    np.savez(tmp_path / "raw.npz", train_images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="has no array train_labels"):
        archives.read_generated(tmp_path / "raw.npz", tmp_path / "unpacked")


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample of real images is not here")
def test_a_sample_of_real_images():
    splits = archives.read_archive(SAMPLE, 9)
    assert {split: images.shape for split, (images, _) in splits.items()} == {
        "train": (302, 28, 28, 3),
        "val": (85, 28, 28, 3),
        "test": (115, 28, 28, 3),
    }
    assert np.bincount(splits["train"][1]).tolist() == [62, 33, 11, 25, 47, 25, 36, 12, 51]
