"""LoRA training: it learns, follows the seed, is the same merged or in micro-batches, and fails in one line."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_pixels, tiny_lora
from diffusers import DDPMScheduler

from pathsynth.core.errors import OutOfMemory, TrainingError
from pathsynth.diffusion.base import encode_prompts, load_base
from pathsynth.finetuning.batches import BatchSchedule
from pathsynth.finetuning.latents import encode_images
from pathsynth.finetuning.objective import Objective
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import _build_optimizer, _Training, train_lora

PROMPTS = [f"tissue number {i}" for i in range(9)]


def lora_settings(adapter=None, **sections) -> LoraSettings:
    """The tiny LoRA configuration with some values replaced."""
    tree = tiny_lora(**adapter or {})
    for section, values in sections.items():
        tree[section].update(values)
    return LoraSettings.model_validate(tree)


def train(base, prepared, settings, seed=3):
    """The pipeline with its trained adapter, the result, and the curve."""
    pipeline, curve = load_base(base, "cpu"), []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            result = train_lora(
                pipeline, prepared, PROMPTS, settings, seed, lambda *point: curve.append(point), scratch=Path(scratch)
            )
        finally:
            assert {path.name for path in Path(scratch).iterdir()} <= {"latents"}, "temporary files are left"
    return pipeline, result, curve


def loss_on_fixed_noise(pipeline, prepared, settings, folder) -> float:
    """The mean loss over twenty batches, the same ones in every call."""
    schedule = BatchSchedule(settings, 99, prepared.counts["train"], (4, 8, 8), DDPMScheduler())
    latents = encode_images(pipeline, prepared, schedule, folder)
    embeddings = encode_prompts(pipeline, [*PROMPTS, ""])
    loss = Objective(pipeline, pipeline.unet, embeddings, settings.objective.snr_gamma).loss
    with torch.no_grad():
        return float(np.mean([loss(latents, batch).item() for batch in schedule]))


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "learning_rate": 1e-2}, {"name": "muon", "learning_rate": 3e-2}])
def test_training_learns(optimizer, tiny_base, tiny_prepared, tmp_path):
    training = {"max_train_steps": 60, "train_batch_size": 16}
    settings = lora_settings({"rank": 8}, training=training, optimizer=optimizer)
    pipeline, _, curve = train(tiny_base, tiny_prepared, settings)
    fixed = lora_settings(training={"max_train_steps": 20, "train_batch_size": 36}, objective={"flips": False})
    before = loss_on_fixed_noise(load_base(tiny_base, "cpu"), tiny_prepared, fixed, tmp_path)
    assert loss_on_fixed_noise(pipeline, tiny_prepared, fixed, tmp_path) < 0.97 * before
    assert [step for step, _ in curve] == [10, 20, 30, 40, 50, 60]


def test_training_is_reproducible_and_follows_the_seed(tiny_base, tiny_prepared):
    first, again, other = (train(tiny_base, tiny_prepared, lora_settings(), seed)[1] for seed in (3, 3, 4))
    assert first == again
    assert first["loss"] != other["loss"] and first["images_seen"] == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_change_only_after_all_micro_batches(optimizer, tiny_base, tiny_prepared, monkeypatch):
    norms, compute_loss = [], Objective.loss

    def loss(self, latents, batch):
        assert len(batch.images) == 4
        norms.append(sum(float(p.detach().norm()) for name, p in self.unet.named_parameters() if "lora_B" in name))
        return compute_loss(self, latents, batch)

    monkeypatch.setattr(Objective, "loss", loss)
    _, result, _ = train(
        tiny_base, tiny_prepared, lora_settings(training={"gradient_accumulation_steps": 3}, optimizer={"name": optimizer})
    )
    # one more at the start, to see whether it fits into memory
    assert norms[:4] == [0.0] * 4
    assert norms[4] > 0 and norms[4:] == [norms[4]] * 3
    assert result["images_seen"] == 24


@pytest.mark.parametrize(
    ("adapter", "training"),
    [
        ({"lora_alpha": 9.0}, {"gradient_accumulation_steps": 2, "train_batch_size": 2}),
        ({"use_rslora": True, "target_modules": ["to_q", "conv1", "conv_shortcut", "time_emb_proj"]}, {}),
        ({}, {"mixed_precision": "bf16", "weight_dtype": "bf16"}),
    ],
    ids=["accumulation", "rslora-of-convolutions", "bf16"],
)
def test_merged_adapter_trains_the_same(adapter, training, tiny_base, tiny_prepared):
    options = {"max_train_steps": 6, **training}
    plain, merged = (
        train(tiny_base, tiny_prepared, lora_settings(adapter, training={"merged": merged, **options}))
        for merged in (False, True)
    )
    exact = "mixed_precision" not in training
    assert merged[1] == plain[1] | {"loss": pytest.approx(plain[1]["loss"], rel=1e-5 if exact else 2e-2)}
    if exact:
        parameters = dict(merged[0].unet.named_parameters())
        for name, parameter in plain[0].unet.named_parameters():
            torch.testing.assert_close(parameters[name], parameter, rtol=1e-3, atol=1e-4)
        images = [sample_images(pipeline) for pipeline, _, _ in (plain, merged)]
        assert same_pixels(*images), "after training, the adapter is an ordinary one"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_compiled_blocks_train_the_same(tiny_base, tiny_prepared):
    plain, compiled = (train(tiny_base, tiny_prepared, lora_settings(training={"compile": each}))[0] for each in (False, True))
    parameters = dict(compiled.unet.named_parameters())
    for name, parameter in plain.unet.named_parameters():
        torch.testing.assert_close(parameters[name], parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("mixed_precision", "kernel"), [("no", "fused"), ("bf16", "fused"), ("fp16", "foreach")])
def test_optimizer_uses_one_kernel_for_all_tensors(mixed_precision, kernel):
    settings = lora_settings(training={"mixed_precision": mixed_precision})
    (group,) = _build_optimizer([torch.nn.Parameter(torch.zeros(2))], settings).param_groups
    assert group[kernel] and not group["fused" if kernel == "foreach" else "foreach"]


def sample_images(pipeline) -> np.ndarray:
    pipeline.unet.eval()
    generator = torch.Generator().manual_seed(1)
    return (pipeline("tissue", num_inference_steps=3, generator=generator, output_type="np").images * 255).astype(np.uint8)


class TestFailure:
    def test_muon_refuses_dora(self):
        with pytest.raises(ValueError, match=r"optimizer\.name: 'muon' excludes adapter\.use_dora: true"):
            lora_settings({"use_dora": True}, training={"merged": False}, optimizer={"name": "muon"})

    def test_fp16_needs_a_gpu(self, tiny_base, tiny_prepared, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        settings = lora_settings(training={"mixed_precision": "fp16", "weight_dtype": "fp16"})
        with pytest.raises(TrainingError, match=r"mixed_precision: .fp16. needs a GPU; allowed without one: .no., .bf16."):
            train(tiny_base, tiny_prepared, settings)

    def test_nan_loss_names_the_learning_rate(self, tiny_base, tiny_prepared):
        settings = lora_settings(optimizer={"learning_rate": 1e30, "max_grad_norm": 1e30}, training={"max_train_steps": 20})
        with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf); lower optimizer.learning_rate"):
            train(tiny_base, tiny_prepared, settings)

    def test_nan_weights_after_the_last_step_are_not_returned(self, tiny_base, tiny_prepared, monkeypatch):
        step = _Training.step

        def break_weights(self, *args):
            loss = step(self, *args)
            self.parameters[0].data.fill_(float("inf"))
            return loss

        monkeypatch.setattr(_Training, "step", break_weights)
        with pytest.raises(TrainingError, match=r"the last step produced NaN weights; lower optimizer.learning_rate"):
            train(tiny_base, tiny_prepared, lora_settings(training={"max_train_steps": 1}))

    def test_out_of_memory_names_the_batch_size(self, tiny_base, tiny_prepared, monkeypatch):
        def loss(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(Objective, "loss", loss)
        monkeypatch.setattr("pathsynth.finetuning.train.encode_images", lambda *_: pytest.fail("images were encoded first"))
        hint = r"out of memory: lower training.train_batch_size \(4\) and raise gradient_accumulation_steps \(1\) by the same"
        with pytest.raises(OutOfMemory, match=hint):
            train(tiny_base, tiny_prepared, lora_settings())

    @pytest.mark.slow
    def test_compilation_without_a_compiler_is_one_line_error(self, tiny_base, tiny_prepared, monkeypatch):
        torch.compiler.reset()
        monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
        settings = lora_settings(training={"compile": True})
        with pytest.raises(TrainingError, match=r"^training.compile: true: .*; set it to false$"):
            train(tiny_base, tiny_prepared, settings)
