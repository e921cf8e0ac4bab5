"""Sampling, filtering by the gate, and the card of a generated set."""
