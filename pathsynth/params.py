"""Typed parameters: params.yaml as validated objects, two selectors over named entries.

`load_params` reads the file, follows the selectors `benchmark` and `lora`, and validates the two selected entries. What is
wrong is one line that names file, key, value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pathsynth import labels
from pathsynth.errors import ParamsError, one_line

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
MixedPrecision = Literal["no", "bf16", "fp16"]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Section(BaseModel):
    """One section of a parameter file: no unknown keys, no defaults, no silent conversions, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class PhantomDataset(Section):
    """Tissue phantoms drawn from the seed; see `pathsynth.phantom`."""

    source: Literal["phantom"]
    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=8)]
    train_per_tissue: PositiveInt
    val_per_tissue: PositiveInt
    test_per_tissue: PositiveInt

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return True


class FileDataset(Section):
    """A local archive in MedMNIST's format; its images are resized to `image_size`.

    `path` is relative to the folder of the parameter file; `md5` (or null) is checked, and is how a changed file under the
    same name is noticed.
    """

    source: Literal["medmnist_file"]
    image_size: Annotated[int, Field(ge=8, le=512, multiple_of=8)]
    path: Annotated[str, Field(min_length=1)]
    md5: Md5 | None

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return False


class BaseModelSettings(Section):
    """The pretrained Stable Diffusion: a local folder in diffusers' layout, relative to the parameter file."""

    path: Annotated[str, Field(min_length=1)]


class Augmentation(Section):
    """Random changes of training images; shares and strengths, 0 for none."""

    flips: bool
    quarter_turns: bool
    stain: Annotated[float, Field(ge=0, le=0.5)]
    brightness: Annotated[float, Field(ge=0, le=0.5)]
    blur: Fraction


class ClassifierSettings(Section):
    """One classifier, gate or judge.

    `architecture` is a torchvision model name, `stem: small` (ResNets only) is a 3x3 convolution without pooling,
    `weights` is `imagenet` or `none`; `seed` is mixed with the global one so that gate and judge are trained apart.
    """

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    weights: Literal["none", "imagenet"]
    stem: Literal["standard", "small"]
    input_size: Annotated[int, Field(ge=16, le=512)]
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    weight_decay: NonNegative
    lr_scheduler: Literal["constant", "one_cycle"]
    label_smoothing: ShareBelowOne
    mixed_precision: Literal["no", "bf16"]
    augmentation: Augmentation
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _stem_fits(self) -> Self:
        if self.stem == "small" and not self.architecture.startswith("resnet"):
            raise ValueError(f"stem: 'small' is for ResNets, and architecture is {self.architecture!r}; allowed: 'standard'")
        return self


class Classifiers(Section):
    """The classifier that filters and the one that never does."""

    gate: ClassifierSettings
    judge: ClassifierSettings

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.gate.architecture == self.judge.architecture:
            raise ValueError(f"judge and gate are both {self.gate.architecture!r}; the judge must be another architecture")
        if self.gate.seed == self.judge.seed:
            raise ValueError(f"judge and gate both have seed {self.gate.seed}; the judge needs another")
        return self


class Prompts(Section):
    """The prompt sets: `plain` is one template with `{label}`, `described` a sentence per tissue slug."""

    plain: str
    described: dict[str, Annotated[str, Field(min_length=1)]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "{label}" not in self.plain:
            raise ValueError("plain: the template must contain {label}")
        wrong = set(self.described) ^ set(labels.SLUGS)
        if wrong:
            raise ValueError(f"described: needs one sentence for each of {', '.join(labels.SLUGS)}; differs in {sorted(wrong)}")
        return self

    def texts(self, name: str) -> list[str]:
        """The prompt of every tissue, in the order of labels, from set `plain` or `described`."""
        if name == "plain":
            return [self.plain.replace("{label}", label) for label in labels.PATHMNIST]
        return [self.described[slug] for slug in labels.SLUGS]


class GenerationSettings(Section):
    """Sampling and filtering.

    `images_per_tissue` slots are wanted of each tissue, each gets at most `max_attempts` tries; the stage fails when any
    tissue has less than `quota` of its slots filled. `scheduler` is the name of a diffusers scheduler class.
    """

    images_per_tissue: PositiveInt
    max_attempts: PositiveInt
    quota: Fraction
    scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+Scheduler$")]
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)]
    guidance_scale: Annotated[float, Field(ge=1)]
    negative_prompt: str
    batch_size: PositiveInt
    mixed_precision: MixedPrecision


class EvaluationSettings(Section):
    """Scoring: number of bootstrap resamples."""

    bootstrap_resamples: Annotated[int, Field(ge=100)]


class Benchmark(Section):
    """One benchmark: where images and base come from, who judges, how images are made."""

    dataset: Annotated[PhantomDataset | FileDataset, Field(discriminator="source")]
    base: BaseModelSettings
    classifiers: Classifiers
    prompts: Prompts
    generation: GenerationSettings
    evaluation: EvaluationSettings


class AdapterSettings(Section):
    """The LoRA itself, in peft's names; `target_modules` are names or name endings of UNet modules."""

    rank: PositiveInt
    lora_alpha: Positive
    init_lora_weights: Literal["gaussian", "default"]
    target_modules: Annotated[list[str], Field(min_length=1)]
    lora_dropout: ShareBelowOne
    use_rslora: bool
    use_dora: bool


class OptimizerSettings(Section):
    """AdamW and the clipping of its gradients' norm."""

    learning_rate: Positive
    beta1: ShareBelowOne
    beta2: ShareBelowOne
    epsilon: Positive
    weight_decay: NonNegative
    max_grad_norm: Positive


class ScheduleSettings(Section):
    """Learning rate over optimiser steps; `restart_steps` and `restart_mult` are T_0 and T_mult of warm restarts."""

    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_warm_restarts"]
    warmup_steps: NonNegativeInt
    restart_steps: PositiveInt | None
    restart_mult: PositiveInt | None

    @model_validator(mode="after")
    def _restarts_fit(self) -> Self:
        wanted = self.lr_scheduler == "cosine_warm_restarts"
        if wanted != (self.restart_steps is not None) or wanted != (self.restart_mult is not None):
            raise ValueError("restart_steps and restart_mult are numbers for cosine_warm_restarts, and null for any other")
        return self


class TrainingSettings(Section):
    """How much is trained: optimiser steps of `train_batch_size` x `gradient_accumulation_steps` images."""

    max_train_steps: PositiveInt
    train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    mixed_precision: MixedPrecision


class ObjectiveSettings(Section):
    """What is learnt from: noise offset, min-SNR gamma or null, dropped captions, views of each image, EMA decay or null."""

    noise_offset: NonNegative
    snr_gamma: Positive | None
    caption_dropout: ShareBelowOne
    flips: bool
    quarter_turns: bool
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None


class LoraSettings(Section):
    """One LoRA configuration, whole; `prompts` is the set used in training and in generation alike."""

    prompts: Literal["plain", "described"]
    adapter: AdapterSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    training: TrainingSettings
    objective: ObjectiveSettings

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.schedule.warmup_steps >= self.training.max_train_steps:
            raise ValueError(
                f"schedule.warmup_steps must be less than training.max_train_steps ({self.training.max_train_steps})"
            )
        return self


class Params(Section):
    """What the two selectors select."""

    seed: NonNegativeInt
    benchmark_name: str
    lora_name: str
    benchmark: Benchmark
    lora: LoraSettings


def load_params(path: Path) -> Params:
    """Reads a parameter file and validates the selected entries.

    Raises:
        ParamsError: one line: file, key, value, what is allowed.
    """
    tree = read_yaml(path)
    expected = ["seed", "benchmark", "lora", "benchmarks", "loras"]
    for key in [*tree, *expected]:
        if key not in expected:
            raise ParamsError(path, key, f"unknown key; allowed: {', '.join(expected)}")
        if key not in tree:
            raise ParamsError(path, key, "missing")
    benchmark = _select(path, tree, "benchmark", "benchmarks")
    lora = _select(path, tree, "lora", "loras")
    return Params(
        seed=_seed(path, tree["seed"]),
        benchmark_name=tree["benchmark"],
        lora_name=tree["lora"],
        benchmark=validate(path, f"benchmarks.{tree['benchmark']}", Benchmark, benchmark),
        lora=validate(path, f"loras.{tree['lora']}", LoraSettings, lora),
    )


def beside(params_path: Path, path: str) -> Path:
    """A path of the parameter file, which is relative to that file's folder."""
    return params_path.parent / path


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML 1.2 mapping, as DVC does (there `1e-4` is a number), without tags that build objects."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(path, "file", f"cannot be read: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(path, "file", f"is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ParamsError(path, "file", "must hold a mapping of keys to values")
    return tree


def validate(path: object, key: str, section: type[AnySection], value: object) -> AnySection:
    """Builds `section` from plain values; the first fault becomes a ParamsError under `key`."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        # a discriminated union puts its tag into the location, where the file has no key
        tags = {"phantom", "medmnist_file"}
        where = ".".join([key, *(str(part) for part in first["loc"] if part not in tags)])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ParamsError(path, where, _fault(section, first) + more) from error


def _fault(section: type[Section], fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key; allowed: {', '.join(_keys_at(section, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return "missing"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = "" if isinstance(given, dict | Section) else f"{given!r}: "
    return shown + message[0].lower() + message[1:]


def _keys_at(section: type[Section], location: tuple) -> list[str]:
    """The keys allowed at `location`, found by walking the field types; in a union, the tag picks the section."""
    kinds: list[type[Section]] = [section]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        if fields:
            kinds = list(_sections_in(fields[0]))
        else:
            kinds = [kind for kind in kinds if part in get_args(kind.model_fields["source"].annotation)]
    return list(kinds[0].model_fields)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type is made of: itself, or the members of a union, a list, an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _select(path: Path, tree: dict[str, Any], selector: str, table: str) -> object:
    name, entries = tree[selector], tree[table]
    if not isinstance(entries, dict) or not entries:
        raise ParamsError(path, table, "must map names to entries")
    if not isinstance(name, str) or name not in entries:
        raise ParamsError(path, selector, f"{name!r} is not an entry of {table}; allowed: {', '.join(map(str, entries))}")
    return entries[name]


def _seed(path: Path, seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ParamsError(path, "seed", f"{seed!r}: must be a whole number from 0 to 2^32 - 1")
    return seed
