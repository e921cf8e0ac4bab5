"""Sampling, filtering by the gate, and the dataset card."""
