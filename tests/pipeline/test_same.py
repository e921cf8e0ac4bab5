"""The same parameters give the same bytes in another folder, locale, time zone and hash order, and for another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tiny_tree, write_params

RUN = """
import os, sys
from pathlib import Path
os.umask(0o077)
sys.path.insert(0, "tests")
from conftest import run_graph
run_graph(Path(sys.argv[1]), Path(sys.argv[1]) / "params.yaml")
"""
OTHERS = {
    "TZ": "Asia/Kathmandu",
    "LANG": "C",
    "LC_ALL": "C",
    "PYTHONHASHSEED": "1234",
    "USER": "someone",
    "LOGNAME": "someone",
}


def outs(folder: Path) -> dict[str, bytes]:
    """All files that stages have made, without the times that were measured and the page that shows them."""
    made = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    kept = {"data", "metrics", "models", "plots"}
    found = {str(name): path.read_bytes() for name, path in made.items() if name.parts[0] in kept}
    return found | {"card": (folder / "reports" / "dataset_card.md").read_bytes()}


@pytest.mark.slow
def test_place_user_locale_time_zone_and_hashes_change_nothing(finished, tiny_base, tmp_path):
    folder = tmp_path / "a folder of another name" / "größer"
    folder.mkdir(parents=True)
    base = shutil.copytree(tiny_base, tmp_path / "other base" / "base")
    write_params(folder / "params.yaml", tiny_tree(base))
    environment = os.environ | OTHERS | {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = outs(finished), outs(folder)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
