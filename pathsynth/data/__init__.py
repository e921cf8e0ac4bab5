"""Data sets: labels, archives, the prepared layout, generated sets, provenance."""
