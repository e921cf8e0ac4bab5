"""Properties that hold for all inputs, tried on many: the filter loop, parameters and archives."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
from conftest import ROOT, write_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pathsynth.cli.check import check_benchmark
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.io import read_npz, stream_npz, write_npz
from pathsynth.core.params import BENCHMARKS, load_params, read_yaml
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.filtering import generate_filtered, generation_metrics
from pathsynth.generation.slots import Attempt, Slots

TREE = read_yaml(ROOT / "params.yaml")
RUNS = st.fixed_dictionaries(
    {
        "tissues": st.integers(1, 4),
        "slots": st.integers(1, 5),
        "limit": st.integers(1, 5),
        "batch": st.integers(1, 9),
        "gate": st.integers(0, 250),
    }
)


def _fill(folder: Path, run: dict) -> tuple[Slots, list[Attempt]]:
    """Fills slots with images of (tissue, slot, attempt) behind a gate that decides at random; what was sampled for it."""
    sampled: list[Attempt] = []

    def sample(attempts: list[Attempt]) -> np.ndarray:
        sampled.extend(attempts)
        return np.array([[[[each.tissue, each.slot, each.attempt]]] for each in attempts], np.uint8)

    def gate(images: np.ndarray) -> np.ndarray:
        predicted = [zlib.crc32(bytes([*image[0, 0], run["gate"]])) % run["tissues"] for image in images]
        return np.eye(run["tissues"])[predicted]

    slots = Slots(Checkpoint(folder), run["tissues"], run["slots"], 1, 1)
    generate_filtered(sample, gate, slots, run["limit"], run["batch"])
    return slots, sampled


def _result(slots: Slots) -> tuple:
    """All that is kept, in a form that can be compared."""
    slugs = [f"t{i}" for i in range(slots.tissues)]
    return slots.table(slugs).to_csv(), slots.raw()[0].tolist(), slots.accepted()[0].tolist()


@given(RUNS)
def test_every_slot_is_filled_or_counted_and_attempted_within_the_limit(run):
    slugs = [f"t{i}" for i in range(run["tissues"])]
    with tempfile.TemporaryDirectory() as folder:
        slots, sampled = _fill(Path(folder), run)
        table, raw, accepted = slots.table(slugs), np.array(slots.raw()[0]), np.array(slots.accepted()[0])
    assert len(set(sampled)) == len(sampled) == len(table), "no attempt twice"
    filled = []
    for (slug, slot), rows in table.groupby(["tissue", "slot"]):
        assert rows["attempt"].tolist() == list(range(len(rows))) and len(rows) <= run["limit"]
        assert not rows["accepted"][:-1].any(), "no attempt after an accepted one"
        last = rows.iloc[-1]
        assert last["accepted"] or len(rows) == run["limit"]
        if last["accepted"]:
            filled.append([slugs.index(slug), slot, last["attempt"]])
    first = [[tissue, slot, 0] for tissue in range(run["tissues"]) for slot in range(run["slots"])]
    assert raw.reshape(-1, 3).tolist() == first
    assert accepted.reshape(-1, 3).tolist() == filled, "the image of the accepted attempt"
    counts = generation_metrics(table, slugs, run["slots"])
    assert counts["accepted"] + counts["unfilled"] == len(first) and counts["attempted"] == len(sampled)


@given(RUNS, st.integers(1, 9))
def test_batch_size_changes_nothing(run, other):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, second = _fill(Path(one), run)[0], _fill(Path(two), run | {"batch": other})[0]
        assert _result(first) == _result(second)


@given(RUNS, st.data())
def test_run_that_was_cut_anywhere_resumes_to_the_same_result(run, data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slots, sampled = _fill(folder, run)
        expected = _result(slots)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        # a kill leaves the first files whole, and perhaps a part of the next one
        left = data.draw(st.integers(0, len(files) - 1))
        cut = data.draw(st.integers(0, files[left].stat().st_size - 1))
        files[left].write_bytes(files[left].read_bytes()[:cut])
        for path in files[left + 1 :]:
            path.unlink()
        resumed, sampled_again = _fill(folder, run)
        assert _result(resumed) == expected and len(sampled_again) <= len(sampled)


@settings(max_examples=settings.default.max_examples // 3)
@given(
    st.sampled_from(sorted(path.stem for path in (ROOT / BENCHMARKS).glob("*.yaml"))),
    st.sampled_from(sorted(TREE["loras"])),
    st.integers(0, 2**32 - 1),
    st.floats(1e-9, 1e3),
    st.integers(1, 4096),
)
def test_parameters_are_read_as_written(tmp_path_factory, benchmark, lora, seed, learning_rate, rank):
    folder = tmp_path_factory.mktemp("params")
    shutil.copytree(ROOT / "configs", folder / "configs")
    changed = {"optimizer": {"learning_rate": learning_rate}, "adapter": {"rank": rank}}
    seeds, loras = dict.fromkeys(TREE["seeds"], seed), {lora: [*TREE["loras"][lora], changed]}
    tree = {**TREE, "benchmark": benchmark, "lora": lora, "seeds": seeds, "loras": loras}
    params = load_params(write_yaml(folder / "params.yaml", tree))
    resolved = params.section("lora", LoraSettings)
    assert (params.seeds.training, params.benchmark_name) == (seed, benchmark)
    assert (resolved.optimizer.learning_rate, resolved.adapter.rank) == (learning_rate, rank)
    check_benchmark(folder, benchmark)


SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)
TYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_])


@given(st.dictionaries(st.sampled_from("abc"), TYPES.flatmap(lambda kind: arrays.arrays(kind, SHAPES)), min_size=1))
def test_archives_are_read_as_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("npz") / "set.npz"
    write_npz(path, **content)
    arrays_read = read_npz(path, list(content))
    for key, array in content.items():
        assert arrays_read[key].dtype == array.dtype
        np.testing.assert_array_equal(arrays_read[key], array)
        np.testing.assert_array_equal(np.concatenate(list(stream_npz(path, key, 2))), array)
