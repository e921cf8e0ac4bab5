"""Filtered generation: limit of attempts, counts, seeds, resuming, and independence of the batch size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from conftest import empty_slots, same_pixels, tiny_tree

from pathsynth.core.errors import ModelError, OutOfMemory, QuotaError
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data import labels
from pathsynth.data.archives import unpack_split
from pathsynth.generation.filtering import (
    check_quota,
    generate_filtered,
    generate_unfiltered,
    generation_metrics,
    save_generated,
)
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import FastSamplerSettings, SamplerSettings
from pathsynth.generation.slots import Attempt, first_attempts

SIZE, SLUGS = 8, ["a", "b", "c"]


def draw_markers(attempts):
    """Images whose first pixel is (tissue, slot, attempt)."""
    images = np.zeros((len(attempts), SIZE, SIZE, 3), np.uint8)
    for image, attempt in zip(images, attempts, strict=True):
        image[0, 0] = (attempt.tissue, attempt.slot, attempt.attempt)
    return images


def make_gate(accepted_from):
    """A gate that accepts tissue t from attempt `accepted_from[t]` on."""

    def gate(images):
        probabilities = np.full((len(images), len(accepted_from)), 0.01, np.float32)
        for row, image in zip(probabilities, images, strict=True):
            tissue, _, attempt = image[0, 0].tolist()
            row[tissue if attempt >= accepted_from[tissue] else int(tissue == 0)] = 0.9
        return probabilities

    return gate


@pytest.fixture
def fill(tmp_path_factory):
    def run(accepted_from=(0, 2, 99), slots=3, batch_size=5):
        filled = empty_slots(tmp_path_factory.mktemp("slots"), len(accepted_from), slots, SIZE, 11)
        generate_filtered(draw_markers, make_gate(accepted_from), filled, 4, batch_size)
        return filled

    return run


# --- counts and sets


def test_rejected_slots_are_retried_up_to_the_limit_and_counted(fill):
    metrics = generation_metrics(fill().table(SLUGS), SLUGS, 3)
    assert metrics["per_tissue"] == {
        "a": {"attempted": 3, "accepted": 3, "acceptance_rate": 1.0, "unfilled": 0},
        "b": {"attempted": 9, "accepted": 3, "acceptance_rate": 0.333333, "unfilled": 0},
        "c": {"attempted": 12, "accepted": 0, "acceptance_rate": 0.0, "unfilled": 3},
    }
    assert (metrics["attempted"], metrics["accepted"], metrics["unfilled"]) == (24, 6, 3)
    check_quota(metrics, 3, 0.0)
    with pytest.raises(QuotaError, match=r"too few images accepted: c 0/3; the quota is 50%"):
        check_quota(metrics, 3, 0.5)


def test_unfiltered_attempts_have_no_prediction(tmp_path):
    slots = empty_slots(tmp_path, 2, 3, SIZE)
    generate_unfiltered(draw_markers, slots, 4)
    table = slots.table("ab")
    assert slots.raw()[0].shape[0] == 6 and slots.accepted()[0].shape[0] == 0
    assert table["predicted"].isna().all() and not table["accepted"].any()


def test_saved_set_is_in_medmnist_format(tmp_path, fill, monkeypatch):
    import medmnist

    slots = fill([0] * 9, slots=2)
    save_generated(tmp_path, slots, slots.table(labels.SLUGS))
    assert len(unpack_split(tmp_path / "raw.npz", tmp_path)[0]) == 18
    table = pd.read_csv(tmp_path / "attempts.csv")
    assert list(table) == ["tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted"]
    assert list(table["tissue"]) == [slug for slug in labels.SLUGS for _ in range(2)]
    assert table["seed"][0] == Attempt(0, 0, 0).seed(11) and set(table["confidence"]) == {0.9}
    # as the card says, MedMNIST's loader must know the number of images
    monkeypatch.setitem(medmnist.INFO["pathmnist"]["n_samples"], "train", 18)
    (tmp_path / "accepted.npz").rename(tmp_path / "pathmnist.npz")
    data = medmnist.PathMNIST(split="train", root=str(tmp_path))
    image, label = data[17]
    assert len(data) == 18 and image.size == (SIZE, SIZE) and label.tolist() == [8]


# --- seeds


def test_attempt_seeds_are_unique_and_in_63_bits():
    attempts = [Attempt(t, s, a) for t in range(9) for s in range(20) for a in range(5)]
    seeds = {attempt.seed(1) for attempt in attempts}
    assert len(seeds) == len(attempts) and min(seeds) >= 0 and max(seeds) < 2**63
    assert Attempt(3, 2, 1).seed(1) != Attempt(3, 2, 1).seed(2)
    # no seed of training is a seed of an image
    others = {mix_seed(stream, 1, *own) for stream in Stream if stream != Stream.IMAGES for own in ((), (1,), (2,), (3,))}
    assert len(others) == 4 * (len(Stream) - 1) and not seeds & others
    assert mix_seed(Stream.IMAGES, 3) != mix_seed(Stream.IMAGES, 3, 0)


# --- resuming


def test_damaged_batch_is_generated_again(tmp_path, capsys):
    slots = empty_slots(tmp_path, 3, 3, SIZE, 11)
    generate_filtered(draw_markers, make_gate([0, 2, 99]), slots, 4, 5)
    records = tmp_path / "batches" / "000002_records.npy"
    records.write_bytes(records.read_bytes()[:-1])
    resumed = empty_slots(tmp_path, 3, 3, SIZE, 11)
    generate_filtered(draw_markers, make_gate([0, 2, 99]), resumed, 4, 5)
    assert "generation resumes after 9 attempts" in capsys.readouterr().err
    assert resumed.table(SLUGS).equals(slots.table(SLUGS))


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_with_the_number_of_images(tmp_path):
    import psutil

    def run(count):
        open_files, size, rng = [], 128, np.random.default_rng(1)

        def draw(attempts):
            open_files.append(psutil.Process().num_fds())
            return np.zeros((len(attempts), size, size, 3), np.uint8)

        def gate(images):
            accepted = rng.random(len(images)) < 0.1
            return np.stack([accepted, ~accepted], 1).astype(np.float32)

        tracemalloc.start()
        slots = empty_slots(tmp_path / str(count), 2, count, size)
        # tissue 1 is accepted in nine of ten attempts, tissue 0 in one
        generate_filtered(draw, gate, slots, 100, 64)
        save_generated(tmp_path / "out", slots, slots.table("ab"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, max(open_files)

    (short_peak, short_files), (long_peak, long_files) = run(400), run(1600)
    # 2 x 1200 more images of 49 kB would take 118 MB
    assert long_peak - short_peak < 20e6
    assert long_files <= short_files


# --- sampler


def make_sampler(base, prompts_per_tissue=1, **changes):
    from pathsynth.diffusion.base import load_base

    settings = tiny_tree()["benchmarks"]["tiny"]["generation"]["sampler"] | changes
    prompts = [f"an area with {label}" for label in labels.PATHMNIST]
    settings = SamplerSettings.model_validate(settings)
    return Sampler(load_base(base, "cpu"), prompts, settings, 7, 32, prompts_per_tissue=prompts_per_tissue)


def test_an_image_does_not_depend_on_its_batch(tiny_base):
    sampler = make_sampler(tiny_base, batch_size=4)
    attempts = first_attempts(tissues=2, images_per_tissue=5)
    together = sampler(attempts)
    assert together.shape == (10, 32, 32, 3) and together.dtype == np.uint8
    alone = np.concatenate([sampler([attempt]) for attempt in reversed(attempts)])[::-1]
    assert same_pixels(together, alone)
    assert not same_pixels(together[:1], together[1:2], bound=10)


def test_slots_take_the_prompts_of_their_tissue_in_turn(tiny_base):
    attempts = first_attempts(tissues=2, images_per_tissue=4)
    images = make_sampler(tiny_base, prompts_per_tissue=2, guidance_scale=30.0)(attempts)
    # strong guidance, because the barely trained base hardly follows a prompt
    by_prompt = make_sampler(tiny_base, guidance_scale=30.0)
    seeds = [attempt.seed(7) for attempt in attempts]
    assert same_pixels(images, by_prompt.sample([0, 1, 0, 1, 2, 3, 2, 3], seeds))
    assert not same_pixels(images, by_prompt.sample([0, 0, 0, 0, 2, 2, 2, 2], seeds))


def test_stock_pipeline_samples_the_same_image_from_the_seed(tiny_base):
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    ours = make_sampler(tiny_base)([Attempt(2, 0, 0)])
    stock = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    image = stock(
        "an area with debris",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(Attempt(2, 0, 0).seed(7)),
        output_type="np",
    ).images
    assert same_pixels(ours, (image * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_schedulers_are_selected_by_class_name(name, tiny_base):
    assert make_sampler(tiny_base, scheduler=name)([Attempt(0, 0, 0)]).shape == (1, 32, 32, 3)


def test_unusable_scheduler_is_one_line_error(tiny_base, monkeypatch):
    from diffusers import EulerDiscreteScheduler

    with pytest.raises(ModelError, match=r"'MoonScheduler' is not compatible with the base; allowed: DDIMScheduler"):
        make_sampler(tiny_base, scheduler="MoonScheduler")

    def fail(*_args, **_kwargs):
        raise ImportError("requires the sde library,\nwhich is not installed")

    monkeypatch.setattr(EulerDiscreteScheduler, "from_config", fail)
    with pytest.raises(ModelError, match=r"'EulerDiscreteScheduler' cannot be used: requires the sde library, which is not"):
        make_sampler(tiny_base, scheduler="EulerDiscreteScheduler")


def test_number_of_steps_that_the_scheduler_cannot_take_is_found_before_the_first_image(tiny_base):
    with pytest.raises(ModelError, match=r"num_inference_steps: 3 with PNDMScheduler: the scheduler fails .+; 4 works"):
        make_sampler(tiny_base, scheduler="PNDMScheduler", num_inference_steps=3)
    make_sampler(tiny_base, scheduler="PNDMScheduler", num_inference_steps=4)


def test_scheduler_that_draws_noise_per_batch_is_refused(tiny_base, monkeypatch):
    import torch
    from diffusers import DDIMScheduler

    with pytest.raises(ModelError, match=r"'DPMSolverSDEScheduler' draws noise per batch, so .+; allowed: DDIMScheduler, DDPM"):
        make_sampler(tiny_base, scheduler="DPMSolverSDEScheduler")

    class BatchNoiseScheduler(DDIMScheduler):
        """Ignores the generators of the images, as a class of a later diffusers may do."""

        def step(self, *args, **options):
            sample = super().step(*args, **options)[0]
            return (sample + torch.randn(sample.shape, generator=torch.Generator().manual_seed(len(sample))),)

    monkeypatch.setattr(DDIMScheduler, "compatibles", [BatchNoiseScheduler])
    with pytest.raises(ModelError, match="'BatchNoiseScheduler' draws noise per batch"):
        make_sampler(tiny_base, scheduler="BatchNoiseScheduler")


def test_prompt_that_the_base_would_truncate_is_one_line_error(tiny_base):
    with pytest.raises(ModelError, match=r"'pink (pink )+pink' has \d+ tokens; the base reads 48"):
        make_sampler(tiny_base, negative_prompt=" ".join(["pink"] * 60))


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_while_sampling_only(allowed, tiny_base):
    import torch

    sampler, seen = make_sampler(tiny_base, tf32=allowed), []
    sampler.pipeline.unet.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    sampler.sample([0], [1])
    assert set(seen) == {allowed}
    assert not torch.backends.cuda.matmul.allow_tf32


def test_nan_pixels_are_one_line_error(tiny_base):
    import torch

    sampler = make_sampler(tiny_base)
    with torch.no_grad():
        sampler.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="sampler produced NaN pixels; train the LoRA with a lower learning rate"):
        sampler([Attempt(0, 0, 0)])
    sampler.settings = sampler.settings.model_copy(update={"weight_dtype": "fp16"})
    hint = r"set generation.sampler.mixed_precision and generation.sampler.weight_dtype to bf16"
    with pytest.raises(ModelError, match=f"NaN pixels; fp16 overflows above 65 504: {hint}"):
        sampler([Attempt(0, 0, 0)])


def test_out_of_memory_names_the_key_that_is_in_effect(tiny_base, monkeypatch):
    import torch

    sampler = make_sampler(tiny_base)

    def forward(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(sampler.pipeline.unet, "forward", forward)
    with pytest.raises(
        OutOfMemory, match=r"lower generation.sampler.batch_size \(6\), or set generation.sampler.weight_dtype: bf16"
    ):
        sampler([Attempt(0, 0, 0)])
    fast = sampler.settings.model_dump() | {"batch_size": 5, "fast": {"batch_size": 5}}
    sampler.settings = FastSamplerSettings.model_validate(fast)
    with pytest.raises(OutOfMemory, match=r"lower generation.sampler.fast.batch_size \(5\), or set generation.sampler.weight"):
        sampler([Attempt(0, 0, 0)])
