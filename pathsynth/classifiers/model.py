"""The classifiers: torchvision architectures, saved as safetensors beside a small config.json."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from pathsynth.classifiers.settings import ClassifierSettings, InputSize, Stem, Views
from pathsynth.core.devices import autocast, catch_out_of_memory, pad_rows
from pathsynth.core.errors import ModelError, one_line
from pathsynth.core.io import compute_sha256, read_json, resolve_path, write_json, write_safetensors
from pathsynth.core.params import MixedPrecision
from pathsynth.data.images import as_batch, as_pixels, rotate_and_mirror_batch
from pathsynth.data.prefetch import prefetch

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassifierCard:
    """Everything needed to rebuild the network and to interpret its outputs; `slugs` are its classes in order."""

    architecture: str
    stem: Stem
    input_size: InputSize
    mixed_precision: MixedPrecision
    slugs: list[str]
    views: Views = 1


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing."""

    network: torch.nn.Module
    card: ClassifierCard
    device: str

    def probabilities(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Predicts class probabilities, float32 (N, tissues), see `predict_with_features`."""
        return self.predict_with_features(images, batch_size)[0]

    def predict_with_features(self, images: np.ndarray, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Predicts class probabilities and penultimate features, in the same forward passes: one for each of the card's views.

        Args:
            images: uint8 (N, H, W, 3).
            batch_size: images at a time.

        Returns:
            Probabilities, float32 (N, tissues), rows sum to 1, and features, float32 (N, `dimensions`): the input of the head,
            averaged over positions if that is a feature map. Both are means over the views.

        Raises:
            OutOfMemory: a batch does not fit into memory.
        """
        hint = "a batch of the classifier does not fit: lower generation.sampler.batch_size or classifiers.*.input_size"
        batches = [(np.zeros((0, len(self.card.slugs)), np.float32), np.zeros((0, self.dimensions), np.float32))]
        self.network.eval()

        def read(start: int) -> tuple[torch.Tensor, int]:
            batch = images[start : start + batch_size]
            return as_pixels(batch[pad_rows(len(batch), self.device)], self.device), len(batch)

        with catch_out_of_memory(hint), closing(prefetch(read, range(0, len(images), batch_size))) as padded:
            for pixels, count in padded:
                batches.append(self._predict_batch(pixels, count))
        probabilities, features = zip(*batches, strict=True)
        return np.concatenate(probabilities), np.concatenate(features)

    @property
    def dimensions(self) -> int:
        """Number of penultimate features."""
        import torch

        _, head = find_head(self.network)
        return head.in_features if isinstance(head, torch.nn.Linear) else head.in_channels

    def _predict_batch(self, images: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and features of the first `count` of uint8 images (n, H, W, 3), means over the card's views."""
        import torch

        head_inputs: list[torch.Tensor] = []
        _, head = find_head(self.network)
        with torch.inference_mode(), head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0])):
            pixels = normalize_pixels(as_batch(images, self.device, self.card.input_size))
            with autocast(self.device, self.card.mixed_precision):
                logits = [self.network(view) for view in rotate_and_mirror_batch(pixels, self.card.views)]
            probabilities = torch.stack([each[:count].float().softmax(dim=1) for each in logits]).mean(dim=0)
            features = torch.stack([each[:count].float() for each in head_inputs]).mean(dim=0)
            # a feature map (n, D, h, w) is averaged over its positions
            features = features.flatten(2).mean(2) if features.ndim == 4 else features
            return probabilities.cpu().numpy(), features.cpu().numpy()


def build_card(settings: ClassifierSettings, slugs: Sequence[str]) -> ClassifierCard:
    """Builds the card of the network that `settings` describe."""
    return ClassifierCard(
        settings.architecture, settings.stem, settings.input_size, settings.mixed_precision, list(slugs), settings.views
    )


def build_network(card: ClassifierCard, weights: Mapping[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """Builds the torchvision network with a head for the card's tissues.

    Args:
        card: architecture, stem and tissues.
        weights: weights of this architecture from `load_pretrained_weights`, whose head is replaced; None for random weights.

    Raises:
        ModelError: torchvision does not have the architecture, or the weights belong to a different one.
    """
    import torch

    if weights is None:
        network = _build_architecture(card.architecture, num_classes=len(card.slugs))
    else:
        network = _build_architecture(card.architecture)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError("weights", f"do not fit {card.architecture} with its ImageNet head: {one_line(error)}") from error
        _replace_head(network, len(card.slugs))
    if card.stem == "small":
        # He et al. 2016, section 4.2: a 3x3 convolution and no pooling for images of 32 px
        width = network.conv1.out_channels
        network.conv1 = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    return network.to(memory_format=torch.channels_last)


def _build_architecture(name: str, **options: Any) -> Any:
    """Builds a torchvision network by its name there, or one of two small ones of its classes; the number counts layers."""
    from torchvision import models

    if name == "resnet10":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **options)
    if name == "densenet37":
        return models.DenseNet(growth_rate=16, block_config=(2, 4, 6, 4), num_init_features=32, **options)
    if name not in models.list_models(module=models):
        examples = "resnet18, densenet37, regnet_y_400mf"
        raise ModelError("architecture", f"{name!r} is not a torchvision classifier; examples: {examples}")
    return models.get_model(name, **options)


def check_network(network: torch.nn.Module, card: ClassifierCard) -> None:
    """Runs a copy of the network on two blank images, so that an unsuitable architecture fails before training.

    Raises:
        ModelError: the network does not take images of `input_size` or does not return one logit per tissue.
    """
    import torch

    where = f"architecture {card.architecture!r}"
    try:
        logits = copy.deepcopy(network).cpu().train()(torch.zeros(2, 3, card.input_size, card.input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(where, f"does not work at input_size {card.input_size}: {one_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, len(card.slugs)):
        raise ModelError(where, "does not return one logit per tissue; use a torchvision classifier with a single head")


def normalize_pixels(batch: torch.Tensor) -> torch.Tensor:
    """Normalizes NCHW pixels in [0, 1] by ImageNet's channel means and standard deviations."""
    mean = batch.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = batch.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (batch - mean) / std


def find_head(network: torch.nn.Module) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Finds name and module of the head: the last linear layer, or the last convolution of a network without any (SqueezeNet).

    Raises:
        ModelError: the network has neither.
    """
    import torch

    for kind in (torch.nn.Linear, torch.nn.Conv2d):
        layers = [(name, part) for name, part in network.named_modules() if isinstance(part, kind)]
        if layers:
            return layers[-1]
    raise ModelError("architecture", f"{type(network).__name__} has neither a linear layer nor a convolution")


def _replace_head(network: torch.nn.Module, tissues: int) -> None:
    """Replaces the linear head with a new one for `tissues` classes."""
    import torch

    name, head = find_head(network)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError("architecture", f"{type(network).__name__} has no linear head to replace; use weights: none")
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], torch.nn.Linear(head.in_features, tissues))


def load_pretrained_weights(settings: ClassifierSettings, folder: Path) -> Mapping[str, torch.Tensor] | None:
    """Loads the initial weights: None for random ones, torchvision's ImageNet weights, or those of a local file.

    torchvision's files are pickles; torch's restricted loader (`weights_only`) reads tensors and runs no code.

    Args:
        settings: uses `weights`, `weights_sha256` and `architecture`.
        folder: folder that relative paths start from.

    Raises:
        ModelError: the weights cannot be downloaded or read, or have a different checksum.
    """
    if settings.weights == "none":
        return None
    if settings.weights == "imagenet":
        return _download_imagenet_weights(settings.architecture)
    return read_weights(resolve_path(folder, settings.weights), settings.weights_sha256)


def list_weight_files(settings: ClassifierSettings, folder: Path) -> list[Path]:
    """Lists the local weights file that the settings name, if any."""
    return [] if settings.weights in ("none", "imagenet") else [resolve_path(folder, settings.weights)]


def _download_imagenet_weights(architecture: str) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    try:
        weights = models.get_model_weights(architecture)["DEFAULT"]
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except ValueError as error:
        raise ModelError("architecture", f"{architecture!r} is not a torchvision classifier with ImageNet weights") from error
    except (OSError, RuntimeError) as error:
        hint = "check the network, or download the file yourself and name it in weights"
        raise ModelError("weights", f"of {architecture} could not be fetched: {one_line(error)}; {hint}") from error


def read_weights(path: Path, sha256: str | None = None) -> Mapping[str, torch.Tensor]:
    """Reads a local .pth or .safetensors file of tensors without running any code in it.

    Args:
        path: the file.
        sha256: its checksum or the first digits of it; None for the digits in the file name, as torch.hub writes them.

    Raises:
        DataError: the file cannot be read.
        ModelError: it has a different checksum, or holds anything but tensors.
    """
    import torch
    from safetensors.torch import load_file

    in_name = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    expected, actual = sha256 or (in_name[1] if in_name else ""), compute_sha256(path)
    if not actual.startswith(expected):
        raise ModelError(path, f"SHA-256 is {actual}, expected {expected}…: wrong file or incomplete download")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # the unpickler may raise any exception on damaged input
        raise ModelError(path, f"holds no weights: {one_line(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(path, "holds no weights: expected a mapping from names to tensors")
    return weights


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Writes model.safetensors and config.json."""
    write_safetensors(folder / WEIGHTS, classifier.network.state_dict())
    write_json(folder / CONFIG, asdict(classifier.card))


def load_classifier(folder: Path, device: str, slugs: Sequence[str]) -> Classifier:
    """Loads a folder written by `save_classifier`.

    Raises:
        ModelError: a file is missing or damaged, or the classifier's classes are not `slugs` in this order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ModelError(folder, f"has no {missing[0]}; run the stage train_classifier first")
    try:
        card = TypeAdapter(ClassifierCard).validate_python(read_json(folder / CONFIG))
        network = build_network(card)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise ModelError(folder, f"is not a saved classifier: {one_line(error)}") from error
    if card.slugs != list(slugs):
        raise ModelError(folder, f"classifies {', '.join(card.slugs)}, expected {', '.join(slugs)}; train it on this data set")
    return Classifier(network.to(device).eval(), card, device)


def load_gate_and_judge(gate: Path, judge: Path, device: str, slugs: Sequence[str]) -> tuple[Classifier, Classifier]:
    """Loads the classifier that filters and the one that grades.

    Raises:
        ModelError: as `load_classifier`, or both have the same architecture.
    """
    gate_model, judge_model = (load_classifier(folder, device, slugs) for folder in (gate, judge))
    if gate_model.card.architecture == judge_model.card.architecture:
        problem = f"is a {judge_model.card.architecture} like the gate; the judge needs a different architecture"
        raise ModelError(judge, problem)
    return gate_model, judge_model
