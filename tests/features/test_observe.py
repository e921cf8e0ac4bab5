"""Observations of images on disk, and the colour-only control."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pathsynth.classifiers.model import Classifier, build_card, build_network, save_classifier
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core.errors import DataError
from pathsynth.data.archives import SPLITS
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import open_prepared
from pathsynth.features import colour as colours
from pathsynth.features.extractors import JudgeExtractor
from pathsynth.features.observe import COPIES, PIXELS, Observers, fit_control, observe, observe_real, open_observed, open_real
from pathsynth.features.structure import structure_features


def classifier(slugs, architecture: str, seed: int) -> Classifier:
    import torch
    from conftest import tiny_tree

    torch.manual_seed(seed)
    tree = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"] | {"architecture": architecture}
    card = build_card(ClassifierSettings.model_validate(tree), slugs)
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
    copies = LabelledImages(tiny_prepared.images("train")[:5], tiny_prepared.labels_of("train")[:5])
    observe_real(folder, tiny_prepared, copies, observers, models)
    return folder


def test_real_images_are_observed_by_every_model(observed, pair, models, tiny_prepared):
    control, real = open_real(observed, tiny_prepared, JudgeExtractor(pair[1]), models)
    assert list(real) == [*SPLITS, COPIES]
    np.testing.assert_array_equal(real[COPIES].pixels, tiny_prepared.images("train")[:5])
    assert real[COPIES].labels.tolist() == tiny_prepared.labels_of("train")[:5].tolist()
    seen = real["val"]
    images = tiny_prepared.images("val")
    for name, model in (("gate", pair[0]), ("judge", pair[1]), ("colour", control)):
        np.testing.assert_array_equal(seen.probabilities[name], model.probabilities(images))
        np.testing.assert_allclose(seen.probabilities[name].sum(axis=1), 1.0, atol=1e-5)
    assert seen.features.shape == (18, pair[1].dimensions) and seen.pixels.shape == (18, PIXELS, PIXELS, 3)
    assert seen.predicted("gate").tolist() == seen.probabilities["gate"].argmax(axis=1).tolist()
    np.testing.assert_allclose(np.linalg.norm(seen.features, axis=1), np.sqrt(pair[1].dimensions), rtol=1e-5)
    np.testing.assert_array_equal(seen.structure, structure_features(images))
    chosen = seen.select(np.array([3, 1]))
    assert chosen.labels.tolist() == seen.labels[[3, 1]].tolist()
    np.testing.assert_array_equal(chosen.structure, seen.structure[[3, 1]])
    # the images already have the size of thumbnails
    np.testing.assert_array_equal(seen.pixels, images)


def test_observations_of_other_data_models_or_extractors_are_refused(observed, pair, models, tiny_prepared, tmp_path):
    with pytest.raises(DataError, match="does not match the current dimensions; run the stage observe_real"):
        open_real(observed, tiny_prepared, JudgeExtractor(pair[0]), models)
    # same architecture, other weights
    save_classifier(tmp_path, classifier(tiny_prepared.slugs, "shufflenet_v2_x0_5", 3))
    with pytest.raises(DataError, match="does not match the current judge; run"):
        open_real(observed, tiny_prepared, JudgeExtractor(pair[1]), (models[0], tmp_path))
    shutil.copytree(tiny_prepared.folder, tmp_path / "prepared")
    card = tmp_path / "prepared" / "card.json"
    card.write_text(card.read_text().replace("phantom", "another"))
    with pytest.raises(DataError, match="does not match the current data; run"):
        open_real(observed, open_prepared(card.parent), JudgeExtractor(pair[1]), models)
    with pytest.raises(DataError, match="18 rows for 17 images"):
        open_observed(observed, "val", np.zeros(17, np.int64))


def test_full_disk_is_one_line_error(observers, tiny_prepared, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathsynth.features.observe.npy.write_array_header_1_0", full)
    with pytest.raises(DataError, match=r"x_gate\.npy: could not be written: No space left on device"):
        observe(tmp_path, "x", tiny_prepared.images("val"), tiny_prepared.labels_of("val"), observers)
    assert not list(tmp_path.iterdir())


def test_chunks_change_nothing(observers, tiny_prepared, tmp_path, monkeypatch):
    images, labels = tiny_prepared.images("train"), tiny_prepared.labels_of("train")
    whole = observe(tmp_path / "a", "x", images, labels, observers)
    monkeypatch.setattr("pathsynth.features.observe.BATCH", 16)
    monkeypatch.setattr("pathsynth.features.observe.CHUNK_BYTES", 1)
    parts = observe(tmp_path / "b", "x", images, labels, observers)
    for name in whole.probabilities:
        np.testing.assert_array_equal(whole.probabilities[name], parts.probabilities[name])
    np.testing.assert_array_equal(whole.features, parts.features)
    np.testing.assert_array_equal(whole.pixels, parts.pixels)


def test_set_without_images_has_empty_observations(observers, pair, tiny_prepared, tmp_path):
    seen = observe(tmp_path, "none", tiny_prepared.images("val")[:0], np.zeros(0, np.int64), observers)
    assert len(seen.features) == len(seen.pixels) == len(seen.predicted("judge")) == 0
    assert seen.features.shape[1] == pair[1].dimensions


def test_colour_histogram_ignores_positions():
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
def test_colour_control_separates_colours_and_round_trips(tissues, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % tissues
    images = np.clip(rng.normal(60 + 80 * labels[:, None, None, None], 10, (60, 8, 8, 3)), 0, 255).astype(np.uint8)
    control = colours.fit_colour_control(colours.colour_histograms(images), labels, tissues)
    probabilities = control.probabilities(images)
    assert probabilities.shape == (60, tissues) and (probabilities.argmax(axis=1) == labels).all()
    shuffled = images.reshape(60, 64, 3)[:, rng.permutation(64)].reshape(images.shape)
    np.testing.assert_array_equal(control.probabilities(shuffled), probabilities)
    colours.save_colour_control(tmp_path / "c.npz", control)
    np.testing.assert_array_equal(colours.load_colour_control(tmp_path / "c.npz", tissues).probabilities(images), probabilities)
    with pytest.raises(DataError, match="is not a colour control of 9 tissues"):
        colours.load_colour_control(tmp_path / "c.npz", 9)
