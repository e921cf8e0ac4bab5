"""The number of expensive calls: each is made as often as necessary and no more."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import empty_slots, run_stage, tiny_lora, tiny_tree, write_params

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.settings import SamplerSettings

PROMPTS = [f"tissue number {i}" for i in range(9)]


class Calls:
    """Records the batch size of every call of a module."""

    def __init__(self, module, monkeypatch):
        self.rows: list[int] = []
        forward = module.forward

        def counted(first, *args, **kwargs):
            self.rows.append(len(first))
            return forward(first, *args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)


@pytest.fixture
def pipeline(tiny_base):
    from pathsynth.diffusion.base import load_base

    return load_base(tiny_base, "cpu")


def _sampler(pipeline, **changes):
    from pathsynth.generation.sampler import Sampler

    settings = (
        tiny_tree()["benchmarks"]["tiny"]["generation"]["sampler"] | {"num_inference_steps": 3, "batch_size": 16} | changes
    )
    return Sampler(pipeline, PROMPTS, SamplerSettings.model_validate(settings), 7, 32)


def test_sampling_calls_the_unet_once_per_step_and_batch_and_the_text_encoder_once(pipeline, monkeypatch):
    from pathsynth.generation.slots import first_attempts

    text, unet = Calls(pipeline.text_encoder, monkeypatch), Calls(pipeline.unet, monkeypatch)
    decoder = Calls(pipeline.vae.decoder, monkeypatch)
    sampler = _sampler(pipeline)
    for _ in range(2):
        sampler(first_attempts(9, 3))
    # guidance doubles the batch; 27 images are two batches of 16
    assert unet.rows == [32] * 3 * 2 * 2
    assert decoder.rows == [16] * 2 * 2
    assert text.rows == [9, 1]


def test_sampling_without_guidance_halves_the_work(pipeline, monkeypatch):
    from pathsynth.generation.slots import first_attempts

    unet = Calls(pipeline.unet, monkeypatch)
    _sampler(pipeline, guidance_scale=1.0)(first_attempts(9, 1))
    assert unet.rows == [16] * 3


def test_configurations_with_the_same_prompts_share_the_untuned_images(finished, tiny_base, tmp_path, monkeypatch):
    from diffusers import UNet2DConditionModel

    params, rows, forward = write_params(tmp_path / "params.yaml", tiny_tree(tiny_base)), [], UNet2DConditionModel.forward

    def counted(unet, sample, *args, **kwargs):
        rows.append(len(sample))
        return forward(unet, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    calls = []
    for name in ("first", "second"):
        result = run_stage(
            "generate_controls", "--params", params, "--lora", finished / "models" / "lora",
            "--out", tmp_path / name, "--scratch", tmp_path / "scratch",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        calls.append(len(rows))
    # the second run draws only the paraphrased images, half of all
    assert calls[1] == 1.5 * calls[0] > 0
    for control in ("untuned.npz", "paraphrased.npz"):
        images = [
            (folder / control).read_bytes() for folder in (tmp_path / "first", tmp_path / "second", finished / "data/controls")
        ]
        assert images[0] == images[1] == images[2]


def test_only_open_slots_are_retried_in_full_batches(tmp_path):
    from pathsynth.generation.filtering import generate_filtered

    sizes: list[int] = []

    def sample(batch):
        sizes.append(len(batch))
        return np.array([[[[a.tissue, a.attempt, 0]]] for a in batch], np.uint8)

    def gate(images):
        # accepts all first attempts but those of the last class
        return np.eye(9)[[tissue if tissue < 8 or attempt else 0 for tissue, attempt, _ in images[:, 0, 0]]]

    generate_filtered(sample, gate, empty_slots(tmp_path, 9, 10, 1), 4, 25)
    assert sizes == [25, 25, 25, 15, 10]


def test_lora_training_encodes_each_image_and_prompt_once(pipeline, tiny_prepared, tmp_path, monkeypatch):
    from pathsynth.finetuning.train import train_lora

    tree = tiny_lora()
    tree["training"]["max_train_steps"] = 27
    tree["objective"]["flips"] = False
    encoder, text = Calls(pipeline.vae.encoder, monkeypatch), Calls(pipeline.text_encoder, monkeypatch)
    unet = Calls(pipeline.unet, monkeypatch)
    train_lora(pipeline, tiny_prepared, PROMPTS, LoraSettings.model_validate(tree), 7, lambda *_: None, scratch=tmp_path)
    # three epochs of 36 images, padded to a multiple of 16; the prompts and the empty one; a first step is only tried
    assert (encoder.rows, text.rows, unet.rows) == ([48], [10], [4] * 28)


def test_classifier_training_sees_each_image_once_per_epoch_and_then_val(tiny_prepared, monkeypatch):
    from pathsynth.classifiers import training

    trained, scored, augment, score = [], [], training.augment, training.score_split
    monkeypatch.setattr(training, "augment", lambda pixels, *rest: trained.append(len(pixels)) or augment(pixels, *rest))
    monkeypatch.setattr(training, "score_split", lambda c, p, split: scored.append(split) or score(c, p, split))
    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"] | {"epochs": 3}
    training.train_classifier(tiny_prepared, ClassifierSettings.model_validate(gate), 7, "cpu", lambda *_: None)
    assert trained == [18, 18] * 3
    assert scored == ["val"] * 3 + ["val", "test"]
