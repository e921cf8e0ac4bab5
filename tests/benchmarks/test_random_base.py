"""The base with random weights: the structure of Stable Diffusion, loadable by stock diffusers, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_base import MAX_TOKENS, build_parts, prompt_tokenizer, prompts, random_base
from pathsynth.core.errors import DataError


@pytest.fixture(scope="module", params=["sd15_small", "sd2_small"])
def written(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("random") / request.param
    random_base(folder, request.param)
    return request.param, folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("size", [64, 224])
def test_stock_pipeline_draws_finite_images(written, size):
    import torch
    from diffusers import StableDiffusionPipeline

    shape, folder = written
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "an area with adipose",
        height=size,
        width=size,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert image.shape == (1, size, size, 3) and np.isfinite(image).all() and image.std() > 0.01
    assert pipeline.scheduler.config.prediction_type == {"sd15_small": "epsilon", "sd2_small": "v_prediction"}[shape]
    assert pipeline.vae_scale_factor == 8 and pipeline.unet.config.use_linear_projection == (shape == "sd2_small")


def test_same_bytes_each_time_without_pickle_or_global_random_numbers(written, tmp_path):
    import torch

    shape, folder = written
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_base(tmp_path / "again", shape)
    assert torch.equal(torch.rand(3), expected)
    files = _files(folder)
    assert files == _files(tmp_path / "again")
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}


def test_format_and_variant_on_disk(tmp_path):
    from safetensors.torch import load_file

    random_base(tmp_path / "half", "sd15_small", variant="fp16")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert path.name.endswith(".fp16.safetensors")
        assert {str(tensor.dtype) for tensor in load_file(path).values()} == {"torch.float16"}


def test_committed_prompts_have_one_token_per_word():
    tokenizer = prompt_tokenizer()
    words = "a histopathological image of an area with colorectal adenocarcinoma epithelium"
    tokens = tokenizer(words).input_ids
    assert len(tokens) == len(words.split()) + 2
    # id 2 makes CLIPTextModel pool by an old rule
    assert tokens[-1] == tokenizer.eos_token_id != 2
    assert max(len(tokenizer(prompt).input_ids) for prompt in prompts()) < MAX_TOKENS


def test_full_shape_has_the_parameter_counts_of_stable_diffusion_1_5():
    import torch

    with torch.device("meta"):
        parts = build_parts("sd15", prompt_tokenizer())
    counts = {name: sum(p.numel() for p in parts[name].parameters()) for name in ("unet", "text_encoder", "vae")}
    assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert parts["vae"].config.scaling_factor == 0.18215


def test_folder_with_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        random_base(tmp_path, "sd15_small")
