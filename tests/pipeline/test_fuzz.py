"""Files from anyone, damaged or made to harm: a clean result or one line of ours, and nothing that they say runs.

HYPOTHESIS_PROFILE=many tries 20 000 cases of every reader, others each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tree, write_params
from hypothesis import given, settings
from hypothesis import strategies as st

from pathsynth.core.errors import PathsynthError
from pathsynth.data.labels import SLUGS
from pathsynth.synthesis.records import DISCLAIMER

# No case may take longer, seconds, or have the process grow by more, bytes.
LONGEST = 20.0
MOST_MEMORY = 2**30
CLEAR = Path("/proc/self/clear_refs")


STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
BOTH_ENDS = ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile")
CHANGES = ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree", *BOTH_ENDS)


@dataclass
class Watch:
    """Hears by a hook of the interpreter of what Python does and a reader has no reason to do; not of what native code does."""

    allowed: Path | None = None
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple) -> None:
        if self.allowed is None:
            return
        if event in STARTS:
            self.seen.append(f"{event} {args}")
        elif event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            for path in args[:2] if event in BOTH_ENDS else args[:1]:
                self._check(event, path)

    def _check(self, event: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike) and not Path(os.fsdecode(path)).is_relative_to(str(self.allowed)):
            self.seen.append(f"{event} {os.fsdecode(path)}")


WATCH = Watch()
sys.addaudithook(WATCH)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Nothing but files in `folder` is written, no program started, no server asked; time and memory stay within bounds."""
    # the peak is that of the process's life unless it is set back
    CLEAR.write_text("5") if CLEAR.exists() else None
    WATCH.allowed, start, before = folder, time.monotonic(), _memory()
    WATCH.seen.clear()
    try:
        yield
    finally:
        WATCH.allowed = None
    assert not WATCH.seen
    assert time.monotonic() - start < LONGEST
    assert _memory() - before < MOST_MEMORY


def _memory() -> int:
    """Peak of the resident memory, bytes."""
    if CLEAR.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused_or_read(folder: Path, read: Callable[[], object]) -> str | None:
    """Reads; the one line of an error of ours, or None. Any other error fails the test."""
    with watched(folder):
        try:
            read()
        except PathsynthError as error:
            message = str(error)
            assert "\n" not in message and 5 < len(message) < 2000
            return message
    return None


@st.composite
def damages(draw) -> Callable[[bytes], bytes]:
    """A way to damage bytes: flipped, cut, doubled, moved, or overwritten with what readers stumble over."""
    count = draw(st.integers(1, 4))
    kinds = [draw(st.sampled_from(("flip", "cut", "remove", "double", "insert", "overwrite"))) for _ in range(count)]
    places = [(draw(st.floats(0, 1)), draw(st.integers(1, 64)), draw(st.integers(0, 255))) for _ in range(count)]
    texts = [draw(st.sampled_from(STUMBLING)) for _ in range(count)]

    def damaged(content: bytes) -> bytes:
        for kind, (share, length, byte), text in zip(kinds, places, texts, strict=True):
            at = int(share * max(0, len(content) - 1))
            piece = content[at : at + length]
            content = {
                "flip": content[:at] + bytes([byte]) + content[at + 1 :],
                "cut": content[:at],
                "remove": content[:at] + content[at + length :],
                "double": content[:at] + piece * 2 + content[at + length :],
                "insert": content[:at] + text + content[at:],
                "overwrite": content[:at] + text + content[at + len(text) :],
            }[kind]
        return content

    return damaged


STUMBLING = (
    b"", b"\0", b"\xff" * 8, b"\x00" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"',
    b"\n", b"9" * 400, b"1000000000000", b"\x80\x04.", b"<script>", b"=cmd()", b"../../../", b"!!python/object:os.system",
    b"&a [*a]", b": ", b"- ", b"\t", b"%", "\u202e\u0000\U0001f9ec".encode(),
)  # fmt: skip


# any JSON value, to take the place of one in a file
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from((-1, 0, 10**12, "../..", "")),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=4,
)


@st.composite
def changes(draw) -> Callable[[object], object]:
    """A way to change a tree of JSON values: somewhere in it another value, or a key less."""
    steps, value, gone = draw(st.lists(st.integers(0, 30), max_size=7)), draw(VALUES), draw(st.booleans())

    def changed(tree: object) -> object:
        tree = json.loads(json.dumps(tree))
        node, parent, key = tree, None, None
        for step in steps:
            if not isinstance(node, dict | list) or not node:
                break
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            parent, key = node, keys[step % len(keys)]
            node = parent[key]
        if parent is None:
            return value
        if gone:
            del parent[key]
        else:
            parent[key] = value
        return tree

    return changed


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder for the damaged files."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def archive(place: Path) -> bytes:
    """A small archive of all three splits."""
    from pathsynth.core.io import write_npz

    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (9, 4, 4, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(9, dtype=np.uint8)[:, None]
    write_npz(place / "whole.npz", **arrays)
    return (place / "whole.npz").read_bytes()


@given(damage=damages())
def test_archives(damage, archive, place):
    from pathsynth.data.archives import pieces, read_archive, read_generated

    path = place / "damaged.npz"
    path.write_bytes(damage(archive))

    def read():
        for images, _ in read_archive(path, 9).values():
            assert sum(len(piece) for piece in pieces(images)) == len(images)
        read_generated(path, place)

    refused_or_read(place, read)


# numpy's word on headers as Python 2 wrote them
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@given(damage=damages(), ordered=st.booleans())
def test_arrays(damage, ordered, place):
    from pathsynth.core.io import read_npy
    from pathsynth.core.rows import RowFile

    path = place / "damaged.npy"
    np.save(path, np.arange(60, dtype=np.float32).reshape(5, 4, 3) if ordered else np.arange(9))
    path.write_bytes(damage(path.read_bytes()))
    # every byte is read; what the numbers mean is for those who ask for them
    refused_or_read(place, lambda: np.asarray(read_npy(path)).tobytes())
    refused_or_read(place, lambda: RowFile(path)[:])


@pytest.fixture(scope="module")
def classifier(finished: Path, place: Path) -> Path:
    """A copy of a trained classifier's folder."""
    return shutil.copytree(finished / "models" / "judge", place / "judge")


@given(damage=damages())
def test_weights_of_classifiers(damage, finished, classifier, place):
    from pathsynth.classifiers.model import load_classifier, read_weights

    whole = (finished / "models" / "judge" / "model.safetensors").read_bytes()
    # what is written in words is at the start, and the rest are numbers, any of which will do
    head = 8 + int.from_bytes(whole[:8], "little")
    (classifier / "model.safetensors").write_bytes(damage(whole[:head]) + whole[head:])
    shutil.copy(finished / "models" / "judge" / "config.json", classifier)
    refused_or_read(place, lambda: load_classifier(classifier, "cpu", SLUGS))
    refused_or_read(place, lambda: read_weights(classifier / "model.safetensors"))


@given(damage=damages())
def test_pickled_weights(damage, place):
    import torch

    from pathsynth.classifiers.model import read_weights
    from pathsynth.core.checkpoint import Saved

    path = place / "damaged.pth"
    torch.save({"weight": torch.arange(6.0), "bias": torch.zeros(2)}, path)
    path.write_bytes(damage(path.read_bytes()))
    refused_or_read(place, lambda: read_weights(path))
    # behind a checksum that is right, the loader has to do
    (place / "state").write_bytes(hashlib.sha256(path.read_bytes()).digest() + path.read_bytes())
    refused_or_read(place, lambda: Saved(place).get("state"))


@given(change=changes())
def test_cards_of_classifiers(change, finished, classifier, place):
    from pathsynth.classifiers.model import load_classifier

    source = finished / "models" / "judge"
    shutil.copy(source / "model.safetensors", classifier)
    (classifier / "config.json").write_text(json.dumps(change(json.loads((source / "config.json").read_text()))))
    refused_or_read(place, lambda: load_classifier(classifier, "cpu", SLUGS))


@given(change=changes(), damage=st.none() | damages())
def test_cards_of_prepared_data(change, damage, tiny_prepared, place):
    from pathsynth.data.prepared import SPLITS, open_prepared

    folder = place / "prepared"
    if not folder.exists():
        shutil.copytree(tiny_prepared.folder, folder)
    content = json.dumps(change(json.loads((tiny_prepared.folder / "card.json").read_text()))).encode()
    (folder / "card.json").write_bytes(damage(content) if damage else content)

    def read():
        prepared = open_prepared(folder)
        for split in SPLITS:
            prepared.images(split), prepared.labels_of(split)

    refused_or_read(place, read)


@given(damage=damages())
def test_json(damage, place):
    from pathsynth.core.io import read_json, write_json

    path = place / "damaged.json"
    path.write_bytes(damage(json.dumps(tiny_tree()["benchmarks"]["tiny"]["classifiers"], indent=1).encode()))

    def read():
        found = read_json(path)
        write_json(place / "again.json", found)
        assert read_json(place / "again.json") == found

    refused_or_read(place, read)


@given(change=changes())
def test_values_of_parameters(change, place):
    from pathsynth.core.params import load_params

    path = place / "values.yaml"
    # YAML 1.2 takes JSON as it is
    path.write_text(json.dumps(change(tiny_tree())))
    refused_or_read(place, lambda: load_params(path))


@given(damage=damages())
def test_text_of_parameters(damage, place):
    from pathsynth.core.params import load_params

    path = place / "text.yaml"
    if not (place / "whole.yaml").exists():
        write_params(place / "whole.yaml", tiny_tree())
    path.write_bytes(damage((place / "whole.yaml").read_bytes()))
    refused_or_read(place, lambda: load_params(path))


@given(damage=damages())
def test_tables_of_attempts(damage, finished, place):
    from pathsynth.data.generated import read_sets

    folder = place / "generated"
    if not folder.exists():
        shutil.copytree(finished / "data" / "generated", folder)
    (folder / "attempts.csv").write_bytes(damage((finished / "data" / "generated" / "attempts.csv").read_bytes()))
    refused_or_read(place, lambda: read_sets(folder, finished / "data" / "untuned" / "plain", SLUGS, place / "scratch"))


REPORTED = ("metrics/evaluation.json", "metrics/gate.json", "metrics/generation.json", "metrics/usefulness.json",
            "metrics/robustness.json", "metrics/lora.json")  # fmt: skip


# a report with its charts takes a second
@settings(max_examples=settings.default.max_examples // 10)
@given(change=changes(), name=st.sampled_from(REPORTED))
def test_values_in_a_report(change, name, finished, place):
    from pathsynth.report.render import write_report

    content = json.dumps(change(json.loads((finished / name).read_text()))).encode()
    with _run_with(finished, place, name, content) as (run, read):
        refused_or_read(place, lambda: write_report(run / "report.html", read()))


@given(damage=damages(), name=st.sampled_from(("raw", "thresholds", "reliability", "filled", "pairs")))
def test_tables_in_a_report(damage, name, finished, place):
    path = f"plots/evaluation/{name}.csv"
    with _run_with(finished, place, path, damage((finished / path).read_bytes())) as (_, read):
        refused_or_read(place, read)


@given(damage=damages())
def test_pictures(damage, finished, place):
    from pathsynth.report.pages import read_picture

    path = place / "damaged.png"
    path.write_bytes(damage((finished / "plots" / "evaluation" / "plates" / "mucus.png").read_bytes()))
    refused_or_read(place, lambda: read_picture(path))


@pytest.fixture(scope="module")
def record(place: Path) -> dict:
    """The record of a picture, and beside it the picture and a manifest of two."""
    from pathsynth.synthesis.manifest import write_manifest
    from pathsynth.synthesis.records import Record, write_picture

    digests = dict.fromkeys(("unet_sha256", "lora_sha256", "gate_sha256", "pixels_sha256"), "a" * 64)
    made = Record(
        file="mucus_0001.png", tissue="mucus", prompt="=an area with mucus", negative_prompt="", seed=2**62, attempt=1,
        checked="by the gate", predicted="mucus", confidence=0.5, scheduler="DDIMScheduler", num_inference_steps=9,
        guidance_scale=2.5, mixed_precision="no", weight_dtype="fp32", image_size=8, channels=3,
        benchmark="tiny", base="base", lora="r2",
        made_with="torch 2", notice=DISCLAIMER, **digests,
    )  # fmt: skip
    write_picture(place / "whole.png", np.zeros((8, 8, 3), np.uint8), made)
    write_manifest(place / "whole.csv", [made, made.model_copy(update={"file": "mucus_0002.png"})])
    return made.model_dump()


@given(damage=damages())
def test_pictures_with_a_record(damage, record, place):
    from pathsynth.synthesis.records import read_record

    (place / "record.png").write_bytes(damage((place / "whole.png").read_bytes()))
    refused_or_read(place, lambda: read_record(place / "record.png"))


@given(change=changes(), damage=st.none() | damages())
def test_records_in_pictures(change, damage, record, place):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from pathsynth.synthesis.records import RECORD, read_record

    info, content = PngInfo(), json.dumps(change(record)).encode()
    info.add_itxt(RECORD, (damage(content) if damage else content).decode("utf-8", errors="replace"))
    Image.new("RGB", (8, 8)).save(place / "changed.png", pnginfo=info)
    refused_or_read(place, lambda: read_record(place / "changed.png"))


@given(damage=damages())
def test_manifests(damage, record, place):
    from pathsynth.synthesis.manifest import read_manifest

    (place / "damaged.csv").write_bytes(damage((place / "whole.csv").read_bytes()))

    def read():
        # what they name is written into a folder of the user's, and nowhere else
        assert all(Path(one.file).name == one.file for one in read_manifest(place / "damaged.csv"))

    refused_or_read(place, read)


@contextmanager
def _run_with(finished: Path, place: Path, name: str, content: bytes) -> Iterator[tuple[Path, Callable]]:
    """A run in which one file has another content, and what reads it for a report."""
    from pathsynth.core.params import load_params
    from pathsynth.report.render import read_report

    run = place / "run"
    if not run.exists():
        for folder in ("metrics", "plots"):
            shutil.copytree(finished / folder, run / folder)
    params = load_params(finished / "params.yaml")
    (run / name).write_bytes(content)
    try:
        yield run, lambda: read_report(params, run / "metrics", run / "plots", run / "logs")
    finally:
        shutil.copy(finished / name, run / name)
