"""The parts of a base: built, loaded and saved together."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.bundled_base import models
from pathsynth.bundled_base.settings import BaseSettings
from pathsynth.core.devices import unet_memory_format
from pathsynth.core.errors import ModelError
from pathsynth.core.io import read_json, write_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Parts:
    """The parts of a base."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel


def build_parts(settings: BaseSettings, captions: list[str], device: str) -> Parts:
    """Builds the untrained parts; their weights follow the seed."""
    import torch

    torch.manual_seed(settings.seed)
    tokenizer = models.build_tokenizer(captions, settings.textures)
    size = settings.textures.image_size
    vae = models.build_vae(settings.vae, size)
    latent_size = size // 2 ** (len(settings.vae.block_out_channels) - 1)
    text_encoder = models.build_text_encoder(tokenizer, settings.unet)
    unet = models.build_unet(settings.unet, settings.vae.latent_channels, latent_size)
    return Parts(_place(vae, device), tokenizer, _place(text_encoder, device), _place(unet, device))


def load_parts(folder: Path, settings: BaseSettings, device: str) -> Parts:
    """Loads the parts of a base in float32.

    Raises:
        ModelError: it does not load, or has other architectures than `settings`.
    """
    from pathsynth.diffusion.base import load_base

    pipeline = load_base(folder, "cpu")
    expected = build_parts(settings, [], "cpu")
    names = ("vae", "text_encoder", "unet")
    for name in names:
        shapes, wanted = (
            {key: value.shape for key, value in getattr(base, name).state_dict().items()} for base in (pipeline, expected)
        )
        # the vocabulary depends on the captions that the tokenizer was trained with
        different = [key for key in {**shapes, **wanted} if "token_embedding" not in key and shapes.get(key) != wanted.get(key)]
        if different:
            raise ModelError(folder, f"has another {name} than the settings: {sorted(different)[0]} differs")
    vae, text_encoder, unet = (_place(getattr(pipeline, name), device) for name in names)
    return Parts(vae, pipeline.tokenizer, text_encoder.train(), unet.train())


def save_pipeline(folder: Path, parts: Parts) -> None:
    """Saves the parts as a StableDiffusionPipeline folder with fp16 weights and no safety checker."""
    from diffusers import StableDiffusionPipeline

    vae, text_encoder, unet = (copy.deepcopy(part).cpu().half() for part in (parts.vae, parts.text_encoder, parts.unet))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=parts.tokenizer,
        unet=unet,
        scheduler=models.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # by default transformers loads the dtype on disk but diffusers float32, which a plain from_pretrained must not mix
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})
    # diffusers records where a part was loaded from
    for config in (folder / "unet" / "config.json", folder / "vae" / "config.json"):
        write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})


def _place(module: Any, device: str) -> Any:
    """Moves a part to the device."""
    return module.to(device, memory_format=unet_memory_format(device))
