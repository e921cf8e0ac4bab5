"""Records how a training develops, at the steps that its settings name, and restores the records of an interrupted one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.distributed import Processes
from pathsynth.data.prepared import Prepared
from pathsynth.finetuning.development import Validation, clear_sheets, sample_sheet, write_sheet
from pathsynth.finetuning.objective import Objective
from pathsynth.finetuning.result import Result, summarize_steps
from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline

# Called with the step of a snapshot and the result of the training so far, while the UNet has the snapshot's adapter.
SaveSnapshot = Callable[[int, Result], None]

VALIDATION_LOSS = "validation/loss"


@dataclass(frozen=True)
class Records:
    """Where the records of a training go besides its curves.

    Attributes:
        sheets: folder of the sheets; None makes none.
        save_snapshot: saves the adapter as it is now; None keeps no snapshots.
    """

    sheets: Path | None = None
    save_snapshot: SaveSnapshot | None = None


NO_RECORDS = Records()


class RecordedTraining(Protocol):
    """The parts of a training that its records need."""

    @property
    def settings(self) -> LoraSettings:
        """The LoRA configuration."""

    @property
    def processes(self) -> Processes:
        """The processes that share it."""

    @property
    def accelerator(self) -> Accelerator:
        """Its mixed precision, and how it wrapped the UNet."""

    @property
    def objective(self) -> Objective:
        """The UNet that it trains, and the encoded prompts."""

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """The trainable parameters."""


class Recorder:
    """Makes the validation losses, sheets and snapshots of one training.

    Only the main process does; the others wait for it at the next gradient, and none draws from its random generators. DVC
    deletes the outs of a stage before it runs again, so sheets and snapshots are also kept in the checkpoint. Snapshots may
    have hundreds of megabytes, so each is kept once, under its own name, rather than in every state.

    Args:
        training: what is recorded.
        pipeline: the base with the adapter.
        prepared: images and labels.
        records: where sheets and snapshots go.
        checkpoint: that of the training.
    """

    def __init__(
        self,
        training: RecordedTraining,
        pipeline: StableDiffusionPipeline,
        prepared: Prepared,
        records: Records,
        checkpoint: Checkpoint,
    ):
        self._training, self._pipeline, self._prepared = training, pipeline, prepared
        self._records, self._checkpoint, self._validation = records, checkpoint, None
        settings, main = training.settings, training.processes.main
        if main and settings.validation.validation_steps:
            images, batch_size = settings.validation.validation_images, settings.training.train_batch_size
            self._validation = Validation(pipeline, prepared, training.objective, images, batch_size)
        if main and records.sheets is not None:
            clear_sheets(records.sheets, on=settings.validation.sheet_steps is not None)

    def saves_at(self, step: int) -> bool:
        """Whether the record of a step is kept in the checkpoint."""
        return self._has_sheet(step) or self._has_snapshot(step)

    def record(self, step: int, losses: Sequence[float]) -> dict[str, float]:
        """Makes the records that are due after a step, 0 being before the first.

        Args:
            step: number of optimizer steps so far.
            losses: their losses.

        Returns:
            The values of the step's curves.

        Raises:
            OutOfMemory: an evaluation does not fit into memory.
            DataError: a file cannot be written.
        """
        import torch

        training = self._training
        if not training.processes.main:
            return {}
        if self._has_sheet(step):
            images = sample_sheet(
                self._pipeline,
                training.objective.embeddings,
                training.accelerator,
                self._prepared.image_size,
                self._prepared.channels,
                training.settings.training.train_batch_size,
            )
            self._checkpoint.save(_sheet_name(step), {"images": torch.from_numpy(images)})
            self._write_sheet(step, images)
        if self._has_snapshot(step):
            self._checkpoint.save(_snapshot_name(step), {"parameters": [value.detach() for value in training.parameters]})
            self._write_snapshot(step, losses)
        if self._validation is None or not self._is_due(step, training.settings.validation.validation_steps):
            return {}
        # outside DistributedDataParallel, since the other processes do not take part
        return {VALIDATION_LOSS: self._validation.loss(training.accelerator.unwrap_model(training.objective.unet))}

    def restore(self, losses: Sequence[float]) -> bool:
        """Writes the sheets and snapshots of an interrupted training again; changes the adapter. All processes call it.

        Returns:
            Whether the checkpoint has all of them; if not, the adapter is unchanged.
        """
        import torch

        complete = None
        if self._training.processes.main:
            steps = range(len(losses) + 1)
            sheets, snapshots = ([step for step in steps if due(step)] for due in (self._has_sheet, self._has_snapshot))
            # one after the other, because all snapshots together may not fit into memory
            names = [*map(_sheet_name, sheets), *map(_snapshot_name, snapshots)]
            complete = all(map(self._load, names))
            for step in sheets if complete else ():
                self._write_sheet(step, self._load(_sheet_name(step))["images"].numpy())
            for step in snapshots if complete else ():
                with torch.no_grad():
                    saved = self._load(_snapshot_name(step))["parameters"]
                    for parameter, value in zip(self._training.parameters, saved, strict=True):
                        parameter.copy_(value)
                self._write_snapshot(step, losses)
        return self._training.processes.gather(complete)[0]

    def _is_due(self, step: int, interval: int | None) -> bool:
        return interval is not None and (step % interval == 0 or step == self._training.settings.training.max_train_steps)

    def _has_sheet(self, step: int) -> bool:
        return self._records.sheets is not None and self._is_due(step, self._training.settings.validation.sheet_steps)

    def _has_snapshot(self, step: int) -> bool:
        return self._records.save_snapshot is not None and step in self._training.settings.training.snapshots

    def _load(self, name: str) -> dict[str, Any]:
        """A record in the checkpoint; empty if it is missing or damaged."""
        return self._checkpoint.load(name) or {}

    def _write_sheet(self, step: int, images: np.ndarray) -> None:
        if self._records.sheets is not None:
            write_sheet(self._records.sheets, step, images)

    def _write_snapshot(self, step: int, losses: Sequence[float]) -> None:
        if self._records.save_snapshot is not None:
            result = summarize_steps(self._training.settings, self._training.parameters, losses[:step])
            self._records.save_snapshot(step, result)


def _sheet_name(step: int) -> str:
    return f"sheet-{step}"


def _snapshot_name(step: int) -> str:
    return f"snapshot-{step}"
