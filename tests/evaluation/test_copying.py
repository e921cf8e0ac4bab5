"""Nearest training images, and the share of generated ones that are too near: known answers, scipy's, and properties."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.core.io import write_npy
from pathsynth.core.rows import RowFile
from pathsynth.evaluation import copying


def random_images(seed: int, count: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_nearest_features_are_those_of_scipy():
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(70, 5)).astype(np.float32), rng.normal(size=(90, 5)).astype(np.float32)
    distances, indices = copying.nearest(queries, references, size=16)
    every = cdist(queries.astype(float), references.astype(float))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float64)
    assert (indices == every.argmin(axis=1)).all()
    assert distances == pytest.approx(every.min(axis=1), rel=1e-6)


def test_distance_of_images_is_the_root_mean_square_difference():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert copying.nearest(black, white)[0] == pytest.approx([1.0])
    queries, references = random_images(0, 3), random_images(1, 5)
    distances, indices = copying.nearest(queries, references, views=1)
    differences = (queries[:, None].astype(float) - references.astype(float)) / 255.0
    slow = np.sqrt(np.square(differences).mean(axis=(2, 3, 4)))
    assert (indices == slow.argmin(axis=1)).all()
    assert distances == pytest.approx(slow.min(axis=1), rel=1e-9)


@pytest.mark.parametrize("fill", ["random", "extreme"])
def test_distances_of_images_are_exact(fill: str):
    rng = np.random.default_rng(0)
    queries, references = (rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (9, 14))
    if fill == "extreme":
        # the largest sums that there are, and images that differ in a single number from one of them
        queries[:], references[:] = 255, 0
        references[3:5] = 255
        references[3, 0, 0, 0], references[4, 1, 2, 0] = 253, 254
    distances, indices = copying.nearest(queries, references)
    squared = np.full((9, 14), 2**40)
    for view in range(8):
        turned = copying.turned(queries, view).astype(np.int64)
        squared = np.minimum(squared, np.square(turned[:, None] - references.astype(np.int64)).sum(axis=(2, 3, 4)))
    assert (indices == squared.argmin(axis=1)).all()
    assert distances.tolist() == (np.sqrt(squared.min(axis=1) / 3072) / 255.0).tolist()


class Counted:
    """Rows that know how many of them were read."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.read = array, array.shape, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        self.read += len(self.array[key])
        return self.array[key]


def test_references_are_read_once_for_thousands_of_queries(monkeypatch):
    queries, references = random_images(0, 2500), Counted(random_images(1, 20))
    expected = copying.nearest(queries, references)
    assert references.read == 20
    # in blocks of 1000, of which each holds 8 views of 108 numbers
    monkeypatch.setattr(copying, "QUERY_BYTES", 1000 * 8 * 108)
    distances, indices = copying.nearest(queries, references)
    assert references.read == 20 + 3 * 20
    assert (distances.tolist(), indices.tolist()) == (expected[0].tolist(), expected[1].tolist())


@pytest.mark.parametrize("view", range(8))
def test_copies_are_found_in_every_turn_and_mirror(view: int):
    references = random_images(0, 12)
    distances, indices = copying.nearest(copying.turned(references, view), references, size=5)
    assert (distances == 0.0).all()
    assert (indices == np.arange(12)).all()
    alone, _ = copying.nearest(copying.turned(references, view), references, views=1)
    assert (alone == 0.0).all() if view == 0 else (alone > 0.1).all()


def test_the_eight_views_differ():
    views = [copying.turned(random_images(0, 1), view).tobytes() for view in range(8)]
    assert len(set(views)) == 8
    assert views[0] == random_images(0, 1).tobytes()


def test_of_equal_images_the_first_is_named():
    image = random_images(0, 1)
    distances, indices = copying.nearest(image, np.concatenate([random_images(1, 4), image, image]), size=2)
    assert (distances.tolist(), indices.tolist()) == ([0.0], [4])


@pytest.mark.parametrize("size", [1, 3, 64])
def test_block_size_and_disk_do_not_matter(size: int, tmp_path):
    queries, references = random_images(0, 10), random_images(1, 11)
    for name, array in (("queries", queries), ("references", references)):
        write_npy(tmp_path / f"{name}.npy", array)
    expected = copying.nearest(queries, references)
    on_disk = copying.nearest(RowFile(tmp_path / "queries.npy"), RowFile(tmp_path / "references.npy"), size=size)
    assert (on_disk[1] == expected[1]).all()
    assert on_disk[0].tolist() == expected[0].tolist()


def test_no_queries_have_no_distances():
    distances, indices = copying.nearest(random_images(0, 0), random_images(0, 2))
    assert (len(distances), len(indices)) == (0, 0)


def test_small_distances_beside_large_numbers_are_not_lost():
    features = np.full((1, 50), 1000.0)
    assert copying.nearest(features, features + 0.01)[0] == pytest.approx([0.01 * np.sqrt(50)], rel=1e-4)
    assert copying.nearest(features, features)[0].tolist() == [0.0]


SLUGS = ("mucus", "debris", "background")


def held_out(seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Distances of validation images, those of background a thousandth of the others'."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return rng.uniform(1.0, 2.0, count) * np.array([1.0, 1.0, 1e-3])[labels], labels


def test_share_by_hand():
    val_labels = np.repeat([0, 1], [99, 100])
    val = np.concatenate([np.arange(1, 100) / 50, np.arange(101, 201) / 150.5])
    # the medians are 1, so the 1 % of 199 images below the limit are the two smallest, 0.02 and 0.04
    result = copying.copying_scores(np.array([0.01, 0.039, 0.04, 1.0]), np.zeros(4, int), val, val_labels, SLUGS[:2])
    low, high = copying.binomial_interval(2, 4)
    assert result == {
        "share_below": 0.5, "low": round(low, 6), "high": round(high, 6), "expected": 0.01, "n_images": 4, "n_val": 199,
        "p_more": round(copying.chance_of_more(2, 4, 199), 6),
    }  # fmt: skip


def test_interval_is_that_of_clopper_and_pearson():
    from scipy.stats import beta

    assert copying.binomial_interval(3, 40) == pytest.approx((beta.ppf(0.025, 3, 38), beta.ppf(0.975, 4, 37)))
    assert copying.binomial_interval(0, 40) == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))
    assert copying.binomial_interval(40, 40)[1] == 1.0


def test_chance_of_more_by_hand():
    # below the second smallest of 199, or the first of 99: two or one of the places that a new one may take among them
    assert copying.chance_of_more(1, 1, 199) == pytest.approx(2 / 200)
    assert copying.chance_of_more(1, 1, 99) == pytest.approx(1 / 100)
    # both of two: the second has one place more of one more
    assert copying.chance_of_more(2, 2, 199) == pytest.approx(2 / 200 * 3 / 201)
    assert copying.chance_of_more(2, 2, 99) == pytest.approx(1 / 100 * 2 / 101)
    # between the second and the third the third is meant
    assert copying.chance_of_more(1, 1, 200) == pytest.approx(3 / 201)
    assert [copying.chance_of_more(0, count, 540) for count in (1, 450)] == pytest.approx([1.0, 1.0])
    assert 0.0 < copying.chance_of_more(400, 450, 540) < 1e-100


@pytest.mark.parametrize("n_val", [99, 199, 299, 540, 999, 7199])
def test_rank_is_the_first_that_is_not_below_the_limit(n_val: int):
    limit = np.quantile(np.arange(1.0, n_val + 1), copying.EXPECTED, method="weibull")
    rank = round(copying.chance_of_more(1, 1, n_val) * (n_val + 1))
    assert rank - 1 < limit <= rank + 1e-9


@pytest.mark.parametrize("n_val", [199, 540])
@pytest.mark.parametrize("count", [450, 2000])
def test_chance_of_more_is_seldom_small_without_copies(count: int, n_val: int):
    rng = np.random.default_rng(0)
    limits = np.quantile(rng.random((8000, n_val)), copying.EXPECTED, axis=1, method="weibull")
    below = rng.binomial(count, limits)
    p = np.array([copying.chance_of_more(k, count, n_val) for k in range(below.max() + 1)])[below]
    for level in (0.01, 0.05, 0.2):
        spread = np.sqrt(level * (1 - level) / len(p))
        assert (p <= level).mean() <= level + 3 * spread
    # as though the limit were known, more than twice as many as the 2.5 % of an end are called copies
    low = np.array([copying.binomial_interval(k, count)[0] for k in range(below.max() + 1)])[below]
    assert (low > copying.EXPECTED).mean() > 0.05


def test_scores_without_copies_are_seldom_called_copies_and_with_some_often():
    scale = np.geomspace(1e-3, 1.0, 9)

    def distances(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 9
        return scale[labels] * rng.lognormal(0.0, 0.3, count), labels

    p = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        (own, labels), (val, val_labels) = distances(rng, 450), distances(rng, 540)
        copied = np.where(np.arange(450) < 30, 0.0, own)
        p.append([copying.copying_scores(d, labels, val, val_labels, "abcdefghi")["p_more"] for d in (own, copied)])
    assert np.mean(np.array(p)[:, 0] <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(p)[:, 1] <= 0.05) > 0.95


def test_flat_background_does_not_set_the_scale():
    val, val_labels = held_out()
    copies = np.array([0.1, 0.1, 1e-4])
    result = copying.copying_scores(
        np.concatenate([copies, val]), np.concatenate([[0, 1, 2], val_labels]), val, val_labels, SLUGS
    )
    assert result["n_images"] == 303
    # the copies and about one per cent of the validation images themselves
    assert 3 <= round(result["share_below"] * 303) <= 6


def test_images_like_the_held_out_ones_are_below_as_often_as_expected():
    shares = []
    for seed in range(40):
        val, val_labels = held_out(seed, 150)
        own, labels = held_out(1000 + seed, 3000)
        shares.append(copying.copying_scores(own, labels, val, val_labels, SLUGS)["share_below"])
    assert np.mean(shares) == pytest.approx(0.01, abs=0.005)


def test_tissues_without_a_unit_are_left_out_and_named():
    val, val_labels = held_out()
    val[val_labels == 2] = 0.0
    own, labels = held_out(1)
    result = copying.copying_scores(own, labels, val, val_labels, SLUGS)
    assert result["left_out"] == {"background": "half of the validation images equal training images"}
    assert (result["n_images"], result["n_val"]) == (200, 200)
    seen = val_labels != 1
    result = copying.copying_scores(own, labels, held_out()[0][seen], val_labels[seen], SLUGS)
    assert result["left_out"] == {"debris": "no validation images"}
    # a tissue that was not generated is no loss
    only = labels == 0
    assert "left_out" not in copying.copying_scores(own[only], labels[only], val, val_labels, SLUGS)


@pytest.mark.parametrize(
    ("own", "val", "why"),
    [
        (np.zeros(0), np.ones(200), "no images"),
        (np.ones(3), np.ones(98), "validation images: 98, a quantile of 0.01 needs 99"),
        (np.ones(3), np.zeros(200), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.zeros(0), "no images of a tissue whose validation images give a unit"),
        (np.ones(3), np.repeat([0.0, 1.0], [10, 190]), "a share 0.01 of the validation images equals training images"),
    ],
)
def test_no_share_says_why(own: np.ndarray, val: np.ndarray, why: str):
    result = copying.copying_scores(own, np.zeros(len(own), int), val, np.zeros(len(val), int), SLUGS)
    assert result["undefined"] == {"share_below": why}
    assert "share_below" not in result


def test_closest_pairs_count_in_units_of_their_tissue():
    val, val_labels = np.repeat([2.0, 0.5, 0.0], 3), np.repeat([0, 1, 2], 3)
    own, labels = np.array([1.0, 0.45, 0.0, 0.5, 0.125]), np.array([0, 1, 2, 0, 1])
    order, scaled = copying.closest_pairs(own, labels, val, val_labels, SLUGS, most=3)
    # both of a quarter of the median: the first comes first; background has no unit
    assert order.tolist() == [3, 4, 0]
    assert scaled == pytest.approx([0.25, 0.25, 0.5])
    assert copying.closest_pairs(own[:0], labels[:0], val, val_labels, SLUGS, most=3)[0].tolist() == []


FEATURES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: copying.nearest(FEATURES, FEATURES[:0]), "references: none"),
        (lambda: copying.nearest(FEATURES, FEATURES[:, :2]), "expected the same"),
        (lambda: copying.nearest(FEATURES, FEATURES, views=2), "views: 2"),
        (lambda: copying.nearest(random_images(0, 1)[:, :4], random_images(0, 1)[:, :4]), "square"),
        (lambda: copying.nearest(random_images(0, 1) / 255.0, random_images(0, 1)), "images: float64, expected uint8"),
        (lambda: copying.nearest(FEATURES, FEATURES * np.nan), "not finite"),
        (lambda: copying.nearest(FEATURES * np.inf, FEATURES), "not finite"),
        (lambda: copying.copying_scores(-np.ones(1), [0], np.ones(1), [0], SLUGS), "distances: some"),
        (lambda: copying.copying_scores(np.ones(1), [0, 1], np.ones(1), [0], SLUGS), "shapes"),
        (lambda: copying.copying_scores(np.ones(1), [0], np.ones(1), [3], SLUGS), "val_distances: labels 3 to 3"),
    ],
)
def test_impossible_input_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
