"""The bundled base: its textures follow the seed and contain no tissue, its training is reproducible, and it draws."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, tiny_base_settings

from pathsynth.bundled_base import textures, training
from pathsynth.bundled_base.models import build_tokenizer
from pathsynth.bundled_base.training import draw_pool, train_base
from pathsynth.core.checkpoint import INTERVAL_VARIABLE, Checkpoint
from pathsynth.core.errors import ModelError
from pathsynth.data import labels

BASE = ROOT / "base"


class TestTextures:
    def test_pool_does_not_depend_on_the_number_of_workers(self):
        settings = tiny_base_settings().textures
        one, two = draw_pool(settings, 1, 1), draw_pool(settings, 1, 2)
        assert np.array_equal(one[0], two[0]) and one[1] == two[1]
        assert one[0].shape == (40, 32, 32, 3) and len({image.tobytes() for image in one[0]}) == 40

    @pytest.mark.parametrize("motif", textures.MOTIFS)
    def test_every_motif_is_visible(self, motif):
        bare = textures.Recipe("plain", "", "grey", "grey", ())
        layered = replace(bare, layers=(textures.Layer(motif, "many", "medium", "dark", "purple"),))
        first, second = (textures.render(recipe, np.random.default_rng(0), 64).astype(int) for recipe in (bare, layered))
        assert (np.abs(first - second).max(axis=2) > 40).mean() > 0.03

    def test_no_tissue_renderer_is_used(self):
        package = ROOT / "pathsynth"
        code = "".join(
            path.read_text() for path in [*(package / "bundled_base").glob("*.py"), package / "sources" / "drawing.py"]
        )
        imported = set(re.findall(r"^from pathsynth\.sources.* import (.+)$", code, re.MULTILINE))
        assert imported == {"drawing"}

    def test_no_caption_names_a_tissue(self):
        randoms = (np.random.default_rng(i) for i in range(3000))
        texts = [textures.caption(textures.draw_recipe(rng), rng) for rng in randoms]
        texts += [kind.name for kind in textures.invent_kinds(1337, 400)] + list(textures.FRAMES)
        words, tissue_words = (set(re.findall(r"[a-z]+", " ".join(some))) for some in (texts, labels.PATHMNIST))
        assert len(words) > 500 and not words & tissue_words


def test_tokenizer_is_reproducible_and_splits_unknown_words():
    captions = ["many dots on a net", "some dots"] * 20
    first, second = (build_tokenizer(captions, tiny_base_settings().textures) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("dots") == ["dots</w>"] and len(first.tokenize("zyx")) == 3


class Killed(BaseException):
    """Ends a training as a signal would."""


def weights_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["VAE", "UNet, phase 1"])
    def test_interrupted_training_resumes_with_the_same_weights(self, part, tiny_base, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv(INTERVAL_VARIABLE, "0")
        save = Checkpoint.save

        def save_and_end(checkpoint, name, state):
            save(checkpoint, name, state)
            if name == part and state["step"] == 3:
                raise Killed

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Checkpoint, "save", save_and_end)
            train_base(tiny_base_settings(), tmp_path / "base", "cpu", Checkpoint(tmp_path / "state"))
        train_base(tiny_base_settings(), tmp_path / "base", "cpu", Checkpoint(tmp_path / "state"))
        assert f"{part}: resuming after step 3 of 8" in capsys.readouterr().err
        assert weights_of(tmp_path / "base") == weights_of(tiny_base)

    def test_a_base_is_trained_further_with_its_vae_and_tokenizer(self, tiny_base, tmp_path):
        train_base(tiny_base_settings(), tmp_path / "more", "cpu", start=tiny_base)
        before, after = weights_of(tiny_base), weights_of(tmp_path / "more")
        assert {name for name in before if before[name] != after[name]} == {
            "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        }  # fmt: skip
        tokenizer = "tokenizer/tokenizer.json"
        assert (tiny_base / tokenizer).read_bytes() == (tmp_path / "more" / tokenizer).read_bytes()

    def test_base_of_another_architecture_is_refused(self, tiny_base, monkeypatch):
        settings = tiny_base_settings()
        wider = settings.model_copy(update={"unet": settings.unet.model_copy(update={"layers_per_block": 2})})
        with pytest.raises(ModelError, match=r"has another unet than the settings: .* differs"):
            training.load_parts(tiny_base, wider, "cpu")


class TestCommittedBase:
    def test_stock_pipeline_follows_colour_words(self):
        import torch
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        prompts = ["nothing on plain pale pink ground", "nothing on plain dark navy ground", "nothing on plain green ground"]
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        images = pipeline(prompts, num_inference_steps=12, guidance_scale=3.0, generator=generators, output_type="np").images
        assert images.shape == (3, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.03
        pink, navy, green = images.mean(axis=(1, 2))
        assert pink.mean() > navy.mean() + 0.3
        assert pink[0] > pink[1] and navy[2] > navy[0] and green[1] > max(green[0], green[2])

    def test_folder_is_small_and_holds_no_pickle(self):
        files = [path for path in BASE.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 16e6
        assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".yaml"}
