"""Classifier training against the loop of MedMNIST's experiments: PIL images, torchvision's transforms, a DataLoader, Adam.

Both train torchvision's ResNet-18 on the same random images of 28 px, in batches of 128 and in the same number format. The
peer's passes over train, val and test after every epoch are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.pairs import Bench, Row, in_turns
from pathsynth.classifiers.settings import Augmentation, ClassifierSettings
from pathsynth.classifiers.training import Training, new_classifier
from pathsynth.core.devices import autocast

IMAGES, SIDE, BATCH = 2048, 28, 128
PLAIN = Augmentation(flips=False, quarter_turns=False, stain=0.0, brightness=0.0, blur=0.0)


def measure(bench: Bench) -> list[Row]:
    """Images per second of one epoch."""
    slugs, rng = bench.params.benchmark.dataset.slugs, np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)
    labels = np.arange(IMAGES) % len(slugs)
    own = {"input_size": SIDE, "batch_size": BATCH, "epochs": 1, "weights": "none", "augmentation": PLAIN, "weight_decay": 0.0}
    settings = bench.params.benchmark.classifiers.gate.model_copy(update=own)

    def ours() -> Callable[[], int]:
        classifier = new_classifier(settings, slugs, bench.params.seed, bench.device, bench.root)

        def run() -> int:
            for _ in Training(classifier, images, labels, settings, bench.params.seed).epochs():
                pass
            return IMAGES

        return run

    def theirs() -> Callable[[], int]:
        network = new_classifier(settings, slugs, bench.params.seed, bench.device, bench.root).network
        return _documented_loop(network, images, labels, settings, bench.device)

    peer = f"MedMNIST's training loop, {SIDE} px, same network"
    return [in_turns("classifier training", peer, "images/s", ours, theirs, bench.rounds)]


def _documented_loop(
    network, images: np.ndarray, labels: np.ndarray, settings: ClassifierSettings, device: str
) -> Callable[[], int]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=[0.5], std=[0.5])])

    class Images(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int):
            return transform(Image.fromarray(images[index])), int(labels[index])

    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    criterion = torch.nn.CrossEntropyLoss()

    def run() -> int:
        network.train()
        for pixels, targets in DataLoader(Images(), settings.batch_size, shuffle=True):
            optimizer.zero_grad()
            with autocast(device, settings.mixed_precision):
                loss = criterion(network(pixels.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
        return len(images)

    return run
