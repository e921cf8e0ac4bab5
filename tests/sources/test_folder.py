"""Folders of images: splits by folder and by share, groups on one side, and every mistake in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import run_stage, tiny_tree, write_params
from PIL import Image

from pathsynth.core.errors import DataError, ParamsError
from pathsynth.core.params import validate
from pathsynth.data import archives
from pathsynth.data.archives import SPLITS, iter_chunks
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.data.provenance import data_source
from pathsynth.data.settings import AnyDataset, FolderDataset
from pathsynth.sources.image_files import ImageFiles
from pathsynth.sources.load import describe_source, load_source

NAMES = ("smooth muscle", "mucus", "debris")
CODES = ("MUS", "MUC", "DEB")
PER_CLASS = 10


def write_images(root: Path, folders: tuple[str, ...] = CODES, number: int = PER_CLASS, suffix: str = "tif") -> Path:
    """Writes flat images; the red channel is the class, the green one the number of the patient, 0 to 4."""
    for label, folder in enumerate(folders):
        for index in range(number):
            path = root / folder / f"patient {index % 5}" / f"{index:02}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (label, index % 5, index)).save(path)
    return root


def load(root: Path, seed: int = 7, **changes) -> dict[str, tuple[ImageFiles, np.ndarray]]:
    values = {"source": "folder", "labels": list(NAMES), "image_size": 16, "path": str(root), "folders": list(CODES)}
    return load_source(validate("f", "dataset", AnyDataset, values | changes), seed)


def read_pixels(images: ImageFiles) -> np.ndarray:
    """Class, patient and number of every image, (N, 3)."""
    return np.concatenate(list(iter_chunks(images)))[:, 0, 0]


def test_class_folders_are_divided_by_share(tmp_path: Path):
    splits = load(write_images(tmp_path), val_share=0.2)
    seen = []
    for split, number in (("train", 7), ("val", 2), ("test", 1)):
        pixels, labels = read_pixels(splits[split][0]), splits[split][1]
        np.testing.assert_array_equal(pixels[:, 0], labels)
        assert np.bincount(labels).tolist() == [number] * 3 and labels.dtype == np.uint8
        seen += pixels.tolist()
    assert len({tuple(pixel) for pixel in seen}) == 3 * PER_CLASS
    assert list(splits["train"][0].names) == sorted(splits["train"][0].names)


def test_result_depends_on_the_seed_and_not_on_the_order_in_the_file_system(tmp_path: Path):
    write_images(tmp_path / "a")
    files = sorted((path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.tif")), reverse=True)
    for file in files:
        (tmp_path / "b" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "a" / file, tmp_path / "b" / file)
    names = [
        {split: images.names for split, (images, _) in load(tmp_path / folder, seed).items()}
        for folder, seed in (("a", 7), ("b", 7), ("a", 8))
    ]
    assert names[0] == names[1] != names[2]


def test_groups_stay_on_one_side_over_all_classes(tmp_path: Path):
    splits = load(write_images(tmp_path), group=r"/patient (\d)/")
    patients = {split: set(read_pixels(images)[:, 1]) for split, (images, _) in splits.items()}
    assert [len(patients[split]) for split in SPLITS] == [3, 1, 1] == [splits[split][0].groups for split in SPLITS]
    assert set.union(*patients.values()) == set(range(5))


@pytest.mark.parametrize("test_path", [False, True])
def test_folders_of_splits_are_used_and_missing_ones_are_drawn(test_path: bool, tmp_path: Path):
    write_images(tmp_path / "set" / "Train")
    write_images(tmp_path / ("other" if test_path else "set/test"), number=4)
    splits = load(tmp_path / "set", test_path=str(tmp_path / "other") if test_path else None)
    assert [len(splits[split][0]) for split in SPLITS] == [27, 3, 12]
    write_images(tmp_path / "set" / "val", number=2)
    splits = load(tmp_path / "set", test_path=str(tmp_path / "other") if test_path else None)
    assert [len(splits[split][0]) for split in SPLITS] == [30, 6, 12]


def test_folders_are_found_by_label_and_files_of_the_system_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_images(tmp_path, ("Smooth-Muscle", "MUCUS", "débris"), suffix="JPEG")
    os.rename(tmp_path / "MUCUS", tmp_path / ".elsewhere")
    os.symlink(tmp_path / ".elsewhere", tmp_path / "MUCUS")
    for name in ("._00.jpeg", ".DS_Store", "Thumbs.db"):
        (tmp_path / "débris" / name).write_bytes(b"\0")
    (tmp_path / "empty folder").mkdir()
    splits = load(tmp_path, folders=None, labels=["smooth muscle", "mucus", "Débris"])
    assert [len(splits[split][0]) for split in SPLITS] == [24, 3, 3] and capsys.readouterr().err == ""
    (tmp_path / "débris" / "scan.svs").write_bytes(b"\0")
    (tmp_path / "readme.txt").write_bytes(b"\0")
    load(tmp_path, folders=None, labels=["smooth muscle", "mucus", "Débris"])
    problem = "skipped 2 files that are not images of a class, such as débris/scan.svs"
    assert capsys.readouterr().err == f"{tmp_path}: {problem}\n"


def _move(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: os.rename(root / old, root / new)


def _link_to_itself(root: Path) -> None:
    os.symlink(root / "MUC", root / "MUC" / "loop")


PATIENT = r"patient (\d)"
# What is done to the folder, what is changed in the section, and the message.
MISTAKES: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no folder": (shutil.rmtree, {}, "set: could not be read: No such file or directory"),
    "a file": (lambda root: [shutil.rmtree(root), root.write_text("")], {}, "set: could not be read: Not a directory"),
    "the parent": (lambda root: None, {"path": "."}, "has no folder MUS, MUC, DEB; its folders: set"),
    "an empty folder": (lambda root: [shutil.rmtree(root), root.mkdir()], {}, "has no folder MUS, MUC, DEB; its folders: none"),
    "names of labels": (lambda root: None, {"folders": None},
        "has no folder smooth_muscle, mucus, debris; its folders: DEB, MUC, MUS; name them like the labels, or with"),
    "other case": (_move("MUC", "Muc"), {}, "has no folder MUC; its folders: DEB, MUS, Muc"),
    "one more class": (lambda root: shutil.copytree(root / "MUC", root / "ADI"), {},
        "set/ADI: holds images, but is none of the folders MUS, MUC, DEB"),
    "two folders": (lambda root: [os.rename(root / code, root / name) for code, name in zip(CODES, NAMES, strict=True)]
        + [(root / "Mucus").mkdir()], {"folders": None}, "'Mucus' and 'mucus' are both a folder of the class mucus"),
    "empty class": (lambda root: [shutil.rmtree(root / "MUC"), (root / "MUC").mkdir()], {},
        "set/MUC: holds no images; allowed suffixes: .tif .tiff .png .jpg .jpeg .bmp .webp"),
    "loop": (_link_to_itself, {}, "set/MUC/loop: is reached from itself by a link; remove the link"),
    "no train": (_move("MUC", "val"), {}, "set: has a folder val, but none named train"),
    "folder beside train": (_move("MUC", "train"), {}, "set/DEB: holds images, but is none of the folders train, val, test"),
    "test twice": (lambda root: [os.rename(root / "MUC", root / "train"), os.rename(root / "DEB", root / "test"),
        shutil.rmtree(root / "MUS")], {"test_path": "x"}, "has a folder test, so dataset.test_path must be null"),
    "same folder": (lambda root: None, {"test_path": "set"}, "set: train and test must be different folders"),
    "no match": (lambda root: None, {"group": r"DEB/patient (\d)"},
        r"set/MUC/patient 0/00.tif: dataset.group 'DEB/patient (\\d)' finds no group in MUC/patient 0/00.tif"),
    "empty match": (lambda root: None, {"group": "(x?)"}, "dataset.group '(x?)' finds no group in DEB/patient 0/00.tif"),
    "group on two sides": (lambda root: write_images(root.parent / "other"), {"group": PATIENT, "test_path": "other"},
        "other/DEB/patient 0/00.tif: group '0' of dataset.group is in train too"),
    "few groups": (lambda root: [shutil.rmtree(root / "MUC" / f"patient {number}") for number in range(3)], {"group": PATIENT},
        "set: mucus has only 2 groups, but train, val, test need at least one each"),
    "few images": (lambda root: [shutil.rmtree(root / "MUC" / f"patient {number}") for number in range(4)], {},
        "set: mucus has only 2 images, but train, val, test need at least one each"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_folder_is_one_line(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change, section, problem = MISTAKES[mistake]
    change(write_images(tmp_path / "set"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load(Path("set"), **section)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"group": "("}, "dataset.group: '(': is not a regular expression: missing ), unterminated subpattern at position 0"),
        ({"group": r"\d+"}, "needs a group in parentheses, which finds the patient, such as '(patient_[0-9]+)'"),
        ({"folders": ["MUS", "MUC"]}, "dataset: folders: 2 for the 3 labels"),
        ({"folders": ["MUS", "MUC", "MUC"]}, "folders: 'MUC' must be the name of one folder, different from the others"),
        ({"folders": ["MUS", "MUC", "a/b"]}, "folders: 'a/b' must be the name of one folder, different from the others"),
        ({"folders": ["MUS", "MUC", ".."]}, "folders: '..' must be the name of one folder"),
        (
            {"val_share": 0.6, "test_share": 0.4},
            "val_share and test_share leave nothing for train; together they must be below",
        ),
        ({"val_share": 0.0}, "dataset.val_share: 0.0: input should be greater than 0"),
        (
            {"paths": "x"},
            "dataset.paths: unknown key; allowed: labels, channels, image_size, train_per_tissue, val_per_tissue, ",
        ),
    ],
)
def test_mistake_in_the_section_is_one_line(changes: dict, problem: str):
    with pytest.raises(ParamsError) as caught:
        load(Path("x"), **changes)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_images_are_prepared_in_chunks_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_images(tmp_path / "set")
    contents = []
    for chunk_bytes in (5 * 16 * 16 * 3, 2**20):
        monkeypatch.setattr(archives, "CHUNK_BYTES", chunk_bytes)
        splits = load(tmp_path / "set")
        write_prepared(tmp_path / "prepared", "tiny", NAMES, splits, {}, 16)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()})
        np.testing.assert_array_equal(
            open_prepared(tmp_path / "prepared").images("train")[:, 0, 0], read_pixels(splits["train"][0])
        )
    assert contents[0] == contents[1]


def test_source_is_described_without_folders_of_the_machine():
    values = {"source": "folder", "labels": list(NAMES), "image_size": 16, "path": "/data/x/set", "test_path": "C:\\a\\other"}
    dataset = FolderDataset(**values, group="/([^/]+)/")
    described = describe_source(dataset)
    assert (described["path"], described["test_path"], described["group"]) == ("set", "other", "/([^/]+)/")
    assert data_source(dataset) == "the image files in the folder set, train split"


def _run_stage(folder: Path, **changes):
    tree = tiny_tree()
    values = {"source": "folder", "labels": list(NAMES), "image_size": 16, "path": "set", "folders": list(CODES)}
    tree["benchmarks"]["tiny"]["dataset"] = values | changes
    return run_stage("prepare", "--params", write_params(folder / "params.yaml", tree), "--out", folder / "prepared")


def test_stage_counts_images_and_groups(tmp_path: Path):
    write_images(tmp_path / "set")
    result = _run_stage(tmp_path, group=PATIENT)
    assert result.exit_code == 0, result.output
    counts = "train 18 (3 groups), val 6 (1 group), test 6 (1 group)"
    assert result.output.splitlines()[0] == f"tiny: {counts} images of 16 px in {tmp_path / 'prepared'}"
    assert str(tmp_path) not in (tmp_path / "prepared" / "card.json").read_text()
    assert json.loads((tmp_path / "prepared" / "card.json").read_text())["source"]["group"] == PATIENT


def test_selected_images_are_the_only_ones_that_are_decoded(tmp_path: Path):
    write_images(tmp_path / "set")
    images, labels = load(tmp_path / "set", train_per_tissue=4)["train"]
    whole, _ = load(tmp_path / "set")["train"]
    assert set(images.names) < set(whole.names) and np.bincount(labels).tolist() == [4, 4, 4]
    path = tmp_path / "set" / (set(whole.names) - set(images.names)).pop()
    intact = path.read_bytes()
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(read_pixels(images)[:, 0], labels)
    path.write_bytes(intact)
    result = _run_stage(tmp_path, train_per_tissue=4, group=PATIENT)
    assert "tiny: train 12 of 18 (3 groups), val 6 (1 group), test" in result.output
    with pytest.raises(DataError) as caught:
        load(tmp_path / "set", val_per_tissue=2)
    problem = "dataset.val_per_tissue is 2, but smooth_muscle has 1 in val; allowed: at most 1, or null for all images"
    assert str(caught.value) == f"{tmp_path / 'set'}: {problem}"


def test_damaged_image_ends_the_stage_in_one_line_and_keeps_what_was_prepared(tmp_path: Path):
    write_images(tmp_path / "set")
    assert _run_stage(tmp_path, channels=1).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    assert open_prepared(tmp_path / "prepared").channels == 1
    path = tmp_path / "set" / "MUC" / "patient 3" / "03.tif"
    path.write_bytes(path.read_bytes()[:-100])
    result = _run_stage(tmp_path)
    problem = "is damaged or truncated: image file is truncated"
    assert result.exit_code == 1 and result.output.startswith(f"error: {path}: {problem}") and result.output.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()} == before
