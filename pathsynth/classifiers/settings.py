"""Sections of the classifiers: architecture, training and augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pathsynth.core.params import (
    Fraction,
    MixedPrecision,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Section,
    Sha256,
    ShareBelowOne,
)

Stem = Literal["standard", "small"]
InputSize = Annotated[int, Field(ge=16, le=512)]
# 8 is `pathsynth.data.images.VIEWS`
Views = Literal[1, 8]


class Augmentation(Section):
    """Augmentation of training images: `blur` is the fraction of blurred images, the other numbers are strengths.

    `scale: 0.2` enlarges by 0.8 to 1.2, and shifts by up to 0.2 of half a side.
    """

    flips: bool
    rotate90: bool
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    stain: Annotated[float, Field(ge=0, le=0.5)]
    brightness: Annotated[float, Field(ge=0, le=0.5)]
    blur: Fraction


class ClassifierSettings(Section):
    """One classifier, gate or judge.

    `architecture` is a torchvision model name, or `resnet10` or `densenet37`, small versions of them. `stem: small` (ResNets
    only) replaces the stem with a 3x3 convolution without pooling. `weights` is `none`, `imagenet`, or a local file of ImageNet
    weights, relative to params.yaml; `weights_sha256` is its checksum or the first digits of it. `checkpoint` selects the
    `best` epoch by val or the `last`. `seed` is mixed with the global seed, so that gate and judge are trained independently.
    `mixed_precision: fp16` is trained on a GPU only. `views: 8` is test-time augmentation: probabilities and features are means
    over the 4 rotations by right angles and their mirror images.
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
    mixed_precision: MixedPrecision
    views: Views = 1
    augmentation: Augmentation
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.stem == "small" and not self.architecture.startswith("resnet"):
            raise ValueError(f"stem: 'small' needs a ResNet, not {self.architecture!r}; use 'standard'")
        return self

    @model_validator(mode="after")
    def _check_checksum(self) -> Self:
        if self.weights_sha256 and self.weights in ("none", "imagenet"):
            raise ValueError(f"weights_sha256: only applies to a file, and weights is {self.weights!r}; use null")
        return self


class Classifiers(Section):
    """The gate, which filters, and the judge, which only grades."""

    gate: ClassifierSettings
    judge: ClassifierSettings

    @model_validator(mode="after")
    def _check_independence(self) -> Self:
        if self.gate.architecture == self.judge.architecture:
            raise ValueError(f"gate and judge are both {self.gate.architecture!r}; the judge needs a different architecture")
        if self.gate.seed == self.judge.seed:
            raise ValueError(f"gate and judge both have seed {self.gate.seed}; the judge needs a different one")
        return self
