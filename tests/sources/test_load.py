"""Sources of images, and the stage `prepare` that writes them in the prepared layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import run_stage, tiny_tree, write_params

from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data import archives, labels
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.data.provenance import data_source
from pathsynth.data.settings import FileDataset, MedmnistDataset, PhantomDataset
from pathsynth.sources import phantom
from pathsynth.sources.load import load_source

NAMES = ("smooth muscle", "mucus", "debris")
COUNTS = {"train": 12, "val": 6, "test": 4}
SIZES = {"train_per_tissue": 2, "val_per_tissue": 1, "test_per_tissue": 1}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for split, count in COUNTS.items():
        made[f"{split}_images"] = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
        made[f"{split}_labels"] = np.resize(np.arange(3, dtype=np.uint8), count)[:, None]
    return made


@pytest.fixture
def archive(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    files.write_npz(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def _phantoms(**changes) -> PhantomDataset:
    return PhantomDataset(**{"source": "phantom", "labels": "pathmnist", "channels": 3, "image_size": 32, **SIZES, **changes})


def _file(**changes) -> FileDataset:
    common = {"source": "medmnist_file", "labels": list(NAMES), "channels": 3, "image_size": 16, "path": "set.npz"}
    return FileDataset(**{**common, **changes})


def test_phantoms_are_drawn_for_every_split():
    splits = load_source(_phantoms(), 7)
    assert {split: images.shape for split, (images, _) in splits.items()} == {
        "train": (18, 32, 32, 3),
        "val": (9, 32, 32, 3),
        "test": (9, 32, 32, 3),
    }
    images, indices = phantom.draw_split(1, 7, 32, "val")
    np.testing.assert_array_equal(splits["val"][0], images)
    np.testing.assert_array_equal(splits["val"][1], indices)


@pytest.mark.parametrize("changes", [{"labels": "bloodmnist"}, {"labels": list(NAMES)}, {"channels": 1}])
def test_phantoms_of_other_labels_or_channels_are_refused(changes: dict):
    with pytest.raises(ValueError, match="phantoms support only pathmnist's labels and 3 channels"):
        _phantoms(**changes)


def test_archive_is_read_in_chunks_with_the_same_result(
    archive: Path, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for md5, chunk_bytes, chunks in ((None, 3000, [3, 3, 3, 3]), (hashlib.md5(archive.read_bytes()).hexdigest(), 2**20, [12])):
        monkeypatch.setattr(archives, "CHUNK_BYTES", chunk_bytes)
        splits = load_source(_file(md5=md5), 7, folder=archive.parent)
        assert [len(chunk) for chunk in archives.iter_chunks(splits["train"][0])] == chunks
        write_prepared(tmp_path / "prepared", "tiny", NAMES, splits, {}, 16)
        for split in COUNTS:
            np.testing.assert_array_equal(open_prepared(tmp_path / "prepared").images(split), arrays[f"{split}_images"])


class TestSelection:
    def _labelled(self, folder: Path) -> FileDataset:
        """An archive whose images hold their index in the split and their label."""
        labels_of = np.random.default_rng(0).permutation(np.repeat(np.arange(3, dtype=np.uint8), (40, 20, 30)))
        images = np.zeros((90, 16, 16, 3), np.uint8)
        images[..., 0], images[..., 1] = np.arange(90)[:, None, None], labels_of[:, None, None]
        parts = {"images": images, "labels": labels_of}
        files.write_npz(folder / "set.npz", **{f"{split}_{part}": array for split in COUNTS for part, array in parts.items()})
        return _file(train_per_tissue=12, test_per_tissue=5)

    def _load(self, dataset: FileDataset, folder: Path, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        splits = load_source(dataset, seed, folder=folder)
        return {split: (np.concatenate(list(archives.iter_chunks(images))), y) for split, (images, y) in splits.items()}

    def test_as_many_of_every_tissue_are_drawn_without_replacement(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        dataset = self._labelled(tmp_path)
        monkeypatch.setattr(archives, "CHUNK_BYTES", 7 * 16 * 16 * 3)
        splits = self._load(dataset, tmp_path, 7)
        for split, counts in (("train", [12] * 3), ("val", [40, 20, 30]), ("test", [5] * 3)):
            images, indices = splits[split]
            assert np.bincount(indices).tolist() == counts
            np.testing.assert_array_equal(images[:, 0, 0, 1], indices)
            assert len(set(images[:, 0, 0, 0])) == len(images)
        again, other = (self._load(dataset, tmp_path, seed)["train"][0][:, 0, 0, 0].tolist() for seed in (7, 8))
        assert again == splits["train"][0][:, 0, 0, 0].tolist() != other

    def test_splits_are_drawn_apart(self, tmp_path: Path):
        dataset = self._labelled(tmp_path).model_copy(update={"test_per_tissue": 12})
        splits = self._load(dataset, tmp_path, 7)
        assert splits["train"][0][:, 0, 0, 0].tolist() != splits["test"][0][:, 0, 0, 0].tolist()

    def test_too_few_images_are_one_line_with_their_number(self, tmp_path: Path):
        dataset = self._labelled(tmp_path).model_copy(update={"val_per_tissue": 21})
        with pytest.raises(DataError) as caught:
            load_source(dataset, 7, folder=tmp_path)
        problem = "dataset.val_per_tissue is 21, but mucus has 20 in val; allowed: at most 20, or null for all images"
        assert str(caught.value) == f"{tmp_path / 'set.npz'}: {problem}"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, "MedMNIST's pathmnist at 64 px, train split"),
            (
                {"train_per_tissue": 250},
                "MedMNIST's pathmnist at 64 px, 2,250 of the 89,996 images of the train split, 250 of each class",
            ),
        ],
    )
    def test_cards_say_how_many_images_of_how_many(self, changes: dict, expected: str):
        dataset = {"source": "medmnist", "flag": "pathmnist", "archive_size": 64, "root": "r", "labels": "pathmnist"}
        assert data_source(MedmnistDataset(**dataset, image_size=64, **changes)) == expected
        assert data_source(_file(train_per_tissue=9)) == "the archive set.npz, 9 images of each class of the train split"


@pytest.mark.parametrize(("channels", "problem"), [(1, "is colour"), (3, "is grey")])
def test_other_number_of_channels_is_one_line_error(archive: Path, arrays: dict[str, np.ndarray], channels: int, problem: str):
    if channels == 3:
        files.write_npz(archive, **{key: value[..., 0] if value.ndim == 4 else value for key, value in arrays.items()})
    with pytest.raises(DataError, match=rf"set\.npz: train_images: shape .* {problem}, .*dataset.channels: {4 - channels}"):
        load_source(_file(channels=channels), 7, folder=archive.parent)


def test_damage_inside_an_archive_is_found_while_it_is_prepared(tmp_path: Path, archive: Path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 4] ^= 1
    archive.write_bytes(bytes(content))
    splits = load_source(_file(), 7, folder=archive.parent)
    with pytest.raises(DataError, match=r"set\.npz: is not an \.npz archive, or it is damaged"):
        write_prepared(tmp_path / "out", "tiny", NAMES, splits, {}, 16)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"md5": "0" * 32}, r"set\.npz: has MD5 [0-9a-f]{32}, but dataset.md5 is 0{32}: wrong file or incomplete download$"),
        ({"path": "other.npz"}, r"other\.npz: could not be read: No such file"),
        ({"path": "other.npz", "md5": "0" * 32}, r"other\.npz: could not be read: No such file"),
        ({"path": "~nobody-here/set.npz"}, "names the home folder of an unknown user$"),
    ],
)
def test_missing_or_other_archive_is_one_line_error(archive: Path, changes: dict, problem: str):
    with pytest.raises(DataError, match=problem):
        load_source(_file(**changes), 7, folder=archive.parent)


def _run_stage(folder: Path, **dataset):
    tree = tiny_tree()
    tree["benchmarks"]["tiny"]["dataset"] = dataset
    return run_stage("prepare", "--params", write_params(folder / "params.yaml", tree), "--out", folder / "prepared")


def test_stage_writes_the_same_bytes_each_time(tmp_path: Path):
    dataset = {"source": "phantom", "image_size": 32, **SIZES}
    contents = []
    for _ in range(2):
        result = _run_stage(tmp_path, **dataset)
        assert result.exit_code == 0, result.output
        assert "tiny: train 18, val 9, test 9 images of 32 px" in result.output
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()})
    assert contents[0] == contents[1]
    prepared = open_prepared(tmp_path / "prepared")
    assert (prepared.labels, prepared.source["source"], prepared.stand_in) == (labels.PATHMNIST, "phantom", True)


def test_stage_fails_in_one_line_and_writes_nothing(archive: Path):
    folder = archive.parent
    result = _run_stage(folder, source="medmnist_file", labels="pathmnist", channels=3, image_size=16, path="set.npz")
    assert (result.exit_code, result.stdout) == (1, "")
    problem = "train_labels: no image with label 3, 4, 5, 6, 7, 8; every label from 0 to 8 needs one"
    assert result.stderr == f"error: {archive}: {problem}\n"
    assert not (folder / "prepared").exists()
