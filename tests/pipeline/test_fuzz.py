"""Damaged or malicious files: every reader returns, or raises one of our errors in one line; nothing in a file is executed.

HYPOTHESIS_PROFILE=many tries 20 000 other cases for every reader.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathsynth.core.errors import PathsynthError
from pathsynth.core.params import load_params, read_yaml
from pathsynth.data.labels import SLUGS

PICTURES = ("tif", "png", "jpg", "bmp", "webp")
MAX_SECONDS = 20.0
MAX_MEMORY_MB = 1024
# What is left of a file that is longer than this is numbers, any of which will do.
HEAD = 8192
CLEAR_PEAK = Path("/proc/self/clear_refs")
EXECUTIONS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
MOVES = ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile")
CHANGES = ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree", *MOVES)


class Watch:
    """An audit hook that records executions, connections, and changes of files outside a folder, as far as Python sees them."""

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.violations: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if self.allowed is None:
            return
        if event in EXECUTIONS:
            self.violations.append(f"{event} {args}")
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        for path in args[: 2 if event in MOVES else 1] if writes or event in CHANGES else ():
            if isinstance(path, str | bytes | os.PathLike) and not Path(os.fsdecode(path)).is_relative_to(self.allowed):
                self.violations.append(f"{event} {os.fsdecode(path)}")


WATCH = Watch()
sys.addaudithook(WATCH)


def read_or_refuse(folder: Path, read: Callable[[], object]) -> None:
    """Reads under watch; an error must be one line of ours."""
    before, start = _reset_peak_memory(), time.monotonic()
    WATCH.allowed, WATCH.violations = folder, []
    try:
        read()
    except PathsynthError as error:
        assert "\n" not in str(error) and 5 < len(str(error)) < 2000
    finally:
        WATCH.allowed = None
    assert not WATCH.violations
    assert time.monotonic() - start < MAX_SECONDS
    assert _peak_memory() - before < MAX_MEMORY_MB


def _reset_peak_memory() -> int:
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")
    return _peak_memory()


def _peak_memory() -> int:
    """Peak resident memory in MB since the last reset; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


# Text that parsers stumble over.
STUMBLING = (
    b"", b"\0", b"\xff" * 8, b"\x00" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"',
    b"\n", b"9" * 400, b"1000000000000", b"\x80\x04.", b"<script>", b"=cmd()", b"../../../", b"!!python/object:os.system",
    b"&a [*a]", b": ", b"- ", b"\t", b"%", "\u202e\u0000\U0001f9ec".encode(),
)  # fmt: skip


@st.composite
def damages(draw) -> Callable[[bytes], bytes]:
    """Up to four changes of bytes: cut, removed, doubled, inserted or overwritten."""
    kinds = st.sampled_from(("cut", "remove", "double", "insert", "overwrite"))
    text = st.sampled_from(STUMBLING) | st.binary(min_size=1, max_size=1)
    edits = draw(st.lists(st.tuples(kinds, st.floats(0, 1), st.integers(1, 64), text), min_size=1, max_size=4))

    def damage(content: bytes) -> bytes:
        for kind, share, length, text in edits:
            at = int(share * max(0, len(content) - 1))
            before, piece, after = content[:at], content[at : at + length], content[at + length :]
            content = {
                "cut": before,
                "remove": before + after,
                "double": before + piece * 2 + after,
                "insert": before + text + piece + after,
                "overwrite": before + text + content[at + len(text) :],
            }[kind]
        return content

    return damage


JSON_VALUES = st.recursive(
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
    """Replaces or removes one value somewhere in a JSON tree."""
    steps, value, remove = draw(st.lists(st.integers(0, 30), max_size=7)), draw(JSON_VALUES), draw(st.booleans())

    def change(tree: object) -> object:
        node, parent, key = tree, None, None
        for step in steps:
            if not isinstance(node, dict | list) or not node:
                break
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            parent, key = node, keys[step % len(keys)]
            node = parent[key]
        if parent is None:
            return value
        if remove:
            del parent[key]
        else:
            parent[key] = value
        return tree

    return change


def _read_archive(run: Path) -> None:
    from pathsynth.data.archives import iter_chunks, read_archive, unpack_split

    for images, _ in read_archive(run / "archive.npz", 9).values():
        assert sum(len(chunk) for chunk in iter_chunks(images)) == len(images)
    unpack_split(run / "archive.npz", run / "scratch")


def _read_array(run: Path) -> None:
    from pathsynth.core.io import read_npy

    np.asarray(read_npy(run / "array.npy")).tobytes()


def _read_classifier(run: Path) -> None:
    from pathsynth.classifiers.model import load_classifier

    load_classifier(run / "models" / "judge", "cpu", SLUGS)


def _read_published_weights(run: Path) -> None:
    from pathsynth.classifiers.model import read_weights

    read_weights(run / "weights.pth")


def _read_prepared(run: Path) -> None:
    from pathsynth.data.prepared import SPLITS, open_prepared

    prepared = open_prepared(run / "data" / "prepared")
    for split in SPLITS:
        prepared.images(split), prepared.labels_of(split)


def _read_attempts(run: Path) -> None:
    from pathsynth.data.generated import read_attempts

    read_attempts(run / "data" / "generated" / "attempts.csv")


def _check_params(run: Path) -> None:
    from pathsynth.cli.check import find_mistakes

    assert all("\n" not in str(mistake) for mistake in find_mistakes(run / "params.yaml"))


def _write_report(run: Path) -> None:
    from pathsynth.report.inputs import read_report
    from pathsynth.report.render import write_report

    params = load_params(run / "params.yaml")
    write_report(run / "report.html", read_report(params, run / "metrics", run / "plots", run / "logs"))


def _read_png(run: Path) -> None:
    from pathsynth.report.pages import read_picture
    from pathsynth.synthesis.records import read_record

    read_picture(run / "image.png")
    read_record(run / "image.png")


def _read_manifest(run: Path) -> None:
    from pathsynth.synthesis.manifest import read_manifest

    # what a manifest names is written into the user's folder, and nowhere else
    assert all(Path(record.file).name == record.file for record in read_manifest(run / "manifest.csv"))


def _read_image_file(run: Path) -> None:
    from pathsynth.data.archives import iter_chunks
    from pathsynth.sources.image_files import ImageFiles

    for path in run.glob("picture.*"):
        assert sum(len(chunk) for chunk in iter_chunks(ImageFiles(run, [path.name], 8, 3))) == 1


READERS: dict[str, Callable[[Path], None]] = {
    "archive.npz": _read_archive,
    "array.npy": _read_array,
    "models/judge/model.safetensors": _read_classifier,
    "weights.pth": _read_published_weights,
    "data/prepared/card.json": _read_prepared,
    "data/generated/attempts.csv": _read_attempts,
    "params.yaml": _check_params,
    "image.png": _read_png,
    "manifest.csv": _read_manifest,
    **{f"picture.{suffix}": _read_image_file for suffix in PICTURES},
}
JSON_READERS: dict[str, Callable[[Path], None]] = {
    "models/judge/config.json": _read_classifier,
    "data/prepared/card.json": _read_prepared,
    "params.yaml": _check_params,
    "configs/benchmarks/tiny.yaml": _check_params,
}
REPORTED_METRICS = [
    f"metrics/{name}.json" for name in ("evaluation", "gate", "generation", "usefulness", "memorisation", "robustness", "lora")
]
REPORTED_TABLES = [f"plots/evaluation/{name}.csv" for name in ("raw", "thresholds", "reliability", "filled", "pairs")]


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, with a small file of every other kind that is read."""
    import torch
    from PIL import ExifTags, Image

    from pathsynth.core.io import write_npz

    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(finished, folder)
    images, labels = np.zeros((9, 4, 4, 3), np.uint8), np.arange(9, dtype=np.uint8)[:, None]
    arrays = {split: {f"{split}_images": images, f"{split}_labels": labels} for split in ("train", "val", "test")}
    write_npz(folder / "archive.npz", **arrays["train"], **arrays["val"], **arrays["test"])
    picture, exif = Image.fromarray(np.arange(216, dtype=np.uint8).reshape(8, 9, 3)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for suffix in PICTURES:
        picture.save(folder / f"picture.{suffix}", exif=exif, compression="tiff_lzw")
    np.save(folder / "array.npy", np.arange(60, dtype=np.float32).reshape(5, 4, 3))
    torch.save({"weight": torch.arange(6.0), "bias": torch.zeros(2)}, folder / "weights.pth")
    _write_records(folder)
    return folder


def _write_records(folder: Path) -> None:
    """A PNG with its record, and a manifest of two."""
    from pathsynth.synthesis.manifest import write_manifest
    from pathsynth.synthesis.records import DISCLAIMER, Record, write_png

    digests = dict.fromkeys(("unet_sha256", "lora_sha256", "gate_sha256", "pixels_sha256"), "a" * 64)
    record = Record(
        file="mucus_0001.png", tissue="mucus", prompt="=an area with mucus", negative_prompt="", seed=2**62, attempt=1,
        checked="by the gate", predicted="mucus", confidence=0.5, scheduler="DDIMScheduler", num_inference_steps=9,
        guidance_scale=2.5, mixed_precision="no", weight_dtype="fp32", image_size=8, channels=3,
        benchmark="tiny", base="base", lora="r2", made_with="torch 2", notice=DISCLAIMER, **digests,
    )  # fmt: skip
    write_png(folder / "image.png", np.zeros((8, 8, 3), np.uint8), record)
    write_manifest(folder / "manifest.csv", [record, record.model_copy(update={"file": "mucus_0002.png"})])


@contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


def _load(path: Path) -> object:
    return read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text())


# numpy's warning about headers written by Python 2
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", READERS)
@given(damage=damages())
def test_damaged_bytes_are_read_or_refused(name, damage, run):
    content = (run / name).read_bytes()
    head = HEAD if name.endswith(".safetensors") else len(content)
    with _replaced(run / name, damage(content[:head]) + content[head:]):
        read_or_refuse(run, lambda: READERS[name](run))


@pytest.mark.parametrize("name", JSON_READERS)
@given(change=changes())
def test_changed_values_are_read_or_refused(name, change, run):
    # YAML 1.2 includes JSON
    with _replaced(run / name, json.dumps(change(_load(run / name))).encode()):
        read_or_refuse(run, lambda: JSON_READERS[name](run))


@given(change=changes())
def test_changed_records_in_png_files_are_read_or_refused(change, run):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from pathsynth.synthesis.records import RECORD_KEY, read_record

    info = PngInfo()
    record = json.loads(Image.open(run / "image.png").text[RECORD_KEY])
    info.add_itxt(RECORD_KEY, json.dumps(change(record)))
    Image.new("RGB", (8, 8)).save(run / "changed.png", pnginfo=info)
    read_or_refuse(run, lambda: read_record(run / "changed.png"))


# rendering a report takes a second
@pytest.mark.slow
@settings(max_examples=settings.default.max_examples // 2)
@given(name=st.sampled_from(REPORTED_METRICS + REPORTED_TABLES), change=changes(), damage=damages())
def test_report_of_changed_metrics_and_damaged_tables_is_written_or_refused(name, change, damage, run):
    path = run / name
    content = damage(path.read_bytes()) if path.suffix == ".csv" else json.dumps(change(_load(path))).encode()
    with _replaced(path, content):
        read_or_refuse(run, lambda: _write_report(run))


def test_watch_notices_what_readers_must_not_do(tmp_path):
    with pytest.raises(AssertionError):
        read_or_refuse(tmp_path / "inside", lambda: (tmp_path / "outside").write_text("x"))
    with pytest.raises(AssertionError):
        read_or_refuse(tmp_path, lambda: os.system("true"))
