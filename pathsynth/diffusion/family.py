"""The family of base models that pathsynth supports, recognized by its configs before weights are downloaded or loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathsynth.core.errors import ModelError
from pathsynth.core.io import read_json

INDEX = "model_index.json"
CONFIGS = (INDEX, "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
# Inputs of a UNet beside latents, time step and text, as in Stable Diffusion XL, upscalers and image variations.
EXTRA_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SUPPORTED = "supported are text-to-image models with the architecture of Stable Diffusion 1.x and 2.x, in diffusers' layout"


def check_family(folder: Path) -> None:
    """Raises a ModelError if a folder in diffusers' layout holds a base of a family that pathsynth does not support.

    Parts that are missing are left to the caller, unless the base is of a family without them.

    Raises:
        ModelError: names the pipeline and what is different.
        DataError: a config is damaged.
    """
    index = read_json(folder / INDEX)
    parts = (folder / path for path in CONFIGS[1:])
    configs = {path.parent.name: read_json(path) for path in parts if path.is_file()}
    if problem := next(_find_differences(index, configs), None):
        name = index.get("_class_name", "model without a pipeline class")
        raise ModelError(folder, f"is a {name} that {problem}; {SUPPORTED}")


def _find_differences(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for part, expected in CLASSES.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found != expected:
            yield f"has a {found} as its {part}, not a {expected}" if found else f"has no {part}"
    unet, vae, text, scheduler = (configs.get(part, {}) for part in ("unet", "vae", "text_encoder", "scheduler"))
    latents = vae.get("latent_channels", 4)
    for key, direction in (("in_channels", "reads"), ("out_channels", "returns")):
        if (count := unet.get(key, latents)) != latents:
            yield f"{direction} {count} channels in its UNet, but has latents of {latents}"
    for key in EXTRA_INPUTS:
        if unet.get(key) is not None:
            yield f"needs further inputs in its UNet ({key}: {unet[key]})"
    width, expected_width = text.get("hidden_size"), unet.get("cross_attention_dim")
    if None not in (width, expected_width) and width != expected_width:
        yield f"reads texts of width {expected_width}, while its text encoder makes {width}"
    if (kind := scheduler.get("prediction_type", PREDICTION_TYPES[0])) not in PREDICTION_TYPES:
        yield f"predicts {kind!r}, not {' or '.join(PREDICTION_TYPES)}"
    if kind == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
        yield "predicts epsilon at a zero terminal signal-to-noise ratio (rescale_betas_zero_snr), which needs v_prediction"
