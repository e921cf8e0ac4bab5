"""The classifiers that check images: torchvision architectures, saved as safetensors beside a small config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from pathsynth.classifiers.settings import ClassifierSettings, InputSize, Stem
from pathsynth.core.devices import autocast, catch_out_of_memory, pad_batch_size
from pathsynth.core.errors import ModelError, one_line
from pathsynth.core.io import located, read_json, sha256_of, write_json, write_safetensors
from pathsynth.core.params import MixedPrecision
from pathsynth.data.images import as_batch

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassifierCard:
    """What is needed to build the network again and to read its answers."""

    architecture: str
    stem: Stem
    input_size: InputSize
    mixed_precision: MixedPrecision
    slugs: list[str]


@dataclass(frozen=True)
class Classifier:
    """A trained network with the way its input is prepared."""

    network: torch.nn.Module
    card: ClassifierCard
    device: str

    def probabilities(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Class probabilities.

        Args:
            images: uint8 (N, H, W, 3).
            batch_size: images at a time.

        Returns:
            float32 (N, tissues), rows sum to 1.

        Raises:
            MemoryFault: a batch does not fit into memory.
        """
        parts = [np.zeros((0, len(self.card.slugs)), np.float32)]
        for start in range(0, len(images), batch_size):
            answers, _ = self._pass(images[start : start + batch_size])
            parts.append(answers.cpu().numpy())
        return np.concatenate(parts)

    def looks(self, images: np.ndarray, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities and the features they are made of, in one pass.

        Args:
            images: uint8 (N, H, W, 3).
            batch_size: images at a time.

        Returns:
            float32 (N, tissues) as `probabilities` gives them, and float32 (N, `dimensions`): what the head is given, the mean
            over all places where that is a map.

        Raises:
            MemoryFault: a batch does not fit into memory.
        """
        parts = [np.zeros((0, len(self.card.slugs)), np.float32)]
        features = [np.zeros((0, self.dimensions), np.float32)]
        for start in range(0, len(images), batch_size):
            answers, found = self._pass(images[start : start + batch_size])
            parts.append(answers.cpu().numpy())
            features.append(found.float().cpu().numpy())
        return np.concatenate(parts), np.concatenate(features)

    @property
    def dimensions(self) -> int:
        """Number of features that the head is given."""
        import torch

        _, head = head_of(self.network)
        return head.in_features if isinstance(head, torch.nn.Linear) else head.in_channels

    def _pass(self, some: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities float32 (n, tissues) and features (n, D) of one batch, uint8 (n, H, W, 3)."""
        import torch

        self.network.eval()
        seen: list[torch.Tensor] = []
        _, head = head_of(self.network)
        with (
            torch.inference_mode(),
            catch_out_of_memory(
                "no room for the classifier's batches: lower generation.sampler.batch_size or classifiers.*.input_size"
            ),
            head.register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        ):
            indices = np.minimum(np.arange(pad_batch_size(len(some), self.device)), len(some) - 1)
            batch = normalised(as_batch(some[indices], self.device, self.card.input_size))
            with autocast(self.device, self.card.mixed_precision):
                logits = self.network(batch)
            return logits[: len(some)].float().softmax(dim=1), _flat(seen[-1][: len(some)])


def build_network(card: ClassifierCard, weights: Mapping[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """Builds the torchvision network with a head for the card's tissues.

    Args:
        card: architecture, stem and tissues.
        weights: of the same architecture, from `pretrained`; its head is replaced. None for random weights.

    Raises:
        ModelError: an architecture that torchvision does not know, or weights of another one.
    """
    import torch
    from torchvision import models

    known = models.list_models(module=models)
    if card.architecture not in known:
        raise ModelError(
            "architecture", f"{card.architecture!r} is not a torchvision classifier; examples: resnet18, regnet_y_400mf"
        )
    if weights is None:
        network = models.get_model(card.architecture, num_classes=len(card.slugs))
    else:
        network = models.get_model(card.architecture)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError("weights", f"are not of {card.architecture} with ImageNet's head: {one_line(error)}") from error
        _replace_head(network, len(card.slugs))
    if card.stem == "small":
        # He et al. 2016, section 4.2: a 3x3 convolution and no pooling for images of 32 px
        width = network.conv1.out_channels
        network.conv1 = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    return network.to(memory_format=torch.channels_last)


def pretrained(settings: ClassifierSettings, folder: Path) -> Mapping[str, torch.Tensor] | None:
    """The weights to start from: none, torchvision's ImageNet weights, or a local file of such weights.

    torchvision's files are pickles; they are read by torch's restricted loader, which builds tensors and runs nothing.

    Args:
        settings: `weights`, `weights_sha256` and `architecture` say which.
        folder: what a relative path is relative to.

    Raises:
        ModelError: weights that cannot be fetched or read, or whose checksum is another one.
    """
    if settings.weights == "none":
        return None
    if settings.weights == "imagenet":
        return _from_torchvision(settings.architecture)
    return read_weights(located(folder, settings.weights), settings.weights_sha256)


def own_weights(settings: ClassifierSettings, folder: Path) -> list[Path]:
    """The local file of weights that the settings name, as a list that is empty where they name none."""
    return [] if settings.weights in ("none", "imagenet") else [located(folder, settings.weights)]


def _from_torchvision(architecture: str) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    try:
        weights = models.get_model_weights(architecture)["DEFAULT"]
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except ValueError as error:
        raise ModelError("architecture", f"{architecture!r} is not a torchvision classifier with ImageNet weights") from error
    except (OSError, RuntimeError) as error:
        remedy = "check the network, or fetch the file by hand and name it in weights"
        raise ModelError("weights", f"of {architecture} could not be fetched: {one_line(error)}; {remedy}") from error


def read_weights(path: Path, sha256: str | None = None) -> Mapping[str, torch.Tensor]:
    """Reads a local file of tensors, .pth or .safetensors, without running anything that it may hold.

    Args:
        path: the file.
        sha256: its checksum, whole or its first digits; None for the digits in which its name ends, as names of torch's hub do.

    Raises:
        DataError: the file cannot be read.
        ModelError: it has another checksum, or holds other things than tensors.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    _check_sha256(path, sha256 or (named[1] if named else ""))
    return _tensors(path)


def _check_sha256(path: Path, start: str) -> None:
    found = sha256_of(path)
    if not found.startswith(start):
        raise ModelError(path, f"its SHA-256 is {found}, which does not begin with {start}: another file, or only a part of it")


def _tensors(path: Path) -> Mapping[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged pickle makes the loader stumble in any way
        raise ModelError(path, f"holds no weights: {one_line(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(path, "holds no weights: a mapping from names to tensors is wanted")
    return weights


def check_network(network: torch.nn.Module, card: ClassifierCard) -> None:
    """Sends two blank images through a copy, so that an unfit architecture is told before any training.

    Raises:
        ModelError: the network does not take images of `input_size` or does not answer with one number per tissue.
    """
    import copy

    import torch

    where = f"architecture {card.architecture!r}"
    try:
        answer = copy.deepcopy(network).cpu().train()(torch.zeros(2, 3, card.input_size, card.input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(where, f"does not work at input_size {card.input_size}: {one_line(error)}") from error
    if not isinstance(answer, torch.Tensor) or answer.shape != (2, len(card.slugs)):
        raise ModelError(
            where, "does not answer with one number per tissue; allowed: torchvision classifiers with a single head"
        )


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Writes model.safetensors and config.json."""
    write_safetensors(folder / "model.safetensors", classifier.network.state_dict())
    write_json(folder / "config.json", asdict(classifier.card))


def load_classifier(folder: Path, device: str, slugs: Sequence[str]) -> Classifier:
    """Reads what `save_classifier` wrote.

    Raises:
        ModelError: a part is missing or does not fit, or the classifier knows other tissues than `slugs`, or in other order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for part in ("config.json", "model.safetensors"):
        if not (folder / part).is_file():
            raise ModelError(folder, f"has no {part}; run the stage train_classifier first")
    try:
        card = TypeAdapter(ClassifierCard).validate_python(read_json(folder / "config.json"))
        network = build_network(card)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise ModelError(folder, f"is not a saved classifier: {one_line(error)}") from error
    if card.slugs != list(slugs):
        raise ModelError(folder, f"knows {', '.join(card.slugs)}; expected {', '.join(slugs)}: train it on this data set")
    return Classifier(network.to(device).eval(), card, device)


def load_pair(gate: Path, judge: Path, device: str, slugs: Sequence[str]) -> tuple[Classifier, Classifier]:
    """Reads the classifier that filters and the one that judges.

    Raises:
        ModelError: as `load_classifier`, or both are of one architecture.
    """
    filtering, judging = (load_classifier(folder, device, slugs) for folder in (gate, judge))
    if filtering.card.architecture == judging.card.architecture:
        raise ModelError(judge, f"is a {judging.card.architecture} like the gate; the judge must be another architecture")
    return filtering, judging


def card_of(settings: ClassifierSettings, slugs: Sequence[str]) -> ClassifierCard:
    """The card of the network that `settings` describes."""
    return ClassifierCard(settings.architecture, settings.stem, settings.input_size, settings.mixed_precision, list(slugs))


def normalised(batch: torch.Tensor) -> torch.Tensor:
    """Subtracts ImageNet's mean and divides by its deviation; NCHW in [0, 1] in."""
    mean = batch.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = batch.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (batch - mean) / std


def head_of(network: torch.nn.Module) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Name and layer that answer for the tissues: the last linear one, or in SqueezeNets, without any, the last convolution.

    Raises:
        ModelError: a network with neither.
    """
    import torch

    for kind in (torch.nn.Linear, torch.nn.Conv2d):
        found = [(name, part) for name, part in network.named_modules() if isinstance(part, kind)]
        if found:
            return found[-1]
    raise ModelError("architecture", f"{type(network).__name__} has no layer that could be its head")


def _flat(given: torch.Tensor) -> torch.Tensor:
    """Features (n, D) as they are, and a map (n, D, h, w) averaged over its places."""
    return given.flatten(2).mean(2) if given.ndim == 4 else given


def _replace_head(network: torch.nn.Module, tissues: int) -> None:
    """Swaps the last linear layer, which in nearly all of torchvision's classifiers is the head, for a new one."""
    import torch

    name, head = head_of(network)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError("architecture", f"{type(network).__name__} has no linear head to replace; use weights: none")
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], torch.nn.Linear(head.in_features, tissues))
