"""Models and settings that synthesis needs: the trained LoRA with its base, prompts and gate."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pathsynth.core.errors import DataError, ParamsError
from pathsynth.core.io import read_json
from pathsynth.core.params import Device, load_params, lora_names, read_yaml, resolve_lora
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import CONFIG, attach_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts, PromptSet
from pathsynth.finetuning.settings import LoraSettings, drop_records
from pathsynth.generation.settings import GenerationSettings, read_generation

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from pathsynth.classifiers.model import Classifier


@dataclass(frozen=True)
class Artifacts:
    """Models and settings for synthesis. Models are loaded on first use, so that invalid requests fail early.

    Attributes:
        benchmark, lora: names of the benchmark and of the LoRA configuration.
        seed: default seed of the noise.
        device_choice: `device` of the parameters.
        deterministic: whether a GPU is restricted to deterministic kernels.
        dataset, base, generation: the sections.
        prompts: the prompts that the LoRA was trained with, in label order.
        folder: folder that the path of a local base starts from.
        lora_folder, gate_folder: folders of the adapter and of the classifier that filters.
    """

    benchmark: str
    lora: str
    seed: int
    device_choice: Device
    deterministic: bool
    dataset: AnyDataset
    base: BaseModelSettings
    generation: GenerationSettings
    prompts: tuple[str, ...]
    folder: Path
    lora_folder: Path
    gate_folder: Path

    @property
    def device(self) -> str:
        """The torch device."""
        from pathsynth.core.devices import pick_device

        return pick_device(self.device_choice, self.deterministic)

    @cached_property
    def base_folder(self) -> Path:
        """Folder of the base, downloaded if necessary."""
        return locate_base(self.base, self.folder)

    @cached_property
    def unet_sha256(self) -> str:
        """Checksum of the base's UNet."""
        return unet_sha256(self.base_folder, self.base.variant)

    @cached_property
    def pipeline(self) -> StableDiffusionPipeline:
        """The base with the LoRA, for the configured `weight_dtype`."""
        return self.load_pipeline()

    @cached_property
    def gate(self) -> Classifier:
        """The classifier that filters."""
        from pathsynth.classifiers.model import load_classifier

        return load_classifier(self.gate_folder, self.device, self.dataset.slugs)

    def load_pipeline(self) -> StableDiffusionPipeline:
        """Loads the base with the LoRA in float32."""
        pipeline = load_base(self.base_folder, self.device, self.base.variant)
        attach_lora(pipeline, self.lora_folder, self.unet_sha256)
        return pipeline


def load_artifacts(
    folder: Path = Path(), params: Path | None = None, lora: Path | None = None, gate: Path | None = None
) -> Artifacts:
    """Reads the settings of a trained LoRA and its gate.

    The LoRA configuration is the one that the LoRA was trained with, even if params.yaml selects a different one.

    Args:
        folder: has the layout of this repository: params.yaml, configs/, models/lora, models/gate.
        params, lora, gate: these paths, if they are elsewhere.

    Raises:
        ParamsError: if the parameters are invalid.
        DataError: if parameters or LoRA are missing, or no configuration matches the LoRA.
    """
    path = params or folder / "params.yaml"
    if not path.is_file():
        raise DataError(path, "does not exist; pass the folder of the artifacts as --artifacts, or the file as --params")
    lora_folder = lora or folder / "models" / "lora"
    check_trained(lora_folder, "LoRA", "train_lora")
    selected = load_params(path)
    lora_name, prompt_set = _match_configuration(lora_folder, path, selected.lora_name)
    selected = replace(selected, lora_name=lora_name, lora=resolve_lora(path, read_yaml(path), lora_name))
    dataset = selected.section("dataset", AnyDataset)
    return Artifacts(
        benchmark=selected.benchmark_name,
        lora=selected.lora_name,
        seed=selected.seeds.drawing,
        device_choice=selected.device,
        deterministic=selected.deterministic,
        dataset=dataset,
        base=selected.section("base", BaseModelSettings),
        generation=read_generation(selected),
        prompts=tuple(selected.section("prompts", Prompts).texts(prompt_set, dataset)),
        folder=selected.folder,
        lora_folder=lora_folder,
        gate_folder=gate or folder / "models" / "gate",
    )


def load_models(artifacts: Artifacts) -> None:
    """Loads base, LoRA and gate at once, for a program that should not start without them.

    Raises:
        PathsynthError: if one is missing or damaged.
    """
    check_trained(artifacts.gate_folder, "gate", "train_classifier@gate")
    # both are kept once they are read
    _ = artifacts.pipeline, artifacts.gate


def check_trained(folder: Path, model: str, stage: str) -> None:
    """Checks that a model's folder exists.

    Raises:
        DataError: if it does not; names the stage to run.
    """
    if not folder.is_dir():
        remedy = f"train it with `make repro` or `dvc repro {stage}`, or fetch it with `dvc pull`"
        raise DataError(folder, f"does not exist: no trained {model}; {remedy}")


def _match_configuration(lora: Path, path: Path, selected: str) -> tuple[str, PromptSet]:
    """Name and prompt set of the configuration that a LoRA was trained with; the selected one takes precedence."""
    recorded, tree = read_json(lora / CONFIG), read_yaml(path)
    recorded.pop("unet_sha256", None)

    def weight_values(settings: LoraSettings) -> dict[str, Any]:
        return drop_records(settings.model_dump(exclude={"fast_sampler"}))

    with suppress(ValidationError):
        # an earlier version may have had fewer options
        trained = weight_values(LoraSettings.model_validate(recorded))
        for name in (selected, *lora_names(path, tree)):
            with suppress(ParamsError, ValidationError):
                settings = LoraSettings.model_validate(resolve_lora(path, tree, name))
                if weight_values(settings) == trained:
                    return name, settings.prompts
    raise DataError(lora, f"was trained with settings that match no entry of `loras` in {path}; pass its own file as --params")
