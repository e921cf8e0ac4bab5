"""Realism: torchmetrics', prdc's and scipy's numbers, known answers, and what is said where there is no score."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from pathsynth.core.io import write_npy
from pathsynth.core.rows import RowFile, select_rows
from pathsynth.evaluation import fidelity as realism
from pathsynth.evaluation.fidelity import RealImages, Reference, Settings
from pathsynth.evaluation.neighbours import squared_distances, squared_radii

SLUGS = ("mucus", "debris", "background")
QUICK = Settings(kernel_subsets=5, kernel_subset_size=40, resamples=200)


def features(seed: int, count: int, shift: float = 0.0, dimensions: int = 6) -> np.ndarray:
    """Features as networks give them: correlated, float32, never below 0."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions))
    return np.maximum(rng.normal(size=(count, dimensions)) @ mixing + shift, 0.0).astype(np.float32)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % len(SLUGS)


def scored(own: np.ndarray, reference: np.ndarray, **settings) -> dict:
    real = Reference(reference, labels(len(reference)), settings.pop("neighbours", 3))
    kwargs = {"slugs": SLUGS, "seed": 0, "settings": QUICK} | settings
    return realism.realism_scores(own, labels(len(own)), real, **kwargs)


def scipy_frechet(own: np.ndarray, real: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    own, real = own.astype(float), real.astype(float)
    a, b = np.cov(own.T), np.cov(real.T)
    return float(np.square(own.mean(0) - real.mean(0)).sum() + np.trace(a + b - 2.0 * sqrtm(a @ b).real))


def frechet(real: np.ndarray, own: np.ndarray) -> float:
    return realism.frechet_distance(realism.normal(realism.feature_sums(real, size=64)), realism.feature_sums(own, size=7))


@pytest.mark.parametrize(("count", "dimensions"), [(200, 6), (30, 40)])
def test_frechet_distance_is_that_of_scipy_and_torchmetrics(count: int, dimensions: int):
    from torchmetrics.image.fid import FrechetInceptionDistance

    own, real = features(0, count, 0.5, dimensions), features(1, 300, 0.0, dimensions)
    assert frechet(real, own) == pytest.approx(scipy_frechet(own, real), rel=1e-4)
    network = torch.nn.Flatten()
    network.register_buffer("num_features", torch.tensor(dimensions))
    theirs = FrechetInceptionDistance(feature=network)
    theirs.update(torch.tensor(real).double(), real=True)
    theirs.update(torch.tensor(own).double(), real=False)
    assert frechet(real, own) == pytest.approx(float(theirs.compute()), rel=1e-4)
    # which of the two covariances has its root taken does not matter
    assert frechet(own, real) == pytest.approx(frechet(real, own), rel=1e-6)


def test_frechet_distance_of_two_known_normal_distributions():
    # moments are all that counts: these rows have mean (0, 0) or (3, 4), and variance 1 or 4 in each direction
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * np.sqrt(3 / 4)
    assert frechet(square, 2.0 * square + [3.0, 4.0]) == pytest.approx(25.0 + 2 * (2.0 - 1.0) ** 2)
    assert frechet(square, square) == pytest.approx(0.0, abs=1e-6)


def test_sums_of_parts_add_up():
    rows = features(0, 60)
    rest = realism.feature_sums(rows).without(realism.feature_sums(rows[:25]))
    assert rest.count == 35
    assert rest.mean().numpy() == pytest.approx(rows[25:].mean(axis=0), rel=1e-5)
    assert rest.covariance().numpy() == pytest.approx(np.cov(rows[25:].astype(float).T), rel=1e-9)


def test_kernel_distance_is_that_of_torchmetrics_and_of_the_formula():
    from torchmetrics.image.kid import poly_mmd

    own, real = features(0, 50, 0.5), features(1, 50)
    ours, choice = realism.kernel_distance(own, RealImages(real, 3), 1, 50, np.random.default_rng(0))
    assert ours == pytest.approx(float(poly_mmd(torch.tensor(real).double(), torch.tensor(own).double())), rel=1e-9)
    assert choice == 0.0

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x.astype(float) @ y.T.astype(float) / 6 + 1.0) ** 3

    off = ~np.eye(50, dtype=bool)
    slow = kernel(own, own)[off].mean() + kernel(real, real)[off].mean() - 2.0 * kernel(own, real).mean()
    assert ours == pytest.approx(slow, rel=1e-9)


def test_kernel_distance_of_subsets_is_about_that_of_all_pairs():
    own, real = RealImages(features(0, 120, 0.5), 3), RealImages(features(1, 120), 3)
    whole, _ = realism.kernel_distance(own.rows, real, 1, 120, np.random.default_rng(0))
    subsets, choice = realism.kernel_distance(own.rows, real, 400, 30, np.random.default_rng(0))
    assert subsets == pytest.approx(whole, abs=4.0 * math.sqrt(choice))
    assert 0.0 < math.sqrt(choice) < 0.2 * whole


def prdc(real: np.ndarray, own: np.ndarray, neighbours: int) -> dict:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, own, neighbours)


@pytest.mark.parametrize(("neighbours", "shift"), [(1, 0.0), (5, 1.0)])
def test_precision_recall_density_and_coverage_are_those_of_prdc(neighbours: int, shift: float):
    own, real = features(0, 90, shift), features(1, 120)
    result = scored(own, real, neighbours=neighbours)
    for name, value in prdc(real, own, neighbours).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name
        assert value > 0.0, name
    for i, slug in enumerate(SLUGS):
        for name, value in prdc(real[i::3], own[i::3], neighbours).items():
            assert result["per_tissue"][slug][name] == pytest.approx(value, abs=1e-6), (slug, name)


def test_copies_and_ties_count_as_in_prdc():
    # whole numbers: all distances are exact, and many a neighbour lies at exactly the radius
    real = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(np.float32)
    own = np.concatenate([real[:20], np.random.default_rng(1).integers(0, 5, (25, 3))]).astype(np.float32)
    result = scored(own, real, neighbours=2)
    for name, value in prdc(real, own, 2).items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


def test_distances_of_equal_rows_are_nothing_and_small_ones_are_kept():
    rows = torch.tensor(features(0, 50, dimensions=300)).double()
    assert (squared_distances(rows, rows).diagonal() == 0.0).all()
    assert (squared_distances(rows, rows.flip(0)).flip(1).diagonal() == 0.0).all()
    moved = rows.clone()
    moved[:, 0] += 0.1
    assert squared_distances(rows, moved).diagonal().numpy() == pytest.approx(np.full(50, 0.01), rel=1e-3)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_radii_are_those_of_the_kth_other_row(size: int):
    from scipy.spatial.distance import cdist

    rows = features(0, 40)
    slow = np.sort(cdist(rows.astype(float), rows.astype(float)), axis=1)
    for k in (1, 4, 39):
        assert np.sqrt(squared_radii(rows, k, size=size).numpy()) == pytest.approx(slow[:, k], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [1, 13, 500])
def test_block_size_does_not_matter(size: int):
    own, real = features(0, 50, 0.3), RealImages(features(1, 70), 3)
    counts, held = realism.in_real_balls(own, real, size)
    expected = realism.in_real_balls(own, real)
    assert (counts == expected[0]).all()
    assert (held == expected[1]).all()
    assert realism.recall(own, real, size) == realism.recall(own, real)
    ours, whole = realism.feature_sums(own, size), realism.feature_sums(own)
    assert ours.count == whole.count
    assert torch.allclose(ours.total, whole.total, rtol=1e-12)
    assert torch.allclose(ours.outer, whole.outer, rtol=1e-12)


def test_order_of_images_does_not_matter():
    own, real = features(0, 90, 0.3), features(1, 200)
    order = np.random.default_rng(0).permutation(90)
    reference = Reference(real, labels(200), 3)
    result = realism.realism_scores(own, labels(90), reference, slugs=SLUGS, seed=0, settings=QUICK)
    again = realism.realism_scores(own[order], labels(90)[order], reference, slugs=SLUGS, seed=0, settings=QUICK)
    unchanged = ("frechet_distance", "frechet_bias", "precision", "recall", "density", "coverage", "precision_low")
    for name in unchanged:
        assert again[name] == pytest.approx(result[name], abs=2e-6), name


def test_files_give_what_arrays_give_and_a_reference_can_be_used_again(tmp_path):
    own, real = features(0, 60, 0.3), features(1, 90)
    write_npy(tmp_path / "own.npy", own)
    write_npy(tmp_path / "real.npy", real)
    reference = Reference(RowFile(tmp_path / "real.npy"), labels(90), 3)
    for _ in range(2):
        on_disk = realism.realism_scores(
            RowFile(tmp_path / "own.npy"), labels(60), reference, slugs=SLUGS, seed=0, settings=QUICK
        )
        assert on_disk == scored(own, real)


def test_what_is_drawn_depends_on_the_seed_alone():
    own, real = features(0, 60), features(1, 200)
    first, second = scored(own, real), scored(own, real, seed=1)
    drawn = {name for name in first if name != "per_tissue" and first[name] != second[name]}
    assert first == scored(own, real)
    assert drawn >= {"frechet_bias", "kernel_distance"}
    assert not drawn & {"frechet_distance", "frechet_low", "precision", "recall", "density", "coverage"}


def test_intervals_hold_the_scores():
    result = scored(features(0, 90, 0.3), features(1, 200))
    for name, score in realism.INTERVALS.items():
        assert result[f"{name}_low"] < result[score] < result[f"{name}_high"], name
    assert "undefined" not in result
    assert not any(name.endswith(("_low", "_high")) for row in result["per_tissue"].values() for name in row)


def test_jackknife_intervals_are_as_wide_as_other_images_scatter():
    real = RealImages(features(1000, 300, dimensions=4), 3)
    values: dict[str, list[tuple[float, float]]] = {"frechet": [], "kernel": []}
    for seed in range(60):
        own = features(seed, 200, 0.5, dimensions=4)
        groups = realism.jackknife_groups(np.zeros(200, int), 10)
        sums = realism.feature_sums(own)
        half = realism.frechet_half_width(own, sums, groups, real)
        values["frechet"].append((realism.frechet_distance(real.normal, sums), half))
        kernel, choice = realism.kernel_distance(own, real, 20, 60, np.random.default_rng(seed))
        values["kernel"].append((kernel, realism.kernel_half_width(own, groups, real, choice)))
    for name, pairs in values.items():
        scores, halves = np.array(pairs).T
        # 2.26: Student's factor with 9 degrees of freedom
        assert np.sqrt(np.square(halves / 2.26).mean()) == pytest.approx(scores.std(ddof=1), rel=0.4), name
        covered = np.abs(scores - scores.mean()) <= halves
        assert covered.mean() >= 0.85, name


def test_half_width_of_the_frechet_distance_leaves_groups_out():
    own, real = features(0, 33, 0.5), RealImages(features(1, 50), 3)
    groups = realism.jackknife_groups(labels(33), 10)
    slow = realism.jackknife_half_width([scipy_frechet(own[groups != group], real.rows[:]) for group in range(10)])
    assert realism.frechet_half_width(own, realism.feature_sums(own), groups, real) == pytest.approx(slow, rel=1e-4)


def test_jackknife_of_a_mean_is_the_formula_for_a_mean():
    values = np.random.default_rng(0).normal(size=40)
    without = [np.delete(values, i).mean() for i in range(40)]
    assert realism.jackknife_half_width(without) == pytest.approx(2.0226909 * values.std(ddof=1) / np.sqrt(40))


def test_half_width_of_the_kernel_distance_leaves_groups_out():
    own, real = features(0, 33, 0.5), RealImages(features(1, 50), 3)
    groups = realism.jackknife_groups(labels(33), 10)

    def unbiased(rows: np.ndarray) -> float:
        kernel = (rows.astype(float) @ rows.T.astype(float) / 6 + 1.0) ** 3
        across = (rows.astype(float) @ real.rows[:].T.astype(float) / 6 + 1.0) ** 3
        return kernel[~np.eye(len(rows), dtype=bool)].mean() - 2.0 * across.mean()

    slow = realism.jackknife_half_width([unbiased(own[groups != group]) for group in range(10)], 0.25)
    assert realism.kernel_half_width(own, groups, real, 0.25) == pytest.approx(slow, rel=1e-9)
    alone = realism.kernel_half_width(own, groups, real, 0.0)
    assert alone < slow


def test_half_width_of_the_kernel_distance_in_several_blocks(monkeypatch):
    own, real = features(0, 33, 0.5), RealImages(features(1, 50), 3)
    groups = realism.jackknife_groups(labels(33), 10)
    expected = realism.kernel_half_width(own, groups, real, 0.0)
    pieces = realism.pieces
    monkeypatch.setattr(realism, "pieces", lambda rows, device="cpu", size=8: pieces(rows, device, 8))
    assert realism.kernel_half_width(own, groups, real, 0.0) == pytest.approx(expected, rel=1e-9)


def test_groups_share_every_tissue():
    tissue = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 31, 7]))
    table = np.zeros((10, 3), int)
    np.add.at(table, (realism.jackknife_groups(tissue, 10), tissue), 1)
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1


def test_bias_is_what_real_images_would_get():
    real = features(0, 400)
    few, many = (np.mean([scored(features(1, n), real, seed=s)["frechet_bias"] for s in range(5)]) for n in (20, 200))
    assert 0.0 < many < 0.3 * few
    # other images of the same kind are as far away as the bias says
    distances = [scored(features(seed, 20), real)["frechet_distance"] for seed in range(2, 12)]
    assert np.mean(distances) == pytest.approx(few, rel=0.5)


def test_too_few_images_for_a_covariance_are_said_to_be():
    assert scored(features(0, 60), features(1, 60))["frechet_full_rank"] is True
    result = scored(features(0, 30, dimensions=30), features(1, 90, dimensions=30))
    assert result["frechet_full_rank"] is False
    assert result["frechet_bias"] > 0.3 * result["frechet_distance"]


def test_mean_of_a_bootstrap_is_stratified():
    values, tissue = np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50)
    # all images of a tissue are equal, so nothing varies
    assert realism.bootstrap_mean(values, tissue, np.random.default_rng(0), 200) == (0.5, 0.5)
    low, high = realism.bootstrap_mean(values, np.zeros(100, int), np.random.default_rng(0), 2000)
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.015)


def is_plain(result: dict) -> bool:
    """Whether a result can be written: Python's own numbers, all of them finite."""
    json.dumps(result, allow_nan=False)
    values = [value for name, value in result.items() if name not in ("per_tissue", "undefined")]
    return all(type(value) in (int, float, bool) and math.isfinite(value) for value in values)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9, 10, 12, 30])
@pytest.mark.parametrize("kind", ["ordinary", "equal", "zero", "wide"])
def test_every_score_is_there_or_said_to_be_missing(count: int, kind: str):
    own = features(0, count, dimensions=40 if kind == "wide" else 6)
    own = {"equal": own * 0 + 3.5, "zero": own * 0}.get(kind, own)
    real = features(1, 30, dimensions=own.shape[1])
    result = scored(own, real)
    assert is_plain(result)
    names = {"frechet_distance", "frechet_bias", "kernel_distance", "precision", "recall", "density", "coverage"}
    ends = {f"{name}_{end}" for name in realism.INTERVALS for end in ("low", "high")}
    for row, expected in [(result, names | ends), *((row, names) for row in result["per_tissue"].values())]:
        assert is_plain(row)
        assert not row.get("undefined", {}).keys() & row.keys()
        assert row.get("undefined", {}).keys() | row.keys() >= expected
    if count == 30:
        assert "undefined" not in result or set(result["undefined"]) == {"frechet_bias"}


def test_reasons_are_words():
    result = scored(features(0, 1), features(1, 30))
    assert result["undefined"]["frechet_distance"] == "images: 1, at least 2 are needed"
    assert result["undefined"]["recall"] == "images: 1, at least 4 are needed"
    assert result["undefined"]["precision_low"] == "images: 1, at least 10 are needed"
    assert result["per_tissue"]["debris"]["undefined"]["coverage"] == "no images"
    assert scored(features(0, 20), features(1, 30))["undefined"] == {"frechet_bias": "real images: 30, at least 40 are needed"}
    few = scored(features(0, 20), features(1, 3))
    assert few["undefined"]["precision_high"] == "real images: 3, at least 4 are needed"
    assert few["per_tissue"]["mucus"]["undefined"]["frechet_distance"] == "real images: 1, at least 2 are needed"
    none = scored(features(0, 20), features(1, 0))
    assert none["undefined"]["recall"] == none["undefined"]["kernel_low"] == "no real images"


def test_equal_images_on_either_side():
    same = np.full((20, 6), 2.0, np.float32)
    result = scored(same, features(1, 60))
    assert result["recall"] == 0.0
    # all that is left of the distance: between the means, and the variance of the real images
    real = features(1, 60).astype(float)
    expected = np.square(real.mean(axis=0) - 2.0).sum() + real.var(axis=0, ddof=1).sum()
    assert result["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    result = scored(features(0, 20), np.full((60, 6), 2.0, np.float32))
    assert result["undefined"]["density"] == "every real image has 3 others with the same features"
    assert result["undefined"]["density_low"] == result["undefined"]["density"]
    both = scored(same, np.full((60, 6), 2.0, np.float32))
    assert (both["frechet_distance"], both["kernel_distance"]) == (0.0, 0.0)


def test_real_images_against_themselves():
    real = features(1, 90)
    result = scored(real, real)
    assert result["frechet_distance"] == pytest.approx(0.0, abs=1e-5)
    assert (result["precision"], result["recall"], result["coverage"]) == (1.0, 1.0, 1.0)
    assert result["kernel_distance"] < 0.0


def test_tissues_are_compared_with_their_own():
    # each tissue's images are real ones of the next: nothing to see over all, everything tissue by tissue
    real = features(1, 240) + 40.0 * labels(240)[:, None].astype(np.float32)
    result = realism.realism_scores(
        real, (labels(240) + 1) % 3, Reference(real, labels(240), 3), slugs=SLUGS, seed=0, settings=QUICK
    )
    assert result["precision"] == 1.0
    assert all(row["precision"] == 0.0 and row["frechet_distance"] > 1000.0 for row in result["per_tissue"].values())


def reference(count: int = 12, neighbours: int = 3) -> Reference:
    return Reference(features(0, count), labels(count), neighbours)


def score_with(own: np.ndarray, own_labels: np.ndarray, **settings) -> dict:
    return realism.realism_scores(own, own_labels, reference(), slugs=SLUGS, seed=0, settings=Settings(**settings))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference(neighbours=0), "neighbours: 0"),
        (lambda: Reference(features(0, 4), labels(3), 3), "4 rows and labels"),
        (lambda: Reference(features(0, 4)[0], labels(6), 3), r"expected \(N, D\)"),
        (lambda: score_with(features(0, 4), labels(4) * 0.5), "one integer for each"),
        (lambda: score_with(features(0, 4), labels(4) + 1), "labels: 1 to 3, expected 0 to 2"),
        (lambda: score_with(features(0, 4, dimensions=5), labels(4)), "5 dimensions, of the reference 6"),
        (lambda: score_with(features(0, 4) * np.nan, labels(4)), "not finite"),
        (lambda: score_with(features(0, 4), labels(4), kernel_subsets=0), "kernel_subsets: 0"),
        (lambda: score_with(features(0, 4), labels(4), kernel_subset_size=1), "kernel_subset_size: 1"),
        (lambda: score_with(features(0, 4), labels(4), groups=2), "groups: 2"),
        (lambda: squared_radii(features(0, 3), 3), "3 rows have no neighbour number 3"),
    ],
)
def test_impossible_input_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("gap", "span"), [(0, 1), (0, 100), (48, 2**22), (200, 24), (2**16, 2**22)])
def test_rows_are_the_same_whatever_is_read_together(gap: int, span: int, tmp_path, monkeypatch):
    array = features(0, 100)
    write_npy(tmp_path / "rows.npy", array)
    monkeypatch.setattr("pathsynth.core.rows.GAP", gap)
    monkeypatch.setattr("pathsynth.core.rows.SPAN", span)
    on_disk = RowFile(tmp_path / "rows.npy")
    for indices in (np.arange(0, 100, 9), np.arange(100), np.array([0, 1, 2, 50, 52, 99]), np.array([99]), np.array([7, 7, 3])):
        np.testing.assert_array_equal(on_disk[indices], array[indices])


def test_a_tissues_rows_are_read_in_place():
    rows = select_rows(features(0, 10), np.array([1, 4, 7]))
    assert squared_radii(rows, 2).shape == (3,)


def test_a_mixed_reference_compares_like_with_like_and_keeps_its_tissues():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [400, 100])
    rows = rng.normal(size=(500, 4)) + 6.0 * labels[:, None]
    asked = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 4)) + 6.0 * asked[:, None]
    whole = Reference(rows, labels, 3)
    even = whole.mixed(np.concatenate([np.arange(100), np.arange(400, 500)]))
    slugs = ("a", "b")
    uneven_scores = realism.realism_scores(features, asked, whole, slugs=slugs, seed=1)
    even_scores = realism.realism_scores(features, asked, even, slugs=slugs, seed=1)
    # the features of each tissue are distributed as its real ones: all that is left is how the tissues are mixed
    assert even_scores["frechet_distance"] < 1.0 < 10.0 < uneven_scores["frechet_distance"]
    assert even_scores["n_reference"] == 200
    assert even_scores["per_tissue"] == uneven_scores["per_tissue"]
