"""Usefulness: training sets, gains and their power, learners, checkpoints, and sets that are too small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from scipy.stats import ttest_1samp

from pathsynth.classifiers.training import _shuffle, steps_per_epoch
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.errors import ParamsError
from pathsynth.core.params import validate
from pathsynth.data import labels
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.evaluation import usefulness
from pathsynth.evaluation.usefulness import SOURCES, UsefulnessSettings, measure_usefulness, paired_gain
from pathsynth.features.structure import structure_features
from pathsynth.sources import phantom

TEN_REPEATS = [0.0, 0.1] * 5


def settings(real_per_tissue=1, probe_repeats=8, **classifier) -> UsefulnessSettings:
    tree = tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"]
    tree |= {"real_per_tissue": real_per_tissue, "probe_repeats": probe_repeats}
    small = {"architecture": "shufflenet_v2_x0_5", **classifier}
    return UsefulnessSettings.model_validate(tree | {"classifier": tree["classifier"] | small})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Phantoms of 32 px: 6, 4 and 4 per tissue."""
    folder = tmp_path_factory.mktemp("few") / "prepared"
    splits = {split: phantom.draw_split(n, 3, 32, split) for split, n in (("train", 6), ("val", 4), ("test", 4))}
    write_prepared(folder, "few", labels.PATHMNIST, splits, {"source": "phantom"}, 32)
    return open_prepared(folder)


@pytest.fixture(scope="module")
def structure(prepared):
    return {split: structure_features(prepared.images(split)) for split in ("train", "val", "test")}


@pytest.fixture(scope="module")
def further_real() -> LabelledImages:
    """Phantoms that are in no split of `prepared`."""
    return LabelledImages(*phantom.draw_split(5, 99, 32, "train"))


@pytest.fixture(scope="module")
def measured(prepared, structure, further_real) -> dict:
    return measure_usefulness(prepared, further_real, structure, settings(), 1, "cpu", trained_on="raw")


@pytest.fixture
def perfect_network(monkeypatch):
    """Replaces the training of the network, for tests of the probe."""

    def score(data, *_):
        return usefulness._score_splits(data, {split: data.labels_of(split) for split in ("val", "test")})

    monkeypatch.setattr(usefulness, "_test_network", score)


def test_few_real_images_differ_between_repeats_and_further_ones_are_new():
    real, prompted = np.tile(np.arange(3), 20), np.array([0, 0, 0, 2])
    draws = [usefulness._draw_sources(real, prompted, 5, seed=1, repeat=repeat) for repeat in (0, 0, 1)]
    few, both, more = (draws[0][source] for source in ("real", "real_and_synthetic", "more_real"))
    assert np.bincount(real[few]).tolist() == [5, 5, 5]
    assert both.tolist() == [*few, 60, 61, 62, 63] and draws[0]["synthetic"].tolist() == [60, 61, 62, 63]
    assert np.bincount(real[more]).tolist() == [8, 5, 6]
    assert set(few) < set(more) and len(set(more)) == len(more)
    assert few.tolist() == draws[1]["real"].tolist() != draws[2]["real"].tolist()


def test_a_tissue_with_few_images_gives_all_of_them():
    draws = usefulness._draw_sources(np.array([0] * 3 + [1] * 9), np.array([1] * 7), 5, seed=1, repeat=0)
    assert draws["real"][:3].tolist() == [0, 1, 2] and len(draws["real"]) == 8
    assert sorted(draws["more_real"]) == list(range(12))


def test_a_selection_reads_from_both_sets():
    first, second = (
        np.full((4, 2, 2, 3), start, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None] for start in (0, 50)
    )
    selection = usefulness._Selection(first, second, np.array([7, 1, 4, 0]))
    assert len(selection) == 4
    assert selection[np.array([3, 0, 2, 1])][:, 0, 0, 0].tolist() == [0, 53, 50, 1]


def test_gain_is_a_paired_t_interval():
    expected = ttest_1samp(TEN_REPEATS, 0.0).confidence_interval(0.95)
    gain = paired_gain(TEN_REPEATS)
    assert gain["mean"] == 0.05 and gain["std"] == pytest.approx(np.std(TEN_REPEATS, ddof=1), abs=1e-6)
    assert (gain["low"], gain["high"]) == pytest.approx(tuple(expected), abs=1e-6)
    with pytest.raises(ValueError, match="one repeat has no interval"):
        paired_gain([0.1])


def test_the_detectable_gain_is_found_four_times_in_five():
    gain = paired_gain(TEN_REPEATS)
    trials = np.random.default_rng(0).normal(gain["detectable"], gain["std"], (20_000, len(TEN_REPEATS)))
    assert (ttest_1samp(trials, 0.0, axis=1).pvalue <= 0.05).mean() == pytest.approx(0.8, abs=0.02)


def test_scores_have_all_sources_learners_and_splits(measured):
    assert measured["repeats"] == {"network": 2, "probe": 8}
    assert measured["steps"] == 1 and measured["real_per_tissue"] == 1 and measured["trained_on"] == "raw"
    assert measured["n_images"] == {"real": 9, "synthetic": 45, "real_and_synthetic": 54, "more_real": 54}
    for learner in ("network", "probe"):
        for split in ("val", "test"):
            scores = measured[learner][split]
            assert list(scores) == [*SOURCES, "gain", "gain_of_more_real"]
            assert list(scores["synthetic"]["per_tissue"]) == list(labels.SLUGS)
            means = {source: scores[source]["macro_f1_mean"] for source in SOURCES}
            assert scores["gain"]["mean"] == pytest.approx(means["real_and_synthetic"] - means["real"], abs=2e-6)
            assert scores["gain_of_more_real"]["mean"] == pytest.approx(means["more_real"] - means["real"], abs=2e-6)
    assert measured["probe"]["val"] != measured["probe"]["test"]


def test_images_that_show_more_are_useful(measured):
    """Further real images in place of synthetic ones gain what more real images gain."""
    for split in ("val", "test"):
        scores = measured["probe"][split]
        assert scores["gain"]["low"] > 0 and scores["gain_of_more_real"]["low"] > 0
        assert scores["gain"]["mean"] > scores["gain"]["detectable"]
    assert measured["probe"]["val"]["synthetic"]["macro_f1_std"] == pytest.approx(0, abs=0.05), (
        "only the scale of features varies"
    )


def test_trainings_on_real_images_are_shared_by_all_sets(prepared, structure, further_real, measured, monkeypatch, tmp_path):
    train, calls = usefulness._test_network, []
    monkeypatch.setattr(usefulness, "_test_network", lambda *args: calls.append(1) or train(*args))

    def measure(images):
        calls.clear()
        arguments = (prepared, images, structure, settings(), 1, "cpu")
        return measure_usefulness(*arguments, trained_on="raw", shared=Checkpoint(tmp_path))

    assert measure(further_real) == measured and len(calls) == 8
    other = LabelledImages(255 - further_real.images, further_real.labels)
    again = measure(other)
    assert len(calls) == 4
    for source in ("real", "more_real"):
        assert again["network"]["test"][source] == measured["network"]["test"][source]
    # with one image less, fewer further real ones are drawn
    measure(LabelledImages(other.images[1:], other.labels[1:]))
    assert len(calls) == 6


@pytest.mark.usefixtures("perfect_network")
@pytest.mark.parametrize("kind", ["noise", "wrong labels"])
def test_images_that_show_nothing_are_not_useful(kind, prepared, structure, further_real):
    images = np.random.default_rng(0).integers(0, 256, further_real.images.shape, np.uint8)
    useless = {
        "noise": LabelledImages(images, further_real.labels),
        "wrong labels": LabelledImages(further_real.images, (further_real.labels + 1) % 9),
    }
    scores = measure_usefulness(prepared, useless[kind], structure, settings(), 1, "cpu", trained_on="raw")["probe"]["val"]
    assert scores["gain"]["low"] < 0
    assert scores["gain_of_more_real"]["low"] > 0


@pytest.mark.slow
def test_the_network_learns_from_the_selected_images(tmp_path):
    """Two tissues are flat colours; with swapped labels the network learns the opposite."""

    def coloured(y_true):
        noise = np.random.default_rng(0).integers(0, 30, (len(y_true), 16, 16, 3))
        return (noise + 150 * y_true[:, None, None, None]).astype(np.uint8)

    y_true = np.tile(np.array([0, 1], np.uint8), 8)
    splits = {split: (coloured(y_true), y_true) for split in ("train", "val", "test")}
    write_prepared(tmp_path, "colours", labels.PATHMNIST[:2], splits, {"source": "phantom"}, 16)
    prepared = open_prepared(tmp_path)
    unchanged = {"flips": True, "rotate90": True, "stain": 0.0, "brightness": 0.0, "blur": 0.0}
    network = settings(architecture="resnet18", batch_size=8, learning_rate=3e-3, epochs=8, augmentation=unchanged).classifier
    selection = usefulness._Selection(prepared.images("train"), coloured(y_true), 16 + np.arange(16))
    right, wrong = (
        usefulness._test_network(prepared, selection, shown.astype(np.int64), network, 1, 2, "cpu", tmp_path)
        for shown in (y_true, 1 - y_true)
    )
    for split in ("val", "test"):
        assert right[split]["accuracy"] > 0.9 > 0.1 > wrong[split]["accuracy"]


def test_trainings_are_reused(prepared, structure, further_real, measured, monkeypatch, tmp_path):
    train, done = usefulness._test_network, []

    def stop_after_three(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(train(*args))
        return done[-1]

    arguments = (prepared, further_real, structure, settings(), 1, "cpu")
    monkeypatch.setattr(usefulness, "_test_network", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        measure_usefulness(*arguments, trained_on="raw", checkpoint=Checkpoint(tmp_path), shared=Checkpoint(tmp_path))
    calls = []
    monkeypatch.setattr(usefulness, "_test_network", lambda *args: calls.append(1) or train(*args))
    again = measure_usefulness(*arguments, trained_on="raw", checkpoint=Checkpoint(tmp_path), shared=Checkpoint(tmp_path))
    assert again == measured
    assert len(calls) == 5


@pytest.mark.usefixtures("perfect_network")
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_have_a_reason(count, prepared, structure, further_real):
    few = LabelledImages(further_real.images[:count], further_real.labels[:count])
    result = measure_usefulness(prepared, few, structure, settings(probe_repeats=2), 1, "cpu", trained_on="raw")
    assert result["n_images"] == {"real": 9, "synthetic": 0, "real_and_synthetic": 0, "more_real": 0}
    for learner in ("network", "probe"):
        for name in (*SOURCES[1:], "gain", "gain_of_more_real"):
            assert result[learner]["test"][name] == {"undefined": "fewer than 2 synthetic images"}
        assert 0 <= result[learner]["test"]["real"]["macro_f1_mean"] <= 1


@pytest.mark.usefixtures("perfect_network")
def test_one_tissue_is_useful_only_beside_real_images(prepared, structure, further_real):
    background = further_real.labels == labels.SLUGS.index("background")
    one = LabelledImages(further_real.images[background], further_real.labels[background])
    result = measure_usefulness(prepared, one, structure, settings(probe_repeats=2), 1, "cpu", trained_on="raw")
    assert result["probe"]["val"]["synthetic"] == {"undefined": "synthetic images of only one tissue"}
    assert result["n_images"] == {"real": 9, "synthetic": 0, "real_and_synthetic": 14, "more_real": 14}
    assert "mean" in result["probe"]["val"]["gain"] and "mean" in result["network"]["test"]["gain_of_more_real"]


def test_a_ceiling_needs_further_real_images():
    real, prompted = np.array([0] * 5 + [1] * 9 + [2] * 5), np.array([0, 1, 1])
    reason = {"more_real": "no further real images of adipose"}
    assert usefulness._find_undefined(real, prompted, 5, ("adipose", "mucus", "debris")) == reason
    assert usefulness._find_undefined(real, prompted, 4, ("adipose", "mucus", "debris")) == {}


def test_selection_by_real_images_is_refused():
    tree = tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"]
    tree["classifier"]["checkpoint"] = "best"
    with pytest.raises(ParamsError, match="'best' would select by real images; allowed: 'last'"):
        validate("params.yaml", "x", UsefulnessSettings, tree)


@pytest.mark.parametrize("count", [5, 16, 33])
def test_a_pass_uses_each_image_at_most_once(count):
    random = torch.Generator().manual_seed(1)
    passes = [torch.cat([*_shuffle(count, 4, random)]).tolist() for _ in range(2)]
    for images in passes:
        assert len(set(images)) == len(images) == 4 * steps_per_epoch(count, 4) == count // 4 * 4
    assert passes[0] != passes[1]
