"""Counted work: what costs most is done as often as it must be and no more. Times are for benchmarks/, counts are for here."""

from __future__ import annotations

import builtins
import os

import numpy as np
import pytest
from conftest import empty_slots, tiny_lora, tiny_tree

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.settings import GenerationSettings

PROMPTS = [f"tissue number {i}" for i in range(9)]


class Calls:
    """How often a module was called, and with how many rows."""

    def __init__(self, module, monkeypatch):
        self.rows: list[int] = []
        original = module.forward

        def counted(first, *args, **kwargs):
            self.rows.append(len(first))
            return original(first, *args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)


@pytest.fixture
def pipeline(tiny_base):
    from pathsynth.diffusion.base import load_base

    return load_base(tiny_base, "cpu")


def test_generation_calls_the_unet_once_a_step_and_batch_and_the_text_encoder_once(pipeline, monkeypatch):
    from pathsynth.generation.filtering import first_attempts
    from pathsynth.generation.sampler import Sampler

    tree = tiny_tree()["benchmarks"]["tiny"]["generation"] | {"num_inference_steps": 3, "batch_size": 16}
    text, unet = Calls(pipeline.text_encoder, monkeypatch), Calls(pipeline.unet, monkeypatch)
    decoder = Calls(pipeline.vae.decoder, monkeypatch)
    sampler = Sampler(pipeline, PROMPTS, GenerationSettings.model_validate(tree), 7, 32)
    for _ in range(2):
        sampler.draw_all(first_attempts(9, 3))
    # with guidance, both halves in one batch; 27 images are two batches of 16
    assert unet.rows == [32] * 3 * 2 * 2
    assert decoder.rows == [16] * 2 * 2
    assert text.rows == [9, 1], "the prompts and the negative prompt, once for all images"


def test_without_guidance_half_the_work_is_left_out(pipeline, monkeypatch):
    from pathsynth.generation.filtering import first_attempts
    from pathsynth.generation.sampler import Sampler

    tree = tiny_tree()["benchmarks"]["tiny"]["generation"] | {"num_inference_steps": 3, "batch_size": 16, "guidance_scale": 1.0}
    unet = Calls(pipeline.unet, monkeypatch)
    Sampler(pipeline, PROMPTS, GenerationSettings.model_validate(tree), 7, 32).draw_all(first_attempts(9, 1))
    assert unet.rows == [16] * 3


def test_only_open_slots_are_drawn_again_and_batches_stay_full(tmp_path):
    from pathsynth.generation.filtering import generate_filtered

    drawn: list[int] = []

    def draw(batch):
        drawn.append(len(batch))
        return np.array([[[[a.tissue, a.attempt, 0]]] for a in batch], np.uint8)

    def gate(images):
        # right on the first try but for the last tissue, which is right on the second
        return np.eye(9)[[tissue if tissue < 8 or attempt else 0 for tissue, attempt, _ in images[:, 0, 0]]]

    generate_filtered(draw, gate, empty_slots(tmp_path, 9, 10, 1), 4, 25)
    assert drawn == [25, 25, 25, 15, 10]


def test_a_training_encodes_each_image_once_and_each_prompt_once(pipeline, tiny_prepared, tmp_path, monkeypatch):
    from pathsynth.finetuning.train import train_lora

    tree = tiny_lora()
    tree["training"]["max_train_steps"] = 27
    tree["objective"]["flips"] = False
    encoder, text = Calls(pipeline.vae.encoder, monkeypatch), Calls(pipeline.text_encoder, monkeypatch)
    unet = Calls(pipeline.unet, monkeypatch)
    train_lora(pipeline, tiny_prepared, PROMPTS, LoraSettings.model_validate(tree), 7, lambda *_: None, scratch=tmp_path)
    assert sum(encoder.rows) == 36, "three epochs of 36 images"
    assert text.rows == [10], "the prompts and the empty one"
    assert unet.rows == [4] * 27


def test_a_classifier_sees_each_image_once_an_epoch_and_val_after_it(tiny_prepared, monkeypatch):
    from pathsynth.classifiers import training as classifier_training

    trained: list[int] = []
    step = classifier_training._step
    monkeypatch.setattr(
        classifier_training, "_step", lambda n, pixels, *rest: trained.append(len(pixels)) or step(n, pixels, *rest)
    )
    scored: list[str] = []
    score = classifier_training.score
    monkeypatch.setattr(classifier_training, "score", lambda c, p, split: scored.append(split) or score(c, p, split))
    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"] | {"epochs": 3}
    settings = ClassifierSettings.model_validate(gate)
    classifier_training.train_classifier(tiny_prepared, settings, 7, "cpu", lambda *_: None)
    assert trained == [18, 18] * 3
    assert scored == ["val"] * 3 + ["val", "test"]


def test_files_opened_do_not_grow_with_the_images(tmp_path, monkeypatch):
    from pathsynth.core.rows import RowFile, blocks
    from pathsynth.data.generated import LabelledImages

    opened: list[str] = []
    for module, name in ((builtins, "open"), (os, "open")):
        original = getattr(module, name)

        def counted(path, *args, _original=original, **kwargs):
            opened.append(str(path))
            return _original(path, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    counts = {}
    for images in (50, 500):
        path = tmp_path / f"{images}.npy"
        np.save(path, np.zeros((images, 8, 8, 3), np.uint8))
        opened.clear()
        rows = LabelledImages(RowFile(path), np.arange(images) % 9).images
        assert sum(len(block) for block in blocks(rows, 10)) == images
        counts[images] = sum(str(path) == name for name in opened)
    assert counts == {50: 1, 500: 1}
