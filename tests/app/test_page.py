"""The page in a browser, served by the command: drawing, saving, drawing again, mistakes, and no request to another host."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from chromium import IN_BROWSER, LEAST_CONTRAST, OVERFLOW, new_page
from parity_gate import ParityGate
from PIL import Image

from pathsynth.synthesis import load_artifacts, stream_images
from pathsynth.synthesis.records import BY_GATE, DISCLAIMER, REJECTED, read_record

pytest.importorskip("gradio")
pytestmark = IN_BROWSER

ADDRESS = re.compile(r"Open (http://127\.0\.0\.1:\d+) in a browser")
# Milliseconds: models are loaded and images drawn meanwhile, on a machine that may be busy.
PATIENCE = 120_000


class Served:
    """The command in a process, with the addresses that it has connected to."""

    def __init__(self, artifacts: Path, folder: Path):
        self.folder, self.log = folder, folder / "connections"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        here = Path(__file__).parent
        command = [sys.executable, here / "serve_watched.py", self.log, "--port", "0", "--artifacts", artifacts]
        variables = {"PYTHONPATH": f"{here.parent}{os.pathsep}{here.parent.parent}", "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen([*map(str, command)], env=os.environ | variables, stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stdout if ADDRESS.search(line))
        self.url = ADDRESS.search(line)[1]

    def end(self, number: int = signal.SIGINT) -> int:
        """Ends the command as Ctrl-C does, and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(finished, tmp_path_factory) -> Iterator[Served]:
    running = Served(finished, tmp_path_factory.mktemp("served"))
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def attempts(finished) -> list:
    """All attempts at six images of mucus with seed 3 and guidance scale 4.5."""
    artifacts = load_artifacts(finished)
    artifacts.__dict__["gate"] = ParityGate()
    batches = stream_images("mucus", 6, artifacts=artifacts, seed=3, guidance_scale=4.5)
    return [made for batch in batches for made in batch]


@pytest.fixture
def page(browser, served) -> Iterator:
    opened = open_page(browser, served)
    yield opened
    assert [url for url in opened.requests if not url.startswith((served.url, "data:", "blob:"))] == []
    # what Gradio's own upload says in every browser
    assert set(opened.messages) <= {"Method not implemented."}
    opened.close()


def open_page(browser, served: Served, width: int = 1100, scheme: str = "light"):
    """Opens the page of the command, see `new_page`."""
    page = new_page(browser, width, scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(served.url)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    return page


def field(page, label: str):
    """A field by its label, which the explanation of the field may follow."""
    return page.get_by_label(re.compile(rf"^\s*{label}"))


def fill(page, **fields: object) -> None:
    """Fills fields by their labels, with spaces for underscores."""
    for label, value in fields.items():
        field(page, label.replace("_", " ")).fill(str(value))


def draw(page) -> str:
    """Presses Draw, waits for the end and returns the status line."""
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#status p", has_text=re.compile("Done|[.]$")).wait_for()
    return page.locator("#status p").inner_text()


def test_page_says_what_the_images_are_not_for(page):
    heading = page.locator("#heading").inner_text()
    assert DISCLAIMER in heading and "drawn phantoms" in heading and "LoRA r2" in heading
    assert page.title() == "pathsynth: draw synthetic tissue images"


def test_tissue_is_drawn_and_saved_with_its_provenance_and_drawn_again(page, attempts, tmp_path):
    field(page, "Tissue").click()
    page.get_by_role("option", name="mucus").click()
    assert field(page, "Sentence").input_value() == "mucus"
    fill(page, Images=6, Seed=3, Guidance_scale=4.5)
    page.get_by_label("Show rejected images too").check()
    status = draw(page)
    accepted = [made.record for made in attempts if made.record.checked == BY_GATE]
    assert status.startswith(f"Done: {len(accepted)} of 6 images accepted in {len(attempts)} attempts")
    links = page.locator("#images a")
    assert [link.get_attribute("download") for link in links.all()] == [made.record.file for made in attempts]
    captions = page.locator("#images figcaption").all_inner_texts()
    for made, caption in zip(attempts, captions, strict=True):
        verb = "Rejected" if made.record.checked == REJECTED else "Accepted"
        assert f"{verb}: the gate saw {made.record.predicted} ({made.record.confidence:.0%})" in caption
    for number in (0, len(attempts) - 1):
        with page.expect_download() as download:
            links.nth(number).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert read_record(path) == attempts[number].record and path.name == attempts[number].record.file
        assert (np.asarray(Image.open(path)) == attempts[number].image).all()
    page.get_by_role("tab", name="Draw again").click()
    page.locator("input[type=file]").set_input_files(path)
    page.locator("#status p", has_text="every pixel is the same").wait_for()
    loaded = "[...document.querySelectorAll('#images img')].map(image => image.naturalWidth).join()"
    page.wait_for_function(f"{loaded} === '32,32'")
    with page.expect_download() as download:
        page.locator("#images a").last.click()
    download.value.save_as(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("fields", "message"), [
    ({}, "Choose a tissue, or write a sentence that names one."),
    ({"Sentence": "mucus and debris"}, "names debris and mucus, but an image shows one tissue"),
    ({"Sentence": "<img src=x onerror=alert(1)> ${7*7}"}, "<img src=x onerror=alert(1)> ${7*7}"),
    ({"Sentence": "mucus", "Images": 51}, "The number of images cannot be 51. Enter a whole number from 1 to 50."),
    ({"Sentence": "mucus", "Images": ""}, "The number of images is empty."),
    ({"Sentence": "mucus", "Seed": 2**32}, "The seed cannot be 4294967296."),
    ({"Sentence": "mucus", "Guidance_scale": 0.5}, "The guidance scale cannot be 0.5."),
])  # fmt: skip
def test_bad_input_gets_a_sentence(page, fields, message):
    fill(page, **fields)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("alert").filter(has_text=message).wait_for()
    assert page.locator("#images img").count() == 0 == page.locator("#status img").count()


@pytest.mark.parametrize(("content", "message"), [
    (b"no picture", "mine.png: is not a PNG file, or it is damaged"),
    ("plain", "mine.png: has no record"),
])  # fmt: skip
def test_file_that_is_not_ours_gets_a_sentence(page, content, message, tmp_path):
    if content == "plain":
        Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    else:
        (tmp_path / "mine.png").write_bytes(content)
    page.get_by_role("tab", name="Draw again").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.png")
    page.get_by_role("alert").filter(has_text=message).wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "light"), (1100, "dark")])
def test_page_is_readable_and_fits_the_window(browser, served, width: int, scheme: str):
    page = open_page(browser, served, width, scheme)
    fill(page, Sentence="mucus")
    page.get_by_label("Show rejected images too").check()
    draw(page)
    assert page.evaluate(OVERFLOW) <= 0
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    assert page.messages == []
    page.close()


@pytest.mark.parametrize(("path", "headers", "code"), [
    ("/", {"Host": "evil.example"}, 400),
    ("/config", {"Origin": "http://evil.example"}, 403),
    ("/gradio_api/file=/etc/passwd", {}, 403),
    ("/gradio_api/file=params.yaml", {}, 403),
    ("/images/../connections", {}, 404),
    ("/images/%2e%2e/%2e%2e/connections", {}, 404),
])  # fmt: skip
def test_other_sites_and_other_files_are_refused(served, path, headers, code):
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(served.url + path, headers=headers), timeout=60)
    assert caught.value.code == code


def test_page_is_served_to_this_machine_alone(served):
    port = int(served.url.rpartition(":")[2])
    # another address of this machine, which a server for every network would answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


# the last one, because it ends the server
def test_interrupted_server_leaves_no_file_and_has_reached_no_other_host(browser, served):
    page = open_page(browser, served)
    fill(page, Sentence="mucus", Images=50)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#status p", has_text="Drawing").wait_for()
    assert list(served.temporary.glob("pathsynth-*"))
    assert served.end() == 0
    assert not list(served.temporary.glob("pathsynth-*"))
    # a Unix socket is a path
    reached = (
        {line for line in served.log.read_text().splitlines() if not line.startswith("/")} if served.log.exists() else set()
    )
    assert reached <= {"127.0.0.1", "localhost"}
    page.close()
