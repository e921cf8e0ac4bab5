"""Opens the pages for readers in Chromium, and reads what they save."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from reader_images import CLASSES, SIDE, make_pool

from pathsynth.__main__ import main
from pathsynth.readers.pool import Classes
from pathsynth.readers.preference import PreferenceDesign, build_preference, render_preference
from pathsynth.readers.study import Blinded, StudyDesign, build_study, render_study

TRIALS = 6
LOCAL = ("data:", "blob:", "file:")
MANY = 23


def make_study(classes: Classes = CLASSES, tissues: int = 3) -> Blinded:
    pools = (make_pool(name, seed, tissues=len(classes.slugs)) for seed, name in enumerate(("real", "synthetic")))
    return build_study(*pools, classes, StudyDesign(2, 0.5, 0, SIDE, 1, range(tissues)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with study.html, many.html of 23 classes, preference.html, and their keys."""
    folder = tmp_path_factory.mktemp("pages")
    many = Classes(tuple(f"class_{n}" for n in range(1, MANY + 1)), tuple(f"class {n}" for n in range(1, MANY + 1)))
    sets = {name: make_pool(name, seed) for seed, name in enumerate(("r16", "r32"))}
    preference = build_preference(sets, CLASSES, PreferenceDesign(1, SIDE, 1, range(TRIALS)))
    stand_in = replace(CLASSES, stand_in=True)
    pages = {
        "study": (make_study(), lambda made: render_study(made, stand_in, ["Our group's own words."])),
        "many": (make_study(many, MANY), lambda made: render_study(made, many)),
        "preference": (preference, lambda made: render_preference(made, CLASSES)),
    }
    for name, (made, draw) in pages.items():
        (folder / f"{name}.html").write_text(draw(made), encoding="utf-8")
        (folder / f"{name}_key.json").write_text(json.dumps(made.key))
    return folder


@pytest.fixture
def visit(browser, folder):
    """Opens a page in a browser without memory; messages and requests are collected and must be none in the end."""
    contexts, messages = [], []

    def open_page(name: str, script: str | None = None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(120_000)
        if script:
            context.add_init_script(script)
        context.on("request", lambda request: request.url.startswith(LOCAL) or messages.append(request.url))
        context.on("weberror", lambda error: messages.append(str(error.error)))
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.goto((folder / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


def begin_by_keyboard(page, name: str = "") -> None:
    """Reads the first screen, gives a name, agrees and starts, without a mouse."""
    page.keyboard.press("Tab")
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trial:not([hidden])")


def begin_by_touch(page) -> None:
    """Agrees and starts by touch."""
    page.tap("text=I have read this")
    page.tap("text=Start")


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def place(page) -> str:
    return page.inner_text("#count")


def save(page, trigger) -> dict:
    with page.expect_download() as download:
        trigger()
    assert download.value.suggested_filename.startswith("answers_") and download.value.suggested_filename.endswith(".json")
    return json.loads(Path(download.value.path()).read_text())


def check_answers(answers: dict, folder: Path, name: str) -> None:
    """Checks that `readers` evaluates the answers to a page, and what it takes on trust."""
    assert uuid.UUID(answers["reader"]).version == 4
    assert datetime.fromisoformat(answers["started"]) <= datetime.fromisoformat(answers["saved"])
    assert all(answer["seconds"] < 600 for answer in answers["answers"])
    path, key = folder / f"{name}_answers.json", folder / f"{name}_key.json"
    path.write_text(json.dumps(answers))
    trials = json.loads(key.read_text())["trials"]
    assert answers["complete"] == (len(answers["answers"]) == len(trials))
    result = CliRunner().invoke(main, ["readers", str(path), "--key", str(key)])
    assert result.exit_code == 0, result.output
    assert f"answers: {len(answers['answers'])}" in result.output
