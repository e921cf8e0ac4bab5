"""Conversion of an adapter to the format of kohya's sd-scripts, which ComfyUI and AUTOMATIC1111 read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pathsynth.core.errors import ModelError
from pathsynth.core.io import catch_read_errors, check_json_object, write_safetensors
from pathsynth.core.params import Positive, Section, validate
from pathsynth.diffusion.adapter import METADATA, attach_lora, find_weights

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
DESCRIPTION = "Research only. Not for diagnosis. Every image made with it is synthetic."


class Scaling(Section):
    """What decides how an adapter is added to the weights, in peft's terms."""

    lora_alpha: Positive
    use_rslora: bool
    use_dora: bool


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], Scaling]:
    """Reads an adapter that `save_lora` wrote.

    Returns:
        The tensors, `unet.LAYER.lora_A.weight` (rank, in) or (rank, in, k, k) and `unet.LAYER.lora_B.weight` (out, rank) or
        (out, rank, 1, 1), for DoRA also `unet.LAYER.lora_magnitude_vector`; and their scaling.

    Raises:
        DataError: the file is damaged.
        ModelError: there is no adapter, it has no metadata, or other tensors.
        ParamsError: the metadata lack a value.
    """
    from safetensors import safe_open

    path = find_weights(folder)
    with catch_read_errors(path, "a .safetensors file"), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA)
        if text is None:
            raise ModelError(path, f"has no metadata ({METADATA}), so its scale is unknown; run the stage train_lora again")
        metadata = check_json_object(json.loads(text), path)
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    scaling = validate(path, "unet", Scaling, {key: metadata.get(f"unet.{key}") for key in Scaling.model_fields})
    parts = (DOWN, UP, MAGNITUDE) if scaling.use_dora else (DOWN, UP)
    layers = [name.removesuffix(DOWN) for name in tensors if name.startswith("unet.") and name.endswith(DOWN)]
    if not layers or set(tensors) != {layer + part for layer in layers for part in parts}:
        raise ModelError(path, f"does not hold exactly {', '.join(parts)} of UNet layers; run the stage train_lora again")
    return tensors, scaling


def convert_to_kohya(tensors: dict[str, torch.Tensor], scaling: Scaling) -> dict[str, torch.Tensor]:
    """Renames a LoRA's tensors to `lora_unet_LAYER.lora_down.weight` and `.lora_up.weight`, and adds `.alpha`.

    Readers add alpha / rank * up @ down to the weights. For rsLoRA, scaled by lora_alpha / sqrt(rank), alpha is therefore
    lora_alpha * sqrt(rank).

    Args:
        tensors: from `read_adapter`, without DoRA.
        scaling: from `read_adapter`.
    """
    import torch
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    converted = convert_state_dict_to_kohya(tensors)
    for name, rank in converted.items():
        if name.endswith(".alpha"):
            # diffusers writes the rank, which means a scale of 1
            converted[name] = torch.tensor(scaling.lora_alpha * (math.sqrt(rank) if scaling.use_rslora else 1))
    return converted


def compute_differences(pipeline: StableDiffusionPipeline, folder: Path, unet_sha256: str) -> dict[str, torch.Tensor]:
    """Merges an adapter into the pipeline, and returns what it adds to each weight as `lora_unet_LAYER.diff`.

    This form is for DoRA, because no program applies a `.dora_scale` as peft does. peft divides by the norms of the rows of
    W + scale * up @ down, AUTOMATIC1111 by those of its columns, and ComfyUI (August 2026) by those of the rows of W. diffusers
    drops it.

    Args:
        pipeline: the base.
        folder: a folder written by `save_lora`.
        unet_sha256: checksum of the pipeline's UNet.

    Raises:
        ModelError: as `attach_lora`.
    """
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    attach_lora(pipeline, folder, unet_sha256)
    return {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}.diff": weight - before[name]
        for name, weight in pipeline.unet.state_dict().items()
        if not weight.equal(before[name])
    }


def write_kohya(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes converted tensors with a disclaimer in the metadata.

    The rank and alpha that interfaces show (`ss_network_dim`, `ss_network_alpha`) are only in the tensors: safetensors writes
    several entries of metadata in random order, and the same export must give the same bytes.

    Raises:
        DataError: the file cannot be written.
    """
    write_safetensors(path, tensors, {"modelspec.description": DESCRIPTION})
