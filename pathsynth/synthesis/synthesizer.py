"""Images from a sentence: match it to a tissue, sample with base and LoRA, and retry what the gate rejects."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pathsynth import __version__
from pathsynth.classifiers.model import WEIGHTS as GATE_WEIGHTS
from pathsynth.core.errors import DataError, ParamsError, PathsynthError
from pathsynth.core.io import compute_sha256, read_json
from pathsynth.core.params import Device, load_params, lora_names, read_yaml, resolve_lora
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import CONFIG, WEIGHTS, attach_lora
from pathsynth.diffusion.base import base_name, load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts, PromptSet
from pathsynth.finetuning.settings import LoraSettings, drop_records
from pathsynth.generation.settings import GenerationSettings, read_generation
from pathsynth.synthesis.manifest import MAX_IMAGES
from pathsynth.synthesis.records import BY_GATE, DISCLAIMER, NOT_CHECKED, SAMPLING, STAND_IN_NOTICE, Record
from pathsynth.synthesis.sentences import is_label, match_label, normalize_sentence

if TYPE_CHECKING:
    import pandas as pd
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


@dataclass(frozen=True)
class SyntheticImages:
    """The result of a request.

    Attributes:
        images: uint8 (N, H, W, 3).
        records: the provenance of each image.
        requested: number of requested images.
        attempted: number of sampled images.
    """

    images: np.ndarray
    records: list[Record]
    requested: int
    attempted: int


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
    _check_trained(lora_folder, "LoRA", "train_lora")
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


def synthesize(
    sentence: str,
    n: int = 1,
    *,
    artifacts: Path | Artifacts = Path(),
    seed: int | None = None,
    gate: bool = True,
    max_attempts: int | None = None,
) -> SyntheticImages:
    """Synthesizes images of the tissue that a sentence names, and keeps those that the gate accepts.

    Args:
        sentence: for example "a histopathological image of an area with mucus". A bare tissue name is expanded to its training
            prompt.
        n: number of images, from 1 to MAX_IMAGES.
        artifacts: folder of the artifacts, or the result of `load_artifacts`, which loads the models once for many calls.
        seed: from 0 to 2**32 - 1; by default that of the parameters. It gives the same noise for every sentence.
        gate: False accepts any text and does not filter.
        max_attempts: limit of attempts per image; by default that of the parameters.

    Returns:
        The accepted images, which may be fewer than requested.

    Raises:
        SentenceError: if the sentence does not name exactly one tissue and `gate` is True.
        PathsynthError: if an artifact is missing or damaged, or `n` is out of range.
    """
    from pathsynth.core.checkpoint import Checkpoint
    from pathsynth.generation.filtering import generate_filtered, generate_unfiltered
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.slots import Slots

    if not isinstance(n, int) or not 1 <= n <= MAX_IMAGES:
        raise PathsynthError(f"n: {n!r}; allowed: whole numbers from 1 to {MAX_IMAGES}")
    artifacts = artifacts if isinstance(artifacts, Artifacts) else load_artifacts(Path(artifacts))
    dataset, generation = artifacts.dataset, artifacts.generation
    seed = artifacts.seed if seed is None else seed
    prompt, tissue = expand_prompt(sentence, artifacts, gate)
    if gate:
        _check_trained(artifacts.gate_folder, "gate", "train_classifier@gate")
    sampler = Sampler(artifacts.pipeline, [prompt], generation.sampler, seed, dataset.image_size, dataset.channels)
    # the slots have a single tissue, so that a seed gives the same noise for every sentence
    order = sorted(range(len(dataset.slugs)), key=lambda label: label != tissue)
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        slots = Slots(Checkpoint(folder), 1, n, dataset.image_size, seed)
        if gate:
            classify = artifacts.gate.probabilities
            limit = generation.filter.max_attempts if max_attempts is None else max_attempts
            generate_filtered(sampler, lambda images: classify(images)[:, order], slots, limit, sampler.batch_size)
        else:
            generate_unfiltered(sampler, slots, sampler.batch_size)
        table = slots.table([dataset.slugs[label] for label in order])
        images = np.array((slots.accepted() if gate else slots.raw())[0])
    rows = table[table["accepted"] == 1] if gate else table
    return SyntheticImages(images, _make_records(artifacts, prompt, tissue, images, rows), n, len(table))


def redraw(records: Sequence[Record], *, artifacts: Path | Artifacts = Path()) -> SyntheticImages:
    """Redraws recorded images. On the same CPU the pixels are the same.

    Returns:
        The images and their records. An image whose pixels differ from the recorded ones counts as not checked.

    Raises:
        DataError: if UNet or LoRA differ from the recorded ones, a tissue is unknown, or the images differ in size.
    """
    artifacts = artifacts if isinstance(artifacts, Artifacts) else load_artifacts(Path(artifacts))
    _check_records(records, artifacts)
    size = records[0].image_size
    images = np.empty((len(records), size, size, 3), np.uint8)
    groups: dict[tuple, list[int]] = {}
    for index, record in enumerate(records):
        key = tuple(getattr(record, name) for name in ("prompt", "channels", *SAMPLING))
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        images[indices] = _redraw_group([records[index] for index in indices], artifacts)
    made_with = _format_versions()
    redrawn = [_update_record(record, image, made_with) for record, image in zip(records, images, strict=True)]
    return SyntheticImages(images, redrawn, len(images), len(images))


def expand_prompt(sentence: str, artifacts: Artifacts, gate: bool = True) -> tuple[str, int | None]:
    """Returns the prompt for a sentence and the label of its tissue, None for free text.

    Raises:
        SentenceError: if `gate` is True and the sentence does not name exactly one tissue.
    """
    labels = artifacts.dataset.label_names
    sentence = normalize_sentence(sentence, labels)
    for tissue, (label, prompt) in enumerate(zip(labels, artifacts.prompts, strict=True)):
        if is_label(sentence, label) or sentence == prompt:
            return prompt, tissue
    return sentence, match_label(sentence, labels) if gate else None


def compute_pixels_sha256(image: np.ndarray) -> str:
    """Returns the SHA-256 of an image's pixels, uint8 (H, W, 3)."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


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


def _check_records(records: Sequence[Record], artifacts: Artifacts) -> None:
    slugs, sizes = artifacts.dataset.slugs, sorted({record.image_size for record in records})
    checksums = {"unet_sha256": artifacts.unet_sha256, "lora_sha256": compute_sha256(artifacts.lora_folder / WEIGHTS)}
    for record in records:
        for name, actual in checksums.items():
            recorded = getattr(record, name)
            if recorded != actual:
                raise DataError(
                    record.file,
                    f"was generated with different weights: {name} {recorded[:12]}, these have {actual[:12]}; --lora and "
                    "--artifacts select others",
                )
        if record.tissue not in (None, *slugs):
            raise DataError(record.file, f"tissue: {record.tissue} is unknown; allowed: {', '.join(slugs)}")
    if len(sizes) != 1:
        found = ", ".join(map(str, sizes)) or "none"
        raise DataError("records", f"must all have the same image size, found: {found}; redraw the sizes separately")


def _redraw_group(records: Sequence[Record], artifacts: Artifacts) -> np.ndarray:
    """Redraws records that differ only in their seeds."""
    from pathsynth.generation.sampler import Sampler

    first, configured = records[0], artifacts.generation.sampler
    settings = configured.model_copy(update={name: getattr(first, name) for name in SAMPLING})
    # a sampler converts the weights to its format, which cannot be undone
    same_format = settings.weight_dtype == configured.weight_dtype
    pipeline = artifacts.pipeline if same_format else artifacts.load_pipeline()
    sampler = Sampler(pipeline, [first.prompt], settings, 0, first.image_size, first.channels)
    return sampler.sample([0] * len(records), [record.seed for record in records])


def _make_records(
    artifacts: Artifacts, prompt: str, tissue: int | None, images: np.ndarray, rows: pd.DataFrame
) -> list[Record]:
    """Records of images (N, H, W, 3) and their N rows in the table of attempts."""
    dataset, sampler = artifacts.dataset, artifacts.generation.sampler
    slug = None if tissue is None else dataset.slugs[tissue]
    checked = bool(rows["accepted"].any())
    shared = {
        "tissue": slug,
        "prompt": prompt,
        **{name: getattr(sampler, name) for name in SAMPLING},
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "benchmark": artifacts.benchmark,
        "base": base_name(artifacts.base),
        "lora": artifacts.lora,
        "unet_sha256": artifacts.unet_sha256,
        "lora_sha256": compute_sha256(artifacts.lora_folder / WEIGHTS),
        "checked": BY_GATE if checked else NOT_CHECKED,
        "gate_sha256": compute_sha256(artifacts.gate_folder / GATE_WEIGHTS) if checked else None,
        "made_with": _format_versions(),
        "notice": STAND_IN_NOTICE if dataset.stand_in else DISCLAIMER,
    }
    records = []
    for number, (image, row) in enumerate(zip(images, rows.to_dict("records"), strict=True), 1):
        own = {"file": f"{slug or 'image'}_{number:04d}.png", "seed": row["seed"], "attempt": row["attempt"]}
        if row["accepted"]:
            own |= {"predicted": row["predicted"], "confidence": row["confidence"]}
        records.append(Record(**own, **shared, pixels_sha256=compute_pixels_sha256(image)))
    return records


def _update_record(record: Record, image: np.ndarray, made_with: str) -> Record:
    """The record of a redrawn image; the gate's prediction holds only for the same pixels."""
    pixels = compute_pixels_sha256(image)
    update: dict[str, Any] = {"made_with": made_with, "pixels_sha256": pixels}
    if pixels != record.pixels_sha256:
        update |= {"checked": NOT_CHECKED, "predicted": None, "confidence": None, "gate_sha256": None}
    return record.model_copy(update=update)


def _check_trained(folder: Path, model: str, stage: str) -> None:
    if not folder.is_dir():
        remedy = f"train it with `make repro` or `dvc repro {stage}`, or fetch it with `dvc pull`"
        raise DataError(folder, f"does not exist: no trained {model}; {remedy}")


def _format_versions() -> str:
    from pathsynth.core.environment import package_versions

    versions = package_versions()
    return f"pathsynth {__version__}, diffusers {versions['diffusers']}, torch {versions['torch']}"
