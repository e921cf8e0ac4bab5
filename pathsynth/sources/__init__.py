"""Where images come from: drawn phantoms, local archives, downloads. Only the stage `prepare` needs it."""
