"""Training, sampling and classifiers at full size on a fake GPU: devices, dtypes, kernels, copies and syncs, without values.

Batches and images have the committed sizes. A training has two optimizer steps of at most two micro-batches; most LoRAs are
sampled with two steps. Run as a script, this file writes what ran on the device to JSON files.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from fake_cuda import ROOT, Record, build_stub, fake_cuda, needs_stub, run_on_fake_gpu
from torch.optim.optimizer import register_optimizer_step_post_hook

from pathsynth.core.params import Params, load_params, merge, read_yaml, resolve_lora

PARAMS = ROOT / "params.yaml"
TREE = read_yaml(PARAMS)
FULL_SIZE = [name for name in TREE["loras"] if name.startswith(("paper_", "sd_"))]
BUNDLED = [name for name in TREE["loras"] if name not in FULL_SIZE]
CLASSIFIERS = ["gate", "judge"]
# By compute capability, on which the choice of attention kernels depends.
# One of each family, which also makes its sheets.
SOME = ["paper_v5", "sd_r16", "r8"]
LORAS = {75: SOME, 80: SOME, 90: [*FULL_SIZE, *BUNDLED]}
# LoRAs that are sampled with all steps: merged into their base, all have the same operators.
SAMPLED_WHOLE = ["paper_v9", "r16"]
PROBE = "probe"
STEPS = 2
# Latents, noise, timesteps, and which rows of the embeddings.
COPIES_PER_MICRO_BATCH = 4
# Images, labels, mean and standard deviation of pixels, and random numbers of at most six augmentations.
COPIES_PER_CLASSIFIER_STEP = 10
ATTENTION = re.compile(r"aten::_scaled_dot_product_(\w+)_attention")
# For bf16, by compute capability. Turing has no fused kernel for it, and plain products are no operator of attention.
BF16_ATTENTION = {75: set(), 80: {"flash"}, 90: {"flash"}}

pytestmark = [pytest.mark.slow, needs_stub]


def select(lora: str) -> Params:
    """The committed parameters for a LoRA and the benchmark that it is for."""
    benchmark = "pathmnist" if lora in FULL_SIZE else "phantom"
    lora_values = resolve_lora(PARAMS, TREE, lora)
    return replace(load_params(PARAMS), benchmark_name=benchmark, lora_name=lora, lora=lora_values)


def shorten(lora: dict[str, Any]) -> dict[str, Any]:
    """The LoRA for two steps of at most two micro-batches each; all shapes stay as they are."""
    accumulation = min(2, lora["training"]["gradient_accumulation_steps"])
    training = {"max_train_steps": STEPS, "gradient_accumulation_steps": accumulation}
    return merge(lora, {"training": training, "schedule": {"warmup_steps": min(1, lora["schedule"]["warmup_steps"])}})


@functools.cache
def first_equal(lora: str) -> str:
    """The first LoRA that is the same when shortened, so that it runs only once."""
    short = {name: shorten(resolve_lora(PARAMS, TREE, name)) for name in TREE["loras"]}
    return next(name for name in short if short[name] == short[lora])


def prepare_blank(folder: Path, size: int, count: int):
    """A prepared set of black images, `count` to train on."""
    from pathsynth.data import labels
    from pathsynth.data.prepared import open_prepared, write_prepared

    counts = {"train": count, "val": 9, "test": 9}
    splits = {s: (np.zeros((n, size, size, 3), np.uint8), np.arange(n, dtype=np.uint8) % 9) for s, n in counts.items()}
    write_prepared(folder, "blank", labels.PATHMNIST, splits, {"source": "phantom"}, size)
    return open_prepared(folder)


def load_on_fake_gpu(lora: str):
    """The base of a LoRA: Stable Diffusion 1.5 without values, or the bundled one."""
    from diffusers import StableDiffusionPipeline

    from benchmarks.random_base import build_parts, prompt_tokenizer
    from pathsynth.diffusion.base import load_base

    if lora not in FULL_SIZE:
        return load_base(ROOT / "base", "cuda")
    tokenizer = prompt_tokenizer()
    with torch.device("cuda"):
        parts = build_parts("sd15", tokenizer)
    for name in ("unet", "vae"):
        parts[name].to(memory_format=torch.channels_last)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**parts, tokenizer=tokenizer, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def record_steps(record: Record, train: Callable[[], object]) -> Record:
    """What runs from the end of the last optimizer step but one to the end of the last."""
    marks: list[Record] = []
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(record.copy()))
    train()
    hook.remove()
    return marks[-1].since(marks[-2])


def run_lora(lora: str, folder: Path) -> dict[str, Record]:
    """Trains a LoRA, saves it, and samples a batch with it; what ran in an optimizer step, in all of training, in sampling."""
    from pathsynth.data.settings import AnyDataset
    from pathsynth.diffusion.adapter import attach_lora, save_lora
    from pathsynth.diffusion.settings import Prompts
    from pathsynth.finetuning import development
    from pathsynth.finetuning.recorder import NO_RECORDS, VALIDATION_LOSS, Records
    from pathsynth.finetuning.settings import LoraSettings
    from pathsynth.finetuning.train import train_lora
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.settings import read_generation

    params = select(lora)
    dataset, settings = params.section("dataset", AnyDataset), LoraSettings.model_validate(shorten(params.lora))
    prompts = params.section("prompts", Prompts).texts(settings.prompts, dataset)
    sampling = read_generation(params).sampler
    if lora not in SAMPLED_WHOLE:
        sampling = sampling.model_copy(update={"num_inference_steps": 2})
    size = dataset.image_size
    prepared = prepare_blank(folder / "prepared", size, 9)
    logged = {}

    def log(step, values):
        logged[step] = values

    with fake_cuda() as training:
        pipeline = load_on_fake_gpu(lora)
        records = Records(folder / "sheets") if lora in map(first_equal, SOME) else NO_RECORDS
        options = {"scratch": folder / "scratch", "records": records}
        with patch.object(development, "NUM_INFERENCE_STEPS", 2):
            step = record_steps(training, lambda: train_lora(pipeline, prepared, prompts, settings, 1, log, **options))
        save_lora(folder / "lora", pipeline.unet, settings, "card", "0")
    assert all(VALIDATION_LOSS in logged[step] for step in (0, STEPS))
    if records.sheets is not None:
        assert {path.name for path in records.sheets.iterdir()} == {f"{step:04d}.png" for step in (0, STEPS)}
    with fake_cuda() as drawing:
        pipeline = load_on_fake_gpu(lora)
        attach_lora(pipeline, folder / "lora", "0")
        images = Sampler(pipeline, prompts, sampling, 1, size).sample([0] * sampling.batch_size, range(sampling.batch_size))
    assert images.shape == (sampling.batch_size, size, size, 3) and images.dtype == np.uint8
    return {"step": step, "training": training, "sampling": drawing}


def run_classifier(role: str, folder: Path) -> dict[str, Record]:
    """Trains a classifier of `pathmnist` for two steps and predicts; what ran in a step, and in all."""
    from pathsynth.classifiers.settings import Classifiers
    from pathsynth.classifiers.training import train_classifier

    settings = getattr(select(FULL_SIZE[0]).section("classifiers", Classifiers), role)
    settings = settings.model_copy(update={"weights": "none", "epochs": 1})
    prepared = prepare_blank(folder / "prepared", settings.input_size, STEPS * settings.batch_size)
    with fake_cuda() as record:
        train = functools.partial(train_classifier, prepared, settings, 1, "cuda", lambda *_: None)
        step = record_steps(record, train)
    return {"step": step, "training": record}


def run_probe() -> dict[str, Record]:
    """Does once what the tests look for, and what a GPU refuses."""
    with fake_cuda() as record:
        tensor = torch.ones(2, 3).to("cuda")
        with pytest.raises(RuntimeError, match="device"):
            tensor + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="device"):
            torch.ones(2, 3)[tensor.long()]
        with pytest.raises(RuntimeError, match="dtype"):
            tensor @ tensor.half().T
        with pytest.raises(RuntimeError, match="numpy"):
            tensor.numpy()
        assert tensor.cpu().numpy().shape == (2, 3)
        assert tensor.double().tolist()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.max_memory_allocated() == 0
    return {"all": record}


def main(folder: Path, *names: str) -> None:
    """Writes FOLDER/NAME.json for every LoRA, classifier or probe: records, or the traceback of an error."""
    for name in names:
        (folder / name).mkdir()
        try:
            if name == PROBE:
                records = run_probe()
            else:
                records = (run_classifier if name in CLASSIFIERS else run_lora)(name, folder / name)
            result = {part: vars(record) for part, record in records.items()}
        except (Exception, pytest.fail.Exception):
            result = {"error": traceback.format_exc()}
        (folder / f"{name}.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def records_of(tmp_path_factory) -> Callable[[int, str], dict[str, Record]]:
    """Gives the records of a run; all runs of a compute capability share a process, because torch caches fake operators."""
    stub = tmp_path_factory.mktemp("stub")
    build_stub(stub)

    @functools.cache
    def run_all(capability: int) -> Path:
        folder = tmp_path_factory.mktemp(f"sm{capability}")
        loras = dict.fromkeys(map(first_equal, LORAS[capability]))
        run_on_fake_gpu(stub, capability, __file__, [folder, PROBE, *CLASSIFIERS, *loras])
        return folder

    def read(capability: int, name: str) -> dict[str, Record]:
        result = json.loads((run_all(capability) / f"{name}.json").read_text())
        assert "error" not in result, result["error"]
        return {part: Record(**{key: Counter(counts) for key, counts in each.items()}) for part, each in result.items()}

    return read


def attention_kernels(record: Record) -> set[str]:
    """Names of the fused attention kernels, such as flash, efficient or cudnn."""
    return {match[1] for name in record.operators if (match := ATTENTION.match(name))}


def assert_no_doubles(records: dict[str, Record]) -> None:
    """float64 is 32 to 64 times as slow as float32 on a T4 or a consumer GPU."""
    for record in records.values():
        assert not record.doubles


def test_fake_device_refuses_and_counts_what_a_gpu_does(records_of):
    record = records_of(90, PROBE)["all"]
    assert len(record.syncs) == 2, "cpu and tolist"
    assert record.copies.total() == 1 and record.doubles
    assert all(line.startswith("tests/pipeline/test_fake_cuda.py") for line in record.syncs)


@pytest.mark.parametrize(("capability", "lora"), [(key, name) for key, names in LORAS.items() for name in names])
def test_lora_trains_and_samples(capability, lora, records_of):
    records, training = records_of(capability, first_equal(lora)), shorten(resolve_lora(PARAMS, TREE, lora))["training"]
    step = records["step"]
    assert step.syncs.total() == 1, f"not only the loss is read: {step.syncs}"
    assert next(iter(step.syncs)).startswith("pathsynth/finetuning/train.py")
    assert 0 < step.copies.total() <= COPIES_PER_MICRO_BATCH * training["gradient_accumulation_steps"], step.copies
    # cuDNN's kernel is excluded
    assert attention_kernels(step) == ({"efficient"} if training["mixed_precision"] == "no" else BF16_ATTENTION[capability])
    assert_no_doubles(records)


def test_cudnn_attention_is_what_a_hopper_gpu_would_choose(records_of):
    assert "cudnn" in attention_kernels(records_of(90, "r16")["sampling"]), "so training excludes something"


@pytest.mark.parametrize("capability", LORAS)
@pytest.mark.parametrize("role", CLASSIFIERS)
def test_classifier_trains_and_predicts(role, capability, records_of):
    records = records_of(capability, role)
    assert not records["step"].syncs
    assert 0 < records["step"].copies.total() <= COPIES_PER_CLASSIFIER_STEP, records["step"].copies
    assert "aten::convolution_backward" in records["step"].operators
    assert_no_doubles(records)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
