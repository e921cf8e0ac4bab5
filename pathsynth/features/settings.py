"""Sections of the `observe_real` stage: the feature extractor, the colour control and the robustness checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pathsynth.core.params import HubModel, PositiveInt, Section, merge_list


class JudgeFeatures(Section):
    """The input of the judge's last layer: features that were learnt on these tissues."""

    extractor: Literal["judge"]


class InceptionFeatures(Section):
    """Features of the Inception-v3 with which Fréchet inception distances are published.

    `weights` is `download`, or a local file of torch-fidelity's weights, relative to params.yaml.
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
    """Real test images that are corrupted on purpose: how many per tissue, and whether they are stained with H&E."""

    images_per_tissue: PositiveInt
    haematoxylin_eosin: bool
