"""Images from a sentence, and their provenance."""

from pathsynth.synthesis.artifacts import load_artifacts
from pathsynth.synthesis.stream import stream_images
from pathsynth.synthesis.synthesizer import redraw, synthesize

__all__ = ["load_artifacts", "redraw", "stream_images", "synthesize"]
