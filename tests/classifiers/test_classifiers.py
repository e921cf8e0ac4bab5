"""Gate and judge: they learn, they are saved whole, and bad folders are one line."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_tree

from pathsynth.classifiers.settings import Augmentation, ClassifierSettings
from pathsynth.core.errors import ModelError, TrainingError

QUIET = Augmentation(flips=False, rotate90=False, stain=0.0, brightness=0.0, blur=0.0)


def _settings(**changes) -> ClassifierSettings:
    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"]
    return ClassifierSettings.model_validate(gate | changes)


def _train(prepared, settings, seed=3):
    from pathsynth.classifiers.training import train_classifier

    curve = []
    classifier, scores = train_classifier(prepared, settings, seed, "cpu", lambda step, values: curve.append((step, values)))
    return classifier, scores, curve


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """Nine flat colours: a task that any working classifier learns."""
    from pathsynth.data import labels
    from pathsynth.data.prepared import open_prepared, write_prepared

    rng = np.random.default_rng(0)
    colours = rng.integers(20, 235, (9, 3))

    def split(n):
        y = np.repeat(np.arange(9, dtype=np.uint8), n)
        x = np.clip(colours[y][:, None, None] + rng.normal(0, 6, (len(y), 32, 32, 3)), 0, 255).astype(np.uint8)
        return x, y

    folder = tmp_path_factory.mktemp("easy") / "prepared"
    splits = {"train": split(16), "val": split(4), "test": split(4)}
    write_prepared(folder, "easy", labels.PATHMNIST, splits, {"source": "phantom"}, 32)
    return open_prepared(folder)


def test_learns_an_easy_task_and_scores_both_splits(easy):
    _, scores, curve = _train(easy, _settings(epochs=25, learning_rate=5e-3, augmentation=QUIET.model_dump()))
    assert scores["val"]["accuracy"] > 0.9 and scores["test"]["accuracy"] > 0.9
    assert {"accuracy", "macro_f1", "auc", "ece", "per_tissue"} <= set(scores["test"])
    assert [step for step, _ in curve] == list(range(1, 26))
    assert scores["epoch"] == 1 + int(np.argmax([values["val/macro_f1"] for _, values in curve]))


@pytest.mark.parametrize(("checkpoint", "kept"), [("best", 2), ("last", 4)])
def test_the_epoch_that_is_kept(checkpoint, kept, tiny_prepared, monkeypatch):
    from pathsynth.classifiers import training as classifier_training

    on_val = iter([0.4, 0.9, 0.5, 0.9])

    def score(classifier, prepared, split):
        return {"macro_f1": next(on_val, 0.0), "accuracy": 0.0}

    monkeypatch.setattr(classifier_training, "score", score)
    tree = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"] | {"epochs": 4, "checkpoint": checkpoint}
    settings = ClassifierSettings.model_validate(tree)
    _, scores = classifier_training.train_classifier(tiny_prepared, settings, 1, "cpu", lambda *_: None)
    assert scores["epoch"] == kept


def test_training_is_reproducible_and_follows_both_seeds(tiny_prepared):
    curves = [_train(tiny_prepared, _settings(seed=own), seed)[2] for own, seed in ((1, 3), (1, 3), (2, 3), (1, 4))]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2] and curves[0] != curves[3]


@pytest.mark.parametrize(("architecture", "stem"), [("resnet18", "small"), ("shufflenet_v2_x0_5", "standard")])
def test_saved_classifier_answers_the_same(architecture, stem, tiny_prepared, tmp_path):
    from pathsynth.classifiers.model import load_classifier, save_classifier

    classifier, _, _ = _train(tiny_prepared, _settings(architecture=architecture, stem=stem))
    save_classifier(tmp_path, classifier)
    images = tiny_prepared.images("test")
    again = load_classifier(tmp_path, "cpu", tiny_prepared.slugs).probabilities(images)
    np.testing.assert_array_equal(classifier.probabilities(images), again)
    np.testing.assert_allclose(again.sum(axis=1), 1, atol=1e-5)
    assert again.shape == (18, 9)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_probabilities_do_not_depend_on_batch_size(tiny_prepared):
    classifier, _, _ = _train(tiny_prepared, _settings())
    images = tiny_prepared.images("val")
    np.testing.assert_allclose(classifier.probabilities(images, 5), classifier.probabilities(images, 100), atol=1e-5)
    assert classifier.probabilities(images[:0]).shape == (0, 9)


def test_augmentation_keeps_shape_range_and_does_what_it_says():
    import torch

    from pathsynth.classifiers.training import augmented
    from pathsynth.core.seeds import Stream, generator

    pixels = torch.rand(32, 3, 16, 16, generator=generator(Stream.IMAGES, 1))
    same = augmented(pixels, QUIET, generator(Stream.IMAGES, 2))
    torch.testing.assert_close(same, pixels)
    everything = Augmentation(flips=True, rotate90=True, stain=0.3, brightness=0.2, blur=0.5)
    changed = augmented(pixels, everything, generator(Stream.IMAGES, 2))
    assert changed.shape == pixels.shape and 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed, augmented(pixels, everything, generator(Stream.IMAGES, 2)))
    turned = augmented(pixels, QUIET.model_copy(update={"rotate90": True}), generator(Stream.IMAGES, 2))
    torch.testing.assert_close(turned.mean(dim=(1, 2, 3)), pixels.mean(dim=(1, 2, 3)))
    assert not torch.equal(turned, pixels)


@pytest.mark.parametrize("batch_size", [4, 36])
def test_exploding_training_ends_with_the_remedy(batch_size, tiny_prepared):
    with pytest.raises(TrainingError, match=r"(epoch 1: the loss is nan|answers with what is no number); lower learning_rate"):
        _train(tiny_prepared, _settings(learning_rate=1e30, lr_scheduler="constant", batch_size=batch_size))


@pytest.mark.parametrize(("architecture", "problem"), [("vit_b_16", "does not work at input_size 32"), ("googlenet", "")])
def test_architectures_that_do_not_fit_are_told_before_training(architecture, problem, tiny_prepared):
    with pytest.raises(ModelError, match=f"architecture '{architecture}'.*{problem}") as caught:
        _train(tiny_prepared, _settings(architecture=architecture))
    assert "\n" not in str(caught.value)


def test_unknown_architecture_is_named(tiny_prepared):
    with pytest.raises(ModelError, match="'resnet19' is not a torchvision classifier"):
        _train(tiny_prepared, _settings(architecture="resnet19"))


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_folder_is_one_line(part, damage, tiny_prepared, tmp_path):
    from pathsynth.classifiers.model import load_classifier, save_classifier
    from pathsynth.core.errors import PathsynthError

    save_classifier(tmp_path, _train(tiny_prepared, _settings())[0])
    path = tmp_path / part
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(PathsynthError) as caught:
        load_classifier(tmp_path, "cpu", tiny_prepared.slugs)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_classifier_of_other_tissues_is_refused(tiny_prepared, tmp_path):
    from pathsynth.classifiers.model import load_classifier, save_classifier

    save_classifier(tmp_path, _train(tiny_prepared, _settings())[0])
    with pytest.raises(ModelError, match=r"knows adipose, background.*expected colorectal.*train it on this data set"):
        load_classifier(tmp_path, "cpu", tiny_prepared.slugs[::-1])


def test_imagenet_head_is_replaced():
    from torchvision import models

    from pathsynth.classifiers.model import _replace_head

    for name in ("resnet18", "mobilenet_v3_small"):
        network = models.get_model(name)
        _replace_head(network, 9)
        import torch

        assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 9)
