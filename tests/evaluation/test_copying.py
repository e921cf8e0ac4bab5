"""Copying: nearest training images, and the share of generated images that are too close to one."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.evaluation import copying

SLUGS = ("mucus", "debris", "background")


def random_images(seed: int, count: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def val_distances(seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Distances and labels of validation images; those of background are a thousandth of the others'."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return rng.uniform(1.0, 2.0, count) * np.array([1.0, 1.0, 1e-3])[labels], labels


# Nearest training images


def test_nearest_features_match_scipy():
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(70, 5)).astype(np.float32), rng.normal(size=(90, 5)).astype(np.float32)
    distances, indices = copying.find_nearest(queries, references, chunk=16)
    every = cdist(queries.astype(float), references.astype(float))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float64)
    assert (indices == every.argmin(axis=1)).all()
    assert distances == pytest.approx(every.min(axis=1), rel=1e-6)


def test_distance_of_images_is_the_root_mean_square_difference():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert copying.find_nearest(black, white)[0] == pytest.approx([1.0])


@pytest.mark.parametrize("fill", ["random", "extreme"])
def test_distances_of_images_are_exact(fill: str):
    rng = np.random.default_rng(0)
    queries, references = (rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (9, 14))
    if fill == "extreme":
        # the largest possible sums, and references that differ from a query in a single number
        queries[:], references[:] = 255, 0
        references[3:5] = 255
        references[3, 0, 0, 0], references[4, 1, 2, 0] = 253, 254
    distances, indices = copying.find_nearest(queries, references, chunk=5)
    squared = np.full((9, 14), 2**40)
    for view in range(8):
        rotated = copying.rotate_and_mirror(queries, view).astype(np.int64)
        squared = np.minimum(squared, np.square(rotated[:, None] - references.astype(np.int64)).sum(axis=(2, 3, 4)))
    assert (indices == squared.argmin(axis=1)).all()
    assert distances == pytest.approx(np.sqrt(squared.min(axis=1) / 3072) / 255.0, rel=1e-14)


@pytest.mark.parametrize("view", range(8))
def test_copies_are_found_in_every_rotation_and_mirroring(view: int):
    references = random_images(0, 12)
    queries = copying.rotate_and_mirror(references, view)
    distances, indices = copying.find_nearest(queries, references, chunk=5)
    assert (distances == 0.0).all()
    assert (indices == np.arange(12)).all()
    assert (queries == references).all() == (view == 0)


def test_the_eight_views_differ():
    assert len({copying.rotate_and_mirror(random_images(0, 1), view).tobytes() for view in range(8)}) == 8


def test_memory_mapped_references_and_no_queries(tmp_path):
    queries, references = random_images(0, 10), random_images(1, 11)
    np.save(tmp_path / "references.npy", references)
    mapped = np.load(tmp_path / "references.npy", mmap_mode="r")
    for whole, part in zip(copying.find_nearest(queries, references), copying.find_nearest(queries, mapped, 3), strict=True):
        np.testing.assert_array_equal(whole, part)
    assert [len(values) for values in copying.find_nearest(queries[:0], mapped)] == [0, 0]


def test_small_distances_between_large_numbers_are_kept():
    features = np.full((1, 50), 1000.0)
    assert copying.find_nearest(features, features + 0.01)[0] == pytest.approx([0.01 * np.sqrt(50)], rel=1e-4)
    assert copying.find_nearest(features, features)[0].tolist() == [0.0]


# Scores


def test_share_by_hand():
    val_labels = np.repeat([0, 1], [99, 100])
    val = np.concatenate([np.arange(1, 100) / 50, np.arange(101, 201) / 150.5])
    # the medians are 1, so the 1 % of 199 images below the limit are the two smallest, 0.02 and 0.04
    result = copying.copying_scores(np.array([0.01, 0.039, 0.04, 1.0]), np.zeros(4, int), val, val_labels, SLUGS[:2])
    low, high = copying.binomial_interval(2, 4)
    assert result == {
        "share_below": 0.5, "low": round(low, 6), "high": round(high, 6), "expected": 0.01, "n_images": 4, "n_val": 199,
        "p_more": round(copying.copying_p_value(2, 4, 199), 6),
    }  # fmt: skip


def test_interval_is_that_of_clopper_and_pearson():
    from scipy.stats import beta

    assert copying.binomial_interval(3, 40) == pytest.approx((beta.ppf(0.025, 3, 38), beta.ppf(0.975, 4, 37)))
    assert copying.binomial_interval(0, 40) == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))
    assert copying.binomial_interval(40, 40)[1] == 1.0


def test_p_value_by_hand():
    # below the second smallest of 199, or the smallest of 99: two or one of the possible ranks of a new image
    assert copying.copying_p_value(1, 1, 199) == pytest.approx(2 / 200)
    assert copying.copying_p_value(1, 1, 99) == pytest.approx(1 / 100)
    # both of two: the second has one more rank of one more
    assert copying.copying_p_value(2, 2, 199) == pytest.approx(2 / 200 * 3 / 201)
    assert copying.copying_p_value(2, 2, 99) == pytest.approx(1 / 100 * 2 / 101)
    # a limit between the second and the third counts as the third
    assert copying.copying_p_value(1, 1, 200) == pytest.approx(3 / 201)
    assert [copying.copying_p_value(0, count, 540) for count in (1, 450)] == pytest.approx([1.0, 1.0])
    assert 0.0 < copying.copying_p_value(400, 450, 540) < 1e-100


@pytest.mark.parametrize("n_val", [99, 199, 299, 540, 999, 7199])
def test_rank_is_the_first_at_or_above_the_limit(n_val: int):
    limit = np.quantile(np.arange(1.0, n_val + 1), copying.EXPECTED, method="weibull")
    rank = round(copying.copying_p_value(1, 1, n_val) * (n_val + 1))
    assert rank - 1 < limit <= rank + 1e-9


@pytest.mark.parametrize("n_val", [199, 540])
@pytest.mark.parametrize("count", [450, 2000])
def test_p_value_controls_false_positives_and_interval_does_not(count: int, n_val: int):
    rng = np.random.default_rng(0)
    limits = np.quantile(rng.random((8000, n_val)), copying.EXPECTED, axis=1, method="weibull")
    below = rng.binomial(count, limits)
    p = np.array([copying.copying_p_value(k, count, n_val) for k in range(below.max() + 1)])[below]
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))
    # with the limit held fixed, more than twice the nominal 2.5 % of one end would be called copies
    low = np.array([copying.binomial_interval(k, count)[0] for k in range(below.max() + 1)])[below]
    assert (low > copying.EXPECTED).mean() > 0.05


def test_copies_are_detected_and_new_images_are_not():
    scale = np.geomspace(1e-3, 1.0, 9)

    def distances(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 9
        return scale[labels] * rng.lognormal(0.0, 0.3, count), labels

    p, shares = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        (own, labels), (val, val_labels) = distances(rng, 450), distances(rng, 540)
        copied = np.where(np.arange(450) < 30, 0.0, own)
        results = [copying.copying_scores(d, labels, val, val_labels, "abcdefghi") for d in (own, copied)]
        p.append([result["p_more"] for result in results])
        shares.append(results[0]["share_below"])
    assert np.mean(np.array(p)[:, 0] <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(p)[:, 1] <= 0.05) > 0.95
    assert np.mean(shares) == pytest.approx(copying.EXPECTED, abs=0.005)


def test_flat_background_does_not_set_the_scale():
    val, val_labels = val_distances()
    own, labels = np.concatenate([[0.1, 0.1, 1e-4], val]), np.concatenate([[0, 1, 2], val_labels])
    result = copying.copying_scores(own, labels, val, val_labels, SLUGS)
    assert result["n_images"] == 303
    # the copies and about one per cent of the validation images themselves
    assert 3 <= round(result["share_below"] * 303) <= 6


def test_tissues_without_a_unit_are_left_out_with_a_reason():
    val, val_labels = val_distances()
    val[val_labels == 2] = 0.0
    own, labels = val_distances(1)
    result = copying.copying_scores(own, labels, val, val_labels, SLUGS)
    assert result["left_out"] == {"background": "half of the validation images equal training images"}
    assert (result["n_images"], result["n_val"]) == (200, 200)
    known = val_labels != 1
    result = copying.copying_scores(own, labels, val_distances()[0][known], val_labels[known], SLUGS)
    assert result["left_out"] == {"debris": "no validation images"}
    # a tissue that was not generated is not mentioned
    only = labels == 0
    assert "left_out" not in copying.copying_scores(own[only], labels[only], val, val_labels, SLUGS)


@pytest.mark.parametrize(
    ("own", "val", "reason"),
    [
        (np.zeros(0), np.ones(200), "no images"),
        (np.ones(3), np.ones(98), "validation images: 98, a quantile of 0.01 needs 99"),
        (np.ones(3), np.zeros(200), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.zeros(0), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.repeat([0.0, 1.0], [10, 190]), "a share 0.01 of the validation images equals training images"),
    ],
)
def test_undefined_share_has_a_reason(own: np.ndarray, val: np.ndarray, reason: str):
    result = copying.copying_scores(own, np.zeros(len(own), int), val, np.zeros(len(val), int), SLUGS)
    assert result["undefined"] == {"share_below": reason}
    assert "share_below" not in result


def test_closest_pairs_are_in_units_of_their_tissue():
    val, val_labels = np.repeat([2.0, 0.5, 0.0], 3), np.repeat([0, 1, 2], 3)
    own, labels = np.array([1.0, 0.45, 0.0, 0.5, 0.125]), np.array([0, 1, 2, 0, 1])
    order, scaled = copying.closest_pairs(own, labels, val, val_labels, SLUGS, limit=3)
    # two at a quarter of the median, in their order; background has no unit
    assert order.tolist() == [3, 4, 0]
    assert scaled == pytest.approx([0.25, 0.25, 0.5])
    assert copying.closest_pairs(own[:0], labels[:0], val, val_labels, SLUGS, limit=3)[0].tolist() == []
