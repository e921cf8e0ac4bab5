"""Copying: nearest training images, and the share of generated images that are too close to one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pathsynth.data.images import VIEWS, as_batch, as_images, rotate_and_mirror
from pathsynth.evaluation import copying
from pathsynth.evaluation.copying import CopyCheck, search_moved, search_nearest
from pathsynth.features.controls import move_and_restain

SLUGS = ("mucus", "debris", "background")
# Absorbance of one dose of haematoxylin and of eosin.
ABSORBANCE = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


def make_doses(seed: int, count: int, side: int = 64) -> np.ndarray:
    """Doses of two stains in blots of about 4 px, float (count, side, side, 2)."""
    fields = gaussian_filter(np.random.default_rng(seed).normal(size=(count, side, side, 2)), (0, 2, 2, 0), mode="wrap")
    return np.maximum(0.0, 0.5 + 4 * fields)


def stain(doses: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.exp(-doses @ ABSORBANCE)).astype(np.uint8)


def shrink(images: np.ndarray) -> np.ndarray:
    """The thumbnails of 32 px that are compared."""
    return as_images(as_batch(images, "cpu", 32))


def textures(seed: int, count: int) -> np.ndarray:
    return shrink(stain(make_doses(seed, count)))


def val_distances(seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Distances and labels of validation images; those of background are a thousandth of the others'."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return rng.uniform(1.0, 2.0, count) * np.array([1.0, 1.0, 1e-3])[labels], labels


# Nearest features


def test_nearest_features_match_scipy():
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(70, 5)).astype(np.float32), rng.normal(size=(90, 5)).astype(np.float32)
    # neither unit nor offset of a feature counts
    scale, offset = np.array([1, 1e3, 1e-3, 1, 1], np.float32), np.array([0, 1e4, 0, 0, 0], np.float32)
    distances, indices = search_nearest(references * scale + offset)(queries * scale + offset)
    every = cdist(queries / references.std(axis=0), references / references.std(axis=0))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float64)
    assert (indices == every.argmin(axis=1)).all()
    assert distances == pytest.approx(every.min(axis=1), rel=1e-3)


def test_equal_features_have_distance_0_and_constant_ones_do_not_count():
    features = np.random.default_rng(0).normal(1e4, 1.0, (20, 7))
    features[:, 3] = 5.0
    distances, indices = search_nearest(features)(features[::2])
    assert (distances == 0.0).all() and indices.tolist() == list(range(0, 20, 2))
    moved = features + np.eye(7)[3]
    assert search_nearest(features)(moved)[0] == pytest.approx(np.ones(20))


# Nearest images


@pytest.mark.parametrize("view", range(VIEWS))
def test_copies_are_found_in_every_rotation_and_mirroring(view: int):
    references = textures(0, 12)
    distances, indices = search_moved(references)(rotate_and_mirror(references, view))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float64)
    assert (distances == 0.0).all()
    assert indices.tolist() == list(range(12))


# the largest shift is 8 px; one of an odd number of pixels is one of half pixels in a thumbnail
@pytest.mark.parametrize(("down", "right"), [(4, 0), (0, -4), (3, -5), (-8, 7)])
def test_shifted_copies_are_found(down: int, right: int):
    doses = make_doses(0, 40, 80)
    references, shifted = (shrink(stain(doses[:, y : y + 64, x : x + 64])) for y, x in ((8, 8), (8 - down, 8 - right)))
    distances, indices = search_moved(references)(shifted[:20])
    assert indices.tolist() == list(range(20))
    assert distances.max() < 0.05
    assert search_moved(references[20:])(shifted[:20])[0].min() > 0.3


@pytest.mark.parametrize("factors", [(0.8, 1.0), (1.25, 1.0), (1.0, 0.8), (1.0, 1.25), (1.25, 1.25), (0.5, 0.5)])
def test_restained_copies_are_found(factors: tuple[float, float]):
    doses = make_doses(0, 12)
    distances, indices = search_moved(shrink(stain(doses)))(shrink(stain(doses * factors)))
    assert indices.tolist() == list(range(12))
    assert distances.max() < 0.02


def test_correlation_is_that_of_the_overlap():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 16, 16)).astype(np.float32)
    best = np.full(5, -1.0)
    for down in range(-2, 3):
        for right in range(-2, 3):
            rows, columns = (slice(max(shift, 0), 16 + min(shift, 0)) for shift in (down, right))
            others = (slice(max(-shift, 0), 16 + min(-shift, 0)) for shift in (down, right))
            pairs = zip(first[:, rows, columns], second[(slice(None), *others)], strict=True)
            best = np.maximum(best, [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs])
    order = np.array([3, 0, 4, 1, 2])
    found = copying._Shifted(first).correlate(copying._Shifted(second[order]), np.argsort(order))
    assert found == pytest.approx(best, abs=1e-5)


def test_flat_images_resemble_none():
    flat = np.full((3, 32, 32, 3), 240, np.uint8)
    flat[1] = 0
    # a gradient, and noise of one grey level
    flat[2] += np.linspace(0, 15, 32).astype(np.uint8)[:, None]
    assert (search_moved(flat)(flat)[0] == 1.0).all()
    assert (search_moved(flat)(textures(0, 3))[0] == 1.0).all()


def test_memory_maps_chunks_and_no_queries(tmp_path, monkeypatch):
    queries, references = textures(0, 10), textures(1, 11)
    np.save(tmp_path / "references.npy", references)
    mapped = np.load(tmp_path / "references.npy", mmap_mode="r")
    expected = search_moved(references)(queries)
    monkeypatch.setattr(copying, "CHUNK", 3)
    distances, indices = search_moved(mapped)(queries)
    assert distances == pytest.approx(expected[0], abs=2e-5)
    assert (indices == expected[1]).all()
    features = np.zeros((4, 2))
    for search, rows in ((search_moved(mapped), queries), (search_nearest(features), features)):
        assert [len(values) for values in search(rows[:0])] == [0, 0]


# Scores


def test_share_by_hand():
    val_labels = np.repeat([0, 1], [99, 100])
    val = np.concatenate([np.arange(1, 100) / 50, np.arange(101, 201) / 150.5])
    # the medians are 1, and the limit is the second smallest of 199, 0.04
    result = copying.copying_scores(np.array([0.01, 0.039, 0.04, 1.0]), np.zeros(4, int), val, val_labels, SLUGS[:2])
    low, high = copying.binomial_interval(2, 4)
    assert result == {
        "share": 0.5, "low": round(low, 6), "high": round(high, 6), "expected": 0.01, "n_images": 4, "n_val": 199,
        "p_more": round(copying.copying_p_value(2, 4, 2, 199), 6),
    }  # fmt: skip


@pytest.mark.parametrize(("n_val", "rank"), [(1, 1), (85, 1), (99, 1), (198, 1), (199, 2), (540, 5), (7199, 72)])
def test_few_validation_images_state_the_expected_share(n_val: int, rank: int):
    val = np.arange(1.0, n_val + 1)
    own = np.array([rank - 0.5, rank, rank + 0.5])
    result = copying.copying_scores(own, np.zeros(3, int), val, np.zeros(n_val, int), SLUGS[:1])
    assert result["expected"] == round(rank / (n_val + 1), 6)
    assert result["share"] == pytest.approx(1 / 3, abs=1e-6)


def test_interval_is_that_of_clopper_and_pearson():
    from scipy.stats import beta

    assert copying.binomial_interval(3, 40) == pytest.approx((beta.ppf(0.025, 3, 38), beta.ppf(0.975, 4, 37)))
    assert copying.binomial_interval(0, 40) == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))
    assert copying.binomial_interval(40, 40)[1] == 1.0


def test_p_value_by_hand():
    # below the second smallest of 199, or the smallest of 99: two or one of the possible ranks of a new image
    assert copying.copying_p_value(1, 1, 2, 199) == pytest.approx(2 / 200)
    assert copying.copying_p_value(1, 1, 1, 99) == pytest.approx(1 / 100)
    # both of two: the second has one more rank of one more
    assert copying.copying_p_value(2, 2, 2, 199) == pytest.approx(2 / 200 * 3 / 201)
    assert copying.copying_p_value(2, 2, 1, 99) == pytest.approx(1 / 100 * 2 / 101)
    assert [copying.copying_p_value(0, count, 5, 540) for count in (1, 450)] == pytest.approx([1.0, 1.0])
    assert 0.0 < copying.copying_p_value(400, 450, 5, 540) < 1e-100


@pytest.mark.parametrize(("rank", "n_val"), [(1, 85), (2, 199), (5, 540)])
def test_p_value_is_exact_and_the_interval_is_not(rank: int, n_val: int):
    rng = np.random.default_rng(0)
    count, repeats = 450, 20_000
    # the r-th smallest of V uniform distances
    below = rng.binomial(count, rng.beta(rank, n_val - rank + 1, repeats))
    p_values = np.array([copying.copying_p_value(k, count, rank, n_val) for k in range(below.max() + 1)])
    # at each value that p may have, the probability of a p no larger is that value
    for p in p_values[p_values > 0.005][1:]:
        assert (p_values[below] <= p).mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / repeats))
    # with the limit held fixed, more than the nominal 2.5 % of one end would be called copies
    low = np.array([copying.binomial_interval(k, count)[0] for k in range(below.max() + 1)])[below]
    assert (low > rank / (n_val + 1)).mean() > 0.04


def test_some_copies_are_detected_and_new_images_are_not():
    scale = np.geomspace(1e-3, 1.0, 9)

    def distances(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 9
        return scale[labels] * rng.lognormal(0.0, 0.3, count), labels

    new, copied = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        (own, labels), (val, val_labels) = distances(rng, 450), distances(rng, 540)
        new.append(copying.copying_scores(own, labels, val, val_labels, "abcdefghi"))
        own[:30] = 0.0
        copied.append(copying.copying_scores(own, labels, val, val_labels, "abcdefghi"))
    assert np.mean([scores["share"] for scores in new]) == pytest.approx(5 / 541, abs=0.005)
    assert np.mean([scores["p_more"] <= 0.05 for scores in new]) < 0.15
    assert np.mean([scores["p_more"] <= 0.05 for scores in copied]) > 0.9


def test_flat_background_does_not_set_the_scale():
    val, val_labels = val_distances()
    own, labels = np.concatenate([[0.1, 0.1, 1e-4], val]), np.concatenate([[0, 1, 2], val_labels])
    result = copying.copying_scores(own, labels, val, val_labels, SLUGS)
    assert result["n_images"] == 303
    # the copies and the two validation images below the third
    assert round(result["share"] * 303) == 5


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
        (np.ones(3), np.zeros(200), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.zeros(0), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.repeat([0.0, 1.0], [10, 190]), "10 of 200 validation images equal training images"),
    ],
)
def test_undefined_share_has_a_reason(own: np.ndarray, val: np.ndarray, reason: str):
    result = copying.copying_scores(own, np.zeros(len(own), int), val, np.zeros(len(val), int), SLUGS)
    assert result["undefined"] == reason
    assert "share" not in result and {"n_images", "n_val"} <= set(result)


def test_closest_pairs_are_in_units_of_their_tissue():
    val, val_labels = np.repeat([2.0, 0.5, 0.0], 3), np.repeat([0, 1, 2], 3)
    own, labels = np.array([1.0, 0.45, 0.0, 0.5, 0.125]), np.array([0, 1, 2, 0, 1])
    order, scaled = copying.closest_pairs(own, labels, val, val_labels, SLUGS, limit=3)
    # two at a quarter of the median, in their order; background has no unit
    assert order.tolist() == [3, 4, 0]
    assert scaled == pytest.approx([0.25, 0.25, 0.5])
    assert copying.closest_pairs(own[:0], labels[:0], val, val_labels, SLUGS, limit=3)[0].tolist() == []


# The whole check


@pytest.fixture(scope="module")
def check() -> CopyCheck:
    """Two tissues, of which one has half the contrast."""
    return CopyCheck(search_moved(textures(0, 60)), textures(1, 120), np.arange(120) % 2, SLUGS[:2])


def test_moved_and_restained_copies_are_flagged(check: CopyCheck):
    copies = shrink(move_and_restain(stain(make_doses(0, 60)), 5))
    labels = np.arange(60) % 2
    scores, pairs = check.compare(copies, labels, 4)
    assert scores["share"] == 1.0 and scores["p_more"] == 0.0
    assert scores["expected"] == round(1 / 121, 6) and scores["n_val"] == 120
    assert (pairs.images == pairs.nearest).all() and len(pairs.images) == 4
    assert (np.diff(pairs.distances) >= 0.0).all() and pairs.distances[-1] < 0.1


def test_new_images_are_flagged_at_the_expected_rate(check: CopyCheck):
    scores, _ = check.compare(textures(2, 240), np.arange(240) % 2, 0)
    assert scores["n_images"] == 240
    assert scores["share"] < 0.05 and scores["p_more"] > 0.01


def test_validation_images_are_searched_once():
    searched = []

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        searched.append(len(queries))
        return search_nearest(rows[:15])(queries)

    rows = np.random.default_rng(0).normal(size=(30, 4))
    check = CopyCheck(search, rows[15:25], np.zeros(10, int), SLUGS[:1])
    assert check.compare(rows[:15], np.zeros(15, int), 0)[0]["share"] == 1.0
    assert check.compare(rows[25:], np.zeros(5, int), 0)[0]["n_images"] == 5
    assert check.compare(rows[:0], np.zeros(0, int), 0)[0] == {"undefined": "no images", "n_images": 0, "n_val": 10}
    assert sorted(searched) == [0, 5, 10, 15]
