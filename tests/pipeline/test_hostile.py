"""Files that were made to harm, and words that would be code elsewhere: nothing of them runs, in any script they are words."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import run_graph, tiny_tree, write_params
from html_tags import Tags

from pathsynth.core.errors import DataError, ModelError, ParamsError
from pathsynth.core.params import load_params
from pathsynth.data import labels

HARMFUL = '<b onclick=f()>&"', '=CALL("x")|`y`', "слизь مخاط", "ऊतक 組織"
PROMPT = "図 {label}<img src=x onerror=f()>"


def test_labels_in_any_script_have_distinct_slugs():
    slugs = [labels.slugify(label) for label in HARMFUL]
    assert slugs == ["b_onclick_f", "call_x_y", "слизь_مخاط", "ऊतक_組織"]
    assert [labels.slugify(label) for label in labels.PATHMNIST] == list(labels.SLUGS)
    assert labels.slugify("cafe\u0301") == labels.slugify("café") == "café"
    with pytest.raises(ValueError, match="has control characters or bidirectional formatting marks"):
        labels.resolve_labels(["turned \u202e round", "y"])
    with pytest.raises(ValueError, match="is too long: its slug has 300 bytes, limit 120"):
        labels.resolve_labels(["x" * 300, "y"])


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base) -> Path:
    """A folder in which all stages have run with harmful words for labels, prompts and file names."""
    from pathsynth.core.io import write_npz

    folder = tmp_path_factory.mktemp("hostile")
    archive = folder / "<img src=x onerror=alert(1)>`|.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = np.repeat(np.arange(4, dtype=np.uint8), 4)[:, None]
    write_npz(archive, **arrays)
    base = shutil.copytree(tiny_base, folder / "base `<b>` |")
    tree = tiny_tree(base)
    tree["loras"]["r2"]["training"]["max_train_steps"] = 1
    benchmark = tree["benchmarks"]["tiny"]
    benchmark["dataset"] = {
        "source": "medmnist_file", "labels": list(HARMFUL), "channels": 3, "image_size": 32,
        "path": str(archive), "md5": None,
    }  # fmt: skip
    benchmark["prompts"] = {
        "plain": PROMPT,
        "described": {labels.slugify(label): f"{label} dots" for label in HARMFUL},
        "paraphrased": {labels.slugify(label): [f"spots, {label}", f"dots of {label}"] for label in HARMFUL},
    }
    run_graph(folder, write_params(folder / "params.yaml", tree))
    return folder


@pytest.mark.slow
def test_report_shows_hostile_names_as_text(run):
    page = (run / "reports" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b onclick=f()&gt;" in page and "ऊतक 組織" in page and "слизь" in page
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith(("#", "data:"))


@pytest.mark.slow
def test_report_opens_no_dialog_and_requests_nothing_in_a_browser(run):
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, events = browser.new_page(), []
        page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: events.append(request.url))
        page.goto((run / "reports" / "report.html").as_uri())
        assert page.title() and [event for event in events if not event.startswith(("data:", "file:"))] == []
        browser.close()


@pytest.mark.slow
def test_cards_escape_labels_prompts_and_names(run):
    cards = [
        run / "models" / "lora" / "README.md",
        run / "data" / "generated" / "README.md",
        run / "reports" / "dataset_card.md",
    ]
    for card in cards:
        text = card.read_text(encoding="utf-8")
        # in a block or a span of code nothing is markup
        outside = re.sub(r"(?s)```.*?```|`[^`]*`", "", text.replace(r"\`", ""))
        assert "<img" not in outside and "<b" not in outside, card
        assert "ऊतक 組織" in text


@pytest.mark.slow
def test_tables_have_no_cell_that_a_spreadsheet_evaluates(run):
    tables = [path for folder in ("plots", "data") for path in (run / folder).rglob("*.csv")]
    assert len(tables) >= 6
    texts = [path.read_text(encoding="utf-8").splitlines() for path in tables]
    cells = [cell for lines in texts for row in csv.reader(lines) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+", "-", "\t")) and not _number(cell)]


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_formulas_are_escaped_in_csv(tmp_path):
    import pandas as pd

    from pathsynth.core.io import write_csv

    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": ["=1+1", "-x", "@y", "fine", None], "value": [-1, 2, -3, 4, 5]}))
    assert (tmp_path / "a.csv").read_text() == "name,value\n'=1+1,-1\n'-x,2\n'@y,-3\nfine,4\n,5\n"


YAML = {
    "a tag that calls": "seeds: !!python/object/apply:os.mkdir [{trap}]",
    "a tag that imports": "seeds: !!python/module:antigravity",
    "a tag of its own": "seeds: !trap {trap}",
    "a merge of itself": "seeds: &a {{<<: *a}}",
    "a list in itself": "seeds: &a [*a]",
    "a map in itself": "benchmarks: &a {{x: *a}}\nseeds: 1\nprocesses: 1\nbenchmark: x\nlora: y\nloras: {{y: *a}}",
    "deep": "seeds: " + "[" * 20_000,
    "deep and closed": "seeds: " + "[" * 5_000 + "]" * 5_000,
    "a number without end": "seeds: " + "9" * 100_000,
    "a number without end that is read": "seeds: 0x" + "f" * 5_000,
    "a million pairs": "a0: &a0 x\n" + "".join(f"a{n}: &a{n} !!pairs [x: *a{n - 1}, y: *a{n - 1}]\n" for n in range(1, 40)),
    "a million laughs": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "laughs where they are used": "".join(
        f"a{n}: &a{n} " + (f"[*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" if n else "[x]\n") for n in range(30)
    )
    + "seeds: *a29\nprocesses: 1\nbenchmark: a\nlora: b\nbenchmarks: {{a: *a29}}\nloras: {{b: *a29}}\n",
}


@pytest.mark.parametrize("case", YAML)
def test_parameters_build_no_objects_and_do_not_hang(case, tmp_path):
    path, trap, start = tmp_path / "params.yaml", tmp_path / "trap", time.monotonic()
    path.write_text(YAML[case].replace("{trap}", str(trap)).replace("{{", "{").replace("}}", "}"))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000
    assert not trap.exists() and time.monotonic() - start < 10


def test_selected_entries_that_laugh_are_refused(tmp_path):
    tree = tiny_tree()
    laughing = "x"
    for _ in range(40):
        laughing = [laughing] * 4
    tree["loras"]["r2"]["adapter"]["target_modules"] = laughing
    path, start = tmp_path / "params.yaml", time.monotonic()
    write_params(path, tree)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert len(str(caught.value)) < 2000 and time.monotonic() - start < 10


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_a_program_do_not_run(suffix, tmp_path):
    from pathsynth.classifiers.model import read_weights

    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(ModelError, match="holds no weights"):
        read_weights(path)
    assert not (tmp_path / "trap").exists()


def test_arrays_that_are_programs_do_not_run(tmp_path):
    from pathsynth.core.io import read_npy, read_npz

    trap = np.array([Trap(tmp_path / "trap")], dtype=object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "a.npz", train_images=trap)
    for read in (lambda: read_npy(tmp_path / "a.npy"), lambda: read_npz(tmp_path / "a.npz", ["train_images"])):
        with pytest.raises(DataError):
            read()
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("shape", [(10**12, 224, 224, 3), (2**62, 4), (-1, 3)])
def test_headers_that_claim_too_much_are_refused_before_memory_is_taken(shape, tmp_path):
    import resource

    from pathsynth.core.io import read_npy

    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
        file.write(b"\0" * 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        read_npy(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("length", [2**63, 10**12, 90])
def test_a_safetensors_header_that_claims_too_much_is_refused(length, tmp_path):
    from pathsynth.classifiers.model import read_weights

    path = tmp_path / "a.safetensors"
    claim = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode().ljust(90)
    path.write_bytes(struct.pack("<Q", length) + claim)
    with pytest.raises(ModelError, match="holds no weights"):
        read_weights(path)


def test_decompression_bomb_is_one_line_error(tmp_path):
    from pathsynth.report.pages import read_picture

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 10**6)
    bombs = {
        "size": chunk(b"IHDR", header) + chunk(b"IDAT", packed),
        "text": chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8))
        + chunk(b"IDAT", zlib.compress(b"\0" * 8 * 25)),
    }
    for name, content in bombs.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
        with pytest.raises(DataError, match="is not a PNG file"):
            read_picture(path)


TRAPS = {
    "a class of the folder's own": ("model_index.json", {"unet": ["trap", "Trap"]}),
    "a pipeline of the folder's own": ("model_index.json", {"_class_name": ["trap", "Trap"]}),
    "a function of the system": ("model_index.json", {"scheduler": ["os", "system"]}),
    "code for the text encoder": (
        "text_encoder/config.json",
        {"auto_map": {"AutoModel": "trap.Trap", "AutoConfig": "trap.Trap"}, "model_type": "trap"},
    ),
    "code for the tokenizer": ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["trap.Trap", None]}}),
}


@pytest.mark.parametrize("case", TRAPS)
def test_a_base_that_brings_code_does_not_run_it(case, tiny_base, tmp_path):
    from pathsynth.diffusion.base import load_base

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    file, changed = TRAPS[case]
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    code = f"import os\nos.mkdir({str(tmp_path / 'trap')!r})\nclass Trap: pass\n"
    for place in (folder, *(folder / part for part in ("unet", "text_encoder", "tokenizer", "scheduler"))):
        (place / "trap.py").write_text(code)
    try:
        load_base(folder, "cpu")
    except ModelError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "trap").exists()
