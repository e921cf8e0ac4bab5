"""Images that are streamed with their attempts: the same as those of the stage, rejected ones described, guidance recorded."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import empty_slots
from parity_gate import ParityGate
from PIL import Image

from pathsynth.core.errors import PathsynthError
from pathsynth.data.labels import SLUGS
from pathsynth.synthesis import load_artifacts, redraw, stream_images, synthesize
from pathsynth.synthesis.manifest import read_manifest, write_manifest
from pathsynth.synthesis.records import BY_GATE, NOT_CHECKED, REJECTED, read_record, write_png


@pytest.fixture(scope="module")
def artifacts(finished):
    loaded = load_artifacts(finished)
    # where the gate would be kept once it is loaded
    loaded.__dict__["gate"] = ParityGate()
    return loaded


@pytest.fixture(scope="module")
def mixed(artifacts) -> list:
    """Attempts at images of mucus, some of them rejected."""
    return stream_all("mucus", 20, artifacts)


def stream_all(sentence: str, n: int, artifacts, **options) -> list:
    options = {"seed": 3, "max_attempts": 3, **options}
    return [made for batch in stream_images(sentence, n, artifacts=artifacts, **options) for made in batch]


def test_attempts_are_those_of_filtered_generation(artifacts, mixed, tmp_path):
    from pathsynth.generation.filtering import generate_filtered
    from pathsynth.generation.sampler import Sampler

    tissue = mixed[0].record.tissue
    slots, others = empty_slots(tmp_path, 1, 20, 32, seed=3), [slug for slug in SLUGS if slug != tissue]
    sampler = Sampler(artifacts.pipeline, [mixed[0].record.prompt], artifacts.generation.sampler, 3, 32)
    order = [SLUGS.index(slug) for slug in (tissue, *others)]
    generate_filtered(sampler, lambda images: artifacts.gate.probabilities(images)[:, order], slots, 3, 16)
    rows = slots.table([tissue, *others])
    records = sorted((made.slot, made.record.attempt, made.record) for made in mixed)
    assert [(slot, attempt) for slot, attempt, _ in records] == list(zip(rows["slot"], rows["attempt"], strict=True))
    for name in ("seed", "predicted", "confidence"):
        assert [getattr(record, name) for *_, record in records] == rows[name].tolist()
    accepted = {made.slot: made.image for made in mixed if made.record.checked == BY_GATE}
    assert (slots.accepted()[0] == np.stack([accepted[slot] for slot in sorted(accepted)])).all()


def test_synthesize_keeps_what_was_accepted_and_names_it_after_its_slot(artifacts, mixed):
    result = synthesize(mixed[0].record.prompt, 20, artifacts=artifacts, seed=3, max_attempts=3)
    accepted = sorted((made for made in mixed if made.record.checked == BY_GATE), key=lambda made: made.slot)
    assert len(accepted) > 0 and result.records == [made.record for made in accepted] and result.attempted == len(mixed)
    assert (result.images == np.stack([made.image for made in accepted])).all()
    assert all(made.record.file == f"{made.record.tissue}_{made.slot + 1:04d}.png" for made in accepted)


def test_rejected_image_keeps_what_the_gate_predicted_and_is_redrawn(artifacts, mixed, tmp_path):
    rejected = [made for made in mixed if made.record.checked == REJECTED]
    assert len({made.record.file for made in rejected}) == len(rejected) > 0
    first = rejected[0].record
    assert first.predicted != first.tissue and first.file == f"{first.tissue}_{rejected[0].slot + 1:04d}_rejected_1.png"
    write_png(tmp_path / first.file, rejected[0].image, first)
    assert read_record(tmp_path / first.file) == first
    with Image.open(tmp_path / first.file) as png:
        assert png.info["Comment"].startswith(f"Rejected by the gate, which predicted {first.predicted} with confidence")
    write_manifest(tmp_path / "manifest.csv", [first])
    assert read_manifest(tmp_path / "manifest.csv") == [first]
    again = redraw([first], artifacts=artifacts)
    assert again.records == [first] and (again.images[0] == rejected[0].image).all()


def test_size_of_batches_changes_no_image(artifacts):
    small, large = (stream_all("dots", 20, artifacts, gate=False, batch_size=size) for size in (1, 40))
    assert [made.record for made in small] == [made.record for made in large]
    assert {made.record.checked for made in small} == {NOT_CHECKED}
    batches = stream_images("dots", 20, artifacts=artifacts, gate=False, batch_size=1)
    # on a CPU a batch is padded to 16 images, so smaller ones would be wasted
    assert [len(batch) for batch in batches] == [16, 4]


def test_guidance_scale_is_recorded_and_redrawn(artifacts):
    usual = synthesize("dots", 2, artifacts=artifacts, seed=1, gate=False)
    strong = synthesize("dots", 2, artifacts=artifacts, seed=1, gate=False, guidance_scale=9)
    assert {record.guidance_scale for record in usual.records} == {2.0}
    assert {record.guidance_scale for record in strong.records} == {9.0}
    assert (strong.images != usual.images).any()
    assert redraw(strong.records, artifacts=artifacts).records == strong.records


@pytest.mark.parametrize(("options", "message"), [
    ({"n": 0}, "n: 0; allowed: whole numbers from 1 to 10000"),
    ({"seed": 2**32}, "seed: 4294967296; allowed: whole numbers from 0 to 4294967295"),
    ({"seed": 1.5}, "seed: 1.5; allowed"),
    ({"guidance_scale": 0.5}, "guidance_scale: 0.5; allowed: 1 to 100"),
    ({"guidance_scale": float("nan")}, "guidance_scale: nan; allowed"),
])  # fmt: skip
def test_number_out_of_range_is_an_error_before_the_first_image(options, message, artifacts):
    with pytest.raises(PathsynthError, match=message):
        stream_images("dots", **({"n": 1, "gate": False} | options), artifacts=artifacts)
