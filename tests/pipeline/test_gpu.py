"""Training, checkpoints and sampling at Stable Diffusion 1.5's dimensions on a GPU (`make test-gpu`), and small on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, graph_stages, run_graph, stage_command, tiny_lora, tiny_tree, write_params

from benchmarks.random_base import random_base
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import Training, build_classifier
from pathsynth.core.checkpoint import INTERVAL_VARIABLE, NO_CHECKPOINT, Checkpoint
from pathsynth.core.metric_files import read_details
from pathsynth.data import labels
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.diffusion.adapter import save_lora
from pathsynth.diffusion.base import load_base, unet_sha256
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import SamplerSettings
from pathsynth.sources import phantom
from pathsynth.synthesis import load_artifacts, redraw, synthesize

PROMPTS = [f"a histopathological image of an area with {label}" for label in labels.PATHMNIST]
# bf16 has 8 bits of precision: a mean loss agrees to about 1 %, pixels after two sampling steps to a few of 255.
LOSS_BOUND, PIXEL_BOUND = 0.03, 6.0

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = pytest.param(("sd15_small", "cpu", 64), id="small-on-cpu", marks=pytest.mark.slow)
FULL = pytest.param(("sd15", "cuda", 224), id="sd15-on-gpu", marks=[pytest.mark.gpu, needs_gpu])


@pytest.fixture(scope="module", params=[SMALL, FULL])
def scale(request, tmp_path_factory):
    """A random base, the device and the image size."""
    shape, device, size = request.param
    folder = tmp_path_factory.mktemp(shape) / "base"
    random_base(folder, shape)
    return folder, device, size


@pytest.fixture(scope="module")
def prepared(scale, tmp_path_factory):
    size = scale[2]
    splits = {split: phantom.draw_split(1, 7, size, split) for split in ("train", "val", "test")}
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, size)
    return open_prepared(folder)


def lora_settings(**training) -> LoraSettings:
    tree = tiny_lora(rank=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    tree["training"] |= training
    return LoraSettings.model_validate(tree)


def train(scale, prepared, settings, scratch: Path, checkpoint: Checkpoint = NO_CHECKPOINT):
    """The pipeline with its trained adapter, and the loss."""
    pipeline = load_base(scale[0], scale[1])
    options = {"scratch": scratch, "checkpoint": checkpoint}
    result = train_lora(pipeline, prepared, PROMPTS, settings, 3, lambda *_: None, **options)
    return pipeline, result["loss"]


def test_training_step_in_half_precision_is_close_to_float32(scale, prepared, tmp_path):
    _, exact = train(scale, prepared, lora_settings(max_train_steps=1), tmp_path)
    bf16 = {"max_train_steps": 1, "mixed_precision": "bf16"}
    for training in (bf16, bf16 | {"weight_dtype": "bf16", "gradient_checkpointing": True}):
        pipeline, loss = train(scale, prepared, lora_settings(**training), tmp_path)
        assert loss == pytest.approx(exact, rel=LOSS_BOUND)
        assert any(bool((p != 0).any()) for name, p in pipeline.unet.named_parameters() if "lora_B" in name)
        dtypes = {parameter.requires_grad: parameter.dtype for parameter in pipeline.unet.parameters()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16 if "weight_dtype" in training else torch.float32}
    if scale[1] == "cuda":
        # fp16 may skip the first update to find the loss scale
        fp16 = lora_settings(max_train_steps=1, mixed_precision="fp16", weight_dtype="fp16")
        assert train(scale, prepared, fp16, tmp_path)[1] == pytest.approx(exact, rel=LOSS_BOUND)


def test_classifier_in_half_precision_is_close_to_float32(scale, prepared):
    gate, losses = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"], {}
    for precision in ("no", "bf16", *(["fp16"] if scale[1] == "cuda" else [])):
        changes = {"input_size": scale[2], "batch_size": 9, "epochs": 4, "mixed_precision": precision}
        settings = ClassifierSettings.model_validate(gate | changes)
        classifier = build_classifier(settings, prepared.slugs, 3, scale[1], Path())
        training = Training(classifier, prepared.images("train"), prepared.labels_of("train"), settings, 3)
        # fp16 may skip updates to find the loss scale, so only the loss before the first one is comparable
        losses[precision] = training.run_epoch()
        for _ in range(3):
            assert np.isfinite(training.run_epoch())
        assert np.isfinite(classifier.probabilities(prepared.images("val"))).all()
    assert all(loss == pytest.approx(losses["no"], rel=LOSS_BOUND) for loss in losses.values())


class Killed(BaseException):
    """Ends a training as a signal would."""


class KilledAfterSave(Checkpoint):
    """Ends the process that has saved its first state."""

    def save(self, name, state):
        super().save(name, state)
        raise Killed


def test_interrupted_training_resumes_with_the_same_result(scale, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    settings = lora_settings(max_train_steps=3, mixed_precision="fp16" if scale[1] == "cuda" else "no")
    with pytest.raises(Killed):
        train(scale, prepared, settings, tmp_path, KilledAfterSave(tmp_path / "state"))
    _, resumed = train(scale, prepared, settings, tmp_path, Checkpoint(tmp_path / "state"))
    _, whole = train(scale, prepared, settings, tmp_path)
    assert resumed == pytest.approx(whole, rel=LOSS_BOUND if scale[1] == "cuda" else 0)


def test_images_in_bf16_are_close_to_float32(scale):
    folder, device, size = scale
    images = []
    for mixed_precision, weight_dtype in (("no", "fp32"), ("bf16", "fp32"), ("no", "bf16")):
        settings = SamplerSettings(
            scheduler="DPMSolverMultistepScheduler", num_inference_steps=2, guidance_scale=2.0, batch_size=4,
            mixed_precision=mixed_precision, weight_dtype=weight_dtype,
        )  # fmt: skip
        sampler = Sampler(load_base(folder, device), PROMPTS, settings, 7, size)
        images.append(sampler.sample(range(4), range(4)).astype(int))
    assert images[0].shape == (4, size, size, 3) and images[0].std() > 1
    for other in images[1:]:
        assert np.abs(other - images[0]).mean() < PIXEL_BOUND


def test_images_are_redrawn_from_their_records(scale, prepared, tmp_path):
    folder, device, size = scale
    tree = tiny_tree(folder)
    tree["benchmarks"]["tiny"]["dataset"]["image_size"] = size
    write_params(tmp_path / "params.yaml", tree)
    settings = LoraSettings.model_validate(tree["loras"]["r2"])
    pipeline, _ = train(scale, prepared, settings, tmp_path)
    save_lora(tmp_path / "models" / "lora", pipeline.unet, settings, "card", unet_sha256(folder))
    artifacts = load_artifacts(tmp_path)
    synthetic = synthesize(PROMPTS[0], 3, artifacts=artifacts, gate=False)
    assert synthetic.images.shape == (3, size, size, 3) and synthetic.images.std() > 1
    # in another batch, which changes nothing on a CPU
    redrawn = redraw(synthetic.records[1:], artifacts=artifacts).images
    difference = np.abs(redrawn.astype(int) - synthetic.images[1:]).mean()
    assert difference < PIXEL_BOUND if device == "cuda" else difference == 0


def run_stages(names, folder: Path, params: Path) -> None:
    """Runs stages, each in its own process."""
    for name in names:
        done = subprocess.run([sys.executable, *stage_command(name, folder, params)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.gpu(count=2)
def test_two_processes_train_and_generate_the_same_as_one(tiny_base, tmp_path):
    losses, images = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        tree = tiny_tree(tiny_base)
        run_graph(folder, write_params(folder / "one.yaml", tree))
        params = write_params(folder / "params.yaml", tree | {"processes": processes})
        run_stages(["train_lora", "generate_filtered"], folder, params)
        losses.append(read_details(folder / "metrics" / "lora.json")["loss"])
        with np.load(folder / "data" / "generated" / "raw.npz") as raw:
            images.append(raw["train_images"].astype(int))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert np.abs(images[0] - images[1]).mean() < PIXEL_BOUND


@pytest.mark.gpu
@needs_gpu
def test_deterministic_runs_give_the_same_bytes(tiny_base, tmp_path):
    runs = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        params = write_params(folder / "params.yaml", tiny_tree(tiny_base) | {"deterministic": True})
        run_stages(graph_stages(), folder, params)
        outs = [path for part in ("data", "metrics", "models", "plots") for path in (folder / part).rglob("*")]
        runs.append({path.relative_to(folder): path.read_bytes() for path in outs if path.is_file()})
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_asking_for_gpu_tests_without_a_gpu_is_an_error():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", __file__]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip().startswith("ERROR: tests marked gpu need a GPU that torch can use, but the device is CPU, ")
