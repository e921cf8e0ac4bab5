"""pathsynth: a reproducible benchmark of text-to-tissue-image synthesis."""

__version__ = "0.1.0"
