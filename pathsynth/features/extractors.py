"""Feature extractors: networks that turn an image into numbers, in which generated and real images are compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pathsynth.classifiers.model import Classifier, normalised, read_weights
from pathsynth.core.devices import catch_out_of_memory, pad_batch_size
from pathsynth.core.errors import FetchError, ModelError, one_line
from pathsynth.core.hub import snapshot
from pathsynth.core.io import located, read_json
from pathsynth.data.images import as_batch
from pathsynth.features.settings import AnyFeatures, Dinov2Features, InceptionFeatures

if TYPE_CHECKING:
    import torch

BATCH = 32
DINOV2_SIZE = 224
DINOV2_FILES = ("config.json", "model.safetensors")
INCEPTION_LAYER = "2048"


class Extractor(Protocol):
    """A network as a function from images to features."""

    @property
    def name(self) -> str:
        """As `extractor` in params.yaml."""

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (n, dimensions) for uint8 (n, H, W, 3)."""


@dataclass(frozen=True)
class JudgeExtractor:
    """What the judge's head is given: features of a network that has learnt these tissues and no others.

    Each image's are scaled to length sqrt(D): a small network's features are of very unequal length, and a few images of an
    extreme one would decide every distance.
    """

    judge: Classifier
    name: str = "judge"

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""
        return self.judge.dimensions

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (n, dimensions) for uint8 (n, H, W, 3)."""
        return self.looks(images)[1]

    def looks(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The judge's probabilities float32 (n, tissues) and the features, in one pass."""
        probabilities, features = self.judge.looks(images)
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return probabilities, features * np.float32(np.sqrt(self.dimensions)) / np.maximum(lengths, np.float32(1e-12))


@dataclass(frozen=True)
class NetworkExtractor:
    """A network that has learnt from photographs.

    Attributes:
        name: as `extractor` in params.yaml.
        dimensions: number of features of an image.
        device: where the network is.
        features: from a batch, uint8 (n, H, W, 3), to float32 (n, dimensions) on `device`.
        batch_size: images at a time.
    """

    name: str
    dimensions: int
    device: str
    features: Callable[[np.ndarray], torch.Tensor]
    batch_size: int = BATCH

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (n, dimensions) for uint8 (n, H, W, 3).

        Raises:
            MemoryFault: a batch does not fit into memory.
        """
        import torch

        parts = [np.zeros((0, self.dimensions), np.float32)]
        with torch.inference_mode(), _room():
            for start in range(0, len(images), self.batch_size):
                some = images[start : start + self.batch_size]
                indices = np.minimum(np.arange(pad_batch_size(len(some), self.device)), len(some) - 1)
                parts.append(self.features(some[indices])[: len(some)].float().cpu().numpy())
        return np.concatenate(parts)


def load_extractor(settings: AnyFeatures, folder: Path, device: str, judge: Classifier) -> Extractor:
    """The extractor that `settings` describe, fetched where it is not here yet.

    Args:
        settings: `evaluation.realism.features`.
        folder: what a relative path is relative to.
        device: where it computes.
        judge: for the judge's own features.

    Raises:
        FetchError: weights that the network or the server does not give.
        ModelError: weights that are missing, damaged or of another network.
        MemoryFault: it does not fit on the device.
    """
    if isinstance(settings, InceptionFeatures):
        return _inception(settings, folder, device)
    if isinstance(settings, Dinov2Features):
        return _dinov2(settings, folder, device)
    return JudgeExtractor(judge)


def _inception(settings: InceptionFeatures, folder: Path, device: str) -> NetworkExtractor:
    """The Inception-v3 (Szegedy et al., CVPR 2016) of the Fréchet inception distance (Heusel et al., NeurIPS 2017).

    It is torch-fidelity's copy of the published TensorFlow graph, which resizes to 299 px as that one does.
    """
    import io

    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = _fetched_inception() if settings.weights == "download" else located(folder, settings.weights)
    # the class reads files by a loader that would run what a pickle says, so it gets a copy of nothing but the tensors
    copy = io.BytesIO()
    torch.save(dict(read_weights(path)), copy)
    copy.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", [INCEPTION_LAYER], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        raise ModelError(path, f"holds no weights of torch-fidelity's Inception-v3: {one_line(error)}") from error
    with _room():
        network = network.to(device)

    def features(images: np.ndarray) -> torch.Tensor:
        return network(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))[0]

    return NetworkExtractor("inception", int(INCEPTION_LAYER), device, features)


def _fetched_inception() -> Path:
    """torch-fidelity's weights in the cache of torch's hub."""
    from http.client import HTTPException

    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError, HTTPException) as error:
        remedy = "check the network, or fetch it by hand and name the file in evaluation.realism.features.weights"
        raise FetchError(URL_INCEPTION_V3, f"could not be fetched: {one_line(error)}; {remedy}") from error
    return path


def _dinov2(settings: Dinov2Features, folder: Path, device: str) -> NetworkExtractor:
    """A DINOv2 (Oquab et al., arXiv:2304.07193): its class token after the last layer norm.

    Stein et al. (NeurIPS 2023) found that distances between such features agree with people more than Inception's do.
    """
    path = _located_dinov2(settings, folder)
    network, dimensions = _loaded_dinov2(path)
    with _room():
        network = network.to(device).eval()

    def features(images: np.ndarray) -> torch.Tensor:
        batch = normalised(as_batch(images, device, DINOV2_SIZE))
        return network(pixel_values=batch).last_hidden_state[:, 0]

    return NetworkExtractor("dinov2", dimensions, device, features)


def _located_dinov2(settings: Dinov2Features, folder: Path) -> Path:
    """The local folder, or the two files that are used in the hub's cache, fetched where they are not there yet."""
    name = settings.pretrained_model_name_or_path
    if settings.revision is None:
        return located(folder, name)
    otherwise = "or name a local folder, with evaluation.realism.features.revision: null"
    return snapshot(name, settings.revision, DINOV2_FILES, DINOV2_FILES, otherwise)


def _loaded_dinov2(path: Path) -> tuple[torch.nn.Module, int]:
    """The network in float32, from safetensors alone, and the width of its tokens."""
    import torch
    from safetensors import SafetensorError
    from transformers import Dinov2Model
    from transformers.utils import logging

    for part in DINOV2_FILES:
        if not (path / part).is_file():
            raise ModelError(path, f"has no {part}; a DINOv2 in transformers' layout has {' and '.join(DINOV2_FILES)}")
    kind = read_json(path / "config.json").get("model_type")
    if kind != "dinov2":
        raise ModelError(path, f"is no DINOv2: config.json has model_type {kind!r}; allowed: 'dinov2'")
    logging.disable_progress_bar()
    options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        network, found = Dinov2Model.from_pretrained(path, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(path, f"does not load: {one_line(error)}") from error
    # transformers would make up what is missing
    if missing := sorted(found["missing_keys"]):
        raise ModelError(path, f"lacks {len(missing)} tensors, such as {missing[0]}: its weights are incomplete")
    return network, network.config.hidden_size


def _room() -> AbstractContextManager[None]:
    return catch_out_of_memory("no room to extract features; evaluation.realism.features: {extractor: judge} takes least")
