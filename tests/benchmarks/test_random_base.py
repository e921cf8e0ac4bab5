"""The base with random weights: Stable Diffusion's structure, loadable by everyone, the same bytes for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_base import MAX_TOKENS, build_parts, prompt_tokenizer, prompts, random_base
from pathsynth.core.errors import DataError

PREDICTIONS = {"sd15_small": "epsilon", "sd2_small": "v_prediction"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """For layers this small, threads that wait for one another cost more than they give, most of all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(PREDICTIONS))
def written(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("random") / request.param
    random_base(folder, request.param)
    return request.param, folder


def _stock(folder: Path, **options):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_stock_pipeline_draws_finite_pictures_at_64_and_224_pixels(written):
    import torch

    shape, folder = written
    pipeline = _stock(folder)
    assert pipeline.scheduler.config.prediction_type == PREDICTIONS[shape]
    assert pipeline.scheduler.config.clip_sample is False
    assert pipeline.vae_scale_factor == 8
    for size in (64, 224):
        image = pipeline(
            "an area with adipose",
            height=size,
            width=size,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        assert image.shape == (1, size, size, 3)
        assert np.isfinite(image).all() and image.std() > 0.01


def test_our_loader_takes_it_in_float32(written):
    import torch

    from pathsynth.diffusion.base import embed, load_base

    _, folder = written
    pipeline = load_base(folder, "cpu")
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    hidden = embed(pipeline, ["an area with mucus", ""])
    assert hidden.shape == (2, MAX_TOKENS, pipeline.unet.config.cross_attention_dim)
    assert not torch.equal(hidden[0], hidden[1])


def test_structures_differ_where_the_generations_of_stable_diffusion_differ():
    first, second = (build_parts(shape, prompt_tokenizer())["unet"].config for shape in PREDICTIONS)
    assert not first.use_linear_projection and second.use_linear_projection
    assert isinstance(first.attention_head_dim, int) and len(set(second.attention_head_dim)) == 4
    assert first.cross_attention_dim != second.cross_attention_dim
    assert first.down_block_types == second.down_block_types


def test_same_seed_same_bytes_and_no_pickle(written, tmp_path):
    shape, folder = written
    random_base(tmp_path / "again", shape)
    random_base(tmp_path / "other", shape, seed=1)
    files, again, other = _files(folder), _files(tmp_path / "again"), _files(tmp_path / "other")
    assert files == again
    assert {name for name in files if files[name] != other[name]} == {name for name in files if name.endswith(".safetensors")}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    assert sum(map(len, files.values())) < 10e6


def test_global_random_numbers_are_left_alone(tmp_path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_base(tmp_path / "base", "sd15_small")
    assert torch.equal(torch.rand(3), expected)


def test_variant_and_format_on_disk(tmp_path):
    import torch
    from safetensors import safe_open

    random_base(tmp_path / "half", "sd15_small", variant="fp16")
    random_base(tmp_path / "full", "sd15_small", dtype="fp32")
    weights = sorted((tmp_path / "half").rglob("*.safetensors"))
    assert len(weights) == 3 and all(path.name.endswith(".fp16.safetensors") for path in weights)
    for path, number_format in ((weights[0], torch.float16), (next((tmp_path / "full").rglob("*.safetensors")), torch.float32)):
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {number_format}  # noqa: SIM118
    assert _stock(tmp_path / "half", variant="fp16").text_encoder.dtype == torch.float32


def test_prompts_stay_under_the_limit_and_special_tokens_are_where_clip_looks_for_them():
    tokenizer = prompt_tokenizer()
    words = "a histopathological image of an area with colorectal adenocarcinoma epithelium"
    assert len(tokenizer(words).input_ids) == len(words.split()) + 2
    assert max(len(tokenizer(prompt).input_ids) for prompt in prompts()) < MAX_TOKENS
    assert len(tokenizer("a watercolour of an old lighthouse near the sea at dusk").input_ids) < MAX_TOKENS
    config = build_parts("sd15_small", tokenizer)["text_encoder"].config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(config, name) == getattr(tokenizer, name) < config.vocab_size
    assert tokenizer(words).input_ids[-1] == config.eos_token_id
    # the one id at which CLIPTextModel pools by an old rule
    assert config.eos_token_id != 2


def test_full_shape_has_the_parameters_of_stable_diffusion_1_5():
    import torch

    with torch.device("meta"):
        parts = build_parts("sd15", prompt_tokenizer())
    counts = {name: sum(p.numel() for p in parts[name].parameters()) for name in ("unet", "text_encoder", "vae")}
    assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert parts["text_encoder"].config.vocab_size == 49408


def test_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is not empty"):
        random_base(tmp_path, "sd15_small")
