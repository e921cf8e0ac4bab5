"""The LoRA adapter of a UNet: created with peft, saved in the format that stock diffusers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.core.errors import DataError, ModelError, one_line
from pathsynth.core.io import os_error_reason, read_json, write_json, write_safetensors, write_text
from pathsynth.core.params import Section
from pathsynth.diffusion.settings import AdapterSettings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

WEIGHTS = "pytorch_lora_weights.safetensors"
CONFIG = "lora_config.json"
CARD = "README.md"
# The entry of the weights' metadata in which diffusers expects peft's config.
METADATA = "lora_adapter_metadata"
# Folder of the adapters of earlier steps, each named after its step.
SNAPSHOTS = "snapshots"
# peft's default name of an adapter.
ADAPTER = "default"


def add_lora(unet: UNet2DConditionModel, settings: AdapterSettings) -> list[torch.nn.Parameter]:
    """Freezes the UNet and adds an adapter (Hu et al. 2021; DoRA: Liu et al. 2024; rsLoRA: Kalajdzievski 2023).

    Returns:
        The trainable parameters, float32.

    Raises:
        ModelError: a target module matches no layer.
    """
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    layers = [name for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            endings = sorted({_shorten(name) for name in layers})
            raise ModelError(
                "adapter.target_modules", f"{target!r} matches no layer of the UNet; examples: {', '.join(endings)}"
            )
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=list(settings.target_modules),
            lora_dropout=settings.lora_dropout,
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
        )
    )
    # in bf16 small optimizer steps would be rounded away
    cast_training_params(unet, torch.float32)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def save_lora(folder: Path, unet: UNet2DConditionModel, settings: Section, card: str, unet_sha256: str) -> None:
    """Writes `pytorch_lora_weights.safetensors`, `lora_config.json` and a model card.

    The metadata of the weights hold rank, alpha, DoRA and rsLoRA; without them loaders assume that alpha equals the rank.

    Args:
        folder: output folder.
        unet: the UNet with its adapter.
        settings: the LoRA configuration.
        card: text of the model card.
        unet_sha256: checksum of the base's UNet; `attach_lora` rejects any other base.
    """
    from peft.utils import get_peft_model_state_dict

    config = unet.peft_config[ADAPTER].to_dict()
    # peft keeps the targets in a set, whose order differs between runs
    metadata = {f"unet.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    # peft's names, because diffusers' converter renames only attention layers, and its loader ignores mixed names
    layers = {f"unet.{name}": value for name, value in get_peft_model_state_dict(unet).items()}
    # a single entry, because safetensors writes several entries in random order
    write_safetensors(folder / WEIGHTS, layers, {METADATA: json.dumps(metadata, sort_keys=True)})
    write_json(folder / CONFIG, {**settings.model_dump(), "unet_sha256": unet_sha256})
    write_text(folder / CARD, card)


def clear_lora(folder: Path) -> None:
    """Removes an adapter and its snapshots, so that no adapter ever lies beside snapshots of another training.

    Raises:
        DataError: a file cannot be removed.
    """
    try:
        for name in (WEIGHTS, CONFIG, CARD):
            (folder / name).unlink(missing_ok=True)
        if (folder / SNAPSHOTS).is_dir():
            shutil.rmtree(folder / SNAPSHOTS)
    except OSError as error:
        raise DataError(folder, f"could not be cleared: {os_error_reason(error)}") from error


def attach_lora(pipeline: StableDiffusionPipeline, folder: Path, unet_sha256: str) -> None:
    """Loads an adapter with stock diffusers and merges it into the weights, which makes every UNet call cheaper.

    Args:
        pipeline: the base.
        folder: a folder written by `save_lora`.
        unet_sha256: checksum of the pipeline's UNet.

    Raises:
        ModelError: the adapter is missing, damaged, or was trained on a different base.
    """
    from safetensors import SafetensorError, safe_open

    path = find_weights(folder)
    _check_base(folder, unet_sha256)
    try:
        pipeline.load_lora_weights(folder, weight_name=WEIGHTS)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(path, f"does not fit the base: {one_line(error)}") from error
    if not pipeline.get_list_adapters().get("unet"):
        raise ModelError(path, "holds no weights for the UNet")
    loaded = {name for name, _ in pipeline.unet.named_parameters() if ".lora_" in name}
    with safe_open(path, "pt") as file:
        saved = set(file.keys())
        if damaged := next((name for name in sorted(saved) if not file.get_tensor(name).isfinite().all()), None):
            raise ModelError(folder / WEIGHTS, f"holds NaN or infinite numbers in {damaged}; run the stage train_lora again")
    if len(loaded) != len(saved):
        raise ModelError(path, f"does not fit the base, which uses {len(loaded)} of its {len(saved)} tensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def find_weights(folder: Path) -> Path:
    """Returns the path of an adapter's weights.

    Raises:
        ModelError: the folder has none.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(folder, f"has no {WEIGHTS}; run the stage train_lora first")
    return path


def find_snapshot(folder: Path, step: int | None) -> Path:
    """Returns the folder of the adapter after `step` optimizer steps, or `folder` for None, the end of the training.

    Raises:
        ModelError: the snapshot does not exist, and the message lists those that do; or it belongs to another training than the
            adapter in `folder`.
    """
    if step is None:
        return folder
    find_weights(folder)
    steps = sorted(int(path.parent.name) for path in (folder / SNAPSHOTS).glob(f"*/{WEIGHTS}") if path.parent.name.isdecimal())
    if step not in steps:
        allowed = ", ".join([*map(str, steps), "null for the end of the training"])
        raise ModelError("generation.snapshot", f"{folder} has none of step {step}; allowed: {allowed}")
    snapshot = folder / SNAPSHOTS / str(step)
    if _read_config(snapshot) != _read_config(folder):
        raise ModelError(snapshot, f"belongs to another training than {folder / WEIGHTS}; run the stage train_lora again")
    return snapshot


def _read_config(folder: Path) -> dict[str, Any]:
    """Reads the settings of a saved adapter and the checksum of its base's UNet."""
    try:
        return read_json(folder / CONFIG)
    except DataError as error:
        raise ModelError(folder, f"is not a saved LoRA: {error}") from error


def _check_base(folder: Path, unet_sha256: str) -> None:
    """Raises a ModelError unless the adapter was trained on the UNet with this checksum."""
    trained_on = _read_config(folder).get("unet_sha256")
    if trained_on != unet_sha256:
        raise ModelError(
            folder,
            f"was trained on a different base (SHA-256 of its UNet {str(trained_on)[:12]}, here {unet_sha256[:12]}); "
            "select that base, or run the stage train_lora again",
        )


def _shorten(name: str) -> str:
    """The last part of a module's name, or the last two if the last is a number (`to_out.0`)."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
