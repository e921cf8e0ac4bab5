"""LoRA: targets, objective, schedules, and that stock diffusers draws the same images from what we save."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import same_pixels, tiny_lora

from pathsynth.core.errors import ModelError, TrainingError
from pathsynth.finetuning.settings import LoraSettings, ScheduleSettings

PROMPTS = [f"tissue number {i}" for i in range(9)]


def _lora(**adapter) -> LoraSettings:
    return LoraSettings.model_validate(tiny_lora(**adapter))


def _with(settings: LoraSettings, **sections) -> LoraSettings:
    """A copy with some values of some sections replaced."""
    tree = settings.model_dump()
    for section, values in sections.items():
        tree[section].update(values)
    return LoraSettings.model_validate(tree)


def _trained(base, prepared, settings, seed=3):
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

    pipeline = load_base(base, "cpu")
    curve = []

    def log(step, values):
        curve.append((step, values))

    with tempfile.TemporaryDirectory() as scratch:
        result = train_lora(pipeline, prepared, PROMPTS, settings, seed, log, scratch=Path(scratch))
        assert not list(Path(scratch).iterdir()), "the latents are gone"
    return pipeline, result, curve


def _images(pipeline):
    import torch

    return (
        pipeline(
            ["tissue number 1", "tissue number 2"],
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(i) for i in (1, 2)],
            output_type="np",
        ).images
        * 255
    ).astype(np.uint8)


@pytest.mark.parametrize(
    "adapter",
    [{}, {"lora_alpha": 9.0}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "default", "rank": 3}],
    ids=["gaussian", "alpha", "rslora", "dora", "default-rank-3"],
)
def test_stock_diffusers_draws_the_same_images_from_the_saved_lora(adapter, tiny_base, tiny_prepared, tmp_path):
    from diffusers import StableDiffusionPipeline

    from pathsynth.diffusion.adapter import attach_lora, save_lora
    from pathsynth.diffusion.base import load_base

    settings = _with(_lora(**adapter), training={"max_train_steps": 6}, optimizer={"learning_rate": 0.1})
    ours, _, _ = _trained(tiny_base, tiny_prepared, settings)
    save_lora(tmp_path, ours.unet, settings, "card", "sha")
    stock = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    untuned = _images(stock)
    stock.load_lora_weights(tmp_path)
    merged = load_base(tiny_base, "cpu")
    attach_lora(merged, tmp_path, "sha")
    ours.unet.eval()
    drawn = _images(ours)
    assert not same_pixels(drawn, untuned, bound=3)
    assert same_pixels(drawn, _images(stock))
    assert same_pixels(drawn, _images(merged))


def test_training_is_reproducible_and_follows_the_seed(tiny_base, tiny_prepared):
    first, again, other = (_trained(tiny_base, tiny_prepared, _lora(), seed=seed)[1] for seed in (3, 3, 4))
    assert first == again
    assert first["loss"] != other["loss"]
    assert first["images_seen"] == 8


def _draws(prepared, settings, seed, views=1):
    from pathsynth.finetuning.batches import BatchSchedule

    return BatchSchedule(settings, seed, prepared.counts["train"], views, (4, 8, 8), 1000)


def _latents(pipeline, prepared, settings, folder, wanted=None):
    """Latents of all images in all views, or of those that are wanted."""
    from pathsynth.finetuning.latents import encode, views_of

    views = views_of(settings.objective)
    images, labels = prepared.images("train"), prepared.labels_of("train")
    wanted = np.ones((len(views), len(images)), bool) if wanted is None else wanted
    degrees = settings.objective.rotation_degrees
    return encode(pipeline, images, labels, views=views, wanted=wanted, degrees=degrees, seed=1, folder=folder)


def _loss_on_fixed_noise(pipeline, prepared, settings, folder) -> float:
    """The mean loss over twenty batches with the same images, noise and timesteps at every call."""
    import torch

    from pathsynth.diffusion.base import embed
    from pathsynth.finetuning.objective import Objective

    settings = _with(settings, training={"max_train_steps": 20, "train_batch_size": 36})
    objective = Objective(pipeline, pipeline.unet, embed(pipeline, [*PROMPTS, ""]), settings.objective.snr_gamma)
    # images as they are, so that the views of the settings are not needed
    latents = _latents(pipeline, prepared, _with(settings, objective={"flips": False}), folder)
    with torch.no_grad():
        return float(np.mean([objective.loss(latents, draw).item() for draw in _draws(prepared, settings, 99)]))


def test_training_learns(tiny_base, tiny_prepared, tmp_path):
    from pathsynth.diffusion.base import load_base

    settings = _with(_lora(rank=8), training={"max_train_steps": 60, "train_batch_size": 16})
    pipeline, _, curve = _trained(tiny_base, tiny_prepared, settings)
    before = _loss_on_fixed_noise(load_base(tiny_base, "cpu"), tiny_prepared, settings, tmp_path)
    assert _loss_on_fixed_noise(pipeline, tiny_prepared, settings, tmp_path) < 0.97 * before
    assert [step for step, _ in curve] == [10, 20, 30, 40, 50, 60]


def test_weights_change_only_when_all_micro_batches_are_in(tiny_base, tiny_prepared, monkeypatch):
    from pathsynth.finetuning.objective import Objective

    norms = []
    real = Objective.loss

    def watched(self, latents, draw):
        assert len(draw.chosen) == 4
        norms.append(sum(float(p.norm()) for name, p in self.unet.named_parameters() if "lora_B" in name))
        return real(self, latents, draw)

    monkeypatch.setattr(Objective, "loss", watched)
    _, result, _ = _trained(tiny_base, tiny_prepared, _with(_lora(), training={"gradient_accumulation_steps": 3}))
    assert norms[:3] == [0.0] * 3
    assert norms[3] > 0 and norms[3:] == [norms[3]] * 3
    assert result["images_seen"] == 24


def test_weight_average_lies_between_start_and_end(tiny_base, tiny_prepared):
    from peft.utils import get_peft_model_state_dict

    norms = []
    for decay in (None, 0.9999):
        settings = _with(_lora(), objective={"ema_decay": decay}, training={"max_train_steps": 5})
        pipeline, _, _ = _trained(tiny_base, tiny_prepared, settings)
        state = get_peft_model_state_dict(pipeline.unet)
        # B starts at zero, so its average lags behind its last value
        norms.append(sum(float(value.norm()) for name, value in state.items() if "lora_B" in name))
    assert 0 < norms[1] < norms[0]


@pytest.mark.parametrize("objective", [{"flips": True, "rotate90": True}, {"flips": False, "rotate90": False}])
def test_latents_are_cached_in_every_view_and_sampled(objective, tiny_base, tiny_prepared, tmp_path):
    import torch

    from pathsynth.diffusion.base import load_base

    pipeline = load_base(tiny_base, "cpu")
    latents = _latents(pipeline, tiny_prepared, _with(_lora(), objective=objective), tmp_path)
    count = 8 if objective["flips"] else 1
    (part,) = latents.parts
    assert part.shape == (36 * count, 2, 4, 8, 8)
    flips, turns = (range(2), range(4)) if objective["flips"] else (range(1), range(1))
    image = tiny_prepared.images("train")[0]
    views = [np.rot90(image[:, ::-1] if flip else image, turn) for flip in flips for turn in turns]
    with torch.no_grad():
        pixels = torch.tensor(np.stack(views)).permute(0, 3, 1, 2) / 127.5 - 1
        direct = pipeline.vae.encode(pixels).latent_dist.mean
    means, stds = torch.from_numpy(part[latents.rows[:, 0]]).float().unbind(1)
    torch.testing.assert_close(means, direct, atol=2e-3, rtol=2e-3)
    views, chosen = torch.arange(50) % count, torch.zeros(50, dtype=torch.long)
    noise = torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = latents.draw(views, chosen, noise)
    torch.testing.assert_close(drawn, means[views] + stds[views] * noise)


def test_only_what_is_drawn_is_encoded(tiny_base, tiny_prepared, tmp_path):
    from pathsynth.diffusion.base import load_base

    settings = _with(_lora(), objective={"rotate90": True}, training={"max_train_steps": 3})
    draws = _draws(tiny_prepared, settings, 5, views=8)
    latents = _latents(load_base(tiny_base, "cpu"), tiny_prepared, settings, tmp_path, draws.wanted())
    assert len(latents.parts[0]) == (latents.rows >= 0).sum() == 12
    for draw in draws:
        assert latents.draw(draw.views, draw.chosen, draw.posterior).isfinite().all()
    never = np.argwhere(latents.rows < 0)[0]
    with pytest.raises(ValueError, match="not encoded"):
        latents.draw(draw.views[:1] * 0 + int(never[0]), draw.chosen[:1] * 0 + int(never[1]), draw.posterior[:1])


def test_a_full_disk_while_encoding_is_one_line(tiny_base, tiny_prepared, tmp_path, monkeypatch):
    import errno
    import os

    from pathsynth.core.errors import DataError
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning import latents

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(latents, "write_npy_in_pieces", full)
    with pytest.raises(DataError, match="could not be written: No space left on device"):
        _latents(load_base(tiny_base, "cpu"), tiny_prepared, _lora(), tmp_path)


def test_fp16_without_a_gpu_is_refused(tiny_base, tiny_prepared):
    with pytest.raises(TrainingError, match=r"mixed_precision: .fp16. needs a GPU; allowed without one: .no., .bf16."):
        _trained(tiny_base, tiny_prepared, _with(_lora(), training={"mixed_precision": "fp16", "weight_dtype": "fp16"}))


def test_rotated_views_have_black_corners_and_their_own_angles(tiny_base, tiny_prepared):
    import torch
    from PIL import Image

    from pathsynth.finetuning.latents import ROTATIONS, _angles, _rotated, views_of

    views = views_of(_with(_lora(), objective={"flips": False, "rotation_degrees": 10.0}).objective)
    assert len(views) == ROTATIONS
    angles = np.stack([_angles(10.0, 1, number, 36) for number in range(ROTATIONS)])
    assert np.abs(angles).max() <= 10 and len(np.unique(angles)) == angles.size and angles.min() < 0 < angles.max()
    image = np.full((32, 32, 3), 255, np.uint8)
    image[4:8, 14:18] = 90
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    turned = (_rotated(pixels, np.array([10.0], np.float32))[0].permute(1, 2, 0).numpy() * 255).round()
    pillow = np.asarray(Image.fromarray(image).rotate(10, Image.Resampling.BILINEAR), float)
    assert turned[0, 0].max() == 0 and turned[16, 16].min() == 255
    # inside the image, where Pillow does not cut the edge off
    assert np.abs(turned - pillow)[4:28, 4:28].max() <= 2


@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_weights_match_the_paper(velocity):
    import torch
    from diffusers import DDPMScheduler

    from pathsynth.finetuning.snr import min_snr_weights

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([10, 500, 990])
    a = scheduler.alphas_cumprod[timesteps]
    snr = a / (1 - a)
    expected = snr.clamp(max=5) / (snr + 1 if velocity else snr)
    torch.testing.assert_close(min_snr_weights(scheduler, timesteps, 5.0, velocity), expected)


def test_shuffled_batches_show_every_image_once_an_epoch():
    from pathsynth.core.seeds import Stream, generator
    from pathsynth.finetuning.batches import shuffled_batches

    batches = shuffled_batches(10, 4, generator(Stream.LORA_BATCHES, 1))
    seen = np.concatenate([next(batches).numpy() for _ in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


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
def test_schedules(settings, expected):
    import torch

    from pathsynth.finetuning.schedule import build_schedule

    names = ("lr_scheduler", "warmup_steps", "restart_steps", "restart_mult")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, ScheduleSettings(**dict(zip(names, settings, strict=True))), steps=8)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for step, rate in expected.items():
        assert rates[step] == pytest.approx(rate, abs=1e-6)


def test_targets_that_match_nothing_are_named(tiny_base):
    from pathsynth.diffusion.adapter import add_lora
    from pathsynth.diffusion.base import load_base

    with pytest.raises(ModelError, match=r"target_modules: 'to_x' matches no layer of the UNet; examples: .*to_k"):
        add_lora(load_base(tiny_base, "cpu").unet, _lora(target_modules=["to_q", "to_x"]).adapter)


def test_nan_loss_ends_training_and_names_the_remedy(tiny_base, tiny_prepared):
    settings = _with(_lora(), optimizer={"learning_rate": 1e30, "max_grad_norm": 1e30}, training={"max_train_steps": 20})
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf); lower optimizer.learning_rate"):
        _trained(tiny_base, tiny_prepared, settings)


def test_weights_that_the_last_step_broke_are_never_saved(tiny_base, tiny_prepared, monkeypatch):
    import torch

    from pathsynth.finetuning.train import _Run

    real = _Run.step

    def breaks(self, *args):
        loss = real(self, *args)
        with torch.no_grad():
            self.parameters[0].fill_(float("inf"))
        return loss

    monkeypatch.setattr(_Run, "step", breaks)
    with pytest.raises(TrainingError, match=r"weights that are no numbers; lower optimizer.learning_rate"):
        _trained(tiny_base, tiny_prepared, _with(_lora(), training={"max_train_steps": 1}))


def test_image_size_that_the_unet_cannot_work_at_is_refused(tiny_base):
    from pathsynth.diffusion.base import check_image_size, load_base

    with pytest.raises(ModelError, match=r"34 does not suit the base; allowed: multiples of 4 from 8"):
        check_image_size(load_base(tiny_base, "cpu"), 34)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "model_index.json"])
def test_base_without_a_part_is_named(part, tiny_base, tmp_path):
    import shutil

    from pathsynth.diffusion.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(ModelError, match=part) as caught:
        load_base(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights_of_the_base_are_one_line(part, tiny_base, tmp_path):
    import shutil

    from pathsynth.diffusion.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="does not load") as caught:
        load_base(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_base_that_lacks_a_tensor_is_not_made_up(part, tiny_base, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from pathsynth.diffusion.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks 1 tensors, such as {part}: \S+: its weights are incomplete"):
        load_base(folder, "cpu")


def test_tokenizer_of_another_base_is_refused(tiny_base, tmp_path):
    import json
    import shutil

    from pathsynth.diffusion.base import load_base

    shutil.copytree(tiny_base, tmp_path / "base")
    config = tmp_path / "base" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    with pytest.raises(ModelError, match="its tokenizer makes up to 77 tokens and its text encoder reads 48: not of one base"):
        load_base(tmp_path / "base", "cpu")


def test_adapter_with_settings_of_another_peft_is_one_line(tiny_base, tiny_prepared, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    from pathsynth.diffusion.adapter import WEIGHTS, attach_lora, save_lora
    from pathsynth.diffusion.base import load_base

    pipeline, _, _ = _trained(tiny_base, tiny_prepared, _lora())
    save_lora(tmp_path, pipeline.unet, _lora(), "card", "sha")
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.from_tomorrow": 1})}
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata)
    with pytest.raises(ModelError, match="does not fit the base") as caught:
        attach_lora(load_base(tiny_base, "cpu"), tmp_path, "sha")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"not safetensors at all"])
def test_missing_or_damaged_lora_is_one_line(content, tiny_base, tmp_path):
    from pathsynth.diffusion.adapter import WEIGHTS, attach_lora
    from pathsynth.diffusion.base import load_base

    if content is not None:
        (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        attach_lora(load_base(tiny_base, "cpu"), tmp_path, "sha")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "training"),
    [
        ({"lora_alpha": 9.0}, {}),
        ({"use_rslora": True, "target_modules": ["to_q", "conv1", "conv_shortcut", "time_emb_proj"]}, {}),
        ({}, {"gradient_accumulation_steps": 2, "train_batch_size": 2}),
        ({}, {"mixed_precision": "bf16", "weight_dtype": "bf16"}),
    ],
    ids=["alpha", "rslora-of-convolutions", "accumulation", "bf16"],
)
def test_a_merged_adapter_learns_the_same(adapter, training, tiny_base, tiny_prepared):
    import torch

    settings = _with(_lora(**adapter), training={"max_train_steps": 6, **training}, optimizer={"learning_rate": 1e-2})
    apart, plain, _ = _trained(tiny_base, tiny_prepared, settings)
    merged, result, _ = _trained(tiny_base, tiny_prepared, _with(settings, training={"merged": True}))
    exact = settings.training.mixed_precision == "no"
    assert result == plain | {"loss": pytest.approx(plain["loss"], rel=1e-5 if exact else 2e-2)}
    if not exact:
        return
    found = dict(merged.unet.named_parameters())
    for name, parameter in apart.unet.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-4)
    apart.unet.eval()
    merged.unet.eval()
    assert same_pixels(_images(apart), _images(merged)), "outside of the training the adapter is there as peft has it"


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("adapter", {"lora_dropout": 0.1}, "lora_dropout: 0.0"),
        ("adapter", {"use_dora": True}, "use_dora: false"),
        ("training", {"gradient_checkpointing": True}, "gradient_checkpointing"),
    ],
)
def test_what_cannot_be_merged_is_refused(section, values, words):
    tree = tiny_lora()
    tree["training"]["merged"] = True
    tree[section].update(values)
    with pytest.raises(ValueError, match=words):
        LoraSettings.model_validate(tree)


def test_plain_attention_is_for_small_images_on_a_cpu():
    import torch

    from pathsynth.core.devices import MOST_PLAIN_ATTENTION, training_attention

    def fused() -> bool:
        return torch.backends.cuda.flash_sdp_enabled()

    with training_attention("cpu", MOST_PLAIN_ATTENTION):
        assert not fused()
    for device, pixels in (("cpu", MOST_PLAIN_ATTENTION + 1), ("cuda", 1)):
        with training_attention(device, pixels):
            assert fused()
