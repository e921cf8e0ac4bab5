"""Sections of the classifiers: architecture, training and augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pathsynth.core.params import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Section, Sha256, ShareBelowOne

Stem = Literal["standard", "small"]
InputSize = Annotated[int, Field(ge=16, le=512)]


class Augmentation(Section):
    """Random changes of training images; shares and strengths, 0 for none."""

    flips: bool
    rotate90: bool
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
    weights_sha256: Sha256 | None = None
    stem: Stem = "standard"
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
