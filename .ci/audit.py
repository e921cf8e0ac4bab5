"""Asks PyPI about known weaknesses of every installed package; without a network it says that nothing was audited."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

NO_NETWORK = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Failed to resolve", "ServiceError")
# Advisories that do not concern this project, each with the reason.
IGNORED: dict[str, str] = {}


def main() -> int:
    """Audits the environment; 1 where a package has a known weakness."""
    ignored = [word for name in IGNORED for word in ("--ignore-vuln", name)]
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off", *ignored]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    code, message = verdict(done.stdout, done.stderr)
    print(message)
    return code


def verdict(answer: str, said: str = "") -> tuple[int, str]:
    """Exit code and words for what pip-audit has printed, and said beside it."""
    try:
        packages: list[dict[str, Any]] = list(json.loads(answer)["dependencies"])
    except (ValueError, KeyError, TypeError):
        if any(words in said for words in NO_NETWORK):
            return 0, "audit: no advisories within reach, nothing was audited"
        return 1, f"audit: pip-audit gives no answer\n{said}"
    weak = [(package["name"], package["version"], weakness) for package in packages for weakness in package.get("vulns", ())]
    if weak:
        lines = [
            f"  {name} {version}: {weakness['id']}, mended in {', '.join(weakness['fix_versions']) or 'no version yet'}"
            for name, version, weakness in weak
        ]
        return 1, "\n".join([f"audit: {len(weak)} known weaknesses", *lines])
    audited = sum("skip_reason" not in package for package in packages)
    if not audited:
        return 0, "audit: no advisories within reach, nothing was audited"
    return 0, f"audit: {audited} of {len(packages)} packages audited, no known weakness"


if __name__ == "__main__":
    sys.exit(main())
