"""Sections of the `observe_real` stage: the feature extractor, the colour control and the robustness checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pathsynth.core.params import HubModel, PositiveInt, Section, merge_list


class JudgeFeatures(Section):
    """Input of the judge's last layer: features of a network trained on these tissues."""

    extractor: Literal["judge"]


class InceptionFeatures(Section):
    """Features of the Inception-v3 of published Fréchet inception distances.

    `weights` is `download`, or the path of a local file of torch-fidelity's weights, relative to params.yaml.
    """

    extractor: Literal["inception"]
    weights: Annotated[str, Field(pattern=r"^(download|.+\.pth)$")]


class Dinov2Features(HubModel):
    """Features of a DINOv2 in transformers' layout."""

    extractor: Literal["dinov2"]


AnyFeatures = Annotated[
    JudgeFeatures | InceptionFeatures | Dinov2Features, Field(discriminator="extractor"), BeforeValidator(merge_list)
]


class RobustnessSettings(Section):
    """Corrupted real test images: how many per tissue, and whether they are stained with haematoxylin and eosin."""

    images_per_tissue: PositiveInt
    haematoxylin_eosin: bool


class ObservationSettings(Section):
    """What is computed of every real image, once for all generated sets.

    The colour-only control is fitted to at most `colour_images_per_tissue` training images of each tissue.
    """

    features: AnyFeatures
    colour_images_per_tissue: PositiveInt
    robustness: RobustnessSettings
