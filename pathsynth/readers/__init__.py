"""Studies with human readers: blinded pages, and the evaluation of their answers."""

# Holds the templates.
PACKAGE = "pathsynth.readers"
