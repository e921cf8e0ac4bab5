"""Known answers for batches, loss weights and learning-rate schedules, and for settings that exclude each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import tiny_lora
from diffusers import DDPMScheduler

from pathsynth.core.seeds import Stream, make_generator
from pathsynth.finetuning.batches import BatchSchedule, shuffled_batches
from pathsynth.finetuning.objective import min_snr_weights
from pathsynth.finetuning.schedule import build_schedule
from pathsynth.finetuning.settings import LoraSettings, ScheduleSettings


@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_weights_match_the_paper(velocity):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([10, 500, 990])
    a = scheduler.alphas_cumprod[timesteps]
    snr = a / (1 - a)
    expected = snr.clamp(max=5) / (snr + 1 if velocity else snr)
    torch.testing.assert_close(min_snr_weights(scheduler, timesteps, 5.0, velocity), expected)


def test_time_steps_are_uniform_or_normal_in_log_snr():
    tree = tiny_lora()
    tree["training"] |= {"max_train_steps": 1, "train_batch_size": 5000}

    def timesteps(**objective):
        settings = LoraSettings.model_validate(tree | {"objective": tree["objective"] | objective})
        (batch,) = BatchSchedule(settings, 1, 36, (4, 1, 1), DDPMScheduler(50))
        return batch.timesteps

    counts = timesteps().bincount()
    assert len(counts) == 50 and counts.min() > 60 and counts.max() < 140
    assert set(timesteps(snr_gamma=None, log_snr={"mean": 50.0, "deviation": 1.0}).tolist()) == {0}


def test_shuffled_batches_contain_every_image_once_per_epoch():
    batches = shuffled_batches(10, 4, make_generator(Stream.LORA_BATCHES, 1))
    images = np.concatenate([next(batches).numpy() for _ in range(5)])
    assert sorted(images[:10]) == sorted(images[10:]) == list(range(10))
    assert list(images[:10]) != list(images[10:])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("constant", 0, None, None), {0: 1.0, 7: 1.0}),
        (("linear", 0, None, None), {0: 1.0, 4: 0.5, 7: 0.125}),
        (("cosine", 0, None, None), {0: 1.0, 4: 0.5, 2: (1 + math.cos(math.pi / 4)) / 2}),
        (("cosine", 2, None, None), {0: 1 / 3, 1: 2 / 3, 2: 1.0, 5: 0.5}),
        (("cosine_warm_restarts", 0, 2, 2), {0: 1.0, 1: 0.5, 2: 1.0, 4: 0.5, 6: 1.0}),
    ],
)
def test_learning_rate_schedules(settings, expected):
    names = ("lr_scheduler", "warmup_steps", "restart_steps", "restart_mult")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, ScheduleSettings(**dict(zip(names, settings, strict=True))), steps=8)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in expected] == pytest.approx(list(expected.values()), abs=1e-6)


def test_log_snr_excludes_min_snr_weights():
    tree = tiny_lora()
    tree["objective"]["log_snr"] = {"mean": 0.0, "deviation": 1.0}
    with pytest.raises(ValueError, match="log_snr excludes snr_gamma"):
        LoraSettings.model_validate(tree)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("adapter", {"lora_dropout": 0.1}, "lora_dropout: 0.0"),
        ("adapter", {"use_dora": True}, "use_dora: false"),
        ("training", {"gradient_checkpointing": True}, "gradient_checkpointing"),
    ],
)
def test_options_that_exclude_merged_are_refused(section, values, message):
    tree = tiny_lora()
    tree["training"]["merged"] = True
    tree[section].update(values)
    with pytest.raises(ValueError, match=message):
        LoraSettings.model_validate(tree)
