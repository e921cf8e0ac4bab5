"""Images slot by slot: which are found in DVC's cache, what stands below them, and what the page says where there are none."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare.test_compare import reader, revision
from conftest import write_yaml
from html_tags import HOSTILE, Tags
from PIL import Image

from pathsynth.compare.cache import find_cached
from pathsynth.compare.experiments import read_run, to_frame
from pathsynth.compare.page import render_comparison
from pathsynth.compare.project import open_project
from pathsynth.compare.slots import ATTEMPTS, IMAGES, MAX_SIDE, VERDICTS, NoImages, compare_slots, read_slots

TISSUES = ("adipose", "mucus")
SLOTS = 4


@dataclass
class Generated:
    """What a run has generated: files of DVC's cache by path, and the table of verdicts in git."""

    files: dict[str, Path]
    verdicts: bytes


def generate(folder: Path, first_seed: int = 100, size: int = 8, judge: str = "mucus", gate: str | None = None) -> Generated:
    """Writes images whose grey level is 10 times the place in the archive; the gate is right unless it is named."""
    folder.mkdir(parents=True)
    places = [(tissue, slot) for tissue in TISSUES for slot in range(SLOTS)]
    levels = (10 * np.arange(len(places), dtype=np.uint8))[:, None, None, None]
    images = np.broadcast_to(levels, (len(places), size, size, 3))
    np.savez(folder / "raw.npz", train_images=images, train_labels=np.repeat([0, 1], SLOTS)[:, None].astype(np.uint8))
    rows = [
        {"tissue": tissue, "slot": slot, "attempt": attempt, "seed": first_seed + 10 * place + attempt,
         "predicted": tissue, "confidence": 0.9 - attempt / 10, "accepted": attempt}
        for place, (tissue, slot) in enumerate(places) for attempt in (0, 1)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "attempts.csv", index=False)
    table = pd.DataFrame([{"tissue": t, "slot": s, "gate": gate or t, "judge": judge, "colour": t} for t, s in places])
    files = {IMAGES: folder / "raw.npz", ATTEMPTS: folder / "attempts.csv"}
    return Generated(files, table.to_csv(index=False).encode())


def find_in(generated: dict[str, Generated]):
    return lambda rev, path: generated[rev].files.get(path) if rev in generated else None


def runs_of(generated: dict[str, Generated], **revisions: dict[str, bytes]):
    """Runs with their verdicts, and how git reads them."""
    files = {rev: {**of, **({VERDICTS: generated[rev].verdicts} if rev in generated else {})} for rev, of in revisions.items()}
    scores = {by: dict.fromkeys(TISSUES, 0.75) for by in ("judge", "gate")}
    runs = [read_run(rev, reader(files)) | {"tissues": scores} for rev in files]
    return to_frame(runs), reader(files)


@pytest.fixture
def two(tmp_path) -> dict[str, Generated]:
    """A run that is always right, and one whose judge sees mucus everywhere."""
    return {"a": generate(tmp_path / "a"), "b": generate(tmp_path / "b", judge="adipose", gate=HOSTILE)}


class TestImages:
    def test_first_attempts_of_the_first_slots_are_read_with_their_verdicts(self, two):
        read = lambda rev, path: two[rev].verdicts if path == VERDICTS else None  # noqa: E731
        images = read_slots("a", read, find_in(two), 2)
        assert list(images) == [("adipose", 0), ("adipose", 1), ("mucus", 0), ("mucus", 1)]
        third = images["mucus", 1]
        assert (third.gate, third.judge, third.confidence, third.seed) == ("mucus", "mucus", 0.9, 150)
        with Image.open(io.BytesIO(_decode(third.picture.source))) as shown:
            assert shown.size == (8, 8) and shown.getpixel((0, 0)) == (50, 50, 50)

    def test_large_images_are_reduced(self, tmp_path):
        large = {"a": generate(tmp_path / "a", size=2 * MAX_SIDE)}
        (picture, *_) = (one.picture for one in read_slots("a", lambda *_: large["a"].verdicts, find_in(large), 1).values())
        assert (picture.width, picture.height) == (MAX_SIDE, MAX_SIDE)

    def test_noise_is_the_same_if_all_runs_share_the_seed(self, tmp_path):
        generated = {"a": generate(tmp_path / "a"), "b": generate(tmp_path / "b", first_seed=110)}
        runs = [{"rev": rev, "name": rev, "prompts": "plain", "benchmark": "phantom"} for rev in generated]
        compared = compare_slots(runs, lambda rev, path: _verdicts_or(generated, rev, path), find_in(generated), 2)
        assert [(slot, same) for slot, same, _ in compared.rows("mucus")] == [(0, False), (1, False)]
        compared = compare_slots(runs[:1], lambda rev, path: _verdicts_or(generated, rev, path), find_in(generated), 2)
        assert [(slot, same) for slot, same, _ in compared.rows("mucus")] == [(0, True), (1, True)]
        assert compared.rows("debris") == []

    @pytest.mark.parametrize("path", [IMAGES, ATTEMPTS])
    def test_run_without_cached_images_is_named(self, path, two):
        del two["a"].files[path]
        with pytest.raises(NoImages, match="not in the DVC cache"):
            read_slots("a", lambda *_: two["a"].verdicts, find_in(two), 2)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda run: run.files[IMAGES].write_bytes(b"PK"),
            lambda run: run.files[ATTEMPTS].write_text("tissue,slot\n"),
            lambda run: run.files[ATTEMPTS].write_text(run.files[ATTEMPTS].read_text().replace(",140,", ",x,")),
            lambda run: run.files[ATTEMPTS].write_text(run.files[ATTEMPTS].read_text() * 2),
            lambda run: setattr(run, "verdicts", run.verdicts + b"mucus,9,mucus,mucus,mucus\n"),
            lambda run: setattr(run, "verdicts", b"\xff\xfe"),
            lambda run: setattr(run, "verdicts", b"a,b\n1,2\n"),
        ],
        ids=["archive", "columns", "seed", "repeated", "another count", "binary", "other table"],
    )
    def test_damaged_images_are_left_out(self, damage, two):
        damage(two["a"])
        with pytest.raises(NoImages, match="damaged, or not those of its tables"):
            read_slots("a", lambda *_: two["a"].verdicts, find_in(two), 2)


def _decode(source: str) -> bytes:
    import base64

    return base64.b64decode(source.partition(",")[2])


def _verdicts_or(generated: dict[str, Generated], rev: str, path: str) -> bytes | None:
    return generated[rev].verdicts if path == VERDICTS else None


class TestPage:
    def test_same_slots_stand_side_by_side_with_verdicts(self, two):
        runs, read = runs_of(two, a=revision(0.7), b=revision(0.6, "r8"), c=revision(0.5, "r9"))
        page = render_comparison(runs, read, find_in(two), 2)
        found = Tags(page).found
        shown = [attributes["alt"] for tag, attributes in found if tag == "img"]
        assert shown == [
            f"{tissue}, slot {slot}, {run}" for tissue in TISSUES for slot in (0, 1) for run in ("r4", "r8")
        ]  # fmt: skip
        for text in (
            "<small>gate: ✓ 0.90</small>", '<small class="wrong">judge: adipose</small>', "<small>same noise</small>",
            "F1 0.75", "No images of r9 (not in the DVC cache of this machine).", "prompted with the same sentence",
        ):  # fmt: skip
            assert text in page, text
        assert "script" not in [tag for tag, _ in found] and "other noise" not in page
        assert page == render_comparison(runs, read, find_in(two), 2)

    def test_more_slots_are_shown_on_request_and_none_with_0(self, two):
        runs, read = runs_of(two, a=revision(0.7))
        for slots in (0, 1, 3, 100):
            page = render_comparison(runs, read, find_in(two), slots)
            assert page.count("<img") == len(TISSUES) * min(slots, SLOTS)
        assert "Slot by slot" not in render_comparison(runs, read, find_in(two), 0)

    def test_page_says_that_there_are_no_images(self):
        runs, read = runs_of({}, a=revision(0.7))
        page = render_comparison(runs, read, lambda rev, path: None, 2)
        assert "Slot by slot" in page and "No images of r4 (not in the DVC cache" in page and "<img" not in page

    def test_page_says_that_sentences_differ(self, two):
        files = revision(0.6, "r8") | {"configs/prompts/phantom.yaml": b'{"plain": "another {label}", "described": {}}'}
        runs, read = runs_of(two, a=revision(0.7), b=files)
        page = render_comparison(runs, read, find_in(two), 1)
        assert "the configurations have different sentences" in page and "the same sentence" not in page


class TestCache:
    def test_only_checksums_become_paths(self, tmp_path):
        (tmp_path / "secret").write_text("[]")
        place = lambda checksum: str(tmp_path / checksum)  # noqa: E731
        for checksum in ("../secret", "secret", None, 7, ["a"]):
            lock = {"stage": {"outs": [{"path": "data/generated", "md5": checksum}]}}
            assert find_cached(lock, IMAGES, place) is None

    @pytest.mark.parametrize("listing", ["{", "[1]", '[{"relpath": "raw.npz"}]', "[" * 10**5, "null", "[]"])
    def test_damaged_listing_finds_nothing(self, listing, tmp_path):
        checksum = "0" * 32 + ".dir"
        (tmp_path / checksum).write_text(listing)
        lock = {"stage": {"outs": [{"path": "data/generated", "md5": checksum}]}}
        assert find_cached(lock, IMAGES, lambda checksum: str(tmp_path / checksum)) is None

    def test_images_of_a_commit_are_found_in_the_cache_of_dvc(self, tmp_path, monkeypatch):
        """Also after the working tree has others, as those of another experiment."""
        monkeypatch.chdir(tmp_path)
        command = "mkdir -p data/generated && cp source.txt data/generated/raw.npz"
        stage = {"cmd": command, "deps": ["source.txt"], "outs": ["data/generated"]}
        write_yaml(tmp_path / "dvc.yaml", {"stages": {"generate": stage}})

        def run(*words: str) -> None:
            subprocess.run(words, check=True, capture_output=True)

        run("git", "init", "-q")
        run(sys.executable, "-m", "dvc", "init", "-q")
        for text in ("first", "second"):
            (tmp_path / "source.txt").write_text(text)
            run(sys.executable, "-m", "dvc", "repro", "-q")
            run("git", "add", "-A")
            run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", text)
        with open_project() as project:
            found = [project.find_cached(rev, IMAGES) for rev in ("HEAD~1", "HEAD")]
            assert [path and path.read_text() for path in found] == ["first", "second"]
            assert project.find_cached("HEAD", "data/other/raw.npz") is None
            found[1].unlink()
            assert project.find_cached("HEAD", IMAGES) is None
