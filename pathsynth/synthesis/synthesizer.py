"""Images from a sentence: which tissue it names, drawn by base and LoRA, checked by the gate, tried again where it says no."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pathsynth import __version__
from pathsynth.core.errors import DataError, ParamsError, PathsynthError
from pathsynth.core.io import read_json, sha256_of
from pathsynth.core.params import Params, WeightDtype, load_params, lora_names, read_yaml, resolve_lora
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import CONFIG, WEIGHTS, attach_lora
from pathsynth.diffusion.base import base_name
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.settings import GenerationSettings, SamplerSettings
from pathsynth.synthesis.manifest import MOST_IMAGES
from pathsynth.synthesis.records import BY_GATE, DISCLAIMER, NOT_CHECKED, SAMPLING, STAND_IN_NOTICE, Record
from pathsynth.synthesis.sentences import is_name, match_label, one_line_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from pathsynth.classifiers.model import Classifier
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.slots import Slots

GATE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Artifacts:
    """What images are made with.

    Attributes:
        params: the selected benchmark and LoRA.
        beside: folder that relative paths in `params` are relative to.
        lora, gate: folders of the adapter and of the classifier that filters.
    """

    params: Params
    beside: Path
    lora: Path
    gate: Path


@dataclass(frozen=True)
class Synthetic:
    """What came of one sentence.

    Attributes:
        images: uint8 (N, H, W, 3).
        records: one for each image.
        wanted: how many were asked for.
        attempts: how many were drawn.
        limit: most attempts for each.
    """

    images: np.ndarray
    records: list[Record]
    wanted: int
    attempts: int
    limit: int


@dataclass(frozen=True)
class Asked:
    """What a sentence asks for: the prompt, and the number of the tissue, or None for free text."""

    prompt: str
    tissue: int | None


def find_artifacts(folder: Path, params: Path | None = None, lora: Path | None = None, gate: Path | None = None) -> Artifacts:
    """The artifacts in a folder that is laid out as this repository is, or in places of their own.

    Args:
        folder: has params.yaml, models/lora and models/gate, and what params.yaml names by a relative path, such as the base.
        params, lora, gate: where these are instead.

    Returns:
        What is there; `lora` in its params is the entry that the LoRA was trained with, whichever is selected.

    Raises:
        ParamsError: the parameters are missing or wrong.
        DataError: the LoRA is missing, with the commands that make it, or is of no entry of the parameters.
    """
    file = params or folder / "params.yaml"
    if not file.is_file():
        raise DataError(file, "is not there; name the folder of the artifacts with --artifacts, or the file with --params")
    lora = lora or folder / "models" / "lora"
    _check_trained(lora, "LoRA", "train_lora")
    return Artifacts(_params_of(lora, file), file.parent, lora, gate or folder / "models" / "gate")


def _params_of(lora: Path, file: Path) -> Params:
    """The parameters with the entry that a LoRA was trained with: after `git checkout params.yaml` another one is selected."""
    params, trained_with = load_params(file), read_json(lora / CONFIG)
    trained_with.pop("unet_sha256", None)
    tree = read_yaml(file)
    for name in (params.lora_name, *lora_names(file, tree)):
        with suppress(ParamsError, ValidationError):
            values = resolve_lora(file, tree, name)
            if LoraSettings.model_validate(values).model_dump() == trained_with:
                return replace(params, lora=values, lora_name=name)
    raise DataError(lora, f"was trained with settings that no entry of `loras` in {file} has; name its own with --params")


def synthesize(
    sentence: str,
    n: int = 1,
    *,
    artifacts: Path | Artifacts = Path(),
    seed: int | None = None,
    gate: bool = True,
    max_attempts: int | None = None,
) -> Synthetic:
    """Draws images of the tissue that a sentence names, and keeps those in which the gate sees it.

    For several sentences, one `Synthesizer` loads the models once.

    Args:
        sentence: such as "a histopathological image of an area with mucus", or a tissue's name alone.
        n: how many images are wanted, from 1 to MOST_IMAGES.
        artifacts: the folder of the artifacts, or what `find_artifacts` has found.
        seed: from 0 to 2**32 - 1, by default that of the parameters.
        gate: False draws any text, and asks no gate.
        max_attempts: most tries for each image, by default that of the parameters.

    Returns:
        The images that passed, which may be fewer than were wanted.

    Raises:
        PathsynthError: one line that says what is missing, wrong or not allowed.
    """
    found = artifacts if isinstance(artifacts, Artifacts) else find_artifacts(Path(artifacts))
    return Synthesizer(found).synthesize(sentence, n, seed=seed, gate=gate, max_attempts=max_attempts)


class Synthesizer:
    """Base, LoRA and gate, each loaded when it is first needed, and then once.

    Args:
        artifacts: what is loaded.
    """

    def __init__(self, artifacts: Artifacts):
        self.artifacts, self.params = artifacts, artifacts.params
        self.dataset = self.params.section("dataset", AnyDataset)
        self.generation = self.params.section("generation", GenerationSettings)
        self.base = self.params.section("base", BaseModelSettings)
        self._loaded: tuple[StableDiffusionPipeline, WeightDtype] | None = None

    def synthesize(
        self, sentence: str, n: int = 1, *, seed: int | None = None, gate: bool = True, max_attempts: int | None = None
    ) -> Synthetic:
        """As the function of this name. What is wrong with the request is said before anything is loaded."""
        from pathsynth.core.checkpoint import Saved
        from pathsynth.generation.filtering import generate_filtered, generate_unfiltered
        from pathsynth.generation.slots import Slots

        seed = self.params.seed if seed is None else seed
        limit = self.generation.max_attempts if max_attempts is None else max_attempts
        _check_range("n", n, 1, MOST_IMAGES)
        _check_range("seed", seed, 0, 2**32 - 1)
        _check_range("max_attempts", limit, 1, max(1000, self.generation.max_attempts))
        asked = self.asked(sentence, gate)
        if gate:
            _check_trained(self.artifacts.gate, "gate", "train_classifier@gate")
        dataset = self.dataset
        sampler = self._sampler(asked.prompt, self.generation.sampler, seed, dataset.image_size, dataset.channels)
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            # one tissue, so that a seed gives the same noise for every sentence
            slots = Slots(Saved(folder), 1, n, dataset.image_size, seed)
            if asked.tissue is None or not gate:
                generate_unfiltered(sampler, slots, sampler.batch_size)
                return self._unchecked(asked, slots)
            order = [asked.tissue, *(number for number in range(len(dataset.slugs)) if number != asked.tissue)]
            answers = self._gate.probabilities
            generate_filtered(sampler, lambda images: answers(images)[:, order], slots, limit, sampler.batch_size)
            return self._checked(asked, slots, [dataset.slugs[number] for number in order], limit)

    def again(self, records: Sequence[Record]) -> Synthetic:
        """Draws recorded images once more: on the CPU of one machine the same pixels.

        Returns:
            The images with their records. What the gate has said holds for the same pixels alone: an image that differs from
            the recorded one counts as not checked.

        Raises:
            DataError: they were drawn with another UNet or LoRA, are of a class that is not known, or not of one size.
        """
        for name, own in (("unet_sha256", self._unet_sha256), ("lora_sha256", self._lora_sha256)):
            for record in records:
                if (drawn_with := getattr(record, name)) != own:
                    problem = f"was drawn with weights whose {name} begins with {drawn_with[:12]}, and these have {own[:12]}"
                    raise DataError(record.file, problem)
        slugs = self.dataset.slugs
        for record in records:
            if record.tissue not in (None, *slugs):
                raise DataError(record.file, f"tissue: {record.tissue} is not known; known are: {', '.join(slugs)}")
        if len(sizes := {record.image_size for record in records}) > 1:
            raise DataError("the records", f"are of images of several sizes: {', '.join(map(str, sorted(sizes)))}")
        images = np.empty((len(records), *[sizes.pop()] * 2, 3), np.uint8)
        alike: dict[tuple, list[int]] = {}
        for place, record in enumerate(records):
            alike.setdefault(_sampling(record), []).append(place)
        for places in alike.values():
            images[places] = self._again([records[place] for place in places])
        return Synthetic(images, [_renewed(*each) for each in zip(records, images, strict=True)], len(images), len(images), 1)

    def _again(self, records: Sequence[Record]) -> np.ndarray:
        """Records that differ by their seeds alone."""
        from pathsynth.generation.slots import Attempt

        @dataclass(frozen=True, slots=True)
        class Recorded(Attempt):
            number: int

            def seed(self, seed: int) -> int:
                return self.number

        first = records[0]
        settings = self.generation.sampler.model_copy(update={name: getattr(first, name) for name in SAMPLING})
        sampler = self._sampler(first.prompt, settings, 0, first.image_size, first.channels)
        return sampler.draw_all([Recorded(0, slot, 0, record.seed) for slot, record in enumerate(records)])

    def asked(self, sentence: str, gate: bool = True) -> Asked:
        """What a sentence asks for. A tissue's name alone is given the prompt that the LoRA was trained with.

        Raises:
            SentenceError: the gate is to be asked, and the sentence names no tissue or several.
        """
        if not isinstance(sentence, str):
            raise PathsynthError(f"sentence: {sentence!r}: must be a text")
        labels, own = (
            self.dataset.label_names,
            self.params.section("prompts", Prompts).texts(self.params.lora["prompts"], self.dataset),
        )
        sentence = one_line_of(sentence, labels)
        for tissue, (label, prompt) in enumerate(zip(labels, own, strict=True)):
            if is_name(sentence, label) or sentence == prompt:
                return Asked(prompt, tissue)
        return Asked(sentence, match_label(sentence, labels) if gate else None)

    @cached_property
    def _base(self) -> Path:
        from pathsynth.diffusion.base import locate_base

        return locate_base(self.base, self.artifacts.beside)

    @cached_property
    def _device(self) -> str:
        from pathsynth.core.devices import pick_device

        return pick_device(self.params.deterministic)

    @cached_property
    def _unet_sha256(self) -> str:
        from pathsynth.diffusion.base import unet_sha256

        return unet_sha256(self._base, self.base.variant)

    @cached_property
    def _lora_sha256(self) -> str:
        return sha256_of(self.artifacts.lora / WEIGHTS)

    def _load(self) -> StableDiffusionPipeline:
        from pathsynth.diffusion.base import load_base

        pipeline = load_base(self._base, self._device, self.base.variant)
        attach_lora(pipeline, self.artifacts.lora, self._unet_sha256)
        return pipeline

    def _sampler(self, prompt: str, settings: SamplerSettings, seed: int, size: int, channels: int) -> Sampler:
        from pathsynth.generation.sampler import Sampler

        # a sampler rounds the weights to its format, from which there is no way back
        if self._loaded is None or self._loaded[1] != settings.weight_dtype:
            self._loaded = self._load(), settings.weight_dtype
        return Sampler(self._loaded[0], [prompt], settings, seed, size, channels)

    @cached_property
    def _gate(self) -> Classifier:
        from pathsynth.classifiers.model import load_classifier

        return load_classifier(self.artifacts.gate, self._device, self.dataset.slugs)

    @cached_property
    def _gate_sha256(self) -> str:
        return sha256_of(self.artifacts.gate / GATE_WEIGHTS)

    def _checked(self, asked: Asked, slots: Slots, slugs: Sequence[str], limit: int) -> Synthetic:
        table = slots.table(slugs)
        images = slots.accepted()[0][:]
        rows = table[table["accepted"] == 1].to_dict("records")
        records = [
            self._record(asked, image, number, row["seed"], row["attempt"], (row["predicted"], row["confidence"]))
            for number, (image, row) in enumerate(zip(images, rows, strict=True), 1)
        ]
        return Synthetic(images, records, slots.per_tissue, len(table), limit)

    def _unchecked(self, asked: Asked, slots: Slots) -> Synthetic:
        from pathsynth.generation.filtering import first_attempts

        images = slots.raw()[0][:]
        attempts = first_attempts(1, slots.per_tissue)
        records = [
            self._record(asked, image, number, attempt.seed(slots.seed), 0, None)
            for number, (image, attempt) in enumerate(zip(images, attempts, strict=True), 1)
        ]
        return Synthetic(images, records, len(images), len(images), 1)

    def _record(
        self, asked: Asked, image: np.ndarray, number: int, seed: int, attempt: int, seen: tuple[str, float] | None
    ) -> Record:
        dataset, settings = self.dataset, self.generation.sampler
        slug = None if asked.tissue is None else dataset.slugs[asked.tissue]
        return Record(
            file=f"{slug or 'image'}_{number:04d}.png",
            tissue=slug,
            prompt=asked.prompt,
            seed=int(seed),
            attempt=int(attempt),
            checked=BY_GATE if seen else NOT_CHECKED,
            predicted=seen[0] if seen else None,
            confidence=round(float(seen[1]), 4) if seen else None,
            **{name: getattr(settings, name) for name in SAMPLING},
            image_size=dataset.image_size,
            channels=dataset.channels,
            benchmark=self.params.benchmark_name,
            base=base_name(self.base),
            lora=self.params.lora_name,
            unet_sha256=self._unet_sha256,
            lora_sha256=self._lora_sha256,
            gate_sha256=self._gate_sha256 if seen else None,
            pixels_sha256=pixels_sha256(image),
            made_with=_versions(),
            notice=STAND_IN_NOTICE if dataset.stand_in else DISCLAIMER,
        )


def pixels_sha256(image: np.ndarray) -> str:
    """Checksum of an image's pixels, uint8 (H, W, 3)."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _sampling(record: Record) -> tuple:
    """What all images of one sampler share."""
    return tuple(getattr(record, name) for name in ("prompt", "channels", *SAMPLING))


def _renewed(record: Record, image: np.ndarray) -> Record:
    """The record of an image that was drawn again."""
    pixels = pixels_sha256(image)
    said: dict[str, Any] = {"made_with": _versions(), "pixels_sha256": pixels}
    if pixels != record.pixels_sha256:
        said |= {"checked": NOT_CHECKED, **dict.fromkeys(("predicted", "confidence", "gate_sha256"))}
    return record.model_copy(update=said)


def _check_trained(folder: Path, what: str, stage: str) -> None:
    if not folder.is_dir():
        remedy = f"`make repro` or `dvc repro {stage}` trains one, `dvc pull` fetches one from a remote"
        raise DataError(folder, f"is not there: no trained {what} yet; {remedy}")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise PathsynthError(f"{name}: {value!r}: must be a whole number from {least} to {most}")


@cache  # asked for every image
def _versions() -> str:
    from pathsynth.core.environment import versions

    found = versions()
    named: dict[str, str] = {"pathsynth": __version__, "diffusers": found["diffusers"], "torch": found["torch"]}
    return ", ".join(f"{name} {version}" for name, version in named.items())
