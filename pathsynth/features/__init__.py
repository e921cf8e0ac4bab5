"""Predictions, features and colour statistics of images, and robustness of the classifiers."""
