"""Records in PNG files and manifests."""

from __future__ import annotations

import csv
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pathsynth.core.errors import DataError
from pathsynth.synthesis.manifest import read_manifest, write_manifest
from pathsynth.synthesis.records import DISCLAIMER, SOURCE_TYPE, Record, parse_record, read_record, write_png

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def make_record(**changes) -> Record:
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
def test_records_survive_png_and_manifest(prompt, tmp_path):
    checked = make_record(prompt=prompt)
    answer = {"checked": "not checked", "predicted": None, "confidence": None, "gate_sha256": None}
    unchecked = make_record(file="image_0002.png", tissue=None, **answer)
    image = np.arange(32 * 32 * 3, dtype=np.uint16).astype(np.uint8).reshape(32, 32, 3)
    for record in (checked, unchecked):
        write_png(tmp_path / record.file, image, record)
        assert read_record(tmp_path / record.file) == record
    write_manifest(tmp_path / "manifest.csv", [checked, unchecked])
    assert read_manifest(tmp_path / "manifest.csv") == [checked, unchecked]
    with Image.open(tmp_path / checked.file) as png:
        assert (np.asarray(png) == image).all()
        info = png.info
    assert info["Disclaimer"] == DISCLAIMER and "Synthetic" in info["Title"] and info["Description"] == prompt
    assert info["Comment"] == "Accepted by the gate, which predicted mucus with confidence 0.75."
    xmp = re.search(r"<x:xmpmeta.*</x:xmpmeta>", info["XML:com.adobe.xmp"], re.DOTALL)[0]
    assert SOURCE_TYPE in next(ElementTree.fromstring(xmp).iter(f"{{{RDF}}}Description")).attrib.values()


def replace(old: str, new: str):
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(("delimiter", "decimal", "encoding", "line_end", "blank"), [
    (",", ".", "utf-8-sig", "\r\n", False),
    (";", ",", "utf-8-sig", "\r\n", True),
    ("\t", ",", "utf-16", "\r\n", False),
    (",", ".", "utf-8", "\n", True),
], ids=["byte order mark", "European", "Unicode text", "empty row"])  # fmt: skip
def test_manifest_that_a_spreadsheet_has_saved_is_read(delimiter, decimal, encoding, line_end, blank, tmp_path):
    records = [make_record(prompt='pale, blue; "slime"', guidance_scale=2.5), make_record(file="b.png", prompt="=ä")]
    path = tmp_path / "manifest.csv"
    write_manifest(path, records)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    numbers = [rows[0].index(name) for name in ("confidence", "guidance_scale")]
    for row in rows[1:]:
        for column in numbers:
            row[column] = row[column].replace(".", decimal)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=line_end).writerows(rows)
        file.write((delimiter * (len(rows[0]) - 1) + line_end) * blank)
    assert read_manifest(path) == records


def test_seed_that_a_spreadsheet_has_rounded_is_one_line_error(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [make_record(seed=2**62)])
    path.write_text(path.read_text().replace(str(2**62), "4.61169E+18"))
    with pytest.raises(DataError, match=r"row 1: seed: 4.61169E\+18 was rounded by a spreadsheet; use the manifest as it was"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace("mucus_0001.png", "../mucus.png"), "row 1: file: "),
        (replace("mucus_0001.png", "/etc/mucus.png"), "row 1: file: "),
        (replace("mucus_0001.png", "sheet.png"), "row 1: file: .*other than sheet.png"),
        (replace("0.75", ""), "row 1: record: .*confidence or gate_sha256 is missing"),
        (replace("by the gate", "not checked"), "row 1: record: .*not checked, but predicted"),
        (lambda text: text + "mucus\n", "row 2: does not have as many cells as the header"),
        (lambda text: text + text.splitlines()[1] + "\n", "lists a file twice"),
        (lambda text: text.splitlines()[0] + "\n", "has 0 rows; allowed: 1 to 10000"),
        (replace(str(2**62 + 1), "seven"), "row 1: seed: "),
        (replace("guidance_scale", "guidance"), "row 1: guidance"),
        (lambda text: "\x00" + text, "row 1: .?file: |not a CSV"),
        (replace("mucus_0001", '"mucus'), "is not a CSV file in UTF-8"),
        (replace(DISCLAIMER, "real patient"), "row 1: record: .*notice must be the one"),
    ],
)
def test_damaged_manifest_is_one_line_error(damage, message, tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [make_record()])
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_accepted_image_must_be_predicted_as_its_tissue():
    with pytest.raises(ValueError, match="accepts only mucus, but predicted is debris"):
        make_record(predicted="debris")


def test_png_without_record_is_one_line_error(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no record"):
        read_record(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:30])
    with pytest.raises(DataError, match="cannot identify image file"):
        read_record(tmp_path / "b.png")
    with pytest.raises(DataError, match="could not be read"):
        read_record(tmp_path / "none.png")


def test_rejected_record_needs_the_prediction_of_another_class():
    rejected = make_record(checked="rejected by the gate", predicted="debris")
    assert parse_record(rejected.model_dump(), "here") == rejected
    for change, message in (({"predicted": "mucus"}, "predicted is the requested mucus"), ({"confidence": None}, "is missing")):
        with pytest.raises(DataError, match=message):
            parse_record({**rejected.model_dump(), **change}, "here")
