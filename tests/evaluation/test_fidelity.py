"""Fidelity scores: known answers of scipy, torchmetrics and prdc, properties, intervals, and reasons for undefined scores."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from pathsynth.evaluation import fidelity
from pathsynth.evaluation.fidelity import RealFeatures, compute_moments

SLUGS = ("mucus", "debris", "background")


def features(seed: int, count: int, shift: float = 0.0, dimensions: int = 6) -> np.ndarray:
    """Features as networks give them: correlated and never below 0."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions))
    return np.maximum(rng.normal(size=(count, dimensions)) @ mixing + shift, 0.0).astype(np.float32).astype(np.float64)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % len(SLUGS)


def score(own: np.ndarray, real: np.ndarray, neighbours: int = 3, seed: int = 0) -> dict:
    per_class = [RealFeatures(real[i::3], neighbours) for i in range(3)]
    subsets = {"kernel_subsets": 5, "kernel_subset_size": 40}
    return fidelity.fidelity_scores(
        own, labels(len(own)), RealFeatures(real, neighbours), per_class, slugs=SLUGS, seed=seed, **subsets
    )


def frechet(own: np.ndarray, real: np.ndarray) -> float:
    return fidelity.frechet_distance(compute_moments(own), compute_moments(real))


def scipy_frechet(own: np.ndarray, real: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    a, b = np.cov(own.T), np.cov(real.T)
    return float(np.square(own.mean(0) - real.mean(0)).sum() + np.trace(a + b - 2.0 * sqrtm(a @ b).real))


# Known answers


@pytest.mark.parametrize(("count", "dimensions"), [(200, 6), (30, 40)])
def test_frechet_distance_matches_scipy_and_torchmetrics(count: int, dimensions: int):
    from torchmetrics.image.fid import FrechetInceptionDistance

    own, real = features(0, count, 0.5, dimensions), features(1, 300, 0.0, dimensions)
    assert frechet(own, real) == pytest.approx(scipy_frechet(own, real), rel=1e-4)
    network = torch.nn.Flatten()
    network.register_buffer("num_features", torch.tensor(dimensions))
    theirs = FrechetInceptionDistance(feature=network)
    theirs.update(torch.tensor(real), real=True)
    theirs.update(torch.tensor(own), real=False)
    assert frechet(own, real) == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert frechet(own, real) == pytest.approx(frechet(real, own), rel=1e-6)


def test_frechet_distance_of_known_normal_distributions():
    # only moments count: these rows have mean (0, 0) or (3, 4), and variance 1 or 4 in each direction
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * np.sqrt(3 / 4)
    assert frechet(2.0 * square + [3.0, 4.0], square) == pytest.approx(25.0 + 2 * (2.0 - 1.0) ** 2)
    assert frechet(square, square) == pytest.approx(0.0, abs=1e-6)


def test_kernel_distance_matches_torchmetrics_and_formula():
    from torchmetrics.image.kid import poly_mmd

    own, real = features(0, 50, 0.5), features(1, 50)
    distance, variance = fidelity.kernel_distance(own, real, 1, 50, np.random.default_rng(0))
    assert distance == pytest.approx(float(poly_mmd(torch.tensor(real), torch.tensor(own))), rel=1e-9)
    assert variance == 0.0

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / 6 + 1.0) ** 3

    off = ~np.eye(50, dtype=bool)
    slow = kernel(own, own)[off].mean() + kernel(real, real)[off].mean() - 2.0 * kernel(own, real).mean()
    assert distance == pytest.approx(slow, rel=1e-9)


def test_kernel_distance_of_subsets_estimates_that_of_all_pairs():
    own, real = features(0, 120, 0.5), features(1, 120)
    whole, _ = fidelity.kernel_distance(own, real, 1, 120, np.random.default_rng(0))
    mean, variance = fidelity.kernel_distance(own, real, 400, 30, np.random.default_rng(0))
    assert mean == pytest.approx(whole, abs=4.0 * math.sqrt(variance))
    assert 0.0 < math.sqrt(variance) < 0.2 * whole


def prdc(real: np.ndarray, own: np.ndarray, neighbours: int) -> dict:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, own, neighbours)


@pytest.mark.parametrize(("neighbours", "shift"), [(1, 0.0), (5, 1.0)])
def test_precision_recall_density_and_coverage_match_prdc(neighbours: int, shift: float):
    own, real = features(0, 90, shift), features(1, 120)
    result = score(own, real, neighbours)
    for name, value in prdc(real, own, neighbours).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name
        assert value > 0.0, name
    for i, slug in enumerate(SLUGS):
        for name, value in prdc(real[i::3], own[i::3], neighbours).items():
            assert result["per_tissue"][slug][name] == pytest.approx(value, abs=1e-6), (slug, name)


def test_copies_and_ties_match_prdc():
    # integers: all distances are exact, and many a neighbour lies at exactly the radius
    real = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(np.float64)
    own = np.concatenate([real[:20], np.random.default_rng(1).integers(0, 5, (25, 3))])
    result = score(own, real, 2)
    for name, value in prdc(real, own, 2).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


def test_radii_match_scipy_and_are_0_for_equal_rows():
    from scipy.spatial.distance import cdist

    rows = features(0, 40)
    slow = np.sort(cdist(rows, rows), axis=1)
    for k in (1, 4, 39):
        assert fidelity.compute_radii(rows, k) == pytest.approx(slow[:, k], rel=1e-6)
    wide = features(0, 30, dimensions=300)
    assert not fidelity.compute_radii(np.concatenate([wide, wide]), 1).any()
    nearby = np.concatenate([wide, wide + 1e-3])
    assert fidelity.compute_radii(nearby, 1) == pytest.approx(np.full(60, 1e-3 * np.sqrt(300)), rel=1e-3)


# Properties


def test_chunks_change_nothing(monkeypatch):
    own, real = features(0, 50, 0.3), features(1, 700)
    expected = score(own, real)
    monkeypatch.setattr(fidelity, "MEBIBYTES", 0.01)
    monkeypatch.setattr(fidelity, "CHUNK", 7)
    assert score(own, real) == expected


def test_order_of_images_does_not_matter():
    own, real = features(0, 90, 0.3), features(1, 201)
    # within each tissue, so that the labels stay the same
    order = np.arange(90).reshape(30, 3)[np.random.default_rng(0).permutation(30)].ravel()
    result, again = score(own, real), score(own[order], real)
    names = ("frechet_distance", "frechet_bias", "precision", "recall", "density", "coverage", "precision_low")
    for name in names:
        assert again[name] == pytest.approx(result[name], abs=2e-6), name


def test_only_sampled_scores_depend_on_the_seed():
    own, real = features(0, 60), features(1, 201)
    first, second = score(own, real), score(own, real, seed=1)
    differing = {name for name in first if name != "per_tissue" and first[name] != second[name]}
    assert first == score(own, real)
    assert differing >= {"frechet_bias", "kernel_distance"}
    assert not differing & {"frechet_distance", "frechet_low", "precision", "recall", "density", "coverage"}


def test_real_images_have_perfect_scores():
    real = features(1, 90)
    result = score(real, real)
    assert result["frechet_distance"] == pytest.approx(0.0, abs=1e-5)
    assert (result["precision"], result["recall"], result["coverage"]) == (1.0, 1.0, 1.0)
    assert result["kernel_distance"] < 0.0


def test_each_tissue_is_compared_with_its_own_real_images():
    # the images of each tissue are real ones of the next: perfect over all, wrong tissue by tissue
    real = features(1, 240) + 40.0 * labels(240)[:, None]
    result = score(np.roll(real, -1, axis=0), real)
    assert result["precision"] == 1.0
    assert all(row["precision"] == 0.0 and row["frechet_distance"] > 1000.0 for row in result["per_tissue"].values())


def test_bias_is_the_distance_of_equally_many_real_images():
    real = features(0, 402)
    few, many = (np.mean([score(features(1, n), real, seed=s)["frechet_bias"] for s in range(5)]) for n in (21, 201))
    assert 0.0 < many < 0.3 * few
    distances = [score(features(seed, 21), real)["frechet_distance"] for seed in range(2, 12)]
    assert np.mean(distances) == pytest.approx(few, rel=0.5)


def test_covariances_without_full_rank_are_flagged():
    assert score(features(0, 60), features(1, 60))["frechet_full_rank"] is True
    result = score(features(0, 30, dimensions=30), features(1, 90, dimensions=30))
    assert result["frechet_full_rank"] is False
    assert result["frechet_bias"] > 0.3 * result["frechet_distance"]


# Intervals


def test_intervals_contain_the_scores_over_all_tissues():
    result = score(features(0, 90, 0.3), features(1, 201))
    for name, key in fidelity.INTERVALS.items():
        assert result[f"{name}_low"] < result[key] < result[f"{name}_high"], name
    assert "undefined" not in result
    assert not any(name.endswith(("_low", "_high")) for row in result["per_tissue"].values() for name in row)


def test_jackknife_intervals_are_as_wide_as_other_images_scatter():
    real = features(1000, 300, dimensions=4)
    values: dict[str, list[tuple[float, float]]] = {"frechet": [], "kernel": []}
    for seed in range(60):
        own = features(seed, 200, 0.5, dimensions=4)
        groups = fidelity.jackknife_groups(np.zeros(200, int), 10)
        values["frechet"].append((frechet(own, real), fidelity.frechet_half_width(own, groups, compute_moments(real))))
        kernel, variance = fidelity.kernel_distance(own, real, 20, 60, np.random.default_rng(seed))
        values["kernel"].append((kernel, fidelity.kernel_half_width(own, groups, real, variance)))
    for name, pairs in values.items():
        scores, halves = np.array(pairs).T
        # 2.26: Student's factor with 9 degrees of freedom
        assert np.sqrt(np.square(halves / 2.26).mean()) == pytest.approx(scores.std(ddof=1), rel=0.4), name
        covered = np.abs(scores - scores.mean()) <= halves
        assert covered.mean() >= 0.85, name


def test_half_widths_leave_one_group_out():
    own, real = features(0, 33, 0.5), features(1, 50)
    groups = fidelity.jackknife_groups(labels(33), 10)

    def kernel(rows: np.ndarray) -> float:
        within, across = (rows @ rows.T / 6 + 1.0) ** 3, (rows @ real.T / 6 + 1.0) ** 3
        return within[~np.eye(len(rows), dtype=bool)].mean() - 2.0 * across.mean()

    slow = fidelity.jackknife_half_width([scipy_frechet(own[groups != group], real) for group in range(10)])
    assert fidelity.frechet_half_width(own, groups, compute_moments(real)) == pytest.approx(slow, rel=1e-4)
    slow = fidelity.jackknife_half_width([kernel(own[groups != group]) for group in range(10)], 0.25)
    assert fidelity.kernel_half_width(own, groups, real, 0.25) == pytest.approx(slow, rel=1e-9)
    assert fidelity.kernel_half_width(own, groups, real, 0.0) < slow


def test_jackknife_of_a_mean_matches_the_formula_of_the_mean():
    values = np.random.default_rng(0).normal(size=40)
    without = [np.delete(values, i).mean() for i in range(40)]
    assert fidelity.jackknife_half_width(without) == pytest.approx(2.0226909 * values.std(ddof=1) / np.sqrt(40))


def test_jackknife_groups_share_every_tissue():
    tissue = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 31, 7]))
    table = np.zeros((10, 3), int)
    np.add.at(table, (fidelity.jackknife_groups(tissue, 10), tissue), 1)
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1


# Undefined scores


def is_plain(result: dict) -> bool:
    """Whether all values are finite numbers that JSON can hold."""
    json.dumps(result, allow_nan=False)
    values = [value for name, value in result.items() if name not in ("per_tissue", "undefined")]
    return all(type(value) in (int, float, bool) and math.isfinite(value) for value in values)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9, 10, 12, 30])
@pytest.mark.parametrize("kind", ["ordinary", "equal", "zero", "wide"])
def test_every_score_is_defined_or_has_a_reason(count: int, kind: str):
    own = features(0, count, dimensions=40 if kind == "wide" else 6)
    own = {"equal": own * 0 + 3.5, "zero": own * 0}.get(kind, own)
    result = score(own, features(1, 30, dimensions=own.shape[1]))
    names = {"frechet_distance", "frechet_bias", "kernel_distance", "precision", "recall", "density", "coverage"}
    ends = {f"{name}_{end}" for name in fidelity.INTERVALS for end in ("low", "high")}
    for row, expected in [(result, names | ends), *((row, names) for row in result["per_tissue"].values())]:
        assert is_plain(row)
        assert not row.get("undefined", {}).keys() & row.keys()
        assert row.get("undefined", {}).keys() | row.keys() >= expected
    if count == 30:
        assert "undefined" not in result or set(result["undefined"]) == {"frechet_bias"}


def test_reasons_name_the_numbers_of_images():
    result = score(features(0, 1), features(1, 30))
    assert result["undefined"]["frechet_distance"] == "images: 1, at least 2 are needed"
    assert result["undefined"]["recall"] == "images: 1, at least 4 are needed"
    assert result["undefined"]["precision_low"] == "images: 1, at least 10 are needed"
    assert result["per_tissue"]["debris"]["undefined"]["coverage"] == "no images"
    assert score(features(0, 20), features(1, 30))["undefined"] == {"frechet_bias": "real images: 30, at least 40 are needed"}
    few = score(features(0, 20), features(1, 3))
    assert few["undefined"]["precision_high"] == "real images: 3, at least 4 are needed"
    assert few["per_tissue"]["mucus"]["undefined"]["frechet_distance"] == "real images: 1, at least 2 are needed"
    none = score(features(0, 20), features(1, 0))
    assert none["undefined"]["recall"] == none["undefined"]["kernel_low"] == "no real images"


def test_equal_images_on_either_side():
    same, real = np.full((20, 6), 2.0), features(1, 60)
    result = score(same, real)
    assert result["recall"] == 0.0
    # what is left of the distance: between the means, and the variance of the real images
    expected = np.square(real.mean(axis=0) - 2.0).sum() + real.var(axis=0, ddof=1).sum()
    assert result["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    result = score(features(0, 20), np.full((60, 6), 2.0))
    assert result["undefined"]["density"] == "every real image has 3 others with the same features"
    assert result["undefined"]["density_low"] == result["undefined"]["density"]
    both = score(same, np.full((60, 6), 2.0))
    assert (both["frechet_distance"], both["kernel_distance"]) == (0.0, 0.0)
