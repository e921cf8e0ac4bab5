"""The pretrained Stable Diffusion that a LoRA is added to: finding, loading and checking it, and encoding prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.core.devices import catch_out_of_memory, unet_memory_format
from pathsynth.core.errors import ModelError, one_line
from pathsynth.core.hub import download_snapshot
from pathsynth.core.io import compute_sha256, portable_path, resolve_path
from pathsynth.diffusion.family import CONFIGS, INDEX, check_family
from pathsynth.diffusion.settings import BaseModelSettings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
BASE_LICENCES = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M"}
BUNDLED_LICENCE = "made by pathsynth, MIT"


def locate_base(settings: BaseModelSettings, relative_to: Path) -> Path:
    """Finds the folder of the base, downloading it from the hub if it is not in the hub's cache.

    Downloads only configs, tokenizer, and the safetensors weights of the selected variant.

    Args:
        settings: a local folder, or a repository with its revision.
        relative_to: folder that relative paths start from.

    Raises:
        FetchError: the repository is missing, private, gated or out of reach, or the disk is full.
        ModelError: it is not a base that pathsynth supports, found before its weights are downloaded.
    """
    name = settings.pretrained_model_name_or_path
    if settings.revision is None:
        folder = resolve_path(relative_to, name)
        _check_files(folder, settings.variant)
        return folder
    alternative = "or name a local folder, with base.revision: null"
    check_family(download_snapshot(name, settings.revision, CONFIGS, [INDEX], alternative))
    weights = [str(_weights_path(Path(part), settings.variant)) for part in WEIGHTS]
    wanted = [*CONFIGS, "scheduler/*.json", "tokenizer/*", *weights]
    return download_snapshot(name, settings.revision, wanted, [INDEX, *weights], alternative)


def load_base(folder: Path, device: str, variant: str | None = None) -> StableDiffusionPipeline:
    """Loads a float32 pipeline from a local folder in diffusers' layout; reads only safetensors and runs no code from it.

    The safety checker is not loaded: it was trained on photographs and flags pink tissue at random.

    Raises:
        ModelError: the folder is incomplete or cannot be loaded.
        OutOfMemory: the base does not fit on the device.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging
    from safetensors import SafetensorError
    from transformers import CLIPTextModel
    from transformers.utils import logging as transformers_logging

    _check_files(folder, variant)
    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    options = {"variant": variant, "dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        # loaded separately, because only then are missing tensors reported instead of initialized at random
        text_encoder, info = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True, **options)
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
    _check_loaded(folder, pipeline, info["missing_keys"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=unet_memory_format(torch.device(device).type))
    pipeline.vae.to(memory_format=torch.channels_last)
    with catch_out_of_memory("the base does not fit on the device; Stable Diffusion 1.5 takes a GPU of 8 GB or more"):
        return pipeline.to(device)


def unet_sha256(folder: Path, variant: str | None = None) -> str:
    """SHA-256 of the UNet's weights, which identifies the base of an adapter.

    Raises:
        DataError: the file cannot be read.
    """
    return compute_sha256(_weights_path(folder / "unet", variant))


def check_image_size(pipeline: StableDiffusionPipeline, image_size: int) -> None:
    """Raises a ModelError unless VAE and UNet support images of `image_size` pixels.

    The latent size may be odd at any level (224 px are 28 x 28 for Stable Diffusion, 7 x 7 two levels down), but the innermost
    level of the UNet needs at least one pixel.
    """
    step = pipeline.vae_scale_factor
    minimum = step * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image_size % step or image_size < minimum:
        problem = f"{image_size} does not fit the base; allowed: multiples of {step} from {minimum}"
        raise ModelError("dataset.image_size", problem)


def encode_prompts(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """Encodes prompts as the pipeline does, (N, tokens, width) in the dtype of its text encoder.

    Raises:
        ModelError: a prompt has more tokens than the base reads; the pipeline would truncate it silently.
    """
    import torch

    max_length = pipeline.tokenizer.model_max_length
    for prompt in prompts:
        tokens = len(pipeline.tokenizer(prompt).input_ids)
        if tokens > max_length:
            raise ModelError("prompts", f"{prompt!r} has {tokens} tokens; the base reads {max_length}, start and end included")

    with torch.inference_mode():
        hidden, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, do_classifier_free_guidance=False)
    return hidden.clone()


def base_name(base: BaseModelSettings) -> str:
    """The base's name for a card, without the directory of a local folder."""
    name = base.pretrained_model_name_or_path
    if base.revision:
        return f"{name} at {base.revision}"
    # cards show it between backticks
    return " ".join(portable_path(name).replace("`", "'").split())


def base_licence(base: BaseModelSettings) -> str:
    """The licence of the base's weights, if it is known."""
    licences = BASE_LICENCES if base.revision else {"base": BUNDLED_LICENCE}
    return licences.get(base.pretrained_model_name_or_path, "that of its owner")


def _check_files(folder: Path, variant: str | None) -> None:
    """Raises a ModelError for a base of another family, or one that names the missing files."""
    if folder.is_file():
        hint = "convert it with StableDiffusionPipeline.from_single_file and save_pretrained of diffusers"
        raise ModelError(folder, f"is a file, not a diffusers model folder; {hint}")
    if not (folder / INDEX).is_file():
        hint = "name one, or with base.revision a repository of the hub"
        raise ModelError(folder, f"is not a diffusers model folder ({INDEX} missing); {hint}")
    check_family(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    hint = ""
    if not missing:
        weights = [_weights_path(folder / part, variant) for part in WEIGHTS]
        missing = [str(path.relative_to(folder)) for path in weights if not path.is_file()]
        hint = "; base.variant names the weights to use, or null"
    if missing:
        raise ModelError(folder, f"lacks {', '.join(missing)}; a base has {', '.join(PARTS)}{hint}")


def _check_loaded(folder: Path, pipeline: StableDiffusionPipeline, missing_keys: list[str]) -> None:
    """Raises a ModelError for tensors that are missing or NaN, or a tokenizer and a text encoder of different bases."""
    missing = [f"text_encoder: {name}" for name in missing_keys]
    for part in ("unet", "vae"):
        missing += [f"{part}: {name}" for name, value in getattr(pipeline, part).named_parameters() if value.is_meta]
    if missing:
        raise ModelError(folder, f"lacks {len(missing)} tensors, such as {missing[0]}: its weights are incomplete")
    for part in WEIGHTS:
        for name, value in getattr(pipeline, part).named_parameters():
            if not value.sum().isfinite():
                raise ModelError(folder, f"holds NaN or infinite numbers in {part}: {name}; its weights are damaged")
    tokens, positions = pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings
    if tokens > positions:
        raise ModelError(
            folder,
            f"mixes parts of different bases: its tokenizer makes {tokens} tokens, its text encoder reads {positions}",
        )


def _weights_path(part: Path, variant: str | None) -> Path:
    """Path of a part's weights, under the names of diffusers and transformers."""
    return part / f"{WEIGHTS[part.name]}{f'.{variant}' if variant else ''}.safetensors"
