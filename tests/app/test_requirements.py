"""The packages of the page: pinned, complete, and within each other's limits except for two that are known."""

from __future__ import annotations

import re
from importlib.metadata import requires, version

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

pytest.importorskip("gradio")

# Gradio's limits that requirements-app.txt says it ignores.
IGNORED = {"pillow", "tomlkit"}


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements-app.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: str(each.specifier) for each in found if each.marker is None or each.marker.evaluate()}


def test_pinned_versions_are_installed():
    assert {name: f"=={version(name)}" for name in pins()} == pins()


def test_every_requirement_is_installed_and_within_its_limits():
    violated = {}
    for name in pins():
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                # raises if the package is missing
                found = version(needed.name)
                if not needed.specifier.contains(found, prereleases=True):
                    violated[needed.name] = f"{name} asks for {needed}, installed is {found}"
    assert set(violated) <= IGNORED, violated


def test_file_says_which_limits_are_ignored():
    head = (ROOT / "requirements-app.txt").read_text(encoding="utf-8").partition("gradio==")[0]
    assert set(re.findall(r"(\w+) <", head)) == IGNORED
