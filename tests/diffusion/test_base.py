"""The base: a folder that is incomplete or mixed is a one-line error, and its image sizes are checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pathsynth.core.errors import ModelError
from pathsynth.diffusion.base import check_image_size, load_base
from pathsynth.finetuning.latents import latent_shape


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
