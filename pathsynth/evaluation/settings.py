"""The `evaluation` section of a benchmark."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pathsynth.core.params import PositiveInt, Section
from pathsynth.evaluation.usefulness import UsefulnessSettings
from pathsynth.features.settings import ObservationSettings


class FidelitySettings(Section):
    """Comparison with real images in feature space.

    Precision, recall, density and coverage use up to `reference_per_tissue` real training images of each tissue; the kernel
    distance is the mean over `kernel_subsets` subsets of up to `kernel_subset_size` images.
    """

    reference_per_tissue: Annotated[int, Field(ge=2)]
    kernel_subsets: PositiveInt
    kernel_subset_size: Annotated[int, Field(ge=2)]


class EvaluationSettings(Section):
    """All options of scoring."""

    observation: ObservationSettings
    fidelity: FidelitySettings
    usefulness: UsefulnessSettings
