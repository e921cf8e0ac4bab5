"""Structure features of drawings with known answers, and what changes them."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.features import structure
from pathsynth.features.robustness import blur
from pathsynth.features.structure import BANDS, GROUPS, NAMES, NUCLEI, ORIENTATION, SIDE, structure_features
from pathsynth.sources.phantom import draw_split

Y, X = np.mgrid[:SIDE, :SIDE] + 0.5


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return draw_split(3, 0, SIDE, "train")[0]


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of more phantoms."""
    images, labels = draw_split(8, 1, SIDE, "train")
    return structure_features(images), labels


@pytest.fixture(scope="module")
def spread(train) -> np.ndarray:
    """Standard deviation of each feature over phantoms."""
    return train[0].std(axis=0)


def stain(haematoxylin: np.ndarray, eosin: np.ndarray | float = 0.03) -> np.ndarray:
    """Images uint8 (n, s, s, 3) of concentrations (n, s, s) in the unit of scikit-image."""
    from skimage.color import hed2rgb

    haematoxylin = np.atleast_3d(haematoxylin).reshape(-1, *np.shape(haematoxylin)[-2:])
    doses = np.stack(np.broadcast_arrays(haematoxylin, eosin, 0.0), axis=-1)
    return np.rint(hed2rgb(doses) * 255).astype(np.uint8)


def wave(cycles: float, degrees: float = 0.0) -> np.ndarray:
    """An image of parallel stripes, with `cycles` per side."""
    across = X * np.cos(np.radians(degrees)) + Y * np.sin(np.radians(degrees))
    return stain(0.06 + 0.03 * np.sin(2 * np.pi * cycles * across / SIDE))


def noise(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 200, (n, SIDE, SIDE, 1), np.uint8).repeat(3, axis=3)


def find(name: str, images: np.ndarray) -> np.ndarray:
    return structure_features(images)[:, NAMES.index(name)]


def test_names_and_groups():
    assert len(NAMES) == len(set(NAMES)) == 45
    columns = [column for group, columns in GROUPS.items() if group != "tissue" for column in range(45)[columns]]
    assert columns == list(range(45))
    assert set(NAMES[GROUPS["tissue"]]) == set(NAMES) - set(NAMES[GROUPS["stain"]]) - set(NAMES[GROUPS["spectrum"]])
    assert (NAMES[ORIENTATION], NAMES[NUCLEI]) == ("coherence_64", "nuclei")


@pytest.mark.parametrize("degrees", [0, 30, 45, 90])
def test_parallel_stripes_are_coherent_at_every_scale(degrees: float):
    assert structure_features(wave(6, degrees))[0, GROUPS["orientation"]] == pytest.approx(1.0, abs=0.05)


def test_noise_has_no_direction_and_rings_have_local_ones():
    assert (find("coherence_64", noise()) < 0.15).all()
    rings = stain(0.06 + 0.03 * np.sin(np.hypot(X - SIDE / 2, Y - SIDE / 2)))
    assert find("coherence_8", rings) > 0.85 and find("coherence_64", rings) < 0.01


@pytest.mark.parametrize("degrees", [0, 37])
@pytest.mark.parametrize("cycles", [1.2, 1.9, 3, 4.6, 7, 11, 17, 26])
def test_power_of_a_wave_is_in_its_band(cycles: float, degrees: float):
    shares = np.exp(structure_features(wave(cycles, degrees))[0, GROUPS["spectrum"]])
    band = int(np.log2(cycles) / 5 * BANDS)
    assert shares.argmax() == band and shares.sum() == pytest.approx(1.0, abs=1e-4)
    assert shares[max(band - 1, 0) : band + 2].sum() > 0.95


def test_cooccurrence_of_a_checkerboard():
    # levels 2 and 6: at distance 1 different along the axes and equal along the diagonals, at distance 4 equal
    half = np.where(np.mgrid[:32, :32].sum(axis=0) % 2, 1.0, -1.0)
    found = dict(zip(NAMES[GROUPS["cooccurrence"]], structure._cooccurrence(half[None])[0], strict=True))
    assert found == pytest.approx(
        {
            "contrast_1": 16 / 2, "homogeneity_1": (1 + 1 / 17) / 2, "correlation_1": 0.0,
            "contrast_4": 0.0, "homogeneity_4": 1.0, "correlation_4": 1.0,
        },
        abs=1e-6,
    )  # fmt: skip


def test_binary_patterns_of_flat_and_of_isolated_pixels():
    codes = structure._binary_patterns(np.zeros((1, 32, 32)))[0].reshape(2, 9)
    # no neighbour is darker
    assert codes.tolist() == [[0.0] * 8 + [1.0]] * 2
    dots = np.zeros((1, 32, 32))
    dots[0, 4::8, 4::8] = 2.0
    codes = structure._binary_patterns(dots)[0].reshape(2, 9)
    # 16 pixels without a neighbour as bright, of 30 x 30 and 26 x 26
    assert codes[:, 0] == pytest.approx([16 / 30**2, 16 / 26**2])


@pytest.mark.parametrize("count", [0, 1, 5, 9, 16])
def test_discs_are_counted_as_nuclei(count: int):
    centres = np.random.default_rng(count).permutation(16)[:count]
    field = np.full((SIDE, SIDE), 0.01)
    for row, column in zip(*np.divmod(centres, 4), strict=True):
        field[np.hypot(Y - 8 - 16 * row, X - 8 - 16 * column) < 3.5] = 0.12
    found = structure_features(stain(field))[0, GROUPS["nuclei"]]
    assert found[0] == count
    assert found[1] == pytest.approx((field > 0.1).mean(), rel=0.5, abs=1e-6)


def test_touching_nuclei_are_counted_separately():
    field = np.full((SIDE, SIDE), 0.01)
    for x in (20, 26, 32):
        field[np.hypot(Y - 32, X - x) < 3.2] = 0.12
    assert find("nuclei", stain(field)) == 3


def test_moments_follow_the_concentrations():
    fields = 0.05 + 0.02 * np.sin(Y / 3)
    found = dict(zip(NAMES, structure_features(stain(fields, 0.04))[0], strict=True))
    assert found["haematoxylin_mean"] == pytest.approx(0.05, abs=0.002) and found["eosin_mean"] == pytest.approx(
        0.04, abs=0.002
    )
    assert found["haematoxylin_sd"] == pytest.approx(fields.std(), abs=0.002) and found["eosin_sd"] < 0.002
    assert find("haematoxylin_mean", stain(2 * fields, 0.04)) == pytest.approx(0.1, abs=0.005)
    # a few dark pixels in a pale image are a long upper tail, and turned around a long lower one
    spots = np.where((Y % 8 < 2) & (X % 8 < 2), 0.1, 0.02)
    assert find("haematoxylin_skewness", stain(spots)) > 2 > -2 > find("haematoxylin_skewness", stain(0.12 - spots))
    assert find("density_skewness", stain(spots)) > 0 > find("density_skewness", stain(0.12 - spots))


@pytest.mark.parametrize("gain", [0.8, 1.25])
def test_gain_of_both_stains_changes_only_the_stain(phantoms: np.ndarray, spread: np.ndarray, gain: float):
    # by the Beer-Lambert law a power of the transmittance
    stained = np.rint(255 * (phantoms / 255) ** gain).astype(np.uint8)
    changes = np.abs(structure_features(stained) - structure_features(phantoms)) / spread
    assert np.median(changes[:, : GROUPS["stain"].stop], axis=0)[[0, 3]].min() > 0.1
    others = changes[:, GROUPS["stain"].stop :]
    # rounding to 256 levels moves a few pixels to another pattern
    assert np.median(others, axis=0).max() < 0.15 and others.mean() < 0.05


def test_tissue_hardly_depends_on_sharpness_and_noise(phantoms: np.ndarray, spread: np.ndarray, monkeypatch):
    def changes(images: np.ndarray) -> np.ndarray:
        return (np.abs(structure_features(images) - structure_features(phantoms)) / spread).mean(axis=0)

    noisy = np.clip(phantoms + np.random.default_rng(0).normal(0, 3, phantoms.shape), 0, 255).astype(np.uint8)
    assert changes(noisy)[GROUPS["tissue"]].mean() < 0.15
    dull = changes(blur(phantoms, 0.6))
    assert dull[GROUPS["tissue"]].mean() < 0.15 and dull[GROUPS["spectrum"]].mean() > 0.4
    monkeypatch.setattr(structure, "BLUR", 0.0)
    assert changes(blur(phantoms, 0.6))[GROUPS["tissue"]].mean() > 0.2


def test_right_angles_and_mirroring_change_nothing(phantoms: np.ndarray):
    found = structure_features(phantoms)
    for other in (np.rot90(phantoms, 1, (1, 2)), phantoms[:, ::-1], phantoms[:, :, ::-1]):
        np.testing.assert_allclose(structure_features(other), found, rtol=1e-5, atol=1e-5)


def test_shuffling_blocks_changes_the_tissue(phantoms: np.ndarray, spread: np.ndarray):
    blocks = phantoms.reshape(-1, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(-1, 64, 8, 8, 3)
    order = np.random.default_rng(0).permutation(64)
    shuffled = blocks[:, order].reshape(-1, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(phantoms.shape)
    changes = np.abs(structure_features(shuffled) - structure_features(phantoms)) / spread
    # the colours are the same
    assert changes[:, GROUPS["stain"]].max() < 1e-3
    assert changes[:, GROUPS["tissue"]].mean() > 0.3


def test_logistic_regression_classifies_tissues_in_another_stain(train):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (features, labels), (test, test_labels), tissue = train, draw_split(3, 1, SIDE, "test"), GROUPS["tissue"]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[:, tissue], labels)
    assert model.score(structure_features(test)[:, tissue], test_labels) > 0.9


def test_batches_equal_single_images(phantoms: np.ndarray):
    images = np.tile(phantoms, (3, 1, 1, 1))
    assert len(images) > structure.BLOCK
    single = np.concatenate([structure_features(image[None]) for image in phantoms])
    np.testing.assert_allclose(structure_features(images), np.tile(single, (3, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 120, 170), (90, 90, 90), (60, 30, 110)])
def test_flat_images_have_no_structure(colour: tuple[int, int, int]):
    flat = np.broadcast_to(np.array(colour, np.uint8), (2, SIDE, SIDE, 3))
    found = structure_features(flat)
    assert np.isfinite(found).all()
    assert not found[:, GROUPS["orientation"]].any() and not found[:, GROUPS["density"]].any()
    assert not found[:, GROUPS["nuclei"]].any() and find("eosin_sd", flat) == pytest.approx(0.0, abs=1e-6)
    assert found[:, GROUPS["spectrum"]] == pytest.approx(np.log(structure.LEAST_SHARE))


def test_grey_and_extreme_images_give_finite_numbers():
    rng = np.random.default_rng(1)
    black_and_white = rng.integers(0, 2, (2, SIDE, SIDE, 1), np.uint8).repeat(3, axis=3) * 255
    for images in (noise(), black_and_white, rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)):
        assert np.isfinite(structure_features(images)).all()


def test_other_sizes_and_no_images(phantoms: np.ndarray, spread: np.ndarray):
    assert structure_features(phantoms[:0]).shape == (0, 45) and structure_features(phantoms[:0]).dtype == np.float32
    large = structure_features(phantoms.repeat(2, axis=1).repeat(2, axis=2))
    assert np.median(np.abs(large - structure_features(phantoms)) / spread, axis=0)[GROUPS["tissue"]].max() < 0.2
    assert structure_features(phantoms[:, ::2, ::2]).shape == (27, 45)
