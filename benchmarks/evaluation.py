"""Realism scores against torch-fidelity's documented use, on the same features: those of the judge.

Both take the features of scored and of real images and compute the same four scores of them: Fréchet and kernel distance,
precision and recall. Our intervals and the scores of each tissue, which the peer lacks, are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.pairs import Bench, Row, in_turns
from pathsynth.classifiers.model import Classifier, load_classifier
from pathsynth.evaluation.fidelity import RealImages, feature_sums, frechet_distance, in_real_balls, kernel_distance, recall
from pathsynth.features.extractors import JudgeExtractor

# Images of each set.
IMAGES = 1000
BATCH = 64


def measure(bench: Bench) -> list[Row]:
    """Scored and real images per second, with the judge that `make repro` has left in models/."""
    import torch_fidelity

    params = bench.params
    settings, size = params.benchmark.evaluation.realism, params.benchmark.dataset.image_size
    judge = load_classifier(bench.root / "models" / "judge", bench.device, params.benchmark.dataset.slugs)
    rng = np.random.default_rng(0)
    scored, real = (rng.integers(0, 256, (IMAGES, size, size, 3), np.uint8) for _ in range(2))
    subset = min(settings.kernel_subset_size, IMAGES)
    torch_fidelity.register_feature_extractor("judge", _peers_extractor(judge))

    def ours() -> Callable[[], int]:
        extractor = JudgeExtractor(judge)

        def run() -> int:
            features, of_real = (np.concatenate([extractor(part) for part in _parts(images)]) for images in (scored, real))
            reference = RealImages(of_real, settings.nearest_neighbours, bench.device)
            frechet_distance(reference.normal, feature_sums(features))
            kernel_distance(features, reference, settings.kernel_subsets, subset, rng)
            in_real_balls(features, reference)
            recall(features, reference)
            return 2 * IMAGES

        return run

    def theirs() -> Callable[[], int]:
        sets = [_as_dataset(images) for images in (scored, real)]

        def run() -> int:
            torch_fidelity.calculate_metrics(
                input1=sets[0],
                input2=sets[1],
                cuda=bench.device != "cpu",
                batch_size=BATCH,
                feature_extractor="judge",
                fid=True,
                kid=True,
                prc=True,
                kid_subsets=settings.kernel_subsets,
                kid_subset_size=subset,
                prc_neighborhood=settings.nearest_neighbours,
                cache=False,
                verbose=False,
            )
            return 2 * IMAGES

        return run

    return [in_turns("evaluation", "torch-fidelity, FID, KID, precision and recall", "images/s", ours, theirs, bench.rounds)]


def _parts(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def _as_dataset(images: np.ndarray):
    """Images as torch-fidelity asks for them: a Dataset of uint8 (3, H, W)."""
    import torch
    from torch.utils.data import Dataset

    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)

    class TensorImages(Dataset):
        def __len__(self) -> int:
            return len(tensors)

        def __getitem__(self, index: int) -> torch.Tensor:
            return tensors[index]

    return TensorImages()


def _peers_extractor(judge: Classifier) -> type:
    """The judge's features in the peer's form; its network alone does what takes time."""
    import torch
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class JudgeOfPeer(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(_):
            return "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            features = JudgeExtractor(judge)(images.permute(0, 2, 3, 1).cpu().numpy())
            return (torch.from_numpy(features),)

    return JudgeOfPeer
