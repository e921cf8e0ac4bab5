"""The memorisation gap: known answers, and a LoRA that has memorised eight images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pathsynth.evaluation.memorisation import IMAGES_PER_TISSUE, memorisation_scores, select_images

TISSUES = np.repeat([0, 1, 2], 30)


class TestSelection:
    def test_both_splits_have_equally_many_images_per_tissue(self):
        train_labels, val_labels = np.repeat([0, 1, 2], [100, 3, 40]), np.repeat([2, 0, 1], [7, 50, 4])
        train, val = select_images(train_labels, val_labels, 3, seed=1)
        for labels, rows in ((train_labels, train), (val_labels, val)):
            assert np.bincount(labels[rows]).tolist() == [IMAGES_PER_TISSUE, 3, 7]
            assert len(np.unique(rows)) == len(rows)

    def test_images_follow_the_seed(self):
        labels = np.zeros(200, np.int64)
        first, again, other = (select_images(labels, labels, 1, seed)[0].tolist() for seed in (1, 1, 2))
        assert first == again != other


class TestScores:
    def test_lower_losses_of_all_training_images_are_an_auc_of_one(self):
        scores = memorisation_scores(np.full(90, 0.2), np.full(90, 0.3), TISSUES, TISSUES, seed=1)
        assert scores == {"auc": 1.0, "low": 1.0, "high": 1.0, "train_loss": 0.2, "val_loss": 0.3}

    def test_ties_count_half(self):
        scores = memorisation_scores(np.ones(90), np.ones(90), TISSUES, TISSUES, seed=1)
        assert (scores["auc"], scores["low"], scores["high"]) == (0.5, 0.5, 0.5)

    def test_auc_is_the_mean_of_scikit_learn_over_tissues(self):
        rng = np.random.default_rng(1)
        train, val = rng.normal(0.0, 1, 90), rng.normal(0.8, 1, 90)
        split, losses = np.repeat([0, 1], 90), np.concatenate([train, val])
        expected = [roc_auc_score(split[rows], losses[rows]) for rows in (np.tile(TISSUES, 2) == t for t in range(3))]
        scores = memorisation_scores(train, val, TISSUES, TISSUES, seed=1)
        assert scores["auc"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert 0.5 < scores["low"] < scores["auc"] < scores["high"] < 0.9

    def test_differences_between_tissues_do_not_matter(self):
        rng = np.random.default_rng(2)
        train, val = rng.normal(0.0, 1, 90), rng.normal(0.8, 1, 90)
        scores = [memorisation_scores(train + shift, val + shift, TISSUES, TISSUES, 1) for shift in (0, 100.0 * TISSUES)]
        assert [scores[0][key] for key in ("auc", "low", "high")] == [scores[1][key] for key in ("auc", "low", "high")]

    def test_interval_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(3)
        losses = rng.normal(size=(40, 2, 90))
        covered = [
            scores["low"] <= 0.5 <= scores["high"]
            for scores in (memorisation_scores(*pair, TISSUES, TISSUES, seed=1) for pair in losses)
        ]
        assert np.mean(covered) >= 0.85

    def test_tissue_without_validation_images_is_left_out(self):
        train, val = np.repeat([0.2, 0.3, 9.0], 30), np.repeat([0.3, 0.2], 30)
        scores = memorisation_scores(train, val, TISSUES, TISSUES[:60], seed=1)
        assert (scores["auc"], scores["low"], scores["high"]) == (0.5, 0.5, 0.5)

    def test_splits_without_a_common_tissue_are_refused(self):
        with pytest.raises(ValueError, match="no tissue has both training and validation images"):
            memorisation_scores(np.ones(90), np.ones(3), TISSUES, np.full(3, 7), seed=1)


@pytest.mark.slow
def test_gap_of_a_lora_that_has_memorised_eight_images(tiny_base):
    import torch
    from conftest import tiny_lora

    from pathsynth.diffusion.adapter import add_lora
    from pathsynth.diffusion.base import encode_prompts, load_base
    from pathsynth.diffusion.denoising import denoising_losses, encode_latents, load_noise_scheduler, squared_errors
    from pathsynth.diffusion.settings import AdapterSettings

    colours, labels = np.random.default_rng(1).integers(0, 256, (56, 1, 1, 3), np.uint8), np.arange(56) % 2
    prompts = ["pink dots", "purple rings"]
    pipeline = load_base(tiny_base, "cpu")
    # cloned, because tensors made in inference mode cannot be trained with
    latents = encode_latents(pipeline, np.tile(colours, (1, 32, 32, 1))).clone()

    def scores() -> dict:
        losses = denoising_losses(pipeline, latents, labels, prompts, seed=3, steps=4)
        return memorisation_scores(losses[:8], losses[8:], labels[:8], labels[8:], seed=1)

    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_in", "conv_out", "time_emb_proj"]
    adapter = tiny_lora(rank=8, lora_alpha=8.0, target_modules=targets)["adapter"]
    optimizer = torch.optim.AdamW(add_lora(pipeline.unet, AdapterSettings.model_validate(adapter)), lr=1e-2)
    untrained = scores()
    assert untrained["low"] <= 0.5 <= untrained["high"]

    scheduler, random = load_noise_scheduler(pipeline), torch.Generator().manual_seed(1)
    batch, hidden = latents[:8].repeat(4, 1, 1, 1), encode_prompts(pipeline, prompts)[labels[:8]].repeat(4, 1, 1)
    for _ in range(100):
        timesteps = torch.randint(1000, (32,), generator=random)
        noise = torch.randn(batch.shape, generator=random)
        optimizer.zero_grad()
        squared_errors(pipeline.unet, scheduler, batch, noise, timesteps, hidden).mean().backward()
        optimizer.step()
    trained = scores()
    assert trained["low"] > 0.55 and trained["train_loss"] < 0.9 * trained["val_loss"]
