"""Trains a classifier on prepared images, augmented in batches on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathsynth.classifiers.metrics import classifier_scores
from pathsynth.classifiers.model import (
    Classifier,
    build_card,
    build_network,
    check_network,
    load_pretrained_weights,
    normalize_pixels,
)
from pathsynth.classifiers.settings import Augmentation, ClassifierSettings
from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.devices import autocast, catch_out_of_memory
from pathsynth.core.errors import TrainingError
from pathsynth.core.progress import progress_bar
from pathsynth.core.seeds import Stream, get_random_state, make_generator, mix_seed, set_random_state
from pathsynth.data.images import as_batch, as_pixels
from pathsynth.data.prefetch import prefetch
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
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> tuple[Classifier, dict]:
    """Trains one classifier and scores the selected epoch.

    The best epoch has the highest macro F1 on val; ties go to the earliest. The test split is read once, after training.

    Args:
        prepared: images and labels.
        settings: network, optimizer and augmentation.
        seed: global seed; `settings.seed` is mixed in.
        device: torch device.
        log: called after every epoch with its number, from 1, and the values of its curves.
        folder: folder that relative paths in `settings` start from.
        checkpoint: saves the training after an epoch, and resumes an interrupted one.

    Returns:
        The classifier and its scores, `{"epoch": ..., "val": {...}, "test": {...}}`.

    Raises:
        TrainingError: the loss or a prediction is NaN, or the device does not support the number format.
        ModelError: the network or its initial weights cannot be loaded.
        OutOfMemory: a batch does not fit into memory.
    """
    classifier = build_classifier(settings, prepared.slugs, seed, device, folder)
    network = classifier.network
    training = Training(classifier, prepared.images("train"), prepared.labels_of("train"), settings, seed)
    selected: dict[str, Any] = {"score": -1.0}
    points: list[dict[str, float]] = []
    if state := checkpoint.load(STATE):
        training.load_state_dict(state["training"])
        selected, points = state["selected"], state["points"]
        checkpoint.log(f"resuming after epoch {len(points)} of {settings.epochs}")
        for epoch, values in enumerate(points, start=1):
            log(epoch, values)
    done = len(points)
    for epoch in progress_bar(
        range(done + 1, settings.epochs + 1), f"training {settings.architecture}", settings.epochs, done=done
    ):
        train_loss, val = training.run_epoch(), score_split(classifier, prepared, "val")
        points.append({"train/loss": train_loss, "val/accuracy": val["accuracy"], "val/macro_f1": val["macro_f1"]})
        log(epoch, points[-1])
        if settings.checkpoint == "last" or val["macro_f1"] > selected["score"]:
            selected = {"score": val["macro_f1"], "epoch": epoch, "network": copy.deepcopy(dict(network.state_dict()))}
        if checkpoint.should_save():
            checkpoint.save(STATE, {"training": training.state_dict(), "selected": selected, "points": points})
    network.load_state_dict(selected["network"])
    return classifier, {
        "epoch": selected["epoch"],
        "val": score_split(classifier, prepared, "val"),
        "test": score_split(classifier, prepared, "test"),
    }


def build_classifier(settings: ClassifierSettings, slugs: Sequence[str], seed: int, device: str, folder: Path) -> Classifier:
    """Builds an untrained classifier, with random or pretrained weights.

    Raises:
        TrainingError: the device does not support the number format.
        ModelError: the network or its initial weights cannot be loaded.
        OutOfMemory: it does not fit on the device.
    """
    import torch

    if settings.mixed_precision == "fp16" and device == "cpu":
        name = settings.architecture
        raise TrainingError(f"mixed_precision of {name}: 'fp16' needs a GPU; allowed without one: 'no', 'bf16'")
    torch.manual_seed(mix_seed(Stream.CLASSIFIER_WEIGHTS, seed, settings.seed))
    card = build_card(settings, slugs)
    with catch_out_of_memory("the classifier does not fit on the device"):
        network = build_network(card, load_pretrained_weights(settings, folder)).to(device)
    check_network(network, card)
    return Classifier(network, card, device)


def score_split(classifier: Classifier, prepared: Prepared, split: str) -> dict:
    """Scores a classifier on one split, see `pathsynth.classifiers.metrics.classifier_scores`.

    Raises:
        TrainingError: a prediction is NaN.
    """
    probabilities = classifier.probabilities(prepared.images(split))
    if not np.isfinite(probabilities).all():
        raise TrainingError(f"{split}: the classifier predicts NaN; lower learning_rate")
    return classifier_scores(probabilities, prepared.labels_of(split), prepared.slugs)


class Indexable(Protocol):
    """Images that are read by index, from an array or from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 (n, H, W, 3) for indices (n,)."""


class Training:
    """Trains a classifier in place, one epoch at a time.

    Args:
        classifier: from `build_classifier` with the same settings.
        images: N images to train on.
        labels: int64 (N,).
        settings: optimizer and augmentation.
        seed: global seed; `settings.seed` is mixed in.
        steps: optimizer steps per epoch; by default the number of whole batches.
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
        self._random = make_generator(Stream.CLASSIFIER_BATCHES, seed, settings.seed)
        self._pending: Sequence[torch.Tensor] = ()
        self._optimizer, self._schedule = _build_optimizer(classifier.network, settings, self._steps * settings.epochs)
        # the fused optimizer skips steps with overflowing gradients, and the schedule goes on
        self._scaler = torch.amp.GradScaler(torch.device(classifier.device).type, enabled=settings.mixed_precision == "fp16")
        self._epoch = 0

    def run_epoch(self) -> float:
        """Trains for one epoch and returns its mean loss.

        Raises:
            TrainingError: the loss is NaN or infinite.
            OutOfMemory: a batch does not fit into memory.
        """
        import torch

        settings = self._settings
        hint = f"lower classifiers.*.batch_size ({settings.batch_size}) or input_size ({settings.input_size})"
        self._classifier.network.train()
        losses = []
        with catch_out_of_memory(hint), closing(self._read_epoch()) as batches:
            for pixels, targets in batches:
                losses.append(self._step(pixels, targets))
                self._schedule.step()
        self._epoch += 1
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            overflow = (
                ", or set mixed_precision: no (fp16 overflows above 65 504)" if settings.mixed_precision == "fp16" else ""
            )
            remedy = f"lower learning_rate ({settings.learning_rate}){overflow}"
            raise TrainingError(f"epoch {self._epoch}: the loss is {loss}; {remedy}")
        return loss

    def run(self) -> None:
        """Trains for all epochs; raises as `run_epoch`."""
        for _ in progress_bar(range(self._settings.epochs), f"training {self._settings.architecture}"):
            self.run_epoch()

    def _read_epoch(self) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Yields images uint8 (n, H, W, 3) and labels (n,) of every step, read one batch ahead."""
        left = self._steps
        while left:
            self._pending = self._pending or _shuffle(len(self._images), self._settings.batch_size, self._random)
            batches, self._pending = self._pending[:left], self._pending[left:]
            left -= len(batches)
            # within one pass, because the next order is drawn after the augmentation of the last batch
            yield from prefetch(self._read_batch, batches)

    def _read_batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return as_pixels(self._images[indices.numpy()], self._classifier.device), self._targets[indices]

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One optimizer step; returns its loss, on the device."""
        import torch.nn.functional as F

        settings, device = self._settings, self._classifier.device
        pixels = as_batch(images, device, settings.input_size)
        pixels = normalize_pixels(augment(pixels, settings.augmentation, self._random))
        targets = targets.to(device, non_blocking=True)
        with autocast(device, settings.mixed_precision):
            logits = self._classifier.network(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state at the end of an epoch; only valid with the default number of steps, where every epoch reshuffles."""
        return {
            "network": dict(self._classifier.network.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "batches": self._random.get_state(),
            "random": get_random_state(),
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        self._classifier.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self._random.set_state(state["batches"])
        set_random_state(state["random"])
        self._epoch = state["epoch"]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of whole batches in `count` images, at least one."""
    return max(1, count // batch_size)


def _shuffle(count: int, batch_size: int, random: torch.Generator) -> Sequence[torch.Tensor]:
    """Draws the batches of one pass over the images, indices int64 (batch_size,); the remainder is dropped."""
    import torch

    return torch.randperm(count, generator=random).split(batch_size)[: steps_per_epoch(count, batch_size)]


def _build_optimizer(
    network: torch.nn.Module, settings: ClassifierSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (Adam if weight_decay is 0), and a learning-rate schedule that is stepped once per batch."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    if settings.lr_scheduler == "one_cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def augment(pixels: torch.Tensor, settings: Augmentation, random: torch.Generator) -> torch.Tensor:
    """Augments a batch: flips, right-angled rotations, scale, blur, stain (gain and shift per channel), brightness.

    Args:
        pixels: NCHW float32 in [0, 1].
        settings: which augmentations, and how strong.
        random: CPU generator of all random numbers.

    Returns:
        The same shape, in [0, 1].
    """
    import torch
    from torchvision.transforms.v2.functional import gaussian_blur

    n = len(pixels)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random).to(pixels.device) * 2 - 1

    if settings.flips:
        pixels = torch.where(uniform(n, 1, 1, 1) > 0, pixels.flip(3), pixels)
    if settings.rotate90:
        rotations = torch.randint(4, (n,), generator=random).to(pixels.device)
        for k in (1, 2, 3):
            pixels = torch.where((rotations == k).view(n, 1, 1, 1), pixels.rot90(k, (2, 3)), pixels)
    if settings.scale:
        pixels = _rescale(pixels, 1 + settings.scale * uniform(n), settings.scale * uniform(n, 2))
    if settings.blur:
        blurred = (uniform(n, 1, 1, 1) + 1) / 2 < settings.blur
        pixels = torch.where(blurred, gaussian_blur(pixels, [5, 5], [0.8, 0.8]), pixels)
    # scaling the distance from white imitates more or less dye, which absorbs the white light of the lamp
    pixels = 1 - (1 - pixels) * (1 + settings.stain * uniform(n, 3, 1, 1)) + settings.stain / 3 * uniform(n, 3, 1, 1)
    return (pixels * (1 + settings.brightness * uniform(n, 1, 1, 1))).clamp(0, 1)


def _rescale(pixels: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Enlarges NCHW images by `scales` (n,) about points `shifts` (n, 2) half sides off the middle; edges are mirrored."""
    import torch
    import torch.nn.functional as F

    zoom = torch.diag_embed((1 / scales)[:, None].expand(-1, 2))
    grid = F.affine_grid(torch.cat([zoom, shifts[:, :, None]], dim=2), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
