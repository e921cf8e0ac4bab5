"""The prepared layout: arrays round-trip, the same data give the same bytes, and a failed write changes nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data.archives import SPLITS, Split
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.sources.duplicates import count_duplicates

NAMES = ("smooth muscle", "mucus", "debris")
FILES = sorted(["card.json"] + [f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels")])


def _splits(seed: int = 0, channels: int = 3) -> dict[str, Split]:
    rng = np.random.default_rng(seed)
    splits: dict[str, Split] = {}
    for split, count in (("train", 12), ("val", 6), ("test", 4)):
        images = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
        splits[split] = images if channels == 3 else images[..., 0], np.resize(np.arange(3, dtype=np.uint8), count)
    return splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "prepared", "tiny", NAMES, _splits(), {"source": "test"}, 16)
    return tmp_path / "prepared"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_data_set_round_trips(folder: Path):
    prepared = open_prepared(folder)
    assert (prepared.name, prepared.labels, prepared.image_size) == ("tiny", NAMES, 16)
    assert prepared.slugs == ("smooth_muscle", "mucus", "debris")
    assert prepared.source == {"source": "test"}
    for split, (images, indices) in _splits().items():
        assert isinstance(prepared.images(split), np.memmap)
        np.testing.assert_array_equal(prepared.images(split), images)
        np.testing.assert_array_equal(prepared.labels_of(split), indices)
        assert prepared.labels_of(split).dtype == np.int64
    assert sorted(os.listdir(folder)) == FILES


def test_card_has_counts_and_checksums(folder: Path):
    card = files.read_json(folder / "card.json")
    images, indices = _splits()["test"]
    assert list(card) == ["name", "labels", "slugs", "image_size", "channels", "source", "splits"]
    assert card["splits"]["test"] == {
        "images": 4,
        "per_tissue": {"smooth_muscle": 2, "mucus": 1, "debris": 1},
        "sha256": hashlib.sha256(images.tobytes() + indices.tobytes()).hexdigest(),
    }


def test_card_counts_duplicates_and_an_earlier_one_without_them_still_opens(folder: Path):
    splits = _splits()
    splits["test"] = splits["train"][0][2:6], splits["test"][1]
    found = write_prepared(folder, "tiny", NAMES, splits, {}, 24, 3, count_duplicates)
    assert open_prepared(folder).duplicates == found
    assert [(each.split, each.source, each.exact) for each in found if each.exact] == [("test", "train", 4)]
    card = files.read_json(folder / "card.json")
    row = {"split": "test", "source": "train", "images": 4, "exact": 4, "near": 0, "relabelled": 4}
    assert card.pop("duplicates")[3] == row | {"examples": [[0, 2], [1, 3], [2, 4]]}
    files.write_json(folder / "card.json", card)
    assert open_prepared(folder).duplicates is None


def test_same_data_give_the_same_bytes(folder: Path):
    before = _contents(folder)
    write_prepared(folder, "tiny", NAMES, _splits(), {"source": "test"}, 16)
    assert _contents(folder) == before


def test_other_sizes_are_resized_with_the_bicubic_filter(tmp_path: Path):
    write_prepared(tmp_path, "tiny", NAMES, _splits(), {}, 24)
    image = Image.fromarray(_splits()["val"][0][3]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(open_prepared(tmp_path).images("val")[3], np.asarray(image))


def test_grey_images_are_stored_with_one_channel_and_read_with_three(tmp_path: Path):
    write_prepared(tmp_path, "tiny", NAMES, _splits(channels=1), {}, 24, channels=1)
    stored, prepared = np.load(tmp_path / "val_images.npy"), open_prepared(tmp_path)
    assert (prepared.channels, stored.shape) == (1, (6, 24, 24))
    np.testing.assert_array_equal(prepared.images("val"), np.stack([stored] * 3, axis=-1))
    image = Image.fromarray(_splits()["val"][0][3][..., 0]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(stored[3], np.asarray(image))


def test_full_disk_is_one_line_error_and_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = _contents(folder)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"could not be written: No space left on device$"):
        write_prepared(folder, "tiny", NAMES, _splits(seed=1), {}, 16)
    assert _contents(folder) == before


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_file_is_one_line_error(folder: Path, damage: str):
    for name in FILES:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if damage == "truncated":
            (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"{name}: (could not be read: No such file or directory|is not .*)$"):
            prepared = open_prepared(folder)
            for split in SPLITS:
                prepared.images(split), prepared.labels_of(split)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", None), ("splits", {"train": {"images": 12}}), ("splits", 3), ("labels", 3), ("duplicates", [{"exact": 1}])],
)
def test_incomplete_card_is_one_line_error(folder: Path, key: str, value: object):
    card = files.read_json(folder / "card.json")
    if value is None:
        del card[key]
    else:
        card[key] = value
    files.write_json(folder / "card.json", card)
    with pytest.raises(DataError, match=r"card\.json: is not the card of a prepared data set"):
        open_prepared(folder)


def test_data_of_another_benchmark_are_refused_with_the_remedy(folder: Path):
    assert open_prepared(folder, "tiny", NAMES).labels == NAMES
    for benchmark, labels in (("other", NAMES), ("tiny", NAMES[:2])):
        with pytest.raises(
            DataError, match=r"holds tiny: smooth muscle, .*, but the parameters select \w+; run the stage prepare"
        ):
            open_prepared(folder, benchmark, labels)
