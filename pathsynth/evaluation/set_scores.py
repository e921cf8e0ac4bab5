"""All scores of one set of images: the same for generated images, real ones, and controls with a known answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from pathsynth.classifiers.metrics import classification_scores
from pathsynth.data.sampling import subsample_per_class
from pathsynth.evaluation.copying import CopyCheck, Pairs, search_moved, search_nearest
from pathsynth.evaluation.fidelity import RealFeatures, fidelity_scores
from pathsynth.evaluation.open_set import OpenSet, fit_open_set, open_set_scores
from pathsynth.evaluation.statistics import bootstrap_scores
from pathsynth.evaluation.structure import colour_spread, distribution_distances, two_sample_auc
from pathsynth.features.observe import OBSERVERS, Observed
from pathsynth.features.structure import GROUPS, NUCLEI, ORIENTATION

# At most this many real training images of each tissue are compared with a set.
REFERENCE_PER_TISSUE = 1000
CLOSEST_PAIRS = 6
AVERAGES = ("macro_f1", "macro_precision", "macro_recall", "accuracy")


class SetScorer:
    """Scores sets of images against the real ones; what does not depend on the set is computed once.

    Args:
        real: observations of the real images of "train", "val" and "test".
        slugs: names of all tissues.
        seed: seed of bootstrap and subsamples.
    """

    def __init__(self, real: Mapping[str, Observed], slugs: Sequence[str], seed: int):
        self.real, self.slugs, self.seed = real, slugs, seed
        counts = np.full(len(slugs), REFERENCE_PER_TISSUE)
        train, val = real["train"], real["val"]
        self.reference = train.select(subsample_per_class(train.labels, counts, seed))
        rows = _tissue_columns(train).astype(np.float64)
        self._mean, self._sd = rows.mean(axis=0), rows.std(axis=0)
        self._val = val.select(subsample_per_class(val.labels, counts, seed))

    def score(self, observed: Observed) -> tuple[dict, dict[str, Pairs]]:
        """Computes all scores of a set.

        Returns:
            The scores: n_images; the classification scores by gate, judge and colour, see `score_predictions`; open_set, see
            `open_set_scores`; features and structure, see `fidelity_scores`; orientation, nuclei and colour_spread, see
            `pathsynth.evaluation.structure`; two_sample_auc by spectrum and structure; copying, see `compare_copies`. A set
            without images has only `n_images`, 0. And its images closest to training images, by pixels and by structure.
        """
        copying, pairs = self.compare_copies(observed)
        labels, slugs, seed, reference = observed.labels, self.slugs, self.seed, self.reference
        if len(labels) == 0:
            return {"n_images": 0}, pairs
        judged, structure = observed.predicted("judge"), self._standardize(observed)
        rejected = self._open_set.rejects(_tissue_columns(observed), labels)
        spaces = {"features": np.asarray(observed.features, np.float64), "structure": structure}
        distances = {"orientation": ORIENTATION, "nuclei": NUCLEI}
        scores = {
            "n_images": len(labels),
            **{by: score_predictions(labels, observed.predicted(by), slugs, seed) for by in OBSERVERS},
            "open_set": open_set_scores(labels, judged, rejected, slugs, seed),
            **{
                space: fidelity_scores(rows, labels, self._real_features[space], slugs=slugs, seed=seed)
                for space, rows in spaces.items()
            },
            **{
                name: distribution_distances(
                    observed.structure[:, column], labels, reference.structure[:, column], reference.labels, slugs
                )
                for name, column in distances.items()
            },
            "colour_spread": colour_spread(observed.pixels, labels, reference.pixels, reference.labels, slugs),
            "two_sample_auc": {
                "spectrum": self._two_sample_auc(observed, GROUPS["spectrum"]),
                "structure": self._two_sample_auc(observed, GROUPS["tissue"]),
            },
            "copying": copying,
        }
        return scores, pairs

    def compare_copies(self, observed: Observed) -> tuple[dict, dict[str, Pairs]]:
        """Compares images with the training images, by pixels and by structure.

        Returns:
            The share of images that are closer to one than real images are, see `copying_scores`, and the closest pairs.
        """
        compared = {
            space: check.compare(_copy_rows(space, observed), observed.labels, CLOSEST_PAIRS)
            for space, check in self._copy_checks.items()
        }
        return {space: scores for space, (scores, _) in compared.items()}, {
            space: pairs for space, (_, pairs) in compared.items()
        }

    def _standardize(self, observed: Observed) -> np.ndarray:
        """Structure features float64 (N, 31) in units of the standard deviation of the training images."""
        return (_tissue_columns(observed) - self._mean) / np.where(self._sd > 0, self._sd, 1.0)

    @cached_property
    def _copy_checks(self) -> dict[str, CopyCheck]:
        train, val = self.real["train"], self._val
        return {
            space: CopyCheck(prepare(_copy_rows(space, train)), _copy_rows(space, val), val.labels, self.slugs)
            for space, prepare in (("pixels", search_moved), ("structure", search_nearest))
        }

    @cached_property
    def _real_features(self) -> dict[str, RealFeatures]:
        rows = {
            "features": self.reference.features.astype(np.float64),
            "structure": self._standardize(self.reference),
        }
        return {name: RealFeatures(values, self.reference.labels, len(self.slugs)) for name, values in rows.items()}

    @cached_property
    def _open_set(self) -> OpenSet:
        train, val = self.reference, self._val
        return fit_open_set(_tissue_columns(train), train.labels, _tissue_columns(val), val.labels, len(self.slugs))

    def _two_sample_auc(self, observed: Observed, columns: slice) -> dict:
        reference = self.reference
        return two_sample_auc(
            observed.structure[:, columns], observed.labels, reference.structure[:, columns], reference.labels, self.seed
        )


def _copy_rows(space: str, observed: Observed) -> np.ndarray:
    """Thumbnails, or structure features."""
    return observed.pixels if space == "pixels" else _tissue_columns(observed)


def _tissue_columns(observed: Observed) -> np.ndarray:
    """Structure features float32 (N, 31) without stain and sharpness, which another centre or an autoencoder changes."""
    return observed.structure[:, GROUPS["tissue"]]


def score_predictions(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str], seed: int) -> dict:
    """Classification scores of one set with their 95 % bootstrap intervals.

    Args:
        y_true: prompted tissue, integers (N,), indices into `slugs`; N >= 1.
        y_pred: predicted tissue, integers (N,), indices into `slugs`.
        slugs: names of all tissues.
        seed: seed of the bootstrap.

    Returns:
        macro_f1, macro_precision, macro_recall and accuracy, each with {name}_low and {name}_high, n_images, and
        per_tissue.{slug}.{precision,recall,f1,f1_low,f1_high}.
    """
    scores = classification_scores(y_true, y_pred, slugs)
    ends = bootstrap_scores(y_true, y_pred, len(slugs), seed)
    averages = {name: scores[name] for name in AVERAGES}
    intervals = {f"{name}_{end}": ends[f"{name}_{end}"] for name in AVERAGES for end in ("low", "high")}
    per_tissue = {
        slug: {**scores["per_tissue"][slug], "f1_low": ends["f1_low"][i], "f1_high": ends["f1_high"][i]}
        for i, slug in enumerate(slugs)
    }
    return {**averages, **intervals, "n_images": scores["n_images"], "per_tissue": per_tissue}
