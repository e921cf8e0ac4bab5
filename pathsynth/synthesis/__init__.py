"""Images from a sentence, and their provenance."""

from pathsynth.synthesis.synthesizer import load_artifacts, redraw, synthesize

__all__ = ["load_artifacts", "redraw", "synthesize"]
