"""Gate and judge: they learn, they are saved and loaded unchanged, and unusable models are one-line errors."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from torchvision import models

from pathsynth.classifiers import training as classifier_training
from pathsynth.classifiers.model import (
    Classifier,
    _replace_head,
    build_card,
    build_network,
    check_network,
    load_classifier,
    load_gate_and_judge,
    save_classifier,
)
from pathsynth.classifiers.settings import Augmentation, ClassifierSettings
from pathsynth.classifiers.training import Training, _rescale, augment, build_classifier, train_classifier
from pathsynth.core.errors import DataError, ModelError, OutOfMemory, PathsynthError, TrainingError
from pathsynth.core.io import read_json, write_json
from pathsynth.core.seeds import Stream, make_generator
from pathsynth.data import labels
from pathsynth.data.images import rotate_and_mirror
from pathsynth.data.prepared import open_prepared, write_prepared

NO_AUGMENTATION = Augmentation(flips=False, rotate90=False, stain=0.0, brightness=0.0, blur=0.0)


def gate_settings(**changes) -> ClassifierSettings:
    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"]
    return ClassifierSettings.model_validate(gate | changes)


def train(prepared, global_seed=3, **changes):
    """The classifier, its scores, and the curve."""
    curve = []
    classifier, scores = train_classifier(
        prepared, gate_settings(**changes), global_seed, "cpu", lambda *point: curve.append(point)
    )
    return classifier, scores, curve


def start_training(prepared, images=None, steps=None, **changes) -> tuple[Classifier, Training]:
    """A classifier on the CPU, also in fp16, and its training."""
    settings = gate_settings(**changes)
    exact = settings.model_copy(update={"mixed_precision": "no"})
    classifier = build_classifier(exact, prepared.slugs, 3, "cpu", Path())
    images = prepared.images("train") if images is None else images
    return classifier, Training(classifier, images, prepared.labels_of("train"), settings, 3, steps)


def weights_of(classifier: Classifier) -> bytes:
    return b"".join(value.numpy().tobytes() for value in classifier.network.state_dict().values())


def untrained(slugs=labels.SLUGS, **changes) -> Classifier:
    card = build_card(gate_settings(**changes), slugs)
    return Classifier(build_network(card).eval(), card, "cpu")


@pytest.fixture(scope="module")
def nine_colours(tmp_path_factory):
    """Nine flat colours, which every working classifier learns."""
    rng = np.random.default_rng(0)
    colours = rng.integers(20, 235, (9, 3))

    def split(n):
        y = np.repeat(np.arange(9, dtype=np.uint8), n)
        x = np.clip(colours[y][:, None, None] + rng.normal(0, 6, (len(y), 32, 32, 3)), 0, 255).astype(np.uint8)
        return x, y

    folder = tmp_path_factory.mktemp("colours") / "prepared"
    splits = {"train": split(16), "val": split(4), "test": split(4)}
    write_prepared(folder, "colours", labels.PATHMNIST, splits, {"source": "phantom"}, 32)
    return open_prepared(folder)


class TestTraining:
    def test_easy_task_is_learned_and_both_splits_are_scored(self, nine_colours):
        options = {"epochs": 12, "learning_rate": 2e-2, "augmentation": NO_AUGMENTATION.model_dump()}
        _, scores, curve = train(nine_colours, architecture="shufflenet_v2_x0_5", **options)
        assert scores["val"]["accuracy"] > 0.9 and scores["test"]["accuracy"] > 0.9
        assert {"accuracy", "macro_f1", "auc", "ece", "per_tissue"} <= set(scores["test"])
        assert [step for step, _ in curve] == list(range(1, 13))
        assert scores["epoch"] == 1 + int(np.argmax([values["val/macro_f1"] for _, values in curve]))

    @pytest.mark.parametrize(("checkpoint", "epoch"), [("best", 2), ("last", 4)])
    def test_selected_epoch(self, checkpoint, epoch, tiny_prepared, monkeypatch):
        on_val = iter([0.4, 0.9, 0.5, 0.9])
        monkeypatch.setattr(classifier_training, "score_split", lambda *_: {"macro_f1": next(on_val, 0.0), "accuracy": 0.0})
        assert train(tiny_prepared, epochs=4, checkpoint=checkpoint)[1]["epoch"] == epoch

    def test_training_is_reproducible_and_follows_both_seeds(self, tiny_prepared):
        curves = [train(tiny_prepared, seed, seed=own)[2] for own, seed in ((1, 3), (1, 3), (2, 3), (1, 4))]
        assert curves[0] == curves[1]
        assert curves[0] != curves[2] and curves[0] != curves[3]

    @pytest.mark.parametrize("batch_size", [4, 36])
    def test_diverging_training_names_the_learning_rate(self, batch_size, tiny_prepared):
        with pytest.raises(TrainingError, match=r"(epoch 1: the loss is nan|predicts NaN); lower learning_rate"):
            train(tiny_prepared, learning_rate=1e30, lr_scheduler="constant", batch_size=batch_size)

    def test_out_of_memory_names_batch_and_input_size(self, tiny_prepared, monkeypatch):
        def run_out(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(classifier_training, "augment", run_out)
        hint = r"out of memory: lower classifiers\.\*\.batch_size \(18\) or input_size \(32\)"
        with pytest.raises(OutOfMemory, match=hint):
            train(tiny_prepared)


class TestReadingAhead:
    @pytest.mark.parametrize("steps", [None, 1, 3, 5])
    def test_weights_are_those_of_a_plain_loop(self, steps, tiny_prepared, monkeypatch):
        def train_with(prefetch) -> bytes:
            if prefetch:
                monkeypatch.setattr(classifier_training, "prefetch", prefetch)
            classifier, training = start_training(tiny_prepared, steps=steps, epochs=2, batch_size=12)
            training.run()
            return weights_of(classifier)

        assert train_with(None) == train_with(lambda read, keys: (read(key) for key in keys))

    def test_unreadable_image_stops_the_training_and_the_thread(self, tiny_prepared):
        class Damaged:
            reads = 0

            def __len__(self):
                return 36

            def __getitem__(self, indices):
                self.reads += 1
                if self.reads == 3:
                    raise DataError("train_images.npy", "is truncated")
                return tiny_prepared.images("train")[indices]

        _, training = start_training(tiny_prepared, Damaged(), batch_size=6)
        with pytest.raises(DataError, match=r"^train_images\.npy: is truncated$"):
            training.run()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class TestHalfPrecision:
    def test_fp16_needs_a_gpu(self, tiny_prepared):
        with pytest.raises(TrainingError) as caught:
            train(tiny_prepared, mixed_precision="fp16")
        assert str(caught.value) == "mixed_precision of resnet18: 'fp16' needs a GPU; allowed without one: 'no', 'bf16'"

    def test_classifier_trained_in_fp16_predicts_without_a_gpu(self, tiny_prepared, tmp_path):
        half, images = untrained(mixed_precision="fp16"), tiny_prepared.images("test")
        save_classifier(tmp_path, half)
        exact = Classifier(half.network, build_card(gate_settings(), labels.SLUGS), "cpu")
        loaded = load_classifier(tmp_path, "cpu", labels.SLUGS)
        assert loaded.card.mixed_precision == "fp16"
        np.testing.assert_array_equal(loaded.probabilities(images), exact.probabilities(images))

    def test_scaled_loss_trains_as_the_loss(self, tiny_prepared):
        found = []
        for precision in ("no", "fp16"):
            classifier, training = start_training(tiny_prepared, epochs=2, mixed_precision=precision)
            training.run()
            found.append(np.frombuffer(weights_of(classifier), np.float32))
        # powers of two only move the exponent
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-7)

    def test_overflowing_step_is_skipped_and_the_schedule_goes_on(self, tiny_prepared):
        classifier, training = start_training(tiny_prepared, epochs=4, batch_size=36, mixed_precision="fp16")
        state = training.state_dict()
        assert state["scaler"]["scale"] == 2.0**16
        state["scaler"]["scale"] = 2.0**127
        training.load_state_dict(state)
        before = [parameter.detach().clone() for parameter in classifier.network.parameters()]
        training.run_epoch()
        assert all(map(torch.equal, before, classifier.network.parameters()))
        state = training.state_dict()
        assert state["scaler"]["scale"] == 2.0**126 and state["schedule"]["last_epoch"] == 1
        state["scaler"]["scale"] = 2.0**16
        training.load_state_dict(state)
        for _ in range(3):
            assert np.isfinite(training.run_epoch())
        assert not any(map(torch.equal, before, classifier.network.parameters()))

    def test_diverging_fp16_training_names_the_number_format_too(self, tiny_prepared):
        options = {"learning_rate": 1e30, "lr_scheduler": "constant", "batch_size": 4, "mixed_precision": "fp16"}
        _, training = start_training(tiny_prepared, **options)
        with pytest.raises(TrainingError, match=r"the loss is nan; lower learning_rate \(1e\+30\), or set mixed_precision: no"):
            training.run_epoch()


def test_augmentation_keeps_shape_and_range_and_follows_its_generator():
    pixels = torch.rand(32, 3, 16, 16, generator=make_generator(Stream.IMAGES, 1))

    def augmented(settings: Augmentation) -> torch.Tensor:
        return augment(pixels, settings, make_generator(Stream.IMAGES, 2))

    torch.testing.assert_close(augmented(NO_AUGMENTATION), pixels)
    everything = Augmentation(flips=True, rotate90=True, stain=0.3, brightness=0.2, blur=0.5)
    changed = augmented(everything)
    assert changed.shape == pixels.shape and 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed, augmented(everything))
    rotated = augmented(NO_AUGMENTATION.model_copy(update={"rotate90": True}))
    torch.testing.assert_close(rotated.mean(dim=(1, 2, 3)), pixels.mean(dim=(1, 2, 3)))
    assert not torch.equal(rotated, pixels)


def test_rescaling_by_one_changes_nothing_and_by_two_enlarges_the_middle():
    pixels = torch.rand(2, 3, 16, 16, generator=make_generator(Stream.IMAGES, 1))
    unchanged = _rescale(pixels, torch.ones(2), torch.zeros(2, 2))
    torch.testing.assert_close(unchanged, pixels)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    enlarged = _rescale(ramp, torch.tensor([2.0]), torch.zeros(1, 2))
    torch.testing.assert_close(enlarged.mean(), ramp.mean())
    assert (enlarged[..., 8] - enlarged[..., 7]).max() == pytest.approx(0.5 / 15, abs=1e-5)
    shifted = _rescale(ramp, torch.ones(1), torch.tensor([[0.25, 0.0]]))
    torch.testing.assert_close(shifted[..., :10], ramp[..., 2:12])


class TestArchitectures:
    @pytest.mark.parametrize("architecture", ["resnet10", "densenet37"])
    def test_small_architectures_have_the_layers_of_their_names(self, architecture):
        card = build_card(gate_settings(architecture=architecture), labels.SLUGS)
        network = build_network(card)
        layers = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
        shortcuts = [name for name, part in network.named_modules() if name.endswith("downsample.0")]
        assert len(layers) - len(shortcuts) == int(architecture.removeprefix("resnet").removeprefix("densenet"))
        check_network(network, card)

    @pytest.mark.parametrize(
        ("architecture", "problem"),
        [
            ("resnet19", "'resnet19' is not a torchvision classifier"),
            ("vit_b_16", "architecture 'vit_b_16': does not work at input_size 32"),
            ("googlenet", "architecture 'googlenet': does not return one logit per tissue"),
        ],
    )
    def test_unsuitable_architecture_is_refused_before_training(self, architecture, problem, tiny_prepared):
        with pytest.raises(ModelError, match=problem) as caught:
            train(tiny_prepared, architecture=architecture)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
    def test_imagenet_head_is_replaced(self, architecture):
        network = models.get_model(architecture)
        _replace_head(network, 9)
        assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 9)


class TestSavedClassifier:
    @pytest.mark.parametrize(("architecture", "stem"), [("resnet18", "small"), ("shufflenet_v2_x0_5", "standard")])
    def test_loaded_classifier_predicts_the_same(self, architecture, stem, tiny_prepared, tmp_path):
        classifier, images = untrained(architecture=architecture, stem=stem), tiny_prepared.images("test")
        save_classifier(tmp_path, classifier)
        probabilities = load_classifier(tmp_path, "cpu", labels.SLUGS).probabilities(images)
        np.testing.assert_array_equal(classifier.probabilities(images), probabilities)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert probabilities.shape == (18, 9)
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}

    def test_probabilities_do_not_depend_on_batch_size(self, tiny_prepared):
        classifier, images = untrained(), tiny_prepared.images("val")
        np.testing.assert_allclose(classifier.probabilities(images, 5), classifier.probabilities(images, 100), atol=1e-5)
        assert classifier.probabilities(images[:0]).shape == (0, 9)

    def test_eight_views_are_averaged_so_that_rotations_change_nothing(self, tiny_prepared, tmp_path):
        torch.manual_seed(0)
        averaged = untrained(views=8)
        save_classifier(tmp_path, averaged)
        assert load_classifier(tmp_path, "cpu", labels.SLUGS).card == averaged.card
        single = replace(averaged, card=replace(averaged.card, views=1))
        images = tiny_prepared.images("val")[:4]
        views = [rotate_and_mirror(images, view) for view in range(8)]
        each = [single.predict_with_features(view) for view in views]
        for view in (images, views[1], views[6]):
            for mean, values in zip(averaged.predict_with_features(view), zip(*each, strict=True), strict=True):
                np.testing.assert_allclose(mean, np.mean(values, axis=0), atol=1e-5)
        assert np.ptp([probabilities for probabilities, _ in each], axis=0).max() > 1e-3

    def test_classifier_saved_without_views_has_one(self, tmp_path):
        save_classifier(tmp_path, untrained())
        config = tmp_path / "config.json"
        write_json(config, {key: value for key, value in read_json(config).items() if key != "views"})
        assert load_classifier(tmp_path, "cpu", labels.SLUGS).card.views == 1

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    @pytest.mark.parametrize("damage", ["missing", "truncated"])
    def test_damaged_folder_is_one_line_error(self, name, damage, tmp_path):
        save_classifier(tmp_path, untrained())
        path = tmp_path / name
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(PathsynthError) as caught:
            load_classifier(tmp_path, "cpu", labels.SLUGS)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    def test_classifier_of_other_tissues_is_refused(self, tmp_path):
        save_classifier(tmp_path, untrained(["a", "b"]))
        with pytest.raises(ModelError, match=r"classifies a, b, expected b, a; train it on this data set"):
            load_classifier(tmp_path, "cpu", ["b", "a"])

    def test_judge_of_the_gates_architecture_is_refused(self, tmp_path):
        save_classifier(tmp_path, untrained())
        with pytest.raises(ModelError, match="is a resnet18 like the gate"):
            load_gate_and_judge(tmp_path, tmp_path, "cpu", labels.SLUGS)
