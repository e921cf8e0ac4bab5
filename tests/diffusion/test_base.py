"""The base: a folder that is incomplete or mixed is a one-line error, its image sizes are checked, and it knows its prompts."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tiny_lora, tiny_tree, write_params
from safetensors.torch import load_file, save_file

from pathsynth.bundled_base import textures
from pathsynth.core.errors import ModelError, ParamsError
from pathsynth.core.params import config_names, read_yaml, validate
from pathsynth.data import labels
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import check_image_size, load_base, locate_base
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.finetuning.latents import latent_shape
from pathsynth.finetuning.settings import LoraSettings


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    """A copy of the base that a test may damage."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def load_error(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(folder, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDamagedBase:
    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
    def test_missing_part_is_named(self, part, base):
        shutil.rmtree(base / part)
        assert f"lacks {part}; a base has vae, unet" in load_error(base)

    def test_folder_in_another_layout_is_refused(self, base):
        (base / "model_index.json").unlink()
        assert "is not a diffusers model folder (model_index.json missing)" in load_error(base)

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_truncated_weights_are_one_line_error(self, part, base):
        weights = next((base / part).glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:1000])
        assert "does not load" in load_error(base)

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_missing_tensor_is_not_initialized_at_random(self, part, base):
        weights = next((base / part).glob("*.safetensors"))
        tensors = load_file(weights)
        del tensors[min(tensors)]
        save_file(tensors, weights, {"format": "pt"})
        assert f"lacks 1 tensors, such as {part}: " in load_error(base)

    def test_tokenizer_of_another_base_is_refused(self, base):
        config = base / "tokenizer" / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
        assert "its tokenizer makes 77 tokens, its text encoder reads 48" in load_error(base)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestOtherFamilies:
    """Each is what a real base of that family has in its configs; nothing may be loaded before it is refused."""

    @pytest.mark.parametrize(("pipeline", "config", "changes", "problem"), [
        ("StableDiffusionInpaintPipeline", "unet", {"in_channels": 9}, "reads 9 channels in its UNet, but has latents of 4"),
        ("StableDiffusionInstructPix2PixPipeline", "unet", {"in_channels": 8}, "reads 8 channels"),
        ("StableDiffusionDepth2ImgPipeline", "unet", {"in_channels": 5}, "reads 5 channels"),
        ("StableDiffusionUpscalePipeline", "unet", {"num_class_embeds": 1000}, "(num_class_embeds: 1000)"),
        ("StableDiffusionXLPipeline", "unet", {"addition_embed_type": "text_time"}, "(addition_embed_type: text_time)"),
        ("StableUnCLIPPipeline", "unet", {"class_embed_type": "projection"}, "(class_embed_type: projection)"),
        ("IFPipeline", "unet", {"out_channels": 6}, "returns 6 channels"),
        ("KandinskyV22Pipeline", "unet", {"encoder_hid_dim_type": "image_proj"}, "(encoder_hid_dim_type: image_proj)"),
        ("StableDiffusionPipeline", "vae", {"latent_channels": 16}, "reads 4 channels in its UNet, but has latents of 16"),
        ("StableDiffusionPipeline", "text_encoder", {"hidden_size": 64}, "while its text encoder makes 64"),
        ("StableDiffusionPipeline", "scheduler", {"prediction_type": "sample"}, "predicts 'sample', not epsilon"),
        ("StableDiffusionPipeline", "scheduler", {"prediction_type": "epsilon", "rescale_betas_zero_snr": True},
         "predicts epsilon at a zero terminal signal-to-noise ratio"),
    ])  # fmt: skip
    def test_base_with_another_architecture_is_refused_by_its_configs(self, pipeline, config, changes, problem, base):
        edit_json(base / "model_index.json", _class_name=pipeline)
        edit_json(next((base / config).glob("*config.json")), **changes)
        for weights in base.rglob("*.safetensors"):
            weights.unlink()
        with pytest.raises(ModelError) as caught:
            locate_base(BaseModelSettings(pretrained_model_name_or_path=str(base)), Path())
        assert f"is a {pipeline} that " in str(caught.value) and problem in str(caught.value)
        assert str(caught.value).endswith("Stable Diffusion 1.x and 2.x, in diffusers' layout")

    @pytest.mark.parametrize(("pipeline", "changes", "problem"), [
        ("FluxPipeline", {"unet": None, "transformer": ["diffusers", "FluxTransformer2DModel"]}, "has no unet"),
        ("StableDiffusion3Pipeline", {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]},
         "has a CLIPTextModelWithProjection as its text_encoder, not a CLIPTextModel"),
        ("PixArtAlphaPipeline", {"text_encoder": ["transformers", "T5EncoderModel"]}, "has a T5EncoderModel"),
        ("TextToVideoSDPipeline", {"unet": ["diffusers", "UNet3DConditionModel"]}, "has a UNet3DConditionModel"),
    ])  # fmt: skip
    def test_base_with_other_parts_is_refused(self, pipeline, changes, problem, base):
        edit_json(base / "model_index.json", _class_name=pipeline, **changes)
        shutil.rmtree(base / "unet")
        assert f"is a {pipeline} that {problem}" in load_error(base)

    def test_single_file_is_refused_with_the_way_to_convert_it(self, base):
        file = next((base / "unet").glob("*.safetensors"))
        assert (
            "is a file, not a diffusers model folder; convert it with StableDiffusionPipeline.from_single_file"
            in load_error(file)
        )

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused(self, number, base):
        weights = next((base / "vae").glob("*.safetensors"))
        tensors = load_file(weights)
        tensors["decoder.conv_in.bias"][0] = number
        save_file(tensors, weights, {"format": "pt"})
        assert "holds NaN or infinite numbers in vae: decoder.conv_in.bias" in load_error(base)


class TestImageSize:
    def test_stable_diffusion_works_at_224_pixels(self, sd15_base):
        pipeline = load_base(sd15_base, "cpu")
        check_image_size(pipeline, 224)
        assert (latent_shape(pipeline, 224), latent_shape(pipeline, 512)) == ((4, 28, 28), (4, 64, 64))

    @pytest.mark.parametrize(
        ("base", "sizes", "allowed"), [("tiny_base", [34, 4], "4 from 8"), ("sd15_base", [220, 56], "8 from 64")]
    )
    def test_other_sizes_are_refused(self, base, sizes, allowed, request):
        pipeline = load_base(request.getfixturevalue(base), "cpu")
        for size in sizes:
            with pytest.raises(ModelError, match=f"{size} does not fit the base; allowed: multiples of {allowed}"):
                check_image_size(pipeline, size)


PROMPTS = ROOT / "configs" / "prompts"


def read_prompts(name: str) -> Prompts:
    return validate(PROMPTS / f"{name}.yaml", "", Prompts, read_yaml(PROMPTS / f"{name}.yaml"))


class TestParaphrases:
    @pytest.mark.parametrize("name", config_names(PROMPTS))
    def test_no_sentence_occurs_twice(self, name):
        prompts = read_prompts(name)
        sentences = [*prompts.described.values(), *(text for pair in prompts.paraphrased.values() for text in pair)]
        assert len(sentences) == 3 * len(prompts.described) == len(set(sentences))

    def test_benchmarks_of_the_same_images_and_base_have_the_same_sentences(self):
        assert read_prompts("pathmnist64") == read_prompts("pathmnist_small")

    @pytest.mark.parametrize("name", ["phantom", "pathmnist64", "pathmnist_small"])
    def test_bundled_base_knows_every_word(self, name):
        """Captions of its textures have every word of the descriptions; none is cut off, and no tissue is named."""
        from transformers import CLIPTokenizer

        tokenizer, prompts = CLIPTokenizer.from_pretrained(ROOT / "base" / "tokenizer"), read_prompts(name)
        randoms = [np.random.default_rng(i) for i in range(3000)]
        captions = [textures.caption(textures.draw_recipe(random), random) for random in randoms]
        known = set(re.findall(r"\w+|,", " ".join(captions)))
        assert "adipose" not in known
        for slug, sentences in {**prompts.paraphrased, "described": list(prompts.described.values())}.items():
            for sentence in sentences:
                words = re.findall(r"\w+|,", sentence)
                assert set(words) <= known, slug
                assert len(tokenizer.tokenize(sentence)) + 2 <= tokenizer.model_max_length
                assert not set(words) & {word for label in labels.PATHMNIST for word in label.split()}, slug

    @pytest.mark.parametrize(
        ("sentences", "message"),
        [
            (["a"], r"paraphrased.mucus: \['a'\]: list should have at least 2 items"),
            (["a", "b", "c"], r"paraphrased.mucus: \[.*\]: list should have at most 2 items"),
            (["a", ""], "paraphrased.mucus.1: '': string should have at least 1 character"),
            (["a", "a"], "paraphrased.mucus: the sentences must differ from each other and from the described one"),
            (["a", "many pink mucus dots"], "paraphrased.mucus: the sentences must differ"),
            (None, "paraphrased: needs two sentences for each of adipose, .*; missing or unknown: mucus"),
        ],
    )
    def test_mistake_is_one_line_error(self, sentences, message, tmp_path):
        from pathsynth.cli.check import find_mistakes

        tree = copy.deepcopy(tiny_tree())
        paraphrased = tree["benchmarks"]["tiny"]["prompts"]["paraphrased"]
        if sentences is None:
            del paraphrased["mucus"]
        else:
            paraphrased["mucus"] = sentences
        (mistake,) = find_mistakes(write_params(tmp_path / "params.yaml", tree))
        assert re.search(message, str(mistake)) and "\n" not in str(mistake) and "configs/prompts/tiny.yaml" in str(mistake)

    def test_texts_are_side_by_side_in_the_order_of_labels(self):
        tree = tiny_tree()["benchmarks"]["tiny"]
        prompts, dataset = Prompts.model_validate(tree["prompts"]), validate("f", "", AnyDataset, tree["dataset"])
        texts = prompts.texts("paraphrased", dataset)
        assert len(texts) == 18 and texts[10:12] == prompts.paraphrased["smooth_muscle"]

    def test_no_lora_can_be_trained_with_them(self):
        with pytest.raises(ParamsError, match="prompts: 'paraphrased': input should be 'plain' or 'described'"):
            validate("f", "", LoraSettings, tiny_lora() | {"prompts": "paraphrased"})
