"""Feature extractors: the networks in whose feature space generated and real images are compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pathsynth.classifiers.model import Classifier, normalize_pixels, read_weights
from pathsynth.core.devices import catch_out_of_memory, pad_rows
from pathsynth.core.errors import FetchError, ModelError, one_line
from pathsynth.core.hub import download_snapshot
from pathsynth.core.io import read_json, resolve_path
from pathsynth.data.images import as_batch
from pathsynth.features.settings import AnyFeatures, Dinov2Features, InceptionFeatures

if TYPE_CHECKING:
    import torch

BATCH = 32
DINOV2_SIZE = 224
DINOV2_FILES = ("config.json", "model.safetensors")
INCEPTION_LAYER = "2048"


class Extractor(Protocol):
    """A function from images to features."""

    @property
    def name(self) -> str:
        """Value of `extractor` in the benchmark's file."""

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (n, dimensions) of images uint8 (n, H, W, 3)."""


@dataclass(frozen=True)
class JudgeExtractor:
    """Input of the judge's head: features of a network that was trained on these tissues.

    Each row is scaled to length sqrt(D): a small network's features differ widely in length, and a few extreme images would
    dominate every distance.
    """

    judge: Classifier
    name: str = "judge"

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""
        return self.judge.dimensions

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (n, dimensions) of images uint8 (n, H, W, 3)."""
        return self.predict_with_features(images)[1]

    def predict_with_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The judge's probabilities float32 (n, tissues) and the features float32 (n, dimensions), in one pass."""
        probabilities, features = self.judge.predict_with_features(images)
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return probabilities, features * np.float32(np.sqrt(self.dimensions)) / np.maximum(lengths, np.float32(1e-12))


@dataclass(frozen=True)
class NetworkExtractor:
    """A network that was trained on photographs.

    Attributes:
        name: value of `extractor` in the benchmark's file.
        dimensions: number of features of an image.
        device: torch device of the network.
        features: function from a batch uint8 (n, H, W, 3) to float32 (n, dimensions) on `device`.
        batch_size: images per batch.
    """

    name: str
    dimensions: int
    device: str
    features: Callable[[np.ndarray], torch.Tensor]
    batch_size: int = BATCH

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (n, dimensions) of images uint8 (n, H, W, 3).

        Raises:
            OutOfMemory: a batch does not fit into memory.
        """
        import torch

        parts = [np.zeros((0, self.dimensions), np.float32)]
        with torch.inference_mode(), _catch_out_of_memory():
            for start in range(0, len(images), self.batch_size):
                batch = images[start : start + self.batch_size]
                rows = pad_rows(len(batch), self.device)
                parts.append(self.features(batch[rows])[: len(batch)].float().cpu().numpy())
        return np.concatenate(parts)


def load_extractor(settings: AnyFeatures, folder: Path, device: str, judge: Classifier) -> Extractor:
    """Loads the selected extractor, downloading its weights if needed.

    Args:
        settings: `evaluation.observation.features`.
        folder: folder that relative paths start from.
        device: torch device.
        judge: the judge, for its own features.

    Raises:
        FetchError: the weights cannot be downloaded.
        ModelError: the weights are missing, damaged, or of a different network.
        OutOfMemory: the network does not fit on the device.
    """
    if isinstance(settings, InceptionFeatures):
        return _load_inception(settings, folder, device)
    if isinstance(settings, Dinov2Features):
        return _load_dinov2(settings, folder, device)
    return JudgeExtractor(judge)


def _load_inception(settings: InceptionFeatures, folder: Path, device: str) -> NetworkExtractor:
    """The Inception-v3 (Szegedy et al., CVPR 2016) of the Fréchet inception distance (Heusel et al., NeurIPS 2017).

    torch-fidelity's copy of the published TensorFlow graph, with its resizing to 299 px.
    """
    import io

    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = _download_inception() if settings.weights == "download" else resolve_path(folder, settings.weights)
    # the class unpickles its file, so it gets a copy that holds only tensors
    safe_copy = io.BytesIO()
    torch.save(dict(read_weights(path)), safe_copy)
    safe_copy.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [INCEPTION_LAYER], feature_extractor_weights_path=safe_copy
        )
    except RuntimeError as error:
        raise ModelError(path, f"does not hold weights of torch-fidelity's Inception-v3: {one_line(error)}") from error
    with _catch_out_of_memory():
        network = network.to(device)

    def features(images: np.ndarray) -> torch.Tensor:
        return network(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))[0]

    return NetworkExtractor("inception", int(INCEPTION_LAYER), device, features)


def _download_inception() -> Path:
    """Path of torch-fidelity's weights in the cache of torch.hub, downloaded if they are not there."""
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
        fix = "check the network, or download it by hand and set evaluation.observation.features.weights to the file"
        raise FetchError(URL_INCEPTION_V3, f"could not be downloaded: {one_line(error)}; {fix}") from error
    return path


def _load_dinov2(settings: Dinov2Features, folder: Path, device: str) -> NetworkExtractor:
    """The class token of a DINOv2 (Oquab et al., arXiv:2304.07193) after the last layer norm.

    Distances between such features agree better with human judgement than Inception's (Stein et al., NeurIPS 2023).
    """
    path = _locate_dinov2(settings, folder)
    network, dimensions = _load_dinov2_network(path)
    with _catch_out_of_memory():
        network = network.to(device).eval()

    def features(images: np.ndarray) -> torch.Tensor:
        batch = normalize_pixels(as_batch(images, device, DINOV2_SIZE))
        return network(pixel_values=batch).last_hidden_state[:, 0]

    return NetworkExtractor("dinov2", dimensions, device, features)


def _locate_dinov2(settings: Dinov2Features, folder: Path) -> Path:
    """The local folder, or the folder of the hub's cache with the two files, downloaded if they are not there."""
    name = settings.pretrained_model_name_or_path
    if settings.revision is None:
        return resolve_path(folder, name)
    alternative = "or set evaluation.observation.features to a local folder, without revision"
    return download_snapshot(name, settings.revision, DINOV2_FILES, DINOV2_FILES, alternative)


def _load_dinov2_network(path: Path) -> tuple[torch.nn.Module, int]:
    """The network in float32, read from safetensors only, and the width of its tokens."""
    import torch
    from safetensors import SafetensorError
    from transformers import Dinov2Model
    from transformers.utils import logging

    for part in DINOV2_FILES:
        if not (path / part).is_file():
            raise ModelError(path, f"has no {part}; a DINOv2 in transformers' layout has {' and '.join(DINOV2_FILES)}")
    model_type = read_json(path / "config.json").get("model_type")
    if model_type != "dinov2":
        raise ModelError(path, f"is not a DINOv2: config.json has model_type {model_type!r}; allowed: 'dinov2'")
    logging.disable_progress_bar()
    options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        network, info = Dinov2Model.from_pretrained(path, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(path, f"cannot be loaded: {one_line(error)}") from error
    # transformers initializes missing tensors at random
    if missing := sorted(info["missing_keys"]):
        raise ModelError(path, f"lacks {len(missing)} tensors, such as {missing[0]}: its weights are incomplete")
    return network, network.config.hidden_size


def _catch_out_of_memory() -> AbstractContextManager[None]:
    return catch_out_of_memory(
        "feature extraction does not fit; {extractor: judge} in evaluation.observation.features needs the least memory"
    )
