"""The page of results in a browser: complete, quiet, readable and within the window, on a phone and on a desktop."""

from __future__ import annotations

import pytest
from chromium import CUT_OFF, EMPTY, IN_BROWSER, LEAST_CONTRAST, OVERFLOW, open_page
from readers.test_readers_command import preference_files, run_readers, study_files

pytestmark = IN_BROWSER


@pytest.fixture(scope="module", params=[study_files, preference_files])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    files, key = request.param(folder)
    assert run_readers(*files, "--key", key, "--out", folder / "out").exit_code == 0
    return folder / "out" / "readers.html"


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_page_is_complete_quiet_readable_and_fits_the_window(browser, path, width: int, scheme: str):
    page = open_page(browser, path, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate(EMPTY) == 0 and page.evaluate(OVERFLOW) <= 0 and page.evaluate(CUT_OFF) == []
    assert page.messages == [] and [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    page.close()
