"""The contract of dvc.yaml: params exist, deps are complete, nothing is written twice."""

from __future__ import annotations

import ast
import hashlib
import re

import pytest
from conftest import ROOT, graph_stages

from pathsynth.core.params import read_yaml

PARAMS = read_yaml(ROOT / "params.yaml")
GRAPH = read_yaml(ROOT / "dvc.yaml")


STAGES = graph_stages()


def _paths(stage: dict, *kinds: str) -> list[str]:
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _modules(path, seen: set[str]) -> set[str]:
    """Files of the package that `path` imports, directly or through another, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pathsynth":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("pathsynth")]
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            relative = str(file.relative_to(ROOT))
            if file.is_file() and relative not in seen:
                seen.add(relative)
                _modules(file, seen)
    return seen


# What differs from run to run: measured times, and the page that shows them.
UNHASHED = {"logs", "reports/report.html"}


@pytest.mark.parametrize("name", STAGES)
def test_every_param_exists(name):
    for param in STAGES[name].get("params", []):
        node = PARAMS
        for part in param.split("."):
            assert part in node, f"{param} of {name} is not in params.yaml"
            node = node[part]


@pytest.mark.parametrize("name", STAGES)
def test_every_imported_module_and_the_script_are_deps(name):
    stage = STAGES[name]
    script = "stages/" + re.search(r"-m stages\.(\w+)", stage["cmd"]).group(1) + ".py"
    deps = set(_paths(stage, "deps"))
    code = {dep for dep in deps if dep.endswith(".py")}
    assert code == {script} | _modules(ROOT / script, set())


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_the_command_is_a_dep_an_out_or_the_params(name):
    stage = STAGES[name]
    known = {"params.yaml", *_paths(stage, "deps", "outs", "metrics", "plots"), *UNHASHED}
    for word in stage["cmd"].split():
        if "/" in word or word.endswith(".yaml"):
            assert word in known or any(path.startswith(word + "/") for path in known), f"{word} of {name} is not declared"


def test_no_path_is_an_out_twice():
    outs = [path for stage in STAGES.values() for path in _paths(stage, "outs", "metrics", "plots")]
    assert len(outs) == len(set(outs))
    assert not [(a, b) for a in outs for b in outs if a != b and b.startswith(a + "/")]


def test_every_dep_is_in_git_or_an_out_of_another_stage():
    outs = {path for stage in STAGES.values() for path in _paths(stage, "outs", "metrics", "plots")}
    for name, stage in STAGES.items():
        for dep in _paths(stage, "deps"):
            assert dep in outs or (ROOT / dep).exists(), f"{dep} of {name} is nowhere"


def test_artifacts_point_at_outs():
    outs = {path for stage in STAGES.values() for path in _paths(stage, "outs", "metrics", "plots")}
    assert {artifact["path"] for artifact in GRAPH["artifacts"].values()} <= outs


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"report"}))
def test_dvc_can_restore_every_stage(name):
    """DVC keeps no run-cache entry of a stage without outs, or with an uncached one that is neither metric nor plot."""
    assert _paths(STAGES[name], "outs", "metrics", "plots")
    assert all(isinstance(out, str) for out in STAGES[name].get("outs", []))


def test_the_report_depends_on_all_that_it_shows_and_is_hashed_nowhere():
    stage = STAGES["report"]
    assert not _paths(stage, "outs", "metrics", "plots")
    shown = {path for name in STAGES for path in _paths(STAGES[name], "metrics", "plots")}
    # what is shown from another file
    assert shown - {"plots/evaluation/per_tissue.csv", "metrics/headline.json"} <= set(stage["deps"])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_what_it_does(name):
    assert len(STAGES[name]["desc"]) > 20


def test_a_lora_change_reaches_only_what_depends_on_it():
    touched = {name for name, stage in STAGES.items() if any(param.startswith("loras.") for param in stage.get("params", []))}
    assert touched == {"train_lora", "generate_filtered", "evaluate", "report"}


def test_everything_that_makes_the_base_is_a_dep_of_it():
    stage = read_yaml(ROOT / "base" / "dvc.yaml")["stages"]["train_base"]
    script = ROOT / "stages" / "train_base.py"
    assert set(stage["deps"]) == {f"../{path}" for path in {"stages/train_base.py"} | _modules(script, set())}


def test_the_base_is_frozen_and_kept_in_git():
    stage = read_yaml(ROOT / "base" / "dvc.yaml")["stages"]["train_base"]
    assert stage["frozen"] is True
    assert all(next(iter(out.values())) == {"cache": False} for out in stage["outs"])


def test_the_base_in_git_was_made_with_the_params_beside_it():
    lock = read_yaml(ROOT / "base" / "dvc.lock")["stages"]["train_base"]
    assert lock["params"]["params.yaml"] == read_yaml(ROOT / "base" / "params.yaml")


# What needs no pull.
IN_GIT = ("pathsynth/", "stages/", "base/", "metrics/", "plots/evaluation/")
LOCK = read_yaml(ROOT / "dvc.lock")["stages"]


def _md5(path: str) -> str:
    return hashlib.md5((ROOT / path).read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("name", STAGES)
def test_the_lock_was_made_by_the_code_that_is_here(name):
    """What `dvc status` would say, from the files that are in git alone."""
    entries = [*LOCK[name]["deps"], *LOCK[name].get("outs", [])]
    mine = [entry for entry in entries if entry["path"].startswith(IN_GIT) and (ROOT / entry["path"]).is_file()]
    changed = [entry["path"] for entry in mine if _md5(entry["path"]) != entry["md5"]]
    assert changed == [], f"run `dvc repro {name}`, or `dvc commit {name}` where nothing that it makes can have changed"
    assert [entry["path"] for entry in LOCK[name]["deps"]] == sorted(_paths(STAGES[name], "deps"))


@pytest.mark.parametrize("name", STAGES)
def test_the_lock_was_made_with_the_params_that_are_here(name):
    for key, value in LOCK[name].get("params", {"params.yaml": {}})["params.yaml"].items():
        node = PARAMS
        for part in key.split("."):
            node = node[part]
        assert node == value, key
