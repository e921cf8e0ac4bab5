"""Line endings: DVC hashes files as they lie in the working tree, so a clone must have the same bytes on every system."""

from __future__ import annotations

import subprocess

from conftest import ROOT


def test_clone_that_converts_line_endings_has_the_committed_bytes(tmp_path):
    subprocess.run(["git", "clone", "--quiet", "-c", "core.autocrlf=true", ROOT, tmp_path / "clone"], check=True)
    listed = subprocess.run(["git", "ls-files", "--eol"], cwd=tmp_path / "clone", check=True, capture_output=True, text=True)
    assert [line for line in listed.stdout.splitlines() if "w/crlf" in line or "w/mixed" in line] == []
