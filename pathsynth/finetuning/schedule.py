"""Learning-rate schedules by name, as torch schedulers that are stepped once per optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathsynth.finetuning.settings import ScheduleSettings

if TYPE_CHECKING:
    import torch


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Builds a linear warm-up followed by the named schedule over the remaining steps.

    `cosine_warm_restarts` is SGDR (Loshchilov and Hutter 2017) with T_0 = restart_steps and T_mult = restart_mult.
    """
    from torch.optim import lr_scheduler

    main: lr_scheduler.LRScheduler
    left = max(1, steps - settings.warmup_steps)
    if settings.lr_scheduler == "constant":
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    elif settings.lr_scheduler == "linear":
        main = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=left)
    elif settings.lr_scheduler == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=left)
    else:
        main = lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=settings.restart_steps or left, T_mult=settings.restart_mult or 1
        )
    if not settings.warmup_steps:
        return main
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=1 / (settings.warmup_steps + 1), total_iters=settings.warmup_steps)
    return lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[settings.warmup_steps])
