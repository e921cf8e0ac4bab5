"""On a GPU, at Stable Diffusion 1.5's dimensions with random weights: `make test-gpu`. The same checks run small on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, graph_stages, run_graph, stage_command, tiny_lora, tiny_tree, write_params

from benchmarks.random_base import random_base
from pathsynth.core.checkpoint import NOTHING, SECONDS_VARIABLE, Saved
from pathsynth.core.metric_files import read_details
from pathsynth.data import labels
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.settings import GenerationSettings

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
    from pathsynth.data.prepared import open_prepared, write_prepared
    from pathsynth.sources import phantom

    _, _, size = scale
    splits = {split: phantom.draw_split(1, 7, size, split) for split in ("train", "val", "test")}
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, size)
    return open_prepared(folder)


def _trained(scale, prepared, scratch: Path, **training) -> tuple[float, bool]:
    """The loss of one optimiser step, and whether it changed the adapter."""
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

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
    if scale[1] == "cuda":
        # the first step may be one that fp16 skips, to find the loss's scale
        loss, _ = _trained(scale, prepared, tmp_path, mixed_precision="fp16", weight_dtype="fp16")
        assert loss == pytest.approx(exact, rel=LOSS_BOUND)


class Killed(BaseException):
    """Ends a training as a signal would."""


class KilledOnceSaved(Saved):
    """Ends the process that has saved its first state."""

    def put(self, name, state):
        super().put(name, state)
        raise Killed


def test_a_training_that_was_interrupted_goes_on_where_it_was(scale, prepared, tmp_path, monkeypatch):
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

    folder, device, _ = scale
    tree = tiny_lora(rank=4)
    tree["adapter"]["target_modules"] = ["to_q", "to_k", "to_v", "to_out.0"]
    tree["training"] |= {"max_train_steps": 3, "mixed_precision": "fp16" if device == "cuda" else "no"}
    tree["objective"]["ema_decay"] = 0.9
    settings = LoraSettings.model_validate(tree)
    monkeypatch.setenv(SECONDS_VARIABLE, "0")

    def trained(saved: Saved) -> float:
        pipeline = load_base(folder, device)
        return train_lora(pipeline, prepared, PROMPTS, settings, 3, lambda *_: None, scratch=tmp_path, saved=saved)["loss"]

    with pytest.raises(Killed):
        trained(KilledOnceSaved(tmp_path / "state"))
    assert trained(Saved(tmp_path / "state")) == pytest.approx(trained(NOTHING), rel=LOSS_BOUND if device == "cuda" else 0)


def test_one_generated_batch_in_bf16_is_near_that_in_float32(scale):
    from pathsynth.diffusion.base import load_base
    from pathsynth.generation.filtering import Attempt
    from pathsynth.generation.sampler import Sampler

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


def test_images_from_a_sentence_come_again_from_their_records(scale, prepared, tmp_path):
    import torch

    from pathsynth.diffusion.adapter import save_lora
    from pathsynth.diffusion.base import load_base, unet_sha256
    from pathsynth.finetuning.train import train_lora
    from pathsynth.synthesis.synthesizer import Synthesizer, find_artifacts

    folder, device, size = scale
    tree = tiny_tree(folder)
    tree["benchmarks"]["tiny"]["dataset"]["image_size"] = size
    write_params(tmp_path / "params.yaml", tree)
    settings, pipeline = LoraSettings.model_validate(tree["loras"]["r2"]), load_base(folder, device)
    train_lora(pipeline, prepared, PROMPTS, settings, 3, lambda *_: None, scratch=tmp_path)
    save_lora(tmp_path / "models" / "lora", pipeline.unet, settings, "card", unet_sha256(folder))
    synthesizer = Synthesizer(find_artifacts(tmp_path))
    made = synthesizer.synthesize(PROMPTS[0], 3, gate=False)
    assert made.images.shape == (3, size, size, 3) and made.images.std() > 1
    # in another batch, which on a CPU changes nothing
    again = synthesizer.again(made.records[1:]).images
    difference = np.abs(again.astype(int) - made.images[1:]).mean()
    assert difference < PIXEL_BOUND if torch.cuda.is_available() else difference == 0


def _on(processes: int, folder: Path, base: Path) -> dict:
    """What all stages make of tiny images on this machine's device, LoRA training and generation by so many processes."""
    params = tiny_tree(base) | {"processes": processes}
    stages = write_params(folder / "params.yaml", params)
    run_graph(folder, write_params(folder / "one.yaml", params | {"processes": 1}))
    for name in ("train_lora", "generate_filtered"):
        command = [sys.executable, *stage_command(name, folder, stages)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return read_details(folder / "metrics" / "lora.json")


@pytest.mark.gpu
def test_every_stage_runs_on_a_gpu_and_two_do_what_one_does(tiny_base, tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (tmp_path / "one").mkdir()
    one = _on(1, tmp_path / "one", tiny_base)
    if torch.cuda.device_count() < 2:
        pytest.skip("every stage has run, but there is no second GPU to compare with")
    (tmp_path / "two").mkdir()
    two = _on(2, tmp_path / "two", tiny_base)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3) and two["images_seen"] == one["images_seen"]
    with np.load(tmp_path / "one/data/generated/raw.npz") as first, np.load(tmp_path / "two/data/generated/raw.npz") as second:
        assert (first["train_labels"] == second["train_labels"]).all()
        assert np.abs(first["train_images"].astype(int) - second["train_images"]).mean() < PIXEL_BOUND


def test_deterministic_is_asked_of_torch_where_there_is_a_gpu(monkeypatch):
    import torch

    from pathsynth.core.devices import pick_device

    asked = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(True) == "cpu" and asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(False) == "cuda" and asked == []
    assert pick_device(True) == "cuda" and asked == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


@pytest.mark.gpu
def test_two_deterministic_runs_on_a_gpu_are_the_same(tiny_base, tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        params = write_params(folder / "params.yaml", tiny_tree(tiny_base) | {"deterministic": True})
        for stage in graph_stages():
            command = [sys.executable, *stage_command(stage, folder, params)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        outs = [path for part in ("data", "metrics", "models", "plots") for path in (folder / part).rglob("*")]
        made.append({path.relative_to(folder): path.read_bytes() for path in outs if path.is_file()})
    assert made[0] == made[1]
