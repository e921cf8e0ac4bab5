"""The LoRA adapter: stock diffusers loads it, and a file that does not belong to the base is a one-line error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import same_pixels, sample_images, save_random_lora, tiny_lora
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from pathsynth.core.errors import ModelError
from pathsynth.diffusion.adapter import WEIGHTS, add_lora, attach_lora
from pathsynth.diffusion.base import load_base, unet_sha256
from pathsynth.finetuning.settings import LoraSettings


def attach_error(base: Path, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        attach_lora(load_base(base, "cpu"), folder, unet_sha256(base))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("adapter", [{"lora_alpha": 9.0}, {"use_rslora": True, "rank": 3}, {"use_dora": True}], ids=str)
def test_stock_diffusers_gives_the_same_images(adapter, tiny_base, tmp_path):
    images = sample_images(save_random_lora(tiny_base, tmp_path, **adapter))
    stock = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    assert not same_pixels(images, sample_images(stock), bound=3), "the adapter changes nothing"
    stock.load_lora_weights(tmp_path)
    assert same_pixels(images, sample_images(stock))
    merged = load_base(tiny_base, "cpu")
    attach_lora(merged, tmp_path, unet_sha256(tiny_base))
    assert same_pixels(images, sample_images(merged))


def test_target_that_matches_no_layer_is_named(tiny_base):
    settings = LoraSettings.model_validate(tiny_lora(target_modules=["to_q", "to_x"]))
    with pytest.raises(ModelError, match=r"target_modules: 'to_x' matches no layer of the UNet; examples: .*to_k"):
        add_lora(load_base(tiny_base, "cpu").unet, settings.adapter)


class TestUnusableAdapter:
    def test_missing_file_is_one_line_error(self, tiny_base, tmp_path):
        assert f"has no {WEIGHTS}; run the stage train_lora first" in attach_error(tiny_base, tmp_path)

    def test_adapter_of_another_base_is_refused(self, tiny_base, tmp_path):
        save_random_lora(tiny_base, tmp_path)
        with pytest.raises(
            ModelError, match=r"was trained on a different base \(SHA-256 of its UNet [0-9a-f]{12}, here ffffffffffff\)"
        ):
            attach_lora(load_base(tiny_base, "cpu"), tmp_path, "f" * 64)

    def test_damaged_weights_are_one_line_error(self, tiny_base, tmp_path):
        save_random_lora(tiny_base, tmp_path)
        (tmp_path / WEIGHTS).write_bytes(b"no safetensors")
        assert "does not fit the base" in attach_error(tiny_base, tmp_path)

    def test_options_of_a_later_peft_are_one_line_error(self, tiny_base, tmp_path):
        save_random_lora(tiny_base, tmp_path)
        metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.from_tomorrow": 1})}
        save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata)
        assert "does not fit the base" in attach_error(tiny_base, tmp_path)
