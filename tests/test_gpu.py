"""On a GPU, at Stable Diffusion 1.5's dimensions with random weights: `make test-gpu`. The same checks run small on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_lora

from benchmarks.random_base import random_base
from pathsynth import labels
from pathsynth.params import GenerationSettings, LoraSettings

PROMPTS = [f"a histopathological image of an area with {label}" for label in labels.PATHMNIST]
# bf16 keeps 8 bits: a loss over many values agrees to about 1 %, pixels after two steps of sampling to a few of 255.
LOSS_BOUND, PIXEL_BOUND = 0.03, 6.0

SMALL = pytest.param(("sd15_small", "cpu", 64), id="small-on-cpu")
FULL = pytest.param(("sd15", "cuda", 224), id="sd15-on-gpu", marks=pytest.mark.gpu)


@pytest.fixture(scope="module", params=[SMALL, FULL])
def scale(request, tmp_path_factory):
    """A random base, the device and the image size; the full one is skipped where there is no GPU."""
    import torch

    shape, device, size = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    folder = tmp_path_factory.mktemp(shape) / "base"
    random_base(folder, shape)
    return folder, device, size


@pytest.fixture(scope="module")
def prepared(scale, tmp_path_factory):
    from pathsynth import phantom
    from pathsynth.prepared import open_prepared, write_prepared

    _, _, size = scale
    splits = {split: phantom.draw_split(1, 7, size, split) for split in ("train", "val", "test")}
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, size)
    return open_prepared(folder)


def _trained(scale, prepared, scratch: Path, **training) -> tuple[float, bool]:
    """The loss of one optimiser step, and whether it changed the adapter."""
    from pathsynth.base_model import load_base
    from pathsynth.lora_training import train_lora

    folder, device, _ = scale
    tree = tiny_lora(rank=4)
    tree["adapter"]["target_modules"] = ["to_q", "to_k", "to_v", "to_out.0"]
    tree["training"] |= {"max_train_steps": 1} | training
    pipeline = load_base(folder, device)
    settings = LoraSettings.model_validate(tree)
    result = train_lora(pipeline, prepared, PROMPTS, settings, 3, lambda *_: None, scratch=scratch)
    moved = any(bool((p != 0).any()) for name, p in pipeline.unet.named_parameters() if "lora_B" in name)
    return result["loss"], moved


def test_one_optimiser_step_in_bf16_is_near_that_in_float32(scale, prepared, tmp_path):
    exact, moved = _trained(scale, prepared, tmp_path)
    assert moved and np.isfinite(exact)
    for training in (
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "weight_dtype": "bf16", "gradient_checkpointing": True},
    ):
        loss, moved = _trained(scale, prepared, tmp_path, **training)
        assert moved and loss == pytest.approx(exact, rel=LOSS_BOUND)


def test_one_generated_batch_in_bf16_is_near_that_in_float32(scale):
    from pathsynth.base_model import load_base
    from pathsynth.generation import Attempt, Sampler

    folder, device, size = scale
    drawn = []
    for mixed_precision, weight_dtype in (("no", "fp32"), ("bf16", "fp32"), ("no", "bf16")):
        settings = GenerationSettings(
            images_per_tissue=1, max_attempts=1, quota=0.0, scheduler="DPMSolverMultistepScheduler", num_inference_steps=2,
            guidance_scale=2.0, negative_prompt="", batch_size=4, mixed_precision=mixed_precision, weight_dtype=weight_dtype,
        )  # fmt: skip
        sampler = Sampler(load_base(folder, device), PROMPTS, settings, 7, size)
        drawn.append(sampler([Attempt(tissue, 0, 0) for tissue in range(4)]).astype(int))
    assert drawn[0].shape == (4, size, size, 3) and drawn[0].std() > 1
    for other in drawn[1:]:
        assert np.abs(other - drawn[0]).mean() < PIXEL_BOUND
