"""Trains a classifier on prepared images: augmentation in batches on the device, best epoch by val."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathsynth.classifiers.metrics import classifier_scores
from pathsynth.classifiers.model import Classifier, build_network, card_of, check_network, normalised, pretrained
from pathsynth.classifiers.settings import Augmentation, ClassifierSettings
from pathsynth.core.checkpoint import NOTHING, Saved
from pathsynth.core.devices import autocast, catch_out_of_memory
from pathsynth.core.errors import TrainingError
from pathsynth.core.progress import bar
from pathsynth.core.seeds import Stream, generator, mix_seed, random_state, set_random_state
from pathsynth.data.images import as_batch
from pathsynth.data.prepared import Prepared

if TYPE_CHECKING:
    import torch

STATE = "training"


def train_classifier(
    prepared: Prepared,
    settings: ClassifierSettings,
    seed: int,
    device: str,
    log: Callable[[int, dict[str, float]], None],
    folder: Path = Path(),
    saved: Saved = NOTHING,
) -> tuple[Classifier, dict]:
    """Trains one classifier and scores the epoch that is kept.

    The test split is read once, after training; the best epoch is chosen by macro F1 on val, the earlier of equals.

    Args:
        prepared: images and labels.
        settings: network, optimiser and augmentation.
        seed: global seed; `settings.seed` is mixed in.
        device: torch device.
        log: called after every epoch with its number, from 1, and its curve values.
        folder: what a relative path in `settings` is relative to.
        saved: where the training is saved after an epoch, and what an earlier run of it has saved.

    Returns:
        The classifier and its scores, `{"epoch": ..., "val": {...}, "test": {...}}`.

    Raises:
        TrainingError: the loss is no longer a number.
        ModelError: the network or the weights that it starts from are not to be had.
        MemoryFault: a batch does not fit into memory.
    """
    classifier = new_classifier(settings, prepared.slugs, seed, device, folder)
    network = classifier.network
    training = Training(classifier, prepared.images("train"), prepared.labels_of("train"), settings, seed)
    kept: dict[str, Any] = {"score": -1.0}
    points: list[dict[str, float]] = []
    if state := saved.get(STATE):
        training.load_state_dict(state["training"])
        kept, points = state["kept"], state["points"]
        saved.log(f"the training goes on after epoch {len(points)} of {settings.epochs}")
        for epoch, values in enumerate(points, start=1):
            log(epoch, values)
    done = len(points)
    for epoch in bar(range(done + 1, settings.epochs + 1), _title(settings), settings.epochs, done=done):
        train_loss, val = training.epoch(), score(classifier, prepared, "val")
        points.append({"train/loss": train_loss, "val/accuracy": val["accuracy"], "val/macro_f1": val["macro_f1"]})
        log(epoch, points[-1])
        if settings.checkpoint == "last" or val["macro_f1"] > kept["score"]:
            kept = {"score": val["macro_f1"], "epoch": epoch, "network": copy.deepcopy(dict(network.state_dict()))}
        if saved.should_save():
            saved.put(STATE, {"training": training.state_dict(), "kept": kept, "points": points})
    network.load_state_dict(kept["network"])
    scores = {split: score(classifier, prepared, split) for split in ("val", "test")}
    return classifier, {"epoch": kept["epoch"], **scores}


def new_classifier(settings: ClassifierSettings, slugs: Sequence[str], seed: int, device: str, folder: Path) -> Classifier:
    """A classifier before its training, its weights drawn from the seeds or those that the settings name.

    Raises:
        ModelError: the network or the weights that it starts from are not to be had.
        MemoryFault: it does not fit on the device.
    """
    import torch

    torch.manual_seed(mix_seed(Stream.CLASSIFIER_WEIGHTS, seed, settings.seed))
    card = card_of(settings, slugs)
    with catch_out_of_memory("the classifier does not fit on the device"):
        network = build_network(card, pretrained(settings, folder)).to(device)
    check_network(network, card)
    return Classifier(network, card, device)


class Indexable(Protocol):
    """Images that are given by their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 (n, H, W, 3) for indices (n,)."""


class Training:
    """Trains a classifier in place, an epoch at a time.

    Args:
        classifier: from `new_classifier` of the same settings.
        images: N images to train on.
        labels: int64 (N,).
        settings: optimiser and augmentation.
        seed: global seed; `settings.seed` is mixed in.
        steps: optimiser steps of an epoch; by default as many as there are whole batches of images, each seen once at most.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Indexable,
        labels: np.ndarray,
        settings: ClassifierSettings,
        seed: int,
        steps: int | None = None,
    ):
        import torch

        self._classifier, self._settings, self._images = classifier, settings, images
        self._targets = torch.from_numpy(labels)
        self._steps = steps or steps_per_epoch(len(images), settings.batch_size)
        self._random = generator(Stream.CLASSIFIER_BATCHES, seed, settings.seed)
        self._batches = _batches(len(images), settings.batch_size, self._random)
        self._optimizer, self._schedule = _optimizer(classifier.network, settings, self._steps * settings.epochs)
        self._done = 0

    def epoch(self) -> float:
        """Trains for one epoch; its mean loss.

        Raises:
            TrainingError: the loss is no longer a number.
            MemoryFault: a batch does not fit into memory.
        """
        import torch

        settings, network, device = self._settings, self._classifier.network, self._classifier.device
        remedy = f"lower classifiers.*.batch_size ({settings.batch_size}) or input_size ({settings.input_size})"
        network.train()
        losses = []
        for batch in islice(self._batches, self._steps):
            with catch_out_of_memory(remedy):
                pixels = as_batch(self._images[batch.numpy()], device, settings.input_size)
                pixels = normalised(augmented(pixels, settings.augmentation, self._random))
                losses.append(_step(network, pixels, self._targets[batch].to(device), settings, self._optimizer))
            self._schedule.step()
        self._done += 1
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            raise TrainingError(f"epoch {self._done}: the loss is {loss}; lower learning_rate ({settings.learning_rate})")
        return loss

    def epochs(self) -> Iterator[float]:
        """Trains for all epochs, and gives the mean loss of each when it is over."""
        for _ in bar(range(self._settings.epochs), _title(self._settings)):
            yield self.epoch()

    def state_dict(self) -> dict[str, Any]:
        """All that epochs change, where an epoch is a pass over the images: each one begins with a new order of them."""
        return {
            "network": dict(self._classifier.network.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "batches": self._random.get_state(),
            "random": random_state(),
            "done": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave in another process."""
        self._classifier.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._random.set_state(state["batches"])
        set_random_state(state["random"])
        self._done = state["done"]


def _title(settings: ClassifierSettings) -> str:
    return f"training {settings.architecture}"


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many whole batches there are of so many images; one where they do not fill one."""
    return max(1, count // batch_size)


def _batches(count: int, batch_size: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices int64 (batch_size,), without end: of `count` images in an order that is drawn anew after each pass."""
    import torch

    while True:
        order = torch.randperm(count, generator=random)
        yield from order.split(batch_size)[: steps_per_epoch(count, batch_size)]


def _step(
    network: torch.nn.Module,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    settings: ClassifierSettings,
    optimizer: torch.optim.Optimizer,
) -> torch.Tensor:
    """One optimiser step; its loss."""
    import torch.nn.functional as F

    with autocast(str(pixels.device), settings.mixed_precision):
        logits = network(pixels)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def score(classifier: Classifier, prepared: Prepared, split: str) -> dict:
    """All scores of `pathsynth.classifiers.metrics.classifier_scores` on one split."""
    probabilities = classifier.probabilities(prepared.images(split))
    if not np.isfinite(probabilities).all():
        raise TrainingError(f"{split}: the classifier answers with what is no number; lower learning_rate")
    return classifier_scores(probabilities, prepared.labels_of(split), prepared.slugs)


def augmented(pixels: torch.Tensor, settings: Augmentation, random: torch.Generator) -> torch.Tensor:
    """Changes a batch at random: turns, flips, stain (a gain and shift per channel), brightness, blur.

    Args:
        pixels: NCHW float32 in [0, 1].
        settings: which changes, how strong.
        random: CPU generator that all choices come from.

    Returns:
        The same shape, in [0, 1].
    """
    import torch

    n = len(pixels)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random).to(pixels.device) * 2 - 1

    if settings.flips:
        pixels = torch.where(uniform(n, 1, 1, 1) > 0, pixels.flip(3), pixels)
    if settings.rotate90:
        turns = torch.randint(4, (n,), generator=random).to(pixels.device)
        for k in (1, 2, 3):
            pixels = torch.where((turns == k).view(n, 1, 1, 1), pixels.rot90(k, (2, 3)), pixels)
    if settings.blur:
        chosen = (uniform(n, 1, 1, 1) + 1) / 2 < settings.blur
        pixels = torch.where(chosen, _blurred(pixels), pixels)
    # per-channel gains about white imitate more or less dye, since dye takes light away from a white lamp
    pixels = 1 - (1 - pixels) * (1 + settings.stain * uniform(n, 3, 1, 1)) + settings.stain / 3 * uniform(n, 3, 1, 1)
    return (pixels * (1 + settings.brightness * uniform(n, 1, 1, 1))).clamp(0, 1)


def _blurred(pixels: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(pixels, [5, 5], [0.8, 0.8])


def _optimizer(network: torch.nn.Module, settings: ClassifierSettings, steps: int):
    """AdamW (Adam when weight_decay is 0) and its schedule, stepped once a batch."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    if settings.lr_scheduler == "one_cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
