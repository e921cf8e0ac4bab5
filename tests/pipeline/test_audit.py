"""What the audit of installed packages reports."""

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
REPORT = "2 known vulnerabilities\n  pillow 1.0: PYSEC-1, fixed in 1.1\n  pillow 1.0: X-2, fixed in no version yet"
VULNERABLE = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "X-2", "fix_versions": []}],
}


@pytest.mark.parametrize(("output", "code", "message"), [
    ("", 1, "pip-audit failed\nNo module named pip_audit"),
    ('{"dependencies": null}', 1, "pip-audit failed\nNo module named pip_audit"),
    ([SKIPPED], 0, "skipped, no network"),
    ([SOUND, SKIPPED], 0, "1 of 2 packages audited, no known vulnerability"),
    ([SOUND, VULNERABLE], 1, REPORT),
])  # fmt: skip
def test_vulnerability_fails_and_missing_network_does_not(audit, output, code, message):
    text = output if isinstance(output, str) else json.dumps({"dependencies": output})
    found = audit.summarize(text, "No module named pip_audit")
    assert found[0] == code and found[1].endswith(message)


def test_missing_network_is_told_from_an_error(audit):
    errors = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x', port=443): Failed to resolve 'x'"
    assert audit.summarize("", errors) == (0, "audit: skipped, no network")
