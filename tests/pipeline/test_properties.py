"""Properties that hold for all inputs, tried on many: the filter loop, the scores, parameters and archives."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_params
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pathsynth.core import io as files
from pathsynth.core.checkpoint import Saved
from pathsynth.core.params import load_params, read_yaml
from pathsynth.evaluation import statistics as scores
from pathsynth.evaluation.fidelity import feature_sums
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.filtering import generate_filtered, generation_metrics
from pathsynth.generation.slots import Attempt, Slots

TREE = read_yaml(ROOT / "params.yaml")


@st.composite
def filterings(draw) -> dict:
    """Sizes of a filter loop, and a gate that decides by chance."""
    return {
        "tissues": draw(st.integers(1, 4)),
        "slots": draw(st.integers(1, 5)),
        "limit": draw(st.integers(1, 5)),
        "batch": draw(st.integers(1, 9)),
        "gate": draw(st.integers(0, 2**32 - 1)),
    }


@contextmanager
def _filtered(sizes: dict, batch: int) -> Iterator[tuple[Slots, list[Attempt]]]:
    drawn: list[Attempt] = []
    with tempfile.TemporaryDirectory() as folder:
        yield _fill(sizes, batch, Saved(Path(folder)), drawn), drawn


def _fill(sizes: dict, batch: int, saved: Saved, drawn: list[Attempt]) -> Slots:
    """Fills slots, and adds to `drawn` what had to be drawn for it."""

    def sample(some: list[Attempt]) -> np.ndarray:
        drawn.extend(some)
        return np.array([[[[a.tissue, a.slot, a.attempt]]] for a in some], np.uint8)

    def gate(images: np.ndarray) -> np.ndarray:
        seen = [zlib.crc32(bytes([*image[0, 0], sizes["gate"] % 251])) % sizes["tissues"] for image in images]
        return np.eye(sizes["tissues"])[seen]

    slots = Slots(saved, sizes["tissues"], sizes["slots"], 1, 1)
    generate_filtered(sample, gate, slots, sizes["limit"], batch)
    return slots


@given(filterings())
def test_every_slot_is_filled_or_counted_and_never_tried_too_often(sizes):
    slugs = [f"t{i}" for i in range(sizes["tissues"])]
    with _filtered(sizes, sizes["batch"]) as (slots, drawn):
        table, raw, accepted = slots.table(slugs), slots.raw()[0][:], slots.accepted()[0][:]
    assert len(set(drawn)) == len(drawn) == len(table), "no attempt twice"
    filled = []
    for (slug, slot), rows in table.groupby(["tissue", "slot"]):
        assert rows["attempt"].tolist() == list(range(len(rows))) and len(rows) <= sizes["limit"]
        assert not rows["accepted"][:-1].any(), "nothing is tried after it was accepted"
        last = rows.iloc[-1]
        assert last["accepted"] or len(rows) == sizes["limit"]
        if last["accepted"]:
            filled.append([slugs.index(slug), slot, last["attempt"]])
    every = [[tissue, slot, 0] for tissue in range(sizes["tissues"]) for slot in range(sizes["slots"])]
    assert raw.reshape(-1, 3).tolist() == every
    assert accepted.reshape(-1, 3).tolist() == filled, "the image of that very attempt"
    counts = generation_metrics(table, slugs, sizes["slots"])
    assert counts["accepted"] + counts["unfilled"] == len(every) and counts["attempted"] == len(drawn)


@given(filterings(), st.integers(1, 9))
def test_the_batch_size_changes_nothing(sizes, other):
    slugs = [f"t{i}" for i in range(sizes["tissues"])]
    with _filtered(sizes, sizes["batch"]) as (first, _), _filtered(sizes, other) as (second, _):
        assert first.table(slugs).equals(second.table(slugs))
        assert (first.accepted()[0][:] == second.accepted()[0][:]).all()


@given(filterings(), st.data())
def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_end(sizes, data):
    slugs = [f"t{i}" for i in range(sizes["tissues"])]
    with _filtered(sizes, sizes["batch"]) as (whole, drawn):
        table, accepted, raw = whole.table(slugs), whole.accepted()[0][:], whole.raw()[0][:]
        record = next(whole._folder.glob("*.jsonl"))
        content = record.read_bytes()
        kept = data.draw(st.integers(0, len(content)))
        record.write_bytes(content[:kept] + data.draw(st.binary(max_size=20)))
        if data.draw(st.booleans()):
            with open(whole._folder / "raw.npy", "r+b") as file:
                file.seek(data.draw(st.integers(0, 200)))
                file.write(data.draw(st.binary(max_size=9)))
        again: list[Attempt] = []
        _fill(sizes, sizes["batch"], whole._saved, again)
        slots = Slots(whole._saved, sizes["tissues"], sizes["slots"], 1, 1)
        assert slots.table(slugs).equals(table)
        assert (slots.accepted()[0][:] == accepted).all() and (slots.raw()[0][:] == raw).all()
        assert len(again) <= len(drawn)


@st.composite
def answers(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """True and predicted labels, and the number of tissues."""
    n, count = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    labels = arrays.arrays(np.int64, count, elements=st.integers(0, n - 1))
    return draw(labels), draw(labels), n


@given(answers(), st.randoms(use_true_random=False))
def test_scores_are_shares_and_do_not_know_the_order_of_images(some, random):
    y_true, y_pred, n = some
    slugs = [f"t{i}" for i in range(n)]
    found = scores.classification_scores(y_true, y_pred, slugs)
    numbers = [value for value in found.values() if isinstance(value, float)]
    numbers += [value for row in found["per_tissue"].values() for value in row.values() if isinstance(value, float)]
    assert numbers and all(0 <= value <= 1 for value in numbers)
    order = list(range(len(y_true)))
    random.shuffle(order)
    assert scores.classification_scores(y_true[order], y_pred[order], slugs) == found


@given(answers(), st.randoms(use_true_random=False))
def test_scores_do_not_know_the_numbers_of_tissues(some, random):
    y_true, y_pred, n = some
    renumbered = list(range(n))
    random.shuffle(renumbered)
    names = np.array([f"t{i}" for i in range(n)])
    before = scores.classification_scores(y_true, y_pred, list(names))
    new = np.array(renumbered)
    after = scores.classification_scores(new[y_true], new[y_pred], list(names[np.argsort(new)]))
    assert after["per_tissue"] == before["per_tissue"]
    assert after["macro_f1"] == pytest.approx(before["macro_f1"], abs=1e-6)


@given(answers(), st.data())
def test_counts_of_two_halves_add_up(some, data):
    y_true, y_pred, n = some
    assume(len(y_true) > 1)
    cut = data.draw(st.integers(1, len(y_true) - 1))
    halves = [scores.confusion_matrix(y_true[part], y_pred[part], n) for part in (slice(None, cut), slice(cut, None))]
    assert (sum(halves) == scores.confusion_matrix(y_true, y_pred, n)).all()


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 5)), elements=st.floats(-8, 8, width=32)), st.data()
)
def test_feature_sums_of_two_halves_add_up(rows, data):
    import torch

    cut = data.draw(st.integers(1, len(rows) - 1))
    whole, first, second = feature_sums(rows), feature_sums(rows[:cut]), feature_sums(rows[cut:])
    torch.testing.assert_close(first.total + second.total, whole.total)
    torch.testing.assert_close(whole.without(second).outer, first.outer, atol=1e-9, rtol=1e-9)
    assert first.count + second.count == whole.count


@given(
    st.sampled_from(sorted(TREE["benchmarks"])),
    st.sampled_from(sorted(TREE["loras"])),
    st.integers(0, 2**32 - 1),
    st.floats(1e-9, 1e3),
    st.integers(1, 4096),
)
def test_parameters_come_back_as_they_were_written(tmp_path_factory, benchmark, lora, seed, learning_rate, rank):
    tree = {**TREE, "benchmark": benchmark, "lora": lora, "seed": seed, "loras": {lora: TREE["loras"][lora]}}
    own = LoraSettings.model_validate(tree["loras"][lora]).model_dump()
    own["optimizer"]["learning_rate"] = learning_rate
    own["adapter"]["rank"] = rank
    tree["loras"] = {lora: own}
    found = load_params(write_params(tmp_path_factory.mktemp("params") / "params.yaml", tree))
    assert found.lora.model_dump() == own and found.seed == seed and found.benchmark_name == benchmark


SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)
TYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_])


@given(st.dictionaries(st.sampled_from("abc"), TYPES.flatmap(lambda kind: arrays.arrays(kind, SHAPES)), min_size=1))
def test_archives_come_back_as_they_were_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("npz") / "set.npz"
    files.write_npz(path, **content)
    found = files.read_npz(path, list(content))
    for key, array in content.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
        pieces = list(files.stream_npz(path, key, 2))
        np.testing.assert_array_equal(np.concatenate(pieces), array)
