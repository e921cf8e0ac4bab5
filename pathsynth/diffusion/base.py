"""Finds and loads the pretrained Stable Diffusion that LoRA starts from, and makes its text embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.core.devices import catch_out_of_memory
from pathsynth.core.errors import ModelError, one_line
from pathsynth.core.hub import snapshot
from pathsynth.core.io import located, sha256_of, shown_path
from pathsynth.diffusion.settings import BaseModelSettings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


def locate_base(settings: BaseModelSettings, beside: Path) -> Path:
    """The folder of the base, fetched from the hub into its cache where it is not there yet.

    Only what the benchmark uses is fetched: configurations, tokenizer, and the weights of one variant as safetensors.

    Args:
        settings: a local folder, or a repository with its revision.
        beside: what a relative path is relative to.

    Raises:
        FetchError: the repository is missing, private, gated or out of reach, or the disk is full.
    """
    name = settings.pretrained_model_name_or_path
    if settings.revision is None:
        return located(beside, name)
    weights = [str(_weights(Path(part), settings.variant)) for part in WEIGHTS]
    wanted = ["model_index.json", "scheduler/*.json", "tokenizer/*", *(f"{part}/config.json" for part in WEIGHTS), *weights]
    otherwise = "or name a local folder, with base.revision: null"
    return snapshot(name, settings.revision, wanted, ["model_index.json", *weights], otherwise)


def load_base(folder: Path, device: str, variant: str | None = None) -> StableDiffusionPipeline:
    """Loads a pipeline from a local folder in diffusers' layout: safetensors only, no code from the folder, float32.

    The safety checker stays off: it was trained on photographs and judges pink tissue at random.

    Raises:
        ModelError: the folder or a part of it is missing, incomplete, or does not load.
        MemoryFault: it does not fit on the device.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging
    from safetensors import SafetensorError
    from transformers import CLIPTextModel
    from transformers.utils import logging as transformers_logging

    _check_parts(folder, variant)
    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    options = {"variant": variant, "dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        # by itself, because only so it tells of tensors that are missing, which it would make up
        text_encoder, found = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True, **options)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            text_encoder=text_encoder,
            **options,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(folder, f"does not load: {one_line(error)}") from error
    missing = [f"text_encoder: {name}" for name in found["missing_keys"]]
    for part in ("unet", "vae"):
        missing += [f"{part}: {name}" for name, value in getattr(pipeline, part).named_parameters() if value.is_meta]
    if missing:
        raise ModelError(folder, f"lacks {len(missing)} tensors, such as {missing[0]}: its weights are incomplete")
    length, most = pipeline.tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if length > most:
        raise ModelError(
            folder, f"its tokenizer makes up to {length} tokens and its text encoder reads {most}: not of one base"
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    with catch_out_of_memory("the base does not fit on the device; Stable Diffusion 1.5 takes a GPU of 8 GB or more"):
        return pipeline.to(device)


def unet_sha256(folder: Path, variant: str | None = None) -> str:
    """Checksum of the UNet's weights, which an adapter belongs to.

    Raises:
        DataError: the file cannot be read.
    """
    return sha256_of(_weights(folder / "unet", variant))


def check_image_size(pipeline: StableDiffusionPipeline, image_size: int) -> None:
    """Raises ModelError where VAE and UNet cannot work at `image_size` pixels.

    The latents need not be a multiple of anything (224 px are 28 x 28 for Stable Diffusion, and 7 x 7 two levels down), but the
    innermost level of the UNet must have a pixel left.
    """
    step = pipeline.vae_scale_factor
    least = step * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image_size % step or image_size < least:
        problem = f"{image_size} does not suit the base; allowed: multiples of {step} from {least}"
        raise ModelError("dataset.image_size", problem)


def embed(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """Text embeddings as the pipeline makes them, (N, tokens, width) in the format of its text encoder.

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


def _check_parts(folder: Path, variant: str | None) -> None:
    if not (folder / "model_index.json").is_file():
        wanted = "a folder in diffusers' layout is wanted, or with base.revision a repository of the hub"
        raise ModelError(folder, f"is no base model: it has no model_index.json; {wanted}")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    missing = missing or [
        str(path.relative_to(folder)) for part in WEIGHTS if not (path := _weights(folder / part, variant)).is_file()
    ]
    if missing:
        hint = "; base.variant names the weights to use, or null" if ".safetensors" in missing[0] else ""
        raise ModelError(folder, f"lacks {', '.join(missing)}; a base has {', '.join(PARTS)}{hint}")


def _weights(part: Path, variant: str | None) -> Path:
    """The weights of a part, under diffusers' or transformers' name for the variant."""
    return part / f"{WEIGHTS[part.name]}{f'.{variant}' if variant else ''}.safetensors"


BASE_LICENCES = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M"}
BUNDLED = "made by pathsynth, MIT"


def base_name(base: BaseModelSettings) -> str:
    """The base as a card names it: without the place of a local folder."""
    name = base.pretrained_model_name_or_path
    # it stands between backticks, where nothing but these is markup
    return f"{name} at {base.revision}" if base.revision else " ".join(shown_path(name).replace("`", "'").split())


def base_licence(base: BaseModelSettings) -> str:
    """The licence of the base's weights, as far as it is known."""
    name = base.pretrained_model_name_or_path
    known = BASE_LICENCES if base.revision else {"base": BUNDLED}
    return known.get(name, "that of its owner")
