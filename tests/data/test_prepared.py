"""The prepared layout: the same arrays back, the same bytes for the same data, and no half data set that opens.

The sources of images and the stage are here too, as this layout is what becomes of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data import labels
from pathsynth.data.archives import Split
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.data.settings import FileDataset, PhantomDataset
from pathsynth.sources import phantom
from pathsynth.sources.load import load_source
from stages import prepare

REPOSITORY = Path(__file__).parents[2]
NAMES = ("smooth muscle", "mucus", "debris")
FILES = sorted(["card.json"] + [f"{split}_{part}.npy" for split in ("train", "val", "test") for part in ("images", "labels")])


def _splits(seed: int = 0) -> dict[str, Split]:
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (count, 16, 16, 3), np.uint8), np.resize(np.arange(3, dtype=np.uint8), count))
        for split, count in (("train", 12), ("val", 6), ("test", 4))
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "prepared", "tiny", NAMES, _splits(), {"source": "test"}, 16)
    return tmp_path / "prepared"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_data_set_comes_back(folder: Path):
    prepared = open_prepared(folder)
    assert (prepared.name, prepared.labels, prepared.image_size) == ("tiny", NAMES, 16)
    assert prepared.slugs == ("smooth_muscle", "mucus", "debris")
    assert prepared.source == {"source": "test"}
    for split, (images, numbers) in _splits().items():
        assert isinstance(prepared.images(split), np.memmap)
        np.testing.assert_array_equal(prepared.images(split), images)
        np.testing.assert_array_equal(prepared.labels_of(split), numbers)
        assert prepared.labels_of(split).dtype == np.int64
    assert sorted(os.listdir(folder)) == FILES


def test_the_card_counts_and_sums(folder: Path):
    card = files.read_json(folder / "card.json")
    images, numbers = _splits()["test"]
    assert list(card) == ["name", "labels", "slugs", "image_size", "channels", "source", "splits"]
    assert card["splits"]["test"] == {
        "images": 4,
        "per_tissue": {"smooth_muscle": 2, "mucus": 1, "debris": 1},
        "sha256": hashlib.sha256(images.tobytes() + numbers.tobytes()).hexdigest(),
    }


def test_the_same_data_give_the_same_bytes(folder: Path):
    before = _contents(folder)
    write_prepared(folder, "tiny", NAMES, _splits(), {"source": "test"}, 16)
    assert _contents(folder) == before


def test_other_sizes_are_resized_with_the_bicubic_filter(tmp_path: Path):
    write_prepared(tmp_path, "tiny", NAMES, _splits(), {}, 24)
    image = Image.fromarray(_splits()["val"][0][3]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(open_prepared(tmp_path).images("val")[3], np.asarray(image))


def test_a_full_disk_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = _contents(folder)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        write_prepared(folder, "tiny", NAMES, _splits(seed=1), {}, 16)
    assert _contents(folder) == before


@pytest.mark.parametrize("limit", [100, 2_000, 6_000])
def test_a_limit_of_the_system_loses_nothing(folder: Path, limit: int):
    script = f"""
import resource, sys
from test_prepared import NAMES, _splits
from pathsynth.errors import DataError
from pathsynth.prepared import write_prepared
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_prepared(sys.argv[1], "tiny", NAMES, _splits(seed=1), {{}}, 16)
except DataError as error:
    sys.exit(str(error))
"""
    before = _contents(folder)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert (done.returncode, done.stderr) == (1, f"{folder / 'train_images.npy'}: could not be written: File too large\n")
    assert _contents(folder) == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda splits: splits.pop("val"), "no split val"),
        (
            lambda splits: splits.update(val=(splits["val"][0], splits["val"][1] + 1)),
            "val_labels: label 3 is not one of 0 to 2",
        ),
        (lambda splits: splits.update(val=(splits["val"][0] / 255, splits["val"][1])), "val_images: float64, not uint8"),
    ],
)
def test_what_is_no_data_set_is_not_written(tmp_path: Path, change, problem: str):
    splits = _splits()
    change(splits)
    with pytest.raises(DataError, match=problem):
        write_prepared(tmp_path / "prepared", "tiny", NAMES, splits, {}, 16)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: could not be read: No such file or directory$"):
        open_prepared(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_truncated_file_is_one_line(folder: Path, name: str, share: float):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"{name}: is not .+$"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        (
            "val_images",
            np.zeros((7, 16, 16, 3), np.uint8),
            r"uint8 \(7, 16, 16, 3\), but card.json says uint8 \(6, 16, 16, 3\)",
        ),
        ("val_images", np.zeros((6, 16, 16, 3), np.float32), "float32"),
        ("val_labels", np.zeros(5, np.uint8), r"uint8 \(5,\), but card.json says uint8 \(6,\)"),
        ("val_labels", np.full(6, 3, np.uint8), "label 3 is not one of 0 to 2"),
        ("val_labels", np.array([{}] * 6), "is not a whole .npy file"),
    ],
)
def test_a_file_that_is_not_what_the_card_says(folder: Path, name: str, array: np.ndarray, problem: str):
    np.save(folder / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"{name}\.npy: .*{problem}"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("name", None, "has no key 'name'"),
        ("splits", {"train": {"images": 12}}, "has no key 'val'"),
        ("splits", 3, "is not the card of a prepared data set"),
        ("image_size", "large", "is not the card of a prepared data set"),
        ("slugs", ["a", "b", "c"], "slugs: not those of the labels"),
        ("labels", [1, 2, 3], "slugs: not those of the labels"),
        ("labels", 3, "is not the card of a prepared data set"),
    ],
)
def test_a_card_that_is_no_card(folder: Path, key: str, value: object, problem: str):
    card = files.read_json(folder / "card.json")
    if value is None:
        del card[key]
    else:
        card[key] = value
    files.write_json(folder / "card.json", card)
    with pytest.raises(DataError, match=rf"card\.json: {problem}"):
        open_prepared(folder)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    arrays = {}
    for split, (images, numbers) in _splits().items():
        arrays |= {f"{split}_images": images, f"{split}_labels": numbers[:, None]}
    files.write_npz(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def _phantoms(**settings) -> PhantomDataset:
    return PhantomDataset(**{"source": "phantom", "labels": "pathmnist", "channels": 3, "image_size": 32, **settings})


def _file(**settings) -> FileDataset:
    common = {"source": "medmnist_file", "labels": list(NAMES), "channels": 3, "image_size": 16, "path": "set.npz"}
    return FileDataset(**{**common, **settings})


def test_phantoms_are_a_source():
    dataset = _phantoms(train_per_tissue=3, val_per_tissue=2, test_per_tissue=1)
    splits = load_source(dataset, 7)
    assert {split: images.shape for split, (images, _) in splits.items()} == {
        "train": (27, 32, 32, 3),
        "val": (18, 32, 32, 3),
        "test": (9, 32, 32, 3),
    }
    images, numbers = phantom.draw_split(2, 7, 32, "val")
    np.testing.assert_array_equal(splits["val"][0], images)
    np.testing.assert_array_equal(splits["val"][1], numbers)


@pytest.mark.parametrize("other", [{"labels": "bloodmnist"}, {"labels": list(NAMES)}, {"channels": 1}])
def test_phantoms_of_anything_else_do_not_exist(other: dict):
    with pytest.raises(ValueError, match="phantoms exist of the tissues of pathmnist, in 3 channels, and of nothing else"):
        _phantoms(train_per_tissue=1, val_per_tissue=1, test_per_tissue=1, **other)


def test_an_archive_is_a_source(archive: Path):
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    for known in (md5, None):
        dataset = _file(md5=known)
        splits = load_source(dataset, 7, folder=archive.parent)
        np.testing.assert_array_equal(splits["val"][0], _splits()["val"][0])


def test_a_grey_archive_is_stored_with_one_channel_and_shown_with_three(archive: Path):
    arrays = {}
    for split, (images, numbers) in _splits().items():
        arrays |= {f"{split}_images": images[..., 0], f"{split}_labels": numbers[:, None]}
    files.write_npz(archive, **arrays)
    splits = load_source(_file(channels=1, md5=None), 7, folder=archive.parent)
    write_prepared(archive.parent / "grey", "tiny", NAMES, splits, {}, 24, channels=1)
    stored = np.load(archive.parent / "grey" / "val_images.npy")
    prepared = open_prepared(archive.parent / "grey")
    assert (prepared.channels, stored.shape) == (1, (6, 24, 24))
    assert prepared.images("val").shape == (6, 24, 24, 3)
    assert all((prepared.images("val")[..., channel] == stored).all() for channel in range(3))
    image = Image.fromarray(_splits()["val"][0][3][..., 0]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(stored[3], np.asarray(image))


@pytest.mark.parametrize(("channels", "problem"), [(1, "is colour"), (3, "is grey")])
def test_channels_that_the_archive_has_not(archive: Path, channels: int, problem: str):
    if channels == 3:
        arrays = files.read_npz(archive, [f"{split}_{part}" for split in _splits() for part in ("images", "labels")])
        files.write_npz(archive, **{key: value[..., 0] if value.ndim == 4 else value for key, value in arrays.items()})
    with pytest.raises(DataError, match=rf"set\.npz: train_images: shape .* {problem}, .*dataset.channels: {4 - channels}"):
        load_source(_file(channels=channels, md5=None), 7, folder=archive.parent)


def test_an_archive_in_pieces_is_the_archive_at_once(folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch):
    from pathsynth.data import archives

    monkeypatch.setattr(archives, "PIECE", 3000)
    splits = load_source(_file(md5=None), 7, folder=archive.parent)
    assert [len(piece) for piece in archives.pieces(splits["train"][0])] == [3, 3, 3, 3]
    write_prepared(archive.parent / "pieces", "tiny", NAMES, splits, {"source": "test"}, 16)
    assert _contents(archive.parent / "pieces") == _contents(folder)


def test_an_archive_that_is_damaged_far_inside_is_noticed_while_it_is_read(tmp_path: Path, archive: Path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 4] ^= 1
    archive.write_bytes(bytes(content))
    splits = load_source(_file(md5=None), 7, folder=archive.parent)
    with pytest.raises(DataError, match=r"set\.npz: is not a whole \.npz archive"):
        write_prepared(tmp_path / "out", "tiny", NAMES, splits, {}, 16)
    assert not list((tmp_path / "out").glob("*"))


def test_another_archive_under_the_same_name_is_noticed(archive: Path):
    dataset = _file(md5="0" * 32)
    with pytest.raises(DataError, match=r"set\.npz: its MD5 is [0-9a-f]{32}, not 0{32}"):
        load_source(dataset, 7, folder=archive.parent)


@pytest.mark.parametrize("md5", [None, "0" * 32])
def test_an_archive_that_is_not_there(tmp_path: Path, md5: str | None):
    dataset = _file(md5=md5)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}/set\.npz: could not be read: No such file"):
        load_source(dataset, 7, folder=tmp_path)


def _run_stage(monkeypatch: pytest.MonkeyPatch, folder: Path, dataset: PhantomDataset | FileDataset) -> Result:
    params = SimpleNamespace(seed=7, benchmark_name="tiny", benchmark=SimpleNamespace(dataset=dataset))
    monkeypatch.setattr(prepare, "load_params", lambda _: params)
    return CliRunner().invoke(prepare.main, ["--params", str(folder / "params.yaml"), "--out", str(folder / "prepared")])


def test_the_stage_writes_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = _phantoms(train_per_tissue=2, val_per_tissue=1, test_per_tissue=1)
    result = _run_stage(monkeypatch, tmp_path, dataset)
    assert result.exit_code == 0, result.output
    assert "tiny: train 18, val 9, test 9 images of 32 px" in result.output
    prepared = open_prepared(tmp_path / "prepared")
    assert prepared.labels == labels.PATHMNIST
    assert prepared.source["source"] == "phantom"
    before = _contents(tmp_path / "prepared")
    assert _run_stage(monkeypatch, tmp_path, dataset).exit_code == 0
    assert _contents(tmp_path / "prepared") == before


def test_the_stage_ends_in_one_line_and_writes_nothing(archive: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = _file(labels="pathmnist", md5=None)
    result = _run_stage(monkeypatch, archive.parent, dataset)
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"error: {archive}: train_labels: no image with label 3, 4, 5, 6, 7, 8; every label from 0 to 8 needs one\n"
    )
    assert not (archive.parent / "prepared").exists()


def test_data_of_another_benchmark_are_refused(folder: Path):
    assert open_prepared(folder, "tiny", NAMES).labels == NAMES
    for benchmark, wanted in (("other", NAMES), ("tiny", NAMES[:2])):
        with pytest.raises(
            DataError, match=r"prepared: holds tiny: smooth muscle, .*; the parameters select \w+: run the stage"
        ):
            open_prepared(folder, benchmark, wanted)
