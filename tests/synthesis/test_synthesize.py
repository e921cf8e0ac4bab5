"""Images from a sentence: which tissue it asks for, the gate, the files, and the same images again from what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, tiny_tree, write_params
from PIL import Image

from pathsynth.__main__ import main
from pathsynth.core.errors import DataError, PathsynthError
from pathsynth.data import labels
from pathsynth.synthesis.manifest import read_manifest, write_manifest
from pathsynth.synthesis.records import DISCLAIMER, SOURCE_TYPE, Record, read_record, write_picture
from pathsynth.synthesis.sentences import SentenceError, match_label
from pathsynth.synthesis.synthesizer import MOST_IMAGES, Synthesizer, find_artifacts, pixels_sha256, synthesize

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("a histopathological image of an area with mucus", "mucus"),
        ("Mucus!", "mucus"),
        ("smooth_muscle", "smooth muscle"),
        ("SMOOTH  MUSCLES, stained", "smooth muscle"),
        ("one lymphocyte", "lymphocytes"),
        ("cancer associated stroma", "cancer-associated stroma"),
        ("an area with colorectal adenocarcinoma epithelium", "colorectal adenocarcinoma epithelium"),
    ],
)
def test_the_tissue_that_a_sentence_names(sentence, label):
    assert labels.PATHMNIST[match_label(sentence, labels.PATHMNIST)] == label


def test_the_longer_of_two_labels_is_meant_where_it_stands():
    words = ("granulocytes", "immature granulocytes", "normal, benign", "ऊतक हड्डी")
    assert match_label("an immature granulocyte", words) == 1
    assert match_label("granulocytes", words) == 0
    assert match_label("a normal benign lesion", words) == 2
    assert match_label("चित्र ऊतक हड्डी", words) == 3
    with pytest.raises(SentenceError, match="names granulocytes and immature granulocytes"):
        match_label("granulocytes beside immature granulocytes", words)
    assert match_label("immature granulocytes, immature granulocytes", words) == 1


def test_labels_that_differ_by_a_plural_s_are_told_apart_where_the_sentence_does():
    words = ("cell", "cells", "glands", "red cell")
    assert [match_label(text, words) for text in ("one cell", "many Cells", "a gland", "red cells")] == [0, 1, 2, 3]
    for text in ("a cell among cells", "red cell, other cells, a cell"):
        with pytest.raises(SentenceError, match="names cell and"):
            match_label(text, words)


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("a dog in the sun", "'a dog in the sun' names no class; known are: adipose, background"),
        ("mucus and debris", "names debris and mucus, where one image shows one; known are"),
        ("mucusoid", "names no class"),
        ("smooth pink muscle", "names no class"),
        ("smooth mucus muscle smooth muscle", "names mucus and smooth muscle"),
    ],
)
def test_sentences_that_name_none_or_two(sentence, said):
    with pytest.raises(SentenceError, match=re.escape(said)):
        match_label(sentence, labels.PATHMNIST)


def _record(**changes) -> Record:
    values = {
        "file": "mucus_0001.png", "tissue": "mucus", "prompt": "an area with mucus", "negative_prompt": "", "seed": 2**62 + 1,
        "attempt": 0, "checked": "by the gate", "predicted": "mucus", "confidence": 0.75,
        "scheduler": "DPMSolverMultistepScheduler", "num_inference_steps": 2, "guidance_scale": 2.0, "mixed_precision": "no",
        "weight_dtype": "fp32", "image_size": 32, "channels": 3,
        "benchmark": "tiny", "base": "base", "lora": "r2", "unet_sha256": "a" * 64,
        "lora_sha256": "b" * 64, "gate_sha256": "c" * 64, "pixels_sha256": "d" * 64, "made_with": "torch 2",
        "notice": DISCLAIMER,
    }  # fmt: skip
    return Record(**values | changes)


@pytest.mark.parametrize("prompt", ["an area with mucus", "pink\rdots", "=1+2", "'=1", '"<rdf:a/>&\n', "слизь 組織"])
def test_records_go_through_picture_and_manifest(prompt, tmp_path):
    record = _record(prompt=prompt)
    unchecked = _record(
        file="image_0002.png", tissue=None, checked="not checked", predicted=None, confidence=None, gate_sha256=None
    )
    image = np.arange(32 * 32 * 3, dtype=np.uint16).astype(np.uint8).reshape(32, 32, 3)
    for one in (record, unchecked):
        write_picture(tmp_path / one.file, image, one)
        assert read_record(tmp_path / one.file) == one
    write_manifest(tmp_path / "manifest.csv", [record, unchecked])
    assert read_manifest(tmp_path / "manifest.csv") == [record, unchecked]
    with Image.open(tmp_path / record.file) as picture:
        assert (np.asarray(picture) == image).all()
        info = picture.info
    assert info["Disclaimer"] == DISCLAIMER and "Synthetic" in info["Title"] and info["Description"] == prompt
    assert info["Comment"] == "Checked by the gate, which sees mucus with confidence 0.75."
    body = re.search(r"<x:xmpmeta.*</x:xmpmeta>", info["XML:com.adobe.xmp"], re.DOTALL)[0]
    assert SOURCE_TYPE in next(ElementTree.fromstring(body).iter(f"{{{RDF}}}Description")).attrib.values()


RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("mucus_0001.png", "../mucus.png"), "row 1: file: "),
        (lambda text: text.replace("mucus_0001.png", "sheet.png"), "row 1: file: .*other than sheet.png"),
        (lambda text: text.replace("0.75", ""), "row 1: record: .*confidence or gate_sha256 is missing"),
        (lambda text: text.replace("by the gate", "not checked"), "row 1: record: .*not checked, but predicted"),
        (lambda text: text.replace("mucus_0001.png", "/etc/mucus.png"), "row 1: file: "),
        (lambda text: text + text.splitlines()[1] + "\n", "names mucus_0001.png twice"),
        (lambda text: text + "mucus\n", "row 2: has not as many cells as the first row"),
        (lambda text: text.splitlines()[0] + "\n", "has 0 rows; allowed: 1 to 10000"),
        (lambda text: text.replace(str(2**62 + 1), "seven"), "row 1: seed: "),
        (lambda text: text.replace("guidance_scale", "guidance"), "row 1: guidance"),
        (lambda text: "\x00" + text, "row 1: \x00file: |no CSV"),
        (lambda text: text.replace("mucus_0001", '"mucus'), "no CSV"),
        (lambda text: text.replace(DISCLAIMER, "real patient"), "row 1: notice: .*must be the notice"),
    ],
)
def test_damaged_manifests(change, said, tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [_record()])
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=said.replace("\x00", ".?")):
        read_manifest(path)


def test_a_gate_lets_nothing_through_but_what_it_sees():
    with pytest.raises(ValueError, match="lets mucus alone through, but predicted is debris"):
        _record(predicted="debris")


def test_pictures_without_a_record(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no record"):
        read_record(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:30])
    for name in ("b.png", "none.png"):
        with pytest.raises(DataError, match="is no whole PNG"):
            read_record(tmp_path / name)


def run(*args: object):
    return CliRunner().invoke(main, ["synthesize", *map(str, args)])


@pytest.fixture(scope="module")
def free(finished, tmp_path_factory) -> Path:
    """Twelve images of a text that names no tissue."""
    out = tmp_path_factory.mktemp("free") / "out"
    result = run("pink dots in the sun", "-n", 12, "--no-gate", "--artifacts", finished, "--out", out)
    assert result.exit_code == 0, result.output
    assert "12 images, not checked" in result.output and f"look at {out / 'sheet.png'}" in result.output
    return out


def test_free_text_is_drawn_and_says_that_it_was_not_checked(free):
    records = read_manifest(free / "manifest.csv")
    assert [record.file for record in records] == [f"image_{number:04d}.png" for number in range(1, 13)]
    assert {record.checked for record in records} == {"not checked"} and len({record.pixels_sha256 for record in records}) == 12
    assert {(record.predicted, record.gate_sha256, record.tissue) for record in records} == {(None, None, None)}
    for record in records:
        assert read_record(free / record.file) == record and record.prompt == "pink dots in the sun"
        with Image.open(free / record.file) as picture:
            assert picture.size == (32, 32) and pixels_sha256(np.asarray(picture)) == record.pixels_sha256
            assert picture.info["Comment"] == "Not checked by any classifier."
    with Image.open(free / "sheet.png") as sheet:
        assert sheet.width > 300 and sheet.info["Title"] == "Contact sheet of 12 synthetic images"
        assert DISCLAIMER in sheet.info["Disclaimer"] and SOURCE_TYPE in sheet.info["XML:com.adobe.xmp"]


def test_the_foot_of_a_narrow_sheet_fits():
    from pathsynth.cli.synthesize import NARROW_CAPTION
    from pathsynth.evaluation.contact_sheets import CAPTION_SIZE, COLUMNS, _block_width, _font

    assert _font(CAPTION_SIZE).getlength(NARROW_CAPTION) <= _block_width(COLUMNS)


def _seen_most(finished: Path, folder: Path) -> str:
    """The tissue that the tiny gate sees in most images."""
    from pathsynth.classifiers.model import load_classifier

    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("image_*.png"))])
    seen = load_classifier(finished / "models" / "gate", "cpu", labels.SLUGS).probabilities(images).argmax(axis=1)
    return labels.PATHMNIST[np.bincount(seen, minlength=9).argmax()]


@pytest.fixture(scope="module")
def checked(finished, free, tmp_path_factory) -> Path:
    """Five images that the gate let through."""
    out = tmp_path_factory.mktemp("checked") / "out"
    sentence = f"pink dots with {_seen_most(finished, free)}"
    result = run(sentence, "-n", 5, "--max-attempts", 200, "--seed", 3, "--artifacts", finished, "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"5 images passed the gate, of \d+ that were drawn", result.output)
    return out


def test_the_gate_sees_the_tissue_in_every_image_that_is_kept(finished, checked):
    from pathsynth.classifiers.model import load_classifier
    from pathsynth.core.io import sha256_of

    gate = load_classifier(finished / "models" / "gate", "cpu", labels.SLUGS)
    records = read_manifest(checked / "manifest.csv")
    assert len(records) == 5 == len(list(checked.glob("*_0*.png")))
    for record in records:
        answers = gate.probabilities(np.asarray(Image.open(checked / record.file))[None])[0]
        assert record.predicted == record.tissue == labels.SLUGS[answers.argmax()]
        assert record.confidence == pytest.approx(answers.max(), abs=1e-3) and record.checked == "by the gate"
        assert record.gate_sha256 == sha256_of(finished / "models" / "gate" / "model.safetensors")


def test_the_manifest_alone_gives_the_same_images_again(finished, checked, tmp_path):
    result = run("--again", checked / "manifest.csv", "--artifacts", finished, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert "5 of 5 images are the same to the last bit" in result.output
    for path in checked.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_one_picture_alone_gives_itself_again(finished, free, tmp_path):
    result = run("--again", free / "image_0007.png", "--artifacts", finished, "--out", tmp_path / "again")
    assert "1 of 1 images are the same to the last bit" in result.output, result.output
    assert (tmp_path / "again" / "image_0007.png").read_bytes() == (free / "image_0007.png").read_bytes()


def test_the_function_draws_what_the_command_draws(finished, checked):
    records = read_manifest(checked / "manifest.csv")
    made = synthesize(records[0].prompt, 5, artifacts=finished, seed=3, max_attempts=200)
    assert made.records == records and made.images.shape == (5, 32, 32, 3) and made.images.dtype == np.uint8
    assert [pixels_sha256(image) for image in made.images] == [record.pixels_sha256 for record in records]


def test_a_name_alone_is_given_the_prompt_that_the_lora_knows(finished):
    synthesizer = Synthesizer(find_artifacts(finished))
    assert synthesizer.asked("Smooth_Muscle") == synthesizer.asked("an area with smooth muscle")
    assert synthesizer.asked("smooth muscle").prompt == "an area with smooth muscle"
    assert synthesizer.asked("smooth muscle, blurred").prompt == "smooth muscle, blurred"
    assert synthesizer.asked("no tissue at all", gate=False).tissue is None
    with pytest.raises(PathsynthError, match="sentence: None: must be a text"):
        synthesizer.synthesize(None)
    for n in (0, MOST_IMAGES + 1, "3", True):
        with pytest.raises(PathsynthError, match=f"n: {n!r}: must be a whole number from 1 to {MOST_IMAGES}"):
            synthesizer.synthesize("mucus", n)


def test_formats_of_weights_do_not_leak_into_later_images(finished):
    synthesizer = Synthesizer(find_artifacts(finished))
    first = synthesizer.synthesize("dots", 1, gate=False)
    half = [record.model_copy(update={"weight_dtype": "bf16"}) for record in first.records]
    assert (synthesizer.again(half).images != first.images).any()
    assert (synthesizer.again(first.records).images == first.images).all()


def test_images_are_drawn_as_recorded_whatever_is_selected_now(finished, checked, tmp_path):
    places = _elsewhere(finished, tmp_path)
    tree = tiny_tree(find_artifacts(finished).params.benchmark.base.pretrained_model_name_or_path) | {"lora": "r3", "seed": 99}
    others = {"num_inference_steps": 5, "guidance_scale": 7.0, "scheduler": "DDIMScheduler", "negative_prompt": "dots"}
    tree["benchmarks"]["tiny"]["generation"] |= others
    write_params(tmp_path / "my.yaml", tree)
    result = run("--again", checked / "manifest.csv", *places, "--out", tmp_path / "out")
    assert "5 of 5 images are the same to the last bit" in result.output, result.output
    assert {record.lora for record in read_manifest(tmp_path / "out" / "manifest.csv")} == {"r2"}


def test_images_of_several_prompts_keep_their_places(finished, free, tmp_path):
    other = run("blue dots", "-n", 2, "--no-gate", "--seed", 4, "--artifacts", finished, "--out", tmp_path / "other")
    assert other.exit_code == 0
    mine, others = read_manifest(free / "manifest.csv"), read_manifest(tmp_path / "other" / "manifest.csv")
    others = [record.model_copy(update={"file": f"other_{number}.png"}) for number, record in enumerate(others)]
    mixed = [mine[0], others[1], mine[1], others[0]]
    write_manifest(tmp_path / "mixed.csv", mixed)
    result = run("--again", tmp_path / "mixed.csv", "--artifacts", finished, "--out", tmp_path / "out")
    assert "4 of 4 images are the same to the last bit" in result.output, result.output
    assert read_manifest(tmp_path / "out" / "manifest.csv") == mixed


def test_what_the_gate_has_said_holds_for_the_same_pixels_alone(finished, checked, tmp_path):
    records = read_manifest(checked / "manifest.csv")
    changed = [records[0].model_copy(update={"pixels_sha256": "0" * 64, "made_with": "torch 1"}), *records[1:]]
    write_manifest(tmp_path / "manifest.csv", changed)
    result = run("--again", tmp_path / "manifest.csv", "--artifacts", finished, "--out", tmp_path / "out")
    assert "4 of 5 images are the same to the last bit; a GPU, another processor" in result.output
    first, *others = read_manifest(tmp_path / "out" / "manifest.csv")
    assert others == records[1:] and first.pixels_sha256 == records[0].pixels_sha256 and first.made_with == records[0].made_with
    assert first.checked == "not checked" and first.predicted is first.confidence is first.gate_sha256 is None


def test_the_function_in_the_readme(finished, monkeypatch):
    monkeypatch.chdir(finished)
    block = next(
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "pathsynth.synthesis.synthesizer" in code
    )
    exec(compile(block, "README.md", "exec"), found := {})
    assert found["made"].wanted == 12 and len(found["made"].images) == len(found["made"].records)


def test_what_the_gate_refuses_is_missing_and_what_it_let_through_is_kept(finished, free, tmp_path):
    seen = _seen_most(finished, free)
    other = "debris" if seen != "debris" else "mucus"
    result = run(other, "-n", 3, "--max-attempts", 2, "--artifacts", finished, "--out", tmp_path / "out")
    assert result.exit_code == 1
    missing = re.search(r"error: (\d) of 3 images were refused by the gate 2 times over and are missing", result.stderr)
    # where nothing is left, nothing is in the way of the next try
    assert (tmp_path / "out").exists() == (missing[1] != "3")
    assert not (tmp_path / "out").exists() or len(read_manifest(tmp_path / "out" / "manifest.csv")) == 3 - int(missing[1])


def test_where_nothing_passes_one_line_says_so_and_nothing_is_left(finished, tmp_path):
    # untrained as it is, the gate sees the same few classes in everything
    ended = [
        run(label, "--max-attempts", 2, "--artifacts", finished, "--out", tmp_path / slug)
        for label, slug in zip(labels.PATHMNIST, labels.SLUGS, strict=True)
    ]
    refused = [result for result in ended if result.exit_code]
    assert refused and len(list(tmp_path.iterdir())) == len(ended) - len(refused)
    for result in refused:
        assert result.stderr.splitlines()[-1].startswith("error: 1 of 1 images were refused by the gate 2 times over"), (
            result.output
        )


def _elsewhere(finished: Path, folder: Path) -> list[object]:
    """Artifacts in places of their own, as `dvc artifacts get` leaves them."""
    shutil.copytree(finished / "models" / "lora", folder / "my lora")
    shutil.copytree(finished / "models" / "gate", folder / "my gate")
    shutil.copy(finished / "params.yaml", folder / "my.yaml")
    return ["--params", folder / "my.yaml", "--lora", folder / "my lora", "--gate", folder / "my gate"]


def test_artifacts_may_lie_anywhere(finished, checked, tmp_path):
    places = _elsewhere(finished, tmp_path)
    sentence = read_manifest(checked / "manifest.csv")[0].prompt
    result = run(sentence, "-n", 5, "--max-attempts", 200, "--seed", 3, *places, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "manifest.csv").read_bytes() == (checked / "manifest.csv").read_bytes()


def test_a_lora_is_named_as_what_it_is(finished, tmp_path):
    places = _elsewhere(finished, tmp_path)
    tree = tiny_tree(find_artifacts(finished).params.benchmark.base.pretrained_model_name_or_path)
    write_params(tmp_path / "my.yaml", tree | {"lora": "r3"})
    found = find_artifacts(tmp_path, *(Path(place) for place in places[1::2]))
    assert found.params.lora_name == "r2" and found.params.lora.adapter.rank == 2
    write_params(tmp_path / "my.yaml", tree | {"lora": "r3", "loras": {"r3": tree["loras"]["r3"]}})
    result = run("mucus", *places, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "was trained with settings that no entry of `loras`" in result.stderr


def test_what_a_manifest_says_of_a_class_that_is_not_known_is_not_passed_on(finished, free, tmp_path):
    records = [record.model_copy(update={"tissue": "kidney"}) for record in read_manifest(free / "manifest.csv")]
    write_manifest(tmp_path / "manifest.csv", records)
    result = run("--again", tmp_path / "manifest.csv", "--artifacts", finished, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "image_0001.png: tissue: kidney is not known; known are: adipose" in result.stderr
    assert not (tmp_path / "out").exists()


def test_images_of_other_weights_are_not_drawn_again(finished, checked, tmp_path):
    places = _elsewhere(finished, tmp_path)
    records = [record.model_copy(update={"lora_sha256": "0" * 64}) for record in read_manifest(checked / "manifest.csv")]
    write_manifest(tmp_path / "manifest.csv", records)
    result = run("--again", tmp_path / "manifest.csv", *places, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "was drawn with weights whose lora_sha256 begins with 000000000000" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mucus"], "params.yaml: is not there; name the folder of the artifacts with --artifacts"),
        (
            ["mucus", "--params", "here.yaml"],
            "models/lora: is not there: no trained LoRA yet; `make repro` or `dvc repro train_lora`",
        ),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_makes_it(args, said, tmp_path, tiny_base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "here.yaml", tiny_tree(tiny_base))
    result = run(*args, "--out", "out")
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1


def test_a_missing_gate_is_said_and_is_not_needed_without_it(finished, tmp_path):
    places = [*_elsewhere(finished, tmp_path)[:-1], tmp_path / "none"]
    result = run("mucus", *places, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "none: is not there: no trained gate yet" in result.stderr
    assert run("mucus", "--no-gate", *places, "--out", tmp_path / "out").exit_code == 0
    assert read_manifest(tmp_path / "out" / "manifest.csv")[0].tissue == "mucus"


def test_an_empty_folder_is_filled_whatever_it_is(finished, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), tmp_path / "link"):
        result = run("dots", "--no-gate", "--artifacts", finished, "--out", out)
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in out.iterdir()) == ["image_0001.png", "manifest.csv", "sheet.png"]
    assert (tmp_path / "link").is_symlink()


def test_what_is_in_the_way_stays(finished, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    for args in (["mucus"], ["mucus", "--no-gate"]):
        result = run(*args, "--artifacts", finished, "--out", tmp_path)
        assert result.exit_code == 1 and result.stderr == f"error: {tmp_path}: is not empty; name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "give a sentence, or --again with a manifest"),
        (["mucus", "--again", "m.csv"], 2, "give a sentence, or --again with a manifest"),
        (["mucus", "-n", "0"], 2, "0 is not in the range 1<=x<=10000"),
        (["a dog"], 1, "error: 'a dog' names no class; known are: adipose, "),
        ([" "], 1, "error: ' ' is empty"),
        (["a\x08dog", "--no-gate"], 1, "has characters that are no text"),
        (["a\udcffdog", "--no-gate"], 1, "has characters that are no text"),
        (["--again", "m.csv", "-n", "3"], 2, "--again draws what is recorded: it takes no -n"),
        (["--again", "m.csv", "--no-gate"], 2, "--again draws what is recorded: it takes no -n"),
        (["--again", "none.csv"], 1, "error: none.csv: could not be read: No such file or directory"),
    ],
)
def test_wrong_requests(args, code, said, finished, tmp_path):
    result = run(*args, "--artifacts", finished, "--out", tmp_path / "out")
    assert result.exit_code == code and said in result.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_line_and_leaves_nothing(finished, tmp_path):
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path / "disk"], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        args = ["pink dots", "--no-gate", "-n", 12, "--artifacts", finished, "--out", tmp_path / "disk" / "out"]
        result = run(*args)
        assert result.exit_code == 1 and "No space left on device" in result.stderr and result.stderr.count("error: ") == 1
        assert not list((tmp_path / "disk").iterdir())
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_the_lines_of_the_readme_draw_with_plain_diffusers(finished, tiny_base, tmp_path, monkeypatch):
    block = next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "load_lora_weights" in code)
    assert len([line for line in block.splitlines() if line]) <= 5
    (tmp_path / "models").mkdir()
    (tmp_path / "base").symlink_to(tiny_base)
    (tmp_path / "models" / "lora").symlink_to(finished / "models" / "lora")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    with Image.open(tmp_path / "mucus.png") as picture:
        assert picture.size == (32, 32) and np.asarray(picture).std() > 0


def test_help_loads_next_to_nothing():
    code = (
        "import sys; sys.argv = ['pathsynth', '--help']\nfrom pathsynth.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'pydantic', 'torch', 'pandas', 'PIL', 'diffusers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]" and "synthesize" in out and "score" in out
