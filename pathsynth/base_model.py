"""Loads the pretrained Stable Diffusion that LoRA starts from, and its text embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.errors import ModelError, one_line

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def load_base(folder: Path, device: str) -> StableDiffusionPipeline:
    """Loads a pipeline from a local folder in diffusers' layout: safetensors only, no code from the folder, float32.

    The safety checker stays off: it was trained on photographs and judges pink tissue at random.

    Raises:
        ModelError: the folder or a part of it is missing, or does not load.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging
    from safetensors import SafetensorError

    if not (folder / "model_index.json").is_file():
        raise ModelError(folder, "is no base model: it has no model_index.json; a folder in diffusers' layout is wanted")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(folder, f"lacks {', '.join(missing)}; a base has {', '.join(PARTS)}")
    logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(folder, f"does not load: {one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline.to(device)


def check_image_size(pipeline: StableDiffusionPipeline, image_size: int) -> None:
    """Raises ModelError where the UNet cannot work at `image_size` pixels."""
    halvings = len(pipeline.unet.config.block_out_channels) - 1
    step = pipeline.vae_scale_factor * 2**halvings
    if image_size % step:
        raise ModelError("dataset.image_size", f"{image_size} does not suit the base; allowed: multiples of {step}")


def embed(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """Text embeddings as the pipeline makes them, float32 (N, tokens, width).

    Raises:
        ModelError: a prompt has more tokens than the base reads, which the pipeline would cut without a word.
    """
    import torch

    most = pipeline.tokenizer.model_max_length
    for prompt in prompts:
        tokens = len(pipeline.tokenizer(prompt).input_ids)
        if tokens > most:
            raise ModelError("prompts", f"{prompt!r} has {tokens} tokens; the base reads {most}, start and end included")

    with torch.inference_mode():
        hidden, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, do_classifier_free_guidance=False)
    return hidden.clone()
