"""Filtered generation: the limit, the count, the seeds, and that batches change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import empty_slots, same_pixels, tiny_tree

from pathsynth.core.errors import ModelError, QuotaError
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data import labels
from pathsynth.generation.filtering import (
    Attempt,
    check_quota,
    first_attempts,
    generate_filtered,
    generation_metrics,
    save_generated,
)
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import GenerationSettings

SIZE = 8


def _draw(attempts):
    """Images that say which attempt they are in their first pixel."""
    images = np.zeros((len(attempts), SIZE, SIZE, 3), np.uint8)
    for image, a in zip(images, attempts, strict=True):
        image[0, 0] = (a.tissue, a.slot, a.attempt)
    return images


def _gate_that_accepts_from(attempt_by_tissue):
    """A gate that sees the prompted tissue from the given attempt on, and tissue 0 (for 0: tissue 1) before."""

    def gate(images):
        out = np.full((len(images), len(attempt_by_tissue)), 0.01, np.float32)
        for row, image in zip(out, images, strict=True):
            tissue, _, attempt = (int(v) for v in image[0, 0])
            seen = tissue if attempt >= attempt_by_tissue[tissue] else int(tissue == 0)
            row[seen] = 0.9
        return out

    return gate


@pytest.fixture
def run(tmp_path_factory):
    def _run(gate_from, slots=3, limit=4, batch_size=5):
        made = empty_slots(tmp_path_factory.mktemp("slots"), len(gate_from), slots, SIZE, 11)
        generate_filtered(_draw, _gate_that_accepts_from(gate_from), made, limit, batch_size)
        return made

    return _run


def test_rejected_slots_are_tried_again_up_to_the_limit_and_counted(run):
    slugs = ["a", "b", "c"]
    result = run([0, 2, 99])
    table = result.table(slugs)
    metrics = generation_metrics(table, slugs, 3)
    assert metrics["per_tissue"] == {
        "a": {"attempted": 3, "accepted": 3, "acceptance_rate": 1.0, "unfilled": 0},
        "b": {"attempted": 9, "accepted": 3, "acceptance_rate": 0.333333, "unfilled": 0},
        "c": {"attempted": 12, "accepted": 0, "acceptance_rate": 0.0, "unfilled": 3},
    }
    assert (metrics["attempted"], metrics["accepted"], metrics["unfilled"]) == (24, 6, 3)


def test_raw_is_the_first_try_and_accepted_the_one_that_passed(run):
    result = run([0, 2, 99])
    (raw, raw_labels), (accepted, accepted_labels) = result.raw(), result.accepted()
    raw, accepted = raw[:], accepted[:]
    assert list(raw_labels) == [0] * 3 + [1] * 3 + [2] * 3
    assert list(accepted_labels) == [0] * 3 + [1] * 3
    assert (raw[:, 0, 0, 2] == 0).all()
    assert list(accepted[:, 0, 0, 2]) == [0] * 3 + [2] * 3
    assert list(accepted[:, 0, 0, 1]) == [0, 1, 2] * 2


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batch_size_changes_nothing(batch_size, run):
    one, other = run([0, 2, 99]), run([0, 2, 99], batch_size=batch_size)
    assert one.table("abc").equals(other.table("abc"))
    assert np.array_equal(one.accepted()[0][:], other.accepted()[0][:])


def test_no_tissue_can_be_produced(run):
    result = run([99, 99])
    assert result.accepted()[0].shape == (0, SIZE, SIZE, 3)
    assert len(result.table("ab")) == 2 * 3 * 4


def test_seeds_are_all_different_and_do_not_depend_on_the_set():
    seeds = [Attempt(t, s, a).seed(1) for t in range(9) for s in range(20) for a in range(5)]
    assert len(set(seeds)) == len(seeds)
    again = Attempt(3, 2, 1)
    assert again.seed(1) == Attempt(3, 2, 1).seed(1)
    assert again.seed(1) != again.seed(2)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_seeds_of_images_are_none_of_the_seeds_of_training():
    drawn = {Attempt(t, s, a).seed(1) for t in range(9) for s in range(20) for a in range(5)}
    trained = {mix_seed(stream, 1, *own) for stream in Stream if stream != Stream.IMAGES for own in ((), (1,), (2,), (3,))}
    assert len(trained) == 4 * (len(Stream) - 1)
    assert not drawn & trained
    assert mix_seed(Stream.IMAGES, 3) != mix_seed(Stream.IMAGES, 3, 0)


def test_quota_names_the_tissues_that_fell_short(run):
    slugs = ["a", "b", "c"]
    metrics = generation_metrics(run([0, 2, 99]).table(slugs), slugs, 3)
    check_quota(metrics, 3, 0.0)
    with pytest.raises(QuotaError, match=r"too few images accepted: c 0/3; the quota is 50%"):
        check_quota(metrics, 3, 0.5)


def test_saved_set_is_in_medmnist_format_and_reads_back(tmp_path, run):
    import pandas as pd

    from pathsynth.data.archives import read_generated

    result = run([0, 2, 99])
    save_generated(tmp_path, result, result.table("abc"))
    with np.load(tmp_path / "accepted.npz", allow_pickle=False) as archive:
        assert archive["train_images"].dtype == archive["train_labels"].dtype == np.uint8
        assert archive["train_labels"].shape == (6, 1)
    assert len(read_generated(tmp_path / "raw.npz", tmp_path)[0]) == 9
    table = pd.read_csv(tmp_path / "attempts.csv")
    assert list(table) == ["tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted"]
    first = table[table["attempt"] == 0]
    assert list(first["tissue"]) == list("aaabbbccc")
    assert table["seed"][0] == Attempt(0, 0, 0).seed(11)


def _settings(**changes) -> GenerationSettings:
    return GenerationSettings.model_validate(tiny_tree()["benchmarks"]["tiny"]["generation"] | changes)


def _sampler(base, **changes):
    from pathsynth.diffusion.base import load_base

    prompts = [f"an area with {label}" for label in labels.PATHMNIST]
    return Sampler(load_base(base, "cpu"), prompts, _settings(**changes), 7, 32)


def test_an_image_does_not_depend_on_its_batch(tiny_base):
    sampler = _sampler(tiny_base)
    attempts = [Attempt(t, s, 0) for t in (0, 4) for s in range(3)]
    together = sampler(attempts)
    assert together.shape == (6, 32, 32, 3) and together.dtype == np.uint8
    apart = np.concatenate([sampler([a]) for a in reversed(attempts)])[::-1]
    assert same_pixels(together, apart)
    assert not same_pixels(together[:1], together[1:2], bound=10)


def test_stock_pipeline_draws_the_same_image_from_the_seed(tiny_base):
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    ours = _sampler(tiny_base)([Attempt(2, 0, 0)])
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
def test_any_scheduler_by_name(name, tiny_base):
    assert _sampler(tiny_base, scheduler=name)([Attempt(0, 0, 0)]).shape == (1, 32, 32, 3)


def test_unknown_scheduler_is_named(tiny_base):
    with pytest.raises(
        ModelError, match=r"'MoonScheduler' does not suit the base; allowed: DDIMScheduler, .*DPMSolverMultistepScheduler"
    ):
        _sampler(tiny_base, scheduler="MoonScheduler")


def test_scheduler_that_needs_what_is_not_installed_is_one_line(tiny_base, monkeypatch):
    from diffusers import EulerDiscreteScheduler

    def lacking(*_args, **_kwargs):
        raise ImportError("requires the sde library,\nwhich is not installed")

    monkeypatch.setattr(EulerDiscreteScheduler, "from_config", lacking)
    with pytest.raises(
        ModelError, match=r"'EulerDiscreteScheduler' cannot be used here: requires the sde library, which is not"
    ):
        _sampler(tiny_base, scheduler="EulerDiscreteScheduler")


def test_prompt_that_the_base_would_cut_is_refused(tiny_base):
    from pathsynth.diffusion.base import embed, load_base

    with pytest.raises(ModelError, match=r"'pink (pink )+pink' has \d+ tokens; the base reads 48, start and end included"):
        embed(load_base(tiny_base, "cpu"), ["pink dots", " ".join(["pink"] * 60)])


def test_pixels_that_are_no_numbers_are_not_taken_for_a_picture(tiny_base):
    import torch

    sampler = _sampler(tiny_base)
    with torch.no_grad():
        sampler.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="draws pixels that are no numbers"):
        sampler([Attempt(0, 0, 0)])


def test_drawing_all_is_drawing_batches(tiny_base):
    sampler = _sampler(tiny_base, batch_size=4)
    attempts = first_attempts(tissues=2, images_per_tissue=3)
    assert [(a.tissue, a.slot, a.attempt) for a in attempts] == [(t, s, 0) for t in range(2) for s in range(3)]
    assert same_pixels(sampler.draw_all(attempts), sampler(attempts))


def test_medmnist_itself_reads_the_set(tmp_path, run):
    from medmnist import PathMNIST

    result = run([0] * 9, slots=2)
    save_generated(tmp_path, result, result.table(labels.SLUGS))
    (tmp_path / "accepted.npz").rename(tmp_path / "pathmnist.npz")
    data = PathMNIST(split="train", root=str(tmp_path), download=False)
    # its len() insists on the published number of images, so the arrays are asked
    assert data.imgs.shape == (18, SIZE, SIZE, 3)
    assert int(data[17][1][0]) == 8 and data[17][0].size == (SIZE, SIZE)
