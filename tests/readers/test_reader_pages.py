"""The pages for readers in a browser: a whole study by keyboard, by touch, over a reload, and what is saved in the end."""

# ruff: noqa: F811 (fixtures are imported, and named again as arguments)

from __future__ import annotations

import pytest
from chromium import EMPTY, IN_BROWSER, LEAST_CONTRAST, OVERFLOW
from reader_browser import (  # noqa: F401
    TRIALS,
    begin_by_keyboard,
    begin_by_touch,
    check_answers,
    folder,
    place,
    press,
    save,
    visit,
)
from reader_images import CLASSES

pytestmark = IN_BROWSER

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NO_STORAGE = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})"
SET_HIDDEN = """hidden => {
  Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""
UNNAMED = """[...document.querySelectorAll('button, input, progress, img')].filter(element => {
  const label = element.labels?.[0]?.textContent ?? element.textContent;
  return !(element.ariaLabel || element.alt || label.trim());
}).length"""


class TestKeyboard:
    def test_whole_study_with_a_reload_in_the_middle(self, visit, folder):
        page = visit("study")
        begin_by_keyboard(page, "reader 7")
        for number in range(1, 4):
            assert place(page) == f"{number} of {TRIALS}"
            press(page, str(number), "r" if number == 1 else "s", str(number + 2), "Enter")
        press(page, "5")
        page.reload()
        assert page.inner_text("#paused-count") == f"3 of {TRIALS} answered."
        press(page, "Tab", "Enter")
        assert place(page) == f"4 of {TRIALS}" and page.is_checked("input[name=tissue][value=mucus]")
        press(page, "r", "1", "Enter")
        for _ in range(2):
            press(page, "9", "s", "5", "Enter")
        page.wait_for_selector("#end:not([hidden])")
        answers = save(page, lambda: press(page, "Tab", "Enter"))
        check_answers(answers, folder, "study")
        given = [(answer["tissue"], answer["origin"], answer["confidence"]) for answer in answers["answers"]]
        first = [("adipose", "real", 3), ("background", "synthetic", 4), ("debris", "synthetic", 5), ("mucus", "real", 1)]
        assert given == [*first, (CLASSES.slugs[8], "synthetic", 5), (CLASSES.slugs[8], "synthetic", 5)]
        assert answers["complete"] and answers["name"] == "reader 7"

    def test_backspace_takes_back_parts_and_goes_back_to_the_trial_before(self, visit, folder):
        page = visit("study")
        begin_by_keyboard(page)
        press(page, "1", "r", "2", "Enter", "2", "s", "Backspace", "r")
        assert page.is_checked("input[name=origin][value=real]") and page.is_checked("input[value=background]")
        press(page, "Backspace", "Backspace", "Backspace")
        assert place(page) == f"1 of {TRIALS}" and page.is_checked("input[name=confidence][value='2']")
        press(page, "Backspace", "5", "Enter")
        answers = save(page, lambda: page.click("#trial .save"))
        check_answers(answers, folder, "study")
        assert [answer["confidence"] for answer in answers["answers"]] == [5]
        assert not answers["complete"] and answers["name"] == ""

    def test_arrows_move_and_missing_answers_are_named(self, visit):
        page = visit("study")
        begin_by_keyboard(page)
        press(page, "Enter")
        assert page.inner_text("#problem") == "Choose the tissue first."
        press(page, "ArrowUp", "ArrowDown", "ArrowDown")
        assert page.is_checked("input[value=background]")
        press(page, "Enter")
        assert page.inner_text("#problem") == "Choose real or synthetic first." and place(page) == f"1 of {TRIALS}"
        press(page, "r", "ArrowUp", "Enter")
        assert place(page) == f"2 of {TRIALS}"

    def test_more_than_nine_classes_take_two_digits(self, visit):
        page = visit("many")
        begin_by_keyboard(page)
        for keys, number in (("2", 2), ("3", 23), ("1", 1), ("7", 17), ("4", 4), ("0", 4)):
            press(page, keys)
            assert page.is_checked(f"input[value=class_{number}]"), keys

    def test_keys_can_be_turned_off(self, visit):
        page = visit("study")
        begin_by_keyboard(page)
        page.click("summary")
        page.uncheck("#shortcuts")
        press(page, "3", "r")
        assert not page.query_selector("#answer input:checked")
        page.focus("input[value=adipose]")
        press(page, "Space", "ArrowDown")
        assert page.is_checked("input[value=background]")

    def test_preference_with_back_tie_and_save(self, visit, folder):
        page = visit("preference")
        begin_by_keyboard(page)
        assert page.inner_text("#question").startswith("Which of the two shows ")
        press(page, "ArrowLeft", "ArrowRight", "Backspace")
        assert place(page) == f"2 of {TRIALS}" and page.get_attribute("[data-choice=right]", "aria-pressed") == "true"
        press(page, "ArrowDown", "0", "ArrowLeft", "ArrowRight", "ArrowLeft")
        page.wait_for_selector("#end:not([hidden])")
        answers = save(page, lambda: press(page, "Tab", "Enter"))
        check_answers(answers, folder, "preference")
        assert [answer["choice"] for answer in answers["answers"]] == ["left", "tie", "tie", "left", "right", "left"]


class TestTouch:
    def test_study_on_a_phone(self, visit, folder):
        page = visit("study", **PHONE)
        begin_by_touch(page)
        for _ in range(TRIALS):
            page.tap("#tissue-group label:nth-child(7)")
            page.tap("#origin-group label:nth-child(2)")
            page.tap("#confidence-group label:nth-child(4)")
            box = page.locator("#image").bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] < 844, "the image stays in view"
            page.tap("text=Next")
        answers = save(page, lambda: page.tap("#end .save"))
        check_answers(answers, folder, "study")
        assert answers["complete"] and {answer["confidence"] for answer in answers["answers"]} == {4}

    def test_preference_on_a_phone(self, visit, folder):
        page = visit("preference", **PHONE)
        begin_by_touch(page)
        for _ in range(TRIALS):
            page.tap("[data-choice=right]")
        check_answers(save(page, lambda: page.tap("#end .save")), folder, "preference")


class TestReaders:
    def test_each_has_another_order_and_number(self, visit):
        saved = []
        for _ in range(3):
            page = visit("preference")
            begin_by_keyboard(page)
            press(page, *["ArrowLeft"] * TRIALS)
            saved.append(save(page, lambda page=page: page.click("#end .save")))
        assert len({answers["reader"] for answers in saved}) == 3
        assert len({tuple(answer["id"] for answer in answers["answers"]) for answers in saved}) > 1

    def test_another_reader_at_the_same_computer_starts_empty(self, visit):
        page = visit("study")
        page.on("dialog", lambda dialog: dialog.accept())
        begin_by_keyboard(page, "first")
        press(page, "1", "r", "2", "Enter", "Escape")
        page.click("#paused .restart")
        assert page.is_visible("#intro") and page.input_value("#name") == "" and not page.is_checked("#agree")
        page.reload()
        assert page.is_visible("#intro")

    def test_start_needs_agreement(self, visit):
        page = visit("study")
        page.click("#start button")
        assert page.is_visible("#intro") and "Our group's own words." in page.inner_text("#intro")


class TestTime:
    def test_stands_still_while_the_page_is_hidden_or_paused_and_over_a_reload(self, visit):
        page = visit("study")
        page.clock.install()
        page.reload()
        begin_by_keyboard(page)
        page.wait_for_function("since !== null")
        page.clock.run_for(3000)
        page.evaluate(SET_HIDDEN, True)
        page.clock.run_for(60_000)
        page.evaluate(SET_HIDDEN, False)
        page.clock.run_for(2000)
        press(page, "Escape")
        page.clock.run_for(60_000)
        page.reload()
        page.clock.run_for(60_000)
        press(page, "Tab", "Enter")
        page.wait_for_function("since !== null")
        page.clock.run_for(1000)
        press(page, "1", "r", "2", "Enter")
        (answer,) = save(page, lambda: page.click("#trial .save"))["answers"]
        # the clock also runs by itself between these steps
        assert 6 <= answer["seconds"] < 40


class TestStorage:
    def test_without_it_the_page_works_and_says_so(self, visit):
        page = visit("study", NO_STORAGE)
        assert page.is_visible("#storage-warning") and "stores nothing" in page.inner_text("#storage-warning")
        begin_by_keyboard(page)
        press(page, "1", "r", "2", "Enter")
        assert len(save(page, lambda: page.click("#trial .save"))["answers"]) == 1

    def test_with_it_there_is_no_warning(self, visit):
        assert not visit("study").is_visible("#storage-warning")

    @pytest.mark.parametrize("damage", ["{order: ['x'], position: 1}", "{answers: null}", "{draft: null}"])
    def test_damaged_memory_starts_again(self, visit, damage):
        page = visit("study")
        page.evaluate(f"localStorage.setItem(storageKey, JSON.stringify({{...newState(''), ...{damage}}}))")
        page.reload()
        assert page.is_visible("#intro")

    def test_second_tab_takes_over(self, visit):
        page = visit("study")
        begin_by_keyboard(page)
        press(page, "1", "r", "2", "Enter")
        second = page.context.new_page()
        second.goto(page.url)
        second.click("#continue")
        press(second, "2", "s", "3", "Enter")
        page.wait_for_selector("#taken-over:not([hidden])")
        assert not page.is_visible("#trial")
        second.reload()
        assert second.inner_text("#paused-count") == f"2 of {TRIALS} answered."


@pytest.mark.parametrize("name", ["study", "many", "preference"])
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")])
def test_every_screen_is_readable_fits_and_names_its_controls(visit, name, width, scheme):
    page = visit(name, viewport={"width": width, "height": 780}, color_scheme=scheme)

    def check(screen: str) -> None:
        assert page.is_visible(f"#{screen}")
        assert page.evaluate(OVERFLOW) <= 0, screen
        assert page.evaluate(UNNAMED) == 0, screen
        contrast, where = page.evaluate(LEAST_CONTRAST)
        assert contrast >= 4.5, where

    check("intro")
    begin_by_keyboard(page)
    page.click("summary")
    if name != "preference":
        press(page, "1", "s", "3")
    page.wait_for_timeout(500)
    check("trial")
    assert page.evaluate(EMPTY.replace("'img, svg'", "'#trial img'")) == 0
    press(page, "Escape")
    check("paused")
    page.evaluate("goTo(state.order.length)")
    check("end")
