"""The bundled base: its textures follow the seed and contain no tissue, its training is reproducible, and it draws."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_base_settings

from pathsynth.bundled_base import recognition, textures, training
from pathsynth.bundled_base.models import build_tokenizer
from pathsynth.bundled_base.motifs import MOTIFS, Flow
from pathsynth.bundled_base.optimizer import MuonWithAdamW
from pathsynth.bundled_base.parts import load_parts
from pathsynth.bundled_base.training import draw_pool, train_base
from pathsynth.core.checkpoint import INTERVAL_VARIABLE, Checkpoint
from pathsynth.core.errors import ModelError
from pathsynth.core.io import read_json
from pathsynth.core.params import read_yaml
from pathsynth.data import labels

BASE = ROOT / "base"


class TestTextures:
    def test_pool_does_not_depend_on_the_number_of_workers(self):
        settings = tiny_base_settings().textures
        one, two = draw_pool(settings, 1, 1), draw_pool(settings, 1, 2)
        assert np.array_equal(one[0], two[0]) and one[1] == two[1]
        assert one[0].shape == (40, 32, 32, 3) and len({image.tobytes() for image in one[0]}) == 40

    @pytest.mark.parametrize("motif", MOTIFS)
    def test_every_motif_is_visible(self, motif):
        bare = textures.Recipe("plain", "", "grey", "grey", ())
        layered = replace(bare, layers=(textures.Layer(motif, "many", "medium", "dark", "purple"),))
        first, second = (textures.render(recipe, np.random.default_rng(0), 64).astype(int) for recipe in (bare, layered))
        assert (np.abs(first - second).max(axis=2) > 40).mean() > 0.03

    def test_every_motif_has_known_sizes(self):
        assert {size for motif in MOTIFS.values() for size in motif.sizes} == set(textures.SIZES)

    @pytest.mark.parametrize("benchmark", ["phantom", "pathmnist_small", "pathmnist64"])
    def test_prompts_name_motifs_at_the_sizes_that_the_base_has_seen(self, benchmark):
        prompts = read_yaml(ROOT / "configs" / "prompts" / f"{benchmark}.yaml")
        sentences = [text for kind in ("described", "paraphrased") for entry in prompts[kind] for text in entry.values()]
        names = {name: motif for motif in MOTIFS.values() for name in motif.names}
        checked = 0
        for text in np.hstack(sentences):
            for part in re.split(", | and | on ", text):
                size = next((size for size in textures.SIZES if size in part.split()), None)
                # the longest name first: "rings of dots" and not "dots"
                name = next((name for name in sorted(names, key=len, reverse=True) if part.endswith(name)), None)
                if size and name:
                    assert size in names[name].sizes, text
                    checked += 1
        assert checked >= 20

    def test_spindles_lie_along_straight_and_wavy_fibres(self):
        rng = np.random.default_rng(0)
        for bend in (0.0, 0.12):
            flow = Flow.draw(rng, 64, bend)
            line = flow.line(5.0)
            steps = np.diff(line, axis=0)
            angles = np.array([flow.angle_at(x, y) for x, y in (line[:-1] + line[1:]) / 2])
            difference = (np.arctan2(steps[:, 1], steps[:, 0]) - angles + np.pi / 2) % np.pi - np.pi / 2
            assert np.abs(difference).max() < 0.02
            assert (np.ptp(angles) > 0.3) == (bend > 0)

    def test_colours_contrast_with_the_ground_and_tell_little_about_motifs(self):
        from sklearn.linear_model import LogisticRegression

        recipes = [textures.draw_recipe(np.random.default_rng(i)) for i in range(4000)]
        layers = [(recipe, layer) for recipe in recipes for layer in recipe.layers]
        rgb = [
            (textures._mix_shade(layer.shade, layer.colour), textures._mix_shade(recipe.shade, recipe.colour))
            for recipe, layer in layers
        ]
        assert min(np.abs(a - b).mean() for a, b in rgb) >= textures.MIN_CONTRAST
        colours, motifs = np.array(rgb).reshape(len(rgb), 6), np.array([layer.motif for _, layer in layers])
        half = len(motifs) // 2
        probe = LogisticRegression(max_iter=500).fit(colours[:half], motifs[:half])
        _, counts = np.unique(motifs[half:], return_counts=True)
        assert probe.score(colours[half:], motifs[half:]) < counts.max() / half + 0.03

    def test_a_fifth_of_the_described_grounds_have_no_colour(self):
        rng = np.random.default_rng(0)
        grounds = [textures._describe_ground(textures.draw_recipe(rng), rng) for _ in range(2000)]
        bare = [ground for ground in grounds if not set(ground.split()) & set(textures.COLOURS)]
        assert 0.17 < len(bare) / 2000 < 0.23
        assert set(bare) == {f"{ground} {noun}" for ground in textures.GROUNDS for noun in ("ground", "area")}

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


def test_loras_for_the_base_are_trained_with_its_noise_levels():
    (tiny, *_) = read_yaml(ROOT / "params.yaml")["lora_families"]
    assert tiny["tiny"]["objective"]["log_snr"] == read_yaml(BASE / "params.yaml")["unet"]["phases"][-1]["log_snr"]


def test_tokenizer_is_reproducible_and_splits_unknown_words():
    captions = ["many dots on a net", "some dots"] * 20
    first, second = (build_tokenizer(captions, tiny_base_settings().textures) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("dots") == ["dots</w>"] and len(first.tokenize("zyx")) == 3


class Killed(BaseException):
    """Ends a training as a signal would."""


def weights_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_a_step_updates_every_weight_in_place_in_both_memory_formats(tiny_base):
    settings, updated = tiny_base_settings(), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parts = load_parts(tiny_base, settings, "cpu")
        models = [parts.unet.to(memory_format=memory_format), parts.text_encoder]
        weights = {f"{i} {name}": weight for i, model in enumerate(models) for name, weight in model.named_parameters()}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer = MuonWithAdamW(*models, settings.unet.phases[0])
        random = torch.Generator().manual_seed(0)
        for _ in range(2):
            for weight in weights.values():
                # a gradient has the memory format of its weight
                weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=random))
            optimizer.step()
        assert [name for name in weights if torch.equal(weights[name], before[name])] == []
        updated.append({name: weight.detach() - before[name] for name, weight in weights.items()})
    torch.testing.assert_close(*updated, rtol=0.05, atol=1e-5)


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

    def test_resumed_training_does_not_draw_the_textures_again(self, tmp_path, monkeypatch):
        monkeypatch.setenv(INTERVAL_VARIABLE, "0")
        train_base(tiny_base_settings(), tmp_path / "base", "cpu", Checkpoint(tmp_path / "state"))
        monkeypatch.setattr(training, "draw_pool", lambda *_: pytest.fail("drawn again"))
        parts, latents, captions = training._prepare_pool(tiny_base_settings(), "cpu", Checkpoint(tmp_path / "state"), None)
        assert len(latents) == len(captions) == 40
        assert parts.vae.config.scaling_factor == read_json(tmp_path / "base" / "vae" / "config.json")["scaling_factor"]

    def test_a_base_is_trained_further_with_its_vae_and_tokenizer(self, tiny_base, tmp_path):
        train_base(tiny_base_settings(), tmp_path / "more", "cpu", start=tiny_base)
        before, after = weights_of(tiny_base), weights_of(tmp_path / "more")
        assert {name for name in before if before[name] != after[name]} == {
            "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        }  # fmt: skip
        tokenizer = "tokenizer/tokenizer.json"
        assert (tiny_base / tokenizer).read_bytes() == (tmp_path / "more" / tokenizer).read_bytes()
        assert not any(str(tiny_base) in path.read_text() for path in (tmp_path / "more").rglob("*.json"))

    def test_base_of_another_architecture_is_refused(self, tiny_base, monkeypatch):
        settings = tiny_base_settings()
        wider = settings.model_copy(update={"unet": settings.unet.model_copy(update={"layers_per_block": 2})})
        with pytest.raises(ModelError, match=r"has another unet than the settings: .* differs"):
            load_parts(tiny_base, wider, "cpu")


def test_motifs_are_recognised_in_real_textures_and_not_in_those_of_an_untrained_base(tiny_base, monkeypatch):
    from pathsynth.diffusion.base import load_base

    monkeypatch.setattr(recognition, "PROBE_IMAGES", 24)
    shares = recognition.recognise_motifs(load_base(tiny_base, "cpu"), 0, per_motif=3)
    real, generated = (np.mean(list(shares[name].values())) for name in ("real", "generated"))
    assert set(shares["real"]) == set(MOTIFS)
    assert real > 0.5 and generated < 0.25


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
