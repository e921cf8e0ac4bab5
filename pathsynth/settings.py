"""The sections of a parameter file as typed, validated objects; what is wrong with one is said by `pathsynth.params`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pathsynth import labels

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
MixedPrecision = Literal["no", "bf16", "fp16"]
Stem = Literal["standard", "small"]
InputSize = Annotated[int, Field(ge=16, le=512)]
WeightDtype = Literal["fp32", "bf16", "fp16"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Section(BaseModel):
    """One section of a parameter file: no unknown keys, no defaults, no silent conversions, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dataset(Section):
    """What every source of images has.

    `labels` is the name of a MedMNIST set, whose words are taken, or a list of words; `channels` is 3, or 1 for grey images;
    the prepared images are `image_size` pixels wide and high.
    """

    labels: str | list[str]
    channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_exist(cls, value: Any) -> Any:
        labels.resolve(value)
        return value

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in words, in the order of their numbers."""
        return labels.resolve(self.labels)

    @property
    def slugs(self) -> tuple[str, ...]:
        """The labels in snake_case, in the order of their numbers."""
        return tuple(labels.slug(label) for label in self.label_names)

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return False


class PhantomDataset(Dataset):
    """Tissue phantoms drawn from the seed; see `pathsynth.phantom`."""

    source: Literal["phantom"]
    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=8)]
    train_per_tissue: PositiveInt
    val_per_tissue: PositiveInt
    test_per_tissue: PositiveInt

    @model_validator(mode="after")
    def _what_can_be_drawn(self) -> Self:
        if self.label_names != labels.PATHMNIST or self.channels != 3:
            raise ValueError("phantoms exist of the tissues of pathmnist, in 3 channels, and of nothing else")
        return self

    @property
    def stand_in(self) -> bool:
        """Whether the images only stand in for medical ones."""
        return True


class FileDataset(Dataset):
    """A local archive in MedMNIST's format; its images are resized to `image_size`.

    `path` is relative to the folder of the parameter file; `md5` (or null) is checked, and is how a changed file under the
    same name is noticed.
    """

    source: Literal["medmnist_file"]
    path: Annotated[str, Field(min_length=1)]
    md5: Md5 | None


class MedmnistDataset(Dataset):
    """A MedMNIST set, fetched unless it is there already, and checked by MD5.

    `flag` is MedMNIST's name of the set and `archive_size` the side of its images in pixels; `root` is the folder that keeps
    the archive, relative to the parameter file's, where `~` is the user's home. MedMNIST's own is `~/.medmnist`.
    """

    source: Literal["medmnist"]
    flag: str
    archive_size: Literal[28, 64, 128, 224]
    root: Annotated[str, Field(min_length=1)]

    @field_validator("flag")
    @classmethod
    def _flag_exists(cls, value: str) -> str:
        labels.of_set(value)
        return value

    @model_validator(mode="after")
    def _is_the_set(self) -> Self:
        from medmnist import INFO

        channels, count = INFO[self.flag]["n_channels"], len(labels.of_set(self.flag))
        if self.channels != channels:
            raise ValueError(f"channels: {self.flag} has {channels}, not {self.channels}")
        if isinstance(self.labels, str) and self.labels != self.flag:
            raise ValueError(f"labels: {self.labels!r} are of another set; allowed: {self.flag}, or a list of {count} labels")
        if len(self.label_names) != count:
            raise ValueError(f"labels: {len(self.label_names)} for the {count} classes of {self.flag}")
        return self


AnyDataset = PhantomDataset | FileDataset | MedmnistDataset


class BaseModelSettings(Section):
    """The pretrained Stable Diffusion, in diffusers' layout.

    With a `revision` the name is a repository of the Hugging Face hub, without one a local folder, relative to the parameter
    file. A branch may change under the same name, and the scores with it, so a revision is a commit's 40 hexadecimal digits.
    `variant` is part of the names of the weights, such as `fp16`, or null.
    """

    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)]
    revision: Revision | None
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None

    @model_validator(mode="after")
    def _repository_has_two_parts(self) -> Self:
        _check_repository(self.pretrained_model_name_or_path, self.revision)
        return self


class Augmentation(Section):
    """Random changes of training images; shares and strengths, 0 for none."""

    flips: bool
    quarter_turns: bool
    stain: Annotated[float, Field(ge=0, le=0.5)]
    brightness: Annotated[float, Field(ge=0, le=0.5)]
    blur: Fraction


class ClassifierSettings(Section):
    """One classifier, gate or judge.

    `architecture` is a torchvision model name, `stem: small` (ResNets only) is a 3x3 convolution without pooling. `weights` is
    `none`, `imagenet` for torchvision's own, or a local file of such weights, relative to the parameter file; its checksum is
    compared with `weights_sha256`, whole or its first digits, or null. `checkpoint` is the epoch that is kept, the `best` by
    val or the `last`; `seed` is mixed with the global one so that gate and judge are trained apart.
    """

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    weights: Annotated[str, Field(pattern=r"^(none|imagenet|.+\.(pth|safetensors))$")]
    weights_sha256: Sha256 | None
    stem: Stem
    input_size: InputSize
    epochs: PositiveInt
    checkpoint: Literal["best", "last"]
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

    @model_validator(mode="after")
    def _checksum_of_a_file(self) -> Self:
        if self.weights_sha256 and self.weights in ("none", "imagenet"):
            raise ValueError(f"weights_sha256: is for a file, and weights is {self.weights!r}; allowed: null")
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
    def _template_fits(self) -> Self:
        if "{label}" not in self.plain:
            raise ValueError("plain: the template must contain {label}")
        return self


class GenerationSettings(Section):
    """Sampling and filtering.

    `images_per_tissue` slots are wanted of each tissue, each gets at most `max_attempts` tries; the stage fails when any
    tissue has less than `quota` of its slots filled. `scheduler` is the name of a diffusers scheduler class, `weight_dtype` the
    number format of all weights.
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
    weight_dtype: WeightDtype

    @model_validator(mode="after")
    def _formats_fit(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision not in ("no", self.weight_dtype):
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: no or {self.weight_dtype}")
        return self


class JudgeFeatures(Section):
    """Features of the judge, which has learnt these tissues: what its last layer is given."""

    extractor: Literal["judge"]


class InceptionFeatures(Section):
    """Features of the Inception-v3 of the published Fréchet inception distances.

    `weights` is `download`, or a local file of torch-fidelity's weights, relative to the parameter file.
    """

    extractor: Literal["inception"]
    weights: Annotated[str, Field(pattern=r"^(download|.+\.pth)$")]


class Dinov2Features(Section):
    """Features of a DINOv2 in transformers' layout: a repository of the hub at a `revision`, or a local folder without one."""

    extractor: Literal["dinov2"]
    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)]
    revision: Revision | None

    @model_validator(mode="after")
    def _repository_has_two_parts(self) -> Self:
        _check_repository(self.pretrained_model_name_or_path, self.revision)
        return self


AnyFeatures = JudgeFeatures | InceptionFeatures | Dinov2Features


class RealismSettings(Section):
    """Distances to real images and variety.

    Precision, recall, density and coverage look at `nearest_neighbours` and at up to `reference_per_tissue` real training
    images of each tissue; the kernel distance is a mean over `kernel_subsets` of up to `kernel_subset_size` images.
    """

    features: Annotated[AnyFeatures, Field(discriminator="extractor")]
    nearest_neighbours: PositiveInt
    reference_per_tissue: Annotated[int, Field(ge=2)]
    kernel_subsets: PositiveInt
    kernel_subset_size: Annotated[int, Field(ge=2)]


class RobustnessSettings(Section):
    """Real test images that are damaged on purpose: how many of each tissue, and whether they are stained by H&E."""

    images_per_tissue: PositiveInt
    haematoxylin_eosin: bool


class UsefulnessSettings(Section):
    """Classifiers that are trained on synthetic images and tested on real ones: which, and how many times anew.

    An epoch of the classifier has as many steps as one of the synthetic images, whatever it is trained on.
    """

    repeats: Annotated[int, Field(ge=2, le=100)]
    classifier: ClassifierSettings

    @model_validator(mode="after")
    def _chooses_nothing(self) -> Self:
        if self.classifier.checkpoint != "last":
            raise ValueError("classifier.checkpoint: 'best' would choose by real images; allowed: 'last'")
        return self


class EvaluationSettings(Section):
    """Scoring: number of bootstrap resamples, what the colour control learns from, realism, robustness, usefulness.

    `colour_images_per_tissue` is the most real training images of each tissue that the colour-only control is fitted to.
    """

    bootstrap_resamples: Annotated[int, Field(ge=100)]
    colour_images_per_tissue: PositiveInt
    robustness: RobustnessSettings
    realism: RealismSettings
    usefulness: UsefulnessSettings


class Benchmark(Section):
    """One benchmark: where images and base come from, who judges, how images are made."""

    dataset: Annotated[AnyDataset, Field(discriminator="source")]
    base: BaseModelSettings
    classifiers: Classifiers
    prompts: Prompts
    generation: GenerationSettings
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def _sentences_fit(self) -> Self:
        slugs = self.dataset.slugs
        if wrong := sorted(set(self.prompts.described) ^ set(slugs)):
            raise ValueError(f"prompts.described: needs one sentence for each of {', '.join(slugs)}; differs in {wrong}")
        return self

    def texts(self, name: str) -> list[str]:
        """The prompt of every tissue, in the order of labels, from prompt set `plain` or `described`."""
        if name == "plain":
            return [self.prompts.plain.replace("{label}", label) for label in self.dataset.label_names]
        return [self.prompts.described[slug] for slug in self.dataset.slugs]


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
    """How much is trained: optimiser steps of `train_batch_size` x `gradient_accumulation_steps` images.

    That is on all processes together, so that the result does not depend on their number. `weight_dtype` is the number format
    of the frozen weights; the adapter's are always float32. `merged` adds the adapter to the weights once a step instead of to
    every layer's output: the same gradients up to rounding, faster where images are small.
    """

    max_train_steps: PositiveInt
    train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype
    gradient_checkpointing: bool
    merged: bool

    @model_validator(mode="after")
    def _formats_fit(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision != self.weight_dtype:
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: {self.weight_dtype}; or use 'fp32'")
        return self

    @model_validator(mode="after")
    def _layers_are_called_once(self) -> Self:
        if self.merged and self.gradient_checkpointing:
            raise ValueError("merged: true cannot go with gradient_checkpointing: true; set one of them to false")
        return self


class ObjectiveSettings(Section):
    """What is learnt from: noise offset, min-SNR gamma or null, dropped captions, views of each image, EMA decay or null.

    `rotation_degrees` turns images by a random angle within plus and minus that; what comes into the corners is black.
    """

    noise_offset: NonNegative
    snr_gamma: Positive | None
    caption_dropout: ShareBelowOne
    flips: bool
    quarter_turns: bool
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
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

    @model_validator(mode="after")
    def _adapter_can_be_merged(self) -> Self:
        if self.training.merged and (self.adapter.lora_dropout or self.adapter.use_dora):
            raise ValueError("training.merged: true needs adapter.lora_dropout: 0.0 and adapter.use_dora: false")
        return self


class Params(Section):
    """What the two selectors select, and on how many processes of this machine LoRA training and generation run.

    `deterministic` keeps a GPU from kernels whose sums come in another order each time.
    """

    seed: NonNegativeInt
    deterministic: bool
    processes: PositiveInt
    benchmark_name: str
    lora_name: str
    benchmark: Benchmark
    lora: LoraSettings


def _check_repository(name: str, revision: str | None) -> None:
    if revision and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is no repository of the hub, OWNER/NAME; for a local folder use revision: null")
