"""Features of judge, Inception and DINOv2: known answers, batch independence, downloads, and one-line errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from loopback import REVISION, Server

from pathsynth.classifiers.model import Classifier, ClassifierCard, build_network, find_head, normalize_pixels
from pathsynth.core.errors import DataError, FetchError, ModelError
from pathsynth.data.images import as_batch
from pathsynth.features.extractors import load_extractor
from pathsynth.features.settings import Dinov2Features, InceptionFeatures, JudgeFeatures

REPO = "facebook/dinov2-tiny"
IMAGES = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)


def _classifier(architecture: str = "shufflenet_v2_x0_5", precision: str = "no") -> Classifier:
    import torch

    torch.manual_seed(1)
    card = ClassifierCard(architecture, "standard", 32, precision, ["a", "b", "c"])
    return Classifier(build_network(card).eval(), card, "cpu")


@pytest.mark.parametrize(
    ("architecture", "head", "dimensions"),
    [("resnet18", "fc", 512), ("shufflenet_v2_x0_5", "fc", 1024), ("mobilenet_v3_small", "classifier.3", 1024)],
)
def test_judge_features_are_the_scaled_input_of_its_head(architecture: str, head: str, dimensions: int):
    import torch

    judge, seen = _classifier(architecture), []
    assert find_head(judge.network)[0] == head
    extractor = load_extractor(JudgeFeatures(extractor="judge"), Path(), "cpu", judge)
    features = extractor(IMAGES)
    assert (extractor.name, extractor.dimensions, features.shape) == ("judge", dimensions, (19, dimensions))
    assert features.dtype == np.float32
    judge.network.get_submodule(head).register_forward_hook(lambda _, given, answer: seen.append(given[0]))
    with torch.inference_mode():
        logits = judge.network(normalize_pixels(as_batch(IMAGES, "cpu", 32)))
    given = seen[0].numpy()
    scaled = given * np.sqrt(dimensions) / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(features, scaled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(judge.probabilities(IMAGES), logits.softmax(1).numpy(), atol=1e-5)


def test_probabilities_and_features_of_one_pass_agree_and_leave_no_hook():
    judge = _classifier()
    probabilities, features = judge.predict_with_features(IMAGES)
    np.testing.assert_array_equal(probabilities, judge.probabilities(IMAGES))
    assert not find_head(judge.network)[1]._forward_pre_hooks
    head = judge.network.fc
    by_hand = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_array_equal(by_hand.argmax(axis=1), probabilities.argmax(axis=1))
    assert [part.shape for part in judge.predict_with_features(IMAGES[:0])] == [(0, 3), (0, 1024)]
    half = _classifier(precision="bf16").predict_with_features(IMAGES)
    assert [part.dtype for part in half] == [np.float32, np.float32]


def test_features_of_a_convolutional_head_are_averaged_over_positions():
    judge = _classifier("squeezenet1_1")
    name, head = find_head(judge.network)
    assert (name, judge.dimensions) == ("classifier.1", head.in_channels)
    probabilities, features = judge.predict_with_features(IMAGES)
    assert probabilities.shape == (19, 3) and features.shape == (19, 512)


def test_judge_features_do_not_depend_on_the_batch_size():
    judge = _classifier()
    expected = judge.predict_with_features(IMAGES, 100)[1]
    for size in (5, 16):
        np.testing.assert_array_equal(judge.predict_with_features(IMAGES, size)[1], expected)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    """Random weights in torch-fidelity's layout, under a name that ends in their checksum."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("any", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path.rename(path.with_name(f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


def _inception(weights: str, folder: Path = Path()):
    return load_extractor(InceptionFeatures(extractor="inception", weights=weights), folder, "cpu", _classifier())


@pytest.mark.slow
def test_inception_features_match_torch_fidelity(inception_weights: Path):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = _inception(inception_weights.name, inception_weights.parent)
    features = extractor(IMAGES[:3])
    assert (extractor.name, extractor.dimensions, features.shape) == ("inception", 2048, (3, 2048))
    assert extractor(IMAGES[:0]).shape == (0, 2048)
    path = str(inception_weights)
    published = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    (expected,) = published(torch.from_numpy(IMAGES[:3]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def release(server: Server, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server at torch-fidelity's address, and an empty cache of torch.hub."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    address = server.add_file(f"/releases/{inception_weights.name}", inception_weights, redirect=True)
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return server


@pytest.mark.slow
def test_inception_weights_are_downloaded_once(release: Server, inception_weights: Path, tmp_path: Path):
    _inception("download")
    kept = tmp_path / "torch" / "hub" / "checkpoints" / inception_weights.name
    assert kept.read_bytes() == inception_weights.read_bytes()
    asked = len(release.requests)
    _inception("download")
    assert len(release.requests) == asked
    kept.write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"expected [0-9a-f]{8}…: wrong file or incomplete download$"):
        _inception("download")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["corrupt", "fail", "cut"])
def test_failed_download_is_one_line_error(fault: str, release: Server, tmp_path: Path):
    getattr(release, fault)("/releases/", times=None)
    with pytest.raises(FetchError, match="could not be downloaded: ") as caught:
        _inception("download")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("or download it by hand and set evaluation.observation.features.weights to the file")
    assert not list(tmp_path.rglob("*.pth*"))


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_malicious_pickle_is_refused(tmp_path: Path):
    import pickle

    import torch

    torch.save({"fc.weight": Hostile(tmp_path / "touched")}, tmp_path / "weights.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "touched")))
    for name in ("weights.pth", "plain.pth"):
        with pytest.raises(ModelError, match="holds no weights: ") as caught:
            _inception(name, tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert (tmp_path / "touched").exists(), "the pickle is malicious"


def test_weights_of_another_network_or_checksum_are_one_line_errors(tmp_path: Path):
    import torch

    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    for name, problem in (
        ("other.pth", "does not hold weights of torch-fidelity's Inception-v3: "),
        ("weights-inception-2015-12-05-6726825d.pth", "expected 6726825d"),
        ("missing.pth", "could not be read: No such file or directory"),
    ):
        with pytest.raises((DataError, ModelError), match=problem) as caught:
            _inception(name, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory) -> Path:
    """An untrained DINOv2 of two layers, with another image size than that of its input."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("dinov2") / "model"
    Dinov2Model(config).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    return folder


def _dinov2(name: str | Path, revision: str | None = None, folder: Path = Path()):
    settings = Dinov2Features(extractor="dinov2", pretrained_model_name_or_path=str(name), revision=revision)
    return load_extractor(settings, folder, "cpu", _classifier())


def test_dinov2_features_are_the_class_token(tiny_dinov2: Path):
    import torch
    from transformers import Dinov2Model

    extractor = _dinov2("model", folder=tiny_dinov2.parent)
    features = extractor(IMAGES)
    assert (extractor.name, extractor.dimensions, features.shape) == ("dinov2", 32, (19, 32))
    network = Dinov2Model.from_pretrained(tiny_dinov2).eval()
    with torch.inference_mode():
        answer = network(normalize_pixels(as_batch(IMAGES, "cpu", 224)))
    np.testing.assert_allclose(features, answer.pooler_output.numpy(), atol=1e-5)
    assert features.std(axis=0).min() > 0


def test_dinov2_features_do_not_depend_on_the_batch_size(tiny_dinov2: Path):
    from dataclasses import replace

    extractor = _dinov2(tiny_dinov2)
    whole = extractor(IMAGES)
    for size in (5, 16):
        np.testing.assert_array_equal(replace(extractor, batch_size=size)(IMAGES), whole)
    np.testing.assert_array_equal(extractor(IMAGES[7:8]), whole[7:8])
    assert extractor(IMAGES[:0]).shape == (0, 32)


def test_dinov2_is_downloaded_once_and_without_pickles(
    server: Server, tiny_dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.add_repo(REPO, tiny_dinov2)
    fetched = _dinov2(REPO, REVISION)
    np.testing.assert_array_equal(fetched(IMAGES), _dinov2(tiny_dinov2)(IMAGES))
    names = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert names == {"config.json", "model.safetensors"}
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _dinov2(REPO, REVISION)
    assert not server.requests


@pytest.mark.parametrize(("name", "revision"), [("nobody/nothing", REVISION), (REPO, "f" * 40)])
def test_missing_dinov2_is_one_line_error(server: Server, tiny_dinov2: Path, name: str, revision: str):
    server.add_repo(REPO, tiny_dinov2)
    with pytest.raises(FetchError, match=rf"^{name} at {revision}: ") as caught:
        _dinov2(name, revision)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(
        "or set evaluation.observation.features to a local folder, without revision"
    )


def test_damaged_dinov2_folder_is_one_line_error(tiny_dinov2: Path, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_dinov2, tmp_path / name))

    (copy("unsafe") / "model.safetensors").unlink()
    (copy("cut") / "model.safetensors").write_bytes((tiny_dinov2 / "model.safetensors").read_bytes()[:1000])
    config = json.loads((tiny_dinov2 / "config.json").read_text())
    (copy("other") / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    (copy("wide") / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    tensors = load_file(tiny_dinov2 / "model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, copy("lacking") / "model.safetensors", {"format": "pt"})
    for name, problem in (
        ("missing", "has no config.json; a DINOv2 in transformers' layout has config.json and model.safetensors$"),
        ("unsafe", "has no model.safetensors; a DINOv2"),
        ("cut", "cannot be loaded: "),
        ("other", "is not a DINOv2: config.json has model_type 'vit'; allowed: 'dinov2'$"),
        ("wide", "cannot be loaded: "),
        ("lacking", "lacks 1 tensors, such as layernorm.bias: its weights are incomplete$"),
    ):
        with pytest.raises(ModelError, match=f"{name}: {problem}") as caught:
            _dinov2(name, folder=tmp_path)
        assert "\n" not in str(caught.value)
