"""Checks every installed package for known vulnerabilities with pip-audit; reports if there is no network to ask."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

NO_NETWORK = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Failed to resolve", "ServiceError")
# Advisories that do not affect this project, with the reason.
IGNORED: dict[str, str] = {}


def main() -> int:
    """Audits the environment and returns the exit code: 1 if a package has a known vulnerability."""
    ignored = [word for name in IGNORED for word in ("--ignore-vuln", name)]
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off", *ignored]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    code, message = summarize(done.stdout, done.stderr)
    print(message)
    return code


def summarize(output: str, errors: str = "") -> tuple[int, str]:
    """Returns exit code and message for the output of pip-audit."""
    try:
        packages: list[dict[str, Any]] = list(json.loads(output)["dependencies"])
    except (ValueError, KeyError, TypeError):
        if any(text in errors for text in NO_NETWORK):
            return 0, "audit: skipped, no network"
        return 1, f"audit: pip-audit failed\n{errors}"
    vulnerable = [(package["name"], package["version"], found) for package in packages for found in package.get("vulns", ())]
    if vulnerable:
        lines = [
            f"  {name} {version}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
            for name, version, found in vulnerable
        ]
        return 1, "\n".join([f"audit: {len(vulnerable)} known vulnerabilities", *lines])
    audited = sum("skip_reason" not in package for package in packages)
    if not audited:
        return 0, "audit: skipped, no network"
    return 0, f"audit: {audited} of {len(packages)} packages audited, no known vulnerability"


if __name__ == "__main__":
    sys.exit(main())
