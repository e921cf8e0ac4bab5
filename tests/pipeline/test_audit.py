"""What is made of the answer about known weaknesses of packages."""

from __future__ import annotations

import importlib.util
import json

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = {"name": "click", "version": "8.5.1", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.14.1)"}
WEAK = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "X-2", "fix_versions": []}],
}


@pytest.mark.parametrize(("answer", "code", "words"), [
    ("", 1, "pip-audit gives no answer\nNo module named pip_audit"),
    ('{"dependencies": null}', 1, "pip-audit gives no answer\nNo module named pip_audit"),
    ([SKIPPED], 0, "nothing was audited"),
    ([SOUND, SKIPPED], 0, "1 of 2 packages audited, no known weakness"),
    ([SOUND, WEAK], 1, "2 known weaknesses\n  pillow 1.0: PYSEC-1, mended in 1.1\n  pillow 1.0: X-2, mended in no version yet"),
])  # fmt: skip
def test_a_weakness_fails_and_no_network_does_not(audit, answer, code, words):
    text = answer if isinstance(answer, str) else json.dumps({"dependencies": answer})
    found = audit.verdict(text, "No module named pip_audit")
    assert found[0] == code and found[1].endswith(words)


def test_a_network_that_is_not_there_is_told_from_a_fault(audit):
    said = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x', port=443): Failed to resolve 'x'"
    assert audit.verdict("", said) == (0, "audit: no advisories within reach, nothing was audited")
