"""The atlas in a browser: readable at any width, filtered, and its quiz played by keyboard to the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chromium import IN_BROWSER, LEAST_CONTRAST, OVERFLOW, open_page
from fake_generated import write_images
from fake_results import write_run
from test_atlas import fake_class, other_data, read

from pathsynth.atlas.page import render_atlas
from pathsynth.data.labels import PATHMNIST

pytestmark = IN_BROWSER

FOCUSED = "document.activeElement.id"
# Visible pictures that have no size or no pixels.
EMPTY = """[...document.querySelectorAll('img')].filter(image => image.checkVisibility())
  .filter(image => !image.getBoundingClientRect().width || image.naturalWidth < 8).length"""
SHOWN = "[...document.querySelectorAll('.tile')].filter(tile => !tile.hidden).map(tile => Number(tile.dataset.confidence))"
# The class of the question's picture, found by the picture in the gallery.
ASKED = """() => {
  const source = document.getElementById('quiz-image').src;
  const matches = [...document.querySelectorAll('.tile')].filter(tile => tile.querySelector('img').src === source);
  return matches.length === 1 ? Number(matches[0].dataset.class) : null;
}"""


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return read(write_images(write_run(tmp_path_factory.mktemp("run"))))


@pytest.fixture(scope="module")
def path(content, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    path.write_text(render_atlas(content), encoding="utf-8")
    return path


def save(folder: Path, content) -> Path:
    path = folder / "atlas.html"
    path.write_text(render_atlas(content), encoding="utf-8")
    return path


def set_confidence(page, value: int) -> None:
    page.locator("#confidence").fill(str(value))


def start_by_keyboard(page, questions: int, seed: int) -> None:
    page.focus("#quiz-length")
    page.keyboard.press("Control+A")
    page.keyboard.type(str(questions))
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type(str(seed))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")


def ask_for_all(page, questions: int, seed: int) -> list[int]:
    """Plays a quiz with wrong answers and returns the classes that it asked for."""
    start_by_keyboard(page, questions, seed)
    asked = []
    for _ in range(questions):
        asked.append(page.evaluate(ASKED))
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.click("#quiz-restart")
    return asked


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [(1100, "light", "screen"), (390, "light", "screen"), (390, "dark", "screen"), (680, "light", "print")],
)
def test_page_is_quiet_readable_and_fits_the_window(browser, path, width, scheme, media):
    page = open_page(browser, path, width, scheme, media)
    for step in ("gallery", "question", "feedback", "result") if media == "screen" else ("gallery",):
        if step == "question":
            start_by_keyboard(page, 1, 1)
        elif step != "gallery":
            page.keyboard.press("1" if step == "feedback" else "Enter")
        assert page.evaluate(EMPTY) == 0
        assert page.evaluate(OVERFLOW) <= 0
        contrast, where = page.evaluate(LEAST_CONTRAST)
        assert contrast >= 4.5, (step, where)
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    if media == "print":
        tiles = page.locator(".tile")
        assert all(tiles.nth(number).is_visible() for number in (0, 17, 161)) and not page.locator("#quiz").is_visible()
    page.close()


def test_touch_targets_are_large_on_a_phone(browser, path):
    page = open_page(browser, path, 390)
    page.click("#quiz-begin")
    sizes = page.evaluate("""[...document.querySelectorAll('button, input[type=number]')].filter(e => e.checkVisibility())
      .map(e => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height))""")
    assert len(sizes) > 9 and min(sizes) >= 44
    page.close()


def test_filter_hides_images_below_the_confidence(browser, path, content):
    every = [one.confidence for each in content.classes for one in each.accepted]
    page = open_page(browser, path)
    assert page.evaluate(SHOWN) == every
    set_confidence(page, 90)
    kept = [confidence for confidence in every if confidence >= 0.9]
    assert page.evaluate(SHOWN) == kept and 0 < len(kept) < len(every)
    assert page.inner_text("#confidence-value") == "90 %"
    assert page.inner_text("#filter-count").startswith(f"{len(kept)} of {len(every)}")
    assert page.get_attribute("#confidence", "aria-valuetext") == "90 percent"
    set_confidence(page, 100)
    assert page.evaluate(SHOWN) == [] and page.locator("#class-0 .none").is_visible()
    page.click("#quiz-begin")
    assert "shows no image" in page.inner_text("#quiz-problem")
    page.focus("#confidence")
    page.keyboard.press("Home")
    assert page.evaluate(SHOWN) == every
    page.close()


def test_section_unfolds_and_folds_by_keyboard(browser, path):
    page = open_page(browser, path)
    visible = "[...document.querySelectorAll('#class-2 .tile')].filter(tile => tile.checkVisibility()).length"
    assert page.evaluate(visible) == 12 and page.inner_text("#class-2 .more") == "Show all 18"
    page.focus("#class-2 .more")
    page.keyboard.press("Enter")
    assert page.evaluate(visible) == 18 and page.get_attribute("#class-2 .more", "aria-expanded") == "true"
    page.keyboard.press("Space")
    assert page.evaluate(visible) == 12
    page.close()


def test_quiz_is_played_by_keyboard_to_its_end(browser, path):
    page = open_page(browser, path)
    start_by_keyboard(page, 12, 5)
    expected, asked = np.zeros((9, 9), int), []
    for number in range(12):
        assert page.evaluate(FOCUSED) == "quiz-number" and page.inner_text("#quiz-number") == f"Question {number + 1} of 12"
        assert "seed" not in page.inner_text("#quiz-caption")
        right = page.evaluate(ASKED)
        chosen = right if number % 3 else (right + 1) % 9
        expected[right, chosen] += 1
        asked.append(right)
        page.keyboard.press(str(chosen + 1))
        feedback = page.inner_text("#quiz-feedback")
        assert feedback.startswith(
            "Right: " if chosen == right else f"Not {PATHMNIST[chosen]}. It was drawn as {PATHMNIST[right]}."
        )
        assert "synthetic phantom" in page.inner_text("#quiz-caption") and "seed 5" in page.inner_text("#quiz-caption")
        assert page.evaluate(FOCUSED) == "quiz-next"
        page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "quiz-score" and page.inner_text("#quiz-score") == "Your score: 8 of 12 (67 %)"
    rows = page.evaluate(
        "[...document.querySelectorAll('#quiz-confusion tr')].map(row => [...row.cells].map(c => c.textContent))"
    )
    assert [[int(cell or 0) for cell in row[1:]] for row in rows] == expected.tolist()
    assert [row[0] for row in rows] == [f"{number} {label}" for number, label in enumerate(PATHMNIST, 1)]
    missed = page.locator("#quiz-missed li")
    assert missed.count() == 4 and "you answered" in missed.nth(0).inner_text() and "seed" in missed.nth(0).inner_text()
    assert len(set(asked)) > 3
    page.focus("#quiz-restart")
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "quiz-begin" and page.input_value("#quiz-seed") == "6"
    page.close()


def test_quiz_by_touch_and_its_end_before_the_last_question(browser, path):
    page = open_page(browser, path, 390)
    page.click("#quiz-begin")
    page.click("#quiz-end")
    assert page.locator("#quiz-start").is_visible()
    page.click("#quiz-begin")
    page.click(f"#quiz-answers button[data-class='{page.evaluate(ASKED)}']")
    assert all(button.is_disabled() for button in page.locator("#quiz-answers button").all())
    page.click("#quiz-end")
    assert page.inner_text("#quiz-score") == "Your score: 1 of 1 (100 %)" and page.locator("#quiz-missed li").count() == 0
    page.close()


def test_seed_decides_the_questions_and_no_image_comes_twice(browser, path):
    page = open_page(browser, path)
    first, other, again = (ask_for_all(page, 10, seed) for seed in (3, 4, 3))
    assert first == again != other
    start_by_keyboard(page, 100, 3)
    sources = []
    for _ in range(100):
        sources.append(page.get_attribute("#quiz-image", "src"))
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    assert len(set(sources)) == 100
    page.close()


@pytest.mark.parametrize(("field", "value"), [("length", "0"), ("length", "1.5"), ("seed", "-1"), ("seed", "")])
def test_bad_numbers_get_a_sentence(browser, path, field, value):
    page = open_page(browser, path)
    page.fill(f"#quiz-{field}", value)
    page.click("#quiz-begin")
    assert "choose a whole number" in page.inner_text("#quiz-problem") and not page.locator("#quiz-question").is_visible()
    page.close()


def test_digits_elsewhere_answer_nothing(browser, path):
    page = open_page(browser, path)
    page.click("#quiz-begin")
    page.focus("#confidence")
    page.keyboard.press("1")
    assert page.inner_text("#quiz-feedback") == ""
    page.close()


def test_two_or_twenty_classes_and_hostile_names(browser, content, tmp_path):
    for count in (2, 20):
        names = [f"<img src=x onerror=alert({number})>" for number in range(count)]
        classes = [fake_class(name, 2, seed=number) for number, name in enumerate(names)]
        page = open_page(browser, save(tmp_path, other_data(content, *classes)), 390)
        start_by_keyboard(page, 2, 1)
        right = page.evaluate(ASKED)
        page.focus(f"#quiz-answers button[data-class='{right}']")
        page.keyboard.press("Enter")
        assert page.inner_text("#quiz-feedback").startswith(f"Right: {names[right]}.")
        page.keyboard.press("Enter")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        assert page.evaluate(OVERFLOW) <= 0 and page.messages == []
        assert page.locator("#quiz-confusion tr").count() == count
        page.close()


def test_page_without_scripts_shows_all_images(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#class-8 .tile").nth(17).is_visible() and not page.locator("#filter").is_visible()
    assert page.locator("noscript").is_visible()
    context.close()
