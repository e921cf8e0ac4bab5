"""What the page does without the page: images as they are accepted, files with their provenance, mistakes as sentences."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from html_tags import Tags
from parity_gate import ParityGate
from PIL import Image
from pydantic import ValidationError

from pathsynth.app import recent_images
from pathsynth.app.drawing_service import UPLOADED, DrawingService
from pathsynth.app.recent_images import RecentImages
from pathsynth.app.views import Card, render_images
from pathsynth.core.errors import OutOfMemory
from pathsynth.synthesis import load_artifacts, stream_images, synthesize
from pathsynth.synthesis.records import BY_GATE, REJECTED, STAND_IN_NOTICE, Record, read_record, write_png

REQUEST = ("mucus", 20, 3, 2.0)


@pytest.fixture(scope="module")
def artifacts(finished):
    loaded = load_artifacts(finished)
    loaded.__dict__["gate"] = ParityGate()
    return loaded


@pytest.fixture
def service(artifacts, tmp_path) -> DrawingService:
    return DrawingService(artifacts, RecentImages(tmp_path))


@pytest.fixture(scope="module")
def attempts(artifacts) -> list:
    """All attempts at what REQUEST asks for."""
    return [made for batch in stream_images("mucus", 20, artifacts=artifacts, seed=3, guidance_scale=2.0) for made in batch]


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", html)).split())


def saved_files(html: str, folder: Path) -> list[Path]:
    """The files that the images of a page link to."""
    return [folder / url.removeprefix("/images/") for url in re.findall(r'<a href="([^"]+)" download', html)]


def test_images_appear_batch_by_batch_with_their_provenance(service, attempts, tmp_path):
    steps = list(service.draw(*REQUEST))
    counts = [images.count("<img") for _, images in steps]
    assert counts == sorted(counts) and len(set(counts)) > 2
    accepted = [made.record for made in attempts if made.record.checked == BY_GATE]
    files = saved_files(steps[-1][1], tmp_path)
    assert [read_record(path) for path in files] == accepted and [path.name for path in files] == [r.file for r in accepted]
    assert f"Done: {len(accepted)} of 20 images accepted in {len(attempts)} attempts" in text_of(steps[-1][0])
    assert [attributes["alt"] for tag, attributes in Tags(steps[-1][1]).found if tag == "img"] == [
        f"synthetic image of mucus, seed {record.seed}" for record in accepted
    ]


def test_rejected_images_are_shown_on_request_with_what_the_gate_saw(service, attempts, tmp_path):
    *_, (_, images) = service.draw(*REQUEST, show_rejected=True)
    files = saved_files(images, tmp_path)
    assert [read_record(path) for path in files] == [made.record for made in attempts]
    rejected = [made.record for made in attempts if made.record.checked == REJECTED]
    for record in rejected:
        assert f"Rejected: the gate saw {record.predicted} ({record.confidence:.0%})." in text_of(images)
    assert images.count('class="rejected"') == len(rejected) > 0


def test_file_is_the_one_that_the_command_writes(service, artifacts, tmp_path):
    *_, (_, images) = service.draw(*REQUEST)
    files = {path.name: path for path in saved_files(images, tmp_path)}
    made = synthesize("mucus", 20, artifacts=artifacts, seed=3)
    assert sorted(files) == [record.file for record in made.records]
    for image, record in zip(made.images, made.records, strict=True):
        write_png(tmp_path / "command.png", image, record)
        assert files[record.file].read_bytes() == (tmp_path / "command.png").read_bytes()


def test_every_state_of_the_page_says_that_images_are_synthetic(service):
    assert service.notice == STAND_IN_NOTICE and "not for diagnosis" in service.notice and "drawn phantoms" in service.notice
    for _, images in service.draw(*REQUEST):
        assert not images or STAND_IN_NOTICE in text_of(images)
        assert images.count("<b>synthetic</b>") == images.count("<img")


def test_saved_image_is_drawn_again_with_its_guidance_scale(service, tmp_path):
    *_, (_, images) = service.draw("mucus", 20, 3, 6.5)
    path = saved_files(images, tmp_path)[0]
    status, again = service.draw_again(str(path))
    assert "every pixel is the same" in status
    uploaded, drawn = saved_files(again, tmp_path)
    assert uploaded.read_bytes() == path.read_bytes() and read_record(drawn) == read_record(path)
    assert (np.asarray(Image.open(drawn)) == np.asarray(Image.open(path))).all()


def test_edited_image_is_drawn_again_with_other_pixels(service, tmp_path):
    *_, (_, images) = service.draw(*REQUEST)
    path = saved_files(images, tmp_path)[0]
    record = read_record(path).model_copy(update={"pixels_sha256": "0" * 64})
    write_png(path, np.zeros((32, 32, 3), np.uint8), record)
    status, again = service.draw_again(str(path))
    assert "with other pixels" in status and "Not checked by the gate." in again


def test_drawn_image_does_not_overwrite_the_uploaded_file(service, attempts, tmp_path):
    path = tmp_path / "mine.png"
    record = attempts[0].record.model_copy(update={"file": "uploaded.png"})
    write_png(path, np.zeros((32, 32, 3), np.uint8), record)
    _, again = service.draw_again(str(path))
    uploaded, drawn = saved_files(again, tmp_path)
    assert uploaded.read_bytes() == path.read_bytes() and (np.asarray(Image.open(drawn)) == attempts[0].image).all()
    with pytest.raises(ValidationError, match="lower-case"):
        Record.model_validate(record.model_dump() | {"file": UPLOADED})


def test_other_weights_get_the_remedy_of_the_app(service, attempts, tmp_path):
    write_png(tmp_path / "mine.png", attempts[0].image, attempts[0].record.model_copy(update={"lora_sha256": "0" * 64}))
    status, _ = service.draw_again(str(tmp_path / "mine.png"))
    assert text_of(status).endswith(". Start the app with the LoRA that drew this image.") and "--lora" not in status


@pytest.mark.parametrize(("change", "message"), [
    ({0: ""}, "Choose a tissue, or write a sentence that names one."),
    ({0: "a dog"}, "'a dog' names no tissue; known labels: adipose, background"),
    ({0: "mucus and debris"}, "names debris and mucus, but an image shows one tissue"),
    ({0: "<script>alert(1)</script>"}, "'<script>alert(1)</script>' names no tissue"),
    ({1: 51}, "The number of images cannot be 51."),
    ({2: -1}, "The seed cannot be -1."),
    ({3: None}, "The guidance scale is empty."),
])  # fmt: skip
def test_invalid_request_is_a_sentence_and_no_image(service, change, message):
    ((status, images),) = service.draw(*[change.get(number, value) for number, value in enumerate(REQUEST)])
    assert message in text_of(status) and 'role="alert"' in status and images == "" and "<script" not in status


@pytest.mark.parametrize(("content", "message"), [
    (None, "Choose a PNG file that this page"),
    (b"not a picture", "mine.png: is not a PNG file, or it is damaged"),
    ("plain", "mine.png: has no record: not made by"),
    ({"lora_sha256": "0" * 64}, "mucus_0001.png: was generated with different weights: lora_sha256 000000000000, these have "),
    ({"num_inference_steps": 1000}, "The image was drawn in 1000 steps. This page draws up to "),
    ({"image_size": 1024}, "The image is 1024 px wide. This page draws images of 32 px."),
])  # fmt: skip
def test_file_that_cannot_be_drawn_again_is_a_sentence(service, attempts, content, message, tmp_path):
    path = tmp_path / "mine.png"
    if content == "plain":
        Image.new("RGB", (8, 8)).save(path)
    elif isinstance(content, dict):
        changed = attempts[0].record.model_copy(update={"file": "mucus_0001.png"} | content)
        write_png(path, attempts[0].image, changed)
    elif content:
        path.write_bytes(content)
    status, images = service.draw_again(str(path) if content else None)
    assert text_of(status).startswith(message) and str(tmp_path) not in status and images == ""


def test_error_in_the_middle_keeps_the_images_so_far(service, monkeypatch):
    from pathsynth.generation.sampler import Sampler

    sample, calls = Sampler.__call__, []

    def fail_later(self, attempts):
        calls.append(attempts)
        if len(calls) > 1:
            raise OutOfMemory("lower the number of images")
        return sample(self, attempts)

    monkeypatch.setattr(Sampler, "__call__", fail_later)
    *_, before, last = service.draw(*REQUEST)
    assert "out of memory" in last[0] and 'role="alert"' in last[0] and last[1] == before[1] != ""


def test_names_of_classes_are_escaped(attempts):
    record = attempts[0].record.model_copy(update={"tissue": None, "prompt": '<img src=x onerror="alert(1)">${7*7}{{7*7}}'})
    html = render_images([Card("/images/a/b.png", record, "synthetic")], "<notice>")
    assert "<img src=x" not in html and "&lt;notice&gt;" in html


def test_images_of_old_requests_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(recent_images, "KEPT", 2)
    kept = RecentImages(tmp_path)
    folders = [kept.add_folder() for _ in range(3)]
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_notice_of_real_tissue_does_not_mention_phantoms(service, artifacts, monkeypatch):
    monkeypatch.setattr(type(artifacts.dataset), "stand_in", property(lambda _: False))
    assert "phantom" not in service.notice and "not for diagnosis" in service.notice
