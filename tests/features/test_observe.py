"""What observers make of images, kept on disk; the colour-only control; rows that are read piece by piece."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pathsynth.classifiers.model import Classifier, build_network, card_of, save_classifier
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core import io as files
from pathsynth.core import rows
from pathsynth.core.errors import DataError
from pathsynth.data.archives import SPLITS
from pathsynth.data.prepared import open_prepared
from pathsynth.data.sampling import in_proportion, subsample_per_class
from pathsynth.features import colour as colours
from pathsynth.features.extractors import JudgeExtractor
from pathsynth.features.observe import PIXELS, Observed, Observers, fit_control, observe, observe_real, open_observed, open_real


def classifier(slugs, architecture: str, seed: int) -> Classifier:
    import torch
    from conftest import tiny_tree

    torch.manual_seed(seed)
    tree = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"] | {"architecture": architecture}
    card = card_of(ClassifierSettings.model_validate(tree), slugs)
    return Classifier(build_network(card).eval(), card, "cpu")


@pytest.fixture(scope="module")
def pair(tiny_prepared) -> tuple[Classifier, Classifier]:
    return classifier(tiny_prepared.slugs, "resnet18", 1), classifier(tiny_prepared.slugs, "shufflenet_v2_x0_5", 2)


@pytest.fixture(scope="module")
def models(pair, tmp_path_factory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("gate"), tmp_path_factory.mktemp("judge")
    for folder, trained in zip(folders, pair, strict=True):
        save_classifier(folder, trained)
    return folders


@pytest.fixture(scope="module")
def observers(pair, tiny_prepared) -> Observers:
    return Observers(*pair, fit_control(tiny_prepared, 3, seed=1), JudgeExtractor(pair[1]))


@pytest.fixture(scope="module")
def observed(observers, models, tiny_prepared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("observed")
    observe_real(folder, tiny_prepared, observers, models)
    return folder


def test_real_images_are_seen_by_everyone(observed, pair, models, tiny_prepared):
    control, real = open_real(observed, tiny_prepared, JudgeExtractor(pair[1]), models)
    assert list(real) == list(SPLITS)
    seen = real["val"]
    images = tiny_prepared.images("val")
    for name, who in (("gate", pair[0]), ("judge", pair[1]), ("colour", control)):
        np.testing.assert_array_equal(seen.probabilities[name], who.probabilities(images))
        np.testing.assert_allclose(seen.probabilities[name].sum(axis=1), 1.0, atol=1e-5)
    assert seen.features.shape == (18, pair[1].dimensions) and seen.pixels.shape == (18, PIXELS, PIXELS, 3)
    assert seen.predicted("gate").tolist() == seen.probabilities["gate"].argmax(axis=1).tolist()
    np.testing.assert_allclose(np.linalg.norm(seen.features[:], axis=1), np.sqrt(pair[1].dimensions), rtol=1e-5)
    # the images have the size of the small pictures already
    np.testing.assert_array_equal(seen.pixels[:], images)


def test_observations_of_other_data_models_or_extractors_are_refused(observed, pair, models, tiny_prepared, tmp_path):
    with pytest.raises(DataError, match="was made with other dimensions; run the stage observe_real"):
        open_real(observed, tiny_prepared, JudgeExtractor(pair[0]), models)
    # of the same architecture, trained otherwise
    save_classifier(tmp_path, classifier(tiny_prepared.slugs, "shufflenet_v2_x0_5", 3))
    with pytest.raises(DataError, match="was made with other judge; run"):
        open_real(observed, tiny_prepared, JudgeExtractor(pair[1]), (models[0], tmp_path))
    shutil.copytree(tiny_prepared.folder, tmp_path / "prepared")
    card = tmp_path / "prepared" / "card.json"
    card.write_text(card.read_text().replace("phantom", "another"))
    with pytest.raises(DataError, match="was made with other data; run"):
        open_real(observed, open_prepared(card.parent), JudgeExtractor(pair[1]), models)
    with pytest.raises(DataError, match="18 rows for 17 images"):
        open_observed(observed, "val", np.zeros(17, np.int64))


def test_pieces_change_nothing(observers, tiny_prepared, tmp_path, monkeypatch):
    images, labels = tiny_prepared.images("train"), tiny_prepared.labels_of("train")
    whole = observe(tmp_path / "a", "x", images, labels, observers)
    monkeypatch.setattr("pathsynth.features.observe.BATCH", 16)
    monkeypatch.setattr("pathsynth.features.observe.PIECE_BYTES", 1)
    parts = observe(tmp_path / "b", "x", images, labels, observers)
    for name in whole.probabilities:
        np.testing.assert_array_equal(whole.probabilities[name], parts.probabilities[name])
    np.testing.assert_array_equal(whole.features[:], parts.features[:])
    np.testing.assert_array_equal(whole.pixels[:], parts.pixels[:])


def test_no_images_are_seen_as_none(observers, pair, tiny_prepared, tmp_path):
    seen = observe(tmp_path, "none", tiny_prepared.images("val")[:0], np.zeros(0, np.int64), observers)
    assert isinstance(seen, Observed) and len(seen.features) == len(seen.pixels) == len(seen.predicted("judge")) == 0
    assert seen.features.shape[1] == pair[1].dimensions


def test_colour_histogram_knows_how_much_and_not_where():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 0] = (255, 0, 0)
    other = image[:, ::-1].copy()
    found = colours.colour_histograms(np.concatenate([image, other]))
    np.testing.assert_array_equal(found[0], found[1])
    red = (colours.LEVELS - 1) * colours.LEVELS**2
    assert found.shape == (2, colours.COLOURS)
    assert found[0, 0] == pytest.approx(np.sqrt(12 / 16)) and found[0, red] == pytest.approx(np.sqrt(4 / 16))
    assert colours.colour_histograms(image[:0]).shape == (0, colours.COLOURS)


@pytest.mark.parametrize("tissues", [2, 3])
def test_colour_control_tells_colours_apart_and_comes_back(tissues, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % tissues
    images = np.clip(rng.normal(60 + 80 * labels[:, None, None, None], 10, (60, 8, 8, 3)), 0, 255).astype(np.uint8)
    control = colours.fit_colours(colours.colour_histograms(images), labels, tissues)
    probabilities = control.probabilities(images)
    assert probabilities.shape == (60, tissues) and (probabilities.argmax(axis=1) == labels).all()
    # whatever is where
    shuffled = images.reshape(60, 64, 3)[:, rng.permutation(64)].reshape(images.shape)
    np.testing.assert_array_equal(control.probabilities(shuffled), probabilities)
    colours.save_colours(tmp_path / "c.npz", control)
    np.testing.assert_array_equal(colours.load_colours(tmp_path / "c.npz", tissues).probabilities(images), probabilities)
    with pytest.raises(DataError, match="is not a colour control of 9 tissues"):
        colours.load_colours(tmp_path / "c.npz", 9)


def test_rows_on_disk_are_the_array(tmp_path):
    array = np.random.default_rng(0).normal(size=(50, 3, 2)).astype(np.float32)
    with open(tmp_path / "a.npy", "wb") as file:
        files.write_npy(file.name, array)
    on_disk = rows.RowFile(tmp_path / "a.npy")
    assert len(on_disk) == 50 and on_disk.shape == array.shape
    np.testing.assert_array_equal(on_disk[:], array)
    np.testing.assert_array_equal(on_disk[7:9], array[7:9])
    np.testing.assert_array_equal(on_disk[48:90], array[48:])
    some = np.array([0, 1, 2, 9, 30, 31, 49])
    np.testing.assert_array_equal(on_disk[some], array[some])
    np.testing.assert_array_equal(rows.select_rows(on_disk, some)[2:5], array[some[2:5]])
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks(rows.select_rows(on_disk, some), 3))), array[some])
    assert on_disk[np.array([], int)].shape == (0, 3, 2)


@pytest.mark.parametrize("damage", ["missing", "text", "short", "long", "objects"])
def test_damaged_rows_are_one_line(damage, tmp_path):
    path = tmp_path / "a.npy"
    if damage == "text":
        path.write_text("no array")
    elif damage == "objects":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif damage != "missing":
        np.save(path, np.zeros((4, 2)))
        content = path.read_bytes()
        path.write_bytes(content[:-8] if damage == "short" else content + b"\0")
    with pytest.raises(DataError, match=r"a\.npy: ") as error:
        rows.RowFile(path)
    assert "\n" not in str(error.value)


def test_images_are_drawn_within_each_tissue_by_seed():
    labels = np.repeat([0, 1, 2], [5, 50, 2])
    some = subsample_per_class(labels, np.array([5, 10, 9]), 1)
    assert np.bincount(labels[some]).tolist() == [5, 10, 2] and (np.diff(some) > 0).all()
    assert (
        subsample_per_class(labels, np.array([5, 10, 9]), 1).tolist()
        == some.tolist()
        != subsample_per_class(labels, np.array([5, 10, 9]), 2).tolist()
    )
    assert some[5:15].tolist() != list(range(5, 15)), "not the first ones"
    assert subsample_per_class(labels, np.zeros(3, int), 1).tolist() == []


def test_proportions_are_kept_as_far_as_images_are_there():
    available, wanted = np.array([100, 400, 50]), np.array([10, 10, 10])
    assert in_proportion(available, wanted).tolist() == [50, 50, 50]
    assert in_proportion(available, wanted, most=1.0).tolist() == [10, 10, 10]
    assert in_proportion(available, np.array([0, 30, 10])).tolist() == [0, 150, 50]
    assert in_proportion(np.array([3, 9]), np.array([90, 1])).tolist() == [3, 1]
    assert in_proportion(available, np.zeros(3, int)).tolist() == [0, 0, 0]
