"""Fidelity scores: known answers of scipy, torchmetrics, torch-fidelity and prdc, properties, intervals, undefined scores."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from pathsynth.evaluation import fidelity
from pathsynth.evaluation.fidelity import JACKKNIFE_GROUPS, RealFeatures, compute_moments, kernel_distance

SLUGS = ("mucus", "debris", "background")
PER_TISSUE = {"kernel_distance", "precision", "recall", "density", "coverage"}
INTERVALS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "precision": "precision", "density": "density"}


def features(seed: int, count: int, shift: float = 0.0, dimensions: int = 6) -> np.ndarray:
    """Features as networks give them: correlated and never below 0."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions))
    return np.maximum(rng.normal(size=(count, dimensions)) @ mixing + shift, 0.0).astype(np.float32).astype(np.float64)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % len(SLUGS)


def score(own: np.ndarray, real: np.ndarray, seed: int = 0) -> dict:
    """Scores of sets with equally many images of each tissue."""
    reference = RealFeatures(real, labels(len(real)), len(SLUGS))
    return fidelity.fidelity_scores(own, labels(len(own)), reference, slugs=SLUGS, seed=seed)


def draw_tissues(rng: np.random.Generator, counts: tuple[int, ...], gap: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Normally distributed features (N, 2) around one centre per tissue, and the tissues."""
    tissues = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(tissues), 2)) + gap * tissues[:, None], tissues


def mean_within(values: list[float], expected: float) -> bool:
    """Whether the mean of independent values is within three standard errors of its expectation."""
    return abs(np.mean(values) - expected) < 3.0 * np.std(values, ddof=1) / math.sqrt(len(values))


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def stratified_distance(
    own: np.ndarray, tissues: np.ndarray, real: np.ndarray, real_tissues: np.ndarray, n: np.ndarray
) -> float:
    """The formula of the kernel distance, term by term, with weights in proportion to n."""
    total = 0.0
    for s in np.flatnonzero(n):
        for t in np.flatnonzero(n):
            x, z, y, v = own[tissues == s], own[tissues == t], real[real_tissues == s], real[real_tissues == t]
            different, real_different = (~np.eye(len(a), len(b), dtype=bool) | (s != t) for a, b in ((x, z), (y, v)))
            discrepancy = kernel(x, z)[different].mean() + kernel(y, v)[real_different].mean() - 2.0 * kernel(x, v).mean()
            total += n[s] * n[t] / n.sum() ** 2 * discrepancy
    return total


def frechet(own: np.ndarray, real: np.ndarray) -> float:
    return fidelity.frechet_distance(compute_moments(own), compute_moments(real))


def scipy_frechet(own: np.ndarray, real: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    a, b = np.cov(own.T), np.cov(real.T)
    return float(np.square(own.mean(0) - real.mean(0)).sum() + np.trace(a + b - 2.0 * sqrtm(a @ b).real))


# Fréchet distance


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


def test_frechet_distance_needs_ten_images_for_each_dimension():
    names = ("frechet_distance", "frechet_low", "frechet_high", "frechet_bias")
    result = score(features(0, 60), features(1, 120))
    assert set(names) <= set(result) and "undefined" not in result
    for own, real, reason in ((59, 120, "59 images"), (60, 59, "57 real images")):
        undefined = score(features(0, own), features(1, real))["undefined"]
        assert {undefined[name] for name in names} == {f"{reason}: at least 60, 10 for each of 6 dimensions, are needed"}


def test_frechet_distance_is_from_real_images_in_the_same_tissue_proportions():
    rng = np.random.default_rng(0)
    own, tissues = draw_tissues(rng, (100, 20), gap=30.0)
    real = RealFeatures(*draw_tissues(rng, (300, 300), gap=30.0), 2)
    result = fidelity.fidelity_scores(own, tissues, real, slugs=SLUGS[:2], seed=0)
    assert result["frechet_distance"] < 1.0 < 100.0 < frechet(own, real.features)
    assert result["frechet_bias"] < 1.0


def test_bias_is_the_distance_of_equally_many_real_images_of_each_tissue():
    values, distances = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # tissues so far apart that draws regardless of tissue would differ by 10 and more
        own, real = (draw_tissues(rng, counts, gap=100.0) for counts in ((20, 20), (60, 60)))
        reference = RealFeatures(*real, 2)
        result = fidelity.fidelity_scores(*own, reference, slugs=SLUGS[:2], seed=seed)
        values.append(result["frechet_bias"])
        distances.append(result["frechet_distance"])
    assert 0.0 < np.mean(values) < 2.0
    assert np.mean(values) == pytest.approx(np.mean(distances), rel=0.5)
    few = fidelity.fidelity_scores(*own, RealFeatures(real[0][1:], real[1][1:], 2), slugs=SLUGS[:2], seed=0)
    assert "frechet_bias" in few
    few = fidelity.fidelity_scores(*own, RealFeatures(real[0][21:], real[1][21:], 2), slugs=SLUGS[:2], seed=0)
    assert few["undefined"] == {"frechet_bias": "mucus has 39 real images: at least 40 are needed"}


# Kernel distance


def test_kernel_distance_of_one_tissue_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import kernel_mmd

    own, real, tissue = features(0, 50, 0.5), features(1, 50), np.zeros(50, int)
    distance, _, per_tissue = kernel_distance(own, tissue, RealFeatures(real, tissue, 1))
    assert distance == pytest.approx(kernel_mmd(own, real), rel=1e-9)
    assert per_tissue == pytest.approx([distance])


def test_kernel_distance_matches_its_formula():
    rng = np.random.default_rng(0)
    own, tissues = draw_tissues(rng, (4, 9, 0))
    real, real_tissues = draw_tissues(rng, (8, 3, 6))
    shuffled = rng.permutation(len(own))
    own, tissues = own[shuffled], tissues[shuffled]
    distance, _, per_tissue = kernel_distance(own, tissues, RealFeatures(real, real_tissues, 3))
    assert distance == pytest.approx(stratified_distance(own, tissues, real, real_tissues, np.array([4, 9, 0])), rel=1e-9)
    for i in range(2):
        alone = stratified_distance(own, tissues, real, real_tissues, np.eye(3)[i])
        assert per_tissue[i] == pytest.approx(alone, rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_0_on_average():
    stratified, pooled, per_tissue = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        own, tissues = draw_tissues(rng, (10, 15, 10))
        # other proportions than those of the set, which weights have to undo
        real = RealFeatures(*draw_tissues(rng, (30, 20, 25)), 3)
        distance, _, by_tissue = kernel_distance(own, tissues, real)
        stratified.append(distance)
        per_tissue.append(by_tissue.mean())
        matched = RealFeatures(*draw_tissues(rng, (20, 30, 20)), 3)
        once = np.zeros(len(matched.labels), int)
        pooled.append(kernel_distance(own, np.zeros(35, int), RealFeatures(matched.features, once, 1))[0])
    assert mean_within(stratified, 0.0)
    assert mean_within(per_tissue, 0.0)
    # without strata, the same images look closer than two samples of one distribution
    assert np.mean(pooled) < -10.0 * np.std(pooled, ddof=1) / math.sqrt(len(pooled))


def moments_of_normals(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """First three moments of a mixture of normal distributions with variance 1."""
    return np.stack([means, means**2 + 1.0, means**3 + 3.0 * means]) @ weights


def kernel_distance_of_normals(shift: float, weights: tuple[float, ...]) -> float:
    """Kernel distance in 1-D: (xy + 1)^3 is 1 + 3 xy + 3 x^2 y^2 + x^3 y^3, so only the first three moments count."""
    centres, shares = np.arange(len(weights), dtype=float), np.array(weights)
    differences = moments_of_normals(centres + shift, shares) - moments_of_normals(centres, shares)
    return float(np.array([3.0, 3.0, 1.0]) @ np.square(differences))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_and_its_interval_meet_the_value_of_known_distributions(shift: float):
    expected = kernel_distance_of_normals(shift, (0.25, 0.75))
    distances, covered = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tissues, real_tissues = np.repeat([0, 1], [25, 75]), np.repeat([0, 1], [100, 60])
        own = rng.normal(size=(100, 1)) + tissues[:, None] + shift
        real = rng.normal(size=(160, 1)) + real_tissues[:, None]
        distance, half, _ = kernel_distance(own, tissues, RealFeatures(real, real_tissues, 2))
        distances.append(distance)
        covered.append(abs(distance - expected) <= half)
    assert mean_within(distances, expected)
    assert np.mean(covered) >= 0.85


def test_kernel_interval_leaves_one_group_out_of_either_side():
    rng = np.random.default_rng(0)
    (own, tissues), (real, real_tissues) = draw_tissues(rng, (13, 20)), draw_tissues(rng, (30, 25))
    _, half, _ = kernel_distance(own, tissues, RealFeatures(real, real_tissues, 2))
    groups, real_groups = fidelity.jackknife_groups(tissues), fidelity.jackknife_groups(real_tissues)
    slow = []
    for group in range(JACKKNIFE_GROUPS):
        kept, real_kept = groups != group, real_groups != group
        slow.append(
            (
                stratified_distance(own[kept], tissues[kept], real, real_tissues, np.array([13, 20])),
                stratified_distance(own, tissues, real[real_kept], real_tissues[real_kept], np.array([13, 20])),
            )
        )
    assert half == pytest.approx(fidelity.jackknife_half_width(*np.transpose(slow)), rel=1e-9)


# Precision, recall, density and coverage


def prdc(real: np.ndarray, own: np.ndarray) -> dict:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, own, fidelity.NEAREST_NEIGHBOURS)


@pytest.mark.parametrize(("neighbours", "shift"), [(1, 0.0), (5, 1.0)])
def test_precision_recall_density_and_coverage_match_prdc(neighbours: int, shift: float, monkeypatch):
    monkeypatch.setattr(fidelity, "NEAREST_NEIGHBOURS", neighbours)
    own, real = features(0, 120, shift), features(1, 120)
    result = score(own, real)
    for name, value in prdc(real, own).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name
        assert value > 0.0, name
        per_tissue = [prdc(real[i::3], own[i::3])[name] for i in range(3)]
        assert [result["per_tissue"][slug][name] for slug in SLUGS] == pytest.approx(per_tissue, abs=1e-6), name
        assert result["mean_per_tissue"][name] == pytest.approx(np.mean(per_tissue), abs=2e-6), name


def test_copies_and_ties_match_prdc(monkeypatch):
    monkeypatch.setattr(fidelity, "NEAREST_NEIGHBOURS", 2)
    # integers: all distances are exact, and many a neighbour lies at exactly the radius
    real = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(np.float64)
    own = np.concatenate([real[:30], np.random.default_rng(1).integers(0, 5, (30, 3))])
    result = score(own, real)
    for name, value in prdc(real, own).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("real_per_tissue", [50, 250])
def test_coverage_of_a_second_sample_does_not_depend_on_the_number_of_real_images(real_per_tissue: int):
    values: dict[str, list[float]] = {"coverage": [], "precision": [], "recall": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        own, real = (draw_tissues(rng, (count,) * 3, gap=100.0) for count in (50, real_per_tissue))
        result = fidelity.fidelity_scores(*own, RealFeatures(*real, 3), slugs=SLUGS, seed=0)
        for name in values:
            values[name].append(result[name])
            assert result["mean_per_tissue"][name] == pytest.approx(result[name], abs=2e-6), "tissues are far apart"
    # of n + n - 1 images around a real one, none of the k nearest is generated (Naeem et al., 2020)
    missed = math.prod((50 - i) / (100 - i) for i in range(1, 6))
    assert mean_within(values["coverage"], 1.0 - missed)
    assert np.mean(values["precision"]) == pytest.approx(np.mean(values["recall"]), abs=0.02)


def test_radii_match_scipy_and_are_0_for_equal_rows(monkeypatch):
    from scipy.spatial.distance import cdist

    rows = features(0, 40)
    slow = np.sort(cdist(rows, rows), axis=1)
    for k in (4, 39, 1):
        monkeypatch.setattr(fidelity, "NEAREST_NEIGHBOURS", k)
        assert fidelity.compute_radii(rows) == pytest.approx(slow[:, k], rel=1e-6)
    wide = features(0, 30, dimensions=300)
    assert not fidelity.compute_radii(np.concatenate([wide, wide])).any()
    nearby = np.concatenate([wide, wide + 1e-3])
    assert fidelity.compute_radii(nearby) == pytest.approx(np.full(60, 1e-3 * np.sqrt(300)), rel=1e-3)


# Properties


def test_blocks_change_nothing(monkeypatch):
    own, real = features(0, 60, 0.3), features(1, 200)
    expected = score(own, real)
    monkeypatch.setattr(fidelity, "MEBIBYTES", 0.01)
    monkeypatch.setattr(fidelity, "CHUNK", 17)
    assert score(own, real) == expected


def test_order_of_images_does_not_matter():
    own, real = features(0, 90, 0.3), features(1, 201)
    # within each tissue, so that the labels stay the same
    order = np.arange(90).reshape(30, 3)[np.random.default_rng(0).permutation(30)].ravel()
    result, again = score(own, real), score(own[order], real)
    for name in (*PER_TISSUE, "frechet_distance", "frechet_bias", "precision_low"):
        assert again[name] == pytest.approx(result[name], abs=2e-6), name


def test_only_sampled_scores_depend_on_the_seed():
    own, real = features(0, 60), features(1, 201)
    first, second = score(own, real), score(own, real, seed=1)
    differing = {name for name in first if name not in ("per_tissue", "mean_per_tissue") and first[name] != second[name]}
    assert first == score(own, real)
    assert differing >= {"frechet_bias", "density"}
    assert not differing & {"frechet_distance", "frechet_low", "kernel_distance", "kernel_low"}


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
    assert all(row["precision"] == 0.0 and row["kernel_distance"] > 1000.0 for row in result["per_tissue"].values())
    assert result["mean_per_tissue"]["precision"] == 0.0


# Intervals


def test_intervals_contain_the_scores_over_all_tissues():
    result = score(features(0, 90, 0.3), features(1, 201))
    for name, key in INTERVALS.items():
        assert result[f"{name}_low"] < result[key] < result[f"{name}_high"], name
    assert "undefined" not in result
    assert not any(name.endswith(("_low", "_high")) for row in result["per_tissue"].values() for name in row)


def test_frechet_interval_is_as_wide_as_other_images_scatter():
    real, pairs = features(1000, 300, dimensions=4), []
    for seed in range(30):
        result = score(features(seed, 201, 0.5, dimensions=4), real)
        pairs.append((result["frechet_distance"], (result["frechet_high"] - result["frechet_low"]) / 2))
    distances, halves = np.array(pairs).T
    # 2.26: Student's factor with 9 degrees of freedom
    assert np.sqrt(np.square(halves / 2.26).mean()) == pytest.approx(distances.std(ddof=1), rel=0.4)
    covered = np.abs(distances - distances.mean()) <= halves
    assert covered.mean() >= 0.85


def test_frechet_interval_leaves_one_group_out():
    own, real = features(0, 63, 0.5), features(1, 63)
    groups = fidelity.jackknife_groups(labels(63))
    slow = fidelity.jackknife_half_width([scipy_frechet(own[groups != group], real) for group in range(JACKKNIFE_GROUPS)])
    result = score(own, real)
    assert (result["frechet_high"] - result["frechet_low"]) / 2 == pytest.approx(slow, rel=1e-4)


def test_jackknife_of_a_mean_matches_the_formula_of_the_mean():
    values = np.random.default_rng(0).normal(size=40)
    without = [np.delete(values, i).mean() for i in range(40)]
    half = 2.0226909 * values.std(ddof=1) / np.sqrt(40)
    assert fidelity.jackknife_half_width(without) == pytest.approx(half)
    assert fidelity.jackknife_half_width(without, without) == pytest.approx(np.sqrt(2) * half)


def test_jackknife_groups_share_every_tissue():
    tissue = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 31, 7]))
    table = np.zeros((10, 3), int)
    np.add.at(table, (fidelity.jackknife_groups(tissue), tissue), 1)
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1


# Undefined scores


def is_plain(result: dict) -> bool:
    """Whether all values are finite numbers that JSON can hold."""
    json.dumps(result, allow_nan=False)
    values = [value for name, value in result.items() if name not in ("per_tissue", "mean_per_tissue", "undefined")]
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 9, 10, 18, 30, 60])
@pytest.mark.parametrize("kind", ["ordinary", "equal", "zero", "wide"])
def test_every_score_is_defined_or_has_a_reason(count: int, kind: str):
    own = features(0, count, dimensions=40 if kind == "wide" else 6)
    own = {"equal": own * 0 + 3.5, "zero": own * 0}.get(kind, own)
    result = score(own, features(1, 60, dimensions=own.shape[1]))
    ends = {f"{name}_{end}" for name in INTERVALS for end in ("low", "high")}
    everything = PER_TISSUE | ends | {"frechet_distance", "frechet_bias"}
    for row, expected in [(result, everything), *((row, PER_TISSUE) for row in result["per_tissue"].values())]:
        assert is_plain(row)
        assert not row.get("undefined", {}).keys() & row.keys()
        assert (row.get("undefined", {}).keys() | row.keys()) & everything == expected
    assert is_plain(result["mean_per_tissue"])
    assert result["mean_per_tissue"].keys() == set().union(*result["per_tissue"].values()) & PER_TISSUE
    if count == 60 and kind != "wide":
        assert set(result["undefined"]) == {"frechet_bias"}


def test_reasons_name_the_numbers_of_images():
    result = score(features(0, 1), features(1, 30))
    assert result["undefined"]["recall"] == "1 image: at least 6 are needed"
    assert result["undefined"]["kernel_distance"] == "mucus has 1 image: at least 2 are needed"
    assert result["per_tissue"]["mucus"]["undefined"]["kernel_distance"] == "1 image: at least 2 are needed"
    assert result["per_tissue"]["debris"]["undefined"]["coverage"] == "no images"
    assert result["mean_per_tissue"] == {}
    few = score(features(0, 20), features(1, 5))
    assert few["undefined"]["precision_high"] == "5 real images: at least 6 are needed"
    assert few["undefined"]["kernel_low"] == "background has 1 real image: at least 2 are needed"
    none = score(features(0, 20), features(1, 0))
    assert none["undefined"]["recall"] == none["per_tissue"]["mucus"]["undefined"]["kernel_distance"] == "no real images"
    nothing = score(features(0, 0), features(1, 30))
    assert set(nothing["undefined"].values()) == {"no images"}


def test_kernel_interval_needs_ten_images_and_three_of_each_tissue():
    for own, real, reason in (
        (9, 30, "9 images: at least 10 are needed"),
        (30, 9, "9 real images: at least 10 are needed"),
        (30, 30, None),
    ):
        result = score(features(0, own), features(1, real))
        assert "kernel_distance" in result and result.get("undefined", {}).get("kernel_low") == reason
    tissues = np.array([0] * 10 + [1] * 2)
    reference = RealFeatures(features(1, 30), labels(30), 3)
    result = fidelity.fidelity_scores(features(0, 12), tissues, reference, slugs=SLUGS, seed=0)
    assert result["undefined"]["kernel_high"] == "debris has 2 images: at least 3 are needed"


def test_tissues_that_one_side_lacks():
    own, real = features(0, 40), features(1, 90)
    present = RealFeatures(real[labels(90) > 0], labels(90)[labels(90) > 0], 3)
    # the set has no mucus: the others are scored as if there were no such tissue
    tissues = 1 + np.arange(40) % 2
    without = fidelity.fidelity_scores(own, tissues, RealFeatures(real, labels(90), 3), slugs=SLUGS, seed=0)
    expected = fidelity.fidelity_scores(own, tissues, present, slugs=SLUGS, seed=0)
    for name in PER_TISSUE:
        assert without[name] == expected[name], name
    assert without["per_tissue"]["mucus"]["undefined"]["kernel_distance"] == "no images"
    # real images of mucus are missing: no distance of the whole set, but one of each other tissue
    lacking = fidelity.fidelity_scores(own, labels(40), present, slugs=SLUGS, seed=0)
    assert lacking["undefined"]["kernel_distance"] == "mucus has no real images"
    assert "kernel_distance" in lacking["per_tissue"]["debris"] and "kernel_distance" in lacking["mean_per_tissue"]
    disjoint = fidelity.fidelity_scores(own, np.zeros(40, int), present, slugs=SLUGS, seed=0)
    assert disjoint["undefined"]["coverage"] == "no same-tissue pairs"


def test_equal_images_on_either_side():
    same, real = np.full((60, 6), 2.0), features(1, 60)
    result = score(same, real)
    assert result["recall"] == 0.0
    # what is left of the distance: between the means, and the variance of the real images
    expected = np.square(real.mean(axis=0) - 2.0).sum() + real.var(axis=0, ddof=1).sum()
    assert result["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    result = score(features(0, 60), same)
    assert result["undefined"]["density"] == "every real image has 5 others with the same features"
    assert result["undefined"]["density_low"] == result["undefined"]["density"]
    both = score(same, same)
    assert (both["frechet_distance"], both["kernel_distance"], both["kernel_low"]) == (0.0, 0.0, 0.0)
