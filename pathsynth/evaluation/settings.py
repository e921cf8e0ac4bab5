"""The `evaluation` section of a benchmark."""

from __future__ import annotations

from pathsynth.core.params import Section
from pathsynth.evaluation.usefulness import UsefulnessSettings
from pathsynth.features.settings import ObservationSettings


class EvaluationSettings(Section):
    """All options of scoring."""

    observation: ObservationSettings
    usefulness: UsefulnessSettings
