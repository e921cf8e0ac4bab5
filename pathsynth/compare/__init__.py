"""Comparison of experiments."""
